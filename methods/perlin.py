"""Perlin's gradient noise, and the masks that are cut from it."""

import math

import torch
from torch import Tensor

FINEST = 6  # at most 2**6 cells along an axis (DRAEM)
_CELL = 4  # pixels along a cell, at least: below that the noise is next to zero at every pixel


def mask(size: int, rng: torch.Generator) -> Tensor:
    """bool (size, size): Perlin noise above 0.5, of random resolution and direction (DRAEM, section 3.2).

    Each axis has 2**k cells, k uniform in 0..6 and no cell below 4 pixels. It may be empty: coarse noise seldom
    comes to 0.5.
    """
    finest = min(FINEST, int(math.log2(max(1, size // _CELL))))
    rows, cols = (2 ** torch.randint(finest + 1, (2,), generator=rng)).tolist()
    angle = math.pi * (float(torch.rand((), generator=rng)) - 0.5)
    return perlin(size, (rows, cols), angle, rng) > 0.5


def perlin(size: int, cells: tuple[int, int], angle: float, rng: torch.Generator) -> Tensor:
    """float32 (size, size) in [-1, 1]: noise of cells[0] x cells[1] cells, turned about the middle by `angle`.

    angle: radians. The lattice goes on beyond the image, so that the turned noise has no empty corners.
    """
    around = 2 * math.pi * torch.rand(2 * cells[0] + 2, 2 * cells[1] + 2, generator=rng)
    gradients = torch.stack([around.sin(), around.cos()], -1)
    return gradient_noise(turned(size, angle) * torch.tensor(cells), gradients)


def turned(size: int, angle: float) -> Tensor:
    """float32 (size, size, 2): where each pixel lies, (0, 0) to (1, 1), turned about the middle by `angle`."""
    axis = torch.arange(size) / size - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    cos, sin = math.cos(angle), math.sin(angle)
    return torch.stack([cos * y - sin * x, sin * y + cos * x], -1) + 0.5


def gradient_noise(at: Tensor, gradients: Tensor) -> Tensor:
    """Noise at points (..., 2), in cells, by unit gradients (rows, cols, 2), which repeat: (...) in [-1, 1].

    Zero at whole numbers; Perlin's quintic fade, so that the second derivative is continuous too. Times sqrt(2),
    as two dimensions alone come to no more than sqrt(1/2).
    """
    corner = at.floor()
    within = at - corner
    fade = within**3 * (within * (within * 6 - 15) + 10)
    index = corner.long()
    total = torch.zeros(at.shape[:-1])
    for dy in (0, 1):
        for dx in (0, 1):
            gradient = gradients[(index[..., 0] + dy) % len(gradients), (index[..., 1] + dx) % gradients.shape[1]]
            rise = gradient[..., 0] * (within[..., 0] - dy) + gradient[..., 1] * (within[..., 1] - dx)
            weight = (fade[..., 0] if dy else 1 - fade[..., 0]) * (fade[..., 1] if dx else 1 - fade[..., 1])
            total += rise * weight
    return (total * math.sqrt(2)).clamp(-1, 1)
