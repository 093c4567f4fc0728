"""How one step after the other is learned: single, multitask, naive, replay (thesis, chapter 5)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ...methods import routing
from ...methods.detector import Detector
from ...platform.replay import ReplayMemory
from .judging import Bench
from .sequence import Shot, Step, epoch_of


@dataclass(frozen=True)
class Lessons:
    """How a learner goes through images.

    epochs, batch: how often, and how many images at a time; a method that cannot learn one by one gets all at once.
    names: of a step's task, or None where the learner and its memory are told of no tasks. policy: the memory's.
    """

    bench: Bench
    seed: int
    epochs: int
    batch: int
    names: Callable[[Step], str] | None
    policy: str = ""

    def teach(
        self, learner: Detector, images: Sequence[Shot], number: int, memory: ReplayMemory | None = None
    ) -> None:
        """Learns the images of step `number`, beside each batch as many from the memory, if there is one."""
        stage, told = f"learn, step {number + 1}", self.bench.told
        if not learner.learns_per_image:
            told(stage, 0, len(images))
            beside = [] if memory is None else [_image(record.image) for record in memory.all()]
            self.bench.learn(learner, [path for _, path in images], beside=beside)
            told(stage, len(images), len(images))
            return
        done = 0
        for epoch in range(self.epochs):
            order = epoch_of(images, epoch, self.seed, number)
            for some in (order[at : at + self.batch] for at in range(0, len(order), self.batch)):
                drawn = [] if memory is None else memory.draw(len(some))
                paths = [path for _, path in some]
                self.bench.learn(learner, paths, beside=[_image(record.image) for record in drawn])
                if memory is not None and self.names is None and epoch == 0:  # no border at which it could be filled
                    self.remember(memory, learner, paths, "")
                done += len(some)
                told(stage, done, self.epochs * len(images))

    def remember(self, memory: ReplayMemory, learner: Detector, paths: Sequence[Path], task: str) -> None:
        """Offers images to the memory, in order."""
        for path in paths:
            features = self.bench.features.get(path)
            memory.offer(
                self.bench.features.read(path),
                id="/".join(path.parts[-4:]),
                task=task,
                score=float(learner.score(features).image) if self.policy == "hardest" and learner.ready else 0.0,
                descriptor=described(features) if self.policy == "herding" else None,
            )


class Strategy(ABC):
    """Who learns what at each step, and who judges a task afterwards."""

    sequential = True  # whether one learner goes through all steps

    def __init__(self, lessons: Lessons) -> None:
        self.lessons = lessons

    @abstractmethod
    def learn(self, number: int, step: Step) -> None:
        """Learns the next step."""

    @abstractmethod
    def judge_of(self, place: int) -> tuple[Detector | None, bool]:
        """Who judges a task (None: nobody can yet), and whether it may judge otherwise than after the last step."""

    @abstractmethod
    def learners(self) -> dict[str, Detector]:
        """All that must be kept to go on from here, by name."""

    @abstractmethod
    def take_over(self, number: int, learners: dict[str, Detector]) -> None:
        """Goes on behind step `number` with what `learners` gave then."""


class Sequential(Strategy):
    """One learner, step after step: `naive`, and `replay` where there is a memory."""

    def __init__(self, lessons: Lessons, memory: ReplayMemory | None = None) -> None:
        super().__init__(lessons)
        self.learner, self.memory = lessons.bench.make(), memory

    def learn(self, number: int, step: Step) -> None:
        """The images of the step; what they leave behind in the memory is replayed in later ones."""
        names = self.lessons.names
        if names is not None:
            self.learner.begin_task(names(step))
        self.lessons.teach(self.learner, step.images, number, self.memory)
        if self.memory is not None and (names is not None or not self.learner.learns_per_image):
            task = "" if names is None else names(step)
            self.lessons.remember(self.memory, self.learner, [path for _, path in step.images], task)

    def judge_of(self, place: int) -> tuple[Detector | None, bool]:
        return self.learner, True

    def learners(self) -> dict[str, Detector]:
        return {"learner": self.learner}

    def take_over(self, number: int, learners: dict[str, Detector]) -> None:
        self.learner = learners["learner"]


class Single(Strategy):
    """A model for each task: the upper bound without sharing."""

    sequential = False

    def __init__(self, lessons: Lessons) -> None:
        super().__init__(lessons)
        self.models: dict[int, Detector] = {}
        self.latest: set[int] = set()

    def learn(self, number: int, step: Step) -> None:
        self.latest = {place for place, _ in step.images}  # at a blended border not those of the step alone
        for place in sorted(self.latest):
            learner = self.models.setdefault(place, self.lessons.bench.make())
            self.lessons.teach(learner, [shot for shot in step.images if shot[0] == place], number)

    def judge_of(self, place: int) -> tuple[Detector | None, bool]:
        return self.models.get(place), place in self.latest

    def learners(self) -> dict[str, Detector]:
        return {f"model-{place}": learner for place, learner in self.models.items()}

    def take_over(self, number: int, learners: dict[str, Detector]) -> None:
        self.models = {int(name.removeprefix("model-")): learner for name, learner in learners.items()}


class Multitask(Strategy):
    """At each step a fresh model of all images so far, mixed: what joint learning reaches. last: at the last only."""

    sequential = False

    def __init__(self, lessons: Lessons, steps: Sequence[Step], last: bool = False) -> None:
        super().__init__(lessons)
        self.steps, self.last = steps, last
        self.learner: Detector | None = None
        self.known: set[int] = set()

    def learn(self, number: int, step: Step) -> None:
        self.learner, seen = None, self.steps[: number + 1]
        self.known = {place for one in seen for place in one.tasks}
        if not self.last or number == len(self.steps) - 1:
            self.learner = self.lessons.bench.make()
            images = [shot for one in seen for shot in one.images]
            mixed = np.random.default_rng([self.lessons.seed, 7, number]).permutation(len(images))
            self.lessons.teach(self.learner, [images[index] for index in mixed], number)

    def judge_of(self, place: int) -> tuple[Detector | None, bool]:
        return (self.learner if place in self.known else None), True

    def learners(self) -> dict[str, Detector]:
        return {} if self.learner is None else {"learner": self.learner}

    def take_over(self, number: int, learners: dict[str, Detector]) -> None:
        self.learner = learners.get("learner")  # it is made anew at the next step
        self.known = {place for one in self.steps[: number + 1] for place in one.tasks}


def described(features: Tensor) -> NDArray[np.float32]:
    """What an image is like, for the choice of exemplars: float32 (D,), from features (1, C, ...).

    The mean over positions of what a backbone gave; of an image itself, a picture of 8 x 8.
    """
    if features.is_floating_point():
        return np.asarray(routing.described(features)[0].cpu().numpy())
    return np.asarray(F.adaptive_avg_pool2d(features.float() / 255, 8)[0].flatten().cpu().numpy())


def images_of(steps: Sequence[Step]) -> Iterator[Path]:
    """All images that are ever learned."""
    return (path for step in steps for _, path in step.images)


def _image(data: bytes | None) -> bytes:
    assert data is not None  # a memory holds nothing but images
    return data
