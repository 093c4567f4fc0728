"""The two networks of DRAEM: one paints normal images, one compares. Letters: b the channels of the first block.

Reconstructive (b = 128 x width): 3-b-2b-4b-8b-8b down, 8b-4b-2b-b-b up, without skip connections.
Discriminative (b = 64 x width): b-2b-4b-8b-8b-8b down, 8b-4b-2b-b-b up, each with the encoder's map of that size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 64  # pixels: at 32 the deepest map is one value, of which a batch of one has no variance
MULTIPLE = 32  # five halvings


class Networks(nn.Module):
    """float32 (B, 3, S, S) in 0..1 -> reconstruction (B, 3, S, S) and logits of normal, anomalous (B, 2, S, S)."""

    def __init__(self, width: float) -> None:
        super().__init__()
        self.reconstructive = Reconstructive(_base(128, width))
        self.discriminative = Discriminative(_base(64, width))

    @classmethod
    def empty(cls, width: float, device: str) -> "Networks":
        """With memory of its own, its values whatever lay there; convolutions are quicker with channels last."""
        with torch.device("meta"):
            networks = cls(width)
        return networks.to_empty(device=device).to(memory_format=torch.channels_last)

    def draw(self, rng: torch.Generator) -> "Networks":
        """Initial values as in the authors' code: kernels N(0, 0.02); biases start at zero. rng: on the CPU."""
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, nn.BatchNorm2d):
                    part.reset_parameters()
                elif isinstance(part, nn.Conv2d) and part.bias is not None:
                    part.weight.copy_(0.02 * torch.randn(part.weight.shape, generator=rng))
                    part.bias.zero_()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        images = images.contiguous(memory_format=torch.channels_last)
        painted = self.reconstructive(images)
        return painted, self.discriminative(torch.cat([painted, images], 1))


class Reconstructive(nn.Module):
    """Encoder and decoder; what the narrow middle does not know is painted over."""

    def __init__(self, b: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(*c) for c in ((3, b), (b, 2 * b), (2 * b, 4 * b), (4 * b, 8 * b)))
        self.middle = _block(8 * b, 8 * b)
        self.grow = nn.ModuleList(_step(n, n) for n in (8 * b, 4 * b, 2 * b, b))
        self.up = nn.ModuleList(_block(*c) for c in ((8 * b, 8 * b, 4 * b), (4 * b, 4 * b, 2 * b), (2 * b, 2 * b, b)))
        self.up.append(_block(b, b))
        self.last = nn.Conv2d(b, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.down:
            x = F.max_pool2d(block(x), 2)
        x = self.middle(x)
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(grow(_double(x)))
        return self.last(x)


class Discriminative(nn.Module):
    """A U-Net over image and reconstruction."""

    def __init__(self, b: int) -> None:
        super().__init__()
        sides = (b, 2 * b, 4 * b, 8 * b, 8 * b, 8 * b)
        self.down = nn.ModuleList(_block(*c) for c in zip((6, *sides), sides, strict=False))
        ups = (8 * b, 4 * b, 2 * b, b, b)  # channels after each doubling
        self.grow = nn.ModuleList(_step(*c) for c in zip((8 * b, *ups), ups, strict=False))
        self.up = nn.ModuleList(_block(n + skip, n) for n, skip in zip(ups, sides[-2::-1], strict=True))
        self.last = nn.Conv2d(b, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.down[0](x)]
        for block in self.down[1:]:
            maps.append(block(F.max_pool2d(maps[-1], 2)))
        x = maps.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            x = block(torch.cat([grow(_double(x)), maps.pop()], 1))
        return self.last(x)


def _base(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _step(before: int, after: int) -> nn.Sequential:
    layers: list[Any] = [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _block(before: int, middle: int, after: int | None = None) -> nn.Sequential:
    return nn.Sequential(*_step(before, middle), *_step(middle, after or middle))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
