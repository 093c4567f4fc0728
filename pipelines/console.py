"""What the commands share: tables and progress for people, JSON for machines."""

import contextlib
import getpass
import json
import os
import signal
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import click
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..methods.errors import EverlineError
from .files import FilePath, Whole

OUT = Console()
ERR = Console(stderr=True)
FRAME = 3  # columns of the terminal that a table's column has beside its text

fleet_option = click.option(
    "--fleet",
    "fleet_file",
    type=FilePath(),
    default=Path("fleet.yaml"),
    show_default=True,
    help="The fleet file.",
)
json_option = click.option(
    "--json", "json_file", type=FilePath(), help="Write the result as JSON to this file; - is stdout."
)


def user() -> str:
    """Returns the name of whoever is logged in."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return f"user {os.getuid()}"


class _Rate(bars.ProgressColumn):
    """Images per second."""

    def render(self, task: bars.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:5.1f} images/s" if speed and task.fields.get("images", True) else "")


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """A SIGTERM ends it as Ctrl-C does: by KeyboardInterrupt, or as asyncio has it, whose tasks are cancelled."""

    def stop(_: int, frame: FrameType | None) -> None:
        signal.alarm(0)  # Ray's own handler would have the process aborted soon
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell has its jobs in the background ignore Ctrl-C
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever owns it decides
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def launch(command: click.Command) -> None:
    """A command that a module is by itself; everline's own errors end it with one clear line."""
    try:
        command()
    except EverlineError as error:
        raise SystemExit(f"error: {error}") from None


def progress() -> bars.Progress:
    """A progress bar on standard error: what, how many, how fast, how long."""
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        _Rate(),
        bars.TimeRemainingColumn(),
        console=ERR,
    )


def teller(shown: bars.Progress, name: str, bar: bars.TaskID | None = None) -> Callable[[str, int, int], None]:
    """A progress bar (a new one if none is given): it shows the stage at hand, and restarts with the next stage."""
    if bar is None:
        bar = shown.add_task(name, total=None)
    last = ""

    def told(stage: str, done: int, of: int) -> None:
        nonlocal last
        if stage != last:
            shown.reset(bar, total=of, description=f"{name}: {stage}")
            last = stage
        shown.update(bar, completed=done)

    return told


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on standard output; None is shown as a dash."""
    _show(columns, rows, Text(_printable(title)))


def _show(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: Text | None = None) -> None:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(Text(_printable(column)))
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    OUT.print(table)


def show_blocks(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str = "") -> None:
    """A table of many columns, cut to the terminal's width: the first column stands again in front of each block.

    Heads and the first column break between words, other cells not at all. The title and the note stand there once.
    """
    OUT.print(Text(_printable(title), style="table.title"))
    body = [[_cell(value) for value in row] for row in rows]
    names, *cells = ([row[n] for row in body] for n in range(len(columns)))
    first, *heads = columns
    least = max(len(word) for text in (first, *names) for word in text.split() or [""])
    widths = [max(map(len, (*head.split(), *column))) for head, column in zip(heads, cells, strict=True)]
    for block in _blocks(heads, widths, OUT.width - 1 - FRAME - least):
        free = OUT.width - 1 - FRAME - sum(widths[n] + FRAME for n in block)
        wrapped = [_wrapped(name, max(least, free)) for name in names]
        above = [_wrapped(heads[n], widths[n]) for n in block]
        _show([first, *above], zip(wrapped, *(cells[n] for n in block), strict=True))
    if note:
        OUT.print(Text(_printable(note)))


def _blocks(heads: Sequence[str], widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns in blocks that fit, of one at least; heads with the same first line stay together where they can."""
    blocks: list[list[int]] = [[]]

    def fits(columns: Sequence[int]) -> bool:
        return not blocks[-1] or sum(widths[n] + FRAME for n in (*blocks[-1], *columns)) <= room

    for _, group in groupby(range(len(heads)), key=lambda n: heads[n].partition("\n")[0]):
        together = list(group)
        if not fits(together):
            blocks.append([])
        for n in together:
            if not fits([n]):
                blocks.append([])
            blocks[-1].append(n)
    return blocks


def _wrapped(text: str, width: int) -> str:
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join(word for line in lines for word in line)


def write_json(plain: Any, file: Path | None) -> None:
    """Strict JSON to a file (whole or not at all), or to standard output for `-`; nothing where `file` is None.

    Raises StoreError for a file that cannot be written.
    """
    if file is None:
        return
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    with Whole(file) as half:
        half.write_text(text, "utf-8")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else _printable(str(value))


def _printable(text: str) -> str:
    """Text in characters that the output's encoding has."""
    try:
        text.encode(OUT.encoding)
    except UnicodeEncodeError:
        return text.replace("±", "+-").encode(OUT.encoding, "replace").decode(OUT.encoding)
    return text
