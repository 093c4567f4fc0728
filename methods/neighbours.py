"""Nearest neighbours and greedy k-center on plain tensors, for methods that keep a bank of vectors."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TABLE = 10_000**2  # cells of float32: 400 MB


def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """Euclidean distance of each query to its nearest bank row: float (Q, D), (N, D) -> (Q,); infinite for N = 0."""
    if not len(bank):
        return queries.new_full((len(queries),), torch.inf)
    squares = torch.addmm(bank.square().sum(1), queries, bank.T, alpha=-2)  # (Q, N), short of |query|**2
    return (squares.amin(1) + queries.square().sum(1)).clamp_min_(0).sqrt_()


def greedy_kcenter(points: Tensor, keep: int, start: int = 0) -> tuple[Tensor, float]:
    """Farthest-first traversal (Gonzalez 1985): each next center is the point farthest from those chosen.

    points: float (N, D). Returns the sorted int64 indices of min(keep, N) centers, and the radius: the largest
    distance of any point to its nearest center, at most twice the best possible. A table of N * N distances makes
    it quick; where that would be larger than _TABLE, each row is computed when it is wanted.
    """
    if keep >= len(points):
        return torch.arange(len(points)), 0.0
    row = _rows(points)
    gap = row(start).copy()  # squared distance of each point to its nearest center
    chosen = np.empty(keep, np.int64)
    chosen[0] = start
    gap[start] = -np.inf  # never again, even where all others are its duplicates
    for step in range(1, keep):
        chosen[step] = far = int(gap.argmax())
        np.minimum(gap, row(far), out=gap)
        gap[far] = -np.inf
    return torch.from_numpy(np.sort(chosen)), float(np.sqrt(max(gap.max(), 0.0)))


def _rows(points: Tensor) -> Callable[[int], NDArray[np.float32]]:
    """For a point's number, its squared distances to all points (N,)."""
    squares = points.square().sum(1)
    if len(points) ** 2 <= _TABLE:
        return torch.addmm(squares[:, None] + squares, points, points.T, alpha=-2).cpu().numpy().__getitem__
    return lambda which: torch.addmv(squares + squares[which], points, points[which], alpha=-2).cpu().numpy()


def farthest_first(points: Tensor, keep: int, gap: Tensor | None = None) -> Tensor:
    """Farthest-first traversal of points too many for a table, or beside what is covered already.

    points: float (N, D). gap: (N,), distance of each to what is there before; None: nothing is, and the first point
    comes first. Returns the sorted int64 indices of min(keep, N) points. O(N D) for each; memory O(N).
    """
    if keep >= len(points):
        return torch.arange(len(points), device=points.device)
    squares = points.square().sum(1)
    left = torch.full_like(squares, torch.inf) if gap is None else gap.square()  # squared distance to the chosen
    chosen = torch.empty(keep, dtype=torch.int64, device=points.device)
    for step in range(keep):
        chosen[step] = far = left.argmax()
        away = torch.addmv(squares + squares[far], points, points[far], alpha=-2)
        torch.minimum(left, away.clamp_min_(0), out=left)
        left[far] = -torch.inf  # never again, even where all others are its duplicates
    return chosen.sort().values
