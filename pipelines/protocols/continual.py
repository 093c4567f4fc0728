"""The protocol continual: a sequence of tasks, learned one after the other; every task is judged after every step."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np

from ...methods.detector import Detector
from ...methods.errors import ConfigError
from ...methods.params import check, param, table
from ...platform.replay import ReplayMemory
from ...platform.selection import MAX_CAPACITY, POLICIES
from ..data.datasets import Sample, Task
from ..records.continued import FIGURES, Continued
from ..records.results import METRICS, TaskResult
from .course import Protocol, Sink, draw, nowhere
from .journal import Journal, Progress
from .judging import Bench, Features, Judged, Make, Reached, Told, onward, untold
from .sequence import Step, first_steps, order_of, steps_of
from .strategies import Lessons, Multitask, Sequential, Single, Strategy, images_of

STRATEGIES = ("naive", "replay", "single", "multitask")
SCENARIOS = ("domain", "task", "class")
MEMORY = 300  # images; the thesis has 300 and 800


@dataclass(frozen=True, kw_only=True)
class Continual(Protocol):
    """Tasks in an order; the learner is judged on all of them after each step, on images that it never learns.

    The stream holds normal images alone. What the learner knows of tasks is part of the protocol: `borders` while it
    learns, `scenario` when it is judged. A model for each task (single) knows the task always.
    """

    strategy: str = param("naive", "how the steps are learned", choices=STRATEGIES)
    memory: int = param(0, f"of replay: images in the memory; 0: {MEMORY}", low=0, high=MAX_CAPACITY, unit="images")
    policy: str = param("", "of replay: which images the memory keeps; empty: reservoir", choices=("", *POLICIES))
    scenario: str = param("", "what is known when judging; empty: domain, of single task", choices=("", *SCENARIOS))
    borders: str = param("told", "whether the learner is told when a task begins", choices=("told", "hidden"))
    blend: float = param(
        0.0, "share of a step's images mixed with its neighbour's, under hidden borders", low=0, high=0.5
    )
    order: str = param("given", "given, shuffled (by the seed), or places such as 0,2,1,0")
    block: int = param(1, "visits of tasks that are learned together, as one step", low=1, high=1000)
    epochs: int = param(0, "how often a step's images are learned; 0: as the method's paper does", low=0, high=10**5)
    shots: int = param(0, "images of each task that are learned at most, drawn by the seed; 0: all", low=0, high=10**7)
    batch: int = param(0, "images learned at a time, beside as many replayed; 0: as the paper does", low=0, high=4096)
    joint: str = param("each", "of multitask: a model at each step, or at the last one only", choices=("each", "last"))
    name: ClassVar[str] = "continual"

    def __post_init__(self) -> None:
        for name, kind, _, spec in table(type(self)):
            check(getattr(self, name), kind, spec, "continual", name)
        replays = self.strategy == "replay"
        for name in ("memory", "policy"):
            if getattr(self, name) and not replays:
                raise ConfigError(f"--{name} is of the strategy replay; {self.strategy} has no memory.")
        if self.strategy == "single" and self.scenario not in ("", "task"):
            raise ConfigError("--scenario: a model for each task must know the task (scenario task).")
        if self.scenario in ("task", "class") and self.strategy == "multitask":
            raise ConfigError(f"--scenario {self.scenario}: a joint model is told of no tasks; leave it out.")
        if self.joint == "last" and self.strategy != "multitask":
            raise ConfigError("--joint is of the strategy multitask.")
        if self.borders == "hidden" and self.knows == "task" and self.strategy != "single":
            raise ConfigError("--borders hidden: who has been told of no tasks cannot be asked by task.")
        if self.blend and self.borders == "told":
            raise ConfigError("--blend mixes tasks at their borders: give --borders hidden with it.")

    @property
    def knows(self) -> str:
        """The scenario: task, domain or class."""
        return self.scenario or ("task" if self.strategy == "single" else "domain")

    def check(self, detector: Detector) -> None:
        """As in Protocol: a class-incremental one must say which task an image is of."""
        super().check(detector)
        if self.strategy == "replay" and detector.infers_tasks:
            raise ConfigError(
                f"{detector.name}: with these parameters it keeps its tasks apart, and would learn the replayed as "
                "the task at hand. Its strategy is naive."
            )
        if (self.epochs or self.batch) and not detector.learns_per_image:
            raise ConfigError(f"{detector.name}: it takes a step's images in one call, without --epochs and --batch.")
        if self.knows == "class" and not detector.infers_tasks:
            raise ConfigError(
                f"{detector.name}: with these parameters it does not find out the task (scenario class)."
            )
        if self.knows == "class" and self.borders == "hidden":
            raise ConfigError("--scenario class: which task it is can be asked only where tasks are told.")

    @property
    def options(self) -> dict[str, Any]:
        """What decides the run; a memory and its policy of replay alone."""
        found = {name: value for name, value in super().options.items() if value not in ("", 0)}
        if self.strategy == "replay":
            found |= {"memory": self.memory or MEMORY, "policy": self.policy or "reservoir"}
        if self.strategy != "multitask":
            found.pop("joint")
        return {**found, "scenario": self.knows}

    def reference(self, strategy: str) -> dict[str, Any]:
        """Options for the same sequence under `single` or `multitask`, which this one is measured against."""
        own = {name: getattr(self, name) for name in self.option_names()}
        return own | {"strategy": strategy, "memory": 0, "policy": "", "scenario": "", "joint": "each"}

    def run_all(
        self,
        make: Make,
        tasks: Sequence[Task],
        told: Told = untold,
        features: Features | None = None,
        sink: Sink = nowhere,
        journal: Journal | None = None,
        reached: Reached = onward,
    ) -> tuple[list[TaskResult], Continued]:
        """Runs one method on a sequence: a record for each task (as given), and the matrix.

        As in `PerTask.run`. sink: takes each task's judgement after the last step, under its name.
        journal: where finished steps are kept, and taken from. reached: is given a point for every step but the last:
        `images`, the steps done, and the means over the tasks learned by then. Raises StoreError too.
        """
        return _Run(self, Bench(make, told, features, self.keep, self.crop), tasks).run(sink, journal, reached)


class _Run:
    """One run. Columns are the tasks' places in the order in which they are learned first."""

    def __init__(self, protocol: Continual, bench: Bench, tasks: Sequence[Task]) -> None:
        self.detector = bench.make()  # never learns; `features.eyes` may be another method's, which sees as this one
        protocol.check(self.detector)
        seed = protocol.seed
        self.protocol, self.bench = protocol, bench
        self.tasks = [_short(task, protocol.shots, seed) for task in tasks]
        order = order_of(protocol.order, len(tasks), seed)
        self.steps = steps_of(self.tasks, order, protocol.block, protocol.blend, seed)
        self.first = first_steps(self.steps)
        self.columns = list(self.first)
        self.panels = {place: bench.panel(tasks[place].test) for place in self.columns}

    def run(
        self, sink: Sink, journal: Journal | None, reached: Reached = onward
    ) -> tuple[list[TaskResult], Continued]:
        """All steps that are not done yet."""
        with ExitStack() as stack:
            if journal is not None:
                stack.enter_context(journal.held())
            progress = Progress() if journal is None else journal.read()
            memory = self._memory(stack, journal, progress)
            strategy = self._strategy(memory)
            if journal is not None and progress.done:
                strategy.take_over(progress.done - 1, journal.learners(progress, self.bench.make))
                self._set_clocks(progress)
            self._embed(progress.done < len(self.steps))
            if progress.done == len(self.steps) and sink is not nowhere:  # they were not kept
                for place in self.columns:
                    self._last(strategy, place, sink)
            for number in range(progress.done, len(self.steps)):
                strategy.learn(number, self.steps[number])
                self._judge(strategy, number, progress, sink)
                self._note(strategy, number, progress, memory)
                if journal is not None:
                    journal.write(progress, strategy.learners())
                if number + 1 < len(self.steps):
                    reached(self._point(progress), len(self.steps))
        return self._tasks(progress), self._continued(progress, strategy.sequential)

    def name(self, step: Step) -> str:
        """What a step's task is called."""
        return "+".join(self.tasks[place].name for place in sorted(step.tasks))

    def told_as(self, place: int, number: int) -> str | None:
        """By which name a learner that is told names has learned a task last, up to a step; None: not yet."""
        names = [self.name(step) for step in self.steps[: number + 1] if place in step.tasks]
        return names[-1] if names else None

    def _memory(self, stack: ExitStack, journal: Journal | None, progress: Progress) -> ReplayMemory | None:
        options = self.protocol.options
        if self.protocol.strategy != "replay":
            return None
        folder = journal.memory if journal else Path(stack.enter_context(TemporaryDirectory())) / "memory"
        memory = ReplayMemory.open(folder, options["memory"], options["policy"], self.protocol.seed, progress.memory)
        return stack.enter_context(memory)

    def _strategy(self, memory: ReplayMemory | None) -> Strategy:
        protocol, traits = self.protocol, self.detector.traits
        lessons = Lessons(
            self.bench,
            protocol.seed,
            protocol.epochs or traits.epochs,
            protocol.batch or traits.batch,
            self.name if protocol.borders == "told" else None,
            protocol.policy,
        )
        if protocol.strategy == "single":
            return Single(lessons)
        if protocol.strategy == "multitask":
            return Multitask(lessons, self.steps, protocol.joint == "last")
        return Sequential(lessons, memory)

    def _embed(self, anything: bool) -> None:
        """Beforehand, as far as there is room: every image is asked for again. Checks that all of them are images."""
        if anything:
            learned = [Sample(path, False, "good") for path in images_of(self.steps)]
            self.bench.features.again = True
            self.bench.embed([*learned, *(one for place in self.columns for one in self.tasks[place].test)])

    def _judge(self, strategy: Strategy, number: int, progress: Progress, sink: Sink) -> None:
        """The row of a step: each task by whoever judges it; who has not changed has the figures of the row above."""
        row: dict[str, list[float]] = {name: [] for name in FIGURES}
        inferred = []
        self.bench.clock.reset("score")  # the last row's time is reported
        for column, place in enumerate(self.columns):
            learner, changed = strategy.judge_of(place)
            last = number == len(self.steps) - 1
            if learner is None or not learner.ready:
                figures = dict.fromkeys(FIGURES, math.nan)
            elif changed or last or not progress.rows:
                judged = self._judged(learner, place, number)
                figures = judged.figures(FIGURES)
                inferred.append(self._found_out(judged, place, number))
                if last:
                    sink(self.tasks[place].name, judged)
            else:
                figures = {name: progress.rows[-1][name][column] for name in FIGURES}
            for name in FIGURES:
                row[name].append(figures[name])
        progress.rows.append(row)
        if strategy.sequential and self.protocol.knows != "task" and self.detector.infers_tasks:
            progress.inferred.append(inferred)

    def _point(self, progress: Progress) -> dict[str, float]:
        """The means of the last row over the tasks learned by then."""
        done, row = progress.done, progress.rows[-1]
        learned = [column for column, place in enumerate(self.columns) if self.first[place] < done]
        return {"images": done, **{name: float(np.mean([row[name][n] for n in learned])) for name in FIGURES}}

    def _last(self, strategy: Strategy, place: int, sink: Sink) -> None:
        learner, _ = strategy.judge_of(place)
        if learner is not None and learner.ready:
            sink(self.tasks[place].name, self._judged(learner, place, len(self.steps) - 1))

    def _judged(self, learner: Detector, place: int, number: int) -> Judged:
        task = self.told_as(place, number) if self.protocol.knows == "task" else None
        name = self.tasks[place].name

        def told(stage: str, done: int, of: int) -> None:
            self.bench.told(f"judge {name}, step {number + 1}", done, of)

        return self.bench.judge(learner, self.panels[place], told=told, task=task)

    def _found_out(self, judged: Judged, place: int, number: int) -> float:
        """Share of images that were taken for what they are; NaN where that is not asked, or was not learned yet."""
        right = self.told_as(place, number)
        if judged.taken is None or right is None or self.protocol.borders == "hidden":
            return math.nan
        return sum(taken == right for taken in judged.taken) / len(judged.taken)

    def _note(self, strategy: Strategy, number: int, progress: Progress, memory: ReplayMemory | None) -> None:
        """Costs, and where the memory stands."""
        learners = list(strategy.learners().values())
        one = learners[0].network_bytes if learners else 0
        trains = self.detector.traits.end_to_end
        own = one * len(learners) if trains else one
        states = sum(learner.state().nbytes for learner in learners)
        inside = own if trains else 0
        replayed = 0 if memory is None else memory.nbytes
        progress.bytes = {"networks": own, "learned": states - inside, "replay": replayed}
        progress.memory = None if memory is None else memory.checkpoint()
        clocks = {"bench": self.bench.clock, "features": self.bench.features.clock}
        progress.spent = {which: {n: list(s) for n, s in clock.spent.items()} for which, clock in clocks.items()}
        progress.done = number + 1

    def _set_clocks(self, progress: Progress) -> None:
        for which, clock in (("bench", self.bench.clock), ("features", self.bench.features.clock)):
            clock.spent |= {name: (float(s), int(n)) for name, (s, n) in progress.spent.get(which, {}).items()}

    def _tasks(self, progress: Progress) -> list[TaskResult]:
        learned = np.cumsum([len(step.images) for step in self.steps]).tolist()
        found = []
        for place, task in enumerate(self.tasks):
            column = self.columns.index(place)
            rows = [{name: row[name][column] for name in METRICS} for row in progress.rows]
            found.append(
                TaskResult(
                    task=task.name,
                    n_train=len(task.train),
                    n_test=len(task.test),
                    metrics=rows[-1],
                    curve=[{"images": images, **row} for images, row in zip(learned, rows, strict=True)],
                    ms_per_image=self.bench.times(),
                    state_bytes=progress.bytes["networks"] * self.detector.traits.end_to_end
                    + progress.bytes["learned"],
                )
            )
        return found

    def _continued(self, progress: Progress, sequential: bool) -> Continued:
        times = self.bench.times()
        return Continued(
            scenario=self.protocol.knows,
            sequential=sequential,
            columns=[self.tasks[place].name for place in self.columns],
            steps=[[self.tasks[place].name for place in step.tasks] for step in self.steps],
            first=[self.first[place] for place in self.columns],
            matrix={name: [row[name] for row in progress.rows] for name in FIGURES},
            chance=_columns([self._chance(place) for place in self.columns]),
            memory_bytes=progress.bytes,
            training_s=self.bench.clock.spent.get("learn", (0.0, 0))[0],
            inference_ms=times["backbone"] + times["score"],
            inferred=progress.inferred,
            seed=self.protocol.seed,
        )

    def _chance(self, place: int) -> dict[str, float]:
        """The figures of a score that is the same everywhere; none where a task's images begin in a step before."""
        if self.protocol.blend:
            return dict.fromkeys(FIGURES, math.nan)
        panel = self.panels[place]
        flat = np.zeros(len(panel.samples), np.float32)
        maps = None if panel.masks is None else np.zeros(panel.masks.shape, np.float32)
        return Judged(panel.names, flat, panel.labels, maps, panel.masks).figures(FIGURES)


def _short(task: Task, shots: int, seed: int) -> Task:
    """A task with so many of its training images at most."""
    return replace(task, train=tuple(draw(task, shots, seed)[0])) if 0 < shots < len(task.train) else task


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in FIGURES}
