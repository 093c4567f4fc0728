"""Public data sets, each as a tiny tree of its published shape."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from everline.methods.errors import ConfigError, DataError, UnknownName
from everline.pipelines.data.datasets import Task
from everline.pipelines.data.readers import READERS, read_dataset
from everline.pipelines.data.view import View
from everline.pipelines.protocols.judging import Panel
from everline.pipelines.runs.evaluate import evaluate
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
    masks = Panel.of(tasks[0].test, View(8)).masks
    assert masks is not None and [mask.all() for mask in masks] == [False, True]  # drawn with the value 3


def test_a_mark_at_the_beginning_of_visas_split_is_passed_over(tmp_path: Path) -> None:
    table = visa(tmp_path) / "split_csv/1cls.csv"
    want = read_dataset("visa", tmp_path)
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())  # as spreadsheets write it
    assert read_dataset("visa", tmp_path) == want


NFC, NFD = "K\u00e4se", "Ka\u0308se"


@pytest.mark.parametrize("name", ["btad", "dagm", "loco", "mtd", "mvtec", "visa"])
@pytest.mark.parametrize(("images", "masks"), [(NFC, NFD), (NFD, NFC)])
def test_images_and_masks_whose_names_differ_in_form_only_belong_together(
    tmp_path: Path, name: str, images: str, masks: str
) -> None:
    put(tmp_path / "a/train/good/0.png"), put(tmp_path / f"a/test/{images}/{images}.png")
    put(tmp_path / f"a/ground_truth/{masks}/{masks}_mask.png", 255)
    put(tmp_path / f"a/ground_truth/{masks}/{masks}/000.png", 255)
    put(tmp_path / "a/train/ok/0.png"), put(tmp_path / f"a/test/ko/{images}.png")
    put(tmp_path / f"a/ground_truth/ko/{masks}.png", 255)
    (
        put(tmp_path / f"a/ground_truth/ko/{images}_mask.png", 255),
        put(tmp_path / f"a/ground_truth/ko/{masks}/0.png", 255),
    )
    put(tmp_path / "a/Train/0.PNG"), put(tmp_path / "a/Train/1.PNG"), put(tmp_path / "a/Train/Label/1_label.PNG")
    put(tmp_path / f"a/Test/{images}.PNG")
    put(tmp_path / f"a/Test/Label/{masks}_label.PNG", 255)
    put(tmp_path / "MT_Free/Imgs/0.jpg"), put(tmp_path / "MT_Free/Imgs/1.jpg"), put(tmp_path / "MT_Free/Imgs/2.jpg")
    put(tmp_path / f"MT_X/Imgs/{images}.jpg"), put(tmp_path / f"MT_X/Imgs/{masks}.png", 255)
    rows = f"a,train,normal,a/train/ok/0.png,\na,test,anomaly,a/test/ko/{masks}.png,a/ground_truth/ko/{images}.png\n"
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv/1cls.csv").write_text(f"object,split,label,image,mask\n{rows}", "utf-8")
    (task,) = read_dataset(name, tmp_path)
    assert task.masked and all(mask.is_file() for sample in task.test for mask in sample.masks)
    assert Panel.of(task.test, View(8)).masks is not None


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
    assert [path.stem for path in task.train] == ["exp1_2", "exp1_3", "exp1_4", "exp1_5"]  # as it was drawn ever since
    assert not {*task.train} & {sample.path for sample in task.test} and read_dataset("mtd", tmp_path) == [task]


def loco(root: Path) -> Path:
    part = root / "pushpins"
    put(part / "train/good/000.png"), put(part / "validation/good/000.png"), put(part / "test/good/000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        put(part / "test" / kind / "000.png"), put(part / "test" / kind / "001.png")
        halves(part / "ground_truth" / kind / "000", left=255, right=254)
        halves(part / "ground_truth" / kind / "001", left=1)
    return root


def halves(folder: Path, **values: int) -> None:
    """A mask of 8 x 8 pixels for each half that is named, 000.png, 001.png, ..."""
    folder.mkdir(parents=True)
    for n, (half, value) in enumerate(values.items()):
        mask = Image.new("L", (8, 8))
        mask.paste(value, (0, 0, 4, 8) if half == "left" else (4, 0, 8, 8))
        mask.save(folder / f"{n:03}.png")


def test_loco_joins_an_images_masks_whatever_their_values(tmp_path: Path) -> None:
    (task,) = read_dataset("loco", loco(tmp_path))
    assert [sample.kind for sample in task.test] == ["good", *["logical_anomalies"] * 2, *["structural_anomalies"] * 2]
    masks = Panel.of(task.test, View(8)).masks
    assert masks is not None and task.masked
    assert masks.mean((1, 2)).tolist() == [0, 1, 0.5, 1, 0.5] and masks[2, :, :4].all()


def test_locos_validation_images_are_neither_learned_nor_judged(tmp_path: Path) -> None:
    (task,) = read_dataset("loco", loco(tmp_path))
    assert counts(task) == ("pushpins", 1, 5, 4)
    assert not any("validation" in path.parts for path in [*task.train, *(sample.path for sample in task.test)])


def test_an_image_of_loco_without_a_mask_is_named(tmp_path: Path) -> None:
    (loco(tmp_path) / "pushpins/ground_truth/logical_anomalies/001/000.png").unlink()
    with pytest.raises(DataError, match=r"logical_anomalies/001\.png: expected its masks .*found none"):
        read_dataset("loco", tmp_path)


def dagm(root: Path, *classes: str) -> Path:
    for name in classes:
        for part, first in (("Train", 4), ("Test", 1)):
            for n in range(first, first + 3):
                put(root / name / part / f"{n:04}.PNG")
            put(root / name / part / f"Label/{first:04}_label.PNG", 255)
            (root / name / part / "Label/Labels.txt").write_text("1\n")
    return root


def test_dagm_learns_the_normal_images_of_train_and_judges_all_of_test(tmp_path: Path) -> None:
    tasks = read_dataset("dagm", dagm(tmp_path, "Class1", "Class10"))
    assert [counts(task) for task in tasks] == [("Class1", 2, 3, 1), ("Class10", 2, 3, 1)]
    assert [path.name for path in tasks[0].train] == ["0005.PNG", "0006.PNG"]  # 0004 has a label
    assert [sample.path.name for sample in tasks[0].test if sample.defect] == ["0001.PNG"]
    masks = Panel.of(tasks[0].test, View(8)).masks
    assert masks is not None and [mask.all() for mask in masks] == [True, False, False]


@pytest.mark.parametrize("part", ["Train", "Test"])
def test_dagm_without_labels_does_not_pass_for_good(tmp_path: Path, part: str) -> None:
    label = next((dagm(tmp_path, "Class1") / "Class1" / part / "Label").glob("*.PNG"))
    label.rename(label.with_name("0001.PNG"))
    with pytest.raises(DataError, match=rf"Class1/{part}: .*found 3 images, none of them with a label"):
        read_dataset("dagm", tmp_path)


@pytest.mark.parametrize("good", ["good", "OK", "Normal"])
def test_a_plants_folder_is_a_task_with_a_kind_for_each_other_folder(tmp_path: Path, good: str) -> None:
    root = tmp_path / "bolts"
    for n in range(6):
        put(root / good / f"{n}.bmp")
    put(root / "scratch/0.png"), put(root / "dent/0.png"), put(root / "dent/1.png")
    (task,) = read_dataset("folder", root)
    assert counts(task) == ("bolts", 4, 5, 3) and not task.masked
    assert [sample.kind for sample in task.test] == [good, good, "dent", "dent", "scratch"]
    assert not {*task.train} & {sample.path for sample in task.test} and read_dataset("folder", root) == [task]


def test_images_in_the_folder_itself_are_all_good(tmp_path: Path) -> None:
    for n in range(6):
        put(tmp_path / f"{n}.png")
    (tmp_path / "notes").mkdir()
    (task,) = read_dataset("folder", tmp_path)
    assert counts(task) == (tmp_path.name, 4, 2, 0)


@pytest.mark.parametrize(
    "files",
    [
        ["good/0.png", "good/1.png", "ok/0.png"],
        ["bad/0.png"],
        ["0.png", "1.png", "good/0.png", "good/1.png"],
        ["0.png"],
    ],
    ids=["two", "none", "both", "one image"],
)
def test_a_plants_folder_whose_good_images_are_not_clear_is_refused(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        put(tmp_path / name)
    with pytest.raises(DataError, match=r"expected one folder good .*; found"):
        read_dataset("folder", tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_another_tree_says_what_was_expected_and_found(tmp_path: Path, name: str) -> None:
    put(tmp_path / "stuff" / "0.png")
    with pytest.raises(DataError, match=r"expected .*found"):
        read_dataset(name, tmp_path)
    put(tmp_path / "class/train/0.png"), put(tmp_path / "class/Train/0.png")  # right to begin with
    with pytest.raises(DataError, match=r"expected .*found"):
        read_dataset(name, tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_dataset(name, tmp_path / "nowhere")


def test_an_unknown_data_set_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean visa"):
        read_dataset("vista", tmp_path)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "--dataset NAME with --root DIR"),
        ("--data x --dataset visa", "--dataset visa: it needs --root"),
        ("--data x --root y", "--root is where a data set lies"),
        ("--root y", "--dataset NAME with --root DIR"),
        ("--dataset visa", "--dataset visa: it needs --root"),
        ("--dataset elpv --root y", "--dataset elpv: it lies in its package; leave out --root"),
    ],
)
def test_folders_or_a_data_set_with_the_root_that_it_needs(words: str, said: str) -> None:
    refused = CliRunner().invoke(evaluate, ["online", "--method", "padim", *words.split()]).exception
    assert isinstance(refused, ConfigError) and said in str(refused)


def test_a_root_that_is_not_there_is_named() -> None:
    start = ["online", "--method", "padim", "--dataset", "visa", "--root", "/no/such"]
    missing = CliRunner().invoke(evaluate, start).exception
    assert isinstance(missing, DataError) and "/no/such" in str(missing)
