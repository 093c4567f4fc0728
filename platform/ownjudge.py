"""The gate of a line's own candidates: which images of the log one is asked, and why it is held. Pure.

With every second image that the line learns while a candidate is on probation, and with more where the probation is
short, the candidate is asked a question: a remembered normal image, of each task in turn, a defect that an operator
has labelled, or a synthetic one made on a normal image. The version that gives verdicts was asked such questions on
its own probation; what it judged before an operator called it a defect it has answered, too. A candidate is held where

* it rejects more of the remembered normal images than the promised rate and the tolerance together explain
  (P(X >= k), X ~ Bin(n, rate + tolerance), below 5 %), and more than the current version (McNemar 1947, one-sided,
  below 5 %; platform/gate.py), over all of them or over those of one task. An image that the current version was not
  asked was called normal by it or by one before it: it counts as accepted;
* it misses a larger share of the labelled, or of the synthetic, defects that both were asked, by more than the
  tolerance and clearly so (McNemar again).

Of the task at hand what is remembered is of late: each image takes the place of a random one with a chance of 1/8, so
that half of it is younger than 180 images. Of the others it stays as it was when they were left. Without that, a line
whose light has changed for good could not publish for as long as it had run before.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np

from ..methods.errors import StateError
from .binomial import at_least
from .gate import SIGNIFICANCE, mcnemar

NORMAL, DEFECT, SYNTHETIC = "normal", "defect", "synthetic"
NORMALS, LABELLED, MADE = 32, 32, 16  # normal images of each task, defects with a label, synthetic ones
FRESH = 8  # one in so many normal images is remembered
TASKS = 16  # the one not seen for longest goes
TOLERANCE = 0.05


@dataclass(frozen=True)
class Question:
    """An image of the log. number: its record's. kind: NORMAL, DEFECT or SYNTHETIC. task: its product."""

    number: int
    kind: str
    task: str = ""


Rejects = Mapping[Question, bool]  # what a version made of questions: whether it rejects


class Remembered:
    """Numbers of images to ask about. A function of what was offered, in order, and the seed."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._normal: dict[str, list[int]] = {}  # by task, that of the last image at the end
        self._labelled: dict[int, str] = {}  # number -> task, oldest first
        self._made: list[tuple[int, str]] = []  # number, task of normal images that get a defect
        self._offered = 0

    def normal(self, number: int, task: str = "") -> None:
        """The next normal image: now and then it is remembered."""
        rng = np.random.default_rng([self.seed, number])
        held = self._normal[task] = self._normal.pop(task, [])
        if len(self._normal) > TASKS:
            del self._normal[next(iter(self._normal))]
        _put(held, number, NORMALS, int(rng.integers(FRESH * NORMALS)))
        self._offered += 1
        _put(self._made, (number, task), MADE, int(rng.integers(self._offered)))  # Vitter 1985, algorithm R

    def defect(self, number: int, task: str = "") -> None:
        """An operator says that it is one."""
        self.drop(number)
        self._labelled[number] = task
        while len(self._labelled) > LABELLED:
            del self._labelled[next(iter(self._labelled))]

    def drop(self, number: int) -> None:
        """It is not what it was held to be."""
        for held in self._normal.values():
            held[:] = [one for one in held if one != number]
        self._made = [one for one in self._made if one[0] != number]
        self._labelled.pop(number, None)

    def forget(self, task: str) -> None:
        """Normal images of a task do not look like that any more."""
        self._normal.pop(task, None)
        self._made = [one for one in self._made if one[1] != task]

    def questions(self) -> Iterator[Question]:
        """All of them, of each task and each kind in turn."""
        groups = [[Question(n, NORMAL, task) for n in held] for task, held in self._normal.items()]
        groups.append([Question(n, DEFECT, task) for n, task in self._labelled.items()])
        groups.append([Question(n, SYNTHETIC, task) for n, task in self._made])
        return (one for turn in zip_longest(*groups) for one in turn if one is not None)

    def pack(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "normal": [[task, held] for task, held in self._normal.items()],
            "labelled": [[n, task] for n, task in self._labelled.items()],
            "made": [[n, task] for n, task in self._made],
            "offered": self._offered,
        }

    def unpack(self, plain: Mapping[str, Any]) -> None:
        """The reverse of `pack`. Raises StateError for anything else."""
        try:
            self._normal = {task: list(held) for task, held in plain["normal"]}
            self._labelled = dict(plain["labelled"])
            self._made = [(n, task) for n, task in plain["made"]]
            self._offered = plain["offered"]
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"not what a line remembers for its gate: {error}") from error


def held_for(candidate: Rejects, current: Rejects, rate: float, tolerance: float = TOLERANCE) -> tuple[str, ...]:
    """Why the candidate is held; empty where it may be published. current: empty where there is no version yet.

    rate: that the line promises, and tolerance: both shares of images.
    """
    reasons = _false_rejects(candidate, current, rate + tolerance)
    for kind in (DEFECT, SYNTHETIC):
        reasons += _missed(kind, candidate, current, tolerance)
    return tuple(reasons)


def packed(rejects: Rejects) -> list[list[Any]]:
    """Plain values."""
    return [[q.number, q.kind, q.task, rejected] for q, rejected in rejects.items()]


def unpacked(plain: Sequence[Sequence[Any]]) -> dict[Question, bool]:
    """The reverse of `packed`."""
    return {Question(number, kind, task): rejected for number, kind, task, rejected in plain}


def _put(held: list[Any], one: Any, most: int, place: int) -> None:
    if len(held) < most:
        held.append(one)
    elif place < most:
        held[place] = one


def _false_rejects(candidate: Rejects, current: Rejects, most: float) -> list[str]:
    by_task: dict[str, list[tuple[bool, bool]]] = {}
    for question, rejected in candidate.items():
        if question.kind == NORMAL:
            by_task.setdefault(question.task, []).append((rejected, current.get(question, False)))
    groups = {f" of task {task!r}" if task else "": found for task, found in by_task.items()}
    if len(groups) > 1:
        groups[" of all tasks"] = [one for found in by_task.values() for one in found]
    reasons = []
    for name, found in groups.items():
        ours, theirs = zip(*found, strict=True)
        chance = at_least(sum(ours), len(ours), most)
        if chance < SIGNIFICANCE and mcnemar(ours, theirs)[2] < SIGNIFICANCE:
            reasons.append(
                f"rejects {sum(ours)} of {len(ours)} remembered normal images{name}, where {most:.3g} is tolerated "
                f"and the current version rejects {sum(theirs)}"
            )
    return reasons


def _missed(kind: str, candidate: Rejects, current: Rejects, tolerance: float) -> list[str]:
    both = [question for question in candidate if question.kind == kind and question in current]
    ours, theirs = ([not version[question] for question in both] for version in (candidate, current))
    alone, _, chance = mcnemar(ours, theirs)
    if chance >= SIGNIFICANCE or (sum(ours) - sum(theirs)) / len(both) <= tolerance:
        return []
    name = "labelled" if kind == DEFECT else kind
    return [
        f"misses {sum(ours)} of {len(both)} {name} defects, {alone} of them alone; the current version {sum(theirs)}"
    ]
