"""`everline compare`: result records side by side, as tables and curves; docs/results.md is made with it."""

from collections.abc import Sequence
from pathlib import Path

import click

from .comparison import Comparison, Record
from .comparison_continual import heats, trends
from .comparison_curves import drawings
from .comparison_tables import tables
from .console import json_option, show_blocks, write_json
from .labels import changed, seeds
from .markdown import check_mark, escaped, filled, markdown_options, table_markdown, write_page
from .report import Report, Table, write_report


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--report", "report_file", type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with the tables and a curve for each task (HTML, self-contained).",
)  # fmt: skip
@markdown_options
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
    check_mark(markdown, mark)
    comparison = Comparison.read(records)
    made = tables(comparison)
    matrices = [one.table("learned") for one in heats(comparison)]
    page = filled(markdown, mark, as_markdown(comparison, [*made, *matrices])) if markdown else ""
    write_json(comparison.to_json(), json_file)
    if markdown:
        write_page(markdown, page)
    if report_file:
        write_report(as_report(comparison, made), report_file)
    if str(json_file) != "-":
        for table in (*made, *matrices):
            show_blocks(table.title, table.columns, table.rows, table.note)


def as_markdown(comparison: Comparison, made: Sequence[Table]) -> str:
    """The tables as Markdown, then what made each record."""
    origins = [f"* {escaped(origin(record))}\n" for record in comparison.records]
    return "".join([table_markdown(table) for table in made] + origins)


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
    return f"{record.label}: {given}; {what} {which}, everline {record.result.everline_version}"
