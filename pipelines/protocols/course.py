"""What a protocol is, and the steps that protocols are made of."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...methods.detector import Detector
from ...methods.errors import ConfigError
from ..data.datasets import Task
from ..data.drift import Drift
from ..data.view import View
from ..records.results import METRICS, TaskResult
from .judging import KEEP, Bench, Features, Judged, Make, Reached, Told, onward, staged, untold

Sink = Callable[[str, Judged], None]  # takes the further judgements of a run, each under a name


def nowhere(name: str, judged: Judged) -> None:
    """For those who want no further judgements."""


@dataclass(frozen=True, kw_only=True)
class Protocol(ABC):
    """Who may see what and when. The fields that a protocol adds are its options, and its command line's.

    seed: of everything that it draws. keep: see KEEP. crop: side to which pictures are resized before their middle
    is cut out; None: they are resized whole (see `View`).
    """

    seed: int = 0
    keep: int = KEEP
    crop: int | None = None
    name: ClassVar[str]

    def check(self, detector: Detector) -> None:
        """Raises ConfigError for a method, or a size of it, that this protocol cannot run; before anything is read."""
        View(detector.size, self.crop)

    @property
    def options(self) -> dict[str, Any]:
        """The protocol's own options as plain JSON, for the record; those that are not set are left out."""
        found = {name: getattr(self, name) for name in self.option_names()}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def option_names(cls) -> list[str]:
        """The fields that say how it runs: all but the seed and the memory of features."""
        return [field.name for field in fields(cls) if field.name not in ("seed", "keep")]


class PerTask(Protocol):
    """A protocol in which no task knows of another."""

    judges_training: ClassVar[bool] = False  # whether images to learn are judged too, and so are not to choose by

    @abstractmethod
    def run(
        self,
        make: Make,
        task: Task,
        told: Told = untold,
        features: Features | None = None,
        sink: Sink = nowhere,
        reached: Reached = onward,
    ) -> tuple[TaskResult, Judged]:
        """Runs one method on one task: its record, and the judgement that `metrics` were computed from.

        make: builds a fresh detector, the same each time. told: hears of progress, from this thread. features:
        what earlier runs on this task have embedded. sink: takes the run's other judgements.
        reached: is given every point of the curve but the last as it is reached; what it raises ends the run.
        Raises ConfigError for a method or a task that does not suit it, DataError for a file that is no image.
        """


def draw(task: Task, shots: int | None, seed: int) -> tuple[list[Path], list[Path]]:
    """`shots` training images in the seed's order (all for None), and the others. Raises ConfigError."""
    order = np.random.default_rng(seed).permutation(len(task.train)).tolist()
    if shots is not None and shots > len(order):
        raise ConfigError(f"{task.name}: --shots {shots}, but it has {len(order)} training images only.")
    paths = [task.train[index] for index in order]
    return paths[:shots], [] if shots is None else paths[shots:]


def check_shots(shots: int | None) -> None:
    """Raises ConfigError for no shots at all."""
    if shots is not None and shots < 1:
        raise ConfigError(f"--shots must be at least 1, got {shots}.")


def teach(bench: Bench, learner: Detector, paths: list[Path], drift: Drift | None = None) -> Iterator[int]:
    """Learns image by image; yields how many are learned."""
    for count, path in enumerate(paths, 1):
        bench.learn(learner, [path], drift)
        bench.told(staged("learn", drift), count, len(paths))
        yield count


def learn_all(
    bench: Bench, learner: Detector, paths: list[Path], drift: Drift | None = None, at_once: bool = False
) -> None:
    """Learns all images: in one call where that is asked for or the method needs it, else one by one."""
    if at_once or not learner.learns_per_image:
        bench.told(staged("learn", drift), 0, len(paths))
        bench.learn(learner, paths, drift)
        bench.told(staged("learn", drift), len(paths), len(paths))
    else:
        for _ in teach(bench, learner, paths, drift):
            pass


def finish(
    name: str, learned: int, bench: Bench, learner: Detector, judged: Judged, curve: list[dict[str, float]]
) -> TaskResult:
    """The record of a run whose figures are the last of its curve."""
    return TaskResult(
        task=name,
        n_train=learned,
        n_test=len(judged.scores),
        metrics={metric: curve[-1][metric] for metric in METRICS},
        curve=curve,
        ms_per_image=bench.times(),
        state_bytes=learner.state().nbytes,
    )
