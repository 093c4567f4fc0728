"""Public data sets, each as a tiny tree of its published shape."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError, DataError, UnknownName
from everline.pipelines.bench import Panel
from everline.pipelines.datasets import Task
from everline.pipelines.evaluate import evaluate
from everline.pipelines.readers import read_dataset
from PIL import Image


def put(path: Path, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)


def counts(task: Task) -> tuple[str, int, int, int]:
    return task.name, len(task.train), len(task.test), sum(sample.defect for sample in task.test)


def visa(root: Path, *more: str) -> Path:
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for n in range(4):
            image = f"{name}/Data/Images/Normal/{n:04}.JPG"
            put(root / image)
            lines.append(f"{name},{'train' if n < 3 else 'test'},normal,{image},")
        image, mask = f"{name}/Data/Images/Anomaly/000.JPG", f"{name}/Data/Masks/Anomaly/000.png"
        put(root / image), put(root / mask, 3)
        lines.append(f"{name},test,anomaly,{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join([*lines, *more]) + "\n")
    return root


@pytest.mark.parametrize("name", ["mvtec", "mpdd"])
def test_mvtec_and_mpdd_are_folders_of_classes(tmp_path: Path, name: str) -> None:
    for kind in ("tube", "bracket"):
        put(tmp_path / kind / "train/good/000.png"), put(tmp_path / kind / "test/good/000.png")
        put(tmp_path / kind / "test/scratch/000.png")
        put(tmp_path / kind / "ground_truth/scratch/000_mask.png", 255)
    (tmp_path / "readme.txt").write_text("x")
    assert [counts(task) for task in read_dataset(name, tmp_path)] == [("bracket", 1, 2, 1), ("tube", 1, 2, 1)]


def test_btad_calls_good_ok_and_has_masks_of_two_types(tmp_path: Path) -> None:
    for name, suffix in (("01", "bmp"), ("02", "png")):
        put(tmp_path / name / f"train/ok/0000.{suffix}"), put(tmp_path / name / f"test/ok/0001.{suffix}")
        put(tmp_path / name / f"test/ko/0000.{suffix}")
        put(tmp_path / name / f"ground_truth/ko/0000.{suffix}", 255)
    tasks = read_dataset("btad", tmp_path)
    assert [counts(task) for task in tasks] == [("01", 1, 2, 1), ("02", 1, 2, 1)]
    assert all(task.masked for task in tasks)
    (tmp_path / "02/ground_truth/ko/0000.png").unlink()
    with pytest.raises(DataError, match=r"ko/0000\.png is missing"):
        read_dataset("btad", tmp_path)


def test_visa_follows_its_split_and_its_masks_are_not_zero(tmp_path: Path) -> None:
    tasks = read_dataset("visa", visa(tmp_path))
    assert [counts(task) for task in tasks] == [("candle", 3, 2, 1), ("pcb1", 3, 2, 1)]
    masks = Panel.of(tasks[0].test, 8).masks
    assert masks is not None and [mask.all() for mask in masks] == [False, True]  # drawn with the value 3


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pcb1,test,normal,../secret.png,", "does not lie below"),
        ("pcb1,test,normal,/etc/secret.png,", "does not lie below"),
        ("pcb1,test,normal,pcb1/none.JPG,", r"line 12: the file .*none\.JPG is missing"),
        ("pcb1,valid,normal,x,", "line 12: expected object, split"),
        ("pcb1,test", "line 12: expected object, split"),
    ],
)
def test_a_wrong_line_of_visas_split_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_dataset("visa", visa(tmp_path, line))


def test_magnetic_tiles_have_their_masks_beside_them(tmp_path: Path) -> None:
    for n in range(6):
        put(tmp_path / f"MT_Free/Imgs/exp1_{n}.jpg"), put(tmp_path / f"MT_Free/Imgs/exp1_{n}.png")
    for kind in ("MT_Break", "MT_Blowhole"):
        put(tmp_path / kind / "Imgs/exp1_0.jpg"), put(tmp_path / kind / "Imgs/exp1_0.png", 255)
    (task,) = read_dataset("mtd", tmp_path)
    assert counts(task) == ("mtd", 4, 4, 2) and task.masked
    assert [sample.kind for sample in task.test] == ["good", "good", "MT_Blowhole", "MT_Break"]
    assert not {*task.train} & {sample.path for sample in task.test} and read_dataset("mtd", tmp_path) == [task]


@pytest.mark.parametrize("name", ["mvtec", "mpdd", "btad", "visa", "mtd"])
def test_another_tree_says_what_was_expected_and_found(tmp_path: Path, name: str) -> None:
    put(tmp_path / "stuff" / "0.png")
    with pytest.raises(DataError, match=r"expected .*found"):
        read_dataset(name, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_dataset(name, tmp_path / "nowhere")
    with pytest.raises(UnknownName, match="did you mean visa"):
        read_dataset("vista", tmp_path)


def test_folders_or_a_data_set_with_its_root() -> None:
    start = ["online", "--method", "padim"]
    for words in ([], ["--data", "x", "--dataset", "visa", "--root", "y"], ["--dataset", "visa"], ["--root", "y"]):
        refused = CliRunner().invoke(evaluate, [*start, *words]).exception
        assert isinstance(refused, ConfigError) and "--dataset" in str(refused)
    missing = CliRunner().invoke(evaluate, [*start, "--dataset", "visa", "--root", "/no/such"]).exception
    assert isinstance(missing, DataError) and "/no/such" in str(missing)
