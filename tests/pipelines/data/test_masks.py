"""Masks: what is a defect in them, that they fit their images, and what is said of empty ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from everline.methods.errors import DataError
from everline.pipelines.data.datasets import Sample, read_folder
from everline.pipelines.data.masks import check_masks, read_mask
from everline.pipelines.data.view import View
from everline.pipelines.protocols.judging import Panel
from everline.pipelines.runs.evaluate import evaluate
from PIL import Image

LEFT = np.zeros((6, 6), bool)
LEFT[1:3, :2] = True


def saved(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def turned(path: Path, turn: int, width: int = 6, height: int = 6, mode: str = "L") -> Path:
    """A picture with an EXIF orientation; the sides are those that are stored."""
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new(mode, (width, height), 255 if mode == "L" else 0).save(path, exif=exif)
    return path


def test_masks_are_above_half_after_nearest_resizing(tmp_path: Path) -> None:
    values = np.array([[0, 127], [128, 255]], np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    got = read_mask(tmp_path / "m.png", 4)
    assert got.dtype == np.bool_
    assert np.array_equal(got, np.repeat(np.repeat(values > 127, 2, 0), 2, 1))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_masks_may_have_any_mode(tmp_path: Path, mode: str) -> None:
    values = np.zeros((6, 6), np.uint8)
    values[1:3, 2:5] = 255
    Image.fromarray(values).convert(mode).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", 6), values > 0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        *((np.uint8, value) for value in (1, 3, 127, 255)),
        *((np.uint16, value) for value in (1, 255, 256, 4095, 65535)),
    ],
)
def test_one_value_beside_0_is_the_defect_however_many_bits_it_has(tmp_path: Path, kind: type, value: int) -> None:
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", (LEFT * value).astype(kind)), 6), LEFT)
    assert np.array_equal(read_mask(saved(tmp_path / "m.tif", (LEFT * value).astype(kind)), 6), LEFT)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_labels_of_several_kinds_are_refused_unless_all_of_them_are_defects(tmp_path: Path, kind: type) -> None:
    several = saved(tmp_path / "m.png", (LEFT * 2 + LEFT.T).astype(kind))
    with pytest.raises(DataError, match=r"m\.png: several values, of which the largest is 3; a mask is 0"):
        read_mask(several, 6)
    assert np.array_equal(read_mask(several, 6, above=0), LEFT | LEFT.T)


def test_soft_edges_of_16_bits_are_cut_at_half(tmp_path: Path) -> None:
    values = np.array([[0, 20_000], [40_000, 65_535]], np.uint16)
    assert np.array_equal(read_mask(saved(tmp_path / "m.png", values), 2), values > 32_767)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: the mask cannot be read"):
        read_mask(tmp_path / "broken.png", 4)


@pytest.mark.parametrize("colour", [0, 255])
def test_a_defect_drawn_in_transparency_is_refused_where_the_colours_say_another(tmp_path: Path, colour: int) -> None:
    shown = np.full((6, 6, 4), colour, np.uint8)
    shown[..., 3] = LEFT * 255
    with pytest.raises(DataError, match=r"m\.png: its colours and its transparency"):
        read_mask(saved(tmp_path / "m.png", shown), 6)
    shown[..., :3] = LEFT[..., None] * 255
    assert np.array_equal(read_mask(saved(tmp_path / "same.png", shown), 6), LEFT)
    shown[..., 3] = 255
    assert np.array_equal(read_mask(saved(tmp_path / "opaque.png", shown), 6), LEFT)


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    image, mask = turned(tmp_path / "i.png", 1, 8, 6), saved(tmp_path / "m.png", LEFT)
    with pytest.raises(DataError, match=r"m\.png: 6 x 6 pixels, but its image .*i\.png has 8 x 6; a mask has"):
        read_mask(mask, 6, image=image)
    with pytest.raises(DataError, match="6 x 6 pixels"):
        Panel.of([Sample(image, True, "x", (mask,))], View(6))


@pytest.mark.parametrize("kind", ["jpg", "tif", "png"])
@pytest.mark.parametrize("turn", [5, 6, 7, 8])
def test_a_mask_fits_the_upright_image_and_not_the_stored_one(tmp_path: Path, kind: str, turn: int) -> None:
    image = turned(tmp_path / f"i.{kind}", turn, 8, 6)
    assert read_mask(turned(tmp_path / "upright.png", 1, 6, 8), 6, image=image).all()
    assert read_mask(turned(tmp_path / "same.png", turn, 8, 6), 6, image=image).all()
    with pytest.raises(DataError, match=rf"8 x 6 pixels, but .* has 6 x 8, upright \(EXIF orientation {turn}\)"):
        read_mask(turned(tmp_path / "stored.png", 1, 8, 6), 6, image=image)


@pytest.mark.parametrize(("turn", "sides"), [(2, (8, 6)), (3, (8, 6)), (4, (8, 6)), (6, (6, 6))])
def test_where_the_size_does_not_tell_how_the_mask_was_drawn_it_is_refused(
    tmp_path: Path, turn: int, sides: tuple[int, int]
) -> None:
    image = turned(tmp_path / "i.jpg", turn, *sides)
    with pytest.raises(DataError, match=f"turned by EXIF orientation {turn}, and their size does not tell"):
        read_mask(turned(tmp_path / "m.png", 1, *sides), 6, image=image)
    assert read_mask(turned(tmp_path / "same.png", turn, *sides), 6, image=image).all()


@pytest.mark.parametrize(
    ("empty", "said"),
    [
        (0, []),
        (1, ["1 of 3 defects are empty, first that of scratch/000.png"]),
        (3, ["all 3 defects are empty: pixel figures are left out"]),
    ],
)
def test_empty_masks_of_defects_are_told(
    tmp_path: Path, write_disc: Callable[..., Path], caplog: pytest.LogCaptureFixture, empty: int, said: list[str]
) -> None:
    root = write_disc(tmp_path / "disc", 3, 2, 3, masks=True)
    for n in range(empty):
        saved(root / f"ground_truth/scratch/{n:03}_mask.png", np.zeros((64, 64), np.uint8))
    words = [
        "offline",
        "--method",
        "padim",
        "--data",
        root,
        "--size",
        64,
        "--set",
        "weights=none",
        "--tracking",
        "none",
    ]
    ran = CliRunner().invoke(evaluate, [str(word) for word in words])
    assert ran.exit_code == 0, ran.output
    assert len(caplog.messages) == len(said)
    assert all(text in message for text, message in zip(said, caplog.messages, strict=True))


def test_masks_are_looked_at_before_anything_is_learned(tmp_path: Path, write_disc: Callable[..., Path]) -> None:
    root = write_disc(tmp_path / "disc", 3, 2, 3, masks=True)
    saved(root / "ground_truth/scratch/002_mask.png", np.zeros((32, 64), np.uint8))
    with pytest.raises(DataError, match=r"002_mask\.png: 64 x 32 pixels"):
        check_masks("disc", read_folder(root).test)
