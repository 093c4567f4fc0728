"""PaDiM on exact running moments: one Gaussian for each position of the feature grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .detector import FeatureDetector, Learned, Scores, State, Traits
from .errors import ConfigError, StateError
from .moments import Moments
from .params import param

_PENDING = 16  # images that wait until their outer products are added in one go: memory traffic, not arithmetic


@dataclass(kw_only=True, eq=False)
class PaDiM(FeatureDetector):
    """Mahalanobis distance of each patch to the Gaussian of its position.

    Source: Defard et al. 2020, "PaDiM: a Patch Distribution Modeling Framework". The paper's: some channels,
    drawn at random, a mean and a covariance + 0.01 I for each position, the distance as the anomaly. Ours:
    the moments run (one pass, any order, equal bits), merge and can be taken away again; `floor`; `prior`.

    Cost at 28 x 28 and 100 channels: about 3 ms to learn and 4 ms to score an image; 0.2 s for
    the first score after learning, which factors all positions. State: 32 MB, whatever the stream's length.

    The default `floor` is the one under which held-out normal images are likeliest, or nearly, on several sets.

    Does not work where parts are not aligned, such as boards with different layouts: a position then has
    no distribution of its own. Needs some tens of images; it starts from one.
    """

    name: ClassVar[str] = "padim"
    traits: ClassVar[Traits] = Traits()

    channels: int = param(
        100, "channels drawn at random from the backbone's (all where it has fewer)", low=1, high=2000
    )
    shrinkage: float = param(0.01, "added to each variance, as published", low=0, high=100, open_low=True, log=True)
    floor: float = param(0.03, "share of the mean variance of all positions that is added to each", low=0, high=1)
    prior: float = param(0.0, "images that the covariance of all positions together counts for", low=0, high=1e6)

    def _reset(self) -> None:
        self._moments: Moments | None = None
        self._grid = (0, 0)
        self._picked = torch.empty(0, dtype=torch.int64)
        self._pending: list[Tensor] = []  # float32 (h * w, d) each
        self._factors: tuple[Tensor, Tensor] | None = None  # mean and inverse Cholesky factors, made when scoring

    def _learn(self, features: Tensor) -> Learned:
        moments = self._moments or self._open(features)
        self._pending += self._patches(features, "learn").unbind(1)
        self._factors = None
        if len(self._pending) >= _PENDING:
            self._flush()
        return Learned(images=len(features), kept=moments.groups)

    def _score(self, features: Tensor) -> Scores:
        if self._factors is None:
            self._factors = self._factor()
        mean, inverse = self._factors
        offset = self._patches(features, "score") - mean[:, None]  # (P, B, d)
        white = torch.bmm(inverse, offset.mT)  # (P, d, B)
        return self._finish(white.square().sum(1).sqrt().T.reshape(-1, *self._grid))

    def merge(self, other: "PaDiM") -> None:
        """Takes in what another detector of the same parameters has learned, as if its images had come here.

        Raises StateError if it is another kind of detector. Equal bits, whichever takes in the other.
        """
        if self._compatible(other):
            self._sums.merge(other._sums)
            self.images_learned += other.images_learned
            self._factors = None

    def unlearn(self, other: "PaDiM") -> None:
        """Takes away what another detector has learned, as if its images had never come here.

        Raises StateError if it is another kind of detector or has learned more images than this one.
        """
        if not self._compatible(other):
            return
        try:
            self._sums.subtract(other._sums)
        except ValueError as error:
            raise StateError(f"padim: {error}.") from error
        self.images_learned -= other.images_learned
        self._factors = None

    @property
    def _sums(self) -> Moments:
        """The moments with nothing pending; exact sums do not depend on when they are added."""
        self._flush()
        assert self._moments is not None
        return self._moments

    def _open(self, features: Tensor) -> Moments:
        """Fixes channels and grid by the first image."""
        own = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(features.shape[1], generator=own)[: self.channels]
        self._picked = drawn.sort().values.to(features.device)
        self._grid = (features.shape[2], features.shape[3])
        self._moments = Moments(self._grid[0] * self._grid[1], len(drawn), features.device)
        return self._moments

    def _patches(self, features: Tensor, verb: str) -> Tensor:
        """(B, C, h, w) -> the drawn channels by position, a copy (h * w, B, d)."""
        if tuple(features.shape[2:]) != self._grid or features.shape[1] <= int(self._picked.max()):
            raise ConfigError(
                f"padim: cannot {verb} features {tuple(features.shape[1:])}; it learned on a grid {self._grid} "
                f"with more than {int(self._picked.max())} channels."
            )
        return features[:, self._picked].flatten(2).permute(2, 0, 1)

    def _flush(self) -> None:
        if self._pending and self._moments is not None:
            self._moments.add(torch.stack(self._pending, 1))
            self._pending = []

    def _factor(self) -> tuple[Tensor, Tensor]:
        """Mean (P, d) and inverse Cholesky factors (P, d, d), both float32: |inverse (x - mean)| is the distance."""
        sums = self._sums
        spread = sums.variance(ddof=1)  # (P, d)
        ridge = self.shrinkage + self.floor * float(spread.mean())
        eye = torch.eye(sums.dim, dtype=torch.float64, device=spread.device)
        pooled = torch.zeros_like(eye)
        if self.prior > 0:
            pooled = sum((sums.covariance(1, part).sum(0) for part in _parts(sums.groups)), pooled) / sums.groups
        weight = self.prior / (self.prior + sums.count) if self.prior > 0 else 0.0
        inverse = torch.empty(sums.groups, sums.dim, sums.dim, device=spread.device)
        for part in _parts(sums.groups):
            covariance = torch.lerp(sums.covariance(1, part), pooled, weight) + ridge * eye
            factor = torch.linalg.cholesky(covariance)
            inverse[part] = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).float()
        return sums.mean().float(), inverse

    def _compatible(self, other: "PaDiM") -> bool:
        """Whether there is anything to combine with; opens this one like the other if it is still empty."""
        if not isinstance(other, PaDiM) or other.params != self.params:
            raise StateError("padim: only a padim with the same parameters can be merged or taken away.")
        if other._moments is None:
            return False
        if self._moments is None:
            self._grid, self._picked = other._grid, other._picked.clone()
            self._moments = Moments(other._moments.groups, other._moments.dim, other._moments.total.device)
        if self._grid != other._grid or not torch.equal(self._picked, other._picked):
            raise StateError("padim: the other detector saw features of another shape.")
        return True

    def _pack(self) -> dict[str, Tensor]:
        if self._moments is None:
            return {}
        return {**self._sums.tensors(), "grid": torch.tensor(self._grid), "channels": self._picked}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        _only(tensors, {"count", "total", "outer", "grid", "channels"})
        moments = Moments.of(tensors)
        height, width = tensors["grid"].tolist()
        if moments.groups != height * width or tensors["channels"].shape != (moments.dim,):
            raise ValueError(f"moments {tuple(moments.total.shape)} do not fit a {height} x {width} grid")
        self._moments, self._grid, self._picked = moments, (height, width), tensors["channels"]


def merged(states: list[State]) -> State:
    """One state that has learned what all `states` have. Raises StateError if they do not fit together."""
    if not states:
        raise StateError("padim: nothing to merge.")
    whole = PaDiM(**states[0].meta.get("params", {}))
    for state in states:
        part = PaDiM(**states[0].meta.get("params", {}))
        part.load_state(state)
        whole.merge(part)
    return whole.state()


def _parts(groups: int, size: int = 64) -> list[slice]:
    """Slices of the positions, small enough that the float64 work on one stays in the cache."""
    return [slice(start, start + size) for start in range(0, groups, size)]


def _only(tensors: Mapping[str, Tensor], known: set[str]) -> None:
    if tensors.keys() != known:
        raise ValueError(f"expected tensors {sorted(known)}, got {sorted(tensors)}")
