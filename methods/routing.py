"""Which task an image is of: the nearest prototype, for methods that keep a state for each task and score by one."""

import torch
from torch import Tensor

from .moments import Moments, whitening

_SHRINKAGE = 0.01  # share of the mean variance added to each before whitening


def described(features: Tensor) -> Tensor:
    """float32 (B, C, h, w) -> (B, C): the mean over an image's positions, image by image, whatever the batch."""
    return torch.stack([one.flatten(1).mean(1) for one in features])


class Router:
    """Nearest mean under the covariance that images have within their tasks: Fisher's linear discriminant.

    Of what was tried on held-out normal images of eleven products, this was best: 99.7 % of images went where they
    belong, against 97.8 % where each channel is divided by its deviation within tasks, and 96.7 % for the plain
    distance (from three images of each: 95.6, 94.9 and 94.1 %). The deviation over the positions beside the mean
    brings 99.8 %, at four times the bytes. Mistakes are between products that look alike, such as two kinds of
    circuit board. An image of a product that nobody has learned goes to one of the tasks too.
    """

    def __init__(self, kinds: list[Moments]) -> None:
        """kinds: for each task, the moments (one group, C entries) of descriptions of its images."""
        freedom = sum(kind.count for kind in kinds) - len(kinds)
        within = torch.stack([kind.covariance()[0] * kind.count for kind in kinds]).sum(0) / max(freedom, 1)
        self._white = whitening(within, _SHRINKAGE)  # float64 (C, C)
        self._means = torch.cat([kind.mean() for kind in kinds]) @ self._white.T  # (T, C)

    def route(self, descriptions: Tensor) -> Tensor:
        """(B, C) -> int64 (B,): each image's place among the tasks."""
        white = descriptions.double() @ self._white.T
        return (white[:, None] - self._means).square().sum(2).argmin(1)
