"""Public data sets as they are unpacked: one task for each product class. Nothing is fetched; the user has the data.

mvtec, mpdd   CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/STEM_mask.png
btad          CLASS/train/ok, CLASS/test/ok, CLASS/test/ko, CLASS/ground_truth/ko/STEM.png (or .bmp)
loco          CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/STEM/000.png, 001.png, ...: a folder of masks
              for each image, not 0 where a defect is (the value names its type). CLASS/validation/good, normal images
              to choose thresholds and parameters by, is neither learned nor judged
dagm          CLASS/Train/STEM.PNG, CLASS/Train/Label/STEM_label.PNG, CLASS/Test likewise: what has a label is
              defective; the defective images of Train are left out
visa          split_csv/1cls.csv: object, split, label, image, mask (paths below the root); masks are not 0 where
              a defect is
mtd           MT_Free/Imgs, MT_TYPE/Imgs: STEM.jpg with the mask STEM.png beside it
folder        any folder: good/*, and a folder for each kind of defect if there are any; or good images alone
elpv          nothing to unpack: the package elpv-dataset brings its solar cells along (CC BY-NC-SA 4.0)

The last three have no split of their own; see unsplit.py.
"""

import csv
import os
from collections.abc import Callable
from pathlib import Path

from ...methods.errors import ConfigError, DataError, UnknownName
from ...platform.names import nfc, on_disk
from .datasets import Sample, Task, checked_task, folder_images, folders_in, read_folder, seen, there
from .unsplit import read_cells, read_mtd, read_plain

MAX_TABLE = 16 * 2**20  # bytes; the published one has less than one
VISA = ("object", "split", "label", "image", "mask")


def read_dataset(name: str, root: Path | str | None = None) -> list[Task]:
    """The tasks of a data set, sorted by name. Raises as `check_root`, and DataError for a tree of another shape."""
    check_root(name, root)
    if root is None:
        return INSTALLED[name]()
    path = Path(os.path.abspath(root))
    if not path.is_dir():
        raise DataError(f"{path}: there is no such folder.")
    return READERS[name](path)


def check_root(name: str, root: Path | str | None) -> None:
    """Raises UnknownName for no such data set, ConfigError for a root that is missing or that it has no use for."""
    if name not in READERS and name not in INSTALLED:
        raise UnknownName.among("everline", "dataset", name, [*READERS, *INSTALLED])
    if name in INSTALLED and root is not None:
        raise ConfigError(f"--dataset {name}: it lies in its package; leave out --root, got {root}.")
    if name in READERS and root is None:
        raise ConfigError(f"--dataset {name}: it needs --root DIR, where it lies.")


def read_mvtec(root: Path) -> list[Task]:
    """Every folder of the root that holds a folder `train`."""
    return [read_folder(root / name) for name in _classes(root, "CLASS/train/good, CLASS/test/TYPE")]


def read_btad(root: Path) -> list[Task]:
    """Every folder of the root that holds a folder `train`; good is called ok, and every defect ko."""
    expected = "CLASS/train/ok, CLASS/test/ok, CLASS/test/ko, CLASS/ground_truth/ko"
    return [_btad_class(root / name, expected) for name in _classes(root, expected)]


def read_loco(root: Path) -> list[Task]:
    """Every folder of the root that holds a folder `train`. Learned is train/good alone.

    Its authors give validation/good for choosing parameters and thresholds: strictly read, it is not for learning.
    """
    names = _classes(root, "CLASS/train/good, CLASS/test/TYPE, CLASS/ground_truth/TYPE/STEM/000.png")
    return [read_folder(root / name, masks=_loco_masks, above=0) for name in names]


def read_dagm(root: Path) -> list[Task]:
    """Every folder of the root that holds a folder `Train`. Masks are ellipses drawn generously around the defects."""
    expected = "CLASS/Train/STEM.PNG, CLASS/Test/STEM.PNG, and in each Label/STEM_label.PNG for the defective ones"
    return [_dagm_class(root / name, expected) for name in _classes(root, expected, "Train")]


def read_visa(root: Path) -> list[Task]:
    """The objects of the split that its authors give for one-class training."""
    table = root / "split_csv" / "1cls.csv"
    try:
        if table.stat().st_size > MAX_TABLE:
            raise DataError(f"{table}: larger than {MAX_TABLE:,} bytes; this is not VisA's split.")
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{root}: expected split_csv/1cls.csv; found {seen(root)} ({error}).") from error
    train: dict[str, list[Path]] = {}
    test: dict[str, list[Sample]] = {}
    for number, row in enumerate(rows, 2):
        known = all(row.get(name) is not None for name in VISA)
        if not known or row["split"] not in ("train", "test") or row["label"] not in ("normal", "anomaly"):
            want = f"{', '.join(VISA)} with split train or test, label normal or anomaly"
            raise DataError(f"{table}: line {number}: expected {want}; got {row}.")
        sample = _visa_sample(root, row, f"{table}: line {number}")
        if row["split"] == "test":
            test.setdefault(row["object"], []).append(sample)
        elif not sample.defect:
            train.setdefault(row["object"], []).append(sample.path)
    names = sorted(train.keys() | test.keys())
    if not names:
        raise DataError(f"{table}: it lists no images.")
    return [checked_task(name, table, train.get(name, []), test.get(name, []), "1cls.csv") for name in names]


READERS: dict[str, Callable[[Path], list[Task]]] = {
    "btad": read_btad,
    "dagm": read_dagm,
    "folder": read_plain,
    "loco": read_loco,
    "mpdd": read_mvtec,
    "mtd": read_mtd,
    "mvtec": read_mvtec,
    "visa": read_visa,
}
INSTALLED: dict[str, Callable[[], list[Task]]] = {"elpv": read_cells}  # these know themselves where they lie


def _classes(root: Path, expected: str, train: str = "train") -> list[str]:
    found = [name for name in folders_in(root) if (root / name / train).is_dir()]
    if not found:
        raise DataError(f"{root}: expected {expected}; found {seen(root)}.")
    return found


def _btad_class(root: Path, expected: str) -> Task:
    test = [Sample(image, False, "ok") for image in folder_images(root / "test" / "ok")]
    masks = {nfc(image.stem): image for image in folder_images(root / "ground_truth" / "ko")}
    for image in folder_images(root / "test" / "ko"):
        mask = masks.get(nfc(image.stem), root / "ground_truth" / "ko" / f"{image.stem}.png")
        test.append(Sample(image, True, "ko", (there(mask, image),)))
    return checked_task(root.name, root, folder_images(root / "train" / "ok"), test, expected)


def _loco_masks(truth: Path, image: Path) -> tuple[Path, ...]:
    masks = folder_images(on_disk(truth / image.stem))
    if not masks:
        raise DataError(f"{image}: expected its masks {truth / image.stem}/000.png, 001.png, ...; found none.")
    return tuple(masks)


def _dagm_class(root: Path, expected: str) -> Task:
    train = [sample.path for sample in _dagm_part(root / "Train", expected) if not sample.defect]
    return checked_task(root.name, root, train, _dagm_part(root / "Test", expected), expected)


def _dagm_part(folder: Path, expected: str) -> list[Sample]:
    """The images of Train or Test. Where none has a label, all would pass for good: that is refused."""
    images = folder_images(folder)
    masks = {nfc(mask.stem): mask for mask in folder_images(folder / "Label")}
    labels = [masks.get(nfc(f"{image.stem}_label")) for image in images]
    if not any(labels):
        raise DataError(f"{folder}: expected {expected}; found {len(images)} images, none of them with a label.")
    return [
        Sample(image, True, "defect", (label,)) if label else Sample(image, False, "good")
        for image, label in zip(images, labels, strict=True)
    ]


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
    return there(root / path, where)
