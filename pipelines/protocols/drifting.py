"""The protocol drift (LeMO section 4.2.2, table 4): what a fixed drift costs, and what learning under it wins back."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...methods.errors import ConfigError
from ..data.datasets import Task
from ..data.drift import DRIFTS, Drift
from ..records.results import Part, TaskResult, mean_figures
from .course import PerTask, Sink, draw, finish, learn_all, nowhere
from .judging import Bench, Features, Judged, Make, Reached, Told, onward, untold


@dataclass(frozen=True, kw_only=True)
class Drifting(PerTask):
    """For each drift: learned clean and judged drifted (`offline`); learned and judged drifted (`metrics`).

    One epoch over all training images, as in the protocol offline. The part `none` is learned and judged clean; the
    task's own figures are means over the drifts, without `none`.
    """

    drift: tuple[Drift, ...] = DRIFTS
    name: ClassVar[str] = "drift"

    def __post_init__(self) -> None:
        if not self.drift or len({one.kind for one in self.drift}) < len(self.drift):
            raise ConfigError("--drift must name at least one drift, and none of them twice.")

    def run(
        self,
        make: Make,
        task: Task,
        told: Told = untold,
        features: Features | None = None,
        sink: Sink = nowhere,
        reached: Reached = onward,
    ) -> tuple[TaskResult, Judged]:
        """As in Protocol; the judgement returned is that of `none`, the others go to `sink` as DRIFT/SCENARIO."""
        clean, bench = make(), Bench(make, told, features, self.keep, self.crop)
        panel = bench.panel(task.test)
        bench.embed(task.test)
        paths, _ = draw(task, None, self.seed)
        learn_all(bench, clean, paths)
        baseline = bench.judge(clean, panel)
        parts = [Part("none", baseline.figures())]
        for drift in self.drift:
            offline = bench.judge(clean, panel, drift)
            learner = make()
            learn_all(bench, learner, paths, drift)
            online = bench.judge(learner, panel, drift)
            sink(f"{drift.kind}/offline", offline)
            sink(f"{drift.kind}/online", online)
            parts.append(Part(drift.kind, online.figures(), offline.figures()))
        record = finish(task.name, len(paths), bench, clean, baseline, [{"images": len(paths), **parts[0].metrics}])
        metrics = mean_figures([part.metrics for part in parts[1:]])
        without = mean_figures([part.offline for part in parts if part.offline is not None])
        return replace(record, metrics=metrics, offline=without, parts=parts, curve=[]), baseline

    @property
    def options(self) -> dict[str, Any]:
        """Each drift with its level."""
        return super().options | {"drift": {one.kind: one.level for one in self.drift}}
