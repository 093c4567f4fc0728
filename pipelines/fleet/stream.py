"""`everline stream`: a folder of images through a line."""

from functools import partial
from pathlib import Path

import click

from ...platform.actor import answer, insist, line_handle, start_line
from ...platform.reach import Reach
from ...platform.settings import read_fleet
from ..console import ERR, OUT, fleet_option, json_option, progress, terminable, write_json
from ..data.datasets import list_images
from ..files import FilePath
from .feed import feed
from .lines import connected, ready_for_lines


@click.command()
@click.argument("line")
@click.argument("source", type=FilePath())
@fleet_option
@json_option
def stream(line: str, source: Path, fleet_file: Path, json_file: Path | None) -> None:
    """Feed the images of the folder SOURCE to LINE, which inspects and learns them, in the order of their names.

    An image whose name and bytes are in the line's log already is acknowledged and not learned again: after a
    crash or Ctrl-C the same command goes on where it stopped.
    """
    fleet = read_fleet(fleet_file)
    fleet.line(line)
    files = list_images(source)
    ready_for_lines(fleet)
    with connected(), terminable():  # once connected: Ray puts a handler of its own in place of ours
        handle, started = start_line(line, fleet)
        try:
            with progress() as bars:
                bar = bars.add_task(line, total=len(files))
                there = Reach(partial(line_handle, line, fleet.store))
                fed = feed(there, files, told=lambda path, reply: bars.advance(bar))
        finally:
            if started:
                answer(handle.close.remote())
        for name, reason in fed.refused.items():
            ERR.print(f"refused: {name}: {reason}", markup=False, highlight=False)
        status = insist(lambda: line_handle(line, fleet.store).status.remote())
        if status.get("advice"):
            ERR.print(f"{line}: {status['advice']}", markup=False, highlight=False, soft_wrap=True)
    result = {
        "line": line,
        "source": str(source),
        "images": len(files),
        "acknowledged": fed.acknowledged,
        "duplicates": fed.duplicates,
        "admitted": fed.admitted,
        "rejected": fed.rejected,
        "refused": fed.refused,
        "seconds": round(fed.seconds, 3),
        "images_per_s": round(fed.images_per_s, 2),
        "status": status,
    }
    write_json(result, json_file)
    if str(json_file) != "-":
        OUT.print(
            f"{line}: {fed.acknowledged} of {len(files)} acknowledged, {fed.duplicates} known before, "
            f"{fed.admitted} to learn, {fed.rejected} rejected, {len(fed.refused)} refused; "
            f"version {status['version'] or 'none yet'}, {status['images_learned']} learned in all"
        )
    if fed.refused:
        raise SystemExit(1)
