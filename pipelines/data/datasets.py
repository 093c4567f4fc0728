"""Images on disk as tasks: folders in MVTec layout, plain folders for streams, and the solar cells of the demo.

    TASK/train/good/*                          normal images to learn from
    TASK/test/good/*, TASK/test/TYPE/*         images to judge; every TYPE but good is a kind of defect
    TASK/ground_truth/TYPE/STEM_mask.png       optional: where the defect is (masks.py)

Everything is sorted by name, so that an order depends on the names and a seed alone.
"""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...methods.errors import ConfigError, DataError
from ...platform.names import nfc, on_disk

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
HALF = 127  # a grey mask shows the defect above it
LAYOUT = "expected train/good, test/good, test/TYPE with images; ground_truth/TYPE with masks if there are any"


@dataclass(frozen=True)
class Sample:
    """One image with what is known of it.

    masks: pictures of where the defect is, none where there are none; it is where any of them says so (masks.py).
    above: 0 where all that is not 0 in them is a defect.
    """

    path: Path
    defect: bool
    kind: str
    masks: tuple[Path, ...] = ()
    above: int = HALF


@dataclass(frozen=True)
class Task:
    """One product class. `train`: normal images. `masked`: whether every defect of `test` has a mask."""

    name: str
    train: tuple[Path, ...]
    test: tuple[Sample, ...]

    @property
    def masked(self) -> bool:
        """Whether pixel figures can be computed."""
        return all(sample.masks for sample in self.test if sample.defect)


def stem_mask(truth: Path, image: Path) -> tuple[Path, ...]:
    """The mask STEM_mask.png, in the folder `truth`, of a defective image. Raises DataError where it is missing."""
    mask = on_disk(truth / f"{image.stem}_mask.png")
    if not mask.is_file():
        raise DataError(f"{image}: its mask {mask} is missing; give one for every defect, or no ground_truth at all.")
    return (mask,)


def read_folder(
    path: Path | str, masks: Callable[[Path, Path], tuple[Path, ...]] = stem_mask, above: int = HALF
) -> Task:
    """A task from a folder in MVTec layout, named like the folder. Raises DataError for any other tree.

    masks: finds those of a defective image, given ground_truth/TYPE and the image. above: as in Sample.
    """
    root = Path(os.path.abspath(path))  # not resolved: a link keeps the name that the user sees
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; {LAYOUT}.")
    train = folder_images(root / "train" / "good")
    kinds = folders_in(root / "test")
    truth = root / "ground_truth"
    masked = [kind for kind in kinds if kind != "good" and truth.is_dir()]
    test = [
        Sample(image, kind != "good", kind, masks(truth / kind, image) if kind in masked else (), above)
        for kind in kinds
        for image in folder_images(root / "test" / kind)
    ]
    for what, found in (("train/good", train), ("test", test)):
        if not found:
            raise DataError(f"{root}: no images under {what}; {LAYOUT}; found {seen(root)}.")
    return Task(root.name, tuple(train), tuple(test))


def list_images(source: Path | str) -> list[Path]:
    """The images directly in a folder, sorted by name; or the one file that is named. Raises DataError for none."""
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: there is no such file or folder.")
    found = folder_images(path)
    if not found:
        raise DataError(f"{path}: no images in it (looked for {', '.join(SUFFIXES)}); found {seen(path)}.")
    return found


def read_elpv() -> dict[str, list[Sample]]:
    """The solar cells of the package elpv-dataset: samples of the tasks `mono` and `poly`, sorted by name.

    Kind `good` is labelled 0.0 and `defective` 1.0; what its labellers were unsure of is left out. The images are
    CC BY-NC-SA 4.0. Raises DataError where the package is missing or not as expected.
    """
    spec = importlib.util.find_spec("elpv_dataset")
    if spec is None or spec.origin is None:
        raise DataError("the solar-cell images are not installed; pip install 'everline[demo]', or run make setup.")
    root = Path(spec.origin).parent / "data"
    tasks: dict[str, list[Sample]] = {"mono": [], "poly": []}
    try:
        for name, probability, task in _rows(root / "labels.csv"):
            if probability in (0.0, 1.0):
                defect = probability == 1.0
                tasks[task].append(Sample(root / name, defect, "defective" if defect else "good"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{root / 'labels.csv'}: not the labels of elpv-dataset 1.0.0: {error!r}.") from error
    return {task: sorted(samples, key=lambda s: s.path) for task, samples in tasks.items()}


def split_stream(
    samples: Sequence[Sample],
    *,
    seed: int = 0,
    held_out: float = 0.3,
    defects: float = 0.02,
    limit: int | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """A seeded split into (stream, held-out test set); no image is in both, and both have a shuffled order.

    held_out: share of the good and of the defective images that is kept for the test set, in (0, 1).
    defects: share of defective images in the stream, in [0, 1); spread over it by chance, fewer if there are not as
    many left. limit: the stream's length at most; it does not change the test set.
    Raises ConfigError for shares out of range, DataError where good or defective images are missing.
    """
    if not 0 < held_out < 1 or not 0 <= defects < 1 or (limit is not None and limit < 1):
        wrong = f"held_out={held_out!r}, defects={defects!r}, limit={limit!r}"
        raise ConfigError(f"split: held_out must be in (0, 1), defects in [0, 1), limit at least 1; got {wrong}.")
    rng = np.random.default_rng(seed)
    good, bad = (_shuffled([s for s in samples if s.defect is d], rng) for d in (False, True))
    n_good, n_bad = round(held_out * len(good)), round(held_out * len(bad))
    if not n_good or not n_bad or n_good == len(good):
        raise DataError(f"split: {len(good)} good and {len(bad)} defective images are too few to hold some out.")
    test = _shuffled(good[:n_good] + bad[:n_bad], rng)
    good, bad = good[n_good:], bad[n_bad:]
    wanted = round(len(good) * defects / (1 - defects))
    if limit is not None and limit <= len(good) + wanted:
        wanted = round(limit * defects)
        good = good[: max(1, limit - wanted)]
    stream = _shuffled(good + bad[:wanted], rng)
    return stream[:limit], test


def _rows(labels: Path) -> Iterator[tuple[str, float, str]]:
    """name, probability of a defect, task: columns between blanks."""
    for line in labels.read_text("utf-8").splitlines():
        if line.strip():
            name, probability, task = line.split()
            yield name, float(probability), task


def _shuffled(samples: list[Sample], rng: np.random.Generator) -> list[Sample]:
    return [samples[i] for i in rng.permutation(len(samples))]


def checked_task(name: str, root: Path, train: Sequence[Path], test: Sequence[Sample], expected: str) -> Task:
    """A task of these images. Raises DataError, saying what was expected, for nothing to learn or nothing to judge."""
    if not train or not test:
        found = f"{len(train)} images to learn and {len(test)} to judge (looked for {', '.join(SUFFIXES)})"
        raise DataError(f"{root}: {name}: expected {expected}; found {found}.")
    return Task(name, tuple(train), tuple(test))


def there(file: Path, where: object) -> Path:
    """The file. Raises DataError, naming what asks for it, where it is missing."""
    found = on_disk(file)
    if not found.is_file():
        raise DataError(f"{where}: the file {file} is missing.")
    return found


def folder_images(folder: Path) -> list[Path]:
    """Image files by suffix, whatever its case; files whose name starts with a dot are none."""
    if not folder.is_dir():
        return []
    files = [p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    return sorted((p for p in files if p.is_file()), key=lambda p: nfc(p.name))


def images_below(folders: Iterable[Path]) -> list[Path]:
    """The images in these folders and in all within them: folder by folder, sorted, each once, links resolved.

    Hidden files and folders are none. Raises DataError for a folder that is missing, has no images or cannot be read.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.")
        mine = [image.resolve() for image in _below(folder)]
        if not mine:
            looked = f"looked for {', '.join(SUFFIXES)}"
            raise DataError(f"{folder}: no images in it or below ({looked}); found {seen(folder)}.")
        found |= dict.fromkeys(mine)
    return list(found)


def _below(folder: Path) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be read ({error.strerror}).") from error

    for here, inner, _ in os.walk(folder, onerror=unreadable):
        inner[:] = sorted((name for name in inner if not name.startswith(".")), key=nfc)
        yield from folder_images(Path(here))


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are none, and there are none in no folder."""
    if not folder.is_dir():
        return []
    return sorted((p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=nfc)


def seen(folder: Path, most: int = 8) -> str:
    """The first few names in a folder, for an error message."""
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
