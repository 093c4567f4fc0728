"""Protocols: objects that own who may see what and when. What they share, and keeps them honest, is in `judging.py`.

online: one epoch over the normal training images, one at a time, in an order that the seed decides; the test set is
judged along the way. offline: all training images, or a few shots of them, and then one judgement. Neither makes a
choice by a test figure; the last state is the one reported.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ...methods.detector import Detector
from ...methods.errors import ConfigError
from ..data.datasets import Task
from ..records.results import TaskResult
from .continual import Continual
from .course import PerTask, Protocol, Sink, check_shots, draw, finish, learn_all, nowhere, teach
from .drifting import Drifting
from .fewshot import FewShot
from .judging import Bench, Features, Judged, Make, Reached, Told, onward, untold


@dataclass(frozen=True, kw_only=True)
class Online(PerTask):
    """One epoch, one image at a time. `seed` decides the order of the stream."""

    name: ClassVar[str] = "online"

    def check(self, detector: Detector) -> None:
        """As in Protocol: the method must learn image by image."""
        super().check(detector)
        if not detector.learns_per_image:
            raise ConfigError(f"{detector.name}: it cannot learn one image at a time, as the protocol online asks.")

    def order(self, count: int) -> list[int]:
        """The stream's order: a permutation of range(count) by the seed alone."""
        return np.random.default_rng(self.seed).permutation(count).tolist()

    def points(self, count: int) -> list[int]:
        """After how many images the test set is judged: 1, 2, 4, 8, ... and the end."""
        return sorted({1 << n for n in range(count.bit_length()) if 1 << n < count} | {count})

    def run(
        self,
        make: Make,
        task: Task,
        told: Told = untold,
        features: Features | None = None,
        sink: Sink = nowhere,
        reached: Reached = onward,
    ) -> tuple[TaskResult, Judged]:
        """As in Protocol. Raises ConfigError for a method that cannot learn image by image."""
        learner = make()
        self.check(learner)
        bench = Bench(make, told, features, self.keep, self.crop)
        panel = bench.panel(task.test)
        bench.embed(task.test)
        paths = [task.train[index] for index in self.order(len(task.train))]
        points, curve = set(self.points(len(paths))), []
        for count in teach(bench, learner, paths):
            if count in points and (learner.ready or count == len(paths)):  # some need a few images first
                bench.clock.reset("score")  # the last round's time is reported
                judged = bench.judge(learner, panel)
                curve.append({"images": count, **judged.figures()})
                if count < len(paths):
                    reached(curve[-1], len(paths))
        return finish(task.name, len(paths), bench, learner, judged, curve), judged


@dataclass(frozen=True, kw_only=True)
class Offline(PerTask):
    """All training images (LeMO table 5, full dataset), or `shots` of them drawn by the seed; then one judgement.

    A few shots come in one call of `learn`, as do all images for a method that does not learn one by one; all
    images come one at a time, in the seed's order, to one that does.
    """

    shots: int | None = None
    name: ClassVar[str] = "offline"

    def __post_init__(self) -> None:
        check_shots(self.shots)

    def run(
        self,
        make: Make,
        task: Task,
        told: Told = untold,
        features: Features | None = None,
        sink: Sink = nowhere,
        reached: Reached = onward,
    ) -> tuple[TaskResult, Judged]:
        """As in Protocol. Raises ConfigError where there are fewer images than shots."""
        learner, bench = make(), Bench(make, told, features, self.keep, self.crop)
        panel = bench.panel(task.test)
        bench.embed(task.test)
        paths, _ = draw(task, self.shots, self.seed)
        learn_all(bench, learner, paths, at_once=self.shots is not None)
        judged = bench.judge(learner, panel)
        curve = [{"images": len(paths), **judged.figures()}]
        return finish(task.name, len(paths), bench, learner, judged, curve), judged


PROTOCOLS: dict[str, type[Protocol]] = {one.name: one for one in (Online, Offline, Drifting, FewShot, Continual)}
