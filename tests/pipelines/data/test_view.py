"""What of a picture is seen: all of it, or the middle; the mask is seen as the picture is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from everline.methods.errors import ConfigError, DataError
from everline.methods.padim import PaDiM
from everline.pipelines.data.datasets import read_folder
from everline.pipelines.data.drift import Drift
from everline.pipelines.data.view import View
from everline.pipelines.protocols.judging import Features
from everline.pipelines.protocols.protocols import PROTOCOLS, Offline
from everline.platform.depth import ENOUGH
from PIL import Image


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_a_crop_keeps_the_middle_of_the_resized_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    path = saved(tmp_path / "a.png", pixels)
    whole, middle = View(12).picture(path).numpy(), View(8, 12).picture(path).numpy()
    assert np.array_equal(whole, pixels.transpose(2, 0, 1))
    assert np.array_equal(middle, whole[:, 2:10, 2:10])


def test_the_mask_is_cropped_as_the_picture_is(tmp_path: Path) -> None:
    pixels = np.where(np.random.default_rng(1).random((12, 12)) < 0.5, 255, 0).astype(np.uint8)
    path = saved(tmp_path / "m.png", pixels)
    assert np.array_equal(View(8, 12).mask(path), pixels[2:10, 2:10] > 0)
    assert np.array_equal(View(12).mask(path), pixels > 0)


def test_the_bits_of_a_run_are_its_methods_parameter_and_unused_ones_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shallow = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint32)
    want = View(64).picture(saved(tmp_path / "8.png", shallow.astype(np.uint8)))
    deep = [saved(tmp_path / f"{n}.tif", (shallow * 4095 // 255).astype(np.uint16)) for n in range(ENOUGH)]

    def features(bits: int) -> Features:
        return Features(lambda: PaDiM(size=64, weights="none", bits=bits))

    assert np.abs(features(12).view.picture(deep[0]).numpy().astype(int) - want.numpy()).max() <= 1
    with pytest.raises(DataError, match=r"0\.tif: image: values up to 4,095, but with the setting bits: 10"):
        features(10).view.picture(deep[0])
    unsaid = features(0)
    for path in deep * 2:
        unsaid.get(path)
    assert [text for text in caplog.messages if "set bits: 12" in text] == caplog.messages and len(
        caplog.messages
    ) == 1


@pytest.mark.parametrize("crop", [7, 5000])
def test_a_crop_out_of_range_is_refused(crop: int) -> None:
    with pytest.raises(ConfigError, match=r"--crop must be in \[8 \(the size\), 4096\]"):
        View(8, crop)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("x")
    with pytest.raises(DataError, match=r"x\.png"):
        View(8).picture(tmp_path / "x.png")


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_has_the_crop_as_an_option(name: str) -> None:
    assert "crop" in PROTOCOLS[name].option_names()
    assert PROTOCOLS[name](crop=80).options["crop"] == 80 and "crop" not in PROTOCOLS[name]().options


def test_a_cropped_run_sees_other_pixels_and_masks(tmp_path: Path, write_disc: Callable[..., Path]) -> None:
    task = read_folder(write_disc(tmp_path / "disc", 4, 2, 2, masks=True))

    def make() -> PaDiM:
        return PaDiM(size=64, weights="none", sigma=1.0)

    (_, whole), (_, middle) = (Offline(crop=crop).run(make, task) for crop in (None, 96))
    assert whole.masks is not None and middle.masks is not None
    assert middle.masks.sum() > 1.5 * whole.masks.sum()  # the scratch is in the middle, and larger there
    assert not np.array_equal(whole.scores, middle.scores)
    assert Features(make, crop=96).get(task.train[0], Drift("blur", 1.0)).shape == (1, 176, 8, 8)
