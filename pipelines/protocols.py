"""Protocols: objects that own who may see what and when.

`online`: one epoch over the normal training images, one at a time, in an order that the seed decides; the test set is
judged along the way. What keeps it honest:

* The learner is given features of training images through `learn`, and nothing else. Labels, masks, kinds and
  paths stay here.
* The test set is judged by copies: a fresh detector takes over the learner's state, scores the images one at a time
  and is thrown away. What a method might keep from scoring never finds its way back into learning, and it never
  sees two test images at once.
* No choice is made by a test figure; the last state is the one reported.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..methods.detector import Detector
from ..methods.errors import ConfigError, DataError, ImageError
from ..methods.metrics import evaluate
from ..platform.images import prepare
from .datasets import Task, read_mask
from .results import METRICS, TaskResult

Make = Callable[[], Detector]
Told = Callable[[str, int, int], None]  # what is being done, how many are done, of how many
KEEP = 2 * 2**30  # bytes of test features held in memory; what does not fit is embedded anew at each point


@dataclass(frozen=True)
class Judged:
    """The last judgement of a test set of N images, enough to recompute every figure."""

    names: tuple[str, ...]  # TYPE/FILE
    scores: NDArray[np.float32]  # (N,)
    labels: NDArray[np.bool_]  # (N,), True for a defect
    maps: NDArray[np.float32] | None  # (N, S, S); None for a method without maps
    masks: NDArray[np.bool_] | None  # (N, S, S); None for a task without masks

    def figures(self) -> dict[str, float]:
        """The metrics of a result record."""
        found = evaluate(self.scores, self.labels, self.maps, self.masks)
        return {name: found[name] for name in METRICS}


@dataclass(frozen=True)
class Online:
    """One epoch, one image at a time. `seed` decides the order of the stream; `keep`: see KEEP."""

    seed: int = 0
    keep: int = KEEP
    name = "online"

    def order(self, count: int) -> list[int]:
        """The stream's order: a permutation of range(count) by the seed alone."""
        return np.random.default_rng(self.seed).permutation(count).tolist()

    def points(self, count: int) -> list[int]:
        """After how many images the test set is judged: 1, 2, 4, 8, ... and the end."""
        return sorted({1 << n for n in range(count.bit_length()) if 1 << n < count} | {count})

    def run(self, make: Make, task: Task, told: Told = lambda stage, done, of: None) -> tuple[TaskResult, Judged]:
        """Runs one method on one task.

        make: builds a fresh detector, the same each time. told: hears of progress, from this thread.
        Raises ConfigError for a method that cannot learn image by image, DataError for a file that is no image.
        """
        learner = make()
        if not learner.traits.learns_per_image:
            raise ConfigError(f"{learner.name}: it cannot learn one image at a time, as the protocol online asks.")
        jury = _Jury(make, task, self.keep, told)
        points, curve, clock = set(self.points(len(task.train))), [], _Clock()
        for count, index in enumerate(self.order(len(task.train)), 1):
            picture = _picture(task.train[index], learner.size)
            with clock("backbone"):
                features = _done(learner.embed(picture))
            with clock("learn"):
                learner.learn(features)
                _done(features)
            told("learn", count, len(task.train))
            if count in points and (learner.ready or count == len(task.train)):  # some need a few images first
                judged, clock.spent["score"] = jury.judge(learner)
                curve.append({"images": count, **judged.figures()})
        state = learner.state()
        result = TaskResult(
            task=task.name,
            n_train=len(task.train),
            n_test=len(task.test),
            metrics={name: curve[-1][name] for name in METRICS},
            curve=curve,
            ms_per_image={name: clock.mean_ms(name) for name in ("backbone", "score", "learn")},
            state_bytes=state.nbytes,
        )
        return result, judged


PROTOCOLS = {Online.name: Online}


class _Jury:
    """The test set with its labels, and what it takes to judge a learner by it."""

    def __init__(self, make: Make, task: Task, keep: int, told: Told) -> None:
        self.make, self.task, self.told = make, task, told
        self.eyes = make()  # embeds, and never learns
        self.size = self.eyes.size
        self.kept: list[Tensor] = []
        self.room = keep
        self.labels = np.array([sample.defect for sample in task.test])
        self.masks = self._read_masks()
        self._embed_all()

    def judge(self, learner: Detector) -> tuple[Judged, list[float]]:
        """Scores every test image by a copy of the learner; and the seconds that each took.

        Setting up for the new state (factoring, indexing), which a copy does on its first image, is included.
        """
        count = len(self.task.test)
        scores = np.full(count, np.nan, np.float32)
        maps = np.empty((count, self.size, self.size), np.float32) if learner.traits.gives_map else None
        copy, clock = self.make(), _Clock()
        copy.load_state(learner.state())
        for n, features in enumerate(self._features()):
            with clock("score"):
                found = copy.score(features)
                scores[n] = float(found.image)  # waits for the device
            if maps is not None:
                maps[n] = found.maps[0].cpu().numpy()
            self.told("judge", n + 1, count)
        names = tuple(f"{sample.kind}/{sample.path.name}" for sample in self.task.test)
        return Judged(names, scores, self.labels, maps, self.masks), clock.spent["score"]

    def _read_masks(self) -> NDArray[np.bool_] | None:
        if not self.task.masked or not self.labels.any():
            return None
        masks = np.zeros((len(self.task.test), self.size, self.size), bool)
        for n, sample in enumerate(self.task.test):
            if sample.mask is not None:
                masks[n] = read_mask(sample.mask, self.size)
        return masks

    def _embed_all(self) -> None:
        """Embeds once and keeps, in order, as many as there is room for; checks that every file is an image."""
        for n, sample in enumerate(self.task.test):
            features = self.eyes.embed(_picture(sample.path, self.size))
            self.room -= features.numel() * features.element_size()
            if self.room >= 0:
                self.kept.append(features)
            self.told("embed", n + 1, len(self.task.test))

    def _features(self) -> Iterator[Tensor]:
        for kept in self.kept:
            yield kept.clone()  # a copy: a method that writes into it spoils nobody else's
        for sample in self.task.test[len(self.kept) :]:
            yield self.eyes.embed(_picture(sample.path, self.size))


class _Clock:
    """Seconds spent under a name, call by call."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {}

    def __call__(self, name: str) -> "_Lap":
        return _Lap(self.spent.setdefault(name, []))

    def mean_ms(self, name: str) -> float:
        """Mean milliseconds a call: unlike medians, means add up, and they count the seldom and costly steps."""
        laps = self.spent.get(name, [])
        return 1000 * sum(laps) / len(laps) if laps else math.nan


class _Lap:
    def __init__(self, laps: list[float]) -> None:
        self.laps = laps

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: Any) -> None:
        self.laps.append(time.perf_counter() - self.start)


def _picture(path: Path, size: int) -> Tensor:
    """uint8 (1, 3, size, size)."""
    try:
        return prepare(path.read_bytes(), size)[None]
    except (OSError, ImageError) as error:
        raise DataError(f"{path}: {error}") from error


def _done(features: Tensor) -> Tensor:
    """Waits for an accelerator, which works in the background, so that time is booked where it is spent."""
    if features.is_cuda:
        torch.cuda.synchronize(features.device)
    return features
