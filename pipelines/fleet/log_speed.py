"""`everline log speed`: how fast a log is, as ratios to a plain write and to a full scan, and the memory it takes."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import psutil

from ...methods.errors import StoreError
from ...platform.log import LogReader, LogWriter
from ...platform.record import Record
from ...platform.segment import encode
from ...platform.volume import write_all
from ..console import json_option, progress, show_table, write_json
from ..files import FilePath

MARKER = b"8 random"
SEED = 0
REPEATS = 20  # of the random reading; its figures are medians


@dataclass(frozen=True)
class Step:
    """seconds of the whole step; ratio to those of `beside`. Memory of the process before and after: rss_mib is all of
    it, own_mib what is left without files that are mapped, which the system takes back when it needs room.
    """

    what: str
    seconds: float
    rss_mib: tuple[float, float]
    own_mib: tuple[float, float]
    ratio: float | None = None
    beside: str | None = None


@click.command("speed")
@click.option("--records", type=click.IntRange(64), default=100_000, show_default=True)
@click.option("--bytes", "size", type=click.IntRange(8, 2**24), default=64, show_default=True, help="Of an image.")
@click.option(
    "--batch", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Records of one append, one sync."
)
@click.option("--reads", type=click.IntRange(1, 10_000), default=32, show_default=True, help="Random images at once.")
@click.option("--at", type=FilePath(file_okay=False), default=Path(), help="A folder on the disk in question.")
@json_option
def speed(records: int, size: int, batch: int, reads: int, at: Path, json_file: Path | None) -> None:
    """Time a log made for this, beside a plain file that gets the same bytes with as many syncs."""
    try:
        with TemporaryDirectory(prefix="everline-speed-", dir=at) as folder, progress() as shown:
            bar = shown.add_task("records", total=2 * records, images=False)
            steps = timed(Path(folder), records, size, batch, reads, lambda count: shown.advance(bar, count))
    except OSError as error:
        raise StoreError(f"{at}: {error}") from error
    write_json([asdict(step) for step in steps], json_file)
    if str(json_file) != "-":
        title = f"a log of {records} records, images of {size} bytes, {batch} records an append"
        columns = ["", "seconds", "RSS, MiB", "of it own, MiB", "ratio", "to"]
        rows = [(s.what, s.seconds, _change(s.rss_mib), _change(s.own_mib), s.ratio, s.beside) for s in steps]
        show_table(title, columns, rows)


def timed(
    folder: Path, records: int, size: int, batch: int, reads: int, told: Callable[[int], None] = lambda count: None
) -> list[Step]:
    """Writes and reads a log in `folder`. Raises StoreError, also where what is read is not what was written."""
    rng = np.random.default_rng(SEED)
    body = rng.bytes(size)

    def batches() -> Iterator[list[Record]]:
        for start in range(0, records, batch):
            numbers = range(start, min(records, start + batch))
            yield [made(n, body) for n in numbers]
            told(len(numbers))

    raw = _step("a plain file, written and synced", lambda: _plain_file(folder / "plain", batches()))
    (folder / "plain").unlink()
    steps = [raw, _step("appended to the log", lambda: _log(folder / "log", batches()), raw)]
    steps.append(_step("opened to write", lambda: LogWriter.open(folder / "log").close()))
    reader: list[LogReader] = []
    steps.append(_step("opened to read", lambda: reader.append(LogReader(folder / "log"))))
    wanted = [rng.choice(records, reads, replace=False).tolist() for _ in range(REPEATS)]
    few = _reads(reader[0], wanted, body)
    scan = _step("all images read, in order", lambda: _scan(reader[0], records))
    share = Step(**{**asdict(few), "ratio": few.seconds / scan.seconds, "beside": scan.what})
    steps += [share, scan, _step("ids of all images", lambda: reader[0].ids())]
    return steps


def made(number: int, body: bytes) -> Record:
    """A record whose image nobody else has: its number, then `body`'s bytes."""
    image = number.to_bytes(8, "little") + body[8:]
    return Record("image", f"camera-{number}", number, image, score=0.5, verdict="pass", version=1, admitted=True)


def _plain_file(path: Path, batches: Iterator[list[Record]]) -> float:
    """Seconds of writing alone: the log's bytes, made beforehand."""
    seconds = 0.0
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for batch in batches:
            data = encode(batch, MARKER)
            start = time.perf_counter()
            write_all(file, data)
            os.fdatasync(file)
            seconds += time.perf_counter() - start
    finally:
        os.close(file)
    return seconds


def _log(folder: Path, batches: Iterator[list[Record]]) -> float:
    seconds = 0.0
    with LogWriter.open(folder) as writer:
        for batch in batches:
            start = time.perf_counter()
            writer.append(batch)
            seconds += time.perf_counter() - start
        start = time.perf_counter()
    return seconds + time.perf_counter() - start  # what `close` seals


def _reads(reader: LogReader, wanted: list[list[int]], body: bytes) -> Step:
    before, times = _mib(), []
    for numbers in wanted:
        start = time.perf_counter()
        found = reader.get(numbers)
        times.append(time.perf_counter() - start)
        if [r.image for r in found] != [made(n, body).image for n in numbers]:
            raise StoreError("the log gave other images than it was given; its times say nothing.")
    rss, own = zip(before, _mib(), strict=True)
    return Step(f"{len(wanted[0])} images read at random", float(np.median(times)), rss, own)


def _scan(reader: LogReader, records: int) -> None:
    if sum(record.image is not None for record in reader.records()) != records:
        raise StoreError("the log gave other images than it was given; its times say nothing.")


def _step(what: str, work: Callable[[], Any], beside: Step | None = None) -> Step:
    before, start = _mib(), time.perf_counter()
    told = work()
    seconds = told if isinstance(told, float) else time.perf_counter() - start
    rss, own = zip(before, _mib(), strict=True)
    if beside is None:
        return Step(what, seconds, rss, own)
    return Step(what, seconds, rss, own, seconds / beside.seconds, beside.what)


def _change(mib: tuple[float, float]) -> str:
    return f"{mib[0]:.0f} to {mib[1]:.0f}"


def _mib() -> tuple[float, float]:
    """Resident, and of it what is no mapped file."""
    found = psutil.Process().memory_info()
    return found.rss / 2**20, (found.rss - getattr(found, "shared", 0)) / 2**20
