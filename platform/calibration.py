"""From scores of fresh normal images to a threshold with a promised false-reject rate: split conformal."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Calibration:
    """Sorted scores of normal images that the version had not learned from, and the rate to keep.

    With m scores, a fresh normal image gets a p-value of at most `false_reject_rate` with at most that
    probability (Vovk et al. 2005), whatever the scores' distribution. A rate below 1/(m+1) cannot be
    promised: such a version is not `calibrated`, and rejects only what is above every score seen.
    """

    scores: tuple[float, ...]
    false_reject_rate: float

    @classmethod
    def of(cls, scores: Iterable[float], false_reject_rate: float) -> "Calibration":
        """Sorts and checks the scores; `false_reject_rate` in (0, 1)."""
        return cls(tuple(sorted(float(s) for s in scores)), false_reject_rate)

    @property
    def needed(self) -> int:
        """Fewest scores for which the rate can be promised (99 for 1 %)."""
        return math.ceil(1 / self.false_reject_rate - 1e-9) - 1

    @property
    def calibrated(self) -> bool:
        """Whether there are enough scores to promise the rate."""
        return len(self.scores) >= self.needed

    @property
    def threshold(self) -> float:
        """The highest score that passes; infinite without scores."""
        return self.at(self.false_reject_rate)

    def at(self, rate: float) -> float:
        """The threshold for another rate in [0, 1]; never above every score seen, and infinite without scores."""
        if not self.scores:
            return math.inf
        keep = math.ceil((len(self.scores) + 1) * (1 - rate) - 1e-9)
        return self.scores[min(max(keep, 1), len(self.scores)) - 1]

    def p_value(self, score: float) -> float:
        """Share of normal images, this one among them, with a score at least as high; in (0, 1]."""
        at_least = len(self.scores) - bisect_left(self.scores, score)
        return (1 + at_least) / (len(self.scores) + 1)

    def verdict(self, score: float) -> str:
        """`pass` or `reject`; a score that is not a number is rejected."""
        return "pass" if score <= self.threshold else "reject"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `from_json` reads them back."""
        return {"scores": list(self.scores), "false_reject_rate": self.false_reject_rate}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "Calibration":
        """The reverse of `to_json`."""
        return cls.of(plain["scores"], float(plain["false_reject_rate"]))
