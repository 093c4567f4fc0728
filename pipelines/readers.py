"""Public data sets as they are unpacked: one task for each product class. Nothing is fetched; the user has the data.

mvtec, mpdd   CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/STEM_mask.png
btad          CLASS/train/ok, CLASS/test/ok, CLASS/test/ko, CLASS/ground_truth/ko/STEM.png (or .bmp)
visa          split_csv/1cls.csv: object, split, label, image, mask (paths below the root); masks are not 0 where
              a defect is
mtd           MT_Free/Imgs, MT_TYPE/Imgs: STEM.jpg with the mask STEM.png beside it; published without a split:
              two thirds of the free tiles, drawn once and for all, are the training images
"""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..methods.errors import DataError, UnknownName
from .datasets import SUFFIXES, Sample, Task, folder_images, folders_in, read_folder, seen

VISA = ("object", "split", "label", "image", "mask")
MTD_TRAIN = 2 / 3  # share of the free tiles


def read_dataset(name: str, root: Path | str) -> list[Task]:
    """The tasks of a data set, sorted by name. Raises UnknownName, and DataError for a tree of another shape."""
    if name not in READERS:
        raise UnknownName.among("everline", "dataset", name, READERS)
    path = Path(os.path.abspath(root))
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder.")
    return READERS[name](path)


def read_mvtec(root: Path) -> list[Task]:
    """Every folder of the root that holds a folder `train`."""
    return [read_folder(root / name) for name in _classes(root, "CLASS/train/good, CLASS/test/TYPE")]


def read_btad(root: Path) -> list[Task]:
    """Every folder of the root that holds a folder `train`; good is called ok, and every defect ko."""
    expected = "CLASS/train/ok, CLASS/test/ok, CLASS/test/ko, CLASS/ground_truth/ko"
    return [_btad_class(root / name, expected) for name in _classes(root, expected)]


def read_visa(root: Path) -> list[Task]:
    """The objects of the split that its authors give for one-class training."""
    table = root / "split_csv" / "1cls.csv"
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{root}: expected split_csv/1cls.csv; found {seen(root)} ({error}).") from error
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    for number, row in enumerate(rows, 2):
        if any(row.get(name) is None for name in VISA) or row["split"] not in ("train", "test"):
            raise DataError(f"{table}: line {number}: expected {', '.join(VISA)} with split train or test; got {row}.")
        sample = _visa_sample(root, row, f"{table}: line {number}")
        if row["split"] == "test":
            test.setdefault(row["object"], []).append(sample)
        elif not sample.defect:
            train.setdefault(row["object"], []).append(sample.path)
    names = sorted(train.keys() | test.keys())
    return [_task(name, table, train.get(name, []), test.get(name, []), "1cls.csv") for name in names] or _none(table)


def read_mtd(root: Path) -> list[Task]:
    """One task, `mtd`: free tiles, and tiles with blowholes, breaks, cracks, frays or uneven ones."""
    expected = "MT_Free/Imgs and MT_TYPE/Imgs with STEM.jpg, and STEM.png where the defect is"
    free = _jpegs(root / "MT_Free" / "Imgs")
    order = np.random.default_rng(0).permutation(len(free)).tolist()
    cut = round(MTD_TRAIN * len(free))
    train = [free[index] for index in sorted(order[:cut])]
    test = [Sample(free[index], False, "good") for index in sorted(order[cut:])]
    for name in folders_in(root):
        if name.startswith("MT_") and name != "MT_Free":
            images = _jpegs(root / name / "Imgs")
            test += [Sample(image, True, name, (_there(image.with_suffix(".png"), image),)) for image in images]
    return [_task("mtd", root, train, test, expected)]


READERS: dict[str, Callable[[Path], list[Task]]] = {
    "btad": read_btad,
    "mpdd": read_mvtec,
    "mtd": read_mtd,
    "mvtec": read_mvtec,
    "visa": read_visa,
}


def _classes(root: Path, expected: str) -> list[str]:
    found = [name for name in folders_in(root) if (root / name / "train").is_dir()]
    if not found:
        raise DataError(f"{root}: expected {expected}; found {seen(root)}.")
    return found


def _btad_class(root: Path, expected: str) -> Task:
    test = [Sample(image, False, "ok") for image in folder_images(root / "test" / "ok")]
    masks = {image.stem: image for image in folder_images(root / "ground_truth" / "ko")}
    for image in folder_images(root / "test" / "ko"):
        mask = masks.get(image.stem, root / "ground_truth" / "ko" / f"{image.stem}.png")
        test.append(Sample(image, True, "ko", (_there(mask, image),)))
    return _task(root.name, root, folder_images(root / "train" / "ok"), test, expected)


def _visa_sample(root: Path, row: dict[str, str], where: str) -> Sample:
    defect = row["label"] != "normal"
    image = _below(root, row["image"], where)
    masks = (_below(root, row["mask"], where),) if defect and row["mask"] else ()
    return Sample(image, defect, "anomaly" if defect else "good", masks, above=0)


def _below(root: Path, name: str, where: str) -> Path:
    """A file below the root; a table from outside may name no other."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: {name!r} does not lie below {root}.")
    return _there(root / path, where)


def _there(file: Path, where: object) -> Path:
    if not file.is_file():
        raise DataError(f"{where}: the file {file} is missing.")
    return file


def _jpegs(folder: Path) -> list[Path]:
    return [image for image in folder_images(folder) if image.suffix.lower() in (".jpg", ".jpeg")]


def _task(name: str, root: Path, train: list[Path], test: list[Sample], expected: str) -> Task:
    if not train or not test:
        found = f"{len(train)} images to learn and {len(test)} to judge (looked for {', '.join(SUFFIXES)})"
        raise DataError(f"{root}: {name}: expected {expected}; found {found}.")
    return Task(name, tuple(train), tuple(test))


def _none(table: Path) -> list[Task]:
    raise DataError(f"{table}: it lists no images.")
