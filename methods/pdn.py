"""The networks of EfficientAD: the patch description network (teacher and student) and the autoencoder.

Batzner, Heckler, König: "EfficientAD: Accurate Visual Anomaly Detection at Millisecond-Level Latencies" (2023); the
medium network also in figure 5.1 of Bugaric, "Integrating State-of-the-Art Approaches for Anomaly Detection and
Localization in the Continual Learning Setting" (2023, "the thesis"), whose section 5.1 counts the parameters that the
tests check. Letters: S side of the image, g = S/4 side of the grid, C output channels of the teacher.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)

CHANNELS = 384  # published output channels; a teacher of a narrower backbone has fewer
LATENT = 64  # dimensions of the autoencoder's bottleneck
KEEP = 0.8  # of the autoencoder's dropout
MODELS = ("small", "medium")
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, on 0..255
_HIDDEN = {"small": (128, 256, 256), "medium": (256, 512, 512, 512, CHANNELS)}
_LATE = 4  # of medium: the hidden layer that has as many kernels as the output, and grows with it


class PDN(nn.Module):
    """Float images (B, 3, S, S) as `scaled` gives them -> (B, channels, g, g). Every output sees 33 x 33 pixels.

    `model`: small (four convolutions) or medium (six). `width`: share of the published kernels in hidden layers.
    `outputs`: channels; `doubled` for a student, of which half belong to the teacher and half to the autoencoder.
    """

    def __init__(self, model: str, width: float, outputs: int, doubled: bool = False) -> None:
        super().__init__()
        kernels = [narrowed(n, width) for n in _HIDDEN[model]]
        if model == "medium" and doubled:
            kernels[_LATE] *= 2
        self.body = _small(kernels) if model == "small" else _medium(kernels)
        last, pad = (4, 0) if model == "small" else (1, 0)
        self.head = nn.Conv2d(kernels[-1], outputs * (1 + doubled), last, padding=pad)

    def forward(self, x: Tensor, first: int = 0, stop: int | None = None) -> Tensor:
        """Channels `first` to `stop` alone, where only these are wanted: the last convolution is half the work."""
        weight, bias = self.head.weight[first:stop], self.head.bias
        assert bias is not None
        return F.conv2d(self.body(x), weight, bias[first:stop])


def _small(kernels: Sequence[int]) -> nn.Sequential:
    a, b, c = kernels
    return nn.Sequential(*_stem(a, b), nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True))


def _medium(kernels: Sequence[int]) -> nn.Sequential:
    a, b, c, d, e = kernels
    rest = (nn.Conv2d(b, c, 1), nn.Conv2d(c, d, 3, padding=1), nn.Conv2d(d, e, 4))
    return nn.Sequential(*_stem(a, b), *(part for conv in rest for part in (conv, nn.ReLU(inplace=True))))


def _stem(a: int, b: int) -> tuple[nn.Module, ...]:
    """Two convolutions, each with its pooling: what both models begin with."""
    first, second = nn.Conv2d(3, a, 4, padding=3), nn.Conv2d(a, b, 4, padding=3)
    pools = nn.AvgPool2d(2, 2, padding=1), nn.AvgPool2d(2, 2, padding=1)
    return first, nn.ReLU(inplace=True), pools[0], second, nn.ReLU(inplace=True), pools[1]


class Autoencoder(nn.Module):
    """Float images (B, 3, S, S) -> (B, outputs, g, g) through 64 numbers an image. `width` as in `PDN`."""

    def __init__(self, size: int, width: float, outputs: int) -> None:
        super().__init__()
        some, more = narrowed(32, width), narrowed(64, width)
        steps = [3, some, some, more, more, more]
        downs = [nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(steps)]
        self.encoder = nn.ModuleList([*downs, nn.Conv2d(more, LATENT, size // 32)])
        self.decoder = nn.ModuleList([nn.Conv2d(more if n else LATENT, more, 4, padding=2) for n in range(6)])
        self.smooth = nn.Conv2d(more, more, 3, padding=1)
        self.head = nn.Conv2d(more, outputs, 3, padding=1)
        self.sides = (max(1, size // 64 - 1), size // 32, size // 16 - 1, size // 8, size // 4 - 1, size // 2 - 1)
        self.grid = grid(size)

    def forward(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """rng: where dropout draws from, in training; None: no dropout."""
        for conv in self.encoder[:-1]:
            x = F.relu(conv(x))
        x = self.encoder[-1](x)
        for side, conv in zip(self.sides, self.decoder, strict=True):
            x = F.relu(conv(F.interpolate(x, (side, side), mode="bilinear")))
            x = x if rng is None else x * _dropout(x, rng)
        x = F.interpolate(x, (self.grid, self.grid), mode="bilinear")
        return self.head(F.relu(self.smooth(x)))


def _dropout(x: Tensor, rng: torch.Generator) -> Tensor:
    """What to multiply with: 0 or 1 / KEEP, from this generator (torch's own dropout knows only the global one)."""
    return torch.empty(x.shape).bernoulli_(KEEP, generator=rng).div_(KEEP).to(x.device)


def narrowed(kernels: int, width: float) -> int:
    """A share of a layer's kernels, one at least."""
    return max(1, round(kernels * width))


def grid(size: int) -> int:
    """Side of a PDN's output; S/4 where four divides S."""
    after = (size + 3) // 2 + 1  # a 4 x 4 convolution padded by 3, then pooling padded by 1
    return (after + 3) // 2 + 1 - 3


def drawn(net: Net, rng: torch.Generator) -> Net:
    """Fills every convolution as torch does at first (uniform in +-1/sqrt(fan-in)), but from this generator."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d):
            bound = 1 / math.sqrt(conv.weight[0].numel())
            with torch.no_grad():  # drawn on the CPU, where the generator is, wherever the network stands
                for own in conv.parameters():
                    own.copy_(torch.empty(own.shape).uniform_(-bound, bound, generator=rng))
    return net


def unfilled(build: Callable[[], Net]) -> Net:
    """A network on the CPU whose weights are still to be filled in; draws nothing from the global generator."""
    with torch.device("meta"):
        net = build()
    return net.to_empty(device="cpu")


def scaled(images: Tensor) -> Tensor:
    """uint8, or float on 0..255, (B, 3, S, S) -> float32, by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (_MEAN, _STD))
    return (images.float() - mean) / std
