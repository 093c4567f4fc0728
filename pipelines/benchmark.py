"""`everline bench`: many methods under many protocols, on the same features; goes on where it was stopped."""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote

import click
import torch
from rich.progress import Progress, TaskID

from ..methods.errors import DataError
from .bench import Features, Told
from .console import ERR, progress, show_blocks
from .datasets import Task
from .evaluate import teller
from .markdown import check_mark, filled, markdown_options, table_markdown, write_page
from .options import ManyValues, check_source, gather, read_sources, set_option, source_options
from .overview import overview
from .plan import Names, Plan, read_plan
from .results import Result, Whole, read_result, write_result
from .tracked import prepare, track, tracking_option
from .trial import Trial

KEEP = 4 * 2**30  # bytes of features of one task: all its methods share them


@click.command(cls=ManyValues)
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@source_options
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder for the records: PROTOCOL/METHOD.json."
)
@set_option
@click.option(
    "--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="CPU threads; times depend on them."
)
@markdown_options
@tracking_option
def bench(
    plan_file: Path,
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    out: Path,
    settings: tuple[str, ...],
    threads: int,
    markdown: Path | None,
    mark: str | None,
    tracking: str | None,
) -> None:
    """Run every method of a PLAN under every protocol of it: one table, and one result record each, to compare.

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
    check_mark(markdown, mark)
    check_source(folders, dataset, root)
    plan = read_plan(plan_file, gather(settings, {}))
    tasks = read_sources(folders, dataset, root)
    if tracking is not None:
        for protocol in sorted({trial.protocol for trial in plan.values()}):
            prepare(tracking, protocol)
    mark_data(tasks, out)
    torch.set_num_threads(threads)
    fresh = run_plan(plan, tasks, out)
    records = merge(plan, tasks, out, dataset)
    table = overview(records)
    if markdown is not None:
        write_page(markdown, filled(markdown, mark, table_markdown(table)))
    show_blocks(table.title, table.columns, table.rows, table.note)
    if tracking is not None:
        for names in fresh:
            track(records[names], tracking)


def run_plan(plan: Plan, tasks: Sequence[Task], out: Path) -> list[Names]:
    """Runs what is not there yet; each task's part is a record of its own, OUT/PROTOCOL/METHOD/TASK.json.

    Returns what was run for at least one task.
    """
    fresh: dict[Names, None] = {}  # in order
    with progress() as bars:
        all_ = bars.add_task("all", total=len(plan) * len(tasks))
        now = bars.add_task("", total=None)
        for task in tasks:
            shared: dict[tuple, Features] = {}  # by what they depend on
            for names, trial in plan.items():
                file = part_file(out, *names, task)
                if not is_done(file, trial, task):
                    who = " ".join((task.name, *names))
                    crop, key = trial.runs[0].crop, (trial.detector.embedding, trial.runs[0].crop)
                    shared[key] = shared.get(key) or Features(trial.make(trial.detector.seed), KEEP, True, crop)
                    told = partial(_told, bars, now, who)
                    done = trial.on(task, told, features=shared[key])
                    write_result(trial.result([done]), file)
                    ERR.print(f"{who}: image AUROC {done.metrics['image_auroc']:.3f}", highlight=False)
                    fresh[names] = None
                bars.advance(all_)
    return list(fresh)


def _told(bars: Progress, bar: TaskID, name: str, seed: int) -> Told:
    return teller(bars, f"{name} seed {seed}", bar)


def merge(plan: Plan, tasks: Sequence[Task], out: Path, dataset: str | None = None) -> dict[Names, Result]:
    """Writes OUT/PROTOCOL/METHOD.json from the parts of all tasks."""
    found = {}
    for names, trial in plan.items():
        parts = [read_result(part_file(out, *names, task)).tasks[0] for task in tasks]
        found[names] = trial.result(parts, dataset)
        write_result(found[names], record_file(out, *names))
    return found


def mark_data(tasks: Sequence[Task], out: Path) -> None:
    """Notes which images each task has, in OUT/data. Raises DataError where parts of others are there already."""
    for task in tasks:
        file, found = out / "data" / _file_name(task, "sha256"), fingerprint(task)
        if file.exists() and file.read_text("utf-8").strip() != found:
            raise DataError(f"{out}: made from other images of the name {task.name}; name another --out.")
        with Whole(file) as half:
            half.write_text(f"{found}\n", "utf-8")


def fingerprint(task: Task) -> str:
    """A checksum of the names and sizes of a task's images, wherever its folder lies."""
    rows = [("train", path) for path in task.train] + [(sample.kind, sample.path) for sample in task.test]
    text = json.dumps([[kind, path.name, path.stat().st_size] for kind, path in rows])
    return hashlib.sha256(text.encode()).hexdigest()


def record_file(out: Path, protocol: str, method: str) -> Path:
    """Where a method's record under a protocol is kept."""
    return out / protocol / f"{method}.json"


def part_file(out: Path, protocol: str, method: str, task: Task) -> Path:
    """Where one task's part of a record is kept."""
    return out / protocol / method / _file_name(task, "json")


def _file_name(task: Task, suffix: str) -> str:
    """A data set's table may name a task as it likes; a file's name stays in its folder."""
    return f"{quote(task.name, safe=' ')}.{suffix}"


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
