"""`everline sweep`: which method, how much memory, which parameters; on this machine or on a Ray cluster."""

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ...methods.errors import ConfigError, DataError, EverlineError
from ..console import ERR, OUT, json_option, progress, show_blocks, terminable, write_json
from ..data.datasets import Task
from ..data.masks import check_masks
from ..files import FilePath
from ..options import MANY, ManyValues, check_source, gather, read_sources, set_option, source_options
from ..protocols.protocols import PROTOCOLS
from ..protocols.trial import is_file
from ..records.markdown import MARK, check_mark, filled, markdown_options, write_page
from ..runs.protocol_options import protocol_options
from ..runs.tracked import tracking_option
from .features import Prepared
from .objectives import OBJECTIVES
from .outcome import Outcome
from .pages import memory_markdown, memory_picture, tables
from .place import Place, place_options
from .record import COMPLETE, FAILED, HELD_OUT, TrialRecord
from .settings import SweepSettings
from .sweep import Sweep, begin, check_free, check_images, described, held, read_settings, write_settings
from .tracked import store_of
from .winner import line_and_task, propose_winner
from .work import Job

FOLDER = "everline-data/sweeps"


class Many(ManyValues):
    """`--search A B C` too."""

    many = (*MANY, "--search")


@click.command(cls=Many)
@click.option("--method", "methods", metavar="NAME,...", help="Methods to try, with commas between.")
@source_options
@click.option("--protocol", type=click.Choice(sorted(PROTOCOLS)), help="How they are tried.  [default: online]")
@click.option("--memory", metavar="N,...", help="Memory sizes to try: of the method; under --strategy replay, images.")
@click.option(
    "--samples",
    type=int,
    help="Configurations of each method and memory size; the first has the defaults.  [default: 1]",
)
@click.option("--seeds", type=int, help="Seeds of each trial; its figures are means over them.  [default: 1]")
@click.option("--seed", type=int, help="Seed of the search, and the first of the trials.  [default: 0]")
@click.option("--objective", type=click.Choice(list(OBJECTIVES)), help="What is best.  [default: auroc]")
@set_option
@click.option("--search", multiple=True, metavar="NAME...", help="Search these parameters only; see everline methods.")
@click.option("--holdout", type=float, help="Share of the images to judge that the search never sees.  [default: 0.5]")
@click.option(
    "--reduction", type=int,
    help="Of those that reach a rung of the curve, one in so many goes on; 1: all.  [default: 3]",
)  # fmt: skip
@click.option("--generation", type=int, help="Configurations that are asked for together.  [default: 8]")
@protocol_options(without=("memory",))
@click.option("--device", help="Where trials compute: cpu, cuda.  [default: cuda with --gpus, else cpu]")
@place_options
@click.option("--out", type=FilePath(file_okay=False), help=f"Folder of the sweep.  [default: {FOLDER}/TIME]")
@click.option("--resume", is_flag=True, help="Go on with the sweep in --out; with --samples, with more of them.")
@click.option("--publish", "line", metavar="LINE", help="Register the winner as LINE's candidate.")
@click.option(
    "--fleet",
    "fleet_file",
    type=FilePath(),
    default=Path("fleet.yaml"),
    show_default=True,
    help="Of --publish: the fleet file.",
)
@markdown_options
@json_option
@tracking_option
def sweep(
    methods: str | None,
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    memory: str | None,
    settings: tuple[str, ...],
    device: str | None,
    place: Place,
    out: Path | None,
    resume: bool,
    line: str | None,
    fleet_file: Path,
    markdown: Path | None,
    mark: str | None,
    json_file: Path | None,
    tracking: str | None,
    **asked: Any,
) -> None:
    """Try methods, memory sizes and parameters; say which is best, what it costs, and how much memory is enough.

    A part of each folder's images to judge (--holdout) is kept from the search; what it chose is judged on them once
    more. Trials run side by side on the Ray cluster that is there (RAY_ADDRESS), else on this machine. What has ended
    is kept: stopped, the sweep goes on with --resume --out DIR, and has the same trials as one that was not.
    """
    check_mark(markdown, mark)
    if resume:
        asked |= {"method": methods, "data": folders, "dataset": dataset, "root": root, "memory": memory}
        asked |= {"set": settings, "device": device}
        job, tasks = _resumed(out, place, asked)
    else:
        job, tasks = _begun(out, place, methods, folders, dataset, root, memory, settings, device, asked)
    fleet, task = (None, None) if line is None else line_and_task(line, fleet_file, job.settings, tasks)
    quiet = json_file is not None
    found = conduct(job, tasks, place, tracking, quiet, resume)
    more = {}
    if line is not None and fleet is not None and task is not None:
        more["published"] = propose_winner(found, task, line, fleet, job.out, quiet=quiet)
    write_json({**found.to_json(), **more}, json_file)
    if markdown is not None:
        _into_page(found, markdown, mark)


def conduct(
    job: Job,
    tasks: Sequence[Task],
    place: Place,
    tracking: str | None,
    quiet: bool = False,
    resumed: bool = False,
    command: str = "sweep",
) -> Outcome:
    """Notes in its folder what a sweep is asked for, runs it to its end, and shows what came of it.

    command: of everline, that goes on with it where it is stopped. Raises KeyboardInterrupt once what was done by then
    is written; DataError where no trial was completed.
    """
    if resumed and tracking is not None and not _named("tracking"):
        tracking = store_of(job.out, tracking)
    again = f"everline {command} --resume --out {shlex.quote(str(job.out))}"
    with held(job.out), terminable():
        if not resumed:
            check_free(job.out)  # once more, now that nobody else can begin one here
        one = Sweep(job, tasks)
        if tracking is not None:
            one.track(tracking)
        write_settings(job.settings, job.out)
        with _shown(one, quiet) as (told, ended):
            one.recall(ended)
            try:
                if not one.finished:
                    with place.joined(), terminable():  # again: Ray has put a handler of its own in place of ours
                        one.features = place.prepare(one, told)
                        one.run(place.runner, ended)
            except BaseException:
                _stopped(one, f"{again} {place.words}")
                raise
        found = one.deliver()
    if not quiet:
        for table in tables(found):
            show_blocks(table.title, table.columns, table.rows, table.note)
        OUT.print(found.note, markup=False, highlight=False)
    ERR.print(f"The sweep: {job.out}/report.html, outcome.json.", markup=False, highlight=False, soft_wrap=True)
    if one.untracked:
        said = f"not all of it is in MLflow: {one.untracked} {again} records the rest."
        ERR.print(said, markup=False, highlight=False, soft_wrap=True)
    elif one.tracked is not None:
        ERR.print(one.tracked.landed, markup=False, highlight=False, soft_wrap=True)
    if all(record.status != COMPLETE for record in found.search):
        raise DataError(
            f"no trial was completed; the first error: {found.errors[0]['error'] if found.errors else '-'}"
        )
    return found


def _named(option: str) -> bool:
    """Whether the option was given, on the command line or by the environment."""
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT


def _begun(
    out: Path | None,
    place: Place,
    methods: str | None,
    folders: tuple[Path, ...],
    dataset: str | None,
    root: Path | None,
    memory: str | None,
    words: tuple[str, ...],
    device: str | None,
    asked: dict[str, Any],
) -> tuple[Job, list[Task]]:
    """A new sweep, noted in its folder."""
    check_source(folders, dataset, root)
    if methods is None:
        raise ConfigError("give --method NAME,..., such as --method lemo,coreset,kng.")
    own = {name: asked.pop(name) for name in list(asked) if name in SweepSettings.__dataclass_fields__}
    device = device or ("cuda" if place.gpus else None)
    settings = SweepSettings(
        methods=tuple(words_of(methods)),
        memory=tuple(sizes_of(memory)),
        given=absolute(gather(words, {"device": device})),
        options=_replaying({name: value for name, value in asked.items() if value not in (None, ())}, memory, own),
        data=data_at(folders, dataset, root),
        **{name: value for name, value in own.items() if value is not None and name != "options"},
    )
    tasks = read_sources(folders, dataset, root)
    for task in tasks:
        check_masks(task.name, task.test)
    out = (out or Path(FOLDER, time.strftime("%Y%m%d-%H%M%S"))).absolute()
    return place.job(begin(settings, out, tasks), out), tasks


def _resumed(out: Path | None, place: Place, asked: dict[str, Any]) -> tuple[Job, list[Task]]:
    """A sweep that was begun before; more --samples may be asked for, nothing else."""
    if out is None:
        raise ConfigError("--resume needs --out DIR: the folder of the sweep to go on with.")
    samples = asked.pop("samples")
    changed = [name for name, value in asked.items() if value not in (None, ())]
    if changed:
        raise ConfigError(f"--resume goes on with what was asked for; leave out --{', --'.join(sorted(changed))}.")
    settings, out = read_settings(out.absolute()), out.absolute()
    if samples is not None and samples < settings.samples:
        raise ConfigError(f"--samples: the sweep was begun with {settings.samples}; more can be asked for, not fewer.")
    job = place.job(settings if samples is None else replace(settings, samples=samples), out)
    tasks = job.tasks()
    check_images(settings, tasks, out)
    return job, tasks


def _into_page(found: Outcome, markdown: Path, mark: str | None) -> None:
    """The table by memory between the page's marks, and its curve beside the page."""
    drawn = memory_picture(found)
    file = markdown.with_name(f"{mark or MARK}.svg")
    if drawn is not None:
        write_page(file, drawn)
    write_page(markdown, filled(markdown, mark, memory_markdown(found, "" if drawn is None else file.name)))


def absolute(given: dict[str, Any]) -> dict[str, Any]:
    """Parameters, of which the files that they name are found from every folder."""
    return {name: str(Path(value).absolute()) if is_file(value) else value for name, value in given.items()}


def data_at(folders: Sequence[Path], dataset: str | None = None, root: Path | None = None) -> dict[str, Any]:
    """Where the data lie, as `SweepSettings.data` has it."""
    return {
        "folders": [str(one.absolute()) for one in folders],
        "dataset": dataset,
        "root": None if root is None else str(root.absolute()),
    }


def _replaying(options: dict[str, Any], memory: str | None, own: dict[str, Any]) -> dict[str, Any]:
    """A sequence of tasks with memory sizes to try is learned with replay, unless told otherwise."""
    sequence = own.get("protocol") == "continual"
    return {"strategy": "replay", **options} if sequence and memory is not None else options


def words_of(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def sizes_of(text: str | None) -> list[int]:
    """Raises ConfigError for what is no list of whole numbers."""
    words = [] if text is None else words_of(text)
    if any(not word.isdecimal() or not int(word) for word in words):
        raise ConfigError(f"--memory takes whole numbers with commas between, such as 100,300,800; got {text!r}.")
    return [int(word) for word in words]


def _stopped(one: Sweep, again: str) -> None:
    """Leaves what was done usable: the records are there, and now the page too."""
    with contextlib.suppress(EverlineError):
        one.catch_up()
        one.deliver()
    said = f"{len(one.records)} trials are kept in {one.job.out}; to go on: {again}"
    ERR.print(said, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _shown(one: Sweep, quiet: bool) -> Iterator[tuple[Callable[[str, Prepared | None], None], Any]]:
    """What is to be told of features that are prepared and of trials that end: a bar, and a line for each trial."""
    if quiet:
        yield (lambda name, done: None), (lambda record, there, conductor: None)
        return
    objective = OBJECTIVES[one.job.settings.objective]
    best: list[TrialRecord] = []
    with progress() as bars:
        bar = bars.add_task("trials", total=one.conductor.searched + one.conductor.judged, images=False)

        def told(name: str, done: Prepared | None) -> None:
            bars.update(bar, description=f"features of {name}" if done is None else "trials")

        def ended(record: TrialRecord, there: bool, conductor: Any) -> None:
            chosen = record.status == COMPLETE and record.item.phase != HELD_OUT
            if chosen and (not best or objective.better(record.objective, best[0].objective)):
                best[:] = [record]
            total = conductor.searched + conductor.judged
            said = f"trials, best {objective.title} {best[0].objective:.4g}" if best else "trials"
            bars.update(bar, advance=1, total=total, description=said)
            if not there:
                bars.console.print(_line(record, objective.title), markup=False, highlight=False, soft_wrap=True)

        yield told, ended


def _line(record: TrialRecord, title: str) -> str:
    """A trial that has ended, for people."""
    held_out = ", held-out images" if record.item.phase == HELD_OUT else ""
    came = {COMPLETE: f"{title} {record.objective:.4g}", FAILED: f"failed: {record.error}"}
    return f"{described(record)}{held_out}: {came.get(record.status, record.status)} ({record.seconds:.1f} s)"
