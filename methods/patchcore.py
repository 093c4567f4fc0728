"""PatchCore: distance to a greedy coreset of normal patches; offline, moving by EMA, or learning by pseudo-labels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .detector import FeatureDetector, Learned, Scores, Traits
from .errors import ConfigError
from .neighbours import farthest_first, nearest
from .params import param

_REDUCED = 0.8  # share of `memory` that a full bank is cut back to


@dataclass(kw_only=True, eq=False)
class PatchCore(FeatureDetector):
    """Nearest neighbour of each patch in a bank of patches that a greedy k-center selection picked.

    The paper's (Roth et al. 2022, "Towards Total Recall in Industrial Anomaly Detection"): raw features pooled over
    their neighbourhood (the backbone does it), greedy selection of a share `ratio` on a random projection, distance
    to the nearest row, and the image score: the largest of these, weighed by how rare the row's neighbours are.

    * `offline`: the coreset of all that was learned, selected anew at the first score after learning.
    * `ema` (LeMO, table 2, which gives no details): the coreset of the `first` images is the bank; from then on each
      patch moves its nearest row by an exponential moving average.
    * `pseudo` (the K-NG paper's PatchCore under FOADS): an image is learned only if its score is under a threshold
      fixed by the `first` normals; then those of its patches that lie farthest from the bank join it, in their turn.

    Ours: bounds. `offline` keeps a uniform sample of `pool` patches and selects at most `memory` of them (as
    published: both above the number of patches in the data); a `pseudo` bank that is full is cut back to 80 % by
    the same greedy rule. `ema` finds the nearest rows once an image. The threshold of `pseudo` is the highest score
    that a first image gets from the rows of the others, times `gate`.

    Cost at 28 x 28, 176 channels, one thread: `ema` 5 to 7 ms to learn an image and 3 ms to score one (784 rows),
    `pseudo` 40 to 47 and 19 (at most 5,000 rows), `offline` 1 to 4 and 28, in which is a share of the seconds that the
    first score after learning takes to select (5 to 10 from a full pool). State at most: 4 C rows bytes, so 0.6 MB,
    3.5 MB and (the pool) 36 MB.
    Weighing by neighbours was worth +2 points on boards, -1 or 0 on magnetic tiles, 0 on cells.

    When not: one image at a time with `offline` (each selection takes seconds: use `coreset`), data in which some
    features have far larger variances than others (nothing is whitened here; `coreset` does it), and defects in what
    is learned: the greedy rule prefers outliers, and no gate is tight enough to keep all of them out.
    """

    name: ClassVar[str] = "patchcore"
    traits: ClassVar[Traits] = Traits(memory="memory")

    form: str = param("offline", "how the bank comes about", choices=("offline", "ema", "pseudo"))
    ratio: float = param(
        0.1, "share of the patches that enter the bank",
        low=0, high=1, open_low=True, log=True, search=(0.01, 0.25),
    )  # fmt: skip
    memory: int = param(5000, "most rows of the bank", low=10, high=1_000_000, log=True, search=(300, 10_000))
    pool: int = param(50_000, "patches kept to select from", low=10, high=10_000_000, unit="patches", log=True)
    sketch: int = param(64, "dimensions of the random projection in which selection compares", low=2, high=1024)
    neighbours: int = param(
        9, "rows that weigh the image score (b); 0: maximum of the map", low=0, high=99, search=(0, 3, 5, 9, 15)
    )
    first: int = param(
        10, "ema, pseudo: normal images that make the first bank",
        low=1, high=1000, search=(5, 40), when=("form", ("ema", "pseudo")),
    )  # fmt: skip
    momentum: float = param(
        0.9, "ema: share of a row that stays when a patch moves it",
        low=0, high=1, search=(0.5, 0.999), when=("form", ("ema",)),
    )  # fmt: skip
    gate: float = param(
        1.0, "pseudo: highest score of the first images, each left out, times this is the threshold",
        low=0, high=100, search=(0.7, 1.5), when=("form", ("pseudo",)),
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.neighbours == 1:
            raise ConfigError(
                f"{self.name}: one neighbour weighs every score with 0; neighbours must be 0 or 2 to 99."
            )
        if self.form == "pseudo" and self.first < 2:
            raise ConfigError(f"{self.name}: form=pseudo needs first=2 or more: each is scored without itself.")

    def _reset(self) -> None:
        self._grid = (0, 0)  # until the first image fixes it
        self._selected: Tensor | None = None  # the bank of a pool, made when scoring

    def _open(self, features: Tensor) -> None:
        """Empty tables for features of this shape. Letters: P patches of an image, C channels."""
        channels, height, width = features.shape[1:]
        self._grid = (height, width)
        self._pool = torch.zeros(0, channels, device=features.device)
        self._keys = torch.zeros(0, dtype=torch.float64, device=features.device)  # drawn; the lowest stay in the pool
        self._bank = torch.zeros(0, channels, device=features.device)  # empty while the pool is what counts
        self._taken = 0  # images that came into pool or bank
        self._threshold = torch.inf
        own = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(channels, min(self.sketch, channels), generator=own) / self.sketch**0.5
        self._projection = drawn.to(features.device)

    # -- scoring

    def _score(self, features: Tensor) -> Scores:
        self._same_shape(features)
        if len(self._bank):
            return self._against(self._bank, features.flatten(2).mT)
        if self._selected is None:
            self._selected = self._pool[self._select()]
        return self._against(self._selected, features.flatten(2).mT)

    def _against(self, bank: Tensor, patches: Tensor) -> Scores:
        """Scores of (B, P, C) by distance to the rows of `bank` (K, C)."""
        gaps = torch.stack([nearest(one, bank) for one in patches])  # (B, P)
        scores = self._finish(gaps.unflatten(1, self._grid))
        if not self.neighbours or len(bank) < 2:
            return scores
        weights = [rarity(one[gap.argmax()], bank, self.neighbours) for one, gap in zip(patches, gaps, strict=True)]
        return Scores(image=torch.stack(weights) * gaps.amax(1), maps=scores.maps)

    def _select(self) -> Tensor:
        """Indices of the pool's rows that are its coreset."""
        patches = self._taken * self._grid[0] * self._grid[1]
        keep = max(1, min(self.memory, round(self.ratio * patches)))
        return farthest_first(self._pool @ self._projection, keep)

    # -- learning

    def _learn(self, features: Tensor) -> Learned:
        if self._grid == (0, 0):
            self._open(features)
        self._same_shape(features)
        counts = [self._taken]
        for one in features:
            self._take(one.flatten(1).T)
            counts.append(self._taken)
        self._selected = None
        taken = torch.tensor(counts).diff().bool()
        return Learned(
            images=int(taken.sum()),
            kept=len(self._bank) or len(self._pool),
            detail={"refused": float((~taken).sum())},
            admitted=taken[:, None, None].expand(-1, *self._grid) if self.form == "pseudo" else None,
        )

    def _take(self, patches: Tensor) -> None:
        """One image, (P, C)."""
        if len(self._bank) and self.form == "ema":
            self._bank = moved(self._bank, patches, self.momentum)
            self._taken += 1
        elif len(self._bank):
            self._take_if_normal(patches)
        else:
            self._store(patches)
            self._taken += 1
            if self.form != "offline" and self._taken == self.first:
                self._begin()

    def _store(self, patches: Tensor) -> None:
        """Into the pool; where that is full, so that it stays a uniform sample of all that came."""
        drawn = torch.rand(len(patches), generator=self._rng, dtype=torch.float64).to(patches.device)
        room = self.pool - len(self._pool)
        self._pool = torch.cat([self._pool, patches[:room]])
        self._keys = torch.cat([self._keys, drawn[:room]])
        drawn, patches = drawn[room:], patches[room:]
        stays = torch.ones(len(self._keys) + len(drawn), dtype=torch.bool, device=patches.device)
        stays[torch.cat([self._keys, drawn]).topk(len(drawn)).indices] = False
        goes, comes = ~stays[: len(self._keys)], stays[len(self._keys) :]
        self._pool[goes], self._keys[goes] = patches[comes], drawn[comes]

    def _begin(self) -> None:
        """The first images are there: their coreset is the first bank, and the threshold follows from them."""
        which = self._select()
        bank, size = self._pool[which], len(self._pool) // self.first
        if self.form == "pseudo":
            owner = which // size
            images = enumerate(self._pool.split(size))
            others = [(one[None], bank[owner != index]) for index, one in images if bool((owner != index).any())]
            highest = torch.cat([self._against(rest, one).image for one, rest in others]).max()
            self._threshold = self.gate * float(highest)
        self._bank, self._pool, self._keys = bank, self._pool[:0].clone(), self._keys[:0].clone()

    def _take_if_normal(self, patches: Tensor) -> None:
        """Adds the patches that lie farthest from the bank, if the image as a whole scores low enough."""
        if float(self._against(self._bank, patches[None]).image) > self._threshold:
            return
        self._taken += 1
        near, known = patches @ self._projection, self._bank @ self._projection
        fresh = farthest_first(near, max(1, round(self.ratio * len(patches))), nearest(near, known))
        self._bank = torch.cat([self._bank, patches[fresh]])
        if len(self._bank) > self.memory:
            self._bank = self._bank[farthest_first(self._bank @ self._projection, int(_REDUCED * self.memory))]

    def _same_shape(self, features: Tensor) -> None:
        want = (self._pool.shape[1], *self._grid)
        if tuple(features.shape[1:]) != want:
            raise ConfigError(f"patchcore: expected features {want} as learned, got {tuple(features.shape[1:])}.")

    def _check(self, features: Tensor) -> None:
        super()._check(features)
        patches = features[0, 0].numel()
        if self.form != "offline" and self.first * patches > self.pool:
            raise ConfigError(
                f"patchcore: the first {self.first} images of {patches} patches do not fit a pool of {self.pool}; "
                f"lower first or raise pool."
            )

    # -- state

    def _pack(self) -> dict[str, Tensor]:
        if self._grid == (0, 0):
            return {}
        return {
            "grid": torch.tensor(self._grid),
            "pool": self._pool,
            "keys": self._keys,
            "bank": self._bank,
            "taken": torch.tensor(self._taken),
            "threshold": torch.tensor(self._threshold, dtype=torch.float64),
        }

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        (height, width), pool, keys = tensors["grid"].tolist(), tensors["pool"], tensors["keys"]
        bank, taken = tensors["bank"], int(tensors["taken"])
        if pool.ndim != 2 or keys.shape != pool.shape[:1] or bank.ndim != 2 or bank.shape[1] != pool.shape[1]:
            raise ValueError(f"pool {tuple(pool.shape)}, keys {tuple(keys.shape)}, bank {tuple(bank.shape)}")
        if bool(len(bank)) == bool(len(pool)) or len(pool) > self.pool or min(height, width, taken) < 1:
            raise ValueError(f"{len(pool)} patches to select from, a bank of {len(bank)} and {taken} images")
        if (pool.dtype, bank.dtype, keys.dtype) != (torch.float32, torch.float32, torch.float64):
            raise ValueError("pool and bank must be float32, keys float64")
        self._open(torch.empty(1, pool.shape[1], height, width, device=pool.device))
        self._pool, self._keys, self._bank, self._taken = pool, keys, bank, taken
        self._threshold = float(tensors["threshold"])


def rarity(patch: Tensor, bank: Tensor, b: int) -> Tensor:
    """The paper's weight of an image score, in [0, 1]: equation 7 for the patch (C,) and the bank (K, C).

    One less the share of the nearest row in a softmax of the distances to it and its b - 1 neighbours: low where
    the patch is near to one row among many that are close together.
    """
    away = torch.linalg.vector_norm(bank - patch, dim=1)
    row = away.argmin()
    around = torch.linalg.vector_norm(bank - bank[row], dim=1).topk(min(b, len(bank)), largest=False).indices
    return 1 - (away[row] - away[around].logsumexp(0)).exp()


def moved(bank: Tensor, patches: Tensor, momentum: float) -> Tensor:
    """Each patch (P, C) in turn moves its nearest row of the bank (K, C): row = momentum row + (1 - momentum) patch.

    Which row is nearest is found once, before any moved; the rest is the sequential rule as one product.
    """
    row, owner, count = torch.cdist(patches, bank).argmin(1).unique(return_inverse=True, return_counts=True)
    order = owner.argsort(stable=True)
    place = torch.arange(len(patches), device=bank.device)
    later = torch.empty_like(place)  # patches of the same row that come later
    later[order] = count.cumsum(0)[owner[order]] - 1 - place
    weights = bank.new_zeros(len(row), len(patches))
    weights[owner, place] = (1 - momentum) * momentum ** later.to(bank.dtype)
    out = bank.clone()
    out[row] = momentum ** count[:, None].to(bank.dtype) * bank[row] + weights @ patches
    return out
