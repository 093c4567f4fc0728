"""`everline watch`: what a camera writes into a folder is inspected, file by file."""

import heapq
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from ...methods.errors import ConfigError, DataError, LineDown, LineStopped, NoSpace, StoreDown
from ...platform.settings import read_fleet
from ..console import ERR, fleet_option, progress, terminable
from ..data.datasets import SUFFIXES
from ..files import FilePath
from .station import Station, stations

BACKLOG = 1000  # files that are looked after at a time; older ones come first
PLACES = {"pass": "pass", "reject": "reject", "learning": "learning", "error": "error"}
PAUSE_S = 2.0  # while the line cannot take anything


@click.command()
@click.argument("line")
@click.argument("folder", type=FilePath())
@click.option("--out", type=FilePath(), help="Append the verdicts to this file, not to stdout.")
@click.option("--move", is_flag=True, help="Move each file to pass/, reject/, learning/ or error/ in FOLDER.")
@click.option("--quiet", default=1.0, show_default=True, type=click.FloatRange(0, 3600), help="Seconds; see above.")
@click.option("--poll", default=0.2, show_default=True, type=click.FloatRange(0.01, 3600), help="Seconds; see above.")
@click.option("--once", is_flag=True, help="End when every file that is there has its verdict.")
@fleet_option
def watch(
    line: str, folder: Path, out: Path | None, move: bool, quiet: float, poll: float, once: bool, fleet_file: Path
) -> None:
    """Inspect with LINE every image that appears in FOLDER; each verdict is one line of JSON. Ctrl-C ends it.

    FOLDER is looked at every --poll seconds. A file is complete when its size and time have not changed for --quiet
    seconds; 0 is for cameras that rename their files into place. Links, folders and other files than images are left
    alone. Started again, it sends again what still lies there: the log answers what it knows ("duplicate": true) and
    learns nothing twice.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder.")
    fleet = read_fleet(fleet_file)
    with (
        stations(fleet, {line: None}) as there,
        terminable(),  # behind `stations`: Ray puts a handler of its own in place of ours
        open(out, "a", encoding="utf-8") if out else nullcontext(sys.stdout) as to,
        progress() as bars,
    ):
        bar = bars.add_task(line, total=0)
        done = 0

        def told(file: Path, waiting: int) -> None:
            nonlocal done
            done += 1
            bars.update(bar, completed=done, total=done + waiting)

        Watcher(folder, there[line], to, move, quiet).run(poll, once, told)


@dataclass(frozen=True)
class Look:
    """A file as it was seen first in this state."""

    size: int
    mtime_ns: int
    inode: int
    since: float  # monotonic seconds


class Watcher:
    """One folder and its line. What it knows is as large as the backlog, or what lies there with its verdict."""

    def __init__(self, folder: Path, station: Station, out: TextIO, move: bool, quiet_s: float) -> None:
        """Raises DataError where move is asked for and the folders cannot be made."""
        self._folder, self._station, self._out, self._move, self._quiet_s = folder, station, out, move, quiet_s
        self._looks: dict[str, Look] = {}
        self._done: dict[str, Look] = {}
        if move:
            for name in PLACES.values():
                _make(folder / name)

    def run(self, poll_s: float, once: bool, told: Callable[[Path, int], None] = lambda file, waiting: None) -> None:
        """Until Ctrl-C; once: until all that is there has a verdict. told(file, files that wait) after each."""
        while True:
            ready = self.ready()
            for number, name in enumerate(ready, 1):
                self._inspect(name)
                told(self._folder / name, len(ready) - number)
            if once and not ready and not self._looks:
                return
            time.sleep(poll_s)

    def ready(self) -> list[str]:
        """Names of files that are complete and have no verdict, oldest first; of the oldest that are there."""
        now, found, here = time.monotonic(), [], set()
        for name, state in self._files():
            here.add(name)
            if (done := self._done.get(name)) and _same(done, state):
                continue
            found.append((state.st_mtime_ns, name, state))
        self._done = {name: look for name, look in self._done.items() if name in here}
        looks = {}
        for _, name, state in heapq.nsmallest(BACKLOG, found, key=lambda one: one[:2]):
            before = self._looks.get(name)
            known = before is not None and _same(before, state)
            looks[name] = before if before and known else Look(state.st_size, state.st_mtime_ns, state.st_ino, now)
        self._looks = looks
        return [name for name, look in looks.items() if now - look.since >= self._quiet_s]

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                        continue
                    try:
                        if entry.is_file(follow_symlinks=False):
                            yield entry.name, entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
        except OSError as error:
            raise DataError(f"{self._folder}: cannot be read: {error}") from error

    def _inspect(self, name: str) -> None:
        verdict = self._verdict(name)
        if verdict["verdict"] == "error" and not (self._folder / name).exists():  # taken away while it waited
            self._looks.pop(name, None)
            return
        self._out.write(json.dumps({"file": name, **verdict}, allow_nan=False) + "\n")
        self._out.flush()
        self._done[name] = self._looks.pop(name)
        if self._move:
            self._put(name, self._folder / PLACES[verdict["verdict"]])

    def _verdict(self, name: str) -> dict[str, Any]:
        """Waits for a line that cannot take anything now. Raises LineStopped, ..."""
        said = ""
        while True:
            try:
                return self._station.inspect_below(self._folder, name)
            except LineStopped:
                raise
            except (LineDown, NoSpace, StoreDown) as error:
                if str(error) != said:
                    said = str(error)
                    ERR.print(f"waiting: {error}", markup=False, highlight=False, soft_wrap=True)
                time.sleep(PAUSE_S)

    def _put(self, name: str, place: Path) -> None:
        """Under its name, or one beside it: nothing is written over."""
        file, number = Path(name), 0
        while True:
            to = place / (f"{file.stem}-{number}{file.suffix}" if number else name)
            try:
                os.link(self._folder / name, to, follow_symlinks=False)
                os.unlink(self._folder / name)
                return
            except FileExistsError:
                number += 1
            except FileNotFoundError:  # taken away meanwhile
                return
            except OSError as error:
                raise DataError(f"{self._folder / name}: cannot be moved to {place}: {error}") from error


def _same(look: Look, state: os.stat_result) -> bool:
    return (look.size, look.mtime_ns, look.inode) == (state.st_size, state.st_mtime_ns, state.st_ino)


def _make(place: Path) -> None:
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{place}: cannot be made: {error}") from error
    if place.is_symlink():
        raise ConfigError(f"{place} is a link; files are moved into folders of {place.parent} only.")
