"""What a line remembers of starts that led nowhere, so that one that keeps dying is stopped: LINE/trouble.json.

The count is written before the log is opened: a process that is killed there has been counted. It is forgotten as soon
as the log has advanced, when the line is closed, and after an hour without a start.
"""

import json
import logging
import secrets
import time
from dataclasses import asdict, dataclass

from ..methods.errors import EverlineError, LineStopped
from .volume import Place, volume_of

log = logging.getLogger("everline.trouble")
FILE = "trouble.json"
STARTS = 5  # without progress; then a line is stopped
WINDOW_S = 3600.0  # without a start; then earlier ones are forgotten
MAX_BYTES = 2**16
SILENT = "its process ended without a word: killed, or out of memory"


@dataclass(frozen=True)
class Trouble:
    """starts: without progress. at: seconds since 1970 of the last. error: how it ended; empty while nobody knows."""

    starts: int = 0
    at: float = 0.0
    error: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the line is not to be started again by itself."""
        return self.starts >= STARTS


def read_trouble(folder: Place) -> Trouble:
    """Of a line's folder; what is not there, or cannot be read, is no trouble."""
    try:
        data = volume_of(folder).read(FILE)
        plain = json.loads(data[:MAX_BYTES])
        return Trouble(int(plain["starts"]), float(plain["at"]), str(plain["error"]))
    except FileNotFoundError:
        return Trouble()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: what is known of its trouble cannot be read: %s", folder, error)
        return Trouble()


def begin(folder: Place, line: str) -> Trouble:
    """Counts a start; returns what was before. Raises LineStopped where there were too many."""
    before = read_trouble(folder)
    if abs(time.time() - before.at) > WINDOW_S:  # also where the clock was ahead then
        before = Trouble()
    error = before.error or SILENT
    if before.stopped:
        text = f"line {line} was stopped after {before.starts} starts: {error}"
        raise LineStopped(f"{text.rstrip('.')}; mend it, then `everline up`.")
    _write(folder, Trouble(before.starts + 1, time.time()))
    return before


def failed(folder: Place, error: BaseException) -> None:
    """How the start that was counted last has ended."""
    text = str(error) if isinstance(error, EverlineError) else f"{type(error).__name__}: {error}"
    now = read_trouble(folder)
    _write(folder, Trouble(max(1, now.starts), time.time(), text[:4000]))


def forgive(folder: Place, before: Trouble) -> None:
    """The start that was counted last was not the line's fault."""
    if before.starts:
        _write(folder, before)
    else:
        clear(folder)


def clear(folder: Place) -> None:
    """All is well, or somebody has mended it."""
    try:
        volume_of(folder).remove(FILE)
    except OSError as error:
        log.warning("%s: its trouble could not be forgotten: %s", folder, error)


def _write(folder: Place, trouble: Trouble) -> None:
    """Whole or not at all; a full disk is no reason not to start."""
    try:
        volume_of(folder).replace(FILE, json.dumps(asdict(trouble)).encode(), f"trouble-{secrets.token_hex(8)}")
    except OSError as error:
        log.warning("%s: its trouble could not be noted: %s", folder, error)
