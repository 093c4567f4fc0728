"""Random changes of a picture's colours and tones, float32 (3, H, W) in 0..1, all chance from one generator.

The set that DRAEM draws three from, in torch: posterize, sharpen, solarize, equalize, brightness, colour, contrast.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(picture: Tensor, rng: torch.Generator, count: int = 3) -> Tensor:
    """`count` different changes in random order; the result is a new tensor in 0..1."""
    for index in torch.randperm(len(CHANGES), generator=rng)[:count].tolist():
        picture = CHANGES[index](picture, _uniform(rng)).clamp(0, 1)
    return picture


def posterize(picture: Tensor, amount: float) -> Tensor:
    """2 to 32 levels a channel. amount: 0..1, as everywhere here."""
    steps = 2 ** (1 + int(amount * 4.999)) - 1
    return (picture * steps).round() / steps


def sharpen(picture: Tensor, amount: float) -> Tensor:
    """Twice the picture less its 3 x 3 mean, or the mean itself, or between."""
    smooth = F.avg_pool2d(picture[None], 3, 1, 1, count_include_pad=False)[0]
    return smooth + 2 * amount * (picture - smooth)


def solarize(picture: Tensor, amount: float) -> Tensor:
    """What is above a threshold is turned round."""
    return torch.where(picture > amount, 1 - picture, picture)


def equalize(picture: Tensor, amount: float) -> Tensor:
    """Each of a channel's 256 levels becomes the share of pixels at or below it. `amount` does nothing."""
    levels = (picture * 255).round().long().flatten(1)
    share = torch.stack([torch.bincount(one, minlength=256).cumsum(0) for one in levels]) / levels.shape[1]
    return share.gather(1, levels).view_as(picture)


def brightness(picture: Tensor, amount: float) -> Tensor:
    """Times 0.5 to 1.5."""
    return picture * (0.5 + amount)


def colour(picture: Tensor, amount: float) -> Tensor:
    """From grey to twice as colourful."""
    grey = picture.mean(0, keepdim=True)
    return grey + 2 * amount * (picture - grey)


def contrast(picture: Tensor, amount: float) -> Tensor:
    """Each channel stretched to 0..1. `amount` does nothing."""
    low, high = picture.amin((1, 2), keepdim=True), picture.amax((1, 2), keepdim=True)
    return (picture - low) / (high - low).clamp(min=1e-3)


CHANGES: tuple[Callable[[Tensor, float], Tensor], ...] = (
    posterize, sharpen, solarize, equalize, brightness, colour, contrast,
)  # fmt: skip


def _uniform(rng: torch.Generator) -> float:
    return float(torch.rand((), generator=rng))
