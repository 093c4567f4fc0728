"""Weighted Gaussian mixtures and the coreset on which they are fitted: float64, on plain tensors.

Lucic, Faulkner, Krause, Feldman: "Training Gaussian Mixture Models at Scale via Coresets" (2017), as the SMCC
paper prints it (its Algorithm 2 and equations 1 to 3). Expectation maximisation is ours, because points of a
coreset have weights and scikit-learn's GaussianMixture takes none; with equal weights both make the same steps.
Letters: N points, D dimensions, K components.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TINY = 10 * torch.finfo(torch.float64).eps  # keeps an empty component's share above zero


@dataclass(frozen=True)
class Mixture:
    """float64 `weights` (K,), `means` (K, D), `covariances` (K, D) if diagonal, else (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor

    def log_joint(self, points: Tensor) -> Tensor:
        """float64 (N, D) -> (N, K): log of weight times density, the terms of equation 1."""
        dim = points.shape[1]
        if self.covariances.ndim == 2:
            inverse = 1 / self.covariances
            square = points.square() @ inverse.T - 2 * points @ (self.means * inverse).T
            square = square + (self.means.square() * inverse).sum(1)
            log_det = self.covariances.log().sum(1)
        else:
            factor = torch.linalg.cholesky(self.covariances)
            away = (points - self.means[:, None]).mT  # (K, D, N)
            square = torch.linalg.solve_triangular(factor, away, upper=False).square().sum(1).T
            log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return self.weights.log() - 0.5 * (dim * math.log(2 * math.pi) + log_det + square)

    def log_likelihood(self, points: Tensor, gamma: Tensor) -> float:
        """Equation 3 for each unit of weight."""
        return float(gamma @ self.log_joint(points).logsumexp(1) / gamma.sum())


def maximise(points: Tensor, shares: Tensor, full: bool, ridge: float) -> Mixture:
    """The M step: shares (N, K) say how much of each point (its weight included) belongs to each component."""
    mass = shares.sum(0) + _TINY
    means = shares.T @ points / mass[:, None]
    if full:
        away = points - means[:, None]  # (K, N, D)
        covariances = (away * shares.T[:, :, None]).mT @ away / mass[:, None, None]
        covariances = covariances + ridge * torch.eye(points.shape[1], dtype=points.dtype, device=points.device)
    else:
        covariances = (shares.T @ points.square() / mass[:, None] - means.square()).clamp(min=0) + ridge
    return Mixture(mass / mass.sum(), means, covariances)


def begin(points: Tensor, gamma: Tensor, means: Tensor, full: bool, ridge: float) -> Mixture:
    """The mixture of the groups that `means` (K, D) attract; an empty group becomes a point of no weight."""
    member = torch.nn.functional.one_hot(torch.cdist(points, means).argmin(1), len(means)).to(points.dtype)
    return maximise(points, member * gamma[:, None], full, ridge)


def improve(mixture: Mixture, points: Tensor, gamma: Tensor, steps: int, ridge: float, tol: float = 1e-3) -> Mixture:
    """Up to `steps` of expectation maximisation; ends early when the log-likelihood gains less than `tol`."""
    full, before = mixture.covariances.ndim == 3, -math.inf
    for _ in range(steps):
        joint = mixture.log_joint(points)
        evidence = joint.logsumexp(1, keepdim=True)
        mixture = maximise(points, (joint - evidence).exp() * gamma[:, None], full, ridge)
        now = float(gamma @ evidence[:, 0] / gamma.sum())
        if now - before < tol:
            break
        before = now
    return mixture


def seeds(points: Tensor, gamma: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k-means++ (the bicriteria approximation B): k rows (k, D), each drawn by weight times squared distance.

    Where all points are covered, rows are drawn by weight and so come again.
    """
    gap = torch.ones_like(gamma)
    chosen: list[int] = []
    for _ in range(k):
        chance = gamma * gap
        chance = chance if bool(chance.sum() > 0) else gamma
        chosen.append(int(torch.multinomial(chance.cpu(), 1, generator=rng)))
        away = (points - points[chosen[-1]]).square().sum(1)
        gap = away if len(chosen) == 1 else torch.minimum(gap, away)
    return points[chosen]


def sensitivity(points: Tensor, gamma: Tensor, means: Tensor) -> Tensor:
    """s(x) of Algorithm 2 (N,): how much a point may matter to any mixture. A point of weight g counts g times.

    alpha is 16 (log K + 2), from Lucic et al.; the SMCC paper names it and gives no value.
    """
    distance, group = (points[:, None] - means).square().sum(2).min(1)
    alpha = 16 * (math.log(len(means)) + 2)
    member = torch.nn.functional.one_hot(group, len(means)).to(points.dtype)
    size = gamma @ member  # |X_j|
    cost = (gamma * distance) @ member  # sum of squared distances within X_j
    return alpha * distance + (2 * alpha * cost[group] + 2 * cost.sum()) / size[group]


def coreset(points: Tensor, gamma: Tensor, keep: int, k: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Algorithm 2: int64 rows (keep,), drawn with replacement by importance, and their new weights (keep,).

    The weights are scaled to the same sum as before (ours: in a stream of reductions it would wander).
    """
    chance = gamma * sensitivity(points, gamma, seeds(points, gamma, k, rng))
    chance = chance if bool(chance.sum() > 0) else gamma
    chance = chance / chance.sum()
    rows = torch.multinomial(chance.cpu(), keep, replacement=True, generator=rng).to(points.device)
    weights = gamma[rows] / (keep * chance[rows])
    return rows, weights * (gamma.sum() / weights.sum())
