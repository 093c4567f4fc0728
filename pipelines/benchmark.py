"""`everline bench`: many methods under many protocols, on the same features; goes on where it was stopped."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import torch

from ..methods.errors import DataError
from .bench import Features, Told
from .console import ERR, progress
from .course import nowhere
from .datasets import Task
from .evaluate import ManyValues, check_source, gather, read_sources, teller
from .plan import Plan, read_plan
from .readers import READERS
from .results import Result, read_result, write_result
from .trial import Trial

KEEP = 4 * 2**30  # bytes of features of one task: all its methods share them


@click.command(cls=ManyValues)
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option(
    "--data", "folders", multiple=True, type=click.Path(path_type=Path), metavar="DIR...",
    help="Folders in MVTec layout, as for everline evaluate.",
)  # fmt: skip
@click.option(
    "--dataset", type=click.Choice(sorted(READERS)), help="In place of --data: every class of this data set."
)
@click.option("--root", type=click.Path(path_type=Path), help="Where the data set was unpacked.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the records: PROTOCOL/METHOD.json."
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE...", help="Parameters for every method.")
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="CPU threads; times depend on them."
)
def bench(
    plan_file: Path,
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    out: Path,
    settings: tuple[str, ...],
    threads: int,
) -> None:
    """Run every method of a PLAN under every protocol of it: one result record each, to compare.

    An image goes through the backbone once for all of them. Stopped, it goes on where it was: what is under --out
    and was made by the same method, parameters and options stays. A small plan file:

    \b
    methods:
      padim: {}
      lemo-untrained: {method: lemo, params: {lr: 0, update: none}}
    protocols:
      online: {}
      four-shots: {protocol: offline, options: {shots: 4}, seeds: 3}
    """
    check_source(folders, dataset, root)
    plan = read_plan(plan_file, gather(settings, {}))
    tasks = read_sources(folders, dataset, root)
    torch.set_num_threads(threads)
    run_plan(plan, tasks, out)
    for path in merge(plan, tasks, out):
        click.echo(path)


def run_plan(plan: Plan, tasks: list[Task], out: Path) -> None:
    """Runs what is not there yet; each task's part is a record of its own, OUT/PROTOCOL/METHOD/TASK.json."""
    with progress() as bars:
        all_ = bars.add_task("all", total=len(plan) * len(tasks))
        now = bars.add_task("", total=None)
        for task in tasks:
            shared: dict[tuple, Features] = {}
            for (protocol, method), trial in plan.items():
                file = part_file(out, protocol, method, task)
                if not is_done(file, trial, task):
                    name = f"{task.name} {protocol} {method}"
                    features = shared.setdefault(
                        trial.detector.embedding, Features(lambda t=trial: t.detector, KEEP, again=True)
                    )

                    def told(seed: int, name: str = name) -> Told:
                        return teller(bars, name, now)

                    done = trial.on(task, told, nowhere, features)
                    write_result(trial.result([done]), file)
                    ERR.print(f"{name}: image AUROC {done.metrics['image_auroc']:.3f}", highlight=False)
                bars.advance(all_)


def merge(plan: Plan, tasks: list[Task], out: Path) -> Iterator[Path]:
    """Writes OUT/PROTOCOL/METHOD.json from the parts of all tasks; yields the paths."""
    for (protocol, method), trial in plan.items():
        parts = [read_result(part_file(out, protocol, method, task)).tasks[0] for task in tasks]
        path = out / protocol / f"{method}.json"
        write_result(trial.result(parts), path)
        yield path


def part_file(out: Path, protocol: str, method: str, task: Task) -> Path:
    """Where one task's part of a record is kept."""
    return out / protocol / method / f"{task.name}.json"


def is_done(file: Path, trial: Trial, task: Task) -> bool:
    """Whether a file is this trial's record of this task. What is another's, or no record, is made anew."""
    if not file.exists():
        return False
    try:
        found = read_result(file)
    except DataError as error:
        ERR.print(f"{error} It is made anew.", highlight=False)
        return False
    return [one.task for one in found.tasks] == [task.name] and _made_by(found) == _made_by(trial.result([]))


def _made_by(result: Result) -> str:
    """What decides the figures of a record, as text."""
    names = ("protocol", "method", "params", "options", "seed", "seeds", "size", "everline_version")
    return json.dumps({name: getattr(result, name) for name in names}, sort_keys=True)
