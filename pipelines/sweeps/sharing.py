"""`python -m everline.pipelines.sweeps.sharing`: what stored features spare a trial, and what they cost on disk."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from ...methods.errors import DataError
from ..console import json_option, launch, progress, show_table, teller, write_json
from ..data.datasets import Task
from ..data.fingerprint import fingerprint
from ..options import ManyValues, check_source, gather, read_sources, set_option, source_options
from ..protocols.judging import Features, Told
from ..protocols.trial import Trial
from ..records.results import TaskResult
from .features import prepare, stored

TITLE = "seconds of a trial, {method} under {protocol} at {size} pixels, {threads} thread(s)"


@dataclass(frozen=True)
class Shared:
    """One task. alone, shared: seconds of a trial that embeds for itself, and of one that reads the store.

    embedding, reading: seconds in which the store was made, and in which all of it is read once, by its images' files;
    bytes: of it. first: what the first trial of a sweep takes.
    """

    task: str
    images: int
    bytes: int
    alone: float
    embedding: float
    reading: float
    shared: float

    @property
    def first(self) -> float:
        return self.embedding + self.shared

    @property
    def ratio(self) -> float:
        """How many times longer it takes without the store."""
        return self.alone / self.shared


@click.command(cls=ManyValues)
@source_options
@click.option("--method", default="coreset", show_default=True)
@click.option("--protocol", default="online", show_default=True, help="One that runs on each folder for itself.")
@click.option("--size", type=int, help="Side of the images, in pixels.  [default: 224]")
@set_option
@click.option(
    "--repeats", type=click.IntRange(1, 100), default=1, show_default=True, help="In turns; the quickest counts."
)
@click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="CPU threads.")
@json_option
def sharing(
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    method: str,
    protocol: str,
    size: int | None,
    settings: tuple[str, ...],
    repeats: int,
    threads: int,
    json_file: Path | None,
) -> None:
    """Time the same trial twice on each folder: embedding for itself, and with features that are on disk.

    The first trial of a sweep pays for embedding, the others do not. Weights are loaded before the clock starts, and
    the two trials must come to the same figures.
    """
    check_source(folders, dataset, root)
    trial = Trial(protocol, method, gather(settings, {"size": size}))
    torch.set_num_threads(threads)
    with progress() as bars:
        rows = timed(trial, read_sources(folders, dataset, root), repeats, lambda name: teller(bars, name))
    title = TITLE.format(method=method, protocol=protocol, size=trial.detector.size, threads=threads)
    columns = [
        "folder",
        "images",
        "MB on disk",
        "alone",
        "with the store",
        "ratio",
        "first trial",
        "embedding",
        "reading",
    ]
    cells = [
        (
            one.task,
            one.images,
            one.bytes / 1e6,
            one.alone,
            one.shared,
            one.ratio,
            one.first,
            one.embedding,
            one.reading,
        )
        for one in rows
    ]
    if str(json_file) != "-":
        show_table(title, columns, cells)
    plain = {"method": method, "protocol": protocol, "params": trial.detector.params, "threads": threads}
    found = [{**asdict(one), "first": one.first, "ratio": one.ratio} for one in rows]
    write_json({**plain, "repeats": repeats, "tasks": found}, json_file)


def timed(trial: Trial, tasks: Sequence[Task], repeats: int, told: Callable[[str], Told]) -> list[Shared]:
    """Each task with a store of its own. Raises DataError where figures differ: a time of others says nothing."""
    found = []
    for task in tasks:
        Features(trial.make(trial.detector.seed), 0, crop=trial.runs[0].crop).get(task.train[0])  # loads the weights
        with TemporaryDirectory(prefix="everline-") as folder:
            found.append(_timed(trial, task, Path(folder), repeats, told))
    return found


def _timed(trial: Trial, task: Task, folder: Path, repeats: int, told: Callable[[str], Told]) -> Shared:
    images = {task.name: fingerprint(task)}

    def run(features: Features | None, how: str) -> TaskResult:
        return trial.on(task, lambda seed: told(f"{task.name} {how}"), features=features)

    done = prepare(trial, task, images[task.name], folder, told(task.name))
    reading, _ = _clock(lambda: _read(stored(trial, [task], images, folder), task))
    alone = shared = math.inf
    for _ in range(repeats):  # in turns: a machine that is busy for a while slows both
        seconds, mine = _clock(lambda: run(None, "alone"))
        alone = min(alone, seconds)
        seconds, theirs = _clock(lambda: run(stored(trial, [task], images, folder), "with the store"))
        shared = min(shared, seconds)
    if repr((mine.metrics, mine.curve)) != repr((theirs.metrics, theirs.curve)):  # NaN is equal to itself here
        raise DataError(f"{task.name}: other figures with the store than without; their times say nothing.")
    return Shared(task.name, done.images, done.bytes, alone, done.seconds, reading, shared)


def _read(features: Features | None, task: Task) -> None:
    """Every image once, its checksum compared. Raises DataError for a method that has nothing to share."""
    if features is None:
        raise DataError(f"{task.name}: this method learns from the images themselves; there is nothing to share.")
    for path in (*task.train, *(sample.path for sample in task.test)):
        features.get(path)


def _clock(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    launch(sharing)
