"""One matrix product does upsampling and smoothing."""

import numpy as np
import torch
import torch.nn.functional as F
from everline.methods.maps import Upsampler
from scipy.ndimage import gaussian_filter


def test_equals_interpolation_then_smoothing() -> None:
    patches = torch.rand(2, 8, 6, generator=torch.Generator().manual_seed(1))
    wide = F.interpolate(patches[:, None], (64, 64), mode="bilinear")[:, 0].numpy()
    want = np.stack([gaussian_filter(one, 4.0, mode="reflect") for one in wide])
    np.testing.assert_allclose(Upsampler((8, 6), 64, 4.0)(patches).numpy(), want, atol=1e-5)


def test_without_smoothing_a_constant_stays_constant() -> None:
    assert torch.allclose(Upsampler((4, 4), 32, 0.0)(torch.full((1, 4, 4), 2.5)), torch.tensor(2.5))
