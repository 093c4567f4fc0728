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

import base64
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..methods.errors import ConfigError, Corrupt, UnknownName

Descriptor = NDArray[np.float32]
Mean = NDArray[np.float64]
MAX_CAPACITY = 100_000  # images: a decision looks at all of them
MAX_NAME = 1024  # characters of an id or a task
MAX_DESCRIPTOR = 2**16  # values
_COUNT = range(2**63)


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


def victim(policy: str, items: Sequence[Item], new: Item, seed: int, means: Mapping[str, Mean] | None = None) -> int:
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


class Selection:
    """What is held, and the counts and means by which the next decision is made. `take` alone changes it."""

    def __init__(self, capacity: int, policy: str, seed: int) -> None:
        """Raises ConfigError: `capacity` 1 to 100,000 images, `policy` one of POLICIES, `seed` 0 to 2^63 - 1."""
        if type(capacity) is not int or not 1 <= capacity <= MAX_CAPACITY:
            raise ConfigError(f"replay: capacity must be 1 to {MAX_CAPACITY} images, got {capacity!r}.")
        if policy not in POLICIES:
            raise UnknownName.among("replay", "policy", str(policy), POLICIES)
        if type(seed) is not int or seed not in _COUNT:
            raise ConfigError(f"replay: seed must be a whole number from 0 to 2^63 - 1, got {seed!r}.")
        self.capacity, self.policy, self.seed = capacity, policy, seed
        self.items: list[Item] = []  # in the order in which they came
        self.offered: Counter[str] = Counter()  # images by task
        self.means: dict[str, Mean] = {}  # of all descriptors offered, by task; for herding only

    def item(self, id: str, task: str, size: int, score: float | None, descriptor: Descriptor | None) -> Item:
        """The next image of the stream. Raises ConfigError where the policy lacks what it decides by."""
        if len(id) > MAX_NAME or len(task) > MAX_NAME:
            raise ConfigError(f"replay: an id or a task has at most {MAX_NAME} characters, got {id[:40]!r}...")
        kept = self._checked(id, descriptor) if self.policy == "herding" else None
        plain = None if score is None else float(score)
        new = Item(self.offered.total(), self.offered[task], task, id, size, plain, kept)
        if self.policy == "hardest":
            _score(new)
        return new

    def goes(self, new: Item) -> int | None:
        """Place of the image that has to go; the place behind the last for `new` itself; None where there is room."""
        if len(self.items) < self.capacity:
            return None
        means = {**self.means, new.task: self._mean_with(new)} if self.policy == "herding" else {}
        return victim(self.policy, self.items, new, self.seed, means)

    def take(self, new: Item, goes: int | None) -> None:
        """Carries out what `goes` said; `new` has its `seq` by now where it stays."""
        if new.descriptor is not None:
            self.means[new.task] = self._mean_with(new)
        self.offered[new.task] += 1
        if goes != len(self.items) or goes is None:
            self.items = [item for place, item in enumerate(self.items) if place != goes] + [new]

    def pack(self) -> dict[str, Any]:
        """Plain values from which `unpack` goes on bit for bit; arrays as base64 of little-endian numbers."""
        items = [
            [i.seq, i.number, i.number_in_task, i.task, i.id, i.bytes, i.score, _text(i.descriptor, "<f4")]
            for i in self.items
        ]
        means = {task: _text(mean, "<f8") for task, mean in self.means.items()}
        plain = {"capacity": self.capacity, "policy": self.policy, "seed": self.seed}
        return {**plain, "offered": dict(self.offered), "means": means, "items": items}

    @classmethod
    def unpack(cls, plain: Mapping[str, Any]) -> Self:
        """The reverse of `pack`. Raises Corrupt for what no `pack` gave."""
        try:
            self = cls(plain["capacity"], plain["policy"], plain["seed"])
            self.offered = Counter(plain["offered"])
            self.means = {task: _array(text, "<f8") for task, text in plain["means"].items()}
            self.items = [_item(*row) for row in plain["items"]]
            self._check()
        except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
            raise Corrupt(f"replay: not a state of the memory: {error}") from error
        return self

    def _check(self) -> None:
        """Raises ValueError where numbers contradict each other."""
        numbers, held = [item.number for item in self.items], Counter(item.task for item in self.items)
        if not all(type(task) is str and type(n) is int and n in _COUNT for task, n in self.offered.items()):
            raise ValueError("a count is out of range")
        if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= self.offered.total()):
            raise ValueError("the images are out of order")
        if len({item.seq for item in self.items}) < len(self.items) or len(self.items) > self.capacity:
            raise ValueError("an image is held twice, or too many are")
        if any(count > self.offered[task] for task, count in held.items()):
            raise ValueError("more images are held than were offered")
        sizes = {0 if item.descriptor is None else item.descriptor.size for item in self.items}
        sizes |= {mean.size for mean in self.means.values()}
        herds = self.policy == "herding"
        if set(self.means) != (set(self.offered) if herds else set()):
            raise ValueError("the means are not those of the tasks")
        if len(sizes) > 1 or (sizes and (0 in sizes) == herds):
            raise ValueError("the descriptors do not fit each other or the policy")

    def _checked(self, id: str, descriptor: Descriptor | None) -> Descriptor:
        """A copy, as what the memory holds must not change. Raises ConfigError."""
        if descriptor is None:
            raise ConfigError(f"herding: image {id!r} has no descriptor; offer one with each image.")
        known = next((mean.size for mean in self.means.values()), None)
        kept = np.array(descriptor, dtype=np.float32)
        if kept.ndim != 1 or not 1 <= kept.size <= MAX_DESCRIPTOR or kept.size != (known or kept.size):
            raise ConfigError(
                f"herding: a descriptor has one axis and {known or f'1 to {MAX_DESCRIPTOR}'} values, "
                f"that of image {id!r} has the shape {kept.shape}."
            )
        if not np.isfinite(kept).all():
            raise ConfigError(f"herding: the descriptor of image {id!r} is not finite.")
        return kept

    def _mean_with(self, new: Item) -> Mean:
        """The running mean of the task, float64, with the new descriptor in it."""
        before = self.means.get(new.task)
        row = _descriptor(new).astype(np.float64)
        return row if before is None else before + (row - before) / (new.number_in_task + 1)


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


def _item(
    seq: int, number: int, in_task: int, task: str, id: str, size: int, score: float | None, descriptor: str | None
) -> Item:
    """A row of `pack`. Raises ValueError."""
    if not all(type(n) is int and n in _COUNT for n in (seq, number, in_task, size)):
        raise ValueError("a number is out of range")
    if type(task) is not str or type(id) is not str or max(len(task), len(id)) > MAX_NAME:
        raise ValueError("a name is none")
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
        raise ValueError("a score is none")
    return Item(number, in_task, task, id, size, score, None if descriptor is None else _array(descriptor, "<f4"), seq)


def _text(array: NDArray | None, kind: str) -> str | None:
    return None if array is None else base64.b64encode(array.astype(kind).tobytes()).decode()


def _array(text: str, kind: str) -> NDArray:
    """Raises ValueError for what is not base64 of finite numbers."""
    found = np.frombuffer(base64.b64decode(text, validate=True), kind).astype(np.dtype(kind).newbyteorder("="))
    if not 1 <= found.size <= MAX_DESCRIPTOR or not np.isfinite(found).all():
        raise ValueError("an array is none")
    return found
