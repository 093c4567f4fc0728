"""What a sweep's trials and configurations say of themselves, as rows of plain values; NaN where one is not known.

A trial that was stopped has seen a part of its stream only, and one that failed may have seen nothing: their figures
are not known, and "reached" says how far the first seed came.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..records.figures import FIGURES
from ..records.results import METRICS, TIMES, Result, TaskResult
from .objectives import measures
from .record import COMPLETE, TrialRecord
from .settings import SweepSettings

Row = dict[str, Any]
NOTHING = dict.fromkeys(METRICS, math.nan)
IMAGE_AUROC = "image_auroc"


def trial_row(settings: SweepSettings, record: TrialRecord, judged: TrialRecord | None) -> Row:
    """A trial of the search. judged: the same configuration and task on the images that the search never saw."""
    item, result = record.item, record.result if record.status == COMPLETE else None
    given = {**settings.fixed(item.method, item.memory), **item.params}
    typed = record.result.params if record.result else {}
    params = {"seed": settings.seed} | {name: typed.get(name, value) for name, value in given.items()}
    known = measures(result) if result else {}
    return {
        "number": item.number,
        "configuration": item.configuration,
        "task": item.task,
        "method": item.method,
        "memory": item.memory,
        "params": params,
        "searched": dict(item.params),
        "status": record.status,
        "error": record.error,
        "objective": record.objective if result else math.nan,
        "metrics": _metrics(known),
        "state_bytes": known.get("state_bytes", math.nan),
        "ms_per_image": known.get("ms_per_image", math.nan),
        "times": _times(result.tasks if result else ()),
        "seeds": [params["seed"] + n for n in range(settings.seeds)],
        "seconds": record.seconds,
        "reached": _reached(record),
        "held_out": None if judged is None else held_out(judged),
    }


def held_out(record: TrialRecord) -> Row | None:
    """What came of it on the images that the search never saw; None where it did not come to its end."""
    if record.status != COMPLETE or record.result is None:
        return None
    return {"objective": record.objective, "metrics": _metrics(measures(record.result))}


def configuration_row(rows: Sequence[Row], records: Sequence[TrialRecord]) -> Row:
    """Means over the complete trials of one configuration, one for each task, and over what each has held out."""
    first, judged = rows[0], [row["held_out"] for row in rows]
    return {
        **{name: first[name] for name in ("configuration", "method", "memory", "params", "searched")},
        "trials": [row["number"] for row in rows],
        **_means(rows),
        **{name: mean([row[name] for row in rows]) for name in ("state_bytes", "ms_per_image")},
        "deviation": _deviation([record.result for record in records if record.result is not None]),
        "held_out": None if None in judged else _means(judged),
    }


def mean(values: Sequence[float]) -> float:
    """NaN where one of them is: a mean over fewer would not compare."""
    return sum(values) / len(values) if values else math.nan


def plain(value: Any) -> Any:
    """For strict JSON: what is no finite number is None, tuples are lists."""
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def _means(rows: Sequence[Row]) -> Row:
    return {
        "objective": mean([row["objective"] for row in rows]),
        "metrics": {name: mean([row["metrics"][name] for row in rows]) for name in METRICS},
    }


def _metrics(known: Mapping[str, float]) -> dict[str, float]:
    return {name: known.get(name, math.nan) for name in METRICS}


def _times(tasks: Sequence[TaskResult]) -> dict[str, float]:
    return {name: mean([task.ms_per_image[name] for task in tasks]) for name in TIMES}


def _reached(record: TrialRecord) -> Row | None:
    """The last point of its curve that was told of."""
    if record.status == COMPLETE or not record.points:
        return None
    images, of, figure = record.points[-1]
    return {"images": images, "of": of, "figure": figure}


def _deviation(results: Sequence[Result]) -> float:
    """The deviation over seeds of image AUROC, as a mean over the tasks; NaN for a single seed."""
    sequence = results[0].continued
    if sequence is not None:
        return sequence.deviation[IMAGE_AUROC]["average"] if sequence.deviation else math.nan
    return FIGURES[IMAGE_AUROC].mean([task for result in results for task in result.tasks]).deviation
