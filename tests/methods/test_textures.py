"""Textures: made up, drawn from a file, and changed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from everline.methods import augment as changes
from everline.methods import textures as module
from everline.methods.augment import CHANGES, augment
from everline.methods.errors import WeightsError
from everline.methods.textures import PATTERNS, procedural, read_pictures, source
from safetensors.torch import save_file
from torch import Tensor


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0) -> Tensor:
    return torch.rand(3, 20, 24, generator=rng(seed))


def pictures(count: int = 3, side: int = 32) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=rng(5)).to(torch.uint8)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda one: one.__name__)
def test_patterns_are_in_range_vary_and_follow_the_generator(pattern: module.Source) -> None:
    for size in (32, 65):
        one = pattern(size, rng(1))
        assert one.shape == (size, size) and one.dtype == torch.float32
        assert float(one.min()) >= 0 and float(one.max()) <= 1 and float(one.std()) > 0.02
        assert torch.equal(one, pattern(size, rng(1))) and not torch.equal(one, pattern(size, rng(2)))


def test_made_up_textures_differ_in_kind_and_colour() -> None:
    one = rng()
    drawn = torch.stack([procedural(32, one) for _ in range(60)])
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert float(drawn.mean((2, 3)).std(0).min()) > 0.1  # of their mean colours


def test_a_file_is_drawn_from_evenly_and_resized(tmp_path: Path) -> None:
    save_file({"pictures": pictures()}, tmp_path / "t.safetensors")
    draw, one = source(str(tmp_path / "t.safetensors")), rng()
    drawn = [draw(32, one) for _ in range(60)]
    counts = [sum(torch.equal(each, known.float() / 255) for each in drawn) for known in pictures()]
    assert sum(counts) == 60 and min(counts) > 8
    assert draw(64, one).shape == (3, 64, 64)


def test_a_file_written_anew_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_file({"pictures": pictures(2)}, path)
    assert read_pictures(path) is read_pictures(path) and len(read_pictures(path)) == 2
    save_file({"pictures": pictures(4)}, path)
    assert len(read_pictures(path)) == 4


BAD = {
    "another name": {"images": pictures()},
    "too much": {"pictures": pictures(), "more": torch.zeros(1)},
    "floats": {"pictures": pictures().float()},
    "grey": {"pictures": pictures()[:, :1].contiguous()},
    "not square": {"pictures": pictures()[..., :31].contiguous()},
    "one": {"pictures": pictures()[0].contiguous()},
    "none": {"pictures": pictures()[:0]},
    "tiny": {"pictures": pictures(2, 16)},
}


@pytest.mark.parametrize("name", BAD)
def test_other_tensors_are_refused(name: str, tmp_path: Path) -> None:
    save_file(BAD[name], tmp_path / "bad.safetensors")
    with pytest.raises(WeightsError, match=r"bad\.safetensors.*pictures"):
        source(str(tmp_path / "bad.safetensors"))


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("textures")
    for path in (tmp_path / "missing", tmp_path / "text"):
        with pytest.raises(WeightsError, match="pretrain textures"):
            source(str(path))
    with pytest.raises(WeightsError, match="must be a file"):
        source(str(tmp_path))
    monkeypatch.setattr(module, "MAX_BYTES", 4)
    with pytest.raises(WeightsError, match="at most 4 bytes"):
        source(str(tmp_path / "text"))


@pytest.mark.parametrize("change", CHANGES, ids=lambda one: one.__name__)
def test_changes_make_new_pictures_of_the_same_shape(change: object) -> None:
    before = picture()
    after = change(before, 0.3)  # type: ignore[operator]
    assert after.shape == before.shape and not torch.equal(after, before) and torch.equal(before, picture())


def test_augmenting_stays_in_range_and_follows_the_generator() -> None:
    drawn = torch.stack([augment(picture(), rng(seed)) for seed in range(30)])
    assert bool(torch.isfinite(drawn).all()) and float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert torch.equal(drawn[4], augment(picture(), rng(4)))
    assert len({tuple(one.flatten()[:9].tolist()) for one in drawn}) > 20
    assert bool(torch.isfinite(augment(torch.full((3, 8, 8), 0.5), rng(), len(CHANGES))).all())


def test_equalizing_makes_levels_even() -> None:
    dark = picture() ** 3
    even = changes.equalize(dark, 0)
    assert np.allclose(np.quantile(even, [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.03)
    order = dark[0].flatten().argsort()
    assert bool((even[0].flatten()[order].diff() >= 0).all())


def test_changes_by_hand() -> None:
    one = torch.tensor([0.0, 0.2, 0.8, 1.0]).expand(3, 1, 4).contiguous()
    assert torch.allclose(changes.solarize(one, 0.5)[0, 0], torch.tensor([0, 0.2, 0.2, 0]))
    assert torch.equal(changes.posterize(one, 0.0)[0, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.allclose(changes.brightness(one, 1.0), one * 1.5)
    assert torch.allclose(changes.contrast(one * 0.5 + 0.2, 0.0), one, atol=1e-6)
    assert torch.allclose(changes.sharpen(one, 0.5), one, atol=1e-6)
    assert torch.allclose(changes.colour(picture(), 0.0).std(0), torch.zeros(20, 24), atol=1e-6)
