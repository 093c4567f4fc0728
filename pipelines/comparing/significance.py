"""Whether a difference over seeds is more than chance: paired t-tests against the best record, corrected by Holm.

Two records are paired where they were run with the same seeds on the same tasks. For each seed the difference is the
mean over these tasks; the seeds' differences are taken for a sample of a normal distribution. What that does not say:
how another set of images would turn out, since all seeds share one. And the best record was chosen by the figures that
it is tested with, which flatters it. Pure: numbers in, numbers out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import t, ttest_rel

CONFIDENCE = 0.95
LEAST = 2  # seeds that a deviation needs
ROUNDING = 1e-12  # differences of shares that vary by less than this do not vary
FEW = 5  # seeds below which the note warns

Cells = Mapping[str, Mapping[int, float]]  # task -> seed -> figure, NaN where it does not exist


@dataclass(frozen=True)
class Pair:
    """A record less the best one, in one figure.

    difference: mean over `seeds` seeds of the mean over `tasks` tasks. low, high: its interval of 95 % confidence.
    p: of the paired t-test, two-sided; `holm` the same corrected for all records of the figure. NaN where every seed
    gives the same difference but 0: a test without spread says nothing. wins, ties: of the seeds x tasks.
    """

    record: str
    seeds: int
    tasks: int
    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    holm: float = math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain values; None for NaN."""
        plain = {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in asdict(self).items()}
        return plain | {"of": self.seeds * self.tasks}


def pair(record: str, mine: Cells, best: Cells) -> Pair | None:
    """None where they share fewer than two seeds, or no task has the figure with all of these in both."""
    seeds = sorted(seeds_of(mine) & seeds_of(best))
    tasks = [task for task in mine if task in best and _known(mine[task], seeds) and _known(best[task], seeds)]
    if len(seeds) < LEAST or not tasks:
        return None
    own, other = (np.array([[cells[task][seed] for task in tasks] for seed in seeds]) for cells in (mine, best))
    difference, low, high, p = paired_t(own.mean(axis=1), other.mean(axis=1))
    ties = np.abs(own - other) <= ROUNDING
    wins = int(((own > other) & ~ties).sum())
    return Pair(record, len(seeds), len(tasks), difference, low, high, p, wins, int(ties.sum()))


def paired_t(own: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """(n,) and (n,), n of at least 2 -> mean difference, its interval of 95 % confidence, p (two-sided).

    Without spread the interval is the difference alone, and p is 1 where that is 0, else NaN.
    """
    differences = own - other
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread <= ROUNDING:
        same = abs(mean) <= ROUNDING
        mean = 0.0 if same else mean
        return mean, mean, mean, 1.0 if same else math.nan
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1)) * spread / math.sqrt(len(differences))
    return mean, mean - half, mean + half, float(ttest_rel(own, other).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """p-values so corrected that any false finding among them has the chance that each names (Holm 1979).

    The k-th smallest of m is multiplied by m - k + 1, is no smaller than the one before, and at most 1. NaN stays NaN
    and is not counted.
    """
    found = [math.nan] * len(values)
    known = sorted((p, n) for n, p in enumerate(values) if not math.isnan(p))
    least = 0.0
    for k, (p, n) in enumerate(known):
        least = found[n] = max(least, min(1.0, (len(known) - k) * p))
    return found


def seeds_of(cells: Cells) -> set[int]:
    """The seeds that every task of a record was run with."""
    return set.intersection(*(set(row) for row in cells.values())) if cells else set()


def best_of(records: Mapping[str, Cells]) -> str | None:
    """The record with the highest mean, of those that can be paired with another one; None where there is no such."""
    means = {
        name: _mean(cells)
        for name, cells in records.items()
        if any(pair(other, theirs, cells) for other, theirs in records.items() if other != name)
    }
    known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
    return max(known, key=lambda name: known[name]) if known else None


def against(best: str, records: Mapping[str, Cells]) -> list[Pair]:
    """Every record that can be paired with the best one, with p-values corrected for their number."""
    made = [pair(name, cells, records[best]) for name, cells in records.items() if name != best]
    found = [one for one in made if one is not None]
    corrected = holm([one.p for one in found])
    return [Pair(**{**asdict(one), "holm": p}) for one, p in zip(found, corrected, strict=True)]


def _mean(cells: Cells) -> float:
    """The mean over tasks of the mean over seeds, where the figure exists with all of them; NaN for no task."""
    rows = [float(np.mean(list(row.values()))) for row in cells.values() if _known(row, row)]
    return sum(rows) / len(rows) if rows else math.nan


def _known(row: Mapping[int, float], seeds: Iterable[int]) -> bool:
    return all(math.isfinite(row[seed]) for seed in seeds)
