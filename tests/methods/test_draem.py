"""DRAEM: its networks have the published size, its losses agree with independent ones, its anomalies are as told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from everline.methods.conformance import images, same
from everline.methods.draem import Draem, focal, smoothed, spoil, ssim
from everline.methods.draem_nets import Networks
from everline.methods.errors import ConfigError, StateError, WeightsError
from everline.methods.registry import build, restore
from everline.methods.textures import procedural
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter, uniform_filter
from torch import Tensor, nn


def small(**given: Any) -> Draem:
    return Draem(**{"size": 64, "width": 0.03, "lr": 1e-3, **given})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def millions(network: nn.Module) -> float:
    return sum(p.numel() for p in network.parameters()) / 1e6


# -- networks


def test_the_networks_have_the_published_parameters() -> None:
    with torch.device("meta"):
        whole = Networks(1.0)
    assert round(millions(whole.reconstructive), 1) == 69.0  # the thesis, section 5.3
    assert round(millions(whole.discriminative), 1) == 28.4
    assert Draem().network_bytes / 1e6 == pytest.approx(389.6, rel=1e-3)  # table 5.3, architecture memory


def test_width_scales_both_networks() -> None:
    with torch.device("meta"):
        half, least = Networks(0.5), Networks(0.01)
    assert millions(half.reconstructive) == pytest.approx(69.05 / 4, rel=0.01)
    assert millions(half.discriminative) == pytest.approx(28.37 / 4, rel=0.01)
    assert least.discriminative.last.in_channels == 1


@pytest.mark.parametrize("size", [64, 96])
def test_the_networks_keep_the_size(size: int) -> None:
    networks = Networks.empty(0.02, "cpu").draw(rng())
    painted, logits = networks(torch.rand(1, 3, size, size, generator=rng()))
    assert painted.shape == (1, 3, size, size) and logits.shape == (1, 2, size, size)


def test_only_the_discriminative_network_has_skip_connections() -> None:
    networks = Networks.empty(0.02, "cpu").draw(rng()).eval()
    for block in (networks.reconstructive.middle, networks.discriminative.down[5]):  # the bottom says nothing
        for parameter in block.parameters():
            parameter.detach().zero_()
    a, b = torch.rand(2, 1, 3, 64, 64, generator=rng(1))
    with torch.inference_mode():
        assert torch.equal(networks.reconstructive(a), networks.reconstructive(b))
        assert not torch.equal(networks(a)[1], networks(b)[1])


def test_first_values_are_drawn_as_the_authors_draw_them() -> None:
    networks = Networks.empty(0.1, "cpu").draw(rng())
    kernels = torch.cat([m.weight.detach().flatten() for m in networks.modules() if isinstance(m, nn.Conv2d)])
    assert float(kernels.mean()) == pytest.approx(0, abs=1e-4) and float(kernels.std()) == pytest.approx(
        0.02, rel=0.01
    )
    norms = [m for m in networks.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(float(m.running_var.mean()) == 1 and float(m.running_mean.abs().max()) == 0 for m in norms)


# -- losses


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al.'s formula on one channel, by scipy's filter of the same eleven taps."""

    def mean(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)[5:-5, 5:-5]

    ma, mb = mean(a), mean(b)
    va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    c1, c2 = 0.0001, 0.0009
    return float(np.mean((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))))


def test_ssim_is_the_one_of_its_authors() -> None:
    a = torch.rand(2, 3, 24, 30, generator=rng(1))
    b = (a + 0.3 * torch.rand(2, 3, 24, 30, generator=rng(2))).clamp(0, 1)
    pairs = zip(a.flatten(0, 1).double().numpy(), b.flatten(0, 1).double().numpy(), strict=True)
    assert float(ssim(a, b)) == pytest.approx(np.mean([reference_ssim(*pair) for pair in pairs]), abs=1e-5)
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-6)


def test_focal_loss_by_hand() -> None:
    logits, masks = torch.randn(2, 2, 5, 4, generator=rng(1)), torch.rand(2, 5, 4, generator=rng(2)) < 0.4
    plain = logits.double().numpy()
    odds = np.exp(plain) / np.exp(plain).sum(1, keepdims=True)
    right = np.where(masks.numpy(), odds[:, 1], odds[:, 0])
    assert float(focal(logits, masks)) == pytest.approx(np.mean(-((1 - right) ** 2) * np.log(right)), abs=1e-6)


def test_focal_loss_stays_finite_where_the_answer_is_surely_wrong() -> None:
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1).requires_grad_()
    loss = focal(logits, torch.ones(1, 1, 1, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(2e4) and bool(torch.isfinite(logits.grad).all())


# -- made-up anomalies


def test_one_image_in_two_is_spoilt_and_only_under_its_mask() -> None:
    image, one = torch.rand(3, 64, 64, generator=rng(1)), rng()
    touched = 0
    for _ in range(200):
        spoilt, masks = spoil(image, procedural, one)
        assert torch.equal(spoilt[:, ~masks], image[:, ~masks]) and masks.shape == (64, 64)
        touched += bool(masks.any())
    assert 75 <= touched <= 115  # half of 200, less the few empty masks


def test_the_texture_shows_with_an_opacity_of_a_tenth_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everline.methods.draem.augment", lambda texture, rng: texture)
    one, black = rng(), torch.zeros(3, 64, 64)

    def white(size: int, rng: torch.Generator) -> Tensor:
        return torch.ones(3, size, size)

    drawn = [spoil(black, white, one) for _ in range(300)]
    beta = torch.stack([spoilt[:, masks].unique()[0] for spoilt, masks in drawn if bool(masks.any())])
    assert 0.1 <= float(beta.min()) < 0.2 and 0.9 < float(beta.max()) <= 1
    assert float(beta.mean()) == pytest.approx(0.55, abs=0.07)


# -- scores


def test_smoothing_is_a_mean_filter_that_does_not_lower_the_rim() -> None:
    maps = torch.rand(2, 16, 16, generator=rng(1))
    want = uniform_filter(maps.double().numpy(), (1, 5, 5), mode="constant")
    inside = uniform_filter(np.ones((2, 16, 16)), (1, 5, 5), mode="constant")
    assert np.allclose(smoothed(maps, 5).numpy(), want / inside, atol=1e-6)
    assert torch.allclose(smoothed(torch.ones(1, 16, 16), 7), torch.ones(1, 16, 16))


def test_scores_are_the_maximum_of_the_smoothed_probabilities() -> None:
    detector = small(filter=7)
    detector.learn(images(2, 1))
    scores = detector.score(images(2, 2))
    assert float(scores.maps.min()) >= 0 and float(scores.maps.max()) <= 1
    share = uniform_filter(np.ones((2, 64, 64)), (1, 7, 7), mode="constant")
    means = uniform_filter(scores.maps.double().numpy(), (1, 7, 7), mode="constant") / share
    assert np.allclose(scores.image.numpy(), means.max((1, 2)), atol=1e-6)


def test_scoring_uses_running_statistics() -> None:
    detector = small()
    detector.learn(images(4, 1))
    pair = torch.cat([images(1, 2), 255 - images(1, 3)])
    assert torch.equal(detector.score(pair).maps[:1], detector.score(pair[:1]).maps)


# -- learning


def test_one_call_is_one_step_of_adam_on_the_sum_of_the_losses() -> None:
    detector = small()
    learned = detector.learn(images(4, 1))
    tensors = detector.state().tensors
    assert float(tensors["adam.steps"]) == 1 and learned.images == 4
    assert learned.loss == pytest.approx(sum(learned.detail[name] for name in ("l2", "ssim", "focal")))
    begun = Networks.empty(0.03, "cpu").draw(rng()).state_dict()
    name = "reconstructive.last.weight"
    gradient = tensors[f"adam.first.{name}"] / 0.1  # after one step, Adam's first moment is a tenth of it
    assert torch.allclose(tensors[f"adam.second.{name}"], gradient**2 / 1000, rtol=1e-4)
    step = begun[name] - tensors[f"networks.{name}"]
    assert torch.allclose(step, 1e-3 * gradient.sign(), atol=1e-5)


def test_it_learns_to_see_what_it_is_taught() -> None:
    detector = small(lr=3e-3)
    first = [detector.learn(images(4, seed)).loss for seed in range(5)]
    last = [detector.learn(images(4, seed)).loss for seed in range(5, 40)][-5:]
    assert sum(last) < 0.85 * sum(first)


@pytest.mark.slow
def test_it_finds_a_defect_that_it_never_saw_after_hundreds_of_batches() -> None:
    detector, order = small(width=0.1, lr=2e-4, filter=5), rng(1)
    seen = images(200, 1)
    for step in range(165):
        if step == 150 and detector._adam is not None:
            detector._adam.lr = 0.0  # so that batch norm's statistics catch up with the weights
        detector.learn(seen[torch.randperm(200, generator=order)[:4]])
    good, bad = detector.score(images(10, 11)).image, detector.score(images(10, 12, defect=True)).image
    assert float((bad[:, None] > good[None]).float().mean()) >= 0.9


def test_without_a_learning_rate_only_the_statistics_move() -> None:
    detector = small(lr=0.0)
    detector.learn(images(1, 1))
    begun = Networks.empty(0.03, "cpu").draw(rng()).state_dict()
    for name, tensor in detector.state().tensors.items():
        if name.startswith("networks."):
            moved = "running" in name or "tracked" in name
            assert torch.equal(tensor, begun[name.removeprefix("networks.")]) != moved, name


def test_other_seeds_begin_elsewhere() -> None:
    states = [small(seed=seed) for seed in (0, 1)]
    for one in states:
        one.learn(images(1, 1))
    a, b = (one.state().tensors["networks.reconstructive.last.weight"] for one in states)
    assert not torch.allclose(a, b, atol=5e-3)


def test_it_learns_under_inference_mode_too() -> None:
    a, b = small(), small()
    for n in range(2):
        a.learn(images(1, n))
        with torch.inference_mode():
            b.learn(images(1, n))
    assert same(a.state(), b.state())


def test_a_state_keeps_its_size_and_goes_on_with_the_optimiser() -> None:
    whole = small()
    sizes = set()
    part = small()
    for n in range(4):
        whole.learn(images(2, n))
        part.learn(images(2, n))
        sizes.add(whole.state().nbytes)
        part = restore(part.state())
    assert same(whole.state(), part.state()) and len(sizes) == 1
    assert whole.state().nbytes == pytest.approx(3 * whole.network_bytes, rel=0.1)


def test_tensors_of_another_type_are_refused() -> None:
    detector = small()
    detector.learn(images(1, 1))
    state = detector.state()
    name = "adam.second.discriminative.last.bias"
    state.tensors[name] = state.tensors[name].double()
    with pytest.raises(StateError, match=r"discriminative\.last\.bias must be torch\.float32.*got torch\.float64"):
        small().load_state(state)


# -- parameters


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 200}, "multiple of 32.*got 200"),
        ({"size": 32}, "from 64 on, got 32"),
        ({"filter": 20}, "odd.*got 20"),
        ({"filter": 65}, r"at most the size \(64\), got 65"),
        ({"width": 0.0}, "width"),
    ],
)
def test_parameters_out_of_range_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        small(**given)


@pytest.mark.parametrize("change", [Tensor.float, lambda x: x[:, :1], lambda x: x[..., :63], lambda x: x[0]])
def test_only_images_of_its_size_are_taken(change: Callable[[Tensor], Tensor]) -> None:
    detector, one = small(), change(images(1, 1))
    for verb in (detector.embed, detector.learn):
        with pytest.raises(ConfigError, match=r"expected images uint8 \(B, 3, 64, 64\)"):
            verb(one)


def test_detectors_of_one_size_share_images_but_nothing_more() -> None:
    assert small(width=0.05).embedding == small().embedding != small(size=96).embedding
    one = images(1, 1)
    assert small().embed(one) is one


def test_a_texture_file_is_used_and_a_missing_one_changes_nothing(tmp_path: Path) -> None:
    save_file({"pictures": torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)}, tmp_path / "t.safetensors")
    with_file = build("draem", size=64, width=0.03, textures=str(tmp_path / "t.safetensors"))
    with_file.learn(images(4, 1))
    missing = small(textures=str(tmp_path / "none.safetensors"))
    before = missing.state()
    with pytest.raises(WeightsError, match=r"none\.safetensors"):
        missing.learn(images(1, 1))
    assert same(before, missing.state()) and not missing.ready
