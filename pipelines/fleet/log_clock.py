"""`everline log clock`: where the times in a log jump, and a person's word that they are right."""

import time
from dataclasses import asdict
from pathlib import Path

import click

from ...methods.errors import ConfigError
from ...platform.ages import CLOCK, Ages
from ...platform.log import LogReader, LogWriter, line_folder
from ...platform.record import Record
from ...platform.retention import DAY_NS
from ...platform.settings import read_fleet
from ..console import OUT, fleet_option, json_option, user, write_json


@click.command("clock")
@click.argument("line")
@click.option("--right", is_flag=True, help="Say that the times in the log are right: images have the age they say.")
@click.option("--by", default=user, show_default="who is logged in", help="Who says so; it stands in the log.")
@fleet_option
@json_option
def clock(line: str, right: bool, by: str, fleet_file: Path, json_file: Path | None) -> None:
    """Show where the times in LINE's log jump: the clock was wrong, or the line was off for longer than `keep_days`.

    What lies before a jump counts as made when it was seen, so that a wrong clock removes no image. --right lets those
    images go at their age; end what writes the log before, and run it with a clock that is right.
    """
    fleet = read_fleet(fleet_file)
    keep_days, folder = fleet.line(line).keep_days, line_folder(fleet.store, line)
    jumps = Ages.of(LogReader(folder).times(), keep_days).jumps
    if right:
        if not jumps:
            raise ConfigError(f"line {line}: the times in its log do not jump; there is nothing to say.")
        data = {"right": True, "by": by}
        with LogWriter.open(folder) as writer:
            writer.append([Record(CLOCK, f"{CLOCK}-{writer.next_seq}", time.time_ns(), data=data)])
    write_json({"line": line, "jumps": [asdict(jump) for jump in jumps], "right": right}, json_file)
    if str(json_file) == "-":
        return
    for jump in jumps:
        OUT.print(f"  record {jump.seq}: by {jump.by_ns / DAY_NS:+.2f} days", highlight=False)
    times = ("do not jump", "jump once")[len(jumps)] if len(jumps) < 2 else f"jump {len(jumps)} times"
    said = f"its times are right, says {by}" if right else f"its times {times}"
    OUT.print(f"{line}: {said}", markup=False, highlight=False)
