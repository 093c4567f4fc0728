"""Features that all trials of a sweep share: embedded once for each task, backbone and size, and kept on disk.

    FOLDER/KEY/TASK-IMAGES/     a store (see `platform/featurestore.py`), an image under the sha256 of its file

KEY and IMAGES are the beginnings of checksums: of what features depend on, and of the task's images.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from ... import __version__
from ...methods.registry import build
from ...platform.featurestore import FeatureStore
from ...platform.featurewriter import write_features
from ..data.datasets import Task
from ..data.fingerprint import checksum, digest
from ..protocols.judging import Features, Told, untold
from ..protocols.trial import Trial, is_file

NAME = 100  # characters of a task's name in that of its folder; the checksum tells tasks apart


@dataclass(frozen=True)
class Prepared:
    """What `prepare` found or made. there: it was there before. images, bytes: in the store."""

    seconds: float = 0.0
    images: int = 0
    bytes: int = 0
    there: bool = True


def feature_key(trial: Trial) -> str:
    """A checksum of all that features depend on: what the method says of its embedding, the crop, files of weights,
    the versions of everline and torch.

    Not of the device: bits differ between one and another by rounding, and here the one that came first gives them
    for all. The same holds for kinds of CPU and numbers of threads.
    """
    params = trial.detector.params
    embedding = build(trial.method, **{**trial.given, "device": "cpu"}).embedding
    files = {name: digest(Path(value)) for name, value in params.items() if is_file(value)}
    return checksum(json.dumps([embedding, trial.runs[0].crop, files, __version__, torch.__version__], default=repr))


def store_folder(folder: Path, key: str, task: str, images: str) -> Path:
    """Where a task's store lies. images: the checksum of its images (`fingerprint`)."""
    return folder / key[:16] / f"{quote(task, safe=' ')[:NAME]}-{images[:16]}"


def prepare(trial: Trial, task: Task, images: str, folder: Path, told: Told = untold) -> Prepared:
    """Embeds every image of a task, those to learn and those to judge, one at a time; skips what is there.

    images: the checksum of the task's images. Of a method that learns from the images themselves nothing is stored.
    Raises DataError for a file that is no image, Corrupt, NoSpace, StoreError.
    """
    if trial.detector.traits.end_to_end:
        return Prepared()
    key = feature_key(trial)
    place, made = store_folder(folder, key, task.name, images), checksum(key, images)
    start, there = time.perf_counter(), FeatureStore.there(place)
    if not there:
        features = Features(trial.make(trial.detector.seed), 0, crop=trial.runs[0].crop)
        write_features(place, made, _embedded(features, task, told), lambda: features.clock.mean_ms("backbone"))
    store = FeatureStore(place, made)
    return Prepared(time.perf_counter() - start, len(store), store.nbytes, there)


def stored(trial: Trial, tasks: Sequence[Task], images: Mapping[str, str], folder: Path) -> Features | None:
    """Features for a run on these tasks, which takes images from their stores; None where there is no store of any.

    images: for each task's name the checksum that it was prepared with; a task may hold a part of those images.
    What is in no store is embedded by the run itself. Raises Corrupt.
    """
    if trial.detector.traits.end_to_end:
        return None
    key = feature_key(trial)
    places = {one.name: store_folder(folder, key, one.name, images[one.name]) for one in tasks}
    stores = [
        FeatureStore(place, checksum(key, images[name])) for name, place in places.items() if FeatureStore.there(place)
    ]
    run, again = trial.runs[0], trial.together or trial.seeds > 1
    return Features(trial.make(trial.detector.seed), run.keep, again, run.crop, stores) if stores else None


def _embedded(features: Features, task: Task, told: Told) -> Iterator[tuple[str, Tensor]]:
    """Each image once, also where it lies there under two names."""
    paths = [*task.train, *(sample.path for sample in task.test)]
    seen = set()
    for done, path in enumerate(paths, 1):
        name = digest(path)
        if name not in seen:
            seen.add(name)
            yield name, features.get(path)
        told("embed", done, len(paths))
