"""`everline bench`: many methods under many protocols, on the same features; goes on where it was stopped."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click
import torch
from rich.progress import Progress, TaskID

from ..console import ERR, progress, show_blocks, teller
from ..data.datasets import Task
from ..data.masks import check_masks
from ..files import FilePath
from ..options import ManyValues, check_source, data_of, gather, read_sources, set_option, source_options
from ..protocols.judging import Features, Told
from ..protocols.trial import Trial
from ..records.markdown import check_mark, filled, markdown_options, table_markdown, write_page
from ..records.results import Result, write_result
from ..records.tables import reasons
from .overview import overviews
from .parts import Parts
from .plan import Names, Plan, read_plan
from .tracked import landed, prepare, track, tracking_option

KEEP = 4 * 2**30  # bytes of features of one task, of all backbones: all its methods share them


@click.command(cls=ManyValues)
@click.argument("plan_file", metavar="PLAN", type=FilePath())
@source_options
@click.option("--out", type=FilePath(), required=True, help="Folder for the records: PROTOCOL/METHOD.json.")
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
    and was made by the same method, parameters and options stays (so after a change of the code, of a weights
    file or of --threads, name another --out). A small plan file:

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
    for task in tasks:
        check_masks(task.name, task.test)
    if tracking is not None:
        for protocol in sorted({trial.protocol for trial in plan.values()}):
            prepare(tracking, protocol)
    parts = Parts(out)
    parts.check_data(tasks)
    torch.set_num_threads(threads)
    run_plan(plan, tasks, parts)
    records = parts.merge(plan, tasks, data_of(folders, dataset))
    for reason in reasons(tasks, records.values()):
        _say(reason)
    made = overviews(records)
    for table in made:
        show_blocks(table.title, table.columns, table.rows, table.note)
    if markdown is not None:
        write_page(markdown, filled(markdown, mark, "".join(map(table_markdown, made))))
    if tracking is not None:
        track_all(records, parts, tracking)


def run_plan(plan: Plan, tasks: Sequence[Task], parts: Parts) -> None:
    """Runs what is not there yet: sequences of all tasks, then task by task what takes each for itself."""
    room = KEEP // len({_features_key(trial) for trial in plan.values()})
    alone = {names: trial for names, trial in plan.items() if not trial.together}
    together = {names: trial for names, trial in plan.items() if trial.together}
    with progress() as bars:
        all_ = bars.add_task("all", total=len(alone) * len(tasks) + len(together), images=False)
        now = bars.add_task("", total=None)
        shared: dict[tuple, Features] = {}
        for names, trial in together.items():
            if not parts.has_all(names, trial, tasks):
                who = " ".join(names)
                told, features = partial(_told, bars, now, who), _features(trial, shared, room)
                found, continued = trial.on_all(tasks, told, features=features, work=parts.steps(names, trial))
                write_result(trial.result(found, continued=continued), parts.whole(names))
                parts.forget_steps(names)
                _say(f"{who}: average F1 {continued.measures[continued.f1]['average']:.3f}")
            bars.advance(all_)
        for task in tasks:
            shared = {}
            for names, trial in alone.items():
                if not parts.has(names, trial, task):
                    who = " ".join((task.name, *names))
                    done = trial.on(task, partial(_told, bars, now, who), features=_features(trial, shared, room))
                    write_result(trial.result([done]), parts.part(names, task))
                    _say(f"{who}: image AUROC {done.metrics['image_auroc']:.3f}")
                bars.advance(all_)


def _features(trial: Trial, shared: dict[tuple, Features], room: int) -> Features:
    """Those that a trial can share with the others that see images as it does."""
    key = _features_key(trial)
    if key not in shared:
        make = trial.make(trial.detector.seed)
        shared[key] = Features(make, room, again=True, crop=trial.runs[0].crop)
    return shared[key]


def track_all(records: dict[Names, Result], parts: Parts, store: str) -> None:
    """Every record becomes a run in MLflow, but for those that are one already."""
    for names, result in records.items():
        if not parts.is_tracked(names, result, store):
            run = track(result, store)
            parts.set_tracked(names, result, store)
            _say(landed(result, store, run))


def _features_key(trial: Trial) -> tuple:
    """What features depend on: trials of one key share them."""
    return trial.detector.embedding, trial.runs[0].crop


def _told(bars: Progress, bar: TaskID, name: str, seed: int) -> Told:
    return teller(bars, f"{name} seed {seed}", bar)


def _say(text: str) -> None:
    ERR.print(text, markup=False, highlight=False, soft_wrap=True)
