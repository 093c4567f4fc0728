"""Gaussians for each position of a grid: running ones, averages over tasks, and the factors that measure distances.

Letters: P positions, D channels, N samples, B images.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from .moments import Moments, diagonal, packed_size, symmetric

_PENDING = 16  # images that wait until their outer products are added in one go: memory traffic, not arithmetic


class Gaussians(Protocol):
    """What `factors` reads of a fit to `count` samples at each of `groups` positions."""

    groups: int
    dim: int
    count: int

    def mean(self) -> Tensor:
        """float64 (P, D)."""
        ...

    def variance(self, ddof: int = 0) -> Tensor:
        """float64 (P, D)."""
        ...

    def covariance(self, ddof: int = 0, groups: slice = slice(None)) -> Tensor:
        """float64 (P, D, D) of the chosen positions."""
        ...


class Running:
    """Exact moments that take their images in by the dozen; when they are added changes no bit of them."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments
        self._pending: list[Tensor] = []  # float32 (P, D) each

    def add(self, patches: Tensor) -> None:
        """Takes in B images, float32 (P, B, D), of which it keeps a reference."""
        self._pending += patches.unbind(1)
        if len(self._pending) >= _PENDING:
            self._flush()

    @property
    def sums(self) -> Moments:
        """The moments with nothing pending."""
        self._flush()
        return self._moments

    def _flush(self) -> None:
        if self._pending:
            self._moments.add(torch.stack(self._pending, 1))
            self._pending = []


class Averaged:
    """The running average over tasks of their means and covariances: Algorithm 5.1 of the thesis, as printed.

    M <- M i / (i + 1) + M_i / (i + 1), and the same for the covariance, for i = 0, 1, ...: every task weighs the
    same, however many images it had, and what the means differ by between tasks is in no covariance.
    """

    def __init__(self, mean: Tensor, upper: Tensor, tasks: int, count: int) -> None:
        """mean: float64 (P, D). upper: float64 (P, D * (D + 1) / 2), as in `Moments.outer`. count: images in all."""
        self.groups, self.dim = mean.shape
        self.tasks, self.count = tasks, count
        self._mean, self._upper = mean, upper

    @classmethod
    def empty(cls, groups: int, dim: int, device: torch.device) -> "Averaged":
        """Of no task: zeros."""
        mean, upper = (torch.zeros(groups, n, dtype=torch.float64, device=device) for n in (dim, packed_size(dim)))
        return cls(mean, upper, 0, 0)

    def plus(self, task: Moments) -> "Averaged":
        """The average with one task more: a line of the algorithm's loop. Covariances are unbiased (N - 1)."""
        mean = torch.lerp(self._mean, task.mean(), 1 / (self.tasks + 1))
        upper = torch.lerp(self._upper, task.upper(1), 1 / (self.tasks + 1))
        return Averaged(mean, upper, self.tasks + 1, self.count + task.count)

    def mean(self) -> Tensor:
        """float64 (P, D); zeros before the first task."""
        return self._mean

    def variance(self, ddof: int = 0) -> Tensor:
        """float64 (P, D); `ddof` was decided task by task."""
        return diagonal(self._upper, self.dim)

    def covariance(self, ddof: int = 0, groups: slice = slice(None)) -> Tensor:
        """float64 (P, D, D) of the chosen positions; `ddof` was decided task by task."""
        return symmetric(self._upper[groups], self.dim)

    def tensors(self) -> dict[str, Tensor]:
        """For a state: `finished` int64 (2,), tasks and images; `mean`; `covariance`, its upper triangles."""
        done = torch.tensor([self.tasks, self.count])
        return {"finished": done, "mean": self._mean, "covariance": self._upper}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], like: Moments) -> "Averaged":
        """The reverse, for moments of the same shape. Raises KeyError or ValueError for missing or misshapen ones."""
        mean, upper, done = tensors["mean"], tensors["covariance"], tensors["finished"]
        if mean.shape != like.total.shape or upper.shape != like.outer.shape or done.shape != (2,):
            raise ValueError(f"an average of {tuple(mean.shape)} does not fit moments {tuple(like.total.shape)}")
        if mean.dtype != torch.float64 or upper.dtype != torch.float64 or int(done.min()) < 0:
            raise ValueError("an average is finished (2,), not negative, and float64 mean and covariance")
        return cls(mean, upper, *done.tolist())


class Factors:
    """Mean and inverse Cholesky factors of each position, both float32: what scoring needs of a fit."""

    def __init__(self, fit: Gaussians, shrinkage: float, floor: float, prior: float) -> None:
        """See `PaDiM` for what is added to a covariance. O(P D^3)."""
        spread = fit.variance(ddof=1)  # (P, D)
        ridge = shrinkage + floor * float(spread.mean())
        eye = torch.eye(fit.dim, dtype=torch.float64, device=spread.device)
        pooled = torch.zeros_like(eye)
        if prior > 0:
            pooled = sum((fit.covariance(1, part).sum(0) for part in _parts(fit.groups)), pooled) / fit.groups
        weight = prior / (prior + fit.count) if prior > 0 else 0.0
        self.mean = fit.mean().float()  # (P, D)
        self.inverse = torch.empty(fit.groups, fit.dim, fit.dim, device=spread.device)
        for part in _parts(fit.groups):
            covariance = torch.lerp(fit.covariance(1, part), pooled, weight) + ridge * eye
            factor = torch.linalg.cholesky(covariance)
            self.inverse[part] = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).float()

    def distances(self, patches: Tensor) -> Tensor:
        """float32 (P, B, D) -> (B, P): |inverse (x - mean)|, the Mahalanobis distance of each patch."""
        offset = patches - self.mean[:, None]
        white = torch.bmm(self.inverse, offset.mT)  # (P, D, B)
        return white.square().sum(1).sqrt().T


def _parts(groups: int, size: int = 64) -> list[slice]:
    """Slices of the positions, small enough that the float64 work on one stays in the cache."""
    return [slice(start, start + size) for start in range(0, groups, size)]
