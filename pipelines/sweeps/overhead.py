"""`python -m everline.pipelines.sweeps.overhead`: what Ray Tune adds to a trial, and what several at a time save."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ...methods.errors import DataError
from ..console import json_option, launch, progress, show_table, write_json
from ..data.datasets import Task
from ..options import ManyValues, check_source, gather, read_sources, set_option, source_options
from .command import data_at, words_of
from .conductor import Conductor
from .place import Place
from .record import TrialRecord
from .settings import SweepSettings
from .sweep import Sweep, begin

TITLE = "the same sweep of {trials} trials: a bare loop, and Ray Tune"


@dataclass(frozen=True)
class Run:
    """One way of running the sweep. started: seconds until the cluster is there. seconds: of the trials, from asking
    for the first to the end of the last. inside: seconds that the trials themselves took, added up."""

    how: str
    started: float
    seconds: float
    inside: float
    trials: int

    def overhead(self) -> float:
        """Seconds a trial that are nobody's work, for one trial at a time."""
        return (self.seconds - self.inside) / self.trials


@click.command(cls=ManyValues)
@source_options
@click.option("--method", "methods", default="coreset,padim,subspace", show_default=True, metavar="NAME,...")
@click.option("--samples", type=int, default=4, show_default=True, help="Configurations of each method.")
@click.option("--jobs", type=click.IntRange(2, 64), default=2, show_default=True, help="Trials at once, against one.")
@set_option
@json_option
def overhead(
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    methods: str,
    samples: int,
    jobs: int,
    settings: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """Run one sweep three times: as a bare loop in this process, with Ray one trial at a time, and several at a time.

    All three read the same stored features and must come to the same figures.
    """
    check_source(folders, dataset, root)
    asked = SweepSettings(
        methods=tuple(words_of(methods)),
        samples=samples,
        given=gather(settings, {}),
        data=data_at(folders, dataset, root),
    )
    tasks = read_sources(folders, dataset, root)
    with TemporaryDirectory(prefix="everline-") as scratch, progress() as bars:
        at = Path(scratch)
        places = {
            "bare loop": Place(ray=False, features=at / "features"),
            "Ray, 1 at a time": Place(jobs=1, features=at / "features"),
            f"Ray, {jobs} at a time": Place(jobs=jobs, features=at / "features"),
        }
        bar = bars.add_task("trials", total=None, images=False)
        told = partial(bars.advance, bar)
        runs, figures = zip(*(timed(how, place, asked, tasks, at, told) for how, place in places.items()), strict=True)
    if any(one != figures[0] for one in figures):
        raise DataError("the three sweeps differ in their figures; their times say nothing.")
    bare, one, many = runs
    ratios = {
        "overhead_s": one.overhead(),
        "overhead_share": one.seconds / bare.seconds - 1,
        "speed_up": one.seconds / many.seconds,
        "speed_up_over_bare": bare.seconds / many.seconds,
    }
    if str(json_file) != "-":
        columns = ["", "until it is there, s", "trials, s", "of these at work, s", "times the bare loop"]
        rows = [(r.how, r.started, r.seconds, r.inside, r.seconds / bare.seconds) for r in runs]
        show_table(TITLE.format(trials=bare.trials), columns, rows)
        show_table("ratios", list(ratios), [list(ratios.values())])
    write_json({"trials": bare.trials, "runs": [asdict(run) for run in runs], **ratios}, json_file)


def timed(
    how: str, place: Place, asked: SweepSettings, tasks: list[Task], at: Path, told: Any
) -> tuple[Run, dict[int, Any]]:
    """One way, and the trials' figures by number. Features are made before the clock starts."""
    out = at / how.replace(" ", "-")
    sweep = Sweep(place.job(begin(asked, out, tasks), out), tasks)
    start = time.perf_counter()
    with place.joined():
        place.prepare(sweep, lambda name, done: None)
        started, start = time.perf_counter() - start, time.perf_counter()

        def ended(record: TrialRecord, there: bool, conductor: Conductor) -> None:
            told()

        sweep.run(place.runner, ended)
        seconds = time.perf_counter() - start
    inside = sum(record.seconds for record in sweep.records)
    figures = {r.item.number: (r.status, r.objective, list(r.points)) for r in sweep.records}
    return Run(how, started, seconds, inside, len(sweep.records)), figures


if __name__ == "__main__":
    launch(overhead)
