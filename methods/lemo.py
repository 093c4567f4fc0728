"""LeMO: a few learned prototypes and a learned 1x1 projection, one gradient step an image.

Gao, Luo, Shen: "Towards Total Online Unsupervised Anomaly Detection and Localization in Industrial Vision".
Letters: C channels of the backbone, D dimensions after the projector, K prototypes, N = h*w patches.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .adam import Adam, fill
from .detector import FeatureDetector, Learned, Scores, Traits
from .errors import ConfigError
from .moments import Moments, whitening
from .params import param

KMEANS_STEPS = 10


@dataclass(kw_only=True, eq=False)
class LeMO(FeatureDetector):
    """Learning memory for online anomaly detection.

    The paper's: coordinates beside the features, a 1x1 convolution, K = 10 prototypes filled with orthogonal
    noise, the AnoNCE loss (equations 1, 2), three updates and three initialisations (table 6), two scores
    (equations 3, 4), Adam with weight decay 5e-4, one step an image. (It calls the convolution non-linear but
    names no activation: there is none.)

    Ours: more prototypes than dimensions start as several orthonormal sets; `whiten` (on), `attraction` (off), the
    orthogonal projector and a learning rate of 1e-4. AnoNCE asks only that the nearest prototype be *relatively*
    nearer; on the raw features of the embedded backbone it falls to zero, and image AUROC ends at chance or below.
    Whitening makes the distance to the prototypes say how unusual a patch is, and is at its level after some 30
    images. The other remedy, `whiten=False, lr=1e-3, attraction=1`, was worse by 1 to 6 points on two of four sets and
    equal on two. At 1e-3 the whitened detector loses again what the whitening gave.
    As printed: `whiten=False, lr=1e-3, projector="uniform"`. The untrained control: `lr=0, update="none"`.
    Show it beside LeMO: on the embedded backbone the two are equal within a point or two, so there whitening, not
    training, does the work.

    Cost of a 224-pixel image on one core, behind the backbone: about 4 ms to learn (F: 12 ms), 1.5 ms to score.
    State: 0.66 MB with 176 channels, 12 D (C + K + 3) + 8 C^2 bytes in general, whatever the stream's length. Both
    grow with C^2: give `dim` a lower value on a wide backbone.
    When not: many kinds of normal patch, or parts that are not aligned (a coreset sees more), aligned parts
    (PaDiM sees more). The running moments never forget, so they follow a drift ever more slowly. It is not `ready`
    before its first image: it could score against noise, but such a score means nothing.
    """

    name: ClassVar[str] = "lemo"
    traits: ClassVar[Traits] = Traits(memory="prototypes")

    prototypes: int = param(
        10, "prototypes in the memory (the paper's K)", low=2, high=1000, log=True, search=(4, 128)
    )
    dim: int = param(0, "dimensions after the projector; 0: as many as channels and coordinates", low=0, high=8192)
    update: str = param(
        "L", "of the prototypes: none, Learning-based, Feature-enhanced",
        choices=("none", "L", "F"), search=("none", "L", "F"),
    )  # fmt: skip
    init: str = param("orthogonal", "first prototypes", choices=("image", "noise", "orthogonal"))
    projector: str = param(
        "orthogonal", "first 1x1 convolution; uniform: torch's own", choices=("orthogonal", "uniform")
    )
    score_rule: str = param("nearest", "nearest: equation 3; softmin: equation 4", choices=("nearest", "softmin"))
    whiten: bool = param(True, "whiten the features by their running moments (ours)")
    shrinkage: float = param(
        0.01, "share of the mean variance added before whitening",
        low=0, high=1, open_low=True, log=True, search=(0.001, 0.3), when=("whiten", (True,)),
    )  # fmt: skip
    refresh: float = param(1.1, "whiten anew when the stream grew by this factor; 1: every image", low=1, high=10)
    lr: float = param(
        1e-4, "learning rate of Adam (paper: 1e-3); 0: never train", low=0, high=1, log=True, search=(1e-6, 1e-2)
    )
    weight_decay: float = param(5e-4, "L2 penalty within Adam", low=0, high=1, log=True)
    margin: float = param(1e-5, "distance that costs nothing (the paper's r)", low=0, high=1000)
    temperature: float = param(
        0.1, "of AnoNCE; the paper says sharp, gives none", low=1e-3, high=100, log=True, search=(0.01, 1.0)
    )
    positives: int = param(
        1, "nearest prototypes that attract; the paper gives no number", low=1, high=999, search=(1, 3)
    )
    attraction: float = param(
        0.0, "weight of the mean distance to the nearest prototype (ours)",
        low=0, high=1000, search=(0.0, 2.0), when=("whiten", (False,)),
    )  # fmt: skip
    min_share: float = param(
        0.5, "F: groups below this share of N/K are merged and split",
        low=0, high=0.5, search=(0.0, 0.5), when=("update", ("F",)),
    )  # fmt: skip
    momentum: float = param(
        0.0, "F: share of the old prototype that is kept", low=0, high=1, search=(0.0, 0.99), when=("update", ("F",))
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positives >= self.prototypes:
            raise ConfigError(
                f"{self.name}: positives must be below prototypes ({self.prototypes}), got {self.positives}: "
                f"with all of them positive the loss is always zero."
            )

    def _reset(self) -> None:
        self._learned: dict[str, Tensor] = {}  # projector (D, C+3), prototypes (K, D)
        self._adam = Adam({}, self.lr, self.weight_decay)  # of those that are trained
        self._moments: Moments | None = None
        self._whitening: tuple[Tensor, Tensor] | None = None  # mean (C,), matrix (C, C)
        self._due = 1  # the image at which to whiten anew

    @property
    def _trained(self) -> tuple[str, ...]:
        """The tensors that the gradient changes."""
        return ("projector", "prototypes") if self.update == "L" else ("projector",)

    def _check(self, features: Tensor) -> None:
        super()._check(features)
        channels = features.shape[1]
        if self._learned:
            known = self._learned["projector"].shape[1] - 3
            if channels != known:
                raise ConfigError(f"{self.name}: learned from features of {known} channels, got {channels}.")
        elif self.init == "image" and self.prototypes > features[0, 0].numel():
            raise ConfigError(f"{self.name}: prototypes={self.prototypes} are more than an image has patches.")

    # -- scoring

    def _score(self, features: Tensor) -> Scores:
        distance = torch.cdist(self._inputs(features) @ self._learned["projector"].T, self._learned["prototypes"])
        return self._finish(anomaly(distance, self.score_rule).unflatten(1, features.shape[2:]))

    def _inputs(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, N, C+3): (whitened) features, two coordinates in [-1, 1], and a one for the bias."""
        b, _, h, w = features.shape
        x = features.flatten(2).transpose(1, 2)
        if self._whitening is not None:
            mean, matrix = self._whitening
            x = (x - mean) @ matrix.T
        rows, cols = (torch.linspace(-1, 1, side, device=x.device) for side in (h, w))
        grid = torch.stack([*torch.meshgrid(rows, cols, indexing="ij"), torch.ones(h, w, device=x.device)], -1)
        return torch.cat([x, grid.flatten(0, 1).expand(b, -1, -1)], 2)

    # -- learning

    def _learn(self, features: Tensor) -> Learned:
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
            losses = [self._step(image[None]) for image in features.clone()]
        return Learned(images=len(features), loss=sum(losses) / len(losses), kept=self.prototypes)

    def _step(self, image: Tensor) -> float:
        """One image (1, C, h, w): moments, one step of Adam, then the F update. Returns its loss."""
        self._take_moments(image)
        x = self._inputs(image)[0]
        if not self._learned:
            self._begin(x)
        leaves = {k: t.detach().requires_grad_(k in self._trained) for k, t in self._learned.items()}
        distance = torch.cdist(x @ leaves["projector"].T, leaves["prototypes"])
        loss = anonce(distance, self.positives, self.margin, self.temperature)
        if self.attraction:
            loss = loss + self.attraction * F.relu(distance.amin(1) - self.margin).mean()
        self._adam.step(torch.autograd.grad(loss, [leaves[k] for k in self._trained]))
        if self.update == "F":
            self._regroup(x @ self._learned["projector"].T)
        return float(loss.detach())

    def _take_moments(self, image: Tensor) -> None:
        """Adds an image (1, C, h, w) to the running moments and, when due, makes the whitening anew."""
        if not self.whiten:
            return
        self._moments = self._moments or Moments(1, image.shape[1], image.device)
        self._moments.add(image.flatten(2).mT)
        number = self._adam.steps + 1  # one step an image
        if number >= self._due:
            matrix = whitening(self._moments.covariance()[0], self.shrinkage)
            self._whitening = self._moments.mean()[0].float(), matrix.float()
            self._due = math.ceil(self.refresh * number)

    def _begin(self, x: Tensor) -> None:
        """Draws projector and prototypes; x: (N, C+3), the first image."""
        width, k = x.shape[1] - 1, self.prototypes
        dim = self.dim or width
        if self.projector == "orthogonal":
            weight = orthogonal(dim, width, self._rng)
        else:
            weight = (2 * torch.rand(dim, width, generator=self._rng) - 1) / math.sqrt(width)
        projector = torch.cat([weight, torch.zeros(dim, 1)], 1).to(x.device)
        if self.init == "image":
            prototypes = kmeans(x @ projector.T, k, self._rng)
        elif self.init == "noise":
            prototypes = torch.rand(k, dim, generator=self._rng)
        else:
            sets = [orthogonal(min(dim, k - start), dim, self._rng) for start in range(0, k, dim)]
            prototypes = torch.cat(sets)  # ours: no more than `dim` are orthogonal to each other
        self._start({"projector": projector, "prototypes": prototypes.to(x.device)})

    def _start(self, learned: dict[str, Tensor]) -> None:
        """Takes over tensors, of which Adam steps those that are trained in place."""
        self._learned = learned
        self._adam = Adam({name: learned[name] for name in self._trained}, self.lr, self.weight_decay)

    def _regroup(self, z: Tensor) -> None:
        """The feature-enhanced update: prototypes become the centroids of balanced groups. z: (N, D)."""
        old = self._learned["prototypes"]
        labels = balanced(z, torch.cdist(z, old).argmin(1), len(old), self.min_share, self._rng)
        new = centroids(z, labels, old)
        self._learned["prototypes"] = new.lerp(old, self.momentum)

    # -- state

    def _pack(self) -> dict[str, Tensor]:
        if not self._learned:
            return {}
        out = {**self._learned, **self._adam_moments()}
        out["steps"] = torch.tensor([self._adam.steps, self._due])
        if self._moments is not None and self._whitening is not None:
            out |= {f"moments.{k}": t for k, t in self._moments.tensors().items()}
            out["whitening.mean"], out["whitening.matrix"] = self._whitening
        return out

    def _adam_moments(self) -> dict[str, Tensor]:
        """By their names in a state."""
        both = self._adam.moments.items()
        return {f"adam.{name}.{kind}": t for kind, found in both for name, t in found.items()}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        width = tensors["projector"].shape[1]
        shapes = {"projector": (self.dim or width - 1, width), "prototypes": (self.prototypes, self.dim or width - 1)}
        self._start({k: _shaped(tensors, k, shape) for k, shape in shapes.items()})
        fill(self._adam_moments(), tensors, "Adam")
        self._adam.steps, self._due = tensors["steps"].tolist()
        if self.whiten:
            c = width - 3
            self._moments = Moments.of({k[8:]: t for k, t in tensors.items() if k.startswith("moments.")})
            if (self._moments.groups, self._moments.dim) != (1, c):
                raise ValueError(f"moments of {self._moments.groups} x {self._moments.dim}, expected 1 x {c}")
            self._whitening = (
                _shaped(tensors, "whitening.mean", (c,)),
                _shaped(tensors, "whitening.matrix", (c, c)),
            )


def _shaped(tensors: dict[str, Tensor], key: str, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor of the state, held to its shape."""
    value = tensors[key]
    if value.shape != shape or value.dtype != torch.float32:
        raise ValueError(f"{key} is {value.dtype} {tuple(value.shape)}, expected float32 {shape}")
    return value


def anomaly(distance: Tensor, rule: str) -> Tensor:
    """Distances to the prototypes (..., K) -> (...): equation 3 (nearest) or 4 (softmin).

    The default is 3. The weight of 4 is the share of the nearest prototype in a softmin; where several are about
    equally near, which says nothing of anomaly, it halves the score or worse.
    """
    nearest = distance.amin(-1)
    return nearest if rule == "nearest" else nearest * torch.softmax(-distance, -1).amax(-1)


def anonce(distance: Tensor, positives: int, margin: float, temperature: float) -> Tensor:
    """Equation 2: distances (N, K) -> scalar. The `positives` nearest prototypes of a patch are its p+."""
    logits = -F.relu(distance - margin) / temperature
    logits = logits - logits.detach().amax(1, keepdim=True)  # cancels; keeps float32 exact at large distances
    near = logits.topk(positives, dim=1).values
    return (logits.logsumexp(1) - near.logsumexp(1)).mean()


def orthogonal(rows: int, cols: int, rng: torch.Generator) -> Tensor:
    """(rows, cols) of Gaussian noise, decoupled by QR: orthonormal rows (columns, where there are more rows)."""
    q = torch.linalg.qr(torch.randn(max(rows, cols), min(rows, cols), generator=rng)).Q
    return q if rows >= cols else q.T.contiguous()


def kmeans(z: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Lloyd's algorithm from k distinct rows drawn by chance: (N, D) -> (k, D)."""
    means = z[torch.randperm(len(z), generator=rng)[:k].to(z.device)]
    for _ in range(KMEANS_STEPS):
        means = centroids(z, torch.cdist(z, means).argmin(1), means)
    return means


def centroids(z: Tensor, labels: Tensor, old: Tensor) -> Tensor:
    """Mean of each group (K, D); an empty group keeps its old one."""
    member = F.one_hot(labels, len(old)).to(z.dtype)  # a product, where index_add has no fixed order on a GPU
    count = member.sum(0)[:, None]
    return torch.where(count > 0, member.T @ z / count.clamp(min=1), old)


def balanced(z: Tensor, labels: Tensor, k: int, min_share: float, rng: torch.Generator) -> Tensor:
    """Labels (N,) whose groups all have at least `min_share` (up to one half) of N/k members.

    While a group is too small it joins the largest, and 2-means makes two of them anew; where that leaves one
    too small, the cut moves along the same axis until both are large enough. So every round ends one small group.
    """
    floor, labels = int(min_share * len(z) / k), labels.clone()
    for _ in range(k):
        sizes = torch.bincount(labels, minlength=k)
        small, large = int(sizes.argmin()), int(sizes.argmax())
        if sizes[small] >= floor:
            break
        rows = ((labels == small) | (labels == large)).nonzero()[:, 0]
        to = torch.cdist(z[rows], kmeans(z[rows], 2, rng))
        order = (to[:, 0] - to[:, 1]).argsort(stable=True)
        cut = min(max(int((to[:, 0] <= to[:, 1]).sum()), floor), len(rows) - floor)
        labels[rows[order[:cut]]], labels[rows[order[cut:]]] = large, small
    return labels
