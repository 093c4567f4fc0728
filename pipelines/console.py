"""What the commands share: tables and progress for people, JSON for machines."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from rich import progress as bars
from rich.console import Console
from rich.table import Table
from rich.text import Text

OUT = Console()
ERR = Console(stderr=True)

fleet_option = click.option(
    "--fleet",
    "fleet_file",
    type=click.Path(path_type=Path),
    default=Path("fleet.yaml"),
    show_default=True,
    help="The fleet file.",
)
json_option = click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write the result as JSON to this file; - is stdout."
)


class _Rate(bars.ProgressColumn):
    """Images per second."""

    def render(self, task: bars.Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:5.1f} images/s" if speed else "")


def progress() -> bars.Progress:
    """A progress bar on standard error: what, how many, how fast, how long."""
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        _Rate(),
        bars.TimeRemainingColumn(),
        console=ERR,
    )


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on standard output; None is shown as a dash."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    OUT.print(table)


def write_json(plain: Any, file: Path | None) -> None:
    """Strict JSON to a file (whole or not at all), or to standard output for `-`; nothing where `file` is None."""
    if file is None:
        return
    text = json.dumps(plain, indent=2, allow_nan=False) + "\n"
    if str(file) == "-":
        click.echo(text, nl=False)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    half.write_text(text, "utf-8")
    half.replace(file)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
