"""Running exact moments: count, sum and sum of outer products, for one group of samples or for many.

Samples are rounded to a fixed-point grid (`gridded`) first. Then every product and every partial sum is a
float64 without rounding error, so that adding in any order, merging and taking away again give equal bits.
The sums are the textbook ones; the grid is everline's own. Its step of 2**-8 adds a variance of 1.3e-6,
where the features of a backbone have variances of 0.01 to 10; values beyond +-128 are clipped.

The promise holds while every sum of squares stays below 2**37 (that is 2**53 steps): 8 million samples even
if all of them stood at +-128, ten thousand million at a deviation of 3. Beyond, sums round as any others do.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

STEP = 2.0**-8
LIMIT = 128.0
EXACT = 2.0**37  # sums of squares below this are exact: 2**53 steps of STEP**2
_CHUNK = 2**19  # outer-product cells handled at once: they should stay in the processor's cache


def gridded(samples: Tensor) -> Tensor:
    """float (...) -> float64 (...): the nearest multiples of 2**-8 within +-128."""
    return samples.double().clamp(-LIMIT, LIMIT).mul_(1 / STEP).round_().mul_(STEP)


class Moments:
    """Moments of `groups` sets of vectors with `dim` entries, all sets with the same count of samples.

    Holds float64 `total` (groups, dim) and `outer` (groups, dim * (dim + 1) / 2), the upper triangle row by
    row. Letters: G groups, N samples in each, D entries.
    """

    def __init__(self, groups: int, dim: int, device: str | torch.device = "cpu") -> None:
        self.groups, self.dim, self.count = groups, dim, 0
        self.total = torch.zeros(groups, dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(groups, packed_size(dim), dtype=torch.float64, device=device)
        rows, cols = torch.triu_indices(dim, dim, device=device)
        self._upper = rows * dim + cols

    def add(self, samples: Tensor) -> None:
        """Takes in N samples for each group: float (G, N, D). Raises ValueError for another shape."""
        if samples.ndim != 3 or samples.shape[0] != self.groups or samples.shape[2] != self.dim:
            raise ValueError(f"expected samples ({self.groups}, N, {self.dim}), got {tuple(samples.shape)}")
        chunk = max(1, _CHUNK // self.dim**2)
        for start in range(0, self.groups, chunk):
            part = gridded(samples[start : start + chunk])  # (g, N, D)
            self.total[start : start + chunk] += part.sum(1)
            cells = (part.mT @ part).flatten(1)  # (g, D * D)
            self.outer[start : start + chunk] += cells.index_select(1, self._upper)
        self.count += samples.shape[1]

    def merge(self, other: "Moments") -> None:
        """Adds what `other` has seen: as if its samples had come here."""
        self._combine(other, 1)

    def subtract(self, other: "Moments") -> None:
        """Takes away what `other` has seen, as if it had never come. Raises ValueError if it cannot have."""
        if other.count > self.count:
            raise ValueError(f"cannot take {other.count} samples away from {self.count}")
        self._combine(other, -1)

    @property
    def exact(self) -> bool:
        """Whether no sum can have been rounded yet."""
        cells = self._unpacked(slice(None), lower=False).diagonal(dim1=1, dim2=2)
        return bool((cells < EXACT).all())

    def mean(self) -> Tensor:
        """float64 (G, D); zeros before the first sample."""
        return self.total / max(self.count, 1)

    def variance(self, ddof: int = 0) -> Tensor:
        """float64 (G, D): the diagonals of `covariance`, without making the rest."""
        return (diagonal(self.outer, self.dim) - self.total * self.mean()) / max(self.count - ddof, 1)

    def covariance(self, ddof: int = 0, groups: slice = slice(None)) -> Tensor:
        """float64 (G, D, D) of the chosen groups: scatter / (count - ddof); zeros where that is not positive."""
        total = self.total[groups]
        scatter = self._unpacked(groups) - total[:, :, None] * (total[:, None] / max(self.count, 1))
        return scatter / max(self.count - ddof, 1)

    def upper(self, ddof: int = 0) -> Tensor:
        """float64 (G, D * (D + 1) / 2): the upper triangles of `covariance`, row by row, without making the rest."""
        rows, cols = torch.triu_indices(self.dim, self.dim, device=self.outer.device)
        scatter = self.outer - self.total[:, rows] * self.mean()[:, cols]
        return scatter / max(self.count - ddof, 1)

    def tensors(self) -> dict[str, Tensor]:
        """For a state: `count` int64 (), `total`, `outer`."""
        return {"count": torch.tensor(self.count), "total": self.total, "outer": self.outer}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        """The reverse of `tensors`. Raises KeyError or ValueError for missing or misshapen ones."""
        count, total, outer = tensors["count"], tensors["total"], tensors["outer"]
        if total.ndim != 2 or total.dtype != torch.float64 or outer.dtype != torch.float64 or count.ndim:
            raise ValueError("moments are count (), and float64 total (G, D), outer (G, D * (D + 1) / 2)")
        self = cls(total.shape[0], total.shape[1], total.device)
        if outer.shape != self.outer.shape or int(count) < 0:
            raise ValueError(f"expected outer {tuple(self.outer.shape)}, got {tuple(outer.shape)}")
        self.count, self.total, self.outer = int(count), total, outer
        return self

    def _combine(self, other: "Moments", sign: int) -> None:
        if (self.groups, self.dim) != (other.groups, other.dim):
            raise ValueError(f"moments of {other.groups} x {other.dim} do not fit {self.groups} x {self.dim}")
        self.count += sign * other.count
        self.total.add_(other.total, alpha=sign)
        self.outer.add_(other.outer, alpha=sign)

    def _unpacked(self, groups: slice, lower: bool = True) -> Tensor:
        return symmetric(self.outer[groups], self.dim, lower)


def packed_size(dim: int) -> int:
    """Entries of the upper triangle of a (dim, dim) matrix."""
    return dim * (dim + 1) // 2


def symmetric(packed: Tensor, dim: int, lower: bool = True) -> Tensor:
    """(G, D * (D + 1) / 2), upper triangles row by row -> (G, D, D); zeros below the diagonal unless `lower`."""
    rows, cols = torch.triu_indices(dim, dim, device=packed.device)
    full = packed.new_zeros(len(packed), dim * dim)
    full[:, rows * dim + cols] = packed
    square = full.view(-1, dim, dim)
    return square + square.triu(1).mT if lower else square


def diagonal(packed: Tensor, dim: int) -> Tensor:
    """(G, D * (D + 1) / 2), upper triangles row by row -> (G, D)."""
    at = torch.arange(dim, device=packed.device)
    return packed[:, at * dim - at * (at - 1) // 2]


def whitening(covariance: Tensor, shrinkage: float) -> Tensor:
    """float64 (D, D) -> W (D, D) with W covariance W.T = 1, so that W (x - mean) has unit covariance.

    A share `shrinkage` of the mean variance is added to the diagonal first (1 where there is no variance).
    """
    mean = float(covariance.diagonal().mean())
    ridge = shrinkage * mean if mean > 0 else 1.0
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    factor = torch.linalg.cholesky(covariance + ridge * eye)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin so, without the beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
