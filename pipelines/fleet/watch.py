"""`everline watch`: what a camera writes into a folder is inspected, file by file."""

import errno
import heapq
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import click

from ...methods.errors import ConfigError, DataError, ImageError, LineDown, LineStopped, NoSpace, StoreDown, StoreError
from ...platform.settings import read_fleet
from ..console import ERR, fleet_option, progress, terminable
from ..data.datasets import SUFFIXES
from ..files import FilePath
from .station import Station, Unreadable, read_below, stations

BACKLOG = 1000  # files that are looked after at a time; older ones come first
PLACES = {"pass": "pass", "reject": "reject", "learning": "learning", "error": "error"}
PAUSE_S = 2.0  # while the line cannot take anything
UNREADABLE_S = 60.0  # so long a file is tried that cannot be read, before that is its verdict
GONE_S = 600.0  # ... and the folder, before the command ends


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
    alone. A file that cannot be read is tried for a minute, FOLDER for ten. Started again, it sends again what still
    lies there: the log answers what it knows ("duplicate": true) and learns nothing twice.
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
    ctime_ns: int = 0  # of one that could not be used: other rights make it another; 0: they do not matter


class Watcher:
    """One folder and its line. What it knows is as large as the backlog, or what lies there with its verdict."""

    def __init__(self, folder: Path, station: Station, out: TextIO, move: bool, quiet_s: float) -> None:
        """Raises DataError where move is asked for and the folders cannot be made."""
        self._folder, self._station, self._out, self._move, self._quiet_s = folder, station, out, move, quiet_s
        self._looks: dict[str, Look] = {}
        self._done: dict[str, Look] = {}
        self._unreadable: dict[str, float] = {}  # since when, in monotonic seconds
        self._gone_since: float | None = None
        if move:
            for name in PLACES.values():
                _make(folder / name)

    def run(self, poll_s: float, once: bool, told: Callable[[Path, int], None] = lambda file, waiting: None) -> None:
        """Until Ctrl-C; once: until all that is there has a verdict. told(file, files that wait) after each."""
        while True:
            ready = self.ready()
            for number, name in enumerate(ready, 1):
                if self._inspect(name):
                    told(self._folder / name, len(ready) - number)
            if once and not ready and not self._looks and self._gone_since is None:
                return
            time.sleep(poll_s)

    def ready(self) -> list[str]:
        """Names of files that are complete and have no verdict, oldest first; of the oldest that are there."""
        now, found, here = time.monotonic(), [], set()
        try:
            files = list(self._files())
        except OSError as error:
            self._gone(error, now)
            return []
        self._gone_since = None
        for name, state in files:
            here.add(name)
            if (done := self._done.get(name)) and _same(done, state):
                continue
            found.append((state.st_mtime_ns, name, state))
        self._done = {name: look for name, look in self._done.items() if name in here}
        self._unreadable = {name: since for name, since in self._unreadable.items() if name in here}
        looks = {}
        for _, name, state in heapq.nsmallest(BACKLOG, found, key=lambda one: one[:2]):
            before = self._looks.get(name)
            known = before is not None and _same(before, state)
            looks[name] = before if before and known else Look(state.st_size, state.st_mtime_ns, state.st_ino, now)
        self._looks = looks
        return [name for name, look in looks.items() if now - look.since >= self._quiet_s]

    def _files(self) -> Iterator[tuple[str, os.stat_result]]:
        """Raises OSError."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.lower().endswith(SUFFIXES):
                    continue
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False)

    def _gone(self, error: OSError, now: float) -> None:
        """A share may come back. Raises DataError where it did not."""
        if self._gone_since is None:
            self._gone_since = now
            _say(f"waiting: {self._folder}: cannot be read: {error}")
        elif now - self._gone_since > GONE_S:
            raise DataError(f"{self._folder}: cannot be read for {GONE_S:.0f} s: {error}") from error

    def _inspect(self, name: str) -> bool:
        """Whether it has its verdict."""
        file, look = self._folder / name, self._looks[name]
        try:
            verdict = self._verdict(name, read_below(self._folder, name))
        except ImageError as error:
            if isinstance(error, Unreadable) and not self._given_up(name, error):
                return False
            verdict = self._station.refused(error, name)
        self._unreadable.pop(name, None)
        now = _state(file)
        if verdict["verdict"] == "error" and now is None:  # taken away while it waited
            self._looks.pop(name, None)
            return False
        try:
            self._out.write(json.dumps({"file": name, **verdict}, allow_nan=False) + "\n")
            self._out.flush()
        except OSError as error:
            where = getattr(self._out, "name", "the verdicts")
            raise StoreError(f"{where}: cannot be written: {error}; {name} gets its verdict again") from error
        if now is None or not _same(look, now):  # another file by now, which has its turn
            return True
        del self._looks[name]
        self._done[name] = replace(look, ctime_ns=now.st_ctime_ns if verdict["verdict"] == "error" else 0)
        if self._move:
            try:
                self._put(name, look, self._folder / PLACES[verdict["verdict"]])
            except OSError as error:
                _say(f"{file}: stays where it is, it cannot be moved: {error}")
        return True

    def _given_up(self, name: str, error: Unreadable) -> bool:
        """Whether a file could not be read for long; rights, or a share, may be put right meanwhile."""
        now = time.monotonic()
        if name not in self._unreadable and _state(self._folder / name) is not None:
            _say(f"waiting: {error}")
        return now - self._unreadable.setdefault(name, now) > UNREADABLE_S

    def _verdict(self, name: str, data: bytes) -> dict[str, Any]:
        """Waits for a line that cannot take anything now. Raises LineStopped, ..."""
        said = ""
        while True:
            try:
                return self._station.inspect(data, name=name)
            except LineStopped:
                raise
            except (LineDown, NoSpace, StoreDown) as error:
                if str(error) != said:
                    said = str(error)
                    _say(f"waiting: {error}")
                time.sleep(PAUSE_S)

    def _put(self, name: str, look: Look, place: Path) -> None:
        """Under its name, or one beside it: nothing is written over, and no file moved but the one that was judged."""
        file, to = self._folder / name, _claimed(place, name)
        try:
            if _renamed(file, to):
                if not _same(look, to.lstat()) and _state(file) is None:  # another took its place in the last moment
                    os.rename(to, file)
                return
            shutil.copy2(file, to, follow_symlinks=False)
        except BaseException as error:
            to.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError):  # taken away meanwhile
                return
            raise
        if (now := _state(file)) is not None and _same(look, now):
            file.unlink()


def _renamed(file: Path, to: Path) -> bool:
    """False where they are not on one file system. Raises OSError."""
    try:
        os.rename(file, to)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _claimed(place: Path, name: str) -> Path:
    """An empty file of a name that nobody has. Raises OSError."""
    file, number = Path(name), 0
    while True:
        to = place / (f"{file.stem}-{number}{file.suffix}" if number else name)
        try:
            os.close(os.open(to, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return to
        except FileExistsError:
            number += 1


def _state(file: Path) -> os.stat_result | None:
    """None: it is not there, or not to be seen."""
    try:
        return file.lstat()
    except OSError:
        return None


def _say(text: str) -> None:
    ERR.print(text, markup=False, highlight=False, soft_wrap=True)


def _same(look: Look, state: os.stat_result) -> bool:
    same = (look.size, look.mtime_ns, look.inode) == (state.st_size, state.st_mtime_ns, state.st_ino)
    return same and look.ctime_ns in (0, state.st_ctime_ns)


def _make(place: Path) -> None:
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{place}: cannot be made: {error}") from error
    if place.is_symlink():
        raise ConfigError(f"{place} is a link; files are moved into folders of {place.parent} only.")
