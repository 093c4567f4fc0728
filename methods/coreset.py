"""A bounded coreset of whitened patches, learned in one pass, scored by nearest neighbour. everline's own."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .bank import Bank
from .detector import FeatureDetector, Learned, Scores, Traits
from .errors import ConfigError
from .moments import Moments, under
from .params import param
from .routing import Router, described

_GUARDED = tuple(range(1, 101))  # values of `guard` under which patches wait


@dataclass(kw_only=True, eq=False)
class Coreset(FeatureDetector):
    """Distance of each patch to the nearest of about `memory` patches of normal images, whitened.

    everline's own. It stands on PatchCore (Roth et al. 2022: a greedy k-center coreset of patches, nearest
    neighbour as the anomaly) and incremental clustering (Charikar et al. 1997: what lies within the radius of
    a center is covered, and the radius grows as centers are merged). Ours is the rest:

    * One pass: every patch of an image that the memory does not cover is a candidate; when the memory
      overflows by `slack`, greedy k-center cuts it back to `memory` rows and yields the next radius.
      Looking at every patch instead of a drawn 64 is worth 1 to 4 points of AUROC on real images.
    * Whitening by running exact moments, refreshed at images 1, 2, 4, 8, ...; the memory holds features as
      they came, and they are whitened anew then. Selection compares `sketch` random projections.
    * Positions: where parts are aligned, the mean of each position is subtracted first. `auto` does it when the
      position explains more than `aligned` of the features' variance, measured on what was learned.
    * A guard, because k-center loves outliers: an uncovered patch is kept only after `guard` later images
      showed one within the radius of it. Until then it waits, and the oldest that wait are dropped.

    `form` says what becomes of one product (`begin_task`) when the next is learned. With shared, all go into one
    bank and one whitening. With routed, each has a bank, a centre and a whitening of its own, and `memory` bounds
    the rows of all: the first image of the T-th task cuts every bank back to memory // T of them, and what waits
    then is dropped. A known task goes on with its bank. An image goes to the nearest prototype (`Router`), or where
    the caller says; `Scores.tasks` tells. Each image is scored by one bank: scores can be compared within a task
    only. Beside its rows a task costs 12 P C + 12 C^2 bytes for P positions and C channels (2.0 MB at 28 x 28 and
    176), which no parameter bounds; 1,000 rows are 1.0 MB.

    Cost at 28 x 28, 176 channels, one thread: 6 to 8 ms to learn an image (about 20 for the first tens, which
    are nearly all new) and 3 to 4 ms to score one, whatever the stream's length. State: 3.6 MB, fixed
    for shared.

    Does not work well where normal images have rare patches that never come again: the guard keeps these out
    (about one point of AUROC on magnetic tiles and boards; guard=0 for streams known to be clean). Defects that
    look the same again and again count as normal after `guard` images: with a tenth of the stream defective the
    guard saves up to half of what is lost without it. Moments see every patch: many defects blur the whitening.
    """

    name: ClassVar[str] = "coreset"
    traits: ClassVar[Traits] = Traits(memory="memory")

    memory: int = param(1000, "patch vectors kept", low=10, high=100_000, log=True, search=(100, 5000))
    slack: float = param(0.25, "share of the memory that may come on top before it is cut back", low=0.01, high=4)
    sketch: int = param(64, "dimensions of the random projection in which selection compares", low=2, high=1024)
    shrinkage: float = param(
        0.01, "share of the mean variance added to each before whitening",
        low=0, high=1, open_low=True, log=True, search=(0.001, 0.3),
    )  # fmt: skip
    positions: str = param(
        "auto", "subtract the mean of each position", choices=("auto", "on", "off"), search=("auto", "on", "off")
    )
    aligned: float = param(
        0.15, "share of variance explained by position above which auto does",
        low=0, high=1, search=(0.0, 0.5), when=("positions", ("auto",)),
    )  # fmt: skip
    guard: int = param(
        1, "later images that must look the same before a new patch is kept; 0: none", low=0, high=100, search=(0, 4)
    )
    waiting: int = param(
        512, "new patches that may wait",
        low=16, high=100_000, unit="patches", log=True, search=(128, 4096), when=("guard", _GUARDED),
    )  # fmt: skip
    newcomers: int = param(
        64, "patches of one image that may join those that wait",
        low=1, high=10_000, log=True, search=(16, 256), when=("guard", _GUARDED),
    )  # fmt: skip
    form: str = param(
        "shared",
        "what to keep of tasks: one bank for all, or one for each and the image's own is looked for",
        choices=("shared", "routed"),
    )

    @property
    def most_tasks(self) -> int | None:
        """A row of the memory for each, at least."""
        return self.memory if self.form == "routed" else None

    @property
    def infers_tasks(self) -> bool:
        """Of the forms, routed does."""
        return self.form == "routed"

    def _reset(self) -> None:
        self._shape = (0, 0, 0)  # C, h, w; until the first image fixes it
        self._banks: list[Bank] = []  # one for each task for routed, else one
        self._prototypes: list[Moments] = []  # for routed: of the descriptions of each task's images
        self._learning = 0  # the bank being learned
        self._router: Router | None = None  # made when scoring

    @property
    def explained(self) -> float:
        """Share of the variance that the position explains, of what is being learned; 0 before two images."""
        return self._banks[self._learning].explained if self._banks else 0.0

    def _learn(self, features: Tensor) -> Learned:
        if not self._banks:
            self._shape = (features.shape[1], features.shape[2], features.shape[3])
        self._same_shape(features)
        bank = self._turn(self._place(self.tasks.index(self.task)), features.device)
        admitted = dropped = 0
        for one in features:
            came, went = bank.take(one.flatten(1).T.contiguous())
            admitted, dropped = admitted + came, dropped + went
        if self.form == "routed":
            self._prototypes[self._learning].add(described(features)[None])
            self._router = None
        detail = {"admitted": admitted, "waiting": bank.waiting.used, "dropped": dropped, "radius": bank.radius}
        return Learned(images=len(features), kept=sum(one.memory.used for one in self._banks), detail=detail)

    def _score(self, features: Tensor) -> Scores:
        self._same_shape(features)
        if self.form == "shared":
            return self._score_as(features, 0)
        self._router = self._router or Router(self._prototypes)
        tasks = self._router.route(described(features))
        return replace(self._scored(features, tasks.tolist()), tasks=tasks)

    def _score_as(self, features: Tensor, task: int) -> Scores:
        self._same_shape(features)
        return self._scored(features, [self._place(task)] * len(features))

    def _scored(self, features: Tensor, places: list[int]) -> Scores:
        """Each image by the bank at its place."""
        gaps = [self._banks[at].distances(one.flatten(1).T) for one, at in zip(features, places, strict=True)]
        return self._finish(torch.stack(gaps).reshape(-1, *self._shape[1:]))

    def _place(self, task: int) -> int:
        """In `_banks`, of a place in `tasks`."""
        return task if self.form == "routed" else 0

    def _same_shape(self, features: Tensor) -> None:
        if tuple(features.shape[1:]) != self._shape:
            raise ConfigError(f"coreset: expected features {self._shape} as learned, got {tuple(features.shape[1:])}.")

    def _turn(self, place: int, device: torch.device) -> Bank:
        """The bank at this place, which is learned from now on; the others keep their share and wait for nothing."""
        if place == self._learning and self._banks:
            return self._banks[place]
        many = max(len(self._banks), place + 1)
        if many > self.memory:
            raise ConfigError(f"coreset: memory={self.memory} rows are not enough for {many} tasks; raise memory.")
        for at, bank in enumerate(self._banks):
            bank.bound(*self._bounds(at, many, learning=-1))
        if place == len(self._banks):
            self._banks.append(self._fresh(device))
            self._prototypes += [Moments(1, self._shape[0], device)] if self.form == "routed" else []
        self._banks[place].bound(*self._bounds(place, many, learning=place))
        self._learning = place
        return self._banks[place]

    def _fresh(self, device: torch.device) -> Bank:
        channels, height, width = self._shape
        return Bank(self, self._rng, height * width, channels, device)

    def _bounds(self, place: int, many: int, learning: int) -> tuple[int, int, int]:
        """Rows, spare rows and waiting ones of one of `many` banks. The one being learned has what is left over."""
        share, left = divmod(self.memory, many)
        if place != learning:
            return share, 0, 0
        return share + left, max(1, int(self.memory * self.slack)), self.waiting

    def _pack(self) -> dict[str, Tensor]:
        if not self._banks:
            return {}
        packed = {"grid": torch.tensor(self._shape[1:])}
        for place, bank in enumerate(self._banks):
            packed |= {f"{self._prefix(place)}{name}": tensor for name, tensor in bank.tensors().items()}
        for place, kind in enumerate(self._prototypes):
            packed |= {f"task.{place}.prototype.{name}": tensor for name, tensor in kind.tensors().items()}
        return packed | ({"learning": torch.tensor(self._learning)} if self.form == "routed" else {})

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        height, width = tensors["grid"].tolist()
        routed = self.form == "routed"
        many = len(self.tasks) if routed else 1
        self._learning = int(tensors["learning"]) if routed else 0
        if not 0 <= self._learning < many <= self.memory:
            raise ValueError(f"bank {self._learning} of {many} is being learned, with {self.memory} rows in all")
        for place in range(many):
            given = under(tensors, self._prefix(place))
            places, channels = given["sums"].shape
            if places != height * width or (place and channels != self._shape[0]):
                raise ValueError(f"sums {places} x {channels} do not fit a {height} x {width} grid")
            self._shape = (channels, height, width)
            self._banks.append(self._fresh(given["sums"].device))
            self._banks[place].bound(*self._bounds(place, many, self._learning))
            self._banks[place].load(given)
            if routed:
                self._prototypes.append(_prototype(under(given, "prototype."), channels))

    def _prefix(self, place: int) -> str:
        """What the names of a bank's tensors begin with."""
        return f"task.{place}." if self.form == "routed" else ""


def _prototype(tensors: dict[str, Tensor], channels: int) -> Moments:
    moments = Moments.of(tensors)
    if moments.total.shape != (1, channels):
        raise ValueError(f"a prototype must be (1, {channels}), got {tuple(moments.total.shape)}")
    return moments
