"""Distilling a backbone into a patch description network: how a teacher of EfficientAD is made.

Batzner, Heckler, König (arXiv 2303.14535), algorithm 3 in short: the network learns, by the mean squared error, what
a large backbone says of the same image. Ours: any backbone that everline has (the paper: WideResNet-101), its maps as
`Backbone` gives them, and no random greyscale or crops. The backbone sees an image at twice the network's size, so
that its S/8 grid is the network's S/4 grid. More than 384 channels are brought to 384 by averaging neighbours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .adam import Adam, fill
from .backbones import BACKBONES, Backbone
from .pdn import CHANNELS, PDN, drawn, scaled, unfilled
from .teacher import Teacher

STRIDES = (4, 8, 16)
WEIGHT_DECAY = 1e-5
_LEAST = 1e-6  # a channel that never changes is divided by this


@dataclass(frozen=True)
class Recipe:
    """What a distillation is made by; `weights` of the backbone as in `Backbone`."""

    model: str = "small"
    width: float = 1.0
    backbone: str = "efficientnet_lite0"
    weights: str = "default"
    lr: float = 1e-4
    seed: int = 0
    device: str = "cpu"


class Distiller:
    """A network that learns from a backbone. First `begin`, then steps; `tensors` and `load` stop and go on.

    Images are uint8 (B, 3, 2S, 2S): the backbone sees them as they are, the network at half their size.
    """

    def __init__(self, recipe: Recipe) -> None:
        """Raises WeightsError where the backbone's weights cannot be had."""
        self.recipe = recipe
        self.channels = min(CHANNELS, sum(BACKBONES[recipe.backbone].channels[s] for s in STRIDES))
        self.net = drawn(
            unfilled(lambda: PDN(recipe.model, recipe.width, self.channels)),
            torch.Generator().manual_seed(recipe.seed),
        ).to(recipe.device)
        self.adam = Adam(dict(self.net.named_parameters()), recipe.lr, WEIGHT_DECAY)
        self.mean, self.std = (torch.zeros(self.channels, device=recipe.device) for _ in range(2))
        self.backbone = Backbone.shared(recipe.backbone, recipe.weights, STRIDES, recipe.device)

    @property
    def steps(self) -> int:
        """Steps that were made."""
        return self.adam.steps

    def begin(self, batches: Iterable[Tensor]) -> None:
        """The mean and deviation by which what the backbone says is normalised, from some images."""
        self.mean, self.std = spread(self.features(images) for images in batches)

    def step(self, images: Tensor) -> float:
        """One step on a batch; its mean squared error, before the step."""
        target = (self.features(images) - self.mean[:, None, None]) / self.std[:, None, None]
        loss = F.mse_loss(self.net(scaled(halved(images.to(self.recipe.device)))), target)
        self.adam.step(torch.autograd.grad(loss, list(self.adam.params.values())))
        return float(loss.detach())

    def features(self, images: Tensor) -> Tensor:
        """What the backbone says: float32 (B, C, S/4, S/4)."""
        found = self.backbone(images)
        if found.shape[1] == self.channels:
            return found
        flat = F.adaptive_avg_pool1d(found.flatten(2).mT, self.channels).mT  # (B, C, cells)
        return flat.unflatten(2, found.shape[2:])

    @torch.no_grad()
    def teacher(self, batches: Iterable[Tensor], pictures: Tensor, made: Mapping[str, str]) -> Teacher:
        """The finished teacher, its outputs normalised over these images. pictures: uint8 (N, 3, s, s), to keep."""
        device = self.recipe.device
        mean, std = spread(self.net(scaled(halved(images.to(device)))) for images in batches)
        net = unfilled(lambda: PDN(self.recipe.model, self.recipe.width, self.channels)).requires_grad_(False)
        net.load_state_dict(self.net.state_dict())
        return Teacher(self.recipe.model, self.recipe.width, net, mean.cpu(), std.cpu(), pictures, dict(made))

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a later `load` needs to go on bit for bit."""
        weights = {f"weights.{name}": p.detach() for name, p in self.adam.params.items()}
        moments = {f"adam.{name}": t for name, t in self.adam.tensors().items()}
        return {**weights, **moments, "mean": self.mean, "std": self.std}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from these. Raises KeyError or ValueError for missing or misshapen ones."""
        mine = {f"weights.{name}": p for name, p in self.adam.params.items()}
        fill({**mine, "mean": self.mean, "std": self.std}, tensors, "unfinished teacher")
        self.adam.load({name.removeprefix("adam."): t for name, t in tensors.items() if name.startswith("adam.")})


def halved(images: Tensor) -> Tensor:
    """uint8 (B, 3, 2S, 2S) -> uint8 (B, 3, S, S), the mean of every four pixels, rounded."""
    return F.avg_pool2d(images.float(), 2).round().byte()


def spread(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over batches (B, C, h, w) of one size: float32 (C,) each."""
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        values = batch.double().transpose(0, 1).flatten(1)  # (C, n)
        more, centre = values.shape[1], values.mean(1)
        shift, total = centre - mean, count + more
        scatter = scatter + (values - centre[:, None]).square().sum(1) + shift.square() * (count * more / total)
        mean, count = mean + shift * (more / total), total
    return mean.float(), (scatter / max(1, count - 1)).sqrt().clamp_min(_LEAST).float()


def drawing(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which of `count` images step number `step` (from 0) takes: pass after pass, each in an order of its own."""
    places = range(step * batch, (step + 1) * batch)
    orders: dict[int, list[int]] = {}
    for turn in {place // count for place in places}:
        own = torch.Generator().manual_seed((seed + 1) * 1_000_003 + turn)
        orders[turn] = torch.randperm(count, generator=own).tolist()
    return [orders[place // count][place % count] for place in places]
