"""EfficientAD: a student learns what a distilled teacher says of normal images, an autoencoder what they are.

Batzner, Heckler, König: "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies" (2023,
arXiv 2303.14535). Letters: T teacher, S1 and S2 the two halves of the student, A autoencoder, P a picture that the
teacher was made from, C channels of the teacher, g = S/4 the side of the grid.
"""

import math
import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .adam import Adam, fill
from .detector import ImageDetector, Learned, Scores, Traits
from .errors import WeightsError
from .moments import under
from .params import param
from .pdn import MODELS, PDN, Autoencoder, drawn, grid, scaled, unfilled
from .teacher import HOW, Teacher

LOW, HIGH = 0.9, 0.995  # the paper's quantiles a and b ...
AT_HIGH = 0.1  # ... and what b becomes; a becomes 0
WEIGHT_DECAY = 1e-5
JITTER = (0.8, 1.2)  # factor of brightness, contrast or saturation in what the autoencoder sees
GREY = (0.299, 0.587, 0.114)
RING = 64  # images whose maps give the quantiles
POSITIONS = 256  # of the grid, that are kept of each of them


@dataclass(kw_only=True, eq=False)
class EfficientAD(ImageDetector):
    """Student against teacher (where a patch looks odd) and against autoencoder (where the whole does).

    The paper's: both networks, the loss of hard features, the penalty on pictures of the teacher's pretraining, the
    loss of the autoencoder and of the student that learns its mistakes, maps normalised by quantiles of images that
    were not trained on, Adam at 1e-4 with weight decay 1e-5, one image a step. `learn` is ONE step on its batch.

    Ours, or different:

    * The teacher is one's own: `everline pretrain teacher` distils a backbone into it. It, its normalisation (of its
      pretraining images, so that targets stand still when products change) and its pictures are part of the state.
    * Held-out images: by the bytes of an image, so the same ones in every epoch. Their maps go into a ring of the last
      64, as they were when they came. Until the first one has come, maps of training images stand in: local of the
      image, global of its augmented twin, with dropout on.
    * While the student still improves, such quantiles lag behind, and not by the same factor for both maps, so that
      one drowns the other. `fresh` keeps the latest pictures, and looks at them anew before scoring. On the
      conformance suite's discs (160 images, random teacher, width .12, mean of four seeds) image AUROC was .65
      without and .87 with `fresh=8` at a learning rate of 3e-3, .75 and .86 at 1e-3; by seed from .40 to 1.
    * The paper lowers the learning rate near the end; a stream has no end, so it stays. It greys some pretraining
      pictures, and crops them; this takes them as they are.
    * `width` narrows the hidden layers of all three networks (not the autoencoder's 64 numbers).

    Cost, one thread of a busy machine, `small`: at 128 pixels and width .5, 0.65 s to learn an image, 0.13 s to score
    one, 19 MB of state; at 256 and width 1, 10 s, 2.1 s and 75 MB; `medium` there, 62 s, 6 s and 185 MB. Beside that
    the teacher's pictures, 3 s^2 bytes each, fixed. With `fresh`, the first score after learning takes `fresh` more.

    When not: with less than some hundred steps the student has not learned the teacher, and everything is odd: it
    wants epochs over images, not one look at each. One pass over 300 magnetic tiles (64 pixels, width .25, 1e-3, one
    seed, a teacher of 300 steps on 536 pictures of other things) ended at chance: image AUROC .50 (PaDiM .93),
    .46 with `fresh=8`. Three epochs over 35 images of a paper (128 pixels, width .25, 1e-3, fresh=8, a teacher of
    1,200 steps) were enough to locate its defects better than PaDiM does: docs/results.md. Nothing holds on to former
    products: without replay they are forgotten (table 5.1 of the thesis: three quarters of pixel F1). It is no better
    than its teacher; one distilled from few pictures of one kind knows little of others.
    """

    name: ClassVar[str] = "efficientad"
    traits: ClassVar[Traits] = Traits(end_to_end=True, epochs=70, batch=1)

    teacher: str = param("", "teacher file (everline pretrain teacher makes one), or none: random, to test with")
    model: str = param("small", "patch description network: four or six convolutions", choices=MODELS)
    width: float = param(1.0, "share of the published kernels in hidden layers", low=0.01, high=4)
    lr: float = param(1e-4, "learning rate of Adam", low=0, high=1, log=True, search=(1e-5, 3e-3))
    hard: float = param(
        0.999, "quantile of squared differences above which the student learns",
        low=0, high=0.9999, search=(0.9, 0.9995),
    )  # fmt: skip
    penalty: float = param(
        1.0, "weight of the penalty on pretraining pictures; 0: without", low=0, high=1000, search=(0.0, 2.0)
    )
    holdout: float = param(
        0.1, "share of images that are not trained on, for the quantiles", low=0, high=0.9, search=(0.05, 0.3)
    )
    fresh: int = param(
        0, "latest held-out images that are kept and looked at anew for the quantiles (ours); 0: maps as they were",
        low=0, high=RING, search=(0, 16),
    )  # fmt: skip

    @property
    def network_bytes(self) -> int:
        """Of teacher, student and autoencoder. Raises WeightsError."""
        of = self._nets or Nets.of(self._find_teacher(), self)
        found = (of.teacher.net, of.student, of.autoencoder)
        return sum(t.numel() * t.element_size() for net in found for t in net.state_dict().values())

    # -- setting up

    def _reset(self) -> None:
        self._nets: Nets | None = None
        self._ring = torch.empty(0)  # float32 (RING, 2, positions): local and global maps
        self._filled = self._next = 0  # rows of the ring that are in use; the one to be written next
        self._held = False  # whether they are of held-out images
        self._pictures = torch.empty(0)  # uint8 (fresh, 3, S, S): the latest held-out images
        self._looks = 0  # held-out images that came
        self._levels: Tensor | None = None  # the two quantiles of both maps, made when scoring

    def _find_teacher(self) -> Teacher:
        if not self.teacher:
            raise WeightsError(
                f"{self.name}: no teacher: set teacher=FILE; {HOW} teacher=none takes random weights, to test with."
            )
        if self.teacher == "none":
            own = torch.Generator().manual_seed(self.seed)
            return Teacher.random(self.model, self.width, own, self.device)
        return Teacher.read(self.teacher, self.model, self.width, self.device)

    def _open(self, teacher: Teacher) -> "Nets":
        """Networks whose weights are still to be filled in, and an empty ring."""
        self._nets = Nets.of(teacher, self)
        own = torch.Generator().manual_seed(self.seed)
        self._places = torch.randperm(grid(self.size) ** 2, generator=own)[:POSITIONS].to(self.device)
        self._ring = torch.zeros(RING, 2, len(self._places), device=self.device)
        shape = (self.fresh, 3, self.size, self.size)
        self._pictures = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        return self._nets

    # -- scoring

    def _score(self, features: Tensor) -> Scores:
        assert self._nets is not None  # `ready` says that an image was learned
        x = scaled(features)
        both = self._normalised(self._nets.maps(x)).mean(1, keepdim=True)
        maps = F.interpolate(both, (self.size, self.size), mode="bilinear")[:, 0]
        return Scores(image=maps.amax(dim=(1, 2)), maps=maps)

    def _normalised(self, maps: Tensor) -> Tensor:
        """(B, 2, g, g) -> the same, so that quantile a of the normal maps is 0 and quantile b is 0.1."""
        if self._levels is None:  # derived from the state alone
            seen = self._normal_maps()
            self._levels = torch.quantile(seen, torch.tensor([LOW, HIGH], device=seen.device), dim=1)
        low, high = self._levels[..., None, None]
        span = torch.where(high > low, high - low, 1.0)  # maps that never differ are only shifted
        return AT_HIGH * (maps - low) / span

    def _normal_maps(self) -> Tensor:
        """(2, values) of local and global maps of normal images: from the ring, or anew from the kept pictures."""
        kept = self._pictures[: self._looks]
        if not len(kept):
            return self._ring[: self._filled].transpose(0, 1).flatten(1)
        assert self._nets is not None
        maps = torch.cat([self._nets.maps(scaled(one)) for one in kept.split(1)])
        return maps.flatten(2)[:, :, self._places].transpose(0, 1).flatten(1)

    # -- learning

    def _learn(self, features: Tensor) -> Learned:
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched off
            self._levels = None
            if self._nets is None:
                nets = self._open(self._find_teacher())
                drawn(nets.student, self._rng)
                drawn(nets.autoencoder, self._rng)
            held = torch.tensor([self._holds_out(one) for one in features], device=features.device)
            detail = {"held_out": float(held.sum())}
            if bool(held.any()):
                self._look(features[held])
            if not bool(held.all()):
                detail |= self._step(features[~held])
        return Learned(len(features), detail.get("loss", math.nan), kept=self._filled, detail=detail)

    def _holds_out(self, image: Tensor) -> bool:
        """By the bytes of the image (3, S, S) alone: whenever it comes, it is held out or never."""
        return zlib.crc32(image.cpu().contiguous().numpy().tobytes()) % 2**16 < self.holdout * 2**16

    @torch.no_grad()
    def _look(self, images: Tensor) -> None:
        """Held-out images: their maps go into the ring, and those of training images out of it."""
        assert self._nets is not None
        if not self._held:
            self._held, self._filled, self._next = True, 0, 0
        for one in images.split(1):
            self._keep(self._nets.maps(scaled(one)))
            if self.fresh:
                self._pictures[self._looks % self.fresh] = one[0]
            self._looks += 1

    def _keep(self, maps: Tensor) -> None:
        """(B, 2, g, g), at the places that are kept, over the oldest in the ring."""
        for one in maps.flatten(2)[:, :, self._places]:
            self._ring[self._next] = one
            self._next = (self._next + 1) % RING
            self._filled = min(self._filled + 1, RING)

    def _step(self, images: Tensor) -> dict[str, float]:
        """One step of Adam on images (B, 3, S, S). Returns the losses."""
        assert self._nets is not None
        nets, c = self._nets, self._nets.teacher.channels
        x, y = scaled(images), scaled(jittered(images, self._rng))
        local = (nets.teacher(x) - nets.student(x, 0, c)).square()
        target, rebuilt = nets.teacher(y), nets.autoencoder(y, self._rng)
        apart = (rebuilt.detach() - nets.student(y, c)).square()
        losses = {
            "hard": hardest(local, self.hard),
            "autoencoder": (target - rebuilt).square().mean(),
            "student_autoencoder": apart.mean(),
        }
        if self.penalty:
            picture = scaled(nets.teacher.picture(self.size, self._rng))
            losses["penalty"] = self.penalty * nets.student(picture, 0, c).square().mean()
        loss = torch.stack(list(losses.values())).sum()
        nets.adam.step(torch.autograd.grad(loss, list(nets.adam.params.values())))
        if not self._held:
            self._keep(torch.stack([local.detach().mean(1), apart.detach().mean(1)], 1))
        return {"loss": float(loss.detach()), **{name: float(one.detach()) for name, one in losses.items()}}

    # -- state

    def _pack(self) -> dict[str, Tensor]:
        if self._nets is None:
            return {}
        out = {f"teacher.{k}": t for k, t in self._nets.teacher.tensors().items()}
        out |= {f"weights.{k}": t for k, t in self._nets.adam.params.items()}
        out |= {f"adam.{k}": t for k, t in self._nets.adam.tensors().items()}
        out |= {"pictures": self._pictures} if self.fresh else {}
        place = torch.tensor([self._filled, self._next, int(self._held), self._looks])
        return out | {"ring": self._ring, "ring.place": place}

    def _unpack(self, tensors: dict[str, Tensor]) -> None:
        if not tensors:
            return
        teacher = Teacher.of(self.model, self.width, under(tensors, "teacher."), self.device)
        nets = self._open(teacher)
        fill(nets.adam.params, under(tensors, "weights."), "weights")
        nets.adam.load(under(tensors, "adam."))
        fill({"ring": self._ring, **({"pictures": self._pictures} if self.fresh else {})}, tensors, "state")
        self._filled, self._next, held, self._looks = tensors["ring.place"].tolist()
        if not (0 <= self._filled <= RING and 0 <= self._next < RING and self._looks >= 0):
            raise ValueError(f"ring.place must lie within {RING} rows, got {self._filled}, {self._next}")
        self._held = bool(held)


@dataclass(frozen=True)
class Nets:
    """What looks at an image: teacher, student (its halves S1 and S2) and autoencoder, and what trains the two."""

    teacher: Teacher
    student: PDN
    autoencoder: Autoencoder
    adam: Adam

    @classmethod
    def of(cls, teacher: Teacher, like: EfficientAD) -> "Nets":
        """For a teacher, and a detector's size, width and learning rate; weights are still to be filled in."""
        c = teacher.channels
        student = unfilled(lambda: PDN(like.model, like.width, c, doubled=True)).to(like.device)
        autoencoder = unfilled(lambda: Autoencoder(like.size, like.width, c)).to(like.device)
        both = {"student": student, "autoencoder": autoencoder}
        params = {f"{kind}.{name}": p for kind, net in both.items() for name, p in net.named_parameters()}
        return cls(teacher, student, autoencoder, Adam(params, like.lr, WEIGHT_DECAY))

    def maps(self, x: Tensor) -> Tensor:
        """Scaled images -> float32 (B, 2, g, g): local (T - S1)^2 and global (A - S2)^2, means over channels."""
        first, second = self.student(x).split(self.teacher.channels, dim=1)
        local = (self.teacher(x) - first).square().mean(1)
        return torch.stack([local, (self.autoencoder(x) - second).square().mean(1)], 1)


def hardest(squared: Tensor, quantile: float) -> Tensor:
    """The mean of all values at or above their quantile (with linear interpolation), as a scalar."""
    flat = squared.flatten()
    count = max(1, len(flat) - math.ceil(quantile * (len(flat) - 1)))
    level = flat.detach().topk(count, sorted=False).values.amin()
    return flat[flat.detach() >= level].mean()


def jittered(images: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness, contrast or saturation of each by a factor in [.8, 1.2]: uint8 -> float on 0..255 (B, 3, S, S)."""
    out = []
    for one in images.float():
        kind = int(torch.randint(3, (1,), generator=rng))
        factor = float(torch.empty(1).uniform_(*JITTER, generator=rng))
        grey = (one * one.new_tensor(GREY)[:, None, None]).sum(0, keepdim=True)
        towards = (torch.zeros_like(one), grey.mean(), grey)[kind]
        out.append((towards + factor * (one - towards)).clamp(0, 255))
    return torch.stack(out)
