"""The gate in front of `current`: whether a candidate may take the place of the version that gives verdicts.

A pure decision over plain data: no disk, no clock, no MLflow. Its tests are exact (binomial distributions, no
approximation of them) and one-sided, as only worse matters; a p-value below 5 % holds the candidate.

* The rate that the line promises: of n normal images the candidate rejects k, and if each were rejected with the
  promised probability, so many or more would come by chance with P(X >= k), X ~ Bin(n, rate). The candidate's
  threshold is taken as it is: one that an unlucky calibration set too low is held, as it is the one that would judge.
* Beside the current version, on the same images (McNemar 1947): of the images that only one of the two gets wrong,
  half would be the candidate's if they were equally good. So with b that are, and c that are the current's,
  P(X >= b), X ~ Bin(b + c, 1/2). Fewer than five such images can decide nothing.

What a passed gate means: no evidence that the candidate is worse. With few images that is little; the counts stand in
the reasons. A recall of 0.7 against 0.9 is noticed in 7 % of cases with 10 defects, 29 % with 20, 75 % with 50 (errors
independent). And a sound version whose threshold came from 99 scores at 1 % is held in 6 % of cases by 100 normal
images, 13 % by 300; from 198 scores in 1 and 3 %. Whether products of the past are forgotten shows only if their
images are among the normal ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..methods.errors import ConfigError
from .binomial import at_least

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Evidence:
    """Scores that a version gave, and its threshold: what is above is rejected, and so is what is not a number.

    normal, defect: images that somebody labelled, in the same order for both versions. remembered: images that are
    normal by the word of the line's own versions. They count towards the rate, but not when versions are compared:
    the version that called them normal rejects none of them.
    """

    normal: tuple[float, ...]
    defect: tuple[float, ...]
    threshold: float
    remembered: tuple[float, ...] = ()

    def rejects(self, scores: Sequence[float]) -> list[bool]:
        """Which of them are above the threshold."""
        return [not score <= self.threshold for score in scores]


@dataclass(frozen=True)
class Limits:
    """rate: share of good parts that may be rejected, (0, 1). force: also decide on fewer than 1/rate images."""

    rate: float
    force: bool = False
    significance: float = SIGNIFICANCE

    @property
    def needed(self) -> int:
        """Normal images below which the rate cannot be seen: 1/rate."""
        return math.ceil(1 / self.rate - 1e-9)


@dataclass(frozen=True)
class Check:
    """One question that was asked. p_value: of the test, 1 where none was made."""

    name: str
    passed: bool
    says: str
    p_value: float = 1.0


@dataclass(frozen=True)
class Decision:
    """What all checks come to."""

    checks: tuple[Check, ...]

    @property
    def promote(self) -> bool:
        """Whether the candidate may become current."""
        return all(check.passed for check in self.checks)

    @property
    def word(self) -> str:
        """`promote` or `hold`."""
        return "promote" if self.promote else "hold"

    @property
    def reasons(self) -> list[str]:
        """In words; of a hold only what holds."""
        return [check.says for check in self.checks if self.promote or not check.passed]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        checks = [{"name": c.name, "passed": c.passed, "says": c.says, "p_value": c.p_value} for c in self.checks]
        return {"decision": self.word, "reasons": self.reasons, "checks": checks}


def decide(current: Evidence | None, candidate: Evidence, limits: Limits) -> Decision:
    """Promote or hold, with reasons. current: None where the line has no version yet: nothing is compared then.

    Raises ConfigError where the two did not score the same number of images.
    """
    checks = [_threshold(candidate), _enough(candidate, limits), _rate(candidate, limits)]
    if current is not None:
        for name in ("normal", "defect"):
            if len(getattr(current, name)) != len(getattr(candidate, name)):
                raise ConfigError(f"gate: both versions must have scored the same {name} images.")
        checks += [_false_rejects(current, candidate, limits), _recall(current, candidate, limits)]
    return Decision(tuple(checks))


def mcnemar(one: Sequence[bool], other: Sequence[bool]) -> tuple[int, int, float]:
    """Errors of two on the same images -> how many are `one`'s alone, `other`'s alone, and P(as many or more)."""
    pairs = list(zip(one, other, strict=True))
    b, c = sum(a and not z for a, z in pairs), sum(z and not a for a, z in pairs)
    return b, c, at_least(b, b + c, 0.5)


def _threshold(candidate: Evidence) -> Check:
    finite = math.isfinite(candidate.threshold)
    says = (
        f"threshold {candidate.threshold:.4g}" if finite else "the candidate has no threshold: nothing calibrated it"
    )
    return Check("threshold", finite, says)


def _enough(candidate: Evidence, limits: Limits) -> Check:
    count = len(candidate.normal) + len(candidate.remembered)
    if count >= limits.needed:
        return Check("evidence", True, f"{count} normal images, at least {limits.needed} needed")
    says = f"not enough evidence: {count} normal images, but {limits.rate:.3g} shows in {limits.needed} or more"
    return Check("evidence", limits.force and count > 0, says)


def _rate(candidate: Evidence, limits: Limits) -> Check:
    rejected = candidate.rejects((*candidate.normal, *candidate.remembered))
    k, n = sum(rejected), len(rejected)
    p = at_least(k, n, limits.rate)
    passed = p >= limits.significance
    word = "within chance" if passed else "more than chance explains"
    says = f"{k} of {n} normal images rejected where {limits.rate:.3g} is promised: {word} (p = {p:.3g})"
    return Check("false-reject rate", passed, says, p)


def _false_rejects(current: Evidence, candidate: Evidence, limits: Limits) -> Check:
    ours, theirs = candidate.rejects(candidate.normal), current.rejects(current.normal)
    return _paired("false rejects", ours, theirs, "normal images rejected", limits)


def _recall(current: Evidence, candidate: Evidence, limits: Limits) -> Check:
    ours, theirs = ([not one for one in version.rejects(version.defect)] for version in (candidate, current))
    return _paired("recall", ours, theirs, "defects missed", limits)


def _paired(name: str, candidate: Sequence[bool], current: Sequence[bool], what: str, limits: Limits) -> Check:
    b, c, p = mcnemar(candidate, current)
    passed = p >= limits.significance
    word = "not clearly worse" if passed else "clearly worse"
    if not candidate:
        return Check(name, True, f"no labelled images to compare {what}")
    totals = f"{sum(candidate)} against {sum(current)} of {len(candidate)} {what}"
    says = f"{totals}, {b} by the candidate alone and {c} by the current alone: {word} (p = {p:.3g})"
    return Check(name, passed, says, p)
