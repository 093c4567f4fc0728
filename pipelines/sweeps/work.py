"""One trial, in whatever process: read data, take features from shards, run the protocol, write what came of it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from ...methods.errors import EverlineError
from ..data.datasets import Task
from ..files import Whole
from ..options import data_of, read_sources
from ..protocols.course import PerTask
from ..protocols.judging import Judged, Reached, untold
from ..records.results import METRICS, TIMES, TaskResult
from .features import stored
from .halving import stops
from .holdout import halves
from .objectives import OBJECTIVES, measures
from .pictures import heatmaps
from .record import COMPLETE, FAILED, STOPPED, Item, Point, TrialRecord, write_trial
from .settings import SweepSettings

log = logging.getLogger("everline.sweep")
Beat = Callable[[int, int], None]  # images of the curve's point that was reached, of how many


class Enough(Exception):
    """Ends a run whose curve is below its cutoff."""


@dataclass(frozen=True)
class Job:
    """What every process of a sweep must know. out: a folder that all of them see, as they do the data.

    threads: of the CPU, for each trial.
    """

    settings: SweepSettings
    out: Path
    features: Path
    threads: int = 1

    @property
    def trials(self) -> Path:
        """Where the records are."""
        return self.out / "trials"

    def key(self, item: Item) -> str:
        """Names an item of this sweep."""
        return item.key(self.settings.decides)

    def tasks(self) -> list[Task]:
        """Read the whole tasks from their folders, as they are now. Raises DataError."""
        return _read(*self._place)

    def known_tasks(self) -> list[Task]:
        """The same as this process read them first: it runs many trials."""
        return _read_once(*self._place)

    @property
    def _place(self) -> tuple[tuple[str, ...], str | None, str | None]:
        data = self.settings.data
        return tuple(data["folders"]), data["dataset"], data["root"]

    def split(self, tasks: Sequence[Task], phase: str) -> list[Task]:
        """The tasks as a phase sees them. Raises DataError where there are too few images."""
        s = self.settings
        training = any(isinstance(one, PerTask) and one.judges_training for one in s.some_trial.runs)
        return [halves(task, s.holdout, s.seed, training)[phase] for task in tasks]


def run_item(job: Job, item: Item, beat: Beat = lambda images, of: None) -> TrialRecord:
    """Runs a trial to its end and writes its record and heatmaps; whatever goes wrong with it is in the record.

    beat: hears of every point that a curve reaches.
    """
    torch.set_num_threads(job.threads)
    started = time.perf_counter()
    record = TrialRecord(item, job.key(item), FAILED)
    picture = None
    try:
        record, picture = _Run(job, item, beat).run(record)
    except EverlineError as error:
        record = replace(record, error=str(error))
    except Exception as error:
        log.exception("trial %d failed", item.number)
        record = replace(record, error=f"{type(error).__name__}: {error}")
    record = replace(record, seconds=time.perf_counter() - started)
    if picture is not None:
        with Whole(job.trials / f"{record.stem}.png") as half:
            half.write_bytes(picture)
    write_trial(job.trials, record)  # last: who finds it finds the picture too
    return record


class _Run:
    def __init__(self, job: Job, item: Item, beat: Beat) -> None:
        self.job, self.item, self.beat = job, item, beat
        settings = job.settings
        self.objective = OBJECTIVES[settings.objective]
        self.trial = settings.placed(settings.trial(item.method, item.memory, item.params))
        self.tasks = job.split([task for task in job.known_tasks() if item.task in ("", task.name)], item.phase)
        self.points: list[Point] = []
        self.curve: list[Mapping[str, float]] = []
        self.judged: tuple[Task, Judged] | None = None

    def run(self, record: TrialRecord) -> tuple[TrialRecord, bytes | None]:
        settings = self.job.settings
        features = stored(self.trial, self.tasks, settings.images, self.job.features)
        dataset = data_of([Path(one) for one in settings.data["folders"]], settings.data["dataset"])
        try:
            if settings.together:
                found, continued = self.trial.on_all(
                    self.tasks, lambda seed: untold, self._sink, features, reached=self._reached
                )
                result = self.trial.result(found, dataset, continued)
            else:
                (task,) = self.tasks
                one = self.trial.on(task, lambda seed: untold, self._sink, features, self._reached)
                result = self.trial.result([one], dataset)
        except Enough:
            stopped = self.trial.result([self._so_far(task) for task in self.tasks[:1]], dataset)
            return replace(record, status=STOPPED, result=stopped, points=self.points), None
        value = self.objective.of(measures(result))
        picture = (
            heatmaps(*self.judged, crop=self.trial.runs[0].crop, bits=self.trial.detector.bits)
            if self.judged
            else None
        )
        return replace(record, status=COMPLETE, result=result, objective=value, points=self.points), picture

    def _reached(self, seed: int) -> Reached:
        first = seed == self.trial.runs[0].seed

        def reached(point: Mapping[str, float], of: int) -> None:
            images = int(point["images"])
            self.beat(images, of)
            if first and self.objective.curve:
                self.points.append((images, of, float(point[self.objective.curve])))
                self.curve.append({name: point[name] for name in ("images", *METRICS)})
                if stops(self.points[-1], self.item.cutoffs):
                    raise Enough

        return reached

    def _sink(self, name: str, judged: Judged) -> None:
        """Keeps the first seed's last judgement of the first task, to draw heatmaps from."""
        end = name.rpartition("/")[2]
        last = end in ("", self.tasks[0].name) if self.job.settings.together else end == ""
        if self.judged is None and last:
            self.judged = (self.tasks[0], judged)

    def _so_far(self, task: Task) -> TaskResult:
        """The record of a run that was stopped: figures are those of the last point, costs are not known."""
        last = self.curve[-1]
        return TaskResult(
            task=task.name,
            n_train=int(last["images"]),
            n_test=len(task.test),
            metrics={name: last[name] for name in METRICS},
            curve=self.curve,
            ms_per_image=dict.fromkeys(TIMES, float("nan")),
            state_bytes=0,
        )


def _read(folders: tuple[str, ...], dataset: str | None, root: str | None) -> list[Task]:
    return read_sources([Path(one) for one in folders], dataset, None if root is None else Path(root))


_read_once = cache(_read)
