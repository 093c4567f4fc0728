"""K-NG: few-shot online detection with k-means and a neural gas (Wei et al.), vectorised over patches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .detector import FeatureDetector, Learned, Scores, Traits
from .errors import ConfigError
from .params import param

_OWN = 4  # patches of the first images that there must be for each node: fewer say nothing of its spread
_NO_EDGE = -1
_CHANNELS = 2**16  # more than any backbone gives; a state that claims more is not ours


@dataclass(frozen=True)
class Rules:
    """How a gas keeps its edges and draws its thresholds; the names are those of `KNG`."""

    threshold: str = "max"
    ageing: str = "winner"
    age_max: int = 25


class Gas:
    """Nodes with a mean, a count and a scatter each, and a graph between them.

    Letters: K nodes, D dimensions, M patches. `centres` float64 (K, D); `counts` int64 (K,); `scatter` float64
    (K, D * (D + 1) / 2), sums of outer products about the centre, upper triangles row by row; `ages` int32
    (K, K), symmetric, -1 where there is no edge; `thresholds` float64 (K,).
    """

    def __init__(self, centres: Tensor, rules: Rules) -> None:
        nodes, dim = centres.shape
        self.rules = rules
        self.centres = centres.double()
        self.counts = torch.zeros(nodes, dtype=torch.int64, device=centres.device)
        self.scatter = self.centres.new_zeros(nodes, dim * (dim + 1) // 2)
        self.ages = torch.full((nodes, nodes), _NO_EDGE, dtype=torch.int32, device=centres.device)
        self.thresholds = self.centres.new_full((nodes,), math.inf)
        rows, cols = torch.triu_indices(dim, dim, device=centres.device)
        self._upper = rows * dim + cols
        table = torch.empty(dim, dim, dtype=torch.int64, device=centres.device)
        table[rows, cols] = table[cols, rows] = torch.arange(len(rows), device=centres.device)
        self._cells = table.flatten()  # where each cell of a full matrix stands in a packed one
        self._factors: Tensor | None = None  # float32 (K, D, D), lower, of the covariances; for the latest score

    @classmethod
    def found(cls, patches: Tensor, nodes: int, epochs: int, rules: Rules, generator: torch.Generator) -> Self:
        """Algorithm 1 on float (M, D), M >= 2: `nodes` patches drawn as centres, then `epochs` passes."""
        nodes = max(2, min(nodes, len(patches) // _OWN))
        drawn = torch.randperm(len(patches), generator=generator)[:nodes]
        self = cls(patches[drawn.to(patches.device)], rules)
        for _ in range(epochs):
            self.counts.zero_()
            self.scatter.zero_()
            self._take(patches, *self.nearest_two(patches))
        return self

    @property
    def edges(self) -> int:
        """How many there are."""
        return int((self.ages >= 0).sum()) // 2

    def nearest_two(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """int64 (M,), (M,): the nearest and the second nearest node of each patch."""
        centres = self.centres.to(patches.dtype)
        squares = torch.addmm(centres.square().sum(1), patches, centres.T, alpha=-2)  # short of |patch|**2
        two = squares.topk(2, dim=1, largest=False).indices
        return two[:, 0], two[:, 1]

    def admits(self, patches: Tensor, first: Tensor) -> Tensor:
        """bool (M,): no farther from its nearest node than that node's threshold."""
        return (patches.double() - self.centres[first]).norm(dim=1) <= self.thresholds[first]

    def update(self, patches: Tensor) -> Tensor:
        """Algorithm 2 on one batch (M, D): centres and thresholds stay while it is judged. Returns bool (M,)."""
        first, second = self.nearest_two(patches)
        admitted = self.admits(patches, first)
        if bool(admitted.any()):
            self._take(patches[admitted], first[admitted], second[admitted])
        return admitted

    def distances(self, patches: Tensor, prior: float, epsilon: float) -> Tensor:
        """float32 (M,): Mahalanobis distance to the nearest node (equations 10 and 11)."""
        if self._factors is None:
            self._factors = torch.linalg.cholesky(self.covariances(prior, epsilon)).float()
        first, _ = self.nearest_two(patches)
        offset = (patches.double() - self.centres[first]).float()
        out = offset.new_empty(len(offset))
        for nodes, rows, valid in _by_owner(first, len(self.centres)):
            white = torch.linalg.solve_triangular(self._factors[nodes], offset[rows].mT, upper=False)  # (g, D, n)
            out[rows[valid]] = white.square_().sum(1).sqrt_()[valid]
        return out

    def covariances(self, prior: float, epsilon: float) -> Tensor:
        """float64 (K, D, D): equation 2, drawn towards the pooled scatter within nodes by `prior` pseudo-samples."""
        freedom = (self.counts - 1).clamp_min(0).double()
        pooled = self.scatter.sum(0) / freedom.sum().clamp_min(1)
        packed = (self.scatter + prior * pooled) / (freedom + prior).clamp_min(1)[:, None]
        nodes, dim = self.centres.shape
        square = packed.index_select(1, self._cells).view(nodes, dim, dim)
        square.diagonal(dim1=1, dim2=2).add_(epsilon)
        return square

    def _take(self, patches: Tensor, first: Tensor, second: Tensor) -> None:
        """Assigns every patch to its nearest node: edges, then moments, then thresholds."""
        self.ages = aged(self.ages, first, second, self.rules)
        self._pool(patches.double(), first)
        self.thresholds = thresholds(self.centres, self.ages, self.rules.threshold)
        self._factors = None

    def _pool(self, patches: Tensor, owner: Tensor) -> None:
        """Equations 5 to 9, pooled exactly.

        With d = x - A about the old centre A, N old and n new members: A becomes A + sum(d) / (N + n), and the
        scatter grows by sum(d d') - sum(d) sum(d)' / (N + n). That is scatter_new + N n / (N + n) (mean_new - A)
        (mean_new - A)', in one pass. For a node without members it is the plain scatter of the new ones.
        """
        offset = patches - self.centres[owner]
        for nodes, rows, valid in _by_owner(owner, len(self.centres)):
            part = offset[rows] * valid[..., None]  # (g, n, D), rows that are padding are zero
            total, count = part.sum(1), valid.sum(1)
            counts = self.counts[nodes] + count
            shift = total / counts[:, None]
            cells = (part.mT @ part).sub_(total[:, :, None] * shift[:, None]).flatten(1)
            self.scatter[nodes] += cells.index_select(1, self._upper)
            self.centres[nodes] += shift
            self.counts[nodes] = counts

    def tensors(self) -> dict[str, Tensor]:
        """For a state."""
        names = ("centres", "counts", "scatter", "ages", "thresholds")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], rules: Rules) -> Self:
        """The reverse of `tensors`. Raises KeyError or ValueError for missing or misshapen ones."""
        if tensors["centres"].ndim != 2 or len(tensors["centres"]) < 2:
            raise ValueError("centres must be float64 (K, D) with K >= 2")
        self = cls(tensors["centres"], rules)
        for name, mine in self.tensors().items():
            if tensors[name].shape != mine.shape or tensors[name].dtype != mine.dtype:
                raise ValueError(f"{name} must be {mine.dtype} {tuple(mine.shape)}")
            setattr(self, name, tensors[name])
        return self


@dataclass(kw_only=True, eq=False)
class KNG(FeatureDetector):
    """Nodes of normal patches with a Gaussian each; patches near enough to one are learned, others are not.

    Wei et al., Few-shot Online Anomaly Detection and Segmentation. The paper's: k-means and a graph from a few
    normal images (Algorithm 1), pseudo-labels by a threshold over the distances to graph neighbours (equations
    3 and 4), online means and covariances of what is admitted (Algorithm 2), Mahalanobis distance to the nearest
    node anywhere (equations 10 and 11), 100 random channels, 10 epochs, sigma 4. Where it is ambiguous or ours:

    * Equation 8 as printed lacks brackets; here means and scatters are pooled exactly (see `Gas`).
    * `prior` is ours: each covariance is drawn towards the pooled one within nodes. A node owns tens of patches
      in 100 dimensions, so its own covariance is singular; nodes that learn much and nodes that learn little then
      measure on different scales: with `max`, learning a stream costs 3 points of AUROC on magnetic tiles where it
      gains 3 with the prior (docs/results.md). 0: as printed.
    * `threshold`: equation 3 prints `max`, the text and table 5 prefer `mean`. Without the prior the strict ones were
      better on magnetic tiles, as in table 5, though not on boards; with it the more was admitted the better on both.
    * `ageing`: the letter ages every edge with every patch, so that only edges of the last `age_max` patches
      are left (`graph`). `winner` ages those of the winning node, as growing neural gas does.
    * A patch exactly at the threshold is admitted (the text), not refused (Algorithm 2).
    * Means and thresholds move after each image, in order, however images come: `learn` of ten images is `learn`
      of each. The paper's batch of 10 moves them after ten: set `batch` to 10 and hand in ten at a time.
    * 196 nodes on the 28 x 28 grid, where the paper has 3136 on features resized to 224 x 224; never more than
      one for four patches of the first images.

    Start: the first `shots` images, by one call or by many, are kept (as reduced patches) and must be normal;
    the last of them sets off Algorithm 1, and they are forgotten. Before, `score` answers from a provisional gas
    made from those that there are, which is no part of the state.

    Cost at 28 x 28, one thread: 6 to 7 ms to learn an image, 3 to 4 ms to score one, and 14 ms more for the
    first score after learning (the covariances are factored anew); 0.3 s to found. State: 8.2 MB with 196 nodes
    and 100 dimensions, fixed once founded; nodes * (4 * dimensions**2 + 4 * nodes) bytes, so 170 MB and seconds
    to factor with the paper's 3136. Before: 0.3 MB for each of the first images.

    Does not work well where the first images do not show what is normal: nodes are never added, and what lies
    outside the thresholds is never admitted. Nor with `none` or with large thresholds on streams with many
    defects: these widen their node's Gaussian. Nothing is forgotten, so slow drift only widens it too.
    """

    name: ClassVar[str] = "kng"
    traits: ClassVar[Traits] = Traits(needs_normals_first=True, memory="nodes")

    shots: int = param(10, "first images, all normal, that found the gas", low=1, high=100, unit="images")
    nodes: int = param(196, "nodes; the paper's K", low=2, high=4096, log=True, search=(32, 400))
    dimensions: int = param(
        100, "dimensions that features are reduced to", low=2, high=1024, log=True, search=(24, 176)
    )
    reduction: str = param(
        "channels", "how: a random subset of the channels, or a random projection", choices=("channels", "projection")
    )
    epochs: int = param(10, "passes of k-means over the first images", low=1, high=100)
    threshold: str = param(
        "max", "admit within this over the distances to graph neighbours",
        choices=("mean", "min", "max", "none"), search=("mean", "min", "max", "none"),
    )  # fmt: skip
    age_max: int = param(25, "age beyond which an edge goes", low=1, high=1_000_000, log=True)
    ageing: str = param("winner", "which edges age with a patch: its winner's, or all", choices=("winner", "graph"))
    prior: float = param(
        100.0, "weight of the pooled covariance in each node's; 0: none", low=0, high=1e6, log=True, search=(10.0, 1e4)
    )
    epsilon: float = param(
        0.01, "added to the diagonal of every covariance", low=1e-6, high=100, log=True, search=(1e-4, 1.0)
    )
    batch: int = param(1, "images judged by the same means and thresholds", low=1, high=1000, unit="images")

    def _reset(self) -> None:
        self._shape = (0, 0, 0)  # C, h, w of features, until the first image fixes it
        self._reduce = torch.empty(0)  # int64 (D,) channels, or float32 (C, D)
        self._first: Tensor | None = None  # float32 (images, h * w, D): the first images until the gas is founded
        self._gas: Gas | None = None
        self._provisional: Gas | None = None

    @property
    def _waiting(self) -> int:
        """Patches kept for the founding."""
        return 0 if self._first is None else self._first.shape[:2].numel()

    @property
    def rules(self) -> Rules:
        """What the gas goes by."""
        return Rules(self.threshold, self.ageing, self.age_max)

    def _score(self, features: Tensor) -> Scores:
        patches = self._patches(features)
        gas = self._answering()
        distances = gas.distances(patches.flatten(0, 1), self.prior, self.epsilon)
        return self._finish(distances.reshape(-1, *self._shape[1:]))

    @torch.no_grad()
    def _learn(self, features: Tensor) -> Learned:
        if self._shape == (0, 0, 0):
            self._open(tuple(features.shape[1:]), features.device)
        patches = self._patches(features)
        admitted = torch.ones(patches.shape[:2], dtype=torch.bool, device=patches.device)  # the first ones all are
        rest = self._keep_first(patches)
        if self._gas is not None:
            into = admitted[len(patches) - len(rest) :].split(self.batch)
            for some, said in zip(rest.split(self.batch), into, strict=True):
                said.copy_(self._gas.update(some.flatten(0, 1)).view_as(said))
        kept, edges = (self._waiting, 0) if self._gas is None else (len(self._gas.centres), self._gas.edges)
        detail = {"admitted": float(admitted.float().mean()), "edges": float(edges)}
        return Learned(images=len(features), kept=kept, detail=detail, admitted=admitted.unflatten(1, self._shape[1:]))

    def _open(self, shape: tuple[int, ...], device: torch.device) -> None:
        """Fixes the features' shape (C, h, w), and what the channels are reduced to."""
        channels, height, width = shape
        if height * width < 2 or not channels:
            raise ConfigError(f"kng: expected features (C, h, w) with at least 2 patches, got {shape}.")
        own, kept = torch.Generator().manual_seed(self.seed), min(self.dimensions, channels)
        if self.reduction == "channels":
            reduce = torch.randperm(channels, generator=own)[:kept].sort().values
        else:
            reduce = torch.randn(channels, kept, generator=own) / kept**0.5
        self._shape, self._reduce = (channels, height, width), reduce.to(device)

    def _patches(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> float32 (B, h * w, D), a copy."""
        if tuple(features.shape[1:]) != self._shape:
            got = tuple(features.shape[1:])
            raise ConfigError(f"kng: expected features {self._shape} as learned, got {got}.")
        flat = features.float().flatten(2).mT  # (B, P, C)
        return flat[:, :, self._reduce] if self.reduction == "channels" else flat @ self._reduce

    def _keep_first(self, patches: Tensor) -> Tensor:
        """Keeps images until there are `shots`, then founds the gas. Returns the images that are left."""
        if self._gas is not None:
            return patches
        known = 0 if self._first is None else len(self._first)
        mine, rest = patches[: self.shots - known], patches[self.shots - known :]
        self._first = mine if self._first is None else torch.cat([self._first, mine])
        self._provisional = None
        if len(self._first) == self.shots:
            self._gas, self._first = self._found(self._first), None
        return rest

    def _found(self, images: Tensor) -> Gas:
        """The same images always found the same gas."""
        own = torch.Generator().manual_seed(self.seed)
        return Gas.found(images.flatten(0, 1), self.nodes, self.epochs, self.rules, own)

    def _answering(self) -> Gas:
        """The gas, or a provisional one from the images that there are."""
        if self._gas is not None:
            return self._gas
        if self._provisional is None and self._first is not None:
            self._provisional = self._found(self._first)
        assert self._provisional is not None  # `ready` says that there is an image
        return self._provisional

    def _pack(self) -> dict[str, Tensor]:
        if self._shape == (0, 0, 0):
            return {}
        fixed = {"shape": torch.tensor(self._shape), "reduce": self._reduce}
        if self._gas is not None:
            return fixed | self._gas.tensors()
        assert self._first is not None
        return fixed | {"first": self._first}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        channels, height, width = tensors["shape"].tolist()
        if not 0 < channels <= _CHANNELS or height < 1 or width < 1 or height * width < 2:
            raise ValueError(f"no features have the shape {(channels, height, width)}")
        self._open((channels, height, width), tensors["reduce"].device)
        want = self._reduce
        if tensors["reduce"].shape != want.shape or tensors["reduce"].dtype != want.dtype:
            raise ValueError(f"reduce must be {want.dtype} {tuple(want.shape)}")
        if want.ndim == 1 and not bool(((tensors["reduce"] >= 0) & (tensors["reduce"] < channels)).all()):
            raise ValueError("reduce names channels that are not there")
        self._reduce = tensors["reduce"]
        if "first" not in tensors:
            self._gas = Gas.of(tensors, self.rules)
            if self._gas.centres.shape[1] != want.shape[-1]:
                raise ValueError(f"centres must have {want.shape[-1]} dimensions")
            return
        first = tensors["first"]
        if first.dtype != torch.float32 or first.shape[1:] != (height * width, want.shape[-1]):
            raise ValueError(f"first must be torch.float32 (images, {height * width}, {want.shape[-1]})")
        if not 0 < len(first) < self.shots:
            raise ValueError(f"first must hold 1 to {self.shots - 1} images, not {len(first)}")
        self._first = first


def aged(ages: Tensor, first: Tensor, second: Tensor, rules: Rules) -> Tensor:
    """The graph (K, K) after M patches with these nearest and second nearest nodes (M,), one after another.

    Each patch sets the edge between its two nodes to age 0, adds 1 to the others (with `winner`: to the others
    of its nearest node) and drops those older than `age_max`. An edge's age at the end depends only on what came
    after its last hit, so no loop is needed: an edge dropped on the way is there again with its next hit.
    """
    nodes, count = len(ages), len(first)
    time = torch.arange(count, device=ages.device)
    pair = torch.minimum(first, second) * nodes + torch.maximum(first, second)
    key = (pair * count + time).sort().values  # by edge, then by time
    ends = torch.ones_like(key, dtype=torch.bool)
    ends[:-1] = key[1:] // count != key[:-1] // count
    last, low, high = key[ends] % count, key[ends] // count // nodes, key[ends] // count % nodes
    if rules.ageing == "graph":
        older, since = torch.tensor(count), count - 1 - last
    else:
        wins = torch.bincount(first, minlength=nodes)
        older = wins[:, None] + wins
        turns, stop = (first * count + time).sort().values, wins.cumsum(0)
        ends_of = torch.stack([low, high])  # wins of either end after the edge's last hit
        since = (stop[ends_of] - torch.searchsorted(turns, ends_of * count + last, right=True)).sum(0)
    ages = torch.where(ages >= 0, ages.long() + older, _NO_EDGE)
    ages[low, high] = ages[high, low] = since
    return ages.masked_fill_(ages > rules.age_max, _NO_EDGE).int()


def thresholds(centres: Tensor, ages: Tensor, kind: str) -> Tensor:
    """float64 (K,): equation 3 (mean, min or max over graph neighbours); equation 4 without one; infinite for none."""
    if kind == "none":
        return centres.new_full((len(centres),), math.inf)
    gaps, edge = torch.cdist(centres, centres), ages >= 0
    nearest = gaps.fill_diagonal_(math.inf).amin(1)
    if kind == "mean":
        over = gaps.masked_fill(~edge, 0).sum(1) / edge.sum(1).clamp_min(1)
    elif kind == "min":
        over = gaps.masked_fill(~edge, math.inf).amin(1)
    else:
        over = gaps.masked_fill(~edge, 0).amax(1)
    return torch.where(edge.any(1), over, nearest)


def _by_owner(owner: Tensor, nodes: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Groups rows by their node, nodes with about as many rows together, so that few matrix products do.

    owner: int64 (M,). Yields node numbers (g,), their rows (g, n) and which of these are not padding (g, n);
    n is a power of two, less than twice the rows of any of the g nodes. Every row comes once.
    """
    counts = torch.bincount(owner, minlength=nodes)
    order, starts = owner.argsort(stable=True), counts.cumsum(0) - counts
    widths = 2 ** torch.ceil(torch.log2(counts.clamp_min(1).double())).long()
    for width in widths[counts > 0].unique().tolist():
        chosen = ((counts > 0) & (widths == width)).nonzero()[:, 0]
        within = torch.arange(width, device=owner.device)
        valid = within < counts[chosen][:, None]
        yield chosen, order[(starts[chosen][:, None] + within).clamp_max(len(owner) - 1)], valid
