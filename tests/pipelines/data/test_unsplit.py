"""`everline evaluate` on images without a split, and what it says of figures that they cannot give."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from everline.pipelines.data import unsplit
from everline.pipelines.data.datasets import Sample, Task
from everline.pipelines.data.readers import read_dataset
from everline.pipelines.data.unsplit import drawn
from everline.pipelines.data.view import View
from everline.pipelines.protocols.judging import Panel
from everline.pipelines.records.results import METRICS, read_result
from everline.pipelines.records.tables import left_out
from everline.pipelines.runs.evaluate import evaluate

QUICK = ["--method", "subspace", "--size", "64", "--set", "weights=none"]
FIGURES = dict.fromkeys(METRICS, 0.5)
NO_FIGURES = dict.fromkeys(METRICS, math.nan)


def online(dataset: str, *words: object) -> Result:
    return CliRunner().invoke(evaluate, ["online", "--dataset", dataset, *QUICK, *(str(word) for word in words)])


def task(good: int, bare: int, masked: int) -> Task:
    """A task to judge so many good images, defects without a mask, and defects with one."""
    test = [Sample(Path(f"{n}.png"), n >= good, "x") for n in range(good + bare + masked)]
    test[good + bare :] = [replace(sample, masks=(Path("mask.png"),)) for sample in test[good + bare :]]
    return Task("bolt", (Path("good.png"),), tuple(test))


def test_a_plants_folder_runs_end_to_end(tmp_path: Path, write_disc: Callable[..., Path]) -> None:
    root = write_disc(tmp_path / "disc", 1, 6, 4) / "test"  # the folders good and scratch
    ran = online("folder", "--root", root, "--json", tmp_path / "r.json")
    assert ran.exit_code == 0, ran.output
    (found,) = read_result(tmp_path / "r.json").tasks
    assert (found.task, found.n_train, found.n_test) == ("test", 4, 6)
    assert not math.isnan(found.metrics["image_auroc"]) and math.isnan(found.metrics["aupro"])
    assert "test: no masks: pixel figures are left out." in ran.stderr.splitlines()


@pytest.mark.parametrize("words", [[], ["--json", "-"]])
def test_a_folder_without_defects_says_why_there_are_no_figures(
    tmp_path: Path, write_disc: Callable[..., Path], words: list[str]
) -> None:
    root = write_disc(tmp_path / "disc", 6, 1, 1) / "train"
    ran = online("folder", "--root", root, *words)
    assert ran.exit_code == 0, ran.output
    said = "train: no defective images: figures that need them are left out."
    assert said in ran.stderr.splitlines() and said not in ran.stdout


@pytest.mark.parametrize(
    ("counts", "figures", "said"),
    [
        ((2, 0, 1), FIGURES, []),
        ((2, 0, 0), NO_FIGURES, ["no defective images: figures that need them are left out."]),
        ((2, 2, 0), NO_FIGURES, ["no masks: pixel figures are left out."]),
        ((2, 2, 1), NO_FIGURES, ["2 of 3 defective images have no mask: pixel figures are left out."]),
        ((0, 0, 1), NO_FIGURES, ["no good images to judge: image figures are left out."]),
        ((0, 2, 1), FIGURES, []),  # a protocol that drew good images, and defects with masks
    ],
)
def test_what_a_task_cannot_give_is_said(counts: tuple[int, int, int], figures: dict[str, float], said: list) -> None:
    assert left_out(task(*counts), figures) == said


def test_the_draw_is_two_thirds_and_never_another() -> None:
    images = [Path(f"{n}.png") for n in range(12)]
    train, rest = drawn(images)
    assert [images.index(path) for path in train] == [0, 2, 3, 4, 5, 7, 9, 11]
    assert sorted([*train, *rest]) == sorted(images)


def test_the_solar_cells_need_no_root() -> None:
    pytest.importorskip("elpv_dataset")
    found = {one.name: one for one in read_dataset("elpv")}
    counts = {name: (len(one.train), len(one.test), sum(s.defect for s in one.test)) for name, one in found.items()}
    assert counts == {"mono": (392, 509, 313), "poly": (613, 709, 402)}
    assert Panel.of(found["mono"].test, View(32)).masks is None and read_dataset("elpv") == list(found.values())
    assert not {*found["mono"].train} & {sample.path for sample in found["mono"].test}


def test_evaluate_reads_the_solar_cells_without_a_root(
    tmp_path: Path, write_disc: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_disc(tmp_path / "disc", 1, 3, 2) / "test"
    cells = [Sample(root / f"good/{n:03}.png", False, "good") for n in range(3)]
    cells += [Sample(root / f"scratch/{n:03}.png", True, "defective") for n in range(2)]
    monkeypatch.setattr(unsplit, "read_elpv", lambda: {"mono": cells})
    ran = online("elpv")
    assert ran.exit_code == 0 and "mono" in ran.stdout
    assert "mono: no masks: pixel figures are left out." in ran.stderr.splitlines()
