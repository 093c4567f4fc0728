"""A log on S3 that goes on while S3 is away: what is appended meanwhile lies on the local disk, within a limit.

Acknowledged then means: in a synced file of this machine. A thread sends the file's records on as soon as S3 takes
them, in order and under the numbers that they have. Whoever opens the log next on this machine does the same with
what is left of a file, so nothing is lost as long as the disk is there.
"""

import hashlib
import logging
import os
import threading
import time
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..methods.errors import Corrupt, NoSpace, StoreDown, StoreError
from . import segment
from .ages import Ages
from .ids import which
from .log import LogReader, LogWriter, locked, store_error
from .record import Record
from .retention import Keep
from .volume import Place, volume_of

log = logging.getLogger("everline.spool")
SLOW_S = 2.0  # an append to S3 that takes longer: the next ones go to the disk first
PAUSE_S, PAUSE_MAX_S = 1.0, 30.0  # between two tries to send on
BATCH = 8 * 2**20  # bytes that are sent on in one append
CLOSE_S = 10.0  # that `close` lets S3 have
PREFIX = "spool-"


def spool_folder(root: Path, store: Place, line: str) -> Path:
    """Where a line's records wait: of its own, also where two fleets share the root."""
    return root / f"{line}-{hashlib.sha256(str(store).encode()).hexdigest()[:8]}"


def open_log(folder: Place, spool: Path | None, limit: int) -> "LogWriter | SpooledWriter":
    """Takes a log over, as `LogWriter.open` does; on S3 with `spool`, a local folder of up to `limit` bytes.

    What waits there is brought to the log first. Raises as `LogWriter.open`; SecondWriter also where another process
    of this machine has the spool.
    """
    if spool is None or isinstance(folder, Path) or (not limit and not spool.exists()):
        return LogWriter.open(folder)
    lock = locked(spool)
    writer = None
    try:
        writer = LogWriter.open(folder)
        for name in sorted(volume_of(spool).names(PREFIX)):
            _bring(writer, spool / name)
    except BaseException:
        if writer:
            writer.release()
        os.close(lock)
        raise
    return SpooledWriter(writer, spool, lock, limit)


class SpooledWriter:
    """A log's one writer, of one thread, as `LogWriter` is. While it spools, the log belongs to the sending thread."""

    def __init__(self, writer: LogWriter, spool: Path, lock: int, limit: int) -> None:
        """`open_log` is the way in."""
        self.folder, self._writer, self._spool, self._lock, self._limit = writer.folder, writer, spool, lock, limit
        self._file: Spool | None = None
        self._hold = threading.Lock()  # for a moment: round `_file` and what it counts
        self._sending = threading.Lock()  # round the log, while a thread sends
        self._wake = threading.Event()
        self._ended = False
        self._lost: StoreError | None = None  # why nothing can be sent on any more
        self._sender: threading.Thread | None = None

    @property
    def epoch(self) -> int:
        """As of `LogWriter`."""
        return self._writer.epoch

    @property
    def moved(self) -> bool:
        """As of `LogWriter`."""
        return self._writer.moved

    @property
    def failed(self) -> str:
        """As of `LogWriter`; also why nothing more can be sent on."""
        return self._writer.failed or (str(self._lost) if self._lost and not self.moved else "")

    @property
    def images_from(self) -> int:
        """As of `LogWriter`."""
        return self._writer.images_from

    @property
    def next_seq(self) -> int:
        """The number of the record that comes next."""
        with self._hold:
            return self._file.next_seq if self._file else self._writer.next_seq

    @property
    def spooled(self) -> int:
        """Records that are on the local disk only."""
        with self._hold:
            return self._file.unsent if self._file else 0

    def append(self, records: Sequence[Record]) -> list[Record]:
        """As `LogWriter.append`; StoreDown only where the local disk holds as much as it may, too."""
        with self._hold:
            if self._file:
                return self._keep(self._file, records)
        began = time.monotonic()
        try:
            numbered = self._writer.append(records)
        except StoreDown:
            if not self._limit:
                raise
            with self._hold:
                numbered = self._keep(self._start(), records)
            log.warning("%s: S3 does not answer; what comes until it does is kept in %s", self.folder, self._spool)
            return numbered
        if time.monotonic() - began > SLOW_S and self._limit:
            with self._hold, suppress(StoreError):  # this one is in the log
                self._start()
        return numbered

    def get(self, seqs: Sequence[int]) -> list[Record]:
        """As `LogWriter.get`; what is on the local disk comes from there."""
        with self._hold:
            here = {seq: self._file.record(seq) for seq in seqs if seq in self._file.seqs} if self._file else {}
        rest = [seq for seq in seqs if seq not in here]
        if rest:
            with self._sending:
                here |= zip(rest, self._writer.get(rest), strict=True)
        return [here[seq] for seq in seqs]

    def checksum(self, seq: int) -> int | None:
        """As `LogWriter.checksum`."""
        with self._hold:
            if self._file and seq in self._file.seqs:
                return zlib.crc32(self._file.record(seq).image or b"")
        with self._sending:
            return self._writer.checksum(seq)

    def trim(self, keep: Keep, needed: int, now_ns: int, ages: Ages | None = None) -> bool:
        """As `LogWriter.trim`; not while it spools."""
        return self._at_rest() and self._writer.trim(keep, needed, now_ns, ages)

    def merge(self) -> bool:
        """As `LogWriter.merge`; not while it spools."""
        return self._at_rest() and self._writer.merge()

    def close(self) -> None:
        """Sends on what S3 takes within a few seconds; the rest waits for whoever opens the log here next."""
        give_up = time.monotonic() + CLOSE_S
        self._wake.set()
        while not self._at_rest() and not self._lost and time.monotonic() < give_up:
            time.sleep(0.02)
        self._end()
        if not self._at_rest():
            log.warning("%s: %d records wait in %s", self.folder, self.spooled, self._spool)
            return self.release()
        try:
            self._writer.close()
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of the files, as a process does that dies; a request that is on its way has its own time limit."""
        self._end()
        self._writer.release()
        with self._hold:
            if self._lock >= 0:
                os.close(self._lock)
                if self._file:
                    self._file.close()
            self._lock = -1

    def _at_rest(self) -> bool:
        with self._hold:
            return self._file is None

    def _end(self) -> None:
        self._ended = True
        self._wake.set()
        if self._sender:
            self._sender.join()

    def _start(self) -> "Spool":
        """From here on it spools, until all has been sent on. Raises NoSpace, StoreError."""
        try:
            self._file = Spool(self._spool, self._writer.next_seq)
        except OSError as error:
            raise store_error(error, self._spool) from error
        self._wake.clear()
        self._sender = threading.Thread(target=self._send, args=(self._file,), name="everline-spool", daemon=True)
        self._sender.start()
        return self._file

    def _keep(self, file: "Spool", records: Sequence[Record]) -> list[Record]:
        if self._lost:
            raise type(self._lost)(str(self._lost))
        numbered = [replace(record, seq=file.next_seq + n) for n, record in enumerate(records)]
        try:
            if numbered and not file.append(numbered, self._limit):
                raise StoreDown(
                    f"{self.folder}: S3 does not answer (in time), and the {self._limit / 2**20:g} MiB that may wait "
                    f"in {self._spool} are full; what was not acknowledged can be sent again."
                )
        except OSError as error:
            raise store_error(error, self._spool) from error
        return numbered

    def _send(self, file: "Spool") -> None:
        """The sending thread: until there is nothing left, or nothing can be sent any more."""
        pause = 0.0
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._ended:
                return
            try:
                if not self._sent_some(file):
                    return
                pause = 0.0
            except (StoreDown, NoSpace):
                pause = min(PAUSE_MAX_S, max(PAUSE_S, 2 * pause))
            except StoreError as error:
                self._lost = error
                log.error("%s: %d records stay in %s: %s", self.folder, file.unsent, self._spool, error)
                return

    def _sent_some(self, file: "Spool") -> bool:
        """One append to the log; False where there was nothing left. Raises StoreError."""
        try:
            with self._hold:
                if not file.unsent:
                    file.remove()
                    self._file = None
                    return False
                batch = file.batch()
        except OSError as error:
            raise StoreError(f"{self._spool}: {error}") from error
        with self._sending:
            there = self._writer.append(batch)
        if there != batch:
            raise Corrupt(f"{self.folder}: record {batch[0].seq} became {there[0].seq}.")
        with self._hold:
            file.sent += len(there)
        return True


class Spool:
    """One file of frames (platform/segment.py) on the local disk, of records that follow one another."""

    def __init__(self, folder: Path, first: int) -> None:
        """Raises OSError."""
        self.path = folder / f"{PREFIX}{first:012d}.log"
        self._growing, self._marker = segment.create(self.path)
        self._firsts: list[int] = []  # of each frame: its first record,
        self._ends = [segment.START]  # and where it ends
        self.first = self.next_seq = first
        self.sent = 0
        self._broken: OSError | None = None

    @property
    def unsent(self) -> int:
        """Records."""
        return self.next_seq - self.first - self.sent

    @property
    def seqs(self) -> range:
        """The records that it holds, also those that were sent on."""
        return range(self.first, self.next_seq)

    def append(self, records: Sequence[Record], limit: int) -> bool:
        """Durable when it returns; False where they would not fit into `limit` bytes. Raises OSError, ConfigError."""
        if self._broken:
            raise self._broken
        frame = segment.encode(records, self._marker)
        before = self.next_seq, len(self._firsts)
        if self._ends[-1] + len(frame) > limit:
            return False
        try:
            self._growing.append(frame)
            self._firsts.append(self.next_seq)
            self._ends.append(self._ends[-1] + len(frame))
            self.next_seq += len(records)
        except BaseException:
            self.next_seq, frames = before
            del self._firsts[frames:], self._ends[frames + 1 :]
            self._cut()
            raise
        return True

    def record(self, seq: int) -> Record:
        """One of `seqs`. Raises Corrupt, OSError."""
        at = bisect_right(self._firsts, seq) - 1
        return self._frames(at, at + 1)[seq - self._firsts[at]]

    def batch(self) -> list[Record]:
        """What is to be sent next: a few frames. Raises Corrupt, OSError."""
        start = bisect_right(self._firsts, self.first + self.sent) - 1
        stop = max(start + 1, bisect_right(self._ends, self._ends[start] + BATCH) - 1)
        return [r for r in self._frames(start, stop) if r.seq >= self.first + self.sent]

    def close(self) -> None:
        """The file stays."""
        self._growing.close()

    def remove(self) -> None:
        """All of it is elsewhere by now."""
        self._growing.close()
        self.path.unlink(missing_ok=True)

    def _frames(self, start: int, stop: int) -> list[Record]:
        with self.path.open("rb") as file:
            file.seek(self._ends[start])
            return segment.decode(file.read(self._ends[stop] - self._ends[start]), self._marker)

    def _cut(self) -> None:
        try:
            self._growing.cut(self._ends[-1])
        except OSError as error:  # no way to tell what is on the disk: whoever opens it next will see
            self._broken = error


def _bring(writer: LogWriter, path: Path) -> None:
    """Sees to it that all records of a file are in the log, then removes it.

    Raises Corrupt, StoreDown, NoSpace, SecondWriter, StoreError; then it stays.
    """
    try:
        records = segment.read(path).records if path.stat().st_size > segment.START else []
        missing = _missing(writer, records) if records else []
        for part in _parts(missing):
            writer.append(part)
        path.unlink()
    except OSError as error:
        raise store_error(error, path.parent) from error
    if missing:
        log.warning("%s: %d records that waited in %s are in the log now", writer.folder, len(missing), path.parent)


def _missing(writer: LogWriter, records: list[Record]) -> list[Record]:
    """Those that the log does not have: the end of them, as a rule.

    Where somebody wrote the log on meanwhile without them (on another machine), images that it has not seen follow
    now, and what else there was is told as `late`: it decides nothing any more.
    """
    reader = LogReader(writer.folder)
    there = {record.seq: record.head() for record in reader.records(records[0].seq - 1, images=False)}
    here = [record for record in records if record.seq in there]
    if records[0].seq <= writer.next_seq and all(there[record.seq] == record.head() for record in here):
        return records[len(here) :]
    known = reader.ids()
    told = {head["id"] for head in there.values() if head["kind"] == "late"}
    images: list[Record] = []
    crcs: list[int] = []  # of `images`; in `known` they have numbers below 0

    def checksum(seq: int) -> int | None:
        return crcs[~seq] if seq < 0 else writer.checksum(seq)

    for record in records:
        if record.kind == "image":
            id, same = which(record.id, record.image or b"", known, checksum)
            if same is None:
                known[id] = ~len(crcs)
                crcs.append(zlib.crc32(record.image or b""))
                sent_as = {} if id == record.id else {"sent_as": record.id}
                images.append(replace(record, id=id, data={**record.data, **sent_as, "late": record.seq}))
    rest = [
        Record("late", id, record.time_ns, version=record.version, data={"kind": record.kind, **record.data})
        for record in records
        if record.kind != "image" and (id := f"late-{record.seq}-{record.time_ns}") not in told
    ]
    return images + rest


def _parts(records: list[Record]) -> list[list[Record]]:
    """Appends of a bounded size."""
    parts: list[list[Record]] = [[]]
    room = BATCH
    for record in records:
        size = len(record.image or b"")
        if parts[-1] and size > room:
            parts.append([])
            room = BATCH
        parts[-1].append(record)
        room -= size
    return parts if records else []
