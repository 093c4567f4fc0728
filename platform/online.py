"""The calibration of the version at work, carried on with what it judges and what operators say. Pure.

A version comes with scores of fresh normal images (platform/calibration.py). From then on the images that it judges
are normal ones too, as far as anybody knows:

* one that passed counts at its score; one that an operator called `ok`, too, wherever that score is;
* one that an operator called `defect` does not count;
* a reject of which nobody said anything is a normal image or a defect. Left out, the window would only ever hold what
  passed, and the threshold would creep down. So as many of them count as the promised rate explains, and not at their
  score, but at the threshold that rejected them: where nothing is known, nothing changes, and no run of defects
  lifts the threshold. Only an operator's word, or an image that passed, does.

Where the version does not know what it sees any more (`overtaken`), since the light has shifted, images are judged by
their rank among each other until a version does (platform/fold.py decides when).

The next version is calibrated on images that this one let pass: on normal images whose highest scores are cut off.
Without a correction each version would cut a little deeper than the last. How many are cut off is estimated from the
tail of those that passed alone (`beyond`): rejects have no say in it, so no run of defects moves it.

Adaptive conformal inference (Gibbs and Candès 2021) moves the rate that the threshold is made for: a false reject that
an operator confirms lowers it, images that pass lead it back, and never above what was promised. Where every false
reject of T images was confirmed, their share is at most rate + (rate + step) / (step T): that of the method, less what
is given up by a threshold that is never above the window's highest score, or is kept below a known defect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import betaincinv

from ..methods.detector import State
from .calibration import Calibration
from .record import Record

OK, DEFECT = "ok", "defect"
LABELS = (OK, DEFECT)
KEPT = 1000  # verdicts, at least
WINDOWS = 5  # times the scores that the rate needs: so many of the newest decide the threshold
LEAST, MOST = 500, 5000  # ... but not fewer, nor more where the rate does not need them
STEP = 0.25  # of adaptive conformal inference, as a share of the rate
SPARED = 2  # times the promised rate: what a threshold below a known defect may come to
CONFIDENCE = 0.95
RUN = 10  # images, of which the current version rejects all but one where it does not know what it sees
TAIL = 0.3  # of the images that passed, by whose scores is told how many are cut off
LEAST_PASSED = 30
STEEPEST = 500.0  # tail that is told from none: its rate times its reach


@dataclass(frozen=True)
class Judged:
    """An image with a verdict. limit: the threshold that rejected it; None: it passed. label: the operator's word."""

    version: int
    score: float
    limit: float | None
    label: str | None = None


@dataclass(frozen=True)
class InForce:
    """What decides now: scores held to be normal, and a threshold that ACI or a known defect may have moved."""

    calibration: Calibration
    threshold: float
    calibrated: bool

    def verdict(self, score: float) -> str:
        """`pass` or `reject`; a score that is not a number is rejected."""
        return "pass" if score <= self.threshold else "reject"


@dataclass(frozen=True)
class Achieved:
    """False rejects among images known or held to be normal. All None where nothing can be said.

    rate: of the rejects without a word, the share counts that was `ok` among those with one; None where there are
    such and no word yet. low, high: Clopper-Pearson, 95 %, with all of them defects and all of them normal.
    """

    rate: float | None
    low: float | None
    high: float | None
    n: int  # images that passed, or that an operator called ok
    unconfirmed: int  # rejects without a word


class Online:
    """The verdicts of late, and what they and the operators' words make of the current version's threshold."""

    def __init__(self, rate: float) -> None:
        """rate: the promised one."""
        needed = Calibration((), rate).needed
        self.rate, self.needed = rate, needed
        self.window = max(min(max(WINDOWS * needed, LEAST), MOST), needed)
        self.version: int | None = None
        self.aim = rate  # what the threshold is made for: at most `rate`
        self.judged: dict[int, Judged] = {}  # number of the image's record -> what became of it; oldest first
        self.defects: dict[int, float] = {}  # ... -> its score by the current version, of known defects that passed

    def turn(self, version: int | None, defects: dict[int, float]) -> None:
        """Another version is current. defects: scores by it of known defects, besides those that it judged itself."""
        self.version, self.aim = version, self.rate
        own = {seq: one.score for seq, one in self.judged.items() if _passed_defect(one) and one.version == version}
        self.defects = defects | own

    def see(self, record: Record) -> None:
        """An image's record. One that was judged without being meant for learning is no evidence of anything."""
        one = _judged(record)
        if one is None or record.data.get("learn") is False:
            return
        self._keep(record.seq, one)
        if one.limit is None and one.version == self.version:
            self.aim = min(self.rate, self.aim + self._step * self.rate)

    def hear(self, record: Record) -> None:
        """A feedback record: it says again how its image was judged (score, threshold, version, verdict)."""
        of, label = record.data["of"], record.data["label"]
        before, one = self.judged.get(of), _judged(record)
        if one is None:
            return
        one = replace(one, label=label)
        if before is None or before.label != label:
            self._adapt(one, before.label if before else None)
        self.defects.pop(of, None)
        if _passed_defect(one) and one.version == self.version:
            self.defects[of] = one.score
        if before is not None:
            self.judged[of] = one
        elif one.version == self.version:  # it had left the window, and is news again
            self._keep(of, one)

    def _adapt(self, one: Judged, was: str | None) -> None:
        if one.version != self.version or one.limit is None:
            return
        if one.label == OK:
            self.aim = max(0.0, self.aim - self._step * (1 - self.rate))
        elif was == OK:
            self.aim = min(self.rate, self.aim + self._step * (1 - self.rate))

    @property
    def _step(self) -> float:
        return STEP * self.rate

    def _keep(self, seq: int, one: Judged) -> None:
        self.judged[seq] = one
        while len(self.judged) > max(KEPT, self.window):
            del self.judged[next(iter(self.judged))]

    def overtaken(self) -> int | None:
        """The first of the last ten images that the current version judged, where it rejected nine of them or all.

        A defect that an operator has named does not count as rejected.
        """
        last = [(seq, one) for seq, one in self.judged.items() if one.version == self.version][-RUN:]
        rejected = sum(one.limit is not None and one.label != DEFECT for _, one in last)
        return last[0][0] if rejected >= RUN - 1 else None

    def in_force(self, base: Calibration, since: int | None = None) -> InForce:
        """What decides, given the scores that the current version was published with.

        since: the record with which images began that this version does not know. Once there are ten, each is judged
        by its rank among them all, rejects too, as a light that shifts moves the normal ones like the others. Never
        `calibrated`: which of them are normal nobody has said.
        """
        fresh = [] if since is None else [one.score for one in self._mine(since) if one.label != DEFECT]
        if len(fresh) >= RUN:
            calibration = Calibration.of(fresh, self.rate)
            return InForce(calibration, self._threshold(calibration), False)
        mine = self._mine()
        known = [one.score for one in mine if one.label == OK or (one.label is None and one.limit is None)]
        known += _thinned(base.scores, self.window - len(known))
        limits = sorted((one.score, one.limit) for one in mine if one.label is None and one.limit is not None)
        explained = [limit for _, limit in limits[: explained_by(len(known), self.rate)]]
        calibration = Calibration.of(known + explained, self.rate)
        return InForce(calibration, self._threshold(calibration), len(known) >= self.needed)

    def _threshold(self, calibration: Calibration) -> float:
        """Below the lowest known defect that it can be below: not more than SPARED times the rate is then rejected."""
        threshold, least = calibration.at(self.aim), calibration.at(min(1.0, SPARED * self.rate))
        for score in sorted(self.defects.values()):
            below = math.nextafter(score, -math.inf)
            if least <= below < threshold:
                return below
        return threshold

    def _mine(self, since: int = 0) -> list[Judged]:
        """Of the images from a record on, the newest that the current version judged."""
        judged = self.judged.items()
        return [one for seq, one in judged if seq >= since and one.version == self.version][-self.window :]

    def cut_off(self, since: int | None = None) -> float | None:
        """Normal images above the threshold for each one that passed; None where too few passed to tell.

        since: as of `in_force`; the images that were not judged by rank yet say nothing then.
        """
        mine = self._mine() if since is None else self._mine(since)[RUN:]
        passed = [one.score for one in mine if one.limit is None and one.label != DEFECT]
        limits = [one.limit for one in mine if one.limit is not None]
        if len(passed) < LEAST_PASSED or not limits:
            return None
        return beyond(passed, float(np.median(limits))) / len(passed)

    def achieved(self) -> Achieved:
        """Over the verdicts that are kept, whichever version gave them."""
        words = [(one.limit is not None, one.label) for one in self.judged.values()]
        passed = sum(1 for rejected, label in words if not rejected and label != DEFECT)
        wrong = words.count((True, OK))
        right, open_ = words.count((True, DEFECT)), words.count((True, None))
        n = passed + wrong
        if n + open_ == 0:
            return Achieved(None, None, None, 0, 0)
        share = wrong / (wrong + right) if wrong + right else None
        rate = None
        if not open_ or share is not None:
            held = wrong + open_ * (share or 0.0)
            rate = held / (passed + held) if passed + held else None
        low, high = interval(wrong, n)[0], interval(wrong + open_, n + open_)[1]
        return Achieved(rate, low, high, n, open_)

    def pack(self) -> State:
        """Everything, to the last bit."""
        rows = [
            (seq, one.version, LABELS.index(one.label) if one.label else -1, one.limit is not None)
            for seq, one in self.judged.items()
        ]
        floats = [(one.score, 0.0 if one.limit is None else one.limit) for one in self.judged.values()]
        tensors = {
            "rows": torch.tensor(rows, dtype=torch.int64).reshape(-1, 4),
            "scores": torch.tensor(floats, dtype=torch.float64).reshape(-1, 2),
        }
        defects = [[seq, score] for seq, score in self.defects.items()]
        return State(tensors, {"version": self.version, "aim": self.aim, "defects": defects})

    @classmethod
    def unpack(cls, rate: float, state: State) -> Self:
        """The reverse of `pack`."""
        made = cls(rate)
        made.version, made.aim = state.meta["version"], state.meta["aim"]
        made.defects = dict(state.meta["defects"])
        rows, floats = state.tensors["rows"].tolist(), state.tensors["scores"].tolist()
        for (seq, version, label, rejected), (score, limit) in zip(rows, floats, strict=True):
            word = LABELS[label] if label >= 0 else None
            made.judged[seq] = Judged(version, score, limit if rejected else None, word)
        return made


def beyond(passed: Sequence[float], limit: float) -> float:
    """How many more scores lie above a limit, given those up to it: an exponential tail, fitted as cut off there.

    The upper 30 % of what passed; maximum likelihood for the truncated exponential. Never more than those who tell it.
    """
    top = sorted(passed)[-max(2, round(TAIL * len(passed))) :]
    reach = limit - top[0]
    share = (float(np.mean(top)) - top[0]) / reach if reach > 0 else 0.0
    if share <= 1 / STEEPEST:
        return 0.0
    if share >= 1 / math.log(2) - 1:
        return float(len(top))
    return len(top) / math.expm1(brentq(lambda x: 1 / x - 1 / math.expm1(x) - share, math.log(2), STEEPEST))


def explained_by(known: int, rate: float) -> int:
    """How many rejects a promised rate explains beside so many images that passed."""
    return math.floor(known * rate / (1 - rate) + 1e-9)


def interval(events: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Clopper-Pearson: the exact two-sided interval of a share of which `events` of `n` were seen."""
    tail = (1 - confidence) / 2
    low = float(betaincinv(events, n - events + 1, tail)) if events else 0.0
    high = float(betaincinv(events + 1, n - events, 1 - tail)) if events < n else 1.0
    return low, high


def _judged(record: Record) -> Judged | None:
    if record.version is None or record.score is None or record.threshold is None:
        return None
    return Judged(record.version, record.score, record.threshold if record.verdict == "reject" else None)


def _passed_defect(one: Judged) -> bool:
    return one.label == DEFECT and one.limit is None


def _thinned(scores: tuple[float, ...], most: int) -> list[float]:
    """At most so many of sorted scores, evenly over their ranks."""
    if len(scores) <= most:
        return list(scores)
    return [scores[int((n + 0.5) * len(scores) / most)] for n in range(most)]
