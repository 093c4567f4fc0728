"""From patch anomalies to full-size maps: bilinear upsampling and Gaussian smoothing as one matrix product."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter1d
from torch import Tensor


class Upsampler:
    """(B, h, w) -> (B, S, S). Both steps are linear and separable, so `rows @ map @ cols.T` does them."""

    def __init__(self, grid: tuple[int, int], size: int, sigma: float) -> None:
        self.rows = _axis(grid[0], size, sigma)  # (S, h)
        self.cols = self.rows if grid[0] == grid[1] else _axis(grid[1], size, sigma)  # (S, w)

    @classmethod
    @lru_cache(maxsize=32)
    def shared(cls, grid: tuple[int, int], size: int, sigma: float) -> "Upsampler":
        """One instance for each shape, made once."""
        return cls(grid, size, sigma)

    def __call__(self, patches: Tensor) -> Tensor:
        """patches: float (B, h, w) -> float32 (B, S, S)."""
        rows, cols = self.rows.to(patches.device), self.cols.to(patches.device)
        return rows @ patches.float() @ cols.T


def _axis(length: int, size: int, sigma: float) -> Tensor:
    """The (size, length) matrix of one axis: interpolation of unit vectors, then smoothing (reflected edges)."""
    eye = torch.eye(length, dtype=torch.float64)[:, None]  # (length, 1, length)
    wide = F.interpolate(eye, size=size, mode="linear", align_corners=False)[:, 0].numpy()  # (length, size)
    if sigma > 0:
        wide = gaussian_filter1d(wide, sigma, axis=1, mode="reflect")
    return torch.from_numpy(np.ascontiguousarray(wide.T)).float()
