"""`everline pretrain teacher`: it learns, goes on bit for bit, and its file is what the detector takes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from everline.methods.conformance import images
from everline.methods.distil import Distiller, Recipe, drawing, halved, spread
from everline.methods.errors import ConfigError, DataError, EverlineError, StoreError
from everline.methods.pdn import scaled
from everline.methods.registry import build
from everline.methods.teacher import Teacher
from everline.pipelines.data.datasets import images_below
from everline.pipelines.data.view import View
from everline.pipelines.main import cli
from safetensors.torch import load_file, save_file

SMALL = ("--size", 32, "--width", 0.05, "--batch", 2, "--lr", 3e-3, "--keep", 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Path:
    return write_disc(tmp_path_factory.mktemp("pictures") / "disc", 4, 1, 2)


def teach(folder: Path, out: Path, *options: Any, steps: int = 6) -> Result:
    words = ["pretrain", "teacher", "--images", folder, "--out", out, "--steps", steps, *SMALL, *options]
    return CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)


def made(result: Result) -> str:
    if result.exception is not None:
        raise result.exception
    return result.output


def fails(result: Result, kind: type[EverlineError]) -> str:
    assert isinstance(result.exception, kind), repr(result.exception)
    return str(result.exception)


def test_it_learns_and_says_from_what(folder: Path, tmp_path: Path) -> None:
    said = made(teach(folder, tmp_path / "teacher", steps=80))
    assert "efficientnet_lite0 on 7 images of 32 pixels in 80 steps of 2" in said
    start, end = (float(said.split(word)[0].split()[-1]) for word in (" at start", " at end"))
    assert end < 0.9 * start
    assert [p.name for p in tmp_path.iterdir()] == ["teacher"]


def test_the_detector_takes_its_file(folder: Path, tmp_path: Path) -> None:
    made(teach(folder, tmp_path / "teacher"))
    teacher = Teacher.read(str(tmp_path / "teacher"), "small", 0.05)
    assert teacher.made == {"backbone": "efficientnet_lite0", "steps": "6", "images": "7"}
    assert teacher.channels == 176
    assert teacher.pictures.shape == (3, 3, 32, 32)
    detector = build("efficientad", size=64, teacher=str(tmp_path / "teacher"), width=0.05)
    detector.learn(images(2, 1))
    assert bool(torch.isfinite(detector.score(images(2, 2)).maps).all())


def test_outputs_are_normalised_over_the_images(folder: Path, tmp_path: Path) -> None:
    made(teach(folder, tmp_path / "teacher"))
    teacher = Teacher.read(str(tmp_path / "teacher"), "small", 0.05)
    files = images_below([folder])
    seen = teacher(scaled(halved(torch.stack([View(64).picture(file) for file in files]))))
    torch.testing.assert_close(seen.mean((0, 2, 3)), torch.zeros(176), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std((0, 2, 3)), torch.ones(176), atol=1e-3, rtol=0)


def stopped_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C in the middle of this step."""
    real = Distiller.step

    def pressed(self: Distiller, batch: torch.Tensor) -> float:
        if self.steps + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch)

    monkeypatch.setattr(Distiller, "step", pressed)


def test_goes_on_bit_for_bit_after_ctrl_c(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(teach(folder, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        stopped_after(patch, 3)
        assert teach(folder, tmp_path / "half").exception is not None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("half")] == ["half.part"]
    assert load_file(tmp_path / "half.part")["adam.steps"].tolist() == [3]
    again = made(teach(folder, tmp_path / "half"))
    one, other = load_file(tmp_path / "whole"), load_file(tmp_path / "half")
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert again.rsplit("; loss", 1)[1] == whole.rsplit("; loss", 1)[1]
    assert not (tmp_path / "half.part").exists()


def test_other_settings_do_not_go_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stopped_after(patch, 2)
        teach(folder, tmp_path / "out")
    before = (tmp_path / "out.part").read_bytes()
    assert "(seed)" in fails(teach(folder, tmp_path / "out", "--seed", 1), ConfigError)
    assert "(images)" in fails(teach(folder / "train", tmp_path / "out"), ConfigError)
    assert (tmp_path / "out.part").read_bytes() == before


def test_a_damaged_part_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out.part").write_bytes(b"nothing")
    assert "remove it to begin anew" in fails(teach(folder, tmp_path / "out"), StoreError)
    save_file({"a": torch.zeros(1)}, tmp_path / "out.part")
    assert "unfinished teacher" in fails(teach(folder, tmp_path / "out"), StoreError)


def test_a_bad_file_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "more" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no image")
    said = fails(teach(folder, tmp_path / "out", "--images", bad.parent), DataError)
    assert "bad.png" in said
    assert not (tmp_path / "out.part").exists()


def test_several_folders_and_none(folder: Path, tmp_path: Path) -> None:
    assert len(images_below([folder / "train", folder / "test", folder])) == 7
    assert "no such folder" in fails(teach(tmp_path / "away", tmp_path / "out"), DataError)
    (tmp_path / "empty").mkdir()
    assert "no images" in fails(teach(tmp_path / "empty", tmp_path / "out"), DataError)
    both = made(teach(folder / "train", tmp_path / "out", "--images", folder / "test/good", folder / "test/scratch"))
    assert "7 images" in both


@pytest.mark.parametrize(
    ("options", "said"), [(("--size", 33), "multiple of 4"), (("--device", "gpu"), "--device gpu")]
)
def test_wrong_options_are_one_clear_error(folder: Path, tmp_path: Path, options: tuple[Any, ...], said: str) -> None:
    assert said in fails(teach(folder, tmp_path / "out", *options), ConfigError)


def test_a_file_that_is_there_is_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert "there already" in fails(teach(folder, tmp_path / "out"), ConfigError)
    assert (tmp_path / "out").read_text() == "mine"


def test_every_pass_takes_every_image_once() -> None:
    taken = [n for step in range(14) for n in drawing(step, 3, 7, seed=4)]
    passes = [taken[start : start + 7] for start in range(0, 42, 7)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1
    assert taken != [n for step in range(14) for n in drawing(step, 3, 7, seed=5)]


def test_spread_is_that_of_all_at_once() -> None:
    values = torch.randn(10, 4, 6, 6, generator=torch.Generator().manual_seed(0)) * 3 + 100
    mean, std = spread(values.split([3, 1, 6]))
    torch.testing.assert_close(mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(std, values.std((0, 2, 3)), rtol=1e-5, atol=0)


def test_wide_backbones_are_averaged_to_384_channels() -> None:
    distiller = Distiller(Recipe(width=0.05, backbone="resnet18", weights="none"))
    images_ = images(1, 1)
    found, raw = distiller.features(images_), distiller.backbone(images_)
    assert raw.shape == (1, 448, 8, 8)
    assert found.shape == (1, 384, 8, 8)
    torch.testing.assert_close(found[0, 0], raw[0, :2].mean(0))  # channel 0 of 384: 448 / 384, rounded up, are two
