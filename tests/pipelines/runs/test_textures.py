"""`everline pretrain textures`: what it packs is what draem draws from."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from everline.methods.errors import ConfigError, DataError
from everline.methods.textures import read_pictures
from everline.pipelines.main import cli
from everline.platform.images import prepare
from PIL import Image


def run(*words: object) -> Result:
    command = ["pretrain", "textures", *(str(word) for word in words)]
    return CliRunner().invoke(cli, command, catch_exceptions=False, standalone_mode=False)


@pytest.fixture
def folder(tmp_path: Path, parts: list[bytes]) -> Path:
    """Three pictures, of which two lie a folder deeper, and things that are none."""
    (tmp_path / "dtd" / "woven").mkdir(parents=True)
    (tmp_path / "dtd" / ".git").mkdir()
    for data, name in zip(parts, ("b.png", "woven/a.PNG", "woven/c.png", ".git/x.png"), strict=False):
        (tmp_path / "dtd" / name).write_bytes(data)
    (tmp_path / "dtd" / "readme.txt").write_text("textures")
    return tmp_path / "dtd"


def test_it_packs_every_picture_as_the_platform_decodes_it(folder: Path, tmp_path: Path) -> None:
    ran = run("--images", folder, "--out", tmp_path / "t.safetensors", "--size", 48)
    packed = read_pictures(tmp_path / "t.safetensors")
    files = [folder / name for name in ("b.png", "woven/a.PNG", "woven/c.png")]
    assert torch.equal(packed, torch.stack([prepare(file.read_bytes(), 48) for file in files]))
    assert ran.exit_code == 0 and "3 pictures" in ran.stderr and ran.stdout == ""


def test_a_lot_decides_where_there_are_too_many(folder: Path, tmp_path: Path) -> None:
    drawn = []
    for seed in (0, 0, 1, 2, 3):
        run("--images", folder, "--out", tmp_path / "t", "--size", 32, "--most", 1, "--seed", seed)
        drawn.append(read_pictures(tmp_path / "t").clone())
    assert all(len(one) == 1 for one in drawn) and torch.equal(drawn[0], drawn[1])
    assert any(not torch.equal(drawn[0], other) for other in drawn[2:])


def test_several_folders_may_stand_behind_one_option_and_none_counts_twice(folder: Path, tmp_path: Path) -> None:
    run("--images", folder / "woven", folder, "--size", 32, "--out", tmp_path / "t")
    assert len(read_pictures(tmp_path / "t")) == 3


def test_a_damaged_picture_is_named_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "woven" / "d.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"woven/d\.jpg"):
        run("--images", folder, "--out", tmp_path / "t")
    assert not list(tmp_path.glob("*t*.tmp")) and not (tmp_path / "t").exists()


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        run("--images", tmp_path / "none", "--out", tmp_path / "t")
    with pytest.raises(DataError, match="no images in it or below"):
        run("--images", tmp_path, "--out", tmp_path / "t")


def test_a_file_that_would_not_be_read_back_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{n}.png")
    monkeypatch.setattr("everline.pipelines.runs.textures.MAX_BYTES", 2**20 + 2 * 3 * 32 * 32)
    with pytest.raises(ConfigError, match="--most must be at most 2 with --size 32"):
        run("--images", tmp_path, "--out", tmp_path / "t", "--size", 32)
