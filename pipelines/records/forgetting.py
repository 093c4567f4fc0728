"""What a sequence of tasks cost and gained, from the matrix of a figure: a[k][j] of task j, judged after step k.

Thesis, section 3.3 (after Chaudhry et al. 2018 and Lopez-Paz and Ranzato 2017). `first[j]` is the step that learned
task j first. NaN is a figure that does not exist; a mean is over the tasks that have it, and NaN where none has.
"""

import math
from collections.abc import Iterable, Sequence

Matrix = Sequence[Sequence[float]]  # a row for each step, a column for each task

MEASURES = (
    "average",
    "forgetting",
    "forgetting_relative",
    "forgetting_when_learned",
    "backward_transfer",
    "forward_transfer",
    "intransigence",
    "relative_gap",
)


def average(matrix: Matrix) -> float:
    """S_T (3.3.4): the mean over tasks after the last step."""
    return mean(matrix[-1])


def forgetting(matrix: Matrix, first: Sequence[int], relative: bool = False) -> float:
    """F_T (3.3.2): best value since the task was learned, before the last step, minus the last; mean over tasks.

    relative: divided by that best value, as the thesis' tables must have it. Without what the last step learned anew.
    """
    gaps = []
    for j in _earlier(matrix, first):
        best = _best(matrix[k][j] for k in range(first[j], len(matrix) - 1))
        gap = best - matrix[-1][j]
        gaps.append(_ratio(gap, best) if relative else gap)
    return mean(gaps)


def forgetting_when_learned(matrix: Matrix, first: Sequence[int]) -> float:
    """The value of each task when it was learned, minus the last; mean over tasks. Its negative is BWT."""
    return mean([matrix[first[j]][j] - matrix[-1][j] for j in _earlier(matrix, first)])


def forward_transfer(matrix: Matrix, first: Sequence[int], chance: Sequence[float]) -> float:
    """FWT: the value of each task just before it was learned, minus that of a constant score; mean over tasks."""
    return mean([matrix[first[j] - 1][j] - chance[j] for j in range(len(first)) if first[j] > 0])


def intransigence(matrix: Matrix, first: Sequence[int], joint: Matrix) -> float:
    """I (3.3.3): what a model of all tasks so far has on each task, minus the value when learned; mean over tasks."""
    return mean([joint[first[j]][j] - matrix[first[j]][j] for j in range(len(first))])


def relative_gap(matrix: Matrix, single: Sequence[float]) -> float:
    """delta (5.1): how far the average after the last step is below that of single models, as a share of that."""
    both = [(one, own) for one, own in zip(matrix[-1], single, strict=True) if not math.isnan(one + own)]
    reached, possible = mean([one for one, _ in both]), mean([own for _, own in both])
    return _ratio(possible - reached, possible)


def measures(
    matrix: Matrix,
    first: Sequence[int],
    chance: Sequence[float],
    single: Sequence[float] | None = None,
    joint: Matrix | None = None,
    sequential: bool = True,
) -> dict[str, float]:
    """All of MEASURES. sequential: whether one model went through the steps; else there is nothing to forget."""
    found = dict.fromkeys(MEASURES, math.nan) | {"average": average(matrix)}
    if sequential:
        lost = forgetting_when_learned(matrix, first)
        found |= {
            "forgetting": forgetting(matrix, first),
            "forgetting_relative": forgetting(matrix, first, relative=True),
            "forgetting_when_learned": lost,
            "backward_transfer": -lost,
            "forward_transfer": forward_transfer(matrix, first, chance),
        }
    if sequential and joint is not None:
        found["intransigence"] = intransigence(matrix, first, joint)
    if single is not None:
        found["relative_gap"] = relative_gap(matrix, single)
    return found


def mean(values: Iterable[float]) -> float:
    """The mean of those that exist; NaN where none does."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _earlier(matrix: Matrix, first: Sequence[int]) -> list[int]:
    """The tasks that were learned before the last step."""
    return [j for j, step in enumerate(first) if step < len(matrix) - 1]


def _best(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return max(known) if known else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
