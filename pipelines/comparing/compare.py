"""`everline compare`: result records side by side, or versions of lines; docs/results.md is made with it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ...methods.errors import ConfigError
from ..console import ERR, fleet_option, json_option
from ..files import FilePath
from ..options import ManyValues
from ..records.markdown import markdown_options
from ..records.report import Report, Table
from ..runs.tracked import tracking_to
from .comparison import Comparison, Record
from .comparison_continual import heats, trends
from .comparison_curves import drawings
from .comparison_tables import tables
from .labels import changed, seeds
from .outlets import Outlets, as_text
from .paired import Paired, paired, paired_tables
from .sources import is_run, of_task, read_experiment, read_words
from .versions_named import is_version


class ManyFolders(ManyValues):
    """`--data A B C`."""

    many = ("--data",)


@click.command(cls=ManyFolders)
@click.argument("words", metavar="[RECORD|RUN|LINE@VERSION]...", nargs=-1)
@click.option("--experiment", metavar="NAME", help="Compare all finished runs of this experiment in MLflow, too.")
@click.option("--task", metavar="NAME", help="Of records: compare those that have this task, by it alone.")
@click.option(
    "--data", "folders", multiple=True, type=FilePath(), metavar="DIR...",
    help="Of versions: images to judge. Folders in MVTec layout, or of images alone, whose truth is not known.",
)  # fmt: skip
@fleet_option
@tracking_to("runs are read from, and that a comparison of versions goes to (by default: the fleet's)")
@click.option(
    "--report", "report_file", type=FilePath(dir_okay=False),
    help="Write a page with the tables, and curves or heatmaps (HTML, self-contained).",
)  # fmt: skip
@markdown_options
@json_option
def compare(
    words: tuple[str, ...],
    experiment: str | None,
    task: str | None,
    folders: tuple[Path, ...],
    fleet_file: Path,
    tracking: str | None,
    report_file: Path | None,
    markdown: Path | None,
    mark: str | None,
    json_file: Path | None,
) -> None:
    """Compare result records (JSON files of everline evaluate, or RUNs of MLflow), or versions of lines.

    Records: an overview first, then each figure by task, and what seeds say of the differences. They must be of one
    protocol and one image size: figures of different ones do not compare. What else they differ in names them: `padim
    shots=1`, `padim shots=4`. Means are over the tasks that all of them have. A RUN is an id, or 8 digits of it.

    Versions: LINE@current, LINE@previous, LINE@candidate or LINE@7 of a fleet, judging the images of --data. Says how
    good each is at its own threshold, and whose verdicts change; a run in MLflow for each.
    """
    outlets = Outlets(report_file, markdown, mark, json_file)
    versions = [word for word in words if is_version(word)]
    if not versions:
        refuse(("folders", "fleet_file"), "is of versions (LINE@current), and these are records")
        compare_records(words, experiment, task, tracking, outlets)
        return
    others = [word for word in words if word not in versions]
    if others:
        raise ConfigError(f"compare: {versions[0]} is a version and {others[0]} a record; compare like with like.")
    refuse(("experiment", "task"), "is of records, and these are versions of lines")
    from .versions_command import compare_versions

    told = _said("tracking", including_environment=True)
    compare_versions(words, folders, fleet_file, (tracking,) if told else (), outlets)


def compare_records(
    words: Sequence[str], experiment: str | None, task: str | None, tracking: str | None, outlets: Outlets
) -> None:
    """Raises ConfigError for nothing to compare, and for an option that says where none of these come from."""
    if not words and experiment is None:
        raise click.UsageError("Missing argument: give records, runs or --experiment, or versions (LINE@current).")
    if experiment is None and not any(map(is_run, words)):
        refuse(("tracking",), "says where runs are, and these are files")
    sources = read_words(words, tracking)
    if experiment is not None:
        more, without = read_experiment(experiment, tracking)
        sources += more
        if without:
            ERR.print(f"{experiment}: {without} finished runs have no record and are left out.", highlight=False)
    comparison = Comparison.of(sources if task is None else of_task(sources, task))
    found = paired(comparison)
    made = with_seeds(tables(comparison), found)
    matrices = [one.table("learned") for one in heats(comparison)]
    outlets.deliver(
        {**comparison.to_json(), "significance": found.to_json()},
        [*made, *matrices],
        as_markdown(comparison, [*made, *matrices]),
        lambda: as_report(comparison, made),
    )


def refuse(names: Sequence[str], why: str) -> None:
    """Raises ConfigError for the first of these options that was given."""
    options = {param.name: param.opts[0] for param in click.get_current_context().command.params}
    for name in names:
        if _said(name):
            raise ConfigError(f"compare: {options[name]} {why}.")


def _said(name: str, including_environment: bool = False) -> bool:
    kinds = click.core.ParameterSource
    source = click.get_current_context().get_parameter_source(name)
    return source == kinds.COMMANDLINE or (including_environment and source == kinds.ENVIRONMENT)


def with_seeds(made: Sequence[Table], found: Paired) -> list[Table]:
    """The tables with those over seeds behind them; where there are none, the overview says why."""
    if found.best is None:
        first, *others = made
        return [replace(first, note=" ".join(filter(None, [first.note, found.why]))), *others]
    return [*made, *paired_tables(found)]


def as_markdown(comparison: Comparison, made: Sequence[Table]) -> str:
    """The tables as Markdown, then what made each record."""
    return as_text(made, [origin(record) for record in comparison.records])


def as_report(comparison: Comparison, made: Sequence[Table]) -> Report:
    """The page: tables, curves, what made each record."""
    return Report(
        f"everline compare: {comparison.setting}",
        f"{len(comparison.records)} records, images of {comparison.size} x {comparison.size} pixels.",
        tables=made,
        heats=heats(comparison),
        curves=[*trends(comparison), *drawings(comparison)],
        footer="\n".join(origin(record) for record in comparison.records),
    )


def origin(record: Record) -> str:
    """What made a record: its parameters other than the method's defaults, its seeds, the version of everline."""
    words = changed(record.result)
    given = ", ".join(f"{name}={value}" for name, value in words.items()) or "defaults"
    ((what, which),) = seeds(record.result).items()
    where = f"; {record.source}" if record.source.run_id else ""
    return f"{record.label}: {given}; {what} {which}, everline {record.result.everline_version}{where}"
