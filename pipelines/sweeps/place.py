"""Where a sweep's trials run: on the Ray cluster that is there, on one of its own, or in this process."""

import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from ...methods.errors import ConfigError, DataError, WeightsError
from ...platform.cluster import connect, disconnect
from ..data.datasets import Task
from ..files import FilePath
from ..protocols.trial import Trial
from .conductor import Conductor
from .features import Prepared, feature_key, prepare
from .record import TrialRecord
from .settings import SweepSettings
from .sweep import Sweep
from .work import Job

log = logging.getLogger("everline.sweep")
Told = Callable[[str, Prepared | None], None]  # a task whose features are being prepared (None), and that they are


@dataclass(frozen=True)
class Place:
    """cpus, gpus: of one trial. jobs: trials at once; None: as many as there is room for. ray: or in this process.

    features: a folder for features that several sweeps share; None: the sweep's own.
    """

    cpus: float = 1
    gpus: float = 0
    jobs: int | None = None
    ray: bool = True
    features: Path | None = None

    def __post_init__(self) -> None:
        if self.cpus <= 0 or self.gpus < 0 or (self.jobs is not None and self.jobs < 1):
            raise ConfigError("--cpus must be above 0, --gpus not below 0, --jobs at least 1.")

    def job(self, settings: SweepSettings, out: Path) -> Job:
        """What every process of the sweep must know."""
        features = out / "features" if self.features is None else self.features.absolute()
        return Job(settings, out, features, max(1, int(self.cpus)))

    @property
    def words(self) -> str:
        """What to type behind a command to have its trials run in the same place."""
        given = {"cpus": self.cpus, "gpus": self.gpus, "jobs": self.jobs, "features": self.features}
        usual = {"cpus": 1, "gpus": 0, "jobs": None, "features": None}
        found = [f"--{name} {value}" for name, value in given.items() if value != usual[name]]
        return " ".join([*found, *([] if self.ray else ["--no-ray"])])

    @contextmanager
    def joined(self) -> Iterator[None]:
        """While the cluster is there: that of RAY_ADDRESS, else one of its own, which ends with this process.

        Never one that merely runs on this machine: it may be another sweep's, or that of one that was just killed.
        Raises LineDown where RAY_ADDRESS leads nowhere, ConfigError where no machine there could run a trial.
        """
        own = not os.environ.get("RAY_ADDRESS")
        started = self.ray and connect(own, cpus=max(len(os.sched_getaffinity(0)), math.ceil(self.cpus)))
        try:
            if self.ray:
                from .tuning import check_room  # takes a second to import

                check_room(self.cpus, self.gpus)  # before features are prepared, which would wait for ever too
            yield
        finally:
            if started:
                disconnect()

    def prepare(self, sweep: Sweep, told: Told) -> dict[str, Any]:
        """Computes the features that the trials share, of every task and backbone once; says what that took."""
        wanted: dict[tuple[str, str], tuple[Trial, Task]] = {}
        settings = sweep.job.settings
        for name in settings.methods:
            trial = settings.trial(name, settings.sizes(name)[0], {})
            if not trial.detector.traits.end_to_end:
                for task in sweep.tasks:
                    wanted.setdefault((feature_key(trial), task.name), (trial, task))
        found = []
        waiting = self._prepared(sweep.job, list(wanted.values()))
        for _, name in wanted:
            told(name, None)
            found.append(next(waiting))
            told(name, found[-1])
        return {
            "seconds": sum(one.seconds for one in found),
            "images": sum(one.images for one in found),
            "bytes": sum(one.bytes for one in found),
            "there": sum(one.there for one in found),
            "stores": len(found),
        }

    def runner(self, conductor: Conductor, job: Job, ended: Callable[[TrialRecord, bool], None]) -> None:
        """Runs the trials; see `run_on_ray`."""
        from .tuning import run_here, run_on_ray  # takes a second to import

        if self.ray:
            run_on_ray(conductor, job, ended, cpus=self.cpus, gpus=self.gpus, jobs=self.jobs)
        else:
            run_here(conductor, job, ended)

    def _prepared(self, job: Job, wanted: list[tuple[Trial, Task]]) -> Iterator[Prepared]:
        """Each in turn as it is done, on the cluster all side by side."""
        calls = [partial(_prepare, job, trial, task) for trial, task in wanted]
        if not self.ray:
            yield from (call() for call in calls)
            return
        import ray

        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus)(_called)
        for waiting in [remote.remote(call) for call in calls]:
            yield ray.get(waiting)


def _called(call: Callable[[], Prepared]) -> Prepared:
    return call()


def _prepare(job: Job, trial: Trial, task: Task) -> Prepared:
    import torch

    torch.set_num_threads(job.threads)
    try:
        return prepare(job.settings.placed(trial), task, job.settings.images[task.name], job.features)
    except (DataError, ConfigError, WeightsError) as error:  # its trials will say so, and those of others go on
        log.warning("features of %s: %s", task.name, error)
        return Prepared()


def place_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --cpus, --gpus, --jobs, --ray/--no-ray and --features; the command gets them as one `place`."""

    def placed(
        *args: Any, cpus: float, gpus: float, jobs: int | None, ray: bool, features: Path | None, **more: Any
    ) -> Any:
        return command(*args, place=Place(cpus, gpus, jobs, ray, features), **more)

    placed.__doc__, placed.__name__ = command.__doc__, command.__name__
    placed.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    made: Callable[..., Any] = placed
    for option in (
        click.option(
            "--features", type=FilePath(file_okay=False),
            help="Folder for the backbone's features, to share with other sweeps.  [default: in --out]",
        ),
        click.option("--ray/--no-ray", default=True, help="Or one trial after the other, in this process."),
        click.option("--jobs", type=int, help="Trials at once.  [default: as many as the cluster has room for]"),
        click.option("--gpus", type=float, default=0, show_default=True, help="GPUs of a trial, or a share of one."),
        click.option("--cpus", type=float, default=1, show_default=True, help="CPUs of a trial."),
    ):  # fmt: skip
        made = option(made)
    return made
