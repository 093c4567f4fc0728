"""Whether what a line sees has drifted, told apart from a run of defects. Pure: a function of the log's records.

A defect changes part of an image, and only of some images; light, lens or camera change all of each. So two things are
watched, each by a Page-Hinkley test (river's), and a run of rejects is only called defects where both are calm:

* Moments: of every channel of the embedded features the median over the image, which a defect in less than half of it
  hardly moves, folded into at most 32 numbers. How far an image lies from the first 48 of its product is compared with
  how far these lie from each other.
* Scores: the p-values of images that passed. They do not depend on which version gave them, and a defect among the
  rejected does not move them.

A run of defects: so many rejects among the last 32 images as the promised rate explains with a probability below 1e-5.
Each product (task) has a stream of its own; a change of product is no drift.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from river.drift import PageHinkley
from scipy.stats import binom
from torch import Tensor

from ..methods.errors import StateError
from .record import Record

POLICIES = ("adapt", "hold", "alarm only")
NONE, DRIFT, DEFECTS = "none", "drift", "defects"
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


def moments(features: Tensor) -> list[float]:
    """Features of one image (1, C, h, w) -> at most 32 numbers that a small defect hardly moves.

    They go into its record. More channels than that are folded by signs drawn once and for all, which keeps
    distances (Johnson-Lindenstrauss).
    """
    channels = features[0].detach().to("cpu", torch.float32).flatten(1).median(dim=1).values.double().numpy()
    if len(channels) > NUMBERS:
        signs = np.random.default_rng(0).integers(0, 2, (NUMBERS, len(channels))) * 2 - 1
        channels = (signs * channels).sum(axis=1) / len(channels) ** 0.5
    return [float(f"{value:.6g}") for value in channels]


class Watch:
    """The state of one line's stream. `take` alone changes it; equal records give equal states."""

    def __init__(self, false_reject_rate: float, policy: str = POLICIES[0]) -> None:
        self.rate, self.policy = false_reject_rate, policy
        self._streams: dict[str, _Stream] = {}  # by task, that of the last image at the end

    def take(self, record: Record) -> None:
        """An image's record; one without moments (of an older everline) is passed over."""
        values = record.data.get("moments")
        if record.kind != "image" or not values:
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
    def holds(self) -> bool:
        """Whether nothing is to be learned now."""
        return self.policy == "hold" and self.state == DRIFT

    def status(self) -> dict[str, Any]:
        """state; since: number of the record that raised the alarm; by: `moments`, `scores` or `rejects`."""
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
        return next(reversed(self._streams.values()), _Stream())


class _Signal:
    """A Page-Hinkley test that is a function of a bounded list of values: those since the last alarm."""

    def __init__(self, values: list[float] | None = None) -> None:
        self.values: list[float] = []
        self._test = _test()
        for value in values or []:
            self.add(value)

    def add(self, value: float) -> bool:
        """Whether with this value the mean has risen; then the test has begun anew."""
        if len(self.values) == KEEP:
            self.values = self.values[KEEP // 2 :]
            self._test = _test()
            for old in self.values:
                self._test.update(old)
        self.values.append(value)
        self._test.update(value)
        risen = bool(self._test.drift_detected)
        if risen:
            self.values, self._test = [], _test()
        return risen


def _test() -> PageHinkley:
    return PageHinkley(min_instances=1, delta=SLACK, threshold=LIMIT, alpha=1.0, mode="up")


@dataclass
class _Stream:
    """One product: what is usual, what came lately, and the alarm."""

    state: str = NONE
    since: int | None = None
    by: str = ""
    reference: list[list[float]] = field(default_factory=list)
    distances: list[float] = field(default_factory=list)  # the recent ones
    unusual: list[float] = field(default_factory=list)  # how low recent p-values of passed images were
    rejected: list[bool] = field(default_factory=list)
    moved: _Signal = field(default_factory=_Signal)
    scored: _Signal = field(default_factory=_Signal)
    _far: Callable[[Vector], float] | None = None

    def take(self, record: Record, values: Vector, rate: float, policy: str) -> None:
        risen = self._take_moments(values, policy)
        by = "moments" if risen else "scores" if self._take_score(record) else ""
        if self.state == DRIFT:
            if policy != "adapt" and self._calm:
                self._set(NONE)
        elif by:
            self._set(DRIFT, record.seq, by)
            self.distances, self.unusual = [], []
            if policy == "adapt":
                self.reference, self._far = [], None
                self.moved, self.scored = _Signal(), _Signal()
        else:
            self._count_rejects(record.seq, rate)

    def _take_moments(self, values: Vector, policy: str) -> bool:
        if len(self.reference) < REFERENCE:
            self.reference.append(values.tolist())
            if len(self.reference) == REFERENCE and self.state == DRIFT and policy == "adapt":
                self._set(NONE)  # what came since the alarm is what is usual now
                self.rejected = []
            return False
        if self._far is None:
            self._far = _distance(np.array(self.reference))
        if len(values) != len(self.reference[0]):  # another method or backbone by now
            self.reference, self._far, self.moved = [values.tolist()], None, _Signal()
            return False
        far = self._far(values)
        self.distances = [*self.distances, far][-RECENT:]
        return self.moved.add(far)

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
        many = sum(self.rejected) > 1 and float(binom.sf(sum(self.rejected) - 1, RECENT, rate)) < CHANCE
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
        return means[0] < CALM[0] and means[1] < CALM[1] and sum(self.rejected) * 2 < RECENT

    def pack(self) -> dict[str, Any]:
        names = ("state", "since", "by", "reference", "distances", "unusual", "rejected")
        return {name: getattr(self, name) for name in names} | {
            "moved": self.moved.values,
            "scored": self.scored.values,
        }

    @classmethod
    def unpack(cls, plain: dict[str, Any]) -> "_Stream":
        values = {**plain, "moved": _Signal(plain["moved"]), "scored": _Signal(plain["scored"])}
        return cls(**{name: list(value) if isinstance(value, list) else value for name, value in values.items()})


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
