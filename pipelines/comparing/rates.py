"""Shares of images with their uncertainty: of those wrongly rejected or passed, and of verdicts that change."""

import math
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest


@dataclass(frozen=True)
class Share:
    """`count` of `of` images."""

    count: int
    of: int

    def __add__(self, other: "Share") -> "Share":
        return Share(self.count + other.count, self.of + other.of)

    @property
    def value(self) -> float:
        """NaN of no images."""
        return self.count / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence (Wilson 1927), which holds for few images and for shares near 0; NaN of no images."""
        if not self.of:
            return math.nan, math.nan
        found = binomtest(self.count, self.of).proportion_ci(0.95, "wilson")
        return float(found.low), float(found.high)

    def text(self) -> str | None:
        """`3 of 20: 0.150 (0.052 to 0.360)`; None of no images."""
        low, high = self.interval
        return f"{self.count} of {self.of}: {self.value:.3f} ({low:.3f} to {high:.3f})" if self.of else None

    def to_json(self) -> dict[str, Any] | None:
        """Plain values; None of no images."""
        low, high = self.interval
        return {"count": self.count, "of": self.of, "share": self.value, "low": low, "high": high} if self.of else None


def mcnemar(one: int, other: int) -> float:
    """p that two versions err equally often, two-sided and exact (McNemar 1947); NaN where both are 0.

    Of the images whose verdicts differ, the first is right on `one` and the second on `other`.
    """
    return float(binomtest(one, one + other).pvalue) if one + other else math.nan
