"""What a line remembers of starts that led nowhere, so that one that keeps dying is stopped: LINE/trouble.json.

The count is written before the log is opened: a process that is killed there has been counted. It is forgotten as soon
as the log has advanced, when the line is closed, and after an hour without a start.
"""

import json
import logging
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ..methods.errors import EverlineError, LineStopped

log = logging.getLogger("everline.trouble")
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


def read_trouble(folder: Path) -> Trouble:
    """Of a line's folder; what is not there, or cannot be read, is no trouble."""
    try:
        with (folder / "trouble.json").open("rb") as file:
            plain = json.loads(file.read(MAX_BYTES))
        return Trouble(int(plain["starts"]), float(plain["at"]), str(plain["error"]))
    except FileNotFoundError:
        return Trouble()
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: what is known of its trouble cannot be read: %s", folder, error)
        return Trouble()


def begin(folder: Path, line: str) -> Trouble:
    """Counts a start; returns what was before. Raises LineStopped where there were too many."""
    before = read_trouble(folder)
    if before.at < time.time() - WINDOW_S:
        before = Trouble()
    error = before.error or SILENT
    if before.stopped:
        text = f"line {line} was stopped after {before.starts} starts: {error}"
        raise LineStopped(f"{text.rstrip('.')}; mend it, then `everline up`.")
    _write(folder, Trouble(before.starts + 1, time.time()))
    return before


def failed(folder: Path, error: BaseException) -> None:
    """How the start that was counted last has ended."""
    text = str(error) if isinstance(error, EverlineError) else f"{type(error).__name__}: {error}"
    now = read_trouble(folder)
    _write(folder, Trouble(max(1, now.starts), time.time(), text[:4000]))


def forgive(folder: Path, before: Trouble) -> None:
    """The start that was counted last was not the line's fault."""
    if before.starts:
        _write(folder, before)
    else:
        clear(folder)


def clear(folder: Path) -> None:
    """All is well, or somebody has mended it."""
    try:
        (folder / "trouble.json").unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: its trouble could not be forgotten: %s", folder, error)


def _write(folder: Path, trouble: Trouble) -> None:
    """Whole or not at all; a full disk is no reason not to start."""
    half = folder / f".trouble-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with half.open("w", encoding="utf-8") as file:
                json.dump(asdict(trouble), file)
                file.flush()
                os.fsync(file.fileno())
            half.replace(folder / "trouble.json")
        finally:
            half.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s: its trouble could not be noted: %s", folder, error)
