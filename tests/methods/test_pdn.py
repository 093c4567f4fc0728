"""EfficientAD's networks against the published parameter counts (thesis, section 5.1) and grids."""

import pytest
import torch
from everline.methods.pdn import CHANNELS, PDN, Autoencoder, drawn, grid, scaled, unfilled
from torch import nn


def millions(net: nn.Module) -> float:
    return round(sum(p.numel() for p in net.parameters()) / 1e6, 1)


def test_parameters_are_those_of_the_thesis() -> None:
    with torch.device("meta"):
        teacher, student = (PDN("medium", 1.0, CHANNELS, doubled) for doubled in (False, True))
        autoencoder = Autoencoder(256, 1.0, CHANNELS)
    assert (millions(teacher), millions(student), millions(autoencoder)) == (8.0, 11.6, 1.1)


def test_small_has_the_papers_kernels() -> None:
    with torch.device("meta"):
        shapes = [tuple(p.shape) for p in PDN("small", 1.0, 384, doubled=True).parameters() if p.ndim == 4]
    assert shapes == [(128, 3, 4, 4), (256, 128, 4, 4), (256, 256, 3, 3), (768, 256, 4, 4)]


@pytest.mark.parametrize("model", ["small", "medium"])
@pytest.mark.parametrize("size", [32, 64, 100, 224, 256])
def test_all_networks_end_on_one_grid(model: str, size: int) -> None:
    with torch.device("meta"):
        images = torch.empty(2, 3, size, size)
        pdn, autoencoder = PDN(model, 0.1, 6)(images), Autoencoder(size, 0.1, 6)(images)
    assert pdn.shape == autoencoder.shape == (2, 6, grid(size), grid(size))
    assert grid(size) == size // 4


def test_an_output_sees_33_pixels() -> None:
    net = drawn(unfilled(lambda: PDN("small", 0.1, 2)), torch.Generator().manual_seed(0))
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    (seen,) = torch.autograd.grad(net(images)[0, :, 16, 16].sum(), images)
    rows = seen[0].abs().sum((0, 2)).nonzero()
    assert rows.max() - rows.min() + 1 == 33


def test_half_of_a_student_is_half_of_the_whole() -> None:
    net = drawn(unfilled(lambda: PDN("small", 0.1, 5, doubled=True)), torch.Generator().manual_seed(0))
    images = torch.rand(1, 3, 32, 32)
    whole = net(images)
    torch.testing.assert_close(net(images, 0, 5), whole[:, :5])
    torch.testing.assert_close(net(images, 5), whole[:, 5:])


def test_dropout_is_the_generators() -> None:
    net = drawn(unfilled(lambda: Autoencoder(32, 0.2, 3)), torch.Generator().manual_seed(0))
    images = torch.rand(1, 3, 32, 32)
    one, two, other = (net(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(net(images), net(images))


def test_first_weights_are_spread_as_torch_spreads_them() -> None:
    mine = drawn(nn.Conv2d(8, 64, 3), torch.Generator().manual_seed(0)).weight.detach()
    theirs = nn.Conv2d(8, 64, 3).weight.detach()
    assert float(mine.std() / theirs.std()) == pytest.approx(1, rel=0.03)
    assert float(mine.abs().max()) <= 1 / 72**0.5


def test_images_are_scaled_as_torchvision_scales_them() -> None:
    from torchvision.transforms.functional import normalize

    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    want = normalize(images / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(scaled(images), want)
