"""A line's log: one writer, any number of readers. The format: docs/store-format.md."""

import errno
import fcntl
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Self

from ..methods.errors import ConfigError, Corrupt, NoSpace, SecondWriter, StoreError
from . import segment, shard
from .manifest import Manifest, commit, fenced, latest, sync_folder, write_synced
from .record import Record
from .shard import ShardFile

log = logging.getLogger("everline.log")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SEAL_RECORDS, SEAL_BYTES = 512, 20 * 2**20
FULL = (errno.ENOSPC, errno.EDQUOT)


def line_folder(store: Path, line: str) -> Path:
    """Where a line's log lies. Raises ConfigError for a name that could lead elsewhere."""
    if not NAME.fullmatch(line):
        raise ConfigError(f"line {line!r}: a name has 1 to 64 letters, digits, '-', '_', '.', none of them first.")
    return store / line


class LogWriter:
    """The one writer. Raises SecondWriter as soon as another process has taken over."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder, self._lock = folder, lock
        self._file = -1
        self._length = 0  # bytes of the open segment that are acknowledged
        self._open: list[Record] = []  # its records, until they are sealed
        self._open_bytes = 0
        self._failed = ""
        found = latest(folder)
        self._manifest = self._take_over(found)
        self.next_seq = self._manifest.sealed

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Takes the log over (made if it is not there): torn ends are cut, what was checked is sealed.

        Raises SecondWriter where another process of this machine has it, Corrupt, NoSpace.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _translated(error, folder) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(folder, lock)
        except BlockingIOError:
            os.close(lock)
            raise SecondWriter(f"{folder}: another process writes this log; stop it first.") from None
        except OSError as error:
            os.close(lock)
            raise _translated(error, folder) from error
        except BaseException:
            os.close(lock)
            raise

    @property
    def epoch(self) -> int:
        """How often the log has been taken over."""
        return self._manifest.epoch

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Writes all of them, in order, and syncs once; durable when it returns, with their numbers.

        Raises NoSpace (nothing was written; it works again when there is room), SecondWriter, StoreError.
        """
        if self._failed or self._file < 0:
            raise StoreError(f"{self.folder}: the log is closed{self._failed}; open it again.")
        numbered = [replace(record, seq=self.next_seq + n) for n, record in enumerate(records)]
        if not numbered:
            return []
        frame = segment.encode(numbered)
        self._check_fence()
        try:
            _write_all(self._file, frame)
            os.fdatasync(self._file)
        except OSError as error:
            self._cut_back()
            raise _translated(error, self.folder) from error
        self._check_fence()  # what a fenced writer wrote is not acknowledged
        self._length += len(frame)
        self.next_seq += len(numbered)
        self._open += numbered
        self._open_bytes += len(frame)
        if len(self._open) >= SEAL_RECORDS or self._open_bytes >= SEAL_BYTES:
            try:
                self._seal()
            except OSError as error:  # the records are safe where they are; the next append tries again
                log.warning("%s: could not seal a shard: %s", self.folder, error)
        return numbered

    def close(self) -> None:
        """Seals what is open and gives the log up. What is acknowledged is durable with or without it."""
        if self._file < 0:
            return
        try:
            if self._open and not self._failed:
                self._seal()
        except (OSError, StoreError) as error:
            log.warning("%s: could not seal at the end: %s", self.folder, error)
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of the files at once, as a process does that dies."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._lock)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_over(self, found: Manifest) -> Manifest:
        """Fences off whoever wrote before, then seals what they left."""
        epoch = found.epoch + 1
        own = _segment_name(found.sealed, epoch)
        self._file, self._length = self._start_segment(own), len(segment.MAGIC)
        claimed = found.next(epoch=epoch, segments=(*found.segments, own))
        commit(self.folder, claimed)
        sealed = claimed
        for name in found.segments:
            records = [r for r in segment.read(self.folder / name).records if r.seq >= sealed.sealed]
            if records:
                sealed = self._with_shard(sealed, records)
        if found.segments:
            sealed = replace(sealed, number=claimed.number + 1, segments=(own,))
            commit(self.folder, sealed)
        self._remove(_strangers(self.folder, sealed))
        return sealed

    def _seal(self) -> None:
        """Turns the open segment into a shard and starts the next. Raises SecondWriter, OSError."""
        sealed = self._with_shard(self._manifest, self._open)
        name = _segment_name(self.next_seq, self.epoch)
        file = self._start_segment(name)
        following = self._manifest.next(shards=sealed.shards, segments=(name,))
        try:
            commit(self.folder, following)
        except BaseException:
            os.close(file)
            raise
        os.close(self._file)
        old, self._manifest = self._manifest.segments, following
        self._file, self._length = file, len(segment.MAGIC)
        self._open, self._open_bytes = [], 0
        self._remove(old)

    def _with_shard(self, manifest: Manifest, records: Sequence[Record]) -> Manifest:
        if records[0].seq != manifest.sealed:
            raise Corrupt(f"{self.folder}: record {records[0].seq} follows {manifest.sealed - 1}.")
        name = f"shard-{records[0].seq:012d}-{manifest.epoch:08d}.arrow"
        return replace(manifest, shards=(*manifest.shards, shard.write(self.folder, name, records)))

    def _start_segment(self, name: str) -> int:
        path = self.folder / name
        write_synced(path, segment.MAGIC)
        sync_folder(self.folder)
        return os.open(path, os.O_WRONLY | os.O_APPEND)

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _check_fence(self) -> None:
        if fenced(self.folder, self._manifest):
            self._failed = " since another process has taken it over"
            raise SecondWriter(f"{self.folder}: another process has taken over this log.")

    def _cut_back(self) -> None:
        """After a failed write: the segment ends where it was acknowledged last."""
        try:
            os.ftruncate(self._file, self._length)
            os.fsync(self._file)
        except OSError as error:  # no way to tell what is on the disk: opening again will
            self._failed = f" after {error}"


class LogReader:
    """Reads while somebody writes: sealed shards and checked records only. Takes no lock."""

    def __init__(self, folder: Path) -> None:
        """A folder without a log reads as an empty one. Raises Corrupt."""
        self.folder = folder
        self.refresh()

    def refresh(self) -> None:
        """Sees what was acknowledged since."""
        while True:
            manifest = latest(self.folder)
            try:
                self.shards = [ShardFile(self.folder, s) for s in manifest.shards]
                ends = [segment.read(self.folder / name) for name in manifest.segments]
                break
            except FileNotFoundError as error:
                if latest(self.folder).number == manifest.number:  # not sealed meanwhile: it is really gone
                    raise Corrupt(f"{self.folder}: {error.filename} is missing.") from error
        self._sealed = manifest.sealed
        self._tail = [record for end in ends for record in end.records if record.seq >= self._sealed]
        self.torn = [f"{end.torn} bytes of an append that did not end" for end in ends if end.torn]
        for seq, record in enumerate(self._tail, self._sealed):
            if record.seq != seq:
                raise Corrupt(f"{self.folder}: record {record.seq} stands where {seq} should.")

    def __len__(self) -> int:
        return self._sealed + len(self._tail)

    def records(self, after: int = -1, images: bool = True) -> Iterator[Record]:
        """Records behind number `after`, in order; without `images` their bytes are not even read."""
        for file in self.shards:
            if file.shard.first + file.shard.count > after + 1:
                yield from file.records(after + 1, images)
        for record in self._tail:
            if record.seq > after:
                yield record if images else replace(record, image=None)

    def get(self, seqs: Sequence[int]) -> list[Record]:
        """Any records by number, in the order asked for. Raises ConfigError for a number that is not there."""
        return [self._one(seq) for seq in seqs]

    def ids(self) -> dict[str, int]:
        """Image id -> number of its record; only two columns are read."""
        found: dict[str, int] = {}
        for file in self.shards:
            for columns in file.columns("seq", "kind", "id"):
                rows = zip(columns["seq"], columns["kind"], columns["id"], strict=True)
                found |= {str(id): int(str(seq)) for seq, kind, id in rows if kind == "image"}
        return found | {record.id: record.seq for record in self._tail if record.kind == "image"}

    def _one(self, seq: int) -> Record:
        if not 0 <= seq < len(self):
            raise ConfigError(f"{self.folder}: no record {seq}; there are {len(self)}.")
        if seq >= self._sealed:
            return self._tail[seq - self._sealed]
        low, high = 0, len(self.shards)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.shards[middle].shard.first <= seq else (low, middle)
        return self.shards[low].record(seq)


@dataclass(frozen=True)
class Verified:
    """What `verify` found. `inspected`: image records; `unique`: different ids among them."""

    records: int
    inspected: int
    unique: int
    ok: bool
    problems: list[str] = field(default_factory=list)


def verify(folder: Path) -> Verified:
    """Checks every checksum, that the numbers are 0, 1, 2, ..., and that no image is there twice."""
    problems: list[str] = []
    records = inspected = 0
    ids: set[str] = set()
    try:
        reader = LogReader(folder)
        problems += reader.torn
        for file in reader.shards:
            _note(problems, partial(file.check))
        for expected, record in enumerate(reader.records(images=False)):
            if record.seq != expected:
                problems.append(f"record {record.seq} stands where {expected} should")
            records += 1
            inspected += record.kind == "image"
            if record.kind == "image":
                ids.add(record.id)
    except (Corrupt, ValueError, TypeError) as error:
        problems.append(str(error))
    if len(ids) < inspected:
        problems.append(f"{inspected - len(ids)} images are in it more than once")
    return Verified(records, inspected, len(ids), not problems, problems)


def _note(problems: list[str], check: partial[None]) -> None:
    try:
        check()
    except Corrupt as error:
        problems.append(str(error))


def _strangers(folder: Path, manifest: Manifest) -> list[str]:
    """Files of a log that its manifest does not name: left by a writer that died, or sealed already."""
    known = {*manifest.segments, *(s.file for s in manifest.shards)}
    ours = ("segment-", "shard-", ".shard-", ".manifest-")
    return [name for name in os.listdir(folder) if name.startswith(ours) and name not in known]


def _segment_name(first: int, epoch: int) -> str:
    return f"segment-{first:012d}-{epoch:08d}.log"


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _translated(error: OSError, folder: Path) -> StoreError:
    if error.errno in FULL:
        return NoSpace(f"{folder}: the disk is full; this record was not accepted. Make room and send it again.")
    return StoreError(f"{folder}: {error.strerror or error}")
