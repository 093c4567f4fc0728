"""Images that come without a split into training and test: two thirds of the good ones, drawn once and for all, learn.

The draw depends on the number of good images and the order of their names alone; no seed changes it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...methods.errors import DataError
from .datasets import Sample, Task, checked_task, folder_images, folders_in, read_elpv, seen, there

TRAIN = 2 / 3  # share of the good images
GOOD = ("good", "ok", "normal")  # names of the good folder, in any case
PLAIN = "one folder good (or ok, or normal) and a folder for each kind of defect, or good images alone and no folders"


def read_mtd(root: Path) -> list[Task]:
    """One task, `mtd`: free tiles, and tiles with blowholes, breaks, cracks, frays or uneven ones."""
    expected = "MT_Free/Imgs and MT_TYPE/Imgs with STEM.jpg, and STEM.png where the defect is"
    train, good = drawn(_jpegs(root / "MT_Free" / "Imgs"))
    test = [Sample(image, False, "good") for image in good]
    for name in folders_in(root):
        if name.startswith("MT_") and name != "MT_Free":
            images = _jpegs(root / name / "Imgs")
            test += [Sample(image, True, name, (there(image.with_suffix(".png"), image),)) for image in images]
    return [checked_task("mtd", root, train, test, expected)]


def read_cells() -> list[Task]:
    """The solar cells of the package elpv-dataset as the tasks `mono` and `poly`, without masks; see `read_elpv`."""
    tasks = []
    for name, samples in read_elpv().items():
        train, good = drawn([sample.path for sample in samples if not sample.defect])
        test = [Sample(image, False, "good") for image in good] + [sample for sample in samples if sample.defect]
        tasks.append(Task(name, tuple(train), tuple(test)))
    return tasks


def read_plain(root: Path) -> list[Task]:
    """One task, named like the folder, without masks: its good folder, and every other folder a kind of defect.

    Images directly in the folder, where there are no folders of images, are all good. Raises DataError where it is
    not clear which images are good.
    """
    kinds = {name: folder_images(root / name) for name in folders_in(root)}
    loose = folder_images(root)
    if loose and not any(kinds.values()):
        kinds, loose = {"good": loose}, []
    names = [name for name in kinds if name.lower() in GOOD]
    if loose or len(names) != 1:
        raise DataError(f"{root}: expected {PLAIN}; found {seen(root)}.")
    train, good = drawn(kinds.pop(names[0]))
    test = [Sample(image, False, names[0]) for image in good]
    test += [Sample(image, True, kind) for kind, images in kinds.items() for image in images]
    return [checked_task(root.name, root, train, test, PLAIN)]


def drawn(good: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The good images to learn and those to judge, each in the order given; the same draw every time."""
    order = np.random.default_rng(0).permutation(len(good)).tolist()
    cut = round(TRAIN * len(good))
    return [good[index] for index in sorted(order[:cut])], [good[index] for index in sorted(order[cut:])]


def _jpegs(folder: Path) -> list[Path]:
    return [image for image in folder_images(folder) if image.suffix.lower() in (".jpg", ".jpeg")]
