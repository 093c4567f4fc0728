"""A bounded coreset of whitened patches, learned in one pass, scored by nearest neighbour. everline's own."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .detector import FeatureDetector, Learned, Scores, Traits
from .errors import ConfigError
from .moments import Moments, gridded, whitening
from .neighbours import greedy_kcenter, nearest
from .params import param

_SETTLED = 8  # images before the mean of a position is trusted: one of fewer says little
_USUAL = 0.9  # share of an ordinary image's patches that counts as usual
_RECENT = 16  # images whose distances say what is ordinary: their median is safe from a few defective ones


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

    Cost at 28 x 28, 176 channels, one thread: 6 to 8 ms to learn an image (about 20 for the first tens, which
    are nearly all new) and 3 to 4 ms to score one, whatever the stream's length. State: 3.6 MB, fixed.

    Does not work well where normal images have rare patches that never come again: the guard keeps these out
    (about one point of AUROC on magnetic tiles and boards; guard=0 for streams known to be clean). Defects that
    look the same again and again count as normal after `guard` images: with a tenth of the stream defective the
    guard saves up to half of what is lost without it. Moments see every patch: many defects blur the whitening.
    """

    name: ClassVar[str] = "coreset"
    traits: ClassVar[Traits] = Traits()

    memory: int = param(1000, "patch vectors kept", low=10, high=100_000, log=True)
    slack: float = param(0.25, "share of the memory that may come on top before it is cut back", low=0.01, high=4)
    sketch: int = param(64, "dimensions of the random projection in which selection compares", low=2, high=1024)
    shrinkage: float = param(
        0.01, "share of the mean variance added to each before whitening", low=0, high=1, open_low=True, log=True
    )
    positions: str = param("auto", "subtract the mean of each position", choices=("auto", "on", "off"))
    aligned: float = param(0.15, "share of variance explained by position above which auto does", low=0, high=1)
    guard: int = param(1, "later images that must look the same before a new patch is kept; 0: none", low=0, high=100)
    waiting: int = param(512, "new patches that may wait", low=16, high=100_000, unit="patches", log=True)
    newcomers: int = param(64, "patches of one image that may join those that wait", low=1, high=10_000)

    def _reset(self) -> None:
        self._grid = (0, 0)  # until the first image fixes it
        self._bank: tuple[Tensor, Tensor] | None = None  # whitened memory and whitening, made when scoring

    @property
    def explained(self) -> float:
        """Share of the features' variance that the position explains, in (-inf, 1]; 0 before two images."""
        images = self._images
        return 1 - float(self._within().trace() / self._moments.covariance(1)[0].trace()) if images > 1 else 0.0

    def _learn(self, features: Tensor) -> Learned:
        if self._grid == (0, 0):
            self._open(features)
        self._same_shape(features)
        admitted = dropped = 0
        for one in features:
            came, went = self._take(one.flatten(1).T.contiguous())
            admitted, dropped = admitted + came, dropped + went
        self._bank = None
        detail = {"admitted": admitted, "waiting": self._waiting.used, "dropped": dropped, "radius": self._radius}
        return Learned(images=len(features), kept=self._memory.used, detail=detail)

    def _score(self, features: Tensor) -> Scores:
        self._same_shape(features)
        if self._bank is None:
            pool = self._memory if self._memory.used else self._waiting  # while nothing has been confirmed
            turn = self._whiten.T.contiguous()
            self._bank = (pool["raw"] - self._centre[pool["place"]]) @ turn, turn
        bank, turn = self._bank
        gaps = [nearest((one.flatten(1).T - self._centre) @ turn, bank) for one in features]
        return self._finish(torch.stack(gaps).reshape(-1, *self._grid))

    def _open(self, features: Tensor) -> None:
        """Sets up the tables for features of this shape. Letters: P positions, C channels."""
        channels, height, width = features.shape[1:]
        places, device = height * width, features.device
        self._grid = (height, width)
        self._moments = Moments(1, channels, device)  # of all patches together
        self._sums = torch.zeros(places, channels, dtype=torch.float64, device=device)  # of each position
        self._centre = torch.zeros(places, channels, device=device)  # subtracted before whitening
        self._whiten = torch.eye(channels, device=device)
        self._spare = max(1, int(self.memory * self.slack))
        self._memory = Pool(self.memory + self._spare, channels, self.sketch, device)
        self._waiting = Pool(self.waiting, channels, self.sketch, device)
        self._radius = 0.0  # what lies this near to the memory is covered; 0 until the first cut
        self._recent = torch.zeros(_RECENT, device=device)  # see `_ordinary`; 0: none yet
        self._aim()

    def _same_shape(self, features: Tensor) -> None:
        want = (self._moments.dim, *self._grid)
        if tuple(features.shape[1:]) != want:
            raise ConfigError(f"coreset: expected features {want} as learned, got {tuple(features.shape[1:])}.")

    @property
    def _images(self) -> int:
        return self._moments.count // len(self._sums)

    def _take(self, patches: Tensor) -> tuple[int, int]:
        """One image, (P, C). Returns how many patches were admitted to the memory and how many were dropped."""
        self._moments.add(patches[None])
        self._sums += gridded(patches)
        if self._images & (self._images - 1) == 0:
            self._refresh()
        near = (patches - self._centre) @ self._project
        known = self._memory if self._memory.used else self._waiting
        gaps = nearest(near, known["near"])
        # no more than the spare rows, so that even an image that is all new costs no more than a cut or two
        fresh = self._draw((gaps > self._radius).nonzero()[:, 0], self._spare)
        if not self.guard:
            return self._admit(_rows(patches, near, fresh)), 0
        radius = max(self._radius, self._ordinary(gaps))
        admitted = self._confirm(near, radius)
        if self._memory.used:
            admitted += self._admit(_rows(patches, near, fresh[gaps[fresh] <= radius]))
            fresh = fresh[gaps[fresh] > radius]
        # at the start so many that `guard` images find room beside one another
        most = self.newcomers if self._memory.used else max(1, self.waiting // (self.guard + 1))
        return admitted, self._wait(_rows(patches, near, self._draw(fresh, min(most, self.waiting))))

    def _ordinary(self, gaps: Tensor) -> float:
        """The distance below which most patches of most recent images lie; notes this image's."""
        if bool(gaps.isinf().any()):
            return 0.0  # the very first image has nothing to be compared with
        self._recent = torch.cat([self._recent[1:], torch.quantile(gaps, _USUAL)[None]])
        known = self._recent[self._recent > 0]
        return float(known.median()) if len(known) else 0.0

    def _confirm(self, near: Tensor, radius: float) -> int:
        """Those that wait get a vote where this image looks the same; enough votes admit them."""
        waiting = self._waiting
        waiting["votes"].add_(nearest(waiting["near"], near) <= radius)
        ready = waiting["votes"] >= self.guard
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
        over = max(0, len(rows["place"]) - self._waiting.room)
        if over:
            self._waiting.keep(slice(over, None))
        self._waiting.append(rows)
        return over

    def _admit(self, rows: dict[str, Tensor]) -> int:
        """Takes rows into the memory, cutting it back when there is no more room."""
        count, start = len(rows["place"]), 0
        while start < count:
            if not self._memory.room:
                self._cut()
            stop = start + self._memory.room
            self._memory.append({name: column[start:stop] for name, column in rows.items()})
            start = stop
        return count

    def _cut(self) -> None:
        """Greedy k-center back to `memory` rows; the radius is known only where at least one row goes."""
        which, self._radius = greedy_kcenter(self._memory["near"], self.memory)
        self._memory.keep(which.to(self._whiten.device))

    def _within(self) -> Tensor:
        """Covariance (C, C) of the patches about the mean of their position, pooled; unbiased."""
        moments, places = self._moments, len(self._sums)
        offset = self._sums / max(self._images, 1) - moments.mean()  # (P, C)
        scatter = moments.covariance()[0] * moments.count - self._images * (offset.T @ offset)
        return scatter / max(moments.count - places, 1)

    def _refresh(self) -> None:
        """Takes centre and whitening from the moments as they are now, and compares all rows anew."""
        aligned = self.positions == "on" or (self.positions == "auto" and self.explained > self.aligned)
        aligned = aligned and self._images >= _SETTLED
        mean = self._sums / self._images if aligned else self._moments.mean().expand_as(self._sums)
        covariance = self._within() if aligned else self._moments.covariance(1)[0]
        self._centre = mean.float().contiguous()
        self._whiten = whitening(covariance, self.shrinkage).float()
        self._recent.zero_()  # distances in another space
        self._aim()
        for pool in (self._memory, self._waiting):
            pool["near"].copy_((pool["raw"] - self._centre[pool["place"]]) @ self._project)
        if self._memory.used > self.memory:
            self._cut()

    def _aim(self) -> None:
        """Whitening and random projection as one matrix (C, s); the projection comes from the seed alone."""
        own = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.sketch, len(self._whiten), generator=own) / self.sketch**0.5
        self._project = (drawn.to(self._whiten.device) @ self._whiten).T.contiguous()

    def _pack(self) -> dict[str, Tensor]:
        if self._grid == (0, 0):
            return {}
        packed = {
            "grid": torch.tensor(self._grid),
            "used": torch.tensor([self._memory.used, self._waiting.used]),
            "radius": torch.tensor(self._radius, dtype=torch.float64),
            "recent": self._recent,
            "sums": self._sums,
            "centre": self._centre,
            "whiten": self._whiten,
        }
        packed |= {f"moments.{name}": tensor for name, tensor in self._moments.tensors().items()}
        packed |= {f"memory.{name}": column for name, column in self._memory.columns.items()}
        return packed | {f"waiting.{name}": column for name, column in self._waiting.columns.items()}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        moments = Moments.of({k.removeprefix("moments."): t for k, t in tensors.items() if k.startswith("moments.")})
        height, width = tensors["grid"].tolist()
        self._open(torch.empty(1, moments.dim, height, width, device=moments.total.device))
        expected = self._pack()
        if tensors.keys() != expected.keys():
            raise ValueError(f"tensors {sorted(tensors.keys() ^ expected.keys())} are missing or unknown")
        for name, mine in expected.items():
            if tensors[name].shape != mine.shape or tensors[name].dtype != mine.dtype:
                raise ValueError(f"{name} must be {mine.dtype} {tuple(mine.shape)}")
        self._moments = moments
        self._sums, self._centre, self._whiten = tensors["sums"], tensors["centre"], tensors["whiten"]
        self._recent, self._radius = tensors["recent"], float(tensors["radius"])
        for pool, used, name in zip(
            (self._memory, self._waiting), tensors["used"].tolist(), ("memory", "waiting"), strict=True
        ):
            pool.columns = {key: tensors[f"{name}.{key}"] for key in pool.columns}
            place = pool.columns["place"]
            if not 0 <= used <= len(place) or not bool(((place >= 0) & (place < height * width)).all()):
                raise ValueError(f"{name} refers to rows or positions that are not there")
            pool.used = used
        self._aim()


def _rows(patches: Tensor, near: Tensor, which: Tensor) -> dict[str, Tensor]:
    """Columns of a `Pool` for the chosen patches of one image."""
    return {"raw": patches[which], "near": near[which], "place": which, "votes": torch.zeros_like(which)}
