"""A comparison's curves: image AUROC over the images learned (with fewshot: session by session)."""

import math
from collections.abc import Iterable

import numpy as np

from ..records.curves import Curve
from ..records.figures import METRIC_TITLES
from ..records.report import Table
from ..records.results import TaskResult
from .comparison import Comparison, Record

METRIC = "image_auroc"
MOST_POINTS = 8  # in a table of 80 columns
END = math.inf  # where the end of every task's curve stands in a mean


def by_session(comparison: Comparison) -> bool:
    """Whether a curve's points are sessions; else they are numbers of images learned."""
    return comparison.protocol == "fewshot"


def axis(comparison: Comparison) -> str:
    """What the curves run over."""
    return "session" if by_session(comparison) else "images learned"


def points(comparison: Comparison, task: TaskResult) -> list[tuple[float, float]]:
    """(x, y) of a task's curve; none where it has fewer than two."""
    if len(task.curve) < 2:
        return []
    return [(n if by_session(comparison) else one["images"], one[METRIC]) for n, one in enumerate(task.curve, 1)]


def drawings(comparison: Comparison) -> list[Curve]:
    """A diagram for each task with a series for each record, where there are curves."""
    made = []
    for name in comparison.tasks:
        found = {r.label: points(comparison, r.tasks[name]) for r in comparison.records if name in r.tasks}
        drawn = {label: curve for label, curve in found.items() if curve}
        if drawn:
            doubling = comparison.protocol == "online"  # it judges after 1, 2, 4, 8, ... images
            low = lowest(drawn.values())
            made.append(Curve(name, axis(comparison), METRIC_TITLES[METRIC], drawn, (low, 1.0), doubling=doubling))
    return made


def lowest(curves: Iterable[list[tuple[float, float]]]) -> float:
    """Where an axis of shares up to 1 starts: at the tenth below the lowest point, and at .9 at most."""
    known = [y for curve in curves for _, y in curve if not math.isnan(y)]
    return min(math.floor(10 * min(known, default=0.9)) / 10, 0.9)


def curve_table(comparison: Comparison) -> list[Table]:
    """One table, of a row for each record with a curve: its means over tasks, at some points. Or none."""
    curves = {record.label: mean_curve(comparison, record) for record in comparison.records}
    every = sorted({at for curve in curves.values() for at in curve})
    if not every:
        return []
    kept = np.linspace(0, len(every) - 1, min(len(every), MOST_POINTS)).round().astype(int)
    shown = [every[n] for n in kept]
    rows = [[label, *map(curve.get, shown)] for label, curve in curves.items() if curve]
    heads = ["end" if at == END else f"{at:.0f}" for at in shown]
    return [Table(f"{METRIC_TITLES[METRIC]} by {axis(comparison)}: {comparison.scope}", ["record", *heads], rows)]


def mean_curve(comparison: Comparison, record: Record) -> dict[float, str]:
    """The mean over the shared tasks at each point that all of them have.

    The last point stands at END, since tasks have different numbers of images; not so the last session.
    """
    found: dict[float, list[float]] = {}
    for name in comparison.shared:
        curve = points(comparison, record.tasks[name])
        for n, (at, value) in enumerate(curve, 1):
            last = n == len(curve) and not by_session(comparison)
            found.setdefault(END if last else at, []).append(value)
    means = {at: sum(all_) / len(all_) for at, all_ in found.items() if len(all_) == len(comparison.shared)}
    return {at: f"{mean:.3f}" for at, mean in means.items() if not math.isnan(mean)}
