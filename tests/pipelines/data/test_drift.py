"""Drifts: pure, at their level, and the same for everyone; the protocol: who learned and was judged under what."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from everline.methods.errors import ConfigError, UnknownName
from everline.methods.padim import PaDiM
from everline.pipelines.data.datasets import Task, read_folder
from everline.pipelines.data.drift import DRIFTS, KINDS, Drift
from everline.pipelines.protocols.drifting import Drifting
from everline.pipelines.protocols.judging import Features
from everline.pipelines.protocols.protocols import Offline
from everline.pipelines.records.results import mean_figures
from PIL import Image
from scipy.signal import convolve2d

PATH = Path("bolt/test/good/001.png")


def grey(value: int, side: int = 200) -> np.ndarray:
    return np.full((3, side, side), value, np.uint8)


def test_brightness_adds_its_level_and_is_cut_off() -> None:
    up, down = Drift("brightness", 50), Drift("brightness", -50)
    assert (up(grey(100), PATH) == 150).all() and (up(grey(240), PATH) == 255).all()
    assert (down(grey(100), PATH) == 50).all() and (down(grey(20), PATH) == 0).all()


def test_noise_has_its_deviation_and_no_mean() -> None:
    off = Drift("noise", 25)(grey(128), PATH).astype(float) - 128
    assert off.std() == pytest.approx(25, rel=0.02) and abs(off.mean()) < 0.3
    assert np.abs(np.corrcoef(off.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 0.03  # each channel its own


def test_noise_is_the_files_own_wherever_the_folder_lies() -> None:
    noise = Drift("noise", 25)
    here = noise(grey(128), PATH)
    assert np.array_equal(here, noise(grey(128), Path("/elsewhere") / PATH))
    assert not np.array_equal(here, noise(grey(128), PATH.with_name("002.png")))
    assert not np.array_equal(here, noise(grey(128), Path("bolt/train/good/001.png")))


def test_blur_is_a_gaussian_of_its_deviation() -> None:
    dot = np.zeros((3, 41, 41), np.uint8)
    dot[:, 20, 20] = 255
    line = np.exp(-(np.arange(-8, 9) ** 2) / 2)
    wanted = convolve2d(dot[0], np.outer(line, line) / line.sum() ** 2, mode="same")
    got = Drift("blur", 1)(dot, PATH)
    assert np.abs(got - wanted).max() <= 1 and 30 < got.max() < 60


def test_a_cast_moves_red_and_blue_apart() -> None:
    assert Drift("cast", 30)(grey(100), PATH)[:, 0, 0].tolist() == [130, 100, 70]


@pytest.mark.parametrize("drift", DRIFTS, ids=list(KINDS))
def test_every_drift_is_pure_and_keeps_the_type(drift: Drift) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32), np.uint8)
    before = pixels.copy()
    got = drift(pixels, PATH)
    assert got.dtype == np.uint8 and got.shape == pixels.shape and not np.array_equal(got, pixels)
    assert np.array_equal(pixels, before) and np.array_equal(got, drift(pixels, PATH))
    nothing = replace(drift, level=0.0)(pixels, PATH)
    assert np.array_equal(nothing, pixels)


def test_levels_are_read_and_checked() -> None:
    assert Drift.parse("noise") == Drift("noise", KINDS["noise"].level)
    assert Drift.parse("brightness=-40") == Drift("brightness", -40)
    with pytest.raises(UnknownName, match="did you mean noise"):
        Drift.parse("noize")
    for wrong in ("noise=-1", "noise=nan", "noise=300", "blur=inf"):
        with pytest.raises(ConfigError, match="must be in"):
            Drift.parse(wrong)
    with pytest.raises(ConfigError, match="must be a number"):
        Drift.parse("noise=much")


@pytest.fixture(scope="module")
def disc(tmp_path_factory: pytest.TempPathFactory, write_disc: Callable[..., Path]) -> Task:
    return read_folder(write_disc(tmp_path_factory.mktemp("data") / "disc", 6, 4, 5))


def make() -> PaDiM:
    return PaDiM(size=64, weights="none", sigma=1.0)


def drifted(folder: Path, task: Task, drift: Drift, train: bool) -> Task:
    """The task with its test set, and its training set where asked, drifted on disk by what `prepare` gives."""

    def put(path: Path) -> Path:
        pixels = np.array(Image.open(path).convert("RGB").resize((64, 64))).transpose(2, 0, 1)
        new = folder.joinpath(*path.parts[-3:])
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drift(pixels, path).transpose(1, 2, 0)).save(new)
        return new

    test = tuple(replace(sample, path=put(sample.path)) for sample in task.test)
    return Task(task.name, tuple(put(path) for path in task.train) if train else task.train, test)


def test_the_three_scenarios_are_those_of_folders_drifted_beforehand(disc: Task, tmp_path: Path) -> None:
    noise = Drift("noise", 40)
    got: dict[str, np.ndarray] = {}
    result, none = Drifting(drift=(noise,)).run(
        make, disc, sink=lambda name, judged: got.update({name: judged.scores})
    )
    got["none"] = none.scores

    def wanted(task: Task) -> np.ndarray:
        return Offline().run(make, task)[1].scores

    assert np.array_equal(got["none"], wanted(disc))
    assert np.array_equal(got["noise/offline"], wanted(drifted(tmp_path / "a", disc, noise, train=False)))
    assert np.array_equal(got["noise/online"], wanted(drifted(tmp_path / "b", disc, noise, train=True)))
    assert [part.name for part in result.parts] == ["none", "noise"] and result.parts[0].offline is None


def test_the_tasks_figures_are_means_over_the_drifts(disc: Task) -> None:
    result, _ = Drifting().run(make, disc)
    assert [part.name for part in result.parts] == ["none", *KINDS]
    means = mean_figures([part.metrics for part in result.parts[1:]])
    assert result.metrics["image_auroc"] == means["image_auroc"]
    assert result.offline is not None
    assert result.offline["image_auroc"] == mean_figures([p.offline or {} for p in result.parts[1:]])["image_auroc"]
    assert Drifting().options["drift"]["blur"] == 2.0


def test_an_image_is_embedded_once_per_drift(disc: Task) -> None:
    count = 0

    class Counting(PaDiM):
        def embed(self, images: torch.Tensor) -> torch.Tensor:
            nonlocal count
            count += len(images)
            return super().embed(images)

    features = Features(lambda: Counting(size=64, weights="none"), again=True)
    for seed in (0, 1):
        Drifting(seed=seed).run(lambda: Counting(size=64, weights="none"), disc, features=features)
    assert count == (1 + len(DRIFTS)) * (len(disc.train) + len(disc.test))


def test_no_drift_and_one_twice_are_refused() -> None:
    wrong: tuple[Callable[[], Drifting], ...] = (
        lambda: Drifting(drift=()),
        lambda: Drifting(drift=(Drift("noise", 1), Drift("noise", 2))),
    )
    for one in wrong:
        with pytest.raises(ConfigError, match="--drift must"):
            one()
