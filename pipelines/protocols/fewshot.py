"""The protocol fewshot: few-shot online detection (FOADS), as the K-NG paper (section 4.2) has it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...methods.detector import Detector
from ...methods.errors import ConfigError, DataError
from ..data.datasets import Sample, Task
from ..records.results import METRICS, Part, TaskResult
from .admission import Admission
from .course import PerTask, Sink, check_shots, draw, finish, nowhere
from .judging import Bench, Features, Judged, Make, Panel, Reached, Told, onward, untold


@dataclass(frozen=True, kw_only=True)
class FewShot(PerTask):
    """A few normal images first, then a stream that nobody has labelled: each batch is scored, then learned.

    shots: normal images, learned in one call. ratio: normals for each defect in the stream; where there are fewer
    defects, all of them are in it. session: images in each, as nearly as the stream divides evenly. batch: images
    that are scored by one state and then learned in one call.

    `metrics` are means over sessions (of each figure, those sessions that have it); the part `whole stream` has the
    figures over all images at once. `offline`: the same detector, not learning after the shots, on the same stream.
    `admitted`: of a method that says which patches it believes, the shares of the stream's that it believed.
    """

    shots: int = 10
    ratio: float = 7.7
    session: int = 100
    batch: int = 10
    name: ClassVar[str] = "fewshot"
    judges_training: ClassVar[bool] = True  # the stream has them

    def __post_init__(self) -> None:
        check_shots(self.shots)
        if not 0 < self.ratio < float("inf"):
            raise ConfigError(f"--ratio must be above 0 (normals for each defect), got {self.ratio}.")
        for name, value in (("session", self.session), ("batch", self.batch)):
            if value < 1:
                raise ConfigError(f"--{name} must be at least 1, got {value}.")

    def check(self, detector: Detector) -> None:
        """As in Protocol: the method must go on learning."""
        super().check(detector)
        if not detector.learns_per_image:
            raise ConfigError(f"{detector.name}: it cannot go on learning, as the protocol fewshot asks.")

    def stream(self, task: Task) -> tuple[list[Path], list[Sample]]:
        """The shots, and the shuffled stream of all other normals and the defects drawn: functions of the seed.

        Raises ConfigError for more shots than training images, DataError where normals or defects are missing.
        """
        shots, rest = draw(task, self.shots, self.seed)
        good = [Sample(path, False, "good") for path in rest] + [one for one in task.test if not one.defect]
        bad = [one for one in task.test if one.defect]
        if not good or not bad:
            found = f"{len(good)} normal images beside the shots and {len(bad)} defective ones"
            raise DataError(f"{task.name}: a stream needs both; there are {found}.")
        rng = np.random.default_rng([self.seed, 1])  # not the numbers that drew the shots
        wanted = min(len(bad), max(1, round(len(good) / self.ratio)))
        mixed = good + [bad[index] for index in rng.permutation(len(bad))[:wanted]]
        return shots, [mixed[index] for index in rng.permutation(len(mixed))]

    def sessions(self, count: int) -> list[tuple[int, int]]:
        """Where each session of a stream of `count` images starts and ends."""
        cuts = np.linspace(0, count, max(1, round(count / self.session)) + 1).round().astype(int).tolist()
        return list(pairwise(cuts))

    def run(
        self,
        make: Make,
        task: Task,
        told: Told = untold,
        features: Features | None = None,
        sink: Sink = nowhere,
        reached: Reached = onward,
    ) -> tuple[TaskResult, Judged]:
        """As in Protocol; the judgement returned is that with learning, `sink` gets the other as `offline`."""
        bench = Bench(make, told, features, self.keep, self.crop)
        self.check(bench.make())
        shots, stream = self.stream(task)
        panel = bench.panel(stream, ["/".join(one.path.parts[-3:]) for one in stream])
        bench.embed([*(Sample(path, False, "good") for path in shots), *stream])
        still, _ = self.flow(bench, panel, shots, learns=False)
        sink("offline", still)
        for name in ("score", "learn"):
            bench.clock.reset(name)  # what is reported is the time with learning
        admission = Admission()
        judged, learner = self.flow(bench, panel, shots, learns=True, admission=admission, reached=reached)
        curve, offline = self._curve(judged), mean_of_sessions(self._curve(still))
        record = finish(task.name, len(shots), bench, learner, judged, curve)
        return replace(
            record,
            metrics=mean_of_sessions(curve),
            offline=offline,
            parts=[Part("whole stream", judged.figures(), still.figures())],
            defects=int(panel.labels.sum()),
            admitted=admission.shares,
        ), judged

    def flow(
        self,
        bench: Bench,
        panel: Panel,
        shots: Sequence[Path],
        learns: bool,
        admission: Admission | None = None,
        reached: Reached = onward,
    ) -> tuple[Judged, Detector]:
        """The stream once: each batch of a session is judged by the state before it, and then learned (if at all).

        What the learner reports of the stream's patches goes to `admission`; sessions but the last go to `reached`.
        """
        learner, count = bench.make(), len(panel.samples)
        ends = [end for _, end in self.sessions(count)[:-1]]
        bench.learn(learner, shots)
        done: list[Judged] = []
        since = 0  # where the session's judgements begin
        for start, end in self._steps(count) if learns else [(0, count)]:

            def told(stage: str, n: int, of: int, start: int = start) -> None:
                bench.told("stream" if learns else "stream, not learning", start + n, count)

            batch = panel.part(start, end)
            done.append(bench.judge(learner, batch, told=told))
            if learns:
                learned = bench.learn(learner, [sample.path for sample in batch.samples])
                if admission is not None:
                    admission.add(learned.admitted, batch.masks)
                if end in ends and reached is not onward:
                    reached({"images": end, **Judged.joined(done[since:]).figures()}, count)
                    since = len(done)
        return Judged.joined(done), learner

    def _steps(self, count: int) -> list[tuple[int, int]]:
        """Where each batch starts and ends; none reaches over the end of its session."""
        return [
            (start, min(start + self.batch, end))
            for first, end in self.sessions(count)
            for start in range(first, end, self.batch)
        ]

    def _curve(self, judged: Judged) -> list[dict[str, float]]:
        """The figures of each session, at the number of images of the stream seen by its end."""
        cuts = self.sessions(len(judged.scores))
        return [{"images": end, **judged.part(start, end).figures()} for start, end in cuts]


def mean_of_sessions(curve: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each figure's mean over the sessions that have it: a session without defects has none."""
    out = {}
    for name in METRICS:
        found = [point[name] for point in curve if not np.isnan(point[name])]
        out[name] = sum(found) / len(found) if found else float("nan")
    return out
