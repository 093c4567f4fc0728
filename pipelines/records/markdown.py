"""Tables as Markdown, filled in between marks of a page."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ...methods.errors import ConfigError, DataError
from ..files import FilePath, Whole
from .report import Table

MARK = "tables"


def markdown_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --markdown and --mark; `check_mark`, `filled` and `write_page` take what they give."""
    for option in (
        click.option(
            "--mark", metavar="NAME",
            help=f"The marks in that file: <!-- NAME --> and <!-- end of NAME -->.  [default: {MARK}]",
        ),
        click.option(
            "--markdown", type=FilePath(dir_okay=False),
            help="Write the tables to this file too, between its marks; a new file gets the marks.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def check_mark(markdown: Path | None, mark: str | None) -> None:
    """Raises ConfigError for a mark without a file, and what `filled` does: before the work, not after it."""
    if markdown is not None:
        filled(markdown, mark, "")
    elif mark is not None:
        raise ConfigError("--mark names a place in the file of --markdown; give both.")


def filled(file: Path, mark: str | None, made: str) -> str:
    """A page with `made` between its marks; a file that is yet to be is a page of these alone.

    Raises ConfigError for a name that is none, or whose marks are not in the file; DataError for a file that is no
    text.
    """
    name = MARK if mark is None else mark
    if not re.fullmatch(r"\w+([ -]\w+)*", name):
        raise ConfigError(f"--mark takes words of letters and digits, such as few-shot; got {mark!r}.")
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if not file.is_file():
        return f"{start}\n{made}{end}\n"
    try:
        page = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not a page to write into: {error}") from error
    before, opened, rest = page.partition(start)
    _, closed, after = rest.partition(end)
    if opened and closed:
        return f"{before}{start}\n{made}{end}{after}"
    raise ConfigError(f"{file} has no place {name!r}; write {start} and, below it, {end} where it belongs.")


def write_page(file: Path, page: str) -> None:
    """Whole or not at all. Raises StoreError."""
    with Whole(file) as half:
        half.write_text(page, "utf-8")


def table_markdown(table: Table) -> str:
    """A table with its title above and its note below, and an empty line behind."""
    lines = [f"**{escaped(table.title)}**", "", _line(table.columns)]
    lines += [_line(["---"] + ["---:"] * (len(table.columns) - 1))]
    lines += [_line(["-" if cell is None else str(cell) for cell in row]) for row in table.rows] + [""]
    lines += [escaped(table.note), ""] if table.note else []
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text from outside on one line, and never a mark or other HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escaped(cell).replace("|", "\\|") for cell in cells) + " |"
