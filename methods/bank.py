"""A bounded bank of whitened patches of normal images: the memory of `Coreset`, which says what it is good for.

Letters: P positions of the grid, C channels, N rows, s dimensions of the sketch.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from .moments import Moments, gridded, under, whitening
from .neighbours import greedy_kcenter, nearest

_SETTLED = 8  # images before the mean of a position is trusted: one of fewer says little
_USUAL = 0.9  # share of an ordinary image's patches that counts as usual
_RECENT = 16  # images whose distances say what is ordinary: their median is safe from a few defective ones


class Settings(Protocol):
    """What a bank goes by; `Coreset` has these as its parameters."""

    seed: int
    sketch: int
    shrinkage: float
    positions: str
    aligned: float
    guard: int
    waiting: int
    newcomers: int


class Pool:
    """A table of patches with a fixed number of rows, the first `used` of them taken, oldest first.

    Columns: `raw` float32 (N, C), features as they came; `near` float32 (N, s), whitened and projected, which
    is what selection compares; `place` int64 (N,), position on the grid; `votes` int64 (N,), later images that
    look the same there. Rows that are not taken are zero, so that a state's bytes never change.
    """

    def __init__(self, rows: int, channels: int, sketch: int, device: torch.device) -> None:
        self.used = 0
        self.columns = {
            "raw": torch.zeros(rows, channels, device=device),
            "near": torch.zeros(rows, sketch, device=device),
            "place": torch.zeros(rows, dtype=torch.int64, device=device),
            "votes": torch.zeros(rows, dtype=torch.int64, device=device),
        }

    def __getitem__(self, name: str) -> Tensor:
        """The taken rows of a column; writing to it writes to the table."""
        return self.columns[name][: self.used]

    @property
    def room(self) -> int:
        """Rows that may still be appended."""
        return len(self.columns["place"]) - self.used

    def append(self, rows: dict[str, Tensor]) -> None:
        """Takes rows in; there must be room."""
        count = len(rows["place"])
        for name, column in self.columns.items():
            column[self.used : self.used + count] = rows[name]
        self.used += count

    def pick(self, which: Tensor | slice) -> dict[str, Tensor]:
        """Copies of the chosen rows."""
        return {name: self[name][which].clone() for name in self.columns}

    def keep(self, which: Tensor | slice) -> None:
        """Drops all rows but the chosen ones."""
        kept = self.pick(which)
        for column in self.columns.values():
            column.zero_()
        self.used = 0
        self.append(kept)

    def resize(self, rows: int) -> None:
        """Gives it another number of rows, into which the taken ones must fit."""
        taken = self.pick(slice(None))
        self.columns = {name: column.new_zeros(rows, *column.shape[1:]) for name, column in self.columns.items()}
        self.used = 0
        self.append(taken)

    def load(self, columns: dict[str, Tensor], used: int, places: int) -> None:
        """Takes over columns of the right shapes. Raises ValueError where they refer to what is not there."""
        place = columns["place"]
        if not 0 <= used <= len(place) or not bool(((place >= 0) & (place < places)).all()):
            raise ValueError("a table refers to rows or positions that are not there")
        self.columns, self.used = {name: columns[name] for name in self.columns}, used


class Bank:
    """Rows that cover what was learned, those that wait to become such, and the space in which they are compared."""

    def __init__(self, by: Settings, rng: torch.Generator, places: int, channels: int, device: torch.device) -> None:
        """An empty one, which may hold nothing until `bound` says how much. rng: its only source of chance."""
        self._by, self._rng = by, rng
        self._moments = Moments(1, channels, device)  # of all patches together
        self._sums = torch.zeros(places, channels, dtype=torch.float64, device=device)  # of each position
        self.centre = torch.zeros(places, channels, device=device)  # (P, C), subtracted before whitening
        self.whiten = torch.eye(channels, device=device)  # (C, C)
        self._rows = self._spare = 0
        self.memory = Pool(0, channels, by.sketch, device)
        self.waiting = Pool(0, channels, by.sketch, device)
        self.radius = 0.0  # what lies this near to the memory is covered; 0 until the first cut
        self._recent = torch.zeros(_RECENT, device=device)  # see `_ordinary`; 0: none yet
        self._white: tuple[Tensor, Tensor] | None = None  # whitened memory and whitening, made when scoring
        self._aim()

    def bound(self, rows: int, spare: int, waiting: int) -> None:
        """How many rows it may hold after a cut, on top before one, and waiting. Cuts back what is too much.

        waiting: 0 ends its learning for now; those that wait are dropped, but taken while nothing is confirmed.
        """
        if not waiting and not self.memory.used:
            self.memory.resize(self.waiting.used)
            self.memory.append(self.waiting.pick(slice(None)))
        self._rows, self._spare = rows, spare
        if self.memory.used > rows:
            self._cut()
        self.memory.resize(rows + spare)
        if not waiting:
            self.waiting.keep(slice(0))
        self.waiting.resize(waiting)
        self._white = None

    @property
    def images(self) -> int:
        """Images learned."""
        return self._moments.count // len(self._sums)

    @property
    def explained(self) -> float:
        """Share of the features' variance that the position explains, in (-inf, 1]; 0 before two images."""
        if self.images < 2:
            return 0.0
        return 1 - float(self._within().trace() / self._moments.covariance(1)[0].trace())

    def distances(self, patches: Tensor) -> Tensor:
        """Whitened distance of an image's patches (P, C) to the nearest row: float32 (P,)."""
        if self._white is None:
            pool = self.memory if self.memory.used else self.waiting  # while nothing has been confirmed
            turn = self.whiten.T.contiguous()
            self._white = (pool["raw"] - self.centre[pool["place"]]) @ turn, turn
        rows, turn = self._white
        return nearest((patches - self.centre) @ turn, rows)

    def take(self, patches: Tensor) -> tuple[int, int]:
        """One image, (P, C). Returns how many patches were admitted to the memory and how many were dropped."""
        self._white = None
        self._moments.add(patches[None])
        self._sums += gridded(patches)
        if self.images & (self.images - 1) == 0:
            self.refresh()
        near = (patches - self.centre) @ self.project
        known = self.memory if self.memory.used else self.waiting
        gaps = nearest(near, known["near"])
        # no more than the spare rows, so that even an image that is all new costs no more than a cut or two
        fresh = self._draw((gaps > self.radius).nonzero()[:, 0], self._spare)
        if not self._by.guard:
            return self._admit(_rows(patches, near, fresh)), 0
        radius = max(self.radius, self._ordinary(gaps))
        admitted = self._confirm(near, radius)
        if self.memory.used:
            admitted += self._admit(_rows(patches, near, fresh[gaps[fresh] <= radius]))
            fresh = fresh[gaps[fresh] > radius]
        # at the start so many that `guard` images find room beside one another
        most = self._by.newcomers if self.memory.used else max(1, self._by.waiting // (self._by.guard + 1))
        return admitted, self._wait(_rows(patches, near, self._draw(fresh, min(most, self._by.waiting))))

    def _ordinary(self, gaps: Tensor) -> float:
        """The distance below which most patches of most recent images lie; notes this image's."""
        if bool(gaps.isinf().any()):
            return 0.0  # the very first image has nothing to be compared with
        self._recent = torch.cat([self._recent[1:], torch.quantile(gaps, _USUAL)[None]])
        known = self._recent[self._recent > 0]
        return float(known.median()) if len(known) else 0.0

    def _confirm(self, near: Tensor, radius: float) -> int:
        """Those that wait get a vote where this image looks the same; enough votes admit them."""
        waiting = self.waiting
        waiting["votes"].add_(nearest(waiting["near"], near) <= radius)
        ready = waiting["votes"] >= self._by.guard
        if not bool(ready.any()):
            return 0
        rows = waiting.pick(ready)
        waiting.keep(~ready)
        return self._admit(rows)

    def _draw(self, fresh: Tensor, most: int) -> Tensor:
        """A random few, in the order of the grid: neighbours on it look alike."""
        if len(fresh) <= most:
            return fresh
        drawn = torch.randperm(len(fresh), generator=self._rng)[:most].sort().values
        return fresh[drawn.to(fresh.device)]

    def _wait(self, rows: dict[str, Tensor]) -> int:
        """Lets rows wait; returns how many of the oldest had to go."""
        over = max(0, len(rows["place"]) - self.waiting.room)
        if over:
            self.waiting.keep(slice(over, None))
        self.waiting.append(rows)
        return over

    def _admit(self, rows: dict[str, Tensor]) -> int:
        """Takes rows into the memory, cutting it back when there is no more room."""
        count, start = len(rows["place"]), 0
        while start < count:
            if not self.memory.room:
                self._cut()
            stop = start + self.memory.room
            self.memory.append({name: column[start:stop] for name, column in rows.items()})
            start = stop
        return count

    def _cut(self) -> None:
        """Greedy k-center back to the rows allowed; the radius is known only where at least one row goes."""
        which, self.radius = greedy_kcenter(self.memory["near"], self._rows)
        self.memory.keep(which.to(self.whiten.device))

    def _within(self) -> Tensor:
        """Covariance (C, C) of the patches about the mean of their position, pooled; unbiased."""
        moments, places = self._moments, len(self._sums)
        offset = self._sums / max(self.images, 1) - moments.mean()  # (P, C)
        scatter = moments.covariance()[0] * moments.count - self.images * (offset.T @ offset)
        return scatter / max(moments.count - places, 1)

    def refresh(self) -> None:
        """Takes centre and whitening from the moments as they are now, and compares all rows anew."""
        aligned = self._by.positions == "on" or (self._by.positions == "auto" and self.explained > self._by.aligned)
        aligned = aligned and self.images >= _SETTLED
        mean = self._sums / self.images if aligned else self._moments.mean().expand_as(self._sums)
        covariance = self._within() if aligned else self._moments.covariance(1)[0]
        self.centre = mean.float().contiguous()
        whiten = whitening(covariance, self._by.shrinkage).float()
        self.whiten = whiten.contiguous()  # as it is in a state: on a GPU bits depend on the layout
        self._recent.zero_()  # distances in another space
        self._aim()
        for pool in (self.memory, self.waiting):
            pool["near"].copy_((pool["raw"] - self.centre[pool["place"]]) @ self.project)
        if self.memory.used > self._rows:
            self._cut()

    def _aim(self) -> None:
        """Whitening and random projection as one matrix (C, s); the projection comes from the seed alone."""
        own = torch.Generator().manual_seed(self._by.seed)
        drawn = torch.randn(self._by.sketch, len(self.whiten), generator=own) / self._by.sketch**0.5
        self.project = (drawn.to(self.whiten.device) @ self.whiten).T.contiguous()

    def tensors(self) -> dict[str, Tensor]:
        """For a state; nothing of a waiting table without rows."""
        packed = {
            "used": torch.tensor([self.memory.used, self.waiting.used]),
            "radius": torch.tensor(self.radius, dtype=torch.float64),
            "recent": self._recent,
            "sums": self._sums,
            "centre": self.centre,
            "whiten": self.whiten,
        }
        packed |= {f"moments.{name}": tensor for name, tensor in self._moments.tensors().items()}
        packed |= {f"memory.{name}": column for name, column in self.memory.columns.items()}
        waits = self.waiting.columns if self.waiting.room + self.waiting.used else {}
        return packed | {f"waiting.{name}": column for name, column in waits.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The reverse, into a bank of the same bounds. Raises KeyError or ValueError for missing or misshapen ones."""
        expected = self.tensors()
        for name, mine in expected.items():
            if tensors[name].shape != mine.shape or tensors[name].dtype != mine.dtype:
                raise ValueError(f"{name} must be {mine.dtype} {tuple(mine.shape)}")
        self._moments = Moments.of(under(tensors, "moments."))
        self._sums, self.centre, self.whiten = tensors["sums"], tensors["centre"], tensors["whiten"]
        self._recent, self.radius = tensors["recent"], float(tensors["radius"])
        memory, waiting = tensors["used"].tolist()
        self.memory.load(under(tensors, "memory."), memory, len(self._sums))
        if "waiting.place" in expected:
            self.waiting.load(under(tensors, "waiting."), waiting, len(self._sums))
        self._aim()


def _rows(patches: Tensor, near: Tensor, which: Tensor) -> dict[str, Tensor]:
    """Columns of a `Pool` for the chosen patches of one image."""
    return {"raw": patches[which], "near": near[which], "place": which, "votes": torch.zeros_like(which)}
