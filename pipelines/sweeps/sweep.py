"""A sweep in its folder: begun or gone on with, run, and told of in JSON, on a page and in MLflow.

OUT/sweep.json      what was asked for (`SweepSettings`)
OUT/trials/         a record, and heatmaps, of each trial that has ended (`record.py`)
OUT/features/       features that the trials share (`features.py`)
OUT/outcome.json    what came of it, OUT/report.html the same as a page: also when it was stopped
OUT/tracked.json    where it is in MLflow (`tracked.py`)
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...methods.errors import ConfigError, DataError, TrackingError
from ...platform.log import locked
from ..datasets import Task
from ..files import Whole
from ..fingerprint import fingerprint
from ..report import write_report
from ..results import MAX_BYTES
from .conductor import Conductor
from .objectives import OBJECTIVES
from .outcome import Outcome
from .pages import page, read_picture
from .record import HELD_OUT, TrialRecord
from .settings import SweepSettings
from .tracked import Tracked
from .work import Job

log = logging.getLogger("everline.sweep")
Ended = Callable[[TrialRecord, bool, Conductor], None]  # a trial, and whether it was there before
Runner = Callable[[Conductor, Job, Callable[[TrialRecord, bool], None]], None]


class Sweep:
    """One process at a time; see `held`. `tasks`: the whole ones, as they were read."""

    def __init__(self, job: Job, tasks: Sequence[Task]) -> None:
        self.job, self.tasks = job, tasks
        self.conductor = Conductor(job.settings, [task.name for task in tasks])
        self.records: list[TrialRecord] = []
        self.features: dict[str, Any] = {}
        self.tracked: Tracked | None = None
        self.finished = False
        self._started = time.perf_counter()

    def run(self, runner: Runner, ended: Ended) -> None:
        """Runs what has no record yet. Raises what the runner raises; what was done by then is kept."""
        self.job.trials.mkdir(parents=True, exist_ok=True)

        def took(record: TrialRecord, there: bool) -> None:
            self.records.append(record)
            self._track(record)
            ended(record, there, self.conductor)

        runner(self.conductor, self.job, took)
        self.finished = self.conductor.finished

    def track(self, uri: str) -> None:
        """Records the sweep in MLflow too, from now on. Raises TrackingError, ConfigError."""
        self.tracked = Tracked(self.job.out, uri, self.job.settings)
        self.tracked.begin()

    @property
    def outcome(self) -> Outcome:
        """What has come of it so far."""
        seconds = time.perf_counter() - self._started
        return Outcome(
            self.job.settings, self.records, self.features or None, seconds, self.finished, self.conductor.searched
        )

    def deliver(self) -> Outcome:
        """Writes outcome.json and report.html, and ends the run in MLflow. Raises StoreError, TrackingError."""
        found = self.outcome
        with Whole(self.job.out / "outcome.json") as half:
            half.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False), "utf-8")
        report = self.job.out / "report.html"
        write_report(page(found, self.job.out), report)
        if self.tracked is not None:
            self.tracked.catch_up(found.records)
            self.tracked.end(found, report.read_text("utf-8"), self.finished)
        return found

    def _track(self, record: TrialRecord) -> None:
        """A store that fails must not end the sweep; `deliver` tries again."""
        if self.tracked is None:
            return
        try:
            self.tracked.add(record, read_picture(self.job.out, record))
        except TrackingError as error:
            log.warning("trial %d is not in MLflow yet: %s", record.item.number, error)


def begin(settings: SweepSettings, out: Path, tasks: Sequence[Task]) -> SweepSettings:
    """Notes in a folder what is asked for. Raises ConfigError where there is a sweep already, or for data that do not
    suit the objective; DataError for images too few to hold some out."""
    if (out / "sweep.json").exists():
        raise ConfigError(
            f"{out} holds a sweep: everline sweep --resume --out {out} goes on with it; or name another."
        )
    settings = replace(settings, images={task.name: fingerprint(task) for task in tasks})
    check_tasks(settings, tasks)
    write_settings(settings, out)
    return settings


def write_settings(settings: SweepSettings, out: Path) -> None:
    """Writes sweep.json. Raises StoreError."""
    with Whole(out / "sweep.json") as half:
        half.write_text(json.dumps(settings.to_json(), indent=1, allow_nan=False), "utf-8")


def read_settings(out: Path) -> SweepSettings:
    """What a folder's sweep was asked for. Raises ConfigError where there is none, DataError."""
    file = out / "sweep.json"
    if not file.is_file():
        raise ConfigError(f"{out}: there is no sweep to go on with; --out names the folder of one that was begun.")
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"{file}: larger than {MAX_BYTES:,} bytes.")
        return SweepSettings.from_json(json.loads(file.read_text("utf-8")), str(file))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not the settings of a sweep: {error}") from error


def check_images(settings: SweepSettings, tasks: Sequence[Task], out: Path) -> None:
    """Raises DataError where a task has other images than the sweep was begun with."""
    for task in tasks:
        if settings.images.get(task.name) != fingerprint(task):
            raise DataError(f"{out}: begun with other images of {task.name}; begin a new sweep in another --out.")


def check_tasks(settings: SweepSettings, tasks: Sequence[Task]) -> None:
    """Raises ConfigError, DataError for data that a sweep like this cannot choose by."""
    for task in tasks:
        if not any(one.defect for one in task.test) or all(one.defect for one in task.test):
            raise DataError(f"{task.name}: its images to judge must be good and defective ones, to choose by them.")
        if "f1" in settings.objective and not task.masked:
            raise ConfigError(
                f"--objective {settings.objective} is {OBJECTIVES[settings.objective].title}, and {task.name} has "
                "defects without masks; take --objective auroc."
            )
    if settings.holdout:
        Job(settings, Path(), Path()).split(tasks, HELD_OUT)


@contextmanager
def held(out: Path) -> Iterator[None]:
    """While this process works in the folder. Raises SecondWriter where another one does, StoreError."""
    lock = locked(out)
    try:
        yield
    finally:
        os.close(lock)


def described(record: TrialRecord) -> str:
    """A trial in a few words: METHOD NAME=VALUE..., on TASK."""
    item = record.item
    memory = [] if item.memory is None else [f"memory={item.memory}"]
    words = [item.method, *memory, *(f"{name}={value}" for name, value in item.params.items())]
    return " ".join(words) + (f" on {item.task}" if item.task else "")
