"""The figures that records are compared by: of a task, of one seed's run, and as means over tasks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .results import Part, SeedRun, TaskResult

Run = TaskResult | Part | SeedRun
How = Callable[[Run, str], float]


def shown(value: float, form: str = ".3f") -> str | None:
    """A figure as text; None where there is none."""
    return None if math.isnan(value) else format(value, form)


def number(value: float) -> float | None:
    """A figure for JSON; None where there is none."""
    return value if math.isfinite(value) else None


class Value(NamedTuple):
    """A figure, and its deviation over seeds; NaN where there is none."""

    value: float
    deviation: float

    def text(self, form: str) -> str | None:
        """`0.912 ± 0.013`, or the figure alone; None where there is none."""
        value, spread = shown(self.value, form), shown(self.deviation, form.lstrip("+"))
        return f"{value} ± {spread}" if value and spread else value


@dataclass(frozen=True)
class Figure:
    """A figure of a task (NaN where it has none) with its name and format; `seeded`: the same of one seed's run."""

    title: str
    form: str
    of: Callable[[TaskResult], float]
    seeded: Callable[[SeedRun], float] | None = None

    def mean(self, tasks: Sequence[TaskResult]) -> Value:
        """The mean over tasks; its deviation over the seeds that all of them were run with."""
        if not tasks:
            return Value(math.nan, math.nan)
        return Value(sum(map(self.of, tasks)) / len(tasks), self._deviation(tasks))

    def _deviation(self, tasks: Sequence[TaskResult]) -> float:
        if self.seeded is None:
            return math.nan
        by_seed: dict[int, list[float]] = {}
        for run in (run for task in tasks for run in task.runs):
            by_seed.setdefault(run.seed, []).append(self.seeded(run))
        means = [sum(found) / len(found) for found in by_seed.values() if len(found) == len(tasks)]
        return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


def learning(run: Run, name: str) -> float:
    """A metric as it is reported: with learning; under drift, having learned the drift too."""
    return run.metrics[name]


def still(run: Run, name: str) -> float:
    """The same without learning; NaN where there is none."""
    return math.nan if run.offline is None else run.offline[name]


def gain(run: Run, name: str) -> float:
    """What learning changes."""
    return learning(run, name) - still(run, name)


def metric(title: str, name: str, how: How = learning, form: str = ".3f") -> Figure:
    """A metric of a task."""
    return Figure(title, form, lambda task: how(task, name), lambda run: how(run, name))


def admitted(kind: str) -> Figure:
    """The share of a stream's patches, `normal` or `defective` ones, that the learner believed to be normal."""
    return Figure(f"admitted, {kind}", ".3f", lambda task: math.nan if task.admitted is None else task.admitted[kind])


def of_part(title: str, part: str, name: str, how: How = learning) -> Figure:
    """A metric of a task's part of that name; records hold no deviation of these."""
    return Figure(
        title, ".3f", lambda task: next((how(one, name) for one in task.parts if one.name == part), math.nan)
    )


METRIC_TITLES = {"image_auroc": "image AUROC", "aupro": "AUPRO", "pixel_auroc": "pixel AUROC"}
FIGURES = {name: metric(title, name) for name, title in METRIC_TITLES.items()} | {
    "ms_per_image": Figure(
        "ms an image aside from the backbone: score and learn",
        ".2f",
        lambda task: task.ms_per_image["score"] + task.ms_per_image["learn"],
    ),
    "images_per_s": Figure("images/s, learning included", ".1f", lambda task: task.images_per_s),
    "state_mb": Figure("state, MB", ".1f", lambda task: task.state_bytes / 1e6),
}
GAINS = {
    name: metric(f"gain in {METRIC_TITLES[name]} from learning", name, gain, "+.3f")
    for name in ("image_auroc", "aupro")
}
