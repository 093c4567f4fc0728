"""Perlin noise has the properties that define it."""

import math

import pytest
import torch
from everline.methods.perlin import gradient_noise, mask, perlin, turned


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_gradients(rows: int, cols: int) -> torch.Tensor:
    drawn = torch.randn(rows, cols, 2, generator=rng(1))
    return drawn / drawn.norm(dim=-1, keepdim=True)


def test_noise_is_zero_on_the_lattice_and_only_there() -> None:
    whole = torch.cartesian_prod(torch.arange(-3.0, 9), torch.arange(-3.0, 9))
    gradients = unit_gradients(6, 5)
    assert torch.equal(gradient_noise(whole, gradients), torch.zeros(len(whole)))
    assert gradient_noise(whole + 0.3, gradients).abs().median() > 0.05


def test_near_a_lattice_point_it_rises_as_the_gradient_says() -> None:
    gradients = unit_gradients(4, 4)
    step = 1e-3
    for y, x in ((1, 2), (0, 3)):
        at = torch.tensor([[y + step, x], [y, x + step]], dtype=torch.float32)
        slope = gradient_noise(at, gradients) / (step * math.sqrt(2))
        assert torch.allclose(slope, gradients[y, x], atol=0.02)


def test_one_lattice_point_alone_gives_its_fading_slope() -> None:
    gradients = torch.zeros(3, 3, 2)
    gradients[1, 1] = torch.tensor([0.6, 0.8])
    y, x = 1.25, 1.5
    fade = [1 - (6 * t**5 - 15 * t**4 + 10 * t**3) for t in (0.25, 0.5)]
    want = math.sqrt(2) * (0.6 * 0.25 + 0.8 * 0.5) * fade[0] * fade[1]
    assert float(gradient_noise(torch.tensor([y, x]), gradients)) == pytest.approx(want, abs=1e-6)


def test_it_is_bounded_and_the_bound_is_reached() -> None:
    inward = torch.tensor([[[1.0, 1.0], [1.0, -1.0]], [[-1.0, 1.0], [-1.0, -1.0]]]) / math.sqrt(2)
    assert float(gradient_noise(torch.tensor([0.5, 0.5]), inward)) == pytest.approx(1, abs=1e-6)
    drawn = torch.stack([perlin(32, (4, 8), 0.3, rng(seed)) for seed in range(50)])
    assert float(drawn.abs().max()) <= 1 and float(drawn.abs().max()) > 0.7


def test_it_is_smooth_across_cells() -> None:
    line = torch.stack([torch.linspace(0, 4, 4001), torch.full((4001,), 0.4)], -1)
    steps = gradient_noise(line, unit_gradients(6, 6)).diff()
    assert float(steps.abs().max()) < 0.01 and float(steps.diff().abs().max()) < 1e-4


def test_turning_moves_pixels_about_the_middle() -> None:
    size = 8
    quarter, none = turned(size, math.pi / 2), turned(size, 0)
    assert torch.equal(none[:, 0, 0], torch.arange(size) / size)
    assert torch.allclose(quarter[size // 2, size // 2], torch.tensor([0.5, 0.5]))
    assert torch.allclose(quarter[2, 6], torch.tensor([0.5 - 0.25, 0.5 - 0.25]), atol=1e-6)


def test_the_generator_decides() -> None:
    assert torch.equal(mask(64, rng(3)), mask(64, rng(3)))
    assert any(not torch.equal(mask(64, rng(3)), mask(64, rng(seed))) for seed in range(4, 9))


@pytest.mark.parametrize("size", [64, 96, 256])
def test_masks_cover_a_plausible_share(size: int) -> None:
    drawn = torch.stack([mask(size, one) for one in [rng(7)] for _ in range(100)])
    share = drawn.float().mean((1, 2))
    assert drawn.dtype == torch.bool and drawn.shape == (100, size, size)
    assert 0.02 < float(share.mean()) < 0.12 and float(share.max()) < 0.6
    assert float((share > 0).float().mean()) > 0.8
