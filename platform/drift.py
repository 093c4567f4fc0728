"""Whether what a line sees has drifted, told apart from a run of defects. Pure: a function of the log's records.

A defect changes part of an image, and only of some images; light, lens or camera change all of each. So three things
are watched, each by a Page-Hinkley test (river's), and a run of rejects is only called defects where all are calm:

* Light: the mean of the pixels, brighter or darker than in the first 48 images of the product. A frozen backbone's
  features are made to ignore just that.
* Moments: of every channel of the embedded features the median over the image, which a defect in less than half of it
  hardly moves, folded into at most 32 numbers. How far an image lies from the first 48 of its product is compared with
  how far these lie from each other.
* Scores: the p-values of images that passed. They do not depend on which version gave them, and a defect among the
  rejected does not move them.

A drift that is adapted to is what is usual after 48 images. Where the whole image has moved (light or moments) and the
version at work rejects nearly all that comes, the fold begins anew with the product (platform/fold.py).

A run of defects: so many rejects among the last 32 images as the promised rate explains with a probability below 1e-5.
Each product (task) has a stream of its own; a change of product is no drift.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..methods.errors import StateError
from .binomial import at_least
from .record import Record

NONE, DRIFT, DEFECTS = "none", "drift", "defects"
LIGHT = 3  # numbers of an image's light, the first of its moments
STEADY = 1.0  # grey level: what light varies by at least
NUMBERS = 32  # into which the channels' medians are folded
REFERENCE = 48  # images that say what is usual
RECENT = 32  # images by which an end, or a run of defects, is seen
KEEP = 512  # values of a signal; then the older half goes
FAR = 4.0  # deviations at which a value is cut off, so that one image alone decides nothing
SLACK, LIMIT = 0.5, 15.0  # of the Page-Hinkley test, in deviations
CALM = (1.0, 0.5)  # mean of the recent distances and scores, in deviations, below which a drift is over
CHANCE = 1e-5
TASKS = 16  # products remembered; the one not seen for longest goes

Vector = NDArray[np.float64]


def moments(pixels: Tensor, features: Tensor) -> list[float]:
    """uint8 (3, H, W), and its features (1, C, h, w) -> at most 35 numbers that a small defect hardly moves.

    They go into the image's record: the means of red, green and blue (0 to 255), then the medians of the channels.
    More than 32 of these are folded by signs drawn once and for all, which keeps distances (Johnson-Lindenstrauss).
    """
    light = pixels.double().mean(dim=(1, 2)).tolist()
    channels = features[0].detach().to("cpu", torch.float32).flatten(1).median(dim=1).values.double().numpy()
    if len(channels) > NUMBERS:
        signs = np.random.default_rng(0).integers(0, 2, (NUMBERS, len(channels))) * 2 - 1
        channels = (signs * channels).sum(axis=1) / len(channels) ** 0.5
    return [float(f"{value:.6g}") for value in (*light, *channels)]


class Watch:
    """The state of one line's stream. `take` alone changes it; equal records give equal states.

    policy: `adapt`, `hold` or `alarm`, as the setting `drift` of a line.
    """

    def __init__(self, false_reject_rate: float, policy: str = "adapt") -> None:
        self.rate, self.policy = false_reject_rate, policy
        self._streams: dict[str, _Stream] = {}  # by task, that of the last image at the end
        self._none = _Stream()  # while there is no image; made here, so that no image and no look waits for an import

    def take(self, record: Record) -> None:
        """An image's record; one without moments (of an older everline), or not meant for learning, is passed over."""
        values = record.data.get("moments")
        if record.kind != "image" or not values or record.data.get("learn") is False:
            return
        stream = self._streams.pop(record.task, None) or _Stream()
        self._streams[record.task] = stream
        if len(self._streams) > TASKS:
            del self._streams[next(iter(self._streams))]
        stream.take(record, np.array(values, np.float64), self.rate, self.policy)

    def forgive(self) -> None:
        """A person has decided what is current: what comes from now on is what is usual."""
        self._streams.clear()

    @property
    def state(self) -> str:
        """`none`, `drift` or `defects`, of the product that was seen last."""
        return self._now.state

    @property
    def since(self) -> int | None:
        """Number of the record that raised the alarm."""
        return self._now.since

    @property
    def everywhere(self) -> bool:
        """Whether it is a drift of light or moments: of whole images, and not of scores alone."""
        return self.state == DRIFT and self._now.by in ("light", "moments")

    @property
    def holds(self) -> bool:
        """Whether nothing is to be learned now."""
        return self.policy == "hold" and self.state == DRIFT

    def status(self) -> dict[str, Any]:
        """state; since: number of the record that raised the alarm; by: `light`, `moments`, `scores` or `rejects`."""
        now = self._now
        return {"state": now.state, "since": now.since, "by": now.by}

    def pack(self) -> dict[str, Any]:
        """Plain values from which `unpack` goes on exactly."""
        return {"streams": [[task, stream.pack()] for task, stream in self._streams.items()]}

    def unpack(self, plain: dict[str, Any]) -> None:
        """The reverse of `pack`. Raises StateError for anything else."""
        try:
            self._streams = {task: _Stream.unpack(one) for task, one in plain["streams"]}
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"not a state of the watch for drift: {error}") from error

    @property
    def _now(self) -> "_Stream":
        return next(reversed(self._streams.values()), self._none)


class _Signal:
    """A Page-Hinkley test that is a function of a bounded list of values: those since the last alarm."""

    def __init__(self, values: list[float] | None = None, mode: str = "up") -> None:
        self.values: list[float] = []
        self.mode = mode
        self._test = _test(mode)
        for value in values or []:
            self.add(value)

    def add(self, value: float) -> bool:
        """Whether with this value the mean has risen (`both`: or fallen); then the test has begun anew."""
        if len(self.values) == KEEP:
            self.values = self.values[KEEP // 2 :]
            self._test = _test(self.mode)
            for old in self.values:
                self._test.update(old)
        self.values.append(value)
        self._test.update(value)
        risen = bool(self._test.drift_detected)
        if risen:
            self.values, self._test = [], _test(self.mode)
        return risen


def _test(mode: str) -> Any:
    from river.drift import PageHinkley  # a second of import, for which only a line that opens has to wait

    return PageHinkley(min_instances=1, delta=SLACK, threshold=LIMIT, alpha=1.0, mode=mode)


@dataclass
class _Stream:
    """One product: what is usual, what came lately, and the alarm."""

    state: str = NONE
    since: int | None = None
    by: str = ""
    reference: list[list[float]] = field(default_factory=list)
    lights: list[float] = field(default_factory=list)  # the recent ones, as deviations
    distances: list[float] = field(default_factory=list)  # the recent ones
    unusual: list[float] = field(default_factory=list)  # how low recent p-values of passed images were
    rejected: list[bool] = field(default_factory=list)
    lit: _Signal = field(default_factory=lambda: _Signal(mode="both"))
    moved: _Signal = field(default_factory=_Signal)
    scored: _Signal = field(default_factory=_Signal)
    _far: Callable[[Vector], float] | None = None

    def take(self, record: Record, values: Vector, rate: float, policy: str) -> None:
        by = self._take_moments(values, policy)
        scored = self._take_score(record)
        by = by or ("scores" if scored else "")
        if self.state == DRIFT:
            if policy != "adapt" and self._calm:
                self._set(NONE)
        elif by:
            self._set(DRIFT, record.seq, by)
            self.lights, self.distances, self.unusual = [], [], []
            if policy == "adapt":
                self.reference, self._far = [], None
                self.lit, self.moved, self.scored = _Signal(mode="both"), _Signal(), _Signal()
        else:
            self._count_rejects(record.seq, rate)

    def _take_moments(self, values: Vector, policy: str) -> str:
        """What has moved by now, if anything."""
        if len(self.reference) < REFERENCE:
            self.reference.append(values.tolist())
            if len(self.reference) == REFERENCE and self.state == DRIFT and policy == "adapt":
                self._set(NONE)  # what came since the alarm is what is usual now
                self.rejected = []
            return ""
        if self._far is None:
            self._far = _distance(np.array(self.reference)[:, LIGHT:])
        if len(values) != len(self.reference[0]):  # another method or backbone by now
            self.reference, self._far, self.moved = [values.tolist()], None, _Signal()
            return ""
        usual = np.array(self.reference)[:, :LIGHT].mean(axis=1)
        light = float((values[:LIGHT].mean() - usual.mean()) / max(float(usual.std()), STEADY))
        far, light = self._far(values[LIGHT:]), min(FAR, max(-FAR, light))
        self.lights, self.distances = [*self.lights, light][-RECENT:], [*self.distances, far][-RECENT:]
        lit, moved = self.lit.add(light), self.moved.add(far)
        return "light" if lit else "moments" if moved else ""

    def _take_score(self, record: Record) -> bool:
        if record.verdict not in ("pass", "reject"):
            return False
        self.rejected = [*self.rejected, record.verdict == "reject"][-RECENT:]
        if record.verdict == "reject" or record.p_value is None:
            return False
        low = (0.5 - record.p_value) * 12**0.5  # p-values are uniform on a calm line: mean 0, deviation 1
        self.unusual = [*self.unusual, low][-RECENT:]
        return self.scored.add(low)

    def _count_rejects(self, seq: int, rate: float) -> None:
        many = sum(self.rejected) > 1 and at_least(sum(self.rejected), RECENT, rate) < CHANCE
        if many and self.state == NONE:
            self._set(DEFECTS, seq, "rejects")
        elif not many and self.state == DEFECTS:
            self._set(NONE)

    def _set(self, state: str, since: int | None = None, by: str = "") -> None:
        self.state, self.since, self.by = state, since, by

    @property
    def _calm(self) -> bool:
        """Whether the last images are again as the reference."""
        if len(self.distances) < RECENT:
            return False
        means = float(np.mean(self.distances)), float(np.mean(self.unusual or [0.0]))
        steady = abs(float(np.mean(self.lights))) < CALM[0]
        return steady and means[0] < CALM[0] and means[1] < CALM[1] and sum(self.rejected) * 2 < RECENT

    def pack(self) -> dict[str, Any]:
        names = ("state", "since", "by", "reference", "lights", "distances", "unusual", "rejected")
        return {name: getattr(self, name) for name in names} | {
            "lit": self.lit.values,
            "moved": self.moved.values,
            "scored": self.scored.values,
        }

    @classmethod
    def unpack(cls, plain: dict[str, Any]) -> "_Stream":
        values: dict[str, Any] = {**plain, **{name: _Signal(plain[name]) for name in ("moved", "scored")}}
        values["lit"] = _Signal(plain["lit"], "both")
        copied: dict[str, Any] = {n: list(value) if isinstance(value, list) else value for n, value in values.items()}
        return cls(**copied)


def _distance(reference: Vector) -> Callable[[Vector], float]:
    """(n, d) -> how far a vector (d,) is from it, in deviations of how far its own halves are from each other."""
    mean, spread = reference.mean(axis=0), reference.std(axis=0) + 1e-6
    half = len(reference) // 2
    own = np.concatenate([_far(reference[half:], reference[:half]), _far(reference[:half], reference[half:])])
    usual, scale = float(np.median(own)), max(float(own.std()), 0.05)

    def far(values: Vector) -> float:
        distance = float(np.sqrt((((values - mean) / spread) ** 2).mean()))
        return min(FAR, max(-FAR, (distance - usual) / scale))

    return far


def _far(vectors: Vector, reference: Vector) -> Vector:
    return np.sqrt((((vectors - reference.mean(axis=0)) / (reference.std(axis=0) + 1e-6)) ** 2).mean(axis=1))
