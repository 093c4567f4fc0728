"""In which order the images of several tasks come: steps, in each of which a task or a block of tasks is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...methods.errors import ConfigError, DataError
from ..data.datasets import Task

Shot = tuple[int, Path]  # the task's place among the tasks given, the image


@dataclass(frozen=True)
class Step:
    """`tasks`: places of those learned in it. `images`: in the order in which they come the first time."""

    tasks: tuple[int, ...]
    images: tuple[Shot, ...]


def order_of(words: str, count: int, seed: int) -> list[int]:
    """The places of `count` tasks in the order of visits, from `given`, `shuffled` (by the seed) or `0,2,1`.

    A task may come again. Raises ConfigError for anything else, and for a task that never comes.
    """
    if words == "given":
        return list(range(count))
    if words == "shuffled":
        return np.random.default_rng([seed, 2]).permutation(count).tolist()
    try:
        order = [int(word) for word in words.split(",")]
    except ValueError:
        raise ConfigError(f"--order is given, shuffled, or places such as 0,2,1; got {words!r}.") from None
    strange = [place for place in order if not 0 <= place < count]
    if strange:
        raise ConfigError(f"--order: there is no task {strange[0]}; {count} tasks are given, 0 to {count - 1}.")
    missing = sorted(set(range(count)) - set(order))
    if missing:
        raise ConfigError(f"--order: task {missing[0]} never comes; each of the {count} tasks must.")
    twice = [a for a, b in pairwise(order) if a == b]
    if twice:
        raise ConfigError(f"--order: task {twice[0]} comes twice in a row; that is no return.")
    return order


def steps_of(tasks: Sequence[Task], order: Sequence[int], block: int, blend: float, seed: int) -> list[Step]:
    """The steps of a sequence; everything drawn is drawn by the seed.

    A task that comes n times shows another n-th of its images each time. block: visits in a step, their images mixed.
    blend: share of a step's images that is mixed with its neighbour's.
    Raises DataError where a task has fewer images than visits.
    """
    dealt = {place: _dealt(tasks[place], place, list(order).count(place), seed) for place in set(order)}
    visits = [(place, dealt[place].pop(0)) for place in order]
    steps = []
    for start in range(0, len(visits), block):
        together = visits[start : start + block]
        images = [(place, path) for place, paths in together for path in paths]
        if len(together) > 1:
            images = _shuffled(images, [seed, 3, start])
        steps.append(Step(tuple(dict.fromkeys(place for place, _ in together)), tuple(images)))
    return _blended(steps, blend, seed) if blend else steps


def first_steps(steps: Sequence[Step]) -> dict[int, int]:
    """For each task's place, in the order learned, the step that learns it first."""
    found: dict[int, int] = {}
    for number, step in enumerate(steps):
        for place in step.tasks:
            found.setdefault(place, number)
    return found


def epoch_of(images: Sequence[Shot], epoch: int, seed: int, step: int) -> list[Shot]:
    """The images in the order of an epoch: the first time as they come, then shuffled."""
    return _shuffled(images, [seed, 4, step, epoch]) if epoch else list(images)


def _dealt(task: Task, place: int, visits: int, seed: int) -> list[list[Path]]:
    if len(task.train) < visits:
        raise DataError(f"{task.name}: {len(task.train)} images to learn are too few for {visits} visits.")
    drawn = np.random.default_rng([seed, 5, place]).permutation(len(task.train))
    return [[task.train[index] for index in part] for part in np.array_split(drawn, visits)]


def _blended(steps: Sequence[Step], blend: float, seed: int) -> list[Step]:
    """The last of each step's images and the first of the next one's, shuffled together; lengths stay."""
    images = [list(step.images) for step in steps]
    for n, (before, after) in enumerate(pairwise(images)):
        tail, head = round(blend * len(before)), round(blend * len(after))
        mixed = _shuffled(before[len(before) - tail :] + after[:head], [seed, 6, n])
        before[len(before) - tail :], after[:head] = mixed[:tail], mixed[tail:]
    return [Step(step.tasks, tuple(own)) for step, own in zip(steps, images, strict=True)]


def _shuffled(images: Sequence[Shot], numbers: Sequence[int]) -> list[Shot]:
    return [images[index] for index in np.random.default_rng(list(numbers)).permutation(len(images))]
