"""SMCC: a mixture's means attract patches through a learned projector; a memory of one batch scores.

Liu, Gao, Wen, Luo: "Unsupervised Image Anomaly Detection and Localization in Industry Based on Self-Updated
Memory and Center Clustering" (2023). Letters: C channels, N = h * w patches of an image, K centers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .adam import Adam, fill
from .detector import FeatureDetector, Learned, Scores, Traits
from .errors import ConfigError
from .mixture import Mixture, begin, coreset, improve, seeds
from .params import param

_RIDGE = 1e-2  # share of the mean variance added to every variance of the mixture
_EM_STEPS = 30
_PRIME = 1_000_003  # keeps the chances of different seeds apart
_LEAST = 1e-6  # what a divisor or a variance is held above

Terms = tuple[float, float]  # L_c and L_o for a patch


@dataclass(kw_only=True, eq=False)
class SMCC(FeatureDetector):
    """Self-updated memory and center clustering, one pass over the stream.

    The paper's: a coreset of patches by importance sampling (Algorithm 2), a Gaussian mixture fitted on it (K = 10),
    its means as the center set, the losses L_c and L_o (equations 4 to 6), Adam at 1e-3 with weight decay 5e-4,
    a memory of one batch of 16 images sampled at 0.1, the mean distance to the k nearest of it as the score
    (equations 7, 8; the sums of 7 read as a plain Euclidean distance; k is not given, here 3).

    What differs: the paper trains its backbone; here that stays frozen and a 1x1 projector behind it is trained, the
    identity at first (no bias: it would cancel in the score). The losses are means over patches, not sums.
    The paper is offline: with `epochs` above 0 each call of `learn` forgets, and trains on all its images (batches of
    16, best epoch kept, the memory one batch drawn by chance). The default, `epochs=0`, is the online form, ours:

    * The coreset is a stream's: a share of each image's patches joins it, and Algorithm 2, with weights, cuts it
      back when its table is full. So the mixture always stands for all images, in bounded memory.
    * The mixture is refitted on it at images 1, 2, 4, 8, ..., from fresh seeds and from what it was; the likelier is
      kept. Stepwise EM would be cheaper for each image, but can never leave the groups it found in the first one.
    * One step of Adam an image; the memory holds the latest 16 images and is projected anew when it scores.
    * Best without labels: every 16 images the projector duels with the one that scores, on an image that neither
      learned: which tells its patches better from patches with channels shuffled among them?
    * Weighted EM is our own (see mixture.py), and diagonal: 2000 patches do not tell K full covariances.

    The untrained control is `lr=0`: nearest neighbours in the same patches of 16 images. Show it beside SMCC. Image
    AUROC on the embedded backbone, 200 images learned, 160 tested, untrained to trained, three seeds: magnetic
    tiles .81 to .82 (by seed -.005 to +.012), boards (deeppcb) .54 to .60 (+.03 to +.09), photographs of paper 1.0
    both. There the choice of the best projector was worth nothing (within .003 of the last one), it only guards
    against ruin. `epochs=3` was worse than one pass online: it makes a sixteenth of the steps, and its
    memory is as good as the draw.

    Cost at 28 x 28, 176 channels, one thread of a busy machine: 10 to 15 ms to learn an image, 6 ms to score one.
    State: 3.2 MB, fixed (`covariance=full` adds 8 K C^2 bytes: 2.5 MB). With epochs: the features of all images of
    the call in memory twice, 1.1 MB an image, and 20 to 30 ms an image and three epochs.

    When not: the memory knows 16 images only, so normal looks that come seldom are anomalies when they come (on
    tiles and boards a coreset is better by about ten points), and a defect that was learned hides its like for 16
    images. Features are not whitened, so loud channels rule the distance: with whitened ones even the untrained
    control had .63 on the boards.
    """

    name: ClassVar[str] = "smcc"
    traits: ClassVar[Traits] = Traits(memory="bank")

    centers: int = param(
        10, "components of the mixture; their means are the center set", low=2, high=1000, log=True, search=(4, 64)
    )
    covariance: str = param("diag", "of the mixture's components", choices=("diag", "full"))
    bank: int = param(
        16, "images in the memory (the paper's batch size)",
        low=1, high=1000, unit="images", log=True, search=(4, 128),
    )  # fmt: skip
    sampling: float = param(
        0.1, "share of an image's patches that is drawn", low=0, high=1, open_low=True, log=True, search=(0.02, 0.5)
    )
    coreset: int = param(2000, "weighted patches on which the mixture is fitted", low=50, high=100_000, log=True)
    refit: float = param(2.0, "fit the mixture anew when the stream grew by this factor", low=1.01, high=100)
    neighbours: int = param(
        3, "nearest memory patches whose mean distance is the score", low=1, high=100, search=(1, 9)
    )
    lr: float = param(1e-3, "learning rate of Adam; 0: never train", low=0, high=1, log=True, search=(1e-5, 1e-2))
    weight_decay: float = param(5e-4, "L2 penalty within Adam", low=0, high=1, log=True)
    apart: float = param(1.0, "weight of L_o; 0: without", low=0, high=100)
    select: bool = param(True, "score with the best projector so far, not the last (label-free)")
    epochs: int = param(0, "0: online, one pass; else the paper's form, over the images of one call", low=0, high=1000)

    def _reset(self) -> None:
        self._grid = (0, 0)  # until the first image fixes it
        self._mixture: Mixture | None = None
        self._known: Tensor | None = None  # the projected memory, made when scoring
        self._seen = self._used = 0  # images, taken rows of the coreset
        self._due = 1  # the image at which to fit the mixture anew
        self._start(torch.empty(0))

    @property
    def _weight(self) -> Tensor:
        """The projector (C, C) as it is now."""
        return self._adam.params["projector"]

    # -- scoring

    def _score(self, features: Tensor) -> Scores:
        self._same_shape(features)
        turn = self._chosen if self.select else self._weight
        if self._known is None:  # derived from the state alone
            self._known = self._filled.flatten(0, 1) @ turn.T
        gaps = [mean_nearest(one.flatten(1).T @ turn.T, self._known, self.neighbours) for one in features]
        return self._finish(torch.stack(gaps).reshape(-1, *self._grid))

    @property
    def _filled(self) -> Tensor:
        """The drawn patches of the latest images, as they came: (images, patches, C)."""
        return self._bank[: self._seen]

    # -- learning

    @property
    def learns_per_image(self) -> bool:
        """Only in the online form."""
        return not self.epochs

    def _learn(self, features: Tensor) -> Learned:
        with torch.inference_mode(False), torch.no_grad():  # whatever the caller has switched on
            features = features.clone()
            if self._grid == (0, 0):
                self._open(features)
            self._same_shape(features)
            if self.epochs:
                both = self._learn_in_epochs(features)
            else:
                both = [self._take(one.flatten(1).T.contiguous()) for one in features]
        self._known = None
        return self._report(len(features), both)

    def _take(self, patches: Tensor) -> Terms:
        """One image (N, C): selection, coreset, mixture, a step, memory. Returns L_c and L_o for a patch."""
        if self.select and self.lr and self._seen and self._seen % self.bank == 0:
            self._duel(patches)
        drawn = self._draw(patches)
        self._absorb(drawn)
        if self._seen + 1 >= self._due:
            self._fit()
            self._due = max(self._seen + 2, int((self._seen + 1) * self.refit))
        terms = self._step(patches)
        self._bank[self._seen % self.bank] = drawn
        self._seen += 1
        return terms

    def _learn_in_epochs(self, features: Tensor) -> list[Terms]:
        """Algorithm 1 as printed on normal images (n, C, h, w): forgets what was learned, trains on all, repeatedly.

        Every tenth image trains nothing and says which epoch is kept (the untrained one, too, may be); the memory is
        one batch drawn by chance, the same for all epochs.
        """
        self._reset()
        self.images_learned = 0  # what comes is counted by `learn`
        images = features.flatten(2).mT  # (n, N, C)
        self._open(features)
        held = images[::10]
        training = torch.cat([images[i : i + 9] for i in range(1, len(images), 10)]) if len(images) > 1 else held
        terms = self._epochs(training, held)
        self._seen = max(len(features), self.bank)  # every slot of the memory is filled
        self._start(self._chosen)  # without the moments of Adam, which belong to the last epoch
        return terms

    def _epochs(self, training: Tensor, held: Tensor) -> list[Terms]:
        """All of Algorithm 1 behind the backbone; training (n, N, C), held (m, N, C). Returns the last epoch's."""
        for one in training:
            self._absorb(self._draw(one))
        self._fit()
        self._due = int(len(training) * self.refit) + 1
        batch = torch.randperm(len(training), generator=self._rng)[: self.bank].tolist()
        for slot in range(self.bank):
            self._bank[slot] = self._draw(training[batch[slot % len(batch)]])
        contrast = [(one, self._shuffled(one)) for one in held]
        terms: list[Terms] = []
        best = self._worth(self._weight, self._bank, contrast)
        for _ in range(self.epochs):
            order = torch.randperm(len(training), generator=self._rng)
            terms = [self._step(training[rows.to(training.device)].flatten(0, 1)) for rows in order.split(self.bank)]
            worth = self._worth(self._weight, self._bank, contrast)
            if worth > best:
                best, self._chosen = worth, self._weight.clone()
        return terms

    def _duel(self, patches: Tensor) -> None:
        """The projector as it is now against the one that scores, on an image (N, C) that neither learned."""
        contrast = [(patches, self._shuffled(patches))]
        worth = [self._worth(turn, self._filled, contrast) for turn in (self._chosen, self._weight)]
        if worth[1] > worth[0]:
            self._chosen = self._weight.clone()

    def _worth(self, turn: Tensor, bank: Tensor, contrast: Sequence[tuple[Tensor, Tensor]]) -> float:
        """How well a projector tells normal patches (N, C) from shuffled ones, mean over images."""
        known, k = bank.flatten(0, 1) @ turn.T, self.neighbours
        pairs = [[mean_nearest(x @ turn.T, known, k) for x in pair] for pair in contrast]
        return sum(separation(normal, shuffled) for normal, shuffled in pairs) / len(pairs)

    def _shuffled(self, patches: Tensor) -> Tensor:
        """(N, C) where each channel comes from a patch of its own: usual values, unusual together.

        Its chance is its own, so that detectors with and without training or selection draw the same patches.
        """
        own = torch.Generator().manual_seed(self.seed * _PRIME + self._seen)
        order = torch.rand(patches.shape, generator=own).argsort(0)
        return patches.gather(0, order.to(patches.device))

    def _draw(self, patches: Tensor) -> Tensor:
        """The share `sampling` of an image's patches (N, C), in the order of the grid."""
        rows = torch.randperm(len(patches), generator=self._rng)[: self._bank.shape[1]].sort().values
        return patches[rows.to(patches.device)]

    def _absorb(self, drawn: Tensor) -> None:
        """Takes patches (n, C) of weight one into the coreset, which is reduced when its table is full."""
        points = torch.cat([self._points[: self._used], drawn])
        gamma = torch.cat([self._gamma[: self._used], self._gamma.new_ones(len(drawn))])
        if len(points) > len(self._points):
            rows, gamma = coreset(points.double(), gamma, self.coreset, self.centers, self._rng)
            points = points[rows]
        self._used = len(points)
        self._points.zero_()[: self._used] = points
        self._gamma.zero_()[: self._used] = gamma

    def _fit(self) -> None:
        """The mixture anew: from fresh k-means++ and from what it was; the likelier of the two is kept."""
        points, gamma = self._points[: self._used].double(), self._gamma[: self._used]
        ridge = max(_RIDGE * float(points.var(0, correction=0).mean()), _LEAST)
        start = seeds(points, gamma, self.centers, self._rng)
        fits = [begin(points, gamma, start, self.covariance == "full", ridge)]
        fits += [self._mixture] if self._mixture is not None else []
        fits = [improve(one, points, gamma, _EM_STEPS, ridge) for one in fits]
        self._mixture = max(fits, key=lambda one: one.log_likelihood(points, gamma))

    def _step(self, patches: Tensor) -> Terms:
        """One step of Adam on patches (N, C); `lr` = 0 changes nothing. Returns L_c and L_o before it."""
        assert self._mixture is not None  # fitted at the first image
        near, gap, slope = losses(patches @ self._weight.T, self._mixture.means.float(), self.apart)
        if self.lr:
            self._adam.step([slope.T @ patches])
        return near, gap

    def _report(self, images: int, terms: Sequence[Terms]) -> Learned:
        near = sum(one[0] for one in terms) / len(terms) if terms else math.nan
        gap = sum(one[1] for one in terms) / len(terms) if terms else math.nan
        detail = {"L_c": near, "L_o": gap} if terms else {}
        return Learned(images=images, loss=near + self.apart * gap, kept=self._filled.shape[:2].numel(), detail=detail)

    # -- state

    def _open(self, features: Tensor) -> None:
        """Sets up tables of fixed size for features of this shape (B, C, h, w)."""
        channels, height, width = features.shape[1:]
        drawn = max(1, round(self.sampling * height * width))
        device = features.device
        self._grid = (height, width)
        self._bank = torch.zeros(self.bank, drawn, channels, device=device)
        self._points = torch.zeros(self.coreset + max(self.coreset // 4, drawn), channels, device=device)
        self._gamma = torch.zeros(len(self._points), dtype=torch.float64, device=device)
        self._start(torch.eye(channels, device=device))

    def _start(self, projector: Tensor) -> None:
        """The one that scores, and a copy of it that Adam steps in place."""
        self._chosen = projector
        self._adam = Adam({"projector": projector.clone()}, self.lr, self.weight_decay)

    def _same_shape(self, features: Tensor) -> None:
        want = (len(self._weight), *self._grid)
        if tuple(features.shape[1:]) != want:
            raise ConfigError(f"{self.name}: expected features {want} as learned, got {tuple(features.shape[1:])}.")

    def _pack(self) -> dict[str, Tensor]:
        if self._mixture is None:
            return {}
        return {
            "grid": torch.tensor(self._grid),
            "counts": torch.tensor([self._seen, self._used, self._adam.steps, self._due]),
            "bank": self._bank,
            "coreset.points": self._points,
            "coreset.gamma": self._gamma,
            "mixture.weights": self._mixture.weights,
            "mixture.means": self._mixture.means,
            "mixture.covariances": self._mixture.covariances,
            "projector": self._weight,
            "projector.chosen": self._chosen,
            **{f"adam.{kind}": moments["projector"] for kind, moments in self._adam.moments.items()},
        }

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        height, width = tensors["grid"].tolist()
        channels, k = len(tensors["projector"]), self.centers
        self._open(torch.empty(1, channels, height, width, device=tensors["projector"].device))
        spread = (k, channels, channels) if self.covariance == "full" else (k, channels)
        shapes = ((k,), (k, channels), spread)
        self._mixture = Mixture(*(torch.zeros(s, dtype=torch.float64, device=self.device) for s in shapes))
        fill(self._pack(), tensors, "state")
        self._seen, self._used, self._adam.steps, self._due = tensors["counts"].tolist()
        if not 0 < self._used <= len(self._points) or self._seen < 1:
            raise ValueError("the counts refer to rows that are not there")


def mean_nearest(queries: Tensor, known: Tensor, k: int) -> Tensor:
    """Equations 7 and 8: mean distance of each query (Q, D) to its k nearest rows of (N, D): (Q,)."""
    squares = torch.addmm(known.square().sum(1), queries, known.T, alpha=-2)
    squares = squares.topk(min(k, len(known)), largest=False).values + queries.square().sum(1, keepdim=True)
    return squares.clamp_min(0).sqrt().mean(1)


def losses(z: Tensor, centers: Tensor, apart: float) -> tuple[float, float, Tensor]:
    """Equations 4 and 5 for z (N, D) and centers (K, D), each as the mean over patches where the paper sums.

    Also the gradient (N, D) of L_c + apart * L_o: along the unit vector from the nearest center and against the
    one from the second nearest. On a center, where the distance has no slope, it is zero.
    """
    distance = torch.cdist(z, centers, compute_mode="donot_use_mm_for_euclid_dist")
    (first, second), (one, two) = (t.unbind(1) for t in distance.topk(2, largest=False))
    from_first, from_second = (
        (z - centers[which]) / gap.clamp(min=_LEAST)[:, None] for which, gap in ((one, first), (two, second))
    )
    slope = ((1 + apart) * from_first - apart * from_second) / len(z)
    return float(first.mean()), float((first - second).mean()), slope


def separation(normal: Tensor, shuffled: Tensor) -> float:
    """Distance of two means in deviations (Cohen's d): what no mere shrinking or growing of space changes."""
    spread = ((normal.var() + shuffled.var()) / 2).sqrt()
    return float((shuffled.mean() - normal.mean()) / spread.clamp(min=_LEAST))
