"""`everline compare`: result records side by side, one column a method; docs/results.md is made with it."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from ..methods.errors import ConfigError
from .console import show_table
from .results import Result, TaskResult, Whole, read_result

MARKS = ("<!-- tables -->", "<!-- end of tables -->")
Cell = Callable[[TaskResult], float]
FIGURES: tuple[tuple[str, str, Cell], ...] = (  # title, format, figure of one task
    ("image AUROC", ".3f", lambda t: t.metrics["image_auroc"]),
    ("AUPRO", ".3f", lambda t: t.metrics["aupro"]),
    ("images/s, learning included", ".1f", lambda t: t.images_per_s),
    ("state, MB", ".1f", lambda t: t.state_bytes / 1e6),
)


@click.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--markdown",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the tables to this file too; between its marks, where it has them.",
)
def compare(records: tuple[Path, ...], markdown: Path | None) -> None:
    """Compare result RECORDs (JSON files of everline evaluate): a row for each task, a column for each record.

    Records must be of one protocol and one image size: figures of different ones do not compare.
    """
    results = [read_result(path) for path in records]
    for what in ("protocol", "size"):
        values = sorted({str(getattr(result, what)) for result in results})
        if len(values) > 1:
            raise ConfigError(f"compare: the records differ in {what} ({', '.join(values)}); compare like with like.")
    names = labels(results, records)
    tables = [(title, rows(results, form, figure)) for title, form, figure in FIGURES]
    for title, body in tables:
        show_table(title, ["task", *names], body)
    if markdown:
        made = as_markdown(results, names, tables)
        page = placed(markdown.read_text("utf-8"), made) if markdown.is_file() else made
        with Whole(markdown) as half:
            half.write_text(page, "utf-8")


def placed(page: str, made: str) -> str:
    """`made` between the marks of a page that has both, else in place of the page."""
    before, mark, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    return f"{before}{mark}\n{made}{end}{after}" if mark and end else made


def labels(results: Sequence[Result], records: Sequence[Path]) -> list[str]:
    """The method's name; with the file's name behind it where a method is there twice."""
    methods = [result.method for result in results]
    return [
        method if methods.count(method) == 1 else f"{method} ({path.stem})"
        for method, path in zip(methods, records, strict=True)
    ]


def rows(results: Sequence[Result], form: str, figure: Cell) -> list[list[str | None]]:
    """A row for each task in the order first met, then the mean over the tasks that every record has."""
    found = [{task.task: figure(task) for task in result.tasks} for result in results]
    tasks = list(dict.fromkeys(task for column in found for task in column))
    body = [[task, *(_text(column.get(task, math.nan), form) for column in found)] for task in tasks]
    shared = [task for task in tasks if all(not math.isnan(column.get(task, math.nan)) for column in found)]
    if len(shared) > 1:
        means = [sum(column[task] for task in shared) / len(shared) for column in found]
        title = "mean" if len(shared) == len(tasks) else f"mean of {len(shared)} that all have"
        body.append([title, *(_text(mean, form) for mean in means)])
    return body


def as_markdown(
    results: Sequence[Result], names: Sequence[str], tables: Sequence[tuple[str, list[list[str | None]]]]
) -> str:
    """The tables as Markdown, with what made each column."""
    lines = [f"Protocol `{results[0].protocol}`, images of {results[0].size} x {results[0].size} pixels.", ""]
    for title, body in tables:
        lines += [f"**{title}**", "", _line(["task", *names]), _line(["---"] + ["---:"] * len(names))]
        lines += [_line([cell or "-" for cell in row]) for row in body] + [""]
    for name, result in zip(names, results, strict=True):
        given = ", ".join(f"{key}={value}" for key, value in result.params.items() if key not in ("size", "seed"))
        lines.append(f"* {name}: seed {result.seed}, everline {result.everline_version}; {given}")
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(value: float, form: str) -> str | None:
    return None if math.isnan(value) else format(value, form)
