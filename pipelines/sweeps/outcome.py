"""What a sweep comes to: trials, configurations, the front, the best, and how much memory is enough. Pure.

{"settings", "finished", "expected", "note",
 "trials": [{"number", "configuration", "task", "method", "memory", "params", "searched", "status", "error",
             "objective", "metrics", "state_bytes", "ms_per_image", "times", "seeds", "seconds",
             "reached": null or {"images", "of", "figure"}, "held_out": null or {"objective", "metrics"}}],
 "pareto": [configuration], "best": null or a configuration, "best_by_task": {TASK: trial},
 "configurations": [{"configuration", "method", "memory", "params", "searched", "trials", "objective", "metrics",
                     "state_bytes", "ms_per_image", "deviation", "held_out"}],
 "by_memory": [configuration], "enough": {"rule", "tolerance", "methods": {METHOD: {...}}},
 "failed", "stopped", "errors": [{"number", "phase", "method", "memory", "task", "error"}], "features", "seconds"}

Strict JSON; null is a figure that does not exist or, of a trial that was stopped or failed, is not known. "params" are
what one would type to get the trial again, the fixed and the searched; "searched" are the latter alone. "ms_per_image"
is backbone, score and learn together, "times" each of them. "failed" counts trials of either phase.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .objectives import FRONT, OBJECTIVES, front
from .outcome_rows import IMAGE_AUROC, Row, configuration_row, plain, trial_row
from .record import COMPLETE, FAILED, HELD_OUT, SEARCH, STOPPED, TrialRecord
from .settings import SweepSettings

TOLERANCE = 0.005  # of image AUROC
RULE = (
    "Of each method the smallest memory whose best configuration's image AUROC is at most the tolerance below that of "
    "the method's best size; on held-out images where all its sizes have them, else on the images of the search."
)


@dataclass(frozen=True)
class Outcome:
    """records: of both phases, in any order. features: what the shared features say of themselves, as plain values.

    seconds: of the whole sweep. finished: whether it ended by itself. expected: trials of the search.
    """

    settings: SweepSettings
    records: Sequence[TrialRecord]
    features: Mapping[str, Any] | None
    seconds: float
    finished: bool
    expected: int

    @cached_property
    def search(self) -> list[TrialRecord]:
        """The records of the search, in order of number."""
        return sorted((one for one in self.records if one.item.phase == SEARCH), key=lambda one: one.item.number)

    @cached_property
    def judged(self) -> dict[tuple[int, str], TrialRecord]:
        """The records on images that the search never saw, by configuration and task."""
        return {(r.item.configuration, r.item.task): r for r in self.records if r.item.phase == HELD_OUT}

    @cached_property
    def trials(self) -> list[Row]:
        """A row for each record of the search."""
        pairs = ((one, self.judged.get((one.item.configuration, one.item.task))) for one in self.search)
        return [trial_row(self.settings, one, judged) for one, judged in pairs]

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks that a configuration is tried on; [""] for one that goes through all in sequence."""
        seen = list(dict.fromkeys(one.item.task for one in self.search))
        return [""] if self.settings.together else list(self.settings.images) or seen

    @cached_property
    def configurations(self) -> list[Row]:
        """Those that are complete on every task, by number."""
        found: dict[int, list[tuple[Row, TrialRecord]]] = {}
        for row, record in zip(self.trials, self.search, strict=True):
            if row["status"] == COMPLETE:
                found.setdefault(row["configuration"], []).append((row, record))
        whole = (n for n in sorted(found) if {row["task"] for row, _ in found[n]} >= set(self.tasks))
        return [configuration_row(*map(list, zip(*found[n], strict=True))) for n in whole]

    @cached_property
    def pareto(self) -> list[Row]:
        """The configurations that no other beats in image AUROC, bytes of state and ms an image together.

        A respect that none of them has a figure of is left out; one that lacks a figure which others have is out.
        """
        rows = [{**row["metrics"], **row} for row in self.configurations]
        points = [{name: float(row[name]) for name in FRONT} for row in rows]
        known = {name: more for name, more in FRONT.items() if not all(math.isnan(point[name]) for point in points)}
        return [self.configurations[n] for n in front(points, known)]

    @cached_property
    def best(self) -> Row | None:
        """The configuration that is best by the objective; of those alike the smaller one, then the earlier."""
        return self.best_of(self.configurations)

    @cached_property
    def best_by_task(self) -> dict[str, Row]:
        """For each task the complete trial that is best by the objective, where there is one."""
        complete = [row for row in self.trials if row["status"] == COMPLETE]
        found = {task: self.best_of([row for row in complete if row["task"] == task]) for task in self.tasks}
        return {task: row for task, row in found.items() if row is not None}

    @cached_property
    def by_memory(self) -> list[Row]:
        """For each method and memory size the best configuration, by size."""
        found: list[Row | None] = []
        for name in self.settings.methods:
            own = [row for row in self.configurations if row["method"] == name]
            sizes = sorted({row["memory"] for row in own}, key=lambda size: -1 if size is None else size)
            found += [self.best_of([row for row in own if row["memory"] == size]) for size in sizes]
        return [row for row in found if row is not None]

    @cached_property
    def enough(self) -> dict[str, Row]:
        """For each method with several memory sizes how much is enough, see RULE: within TOLERANCE of the best."""
        found = {}
        for name in self.settings.methods:
            rows = [row for row in self.by_memory if row["method"] == name and row["memory"] is not None]
            held = all(row["held_out"] is not None for row in rows)
            known = [(row, auroc(row, held)) for row in rows if not math.isnan(auroc(row, held))]
            if len(known) > 1:
                found[name] = _enough(known, held)
        return found

    @cached_property
    def errors(self) -> list[Row]:
        """The trials that failed, of either phase, by number."""
        failed = sorted((one for one in self.records if one.status == FAILED), key=lambda one: one.item.number)
        names = ("number", "phase", "method", "memory", "task")
        return [{name: getattr(one.item, name) for name in names} | {"error": one.error} for one in failed]

    @property
    def stopped(self) -> int:
        """How many trials did not get past a rung of the curve."""
        return sum(row["status"] == STOPPED for row in self.trials)

    @property
    def note(self) -> str:
        """Which images chose and which judged, in words."""
        if self.settings.holdout == 0:
            return "Chosen and judged on the same images: what was chosen looks better than it is."
        if any(row["held_out"] is not None for row in self.trials):
            return (
                "Chosen on images that the figures called held-out are not of: these "
                f"({self.settings.holdout:.0%} of each task's images to judge) the search never saw."
            )
        return "Chosen on a part of the images; nothing was judged on the others yet."

    def ranked(self, rows: Sequence[Row]) -> list[Row]:
        """Rows from the best by the objective down, without those that lack it. Ties: fewer bytes, lower number."""
        higher = OBJECTIVES[self.settings.objective].higher

        def rank(row: Row) -> tuple[float, float, int]:
            size = math.inf if math.isnan(row["state_bytes"]) else row["state_bytes"]
            number: int = row["number" if "number" in row else "configuration"]
            return -row["objective"] if higher else row["objective"], size, number

        return sorted((row for row in rows if not math.isnan(row["objective"])), key=rank)

    def best_of(self, rows: Sequence[Row]) -> Row | None:
        """The first of `ranked`; None where none has the objective."""
        return next(iter(self.ranked(rows)), None)

    def to_json(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        names = ("finished", "expected", "note", "trials", "pareto", "best", "best_by_task", "configurations")
        found = {"settings": self.settings.to_json()} | {name: getattr(self, name) for name in names}
        found |= {"by_memory": self.by_memory}
        found["enough"] = {"rule": RULE, "tolerance": TOLERANCE, "methods": self.enough}
        found |= {"failed": len(self.errors), "stopped": self.stopped, "errors": self.errors}
        return plain(found | {"features": self.features, "seconds": self.seconds})


def auroc(row: Row, held: bool) -> float:
    """A configuration's image AUROC, on held-out images or on those of the search; NaN where it has none."""
    if held and row["held_out"] is None:
        return math.nan
    found: float = (row["held_out"] if held else row)["metrics"][IMAGE_AUROC]
    return found


def _enough(known: Sequence[tuple[Row, float]], held: bool) -> Row:
    """known: a method's sizes, ascending, with their figures."""
    best, most = max(known, key=lambda one: one[1])
    least, reached = next(one for one in known if one[1] >= most - TOLERANCE - 1e-12)
    return {
        "memory": least["memory"],
        IMAGE_AUROC: reached,
        "state_bytes": least["state_bytes"],
        "ms_per_image": least["ms_per_image"],
        "configuration": least["configuration"],
        "best_memory": best["memory"],
        f"best_{IMAGE_AUROC}": most,
        "images": HELD_OUT if held else SEARCH,
    }
