"""The gate of a line's own candidates: a pure judgement on scores, which images to ask, and why one is held.

Candidate and current version are asked the same images. A candidate is held where

* it rejects more of the remembered normal images than the promised rate and the tolerance together explain
  (P(X >= k), X ~ Bin(n, rate + tolerance), below 5 %), over all of them and over those of each task by itself; the
  current version is no measure here, as it was its own verdict that called most of them normal;
* it misses a larger share of the labelled, or of the synthetic, defects than the current version, by more than the
  tolerance and clearly so (McNemar, one-sided, below 5 %; platform/gate.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from ..methods.errors import ConfigError
from .gate import SIGNIFICANCE, mcnemar

NORMAL, DEFECT, SYNTHETIC = "normal", "defect", "synthetic"
NEWEST, RESERVOIR = 64, 64  # remembered normal images that are asked
TOLERANCE = 0.05


@dataclass(frozen=True)
class Question:
    """An image that both are asked. number: its record's. kind: NORMAL, DEFECT or SYNTHETIC. task: its product."""

    number: int
    kind: str
    task: str = ""


@dataclass(frozen=True)
class Answers:
    """A version's scores of the questions, in their order, and its threshold; what is not at most that is rejected."""

    scores: tuple[float, ...]
    threshold: float

    def rejects(self) -> list[bool]:
        """Which of them are above the threshold."""
        return [not score <= self.threshold for score in self.scores]


class Remembered:
    """Numbers of normal images: the newest 64, and a reservoir of 64 of each task before them.

    Pure: what is held is a function of what was offered, in order, and the seed.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._newest: list[Question] = []
        self._older: dict[str, list[Question]] = {}
        self._offered: dict[str, int] = {}

    def offer(self, number: int, task: str = "") -> None:
        """The next normal image."""
        self._newest.append(Question(number, NORMAL, task))
        if len(self._newest) > NEWEST:
            self._age(self._newest.pop(0))

    def drop(self, number: int) -> None:
        """It is not normal after all."""
        for held in (self._newest, *self._older.values()):
            held[:] = [one for one in held if one.number != number]

    @property
    def questions(self) -> tuple[Question, ...]:
        """All that are held, by number."""
        held = [one for older in self._older.values() for one in older]
        return tuple(sorted([*held, *self._newest], key=lambda one: one.number))

    def _age(self, old: Question) -> None:
        """Vitter 1985, algorithm R; the chance is of (seed, number) alone."""
        held = self._older.setdefault(old.task, [])
        offered = self._offered[old.task] = self._offered.get(old.task, 0) + 1
        if len(held) < RESERVOIR:
            held.append(old)
        elif (place := int(np.random.default_rng([self.seed, old.number]).integers(offered))) < len(held):
            held[place] = old


def held_for(
    questions: Sequence[Question],
    candidate: Answers,
    current: Answers | None,
    rate: float,
    tolerance: float = TOLERANCE,
) -> tuple[str, ...]:
    """Why the candidate is held; empty where it may be published. current: None where there is no version yet.

    rate: that the line promises, and tolerance: both shares of images. Raises ConfigError for answers that are not to
    these questions.
    """
    if any(len(one.scores) != len(questions) for one in (candidate, current) if one is not None):
        raise ConfigError("gate: both versions must have been asked the same images.")
    theirs = None if current is None else current.rejects()
    reasons = _false_rejects(questions, candidate.rejects(), rate + tolerance)
    if theirs is not None:
        for kind in (DEFECT, SYNTHETIC):
            reasons += _missed(kind, questions, candidate.rejects(), theirs, tolerance)
    return tuple(reasons)


def _false_rejects(questions: Sequence[Question], rejects: Sequence[bool], most: float) -> list[str]:
    by_task: dict[str, list[bool]] = {}
    for question, rejected in zip(questions, rejects, strict=True):
        if question.kind == NORMAL:
            by_task.setdefault(question.task, []).append(rejected)
    groups = {f"of task {task!r} " if task else "": found for task, found in by_task.items()}
    if len(groups) > 1:
        groups["of all tasks "] = [one for found in by_task.values() for one in found]
    reasons = []
    for name, found in groups.items():
        k, n = sum(found), len(found)
        p = float(binomtest(k, n, most, alternative="greater").pvalue)
        if p < SIGNIFICANCE:
            reasons.append(
                f"rejects {k} of {n} remembered normal images {name}where {most:.3g} is tolerated (p = {p:.2g})"
            )
    return reasons


def _missed(
    kind: str, questions: Sequence[Question], ours: Sequence[bool], theirs: Sequence[bool], tolerance: float
) -> list[str]:
    places = [place for place, question in enumerate(questions) if question.kind == kind]
    if not places:
        return []
    mine, other = ([not found[place] for place in places] for found in (ours, theirs))
    alone, _, p = mcnemar(mine, other)
    if p >= SIGNIFICANCE or (sum(mine) - sum(other)) / len(places) <= tolerance:
        return []
    name = "labelled" if kind == DEFECT else kind
    return [f"misses {sum(mine)} of {len(places)} {name} defects, the current {sum(other)}; {alone} it misses alone "
            f"(p = {p:.2g})"]  # fmt: skip
