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
from ..data.datasets import Task
from ..data.fingerprint import digest, fingerprint
from ..files import Whole
from ..protocols.trial import is_file
from ..records.report import write_report
from ..records.results import MAX_BYTES
from .conductor import Conductor
from .objectives import OBJECTIVES
from .outcome import Outcome
from .pages import page, read_picture
from .record import HELD_OUT, TrialRecord, read_trial
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
        self.untracked = ""  # why not all of it is in MLflow
        self._started = time.perf_counter()
        self._before = _earlier(job.out)

    def recall(self, ended: Ended) -> None:
        """Takes in the records that there are, before anything is run. Raises DataError for a file that is none."""
        self.job.trials.mkdir(parents=True, exist_ok=True)
        waiting = []
        while (item := self.conductor.next()) is not None:
            found = read_trial(self.job.trials, item, self.job.key(item))
            if found is None:
                waiting.append(item)
            else:
                self.conductor.done(found)
                self._took(found, True, ended)
        for item in waiting:
            self.conductor.back(item)
        self.finished = self.conductor.finished

    def run(self, runner: Runner, ended: Ended) -> None:
        """Runs what has no record yet. Raises what the runner raises; what was done by then is kept."""
        runner(self.conductor, self.job, lambda record, there: self._took(record, there, ended))
        self.finished = self.conductor.finished

    def catch_up(self) -> None:
        """Takes in what workers have written and this process has not heard of yet. Raises DataError."""
        found = [read_trial(self.job.trials, item, self.job.key(item)) for item in self.conductor.open]
        self.records += [record for record in found if record is not None]

    def _took(self, record: TrialRecord, there: bool, ended: Ended) -> None:
        self.records.append(record)
        self._track(record)
        ended(record, there, self.conductor)

    def track(self, uri: str) -> None:
        """Records the sweep in MLflow too, from now on. Raises TrackingError, ConfigError."""
        self.tracked = Tracked(self.job.out, uri, self.job.settings)
        self.tracked.begin()

    @property
    def outcome(self) -> Outcome:
        """What has come of it so far."""
        seconds = time.perf_counter() - self._started + float(self._before.get("seconds") or 0)
        features = self._before.get("features") or self.features or None  # of the session that paid for them
        return Outcome(self.job.settings, self.records, features, seconds, self.finished, self.conductor.searched)

    def deliver(self) -> Outcome:
        """Writes outcome.json and report.html, and ends the run in MLflow (if not, `untracked`). Raises StoreError."""
        found = self.outcome
        with Whole(self.job.out / "outcome.json") as half:
            half.write_text(json.dumps(found.to_json(), indent=1, allow_nan=False), "utf-8")
        report = self.job.out / "report.html"
        write_report(page(found, self.job.out), report)
        if self.tracked is not None:
            try:
                self.tracked.catch_up(found.records)
                self.tracked.end(found, report.read_text("utf-8"), self.finished)
            except TrackingError as error:
                self.untracked = str(error)
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
    """A new sweep's settings, which know the images and files they are for; nothing is written yet.

    Raises ConfigError where there is a sweep already, or for data that do not suit the objective; DataError for images
    too few to hold some out.
    """
    check_free(out)
    settings = replace(settings, images={task.name: fingerprint(task) for task in tasks}, files=files_of(settings))
    check_tasks(settings, tasks)
    return settings


def check_free(out: Path) -> None:
    """Raises ConfigError where a folder holds a sweep."""
    if (out / "sweep.json").exists():
        raise ConfigError(f"{out} holds a sweep: --resume --out {out} goes on with it; or name another folder.")


def files_of(settings: SweepSettings) -> dict[str, str]:
    """A checksum of every file that a parameter names."""
    return {str(value): digest(Path(value)) for value in settings.given.values() if is_file(value)}


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
    """Raises DataError where tasks, their images or files of parameters are not those that the sweep began with."""
    for name in dict.fromkeys([*settings.images, *(task.name for task in tasks)]):
        found = next((fingerprint(task) for task in tasks if task.name == name), None)
        if settings.images.get(name) != found:
            raise DataError(f"{out}: begun with other images of {name}; begin a new sweep in another --out.")
    for file, known in settings.files.items():
        if not Path(file).is_file() or digest(Path(file)) != known:
            raise DataError(f"{out}: begun with another file {file}; begin a new sweep in another --out.")


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


def _earlier(out: Path) -> dict[str, Any]:
    """What an earlier session of the sweep said of itself; nothing where there was none."""
    file = out / "outcome.json"
    try:
        found = json.loads(file.read_text("utf-8")) if file.stat().st_size < MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("seconds"), int | float) else {}


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
