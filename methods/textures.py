"""Textures that are laid over normal images: made up from a generator, or drawn from a packed file of pictures.

A packed file is safetensors with one tensor, `pictures`, uint8 (N, 3, s, s), RGB; everline makes it of a folder
(such as the Describable Textures Dataset), so that who trains decodes no pictures.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError
from .perlin import perlin, turned

PROCEDURAL = "procedural"
MAX_BYTES = 4 * 2**30
SIDES = (32, 1024)  # pixels that a picture of a packed file may have
Source = Callable[[int, torch.Generator], Tensor]  # size, generator -> float32 (3, size, size) in 0..1


def source(textures: str) -> Source:
    """`procedural`, or pictures of the packed file at this path. Raises WeightsError."""
    if textures == PROCEDURAL:
        return procedural
    pictures = read_pictures(Path(textures))

    def drawn(size: int, rng: torch.Generator) -> Tensor:
        picture = pictures[int(torch.randint(len(pictures), (), generator=rng))].float() / 255
        return F.interpolate(picture[None], (size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)

    return drawn


def read_pictures(path: Path) -> Tensor:
    """uint8 (N, 3, s, s) of a packed file, shared by all who name it. Raises WeightsError for any other file."""
    try:
        stat = path.stat()
        if not path.is_file() or stat.st_size > MAX_BYTES:
            raise WeightsError(f"texture file {str(path)!r} must be a file of at most {MAX_BYTES:,} bytes.")
        return _pictures(str(path), stat.st_size, stat.st_mtime_ns)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"texture file {str(path)!r} cannot be read as safetensors ({error}); make one with "
            f"everline pretrain textures, or use textures={PROCEDURAL}."
        ) from error


@lru_cache(maxsize=1)
def _pictures(path: str, size: int, changed: int) -> Tensor:
    """The checked tensor; `size` and `changed` are there so that a file written anew is read anew."""
    with safe_open(path, "pt") as file:
        if list(file.keys()) != ["pictures"]:
            raise WeightsError(f"texture file {path!r} must hold `pictures` and nothing else.")
        found = file.get_slice("pictures")
        kind, shape = found.get_dtype(), list(found.get_shape())
        fits = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and shape[2] == shape[3]
        if kind != "U8" or not fits or not SIDES[0] <= shape[2] <= SIDES[1]:
            raise WeightsError(
                f"texture file {path!r}: pictures must be U8 (N, 3, s, s), s in {list(SIDES)}, got {kind} {shape}."
            )
        return file.get_tensor("pictures")


def procedural(size: int, rng: torch.Generator) -> Tensor:
    """float32 (3, size, size) in 0..1: a pattern of one of five kinds, between two random colours."""
    pattern = PATTERNS[int(torch.randint(len(PATTERNS), (), generator=rng))](size, rng)
    low, high = torch.rand(2, 3, 1, 1, generator=rng)
    return torch.lerp(low, high, pattern)


def noise(size: int, rng: torch.Generator) -> Tensor:
    """Perlin noise of three octaves, the next twice as fine and half as strong; 0..1."""
    start = int(torch.randint(1, 4, (), generator=rng))
    total = torch.zeros(size, size)
    for octave in range(3):
        cells = 2 ** (start + octave)
        total += 0.5**octave * perlin(size, (cells, cells), _between(rng, 0, math.pi), rng)
    low, high = total.aminmax()
    return (total - low) / (high - low).clamp(min=1e-6)


def stripes(size: int, rng: torch.Generator) -> Tensor:
    """2 to 40 waves across the image in any direction, from soft to hard; 0..1."""
    return _wave(_across(size, rng), rng)


def checks(size: int, rng: torch.Generator) -> Tensor:
    """Two waves at right angles, multiplied; 0..1."""
    at = turned(size, _between(rng, 0, math.pi))
    return 0.5 + 0.5 * (2 * _wave(at[..., 0], rng) - 1) * (2 * _wave(at[..., 1], rng) - 1)


def blobs(size: int, rng: torch.Generator) -> Tensor:
    """5 to 40 round spots, of 2 to 12 hundredths of the side; 0..1."""
    count = int(torch.randint(5, 41, (), generator=rng))
    centre, spread = torch.rand(2, count, 1, generator=rng), 0.02 + 0.1 * torch.rand(count, 1, generator=rng)
    rows, cols = torch.exp(-0.5 * ((torch.arange(size) / size - centre) / spread) ** 2)  # (count, size) each
    return (rows.T @ cols).clamp(0, 1)


def gradient(size: int, rng: torch.Generator) -> Tensor:
    """From one side to the other, in any direction; 0..1."""
    ramp = _across(size, rng)
    low, high = ramp.aminmax()
    return (ramp - low) / (high - low)


PATTERNS: tuple[Source, ...] = (noise, stripes, checks, blobs, gradient)


def _across(size: int, rng: torch.Generator) -> Tensor:
    """(size, size): how far each pixel lies along a random direction, in sides of the image."""
    return turned(size, _between(rng, 0, math.pi))[..., 0]


def _wave(along: Tensor, rng: torch.Generator) -> Tensor:
    """A sine with 2 to 40 waves (few more often than many), its slopes up to 8 times as steep; 0..1."""
    waves, phase = 2 * 20 ** _between(rng, 0, 1), _between(rng, 0, 2 * math.pi)
    return (0.5 + 0.5 * _between(rng, 1, 8) * torch.sin(2 * math.pi * waves * along + phase)).clamp(0, 1)


def _between(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))
