"""Which image has to go when a bounded memory is full. Pure: no disk, no clock, and no generator that has a state.

Every decision follows from the images that are held, the new one and (seed, number of the new one), by a generator
made for it alone, `np.random.default_rng([seed, number])`. So a stream that is offered again gives the same memory.

* reservoir: each image offered so far is held with equal probability (Vitter 1985, algorithm R).
* balanced: equal shares for the tasks, a reservoir within each (after Chrysakis & Moens 2020, class-balancing
  reservoir sampling). A task that is two or more short of the largest takes a place of a largest one; otherwise its
  images compete among themselves. Once every task has offered enough, shares differ by at most one, and of each task
  every image offered is held with equal probability. With more tasks than places the first ones keep theirs.
* herding: shares as in balanced; the images of a task whose mean is nearest to the mean of all that it offered stay.
  This is our streaming form of iCaRL's exemplars (Rebuffi et al. 2017, algorithm 4), which sees a whole class before
  it chooses; ours drops one at a time, and what has been dropped never comes back.
* hardest: shares as in balanced; the lowest score of a task goes. Scores of different tasks do not compare. It keeps
  what a detector finds strangest, so mislabelled and defective images gather in it: offer only what was admitted.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..methods.errors import ConfigError

Descriptor = NDArray[np.float32]
Mean = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Item:
    """What is known of one image without its bytes."""

    number: int  # how many images were offered before it
    number_in_task: int  # ... of its task
    task: str
    id: str
    bytes: int  # of the encoded image
    score: float | None = None
    descriptor: Descriptor | None = field(default=None, compare=False)  # (d,); held only where the policy needs it
    seq: int = -1  # where it is stored


def victim(
    policy: str, items: Sequence[Item], new: Item, seed: int, means: Mapping[str, Mean] | None = None
) -> int:
    """Place of the image that has to go, among `items` (in the order in which they came, not empty) and then `new`.

    means: of all descriptors offered of a task, `new` among them; for herding only.
    """
    return _POLICIES[policy](items, new, seed, means or {})


def reservoir(items: Sequence[Item], new: Item, seed: int, _: Mapping[str, Mean]) -> int:
    """Uniform over everything offered."""
    drawn = int(_chance(seed, new).integers(new.number + 1))
    return min(drawn, len(items))


def balanced(items: Sequence[Item], new: Item, seed: int, _: Mapping[str, Mean]) -> int:
    """Equal shares, uniform over what each task offered."""
    chance = _chance(seed, new)
    task = _giver(items, new, chance)
    places = [place for place, item in enumerate(items) if item.task == task]
    drawn = int(chance.integers(new.number_in_task + 1 if task == new.task else len(places)))
    return places[drawn] if drawn < len(places) else len(items)


def herding(items: Sequence[Item], new: Item, seed: int, means: Mapping[str, Mean]) -> int:
    """Equal shares; the one goes without which the task's mean is nearest to that of all it offered.

    With n candidates of sum S and the mean m, the rest without x has the mean (S - x) / (n - 1): the x to drop is the
    one nearest to S - (n - 1) m. Takes O(n d) time.
    """
    places, candidates = _candidates(items, new, seed)
    held = np.stack([_descriptor(item) for item in candidates]).astype(np.float64)
    target = held.sum(axis=0) - (len(held) - 1) * means[candidates[0].task]
    return places[int(np.square(held - target).sum(axis=1).argmin())]


def hardest(items: Sequence[Item], new: Item, seed: int, _: Mapping[str, Mean]) -> int:
    """Equal shares; the lowest score goes, and of equal ones the newest."""
    places, candidates = _candidates(items, new, seed)
    return min(zip(places, candidates, strict=True), key=lambda pair: (_score(pair[1]), -pair[0]))[0]


_POLICIES: dict[str, Callable[[Sequence[Item], Item, int, Mapping[str, Mean]], int]] = {
    "reservoir": reservoir,
    "balanced": balanced,
    "herding": herding,
    "hardest": hardest,
}
POLICIES = tuple(_POLICIES)


def _chance(seed: int, new: Item) -> np.random.Generator:
    return np.random.default_rng([seed, new.number])


def _giver(items: Sequence[Item], new: Item, chance: np.random.Generator) -> str:
    """The task that has to give one up; one of the largest at random, or that of the new image.

    A difference of one is left alone: to swap it to and fro would favour what came last. So a task that has once had
    to give something up never grows again, which keeps the reservoir within it uniform.
    """
    held = Counter(item.task for item in items)
    most = max(held.values())
    if held[new.task] > most - 2:
        return new.task
    largest = [task for task, count in held.items() if count == most]
    return largest[int(chance.integers(len(largest)))]


def _candidates(items: Sequence[Item], new: Item, seed: int) -> tuple[list[int], list[Item]]:
    """Places and images of the task that has to give one up; `new` among them where it is its own."""
    task = _giver(items, new, _chance(seed, new))
    places = [place for place, item in enumerate([*items, new]) if item.task == task]
    return places, [items[place] if place < len(items) else new for place in places]


def _descriptor(item: Item) -> Descriptor:
    if item.descriptor is None:
        raise ConfigError(f"herding: image {item.id!r} has no descriptor; offer one with each image.")
    return item.descriptor


def _score(item: Item) -> float:
    if item.score is None:
        raise ConfigError(f"hardest: image {item.id!r} has no score; offer one with each image.")
    return item.score
