"""`everline compare`: result records side by side, as tables and curves; docs/results.md is made with it."""

import re
from collections.abc import Sequence
from pathlib import Path

import click

from ..methods.errors import ConfigError, DataError
from .comparison import Comparison, Record
from .comparison_curves import drawings
from .comparison_tables import one_line, tables
from .console import json_option, show_blocks, write_json
from .labels import changed, seeds
from .report import Report, Table, write_report
from .results import Whole

MARK = "tables"


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--report", "report_file", type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with the tables and a curve for each task (HTML, self-contained).",
)  # fmt: skip
@click.option(
    "--markdown", type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables to this file too; between its marks, where it has them.",
)  # fmt: skip
@click.option(
    "--mark", metavar="NAME",
    help=f"The marks in that file: <!-- NAME --> and <!-- end of NAME -->.  [default: {MARK}]",
)  # fmt: skip
@json_option
def compare(
    records: tuple[Path, ...],
    report_file: Path | None,
    markdown: Path | None,
    mark: str | None,
    json_file: Path | None,
) -> None:
    """Compare result RECORDs (JSON files of everline evaluate): an overview first, then each figure by task.

    Records must be of one protocol and one image size: figures of different ones do not compare. What else they
    differ in names them: `padim shots=1`, `padim shots=4`. Means are over the tasks that all of them have.
    """
    if mark is not None and markdown is None:
        raise ConfigError("compare: --mark names a place in the file of --markdown; give both.")
    comparison = Comparison.read(records)
    made = tables(comparison)
    page = filled(markdown, mark, as_markdown(comparison, made)) if markdown else ""
    write_json(comparison.to_json(), json_file)
    if markdown:
        with Whole(markdown) as half:
            half.write_text(page, "utf-8")
    if report_file:
        write_report(as_report(comparison, made), report_file)
    if str(json_file) != "-":
        for table in made:
            show_blocks(table.title, table.columns, table.rows, table.note)


def filled(file: Path, mark: str | None, made: str) -> str:
    """A page with `made` between its marks; without the default's marks, `made` is the page.

    Raises ConfigError for a name that is none, or whose marks are not in the file; DataError for a file that is no
    text. A file that is yet to be is made, with the marks where they have a name.
    """
    name = MARK if mark is None else mark
    if not re.fullmatch(r"\w+([ -]\w+)*", name):
        raise ConfigError(f"compare: --mark takes words of letters and digits, such as few-shot; got {mark!r}.")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if not file.is_file():
        return made if mark is None else f"{start}\n{made}{end}\n"
    try:
        page = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a page to write into: {error}") from error
    before, opened, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if opened and closed:
        return f"{before}{start}\n{made}{end}{after}"
    if mark is None:
        return made
    raise ConfigError(f"compare: {file} has no place {name!r}; write {start} and, below it, {end} where it belongs.")


def as_markdown(comparison: Comparison, made: Sequence[Table]) -> str:
    """The tables as Markdown, then what made each record."""
    lines = []
    for table in made:
        lines += [f"**{_escaped(table.title)}**", "", _line(table.columns)]
        lines += [_line(["---"] + ["---:"] * (len(table.columns) - 1))]
        lines += [_line(["-" if cell is None else str(cell) for cell in row]) for row in table.rows] + [""]
        lines += [_escaped(table.note), ""] if table.note else []
    lines += [f"* {_escaped(origin(record))}" for record in comparison.records]
    return "\n".join(lines) + "\n"


def as_report(comparison: Comparison, made: Sequence[Table]) -> Report:
    """The page: tables, curves, what made each record."""
    return Report(
        f"everline compare: {comparison.setting}",
        f"{len(comparison.records)} records, images of {comparison.size} x {comparison.size} pixels.",
        tables=made,
        curves=drawings(comparison),
        footer="\n".join(origin(record) for record in comparison.records),
    )


def origin(record: Record) -> str:
    """What made a record: its parameters other than the method's defaults, its seeds, the version of everline."""
    words = changed(record.result)
    given = ", ".join(f"{name}={value}" for name, value in words.items()) or "defaults"
    ((what, which),) = seeds(record.result).items()
    return f"{record.label}: {given}; {what} {which}, everline {record.result.everline_version}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell).replace("|", "\\|") for cell in cells) + " |"


def _escaped(text: str) -> str:
    """Text from outside on one line, and never a mark or other HTML."""
    return one_line(text).replace("<", "&lt;")
