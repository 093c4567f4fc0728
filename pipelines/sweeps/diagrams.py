"""A sweep's diagrams: figures against memory, against bytes, and over the stream."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..comparing.comparison import Comparison, Record
from ..comparing.comparison_continual import trends
from ..comparing.comparison_curves import drawings, lowest
from ..comparing.labels import typed
from ..comparing.sources import Source
from ..records.curves import Curve
from ..records.results import Result
from .outcome import Outcome, auroc
from .outcome_rows import Row
from .record import TrialRecord

Points = list[tuple[float, float]]
FAR = 4  # the largest is so many times the smallest: an axis by powers of two


def diagrams(outcome: Outcome) -> list[Curve]:
    """All of them, those that there are points for."""
    against = [against_memory(outcome, held) for held in (False, True)]
    return [one for one in (*against, against_bytes(outcome)) if one is not None] + over_stream(outcome)


def against_memory(outcome: Outcome, held: bool) -> Curve | None:
    """Image AUROC of the best configuration of each memory size; None where no method has several."""
    rows = [row for row in outcome.by_memory if row["memory"] is not None]
    series = _series(rows, lambda row: (row["memory"], auroc(row, held)))
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return None
    where = "on held-out images" if held else "on the images of the search"
    sizes = sorted({x for points in series.values() for x, _ in points})
    marks = {f"enough: {name}": float(row["memory"]) for name, row in _known(outcome, held).items() if name in series}
    return Curve(
        f"Image AUROC {where} against memory",
        "images kept" if outcome.settings.replays else "memory",
        "image AUROC",
        series,
        (lowest(series.values()), 1.0),
        markers=marks,
        note="The best configuration of each size.",
        doubling=True,
        ticks=sizes,
    )


def _known(outcome: Outcome, held: bool) -> dict[str, Row]:
    """How much is enough, of the methods of which that was told by these images."""
    return {name: row for name, row in outcome.enough.items() if (row["images"] == "held-out") is held}


def against_bytes(outcome: Outcome) -> Curve | None:
    """A dot for each configuration: image AUROC on the search's images against MB of state."""
    series = _series(outcome.configurations, lambda row: (row["state_bytes"] / 1e6, auroc(row, False)))
    sizes = [x for points in series.values() for x, _ in points]
    if len(sizes) < 2:
        return None
    return Curve(
        "Image AUROC against MB of state",
        "MB",
        "image AUROC",
        series,
        (lowest(series.values()), 1.0),
        dots=tuple(series),
        note="Every configuration, on the images of the search.",
        doubling=min(sizes) > 0 and max(sizes) >= FAR * min(sizes),
    )


def over_stream(outcome: Outcome) -> list[Curve]:
    """The curves of the best configuration of each method: a diagram for each task, or of a sequence's steps."""
    results = [(described(row), whole(outcome, row)) for row in best_of_methods(outcome)]
    found = [Record(name, Source(result), result) for name, result in results]
    if not found:
        return []
    comparison = Comparison(found)
    return trends(comparison) if outcome.settings.together else drawings(comparison)


def of_trial(record: TrialRecord) -> Curve | None:
    """The curves of one trial, a series for each task; None where there are none."""
    if record.result is None:
        return None
    if record.result.continued is not None:
        points = [(float(n), at) for n, at in enumerate(record.result.continued.trend("image_auroc"), 1)]
        series, axis = {"mean over the tasks so far": points}, "step"
    else:
        series = {t.task: [(float(p["images"]), p["image_auroc"]) for p in t.curve] for t in record.result.tasks}
        series, axis = {name: points for name, points in series.items() if len(points) > 1}, "images"
    doubling = record.result.protocol == "online"  # it judges after 1, 2, 4, 8, ... images
    title, ends = f"{record.item.number} {record.item.method}", (lowest(series.values()), 1.0)
    return Curve(title, axis, "image AUROC", series, ends, doubling=doubling) if series else None


def best_of_methods(outcome: Outcome) -> list[Row]:
    """The best configuration of each method that has one."""
    found = [[r for r in outcome.configurations if r["method"] == name] for name in outcome.settings.methods]
    return [best for best in map(outcome.best_of, found) if best is not None]


def records_of(outcome: Outcome, row: Row) -> list[TrialRecord]:
    """The search's records of a configuration."""
    return [one for one in outcome.search if one.item.number in row["trials"]]


def whole(outcome: Outcome, row: Row) -> Result:
    """The record of a configuration with all its tasks."""
    results = [one.result for one in records_of(outcome, row) if one.result is not None]
    return replace(results[0], tasks=[task for result in results for task in result.tasks])


def described(row: Row) -> str:
    """A trial or a configuration in a line: METHOD MEMORY NAME=VALUE..."""
    size = [] if row["memory"] is None else [str(row["memory"])]
    return " ".join([row["method"], *size, *(f"{name}={typed(value)}" for name, value in row["searched"].items())])


def _series(rows: Sequence[Row], point: Callable[[Row], tuple[float, float]]) -> dict[str, Points]:
    """The points of each method, those that have both."""
    found: dict[str, Points] = {}
    for row in rows:
        x, y = point(row)
        if math.isfinite(x) and math.isfinite(y):
            found.setdefault(row["method"], []).append((float(x), y))
    return found
