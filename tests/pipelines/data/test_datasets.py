"""Folders as tasks, masks, the demo's solar cells and their split."""

import importlib.util
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
from everline.methods.errors import ConfigError, DataError
from everline.pipelines.data.datasets import (
    Sample,
    images_below,
    list_images,
    read_elpv,
    read_folder,
    split_stream,
)
from everline.pipelines.data.fingerprint import fingerprint
from everline.pipelines.data.masks import read_mask
from PIL import Image


def put(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path)
    return path


def tree(root: Path) -> Path:
    for name in ("b.png", "a.PNG", "c.Jpeg"):
        put(root / "train/good" / name)
    put(root / "test/good/0.png")
    put(root / "test/scratch/1.png")
    put(root / "test/dent/2.bmp")
    put(root / "ground_truth/scratch/1_mask.png", 255)
    put(root / "ground_truth/dent/2_mask.png", 255)
    return root


def pool(good: int, bad: int) -> list[Sample]:
    kinds = [("good", False)] * good + [("defective", True)] * bad
    return [Sample(Path(f"{n:04}.png"), defect, kind) for n, (kind, defect) in enumerate(kinds)]


def test_a_folder_becomes_a_task_in_a_fixed_order(tmp_path: Path) -> None:
    task = read_folder(tree(tmp_path / "bolt"))
    assert task.name == "bolt" and task.masked
    assert [p.name for p in task.train] == ["a.PNG", "b.png", "c.Jpeg"]
    assert [(s.kind, s.path.name, s.defect) for s in task.test] == [
        ("dent", "2.bmp", True),
        ("good", "0.png", False),
        ("scratch", "1.png", True),
    ]
    assert [[m.name for m in s.masks] for s in task.test] == [["2_mask.png"], [], ["1_mask.png"]]


def test_other_files_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    root = tree(tmp_path / "bolt")
    (root / "train/good/notes.txt").write_text("x")
    put(root / "train/good/._a.png")
    (root / "test/.cache").mkdir()
    (root / "train/good/folder.png").mkdir()
    assert len(read_folder(root).train) == 3 and len(read_folder(root).test) == 3


def test_a_copy_whose_names_have_another_form_is_the_same_task(tmp_path: Path) -> None:
    prints = []
    for name in ("K\u00e4se", "Ka\u0308se"):
        root = tree(tmp_path / name / "bolt")
        for file in ("Kaa", "Kzz", name):
            put(root / "train/good" / f"{file}.png")
        task = read_folder(root)
        assert [path.stem for path in task.train] == ["Kaa", "Kzz", name, "a", "b", "c"]
        prints.append(fingerprint(task))
    assert prints[0] == prints[1]


def test_links_are_followed_and_keep_their_name(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree(tmp_path / "bolt"), target_is_directory=True)
    task = read_folder(str(tmp_path / "link") + "/")
    assert task.name == "link" and len(task.train) == 3


def test_without_ground_truth_there_are_no_masks(tmp_path: Path) -> None:
    root = tree(tmp_path / "bolt")
    (root / "ground_truth").rename(root / "truth")
    task = read_folder(root)
    assert not task.masked and not any(s.masks for s in task.test)


def test_one_missing_mask_is_an_error_that_names_it(tmp_path: Path) -> None:
    root = tree(tmp_path / "bolt")
    (root / "ground_truth/dent/2_mask.png").unlink()
    with pytest.raises(DataError, match=r"2_mask\.png is missing"):
        read_folder(root)


def test_a_wrong_tree_says_what_was_expected_and_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no images under train/good; expected .* found nothing"):
        read_folder(tmp_path)
    put(tmp_path / "train/bad/0.png")
    with pytest.raises(DataError, match=r"found train/"):
        read_folder(tmp_path)
    put(tmp_path / "train/good/0.png")
    with pytest.raises(DataError, match="no images under test"):
        read_folder(tmp_path)


def test_images_of_a_folder_are_listed_in_order(tmp_path: Path) -> None:
    put(tmp_path / "2.png"), put(tmp_path / "10.TIF"), put(tmp_path / "below/0.png")
    assert [p.name for p in list_images(tmp_path)] == ["10.TIF", "2.png"]
    assert list_images(tmp_path / "2.png") == [tmp_path / "2.png"]


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    put(tmp_path / "below/0.png")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"no images in it .*found below/, notes\.txt"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        list_images(tmp_path / "nowhere")


def test_images_below_folders_are_sorted_and_none_is_hidden_or_there_twice(tmp_path: Path) -> None:
    for name in ("b/c/2.png", "b/1.png", "a/3.png", ".git/x.png", "b/.y.png", "b.png", "b/notes.txt"):
        put(tmp_path / name) if name.endswith("png") else (tmp_path / name).write_text("none")
    (tmp_path / "a" / "link.png").symlink_to(tmp_path / "b.png")
    whole = [str(path.relative_to(tmp_path.resolve())) for path in images_below([tmp_path, tmp_path / "a"])]
    assert whole == ["b.png", "a/3.png", "b/1.png", "b/c/2.png"]
    assert [path.name for path in images_below([tmp_path / "b/c", tmp_path / "b"])] == ["2.png", "1.png"]


def test_each_folder_must_have_images_below_it_and_be_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty: no images in it or below .*; found deeper/"):
        images_below([put(tmp_path / "a/1.png").parent, tmp_path / "empty"])
    with pytest.raises(DataError, match=r"away: there is no such folder"):
        images_below([tmp_path / "away"])
    monkeypatch.setattr(os, "scandir", Mock(side_effect=PermissionError(13, "Permission denied", "locked")))
    with pytest.raises(DataError, match=r"locked: the folder cannot be read \(Permission denied\)"):
        images_below([tmp_path / "a"])


def test_the_solar_cells_are_there() -> None:
    pytest.importorskip("elpv_dataset")
    tasks = read_elpv()
    counts = {name: (sum(not s.defect for s in t), sum(s.defect for s in t)) for name, t in tasks.items()}
    assert counts == {"mono": (588, 313), "poly": (920, 402)}
    assert all(s.path.is_file() and (s.kind == "defective") is s.defect for t in tasks.values() for s in t)


def test_missing_solar_cells_are_named_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"everline\[demo\]"):
        read_elpv()


def test_the_split_holds_out_and_mixes_as_asked() -> None:
    stream, test = split_stream(pool(200, 100), seed=3, held_out=0.3, defects=0.1)
    assert (sum(not s.defect for s in test), sum(s.defect for s in test)) == (60, 30)
    assert sum(not s.defect for s in stream) == 140
    assert sum(s.defect for s in stream) / len(stream) == pytest.approx(0.1, abs=0.005)
    assert not {s.path for s in stream} & {s.path for s in test}


def test_the_split_is_a_function_of_its_seed() -> None:
    a, b, c = (split_stream(pool(90, 40), seed=seed) for seed in (1, 1, 2))
    assert a == b and a[0] != c[0] and {s.path for s in a[1]} != {s.path for s in c[1]}


def test_a_limit_shortens_the_stream_alone() -> None:
    stream, test = split_stream(pool(200, 100), defects=0.1, limit=50)
    assert len(stream) == 50 and sum(s.defect for s in stream) == 5
    assert test == split_stream(pool(200, 100), defects=0.1)[1]
    assert len(split_stream(pool(200, 100), limit=1)[0]) == 1
    assert not any(s.defect for s in split_stream(pool(200, 100), defects=0.0)[0])


def test_an_impossible_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="held_out"):
        split_stream(pool(10, 10), held_out=1.0)
    with pytest.raises(ConfigError, match="defects"):
        split_stream(pool(10, 10), defects=1.0)
    with pytest.raises(DataError, match="too few"):
        split_stream(pool(10, 0))


def test_the_real_folders_beside_the_project_are_read(shared_data: Path) -> None:
    tasks = [read_folder(folder) for folder in sorted(shared_data.iterdir()) if folder.is_dir()]
    assert len(tasks) == 9 and all(task.masked for task in tasks)
    mtd = next(task for task in tasks if task.name == "mtd")
    assert (len(mtd.train), len(mtd.test), sum(s.defect for s in mtd.test)) == (300, 299, 149)
    mask = read_mask(next(s.masks[0] for s in mtd.test if s.masks), 224)
    assert mask.shape == (224, 224) and 0 < mask.mean() < 0.5
