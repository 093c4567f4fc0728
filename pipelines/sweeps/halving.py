"""When a trial is stopped early: successive halving on a protocol's curve, whatever the timing."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from operator import itemgetter

from .record import Point

RUNGS = 3  # at most, of one curve


def cutoffs(earlier: Sequence[Sequence[Point]], reduction: int) -> dict[int, float]:
    """The least figure that a trial must have at so many images to go on; higher is better.

    earlier: the curves, without the last point of the run, of all trials of the generations before, on the same task
    of the same study; of those that were stopped, as far as they came. A rung is the first point of a curve at or
    beyond 1/reduction, 1/reduction^2 and 1/reduction^3 of it. What the best floor(n / reduction) of the n that have a
    figure there reached is the cutoff; there is none where n is below `reduction`, nor with reduction 1. NaN is no
    figure.

    The rule at a rung is that of ASHA (Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv
    1810.05934), which asks it of all that have reached the rung by now, and which trials go on depends on which
    machine was quicker. Here only generations that are finished count, so that one machine and twenty stop the same
    trials; the first generation runs to its end. Nor does a stopped trial wait to be taken up again, as it does
    there: it has lost. Counted from the end, the shortest stretch is one in reduction^3 of the curve.
    """
    if reduction < 2:
        return {}
    reached: dict[int, list[float]] = defaultdict(list)
    for curve in earlier:
        for images, value in _rungs(curve, reduction).items():
            reached[images].append(value)
    ranked = {images: sorted(values, reverse=True) for images, values in sorted(reached.items())}
    return {at: values[len(values) // reduction - 1] for at, values in ranked.items() if len(values) >= reduction}


def stops(point: Point, cutoffs: Mapping[int, float]) -> bool:
    """Whether a trial whose curve has come to this point ends here. NaN stops nothing."""
    images, _, value = point
    return value < cutoffs.get(images, -math.inf)


def _rungs(curve: Sequence[Point], reduction: int) -> dict[int, float]:
    """Images and figure of a curve's points that are rungs; in whole numbers, since thirds have no float."""
    found = {}
    for power in range(1, RUNGS + 1):
        beyond = [(images, value) for images, of, value in curve if of <= images * reduction**power and images < of]
        if beyond:
            images, value = min(beyond, key=itemgetter(0))
            found[images] = value
    return {images: value for images, value in found.items() if not math.isnan(value)}
