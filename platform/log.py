"""A line's log: one writer, any number of readers. The format: docs/store-format.md."""

import errno
import fcntl
import logging
import os
import re
import time
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from ..methods.errors import ConfigError, Corrupt, NoSpace, SecondWriter, StoreDown, StoreError
from . import segment, shard
from .ages import CLOCK, Ages
from .ids import Ids
from .manifest import (
    KEPT,
    Manifest,
    commit,
    fenced,
    file_name,
    first_of,
    holding_records,
    latest,
    manifest_name,
    numbers,
    remove,
    strangers,
)
from .record import Record
from .retention import Keep, may_go, to_merge
from .shard import ShardFile, open_shards
from .volume import Away, Growing, Place, make_durable, volume_of

log = logging.getLogger("everline.log")
T = TypeVar("T")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SEAL_RECORDS, SEAL_BYTES = 512, 20 * 2**20
SEAL_RETRY = 64  # records until sealing is tried again after it failed
FULL = (errno.ENOSPC, errno.EDQUOT)


def line_folder(store: Place, line: str) -> Place:
    """Where a line's log lies. Raises ConfigError for a name that could lead elsewhere."""
    if not NAME.fullmatch(line):
        raise ConfigError(
            f"line {line!r}: a name has 1 to 64 of A-Z, a-z, 0-9, '-', '_', '.', a letter or digit first."
        )
    return store / line


def has_log(folder: Place) -> bool:
    """Whether a log was ever opened there, be its manifests there or not. Raises StoreError."""
    try:
        return bool(numbers(folder) or holding_records(folder))
    except OSError as error:
        raise store_error(error, folder) from error


def locked(folder: Path) -> int:
    """Makes a folder and holds its lock until the file descriptor that is returned is closed.

    Raises SecondWriter where another process of this machine has it, NoSpace, StoreError.
    """
    lock = -1
    try:
        make_durable(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return lock
    except BaseException as error:
        if lock >= 0:
            os.close(lock)
        if isinstance(error, BlockingIOError):
            raise SecondWriter(f"{folder}: another process writes here; stop it first.") from None
        if isinstance(error, OSError):
            raise store_error(error, folder) from error
        raise


class LogWriter:
    """The one writer, of one thread. Raises SecondWriter as soon as another process has taken over."""

    def __init__(self, folder: Place, lock: int) -> None:
        """`open` is the way in: it holds the lock (-1 where there is none)."""
        self.folder, self._lock, self._volume = folder, lock, volume_of(folder)
        self._segment: Growing | None = None
        self._marker = b""
        self._length = segment.START  # bytes of the open segment that are acknowledged
        self._open: list[Record] = []  # its records, until they are sealed
        self._open_bytes = 0
        self._seal_at = SEAL_RECORDS
        self._failed = ""  # why nothing can be appended any more
        self._moved = False  # ... since another process has taken it over
        self._gone: list[tuple[int, str]] = []  # shards that were replaced, by which manifest
        self._doubtful = False  # an append was given up, and may yet come to be: the segment is left for another
        self._due: Manifest | None = None  # its commit was given up; nothing is acknowledged before it is decided
        try:
            self._manifest = self._took_over()
        except BaseException:
            self._close_file()
            raise
        self.next_seq = self._manifest.sealed

    @classmethod
    def open(cls, folder: Place) -> Self:
        """Takes the log over (made if it is not there): torn ends are cut, what was checked is sealed.

        Raises SecondWriter where another process of this machine has it, Corrupt, NoSpace, StoreError. On S3 there
        is no lock: whoever opens last has it.
        """
        lock = locked(folder) if isinstance(folder, Path) else -1
        try:
            return cls(folder, lock)
        except BaseException as error:
            if lock >= 0:
                os.close(lock)
            if isinstance(error, OSError):
                raise store_error(error, folder) from error
            raise

    @property
    def epoch(self) -> int:
        """How often the log has been taken over."""
        return self._manifest.epoch

    @property
    def moved(self) -> bool:
        """Whether another process has taken it over, so that this one can append nothing any more."""
        return self._moved

    @property
    def failed(self) -> str:
        """Why it must be opened again before anything can be appended; empty: it need not."""
        return f"the log is closed{self._failed}" if self._failed and not self._moved else ""

    @property
    def _moved_text(self) -> str:
        return f"{self.folder}: another process has taken over this log."

    @property
    def spooled(self) -> int:
        """Records that are not in the log itself yet: none (platform/spool.py)."""
        return 0

    @property
    def images_from(self) -> int:
        """The first record whose image was not dropped."""
        left = (one.first for one in self._manifest.shards if not one.cut)
        return next(left, self._manifest.sealed)

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Writes all of them, in order, and syncs once; durable when it returns, with their numbers.

        Raises NoSpace (nothing was written; it works again when there is room), StoreDown (the same of S3 that does
        not answer), SecondWriter, StoreError, ConfigError (more than 2 GiB, or `data` that is not plain JSON; nothing
        was written).
        """
        self._check_usable()
        assert self._segment
        numbered = [replace(record, seq=self.next_seq + n) for n, record in enumerate(records)]
        if not numbered:
            return []
        self._decide()
        frame = segment.encode(numbered, self._marker)
        before = self._length, self.next_seq, self._open_bytes, len(self._open)
        try:
            if not self._volume.remote:  # there, looking costs as much as writing, and the look below is enough
                self._check_fence()
            self._segment.append(frame)
            self._check_fence()  # what a fenced writer wrote is not acknowledged
            self._length += len(frame)  # inside: an interrupt between these lines must undo all of them
            self.next_seq += len(numbered)
            self._open += numbered
            self._open_bytes += len(frame)
        except BaseException as error:  # also an interrupt: these numbers are given again
            self._length, self.next_seq, self._open_bytes, kept = before
            del self._open[kept:]
            self._cut_back()
            if isinstance(error, OSError):
                raise store_error(error, self.folder) from error
            raise
        if len(self._open) >= self._seal_at or self._open_bytes >= SEAL_BYTES:
            self._try_to_seal()
        return numbered

    def get(self, seqs: Sequence[int]) -> list[Record]:
        """Any of its records by number, in the order asked for; the open segment is not read again for it.

        Raises ConfigError for a number that is not there, Corrupt, StoreError (closed).
        """
        if self._segment is None:
            raise StoreError(f"{self.folder}: the log is closed; open it again.")
        return [self._one(seq) for seq in seqs]

    def checksum(self, seq: int) -> int | None:
        """CRC-32 of a record's image, also of one that was dropped; None: there never was one. Raises as `get`."""
        if seq < self._manifest.sealed:
            return self._in_shard(seq, ShardFile.checksum)
        (record,) = self.get([seq])
        return None if record.image is None else zlib.crc32(record.image)

    def trim(self, keep: Keep, needed: int, now_ns: int, ages: Ages | None = None) -> bool:
        """Drops the images of the oldest shard that has any, if it may; whether it did. One shard is written again.

        needed: the first record whose image must stay. ages: what is known of the log's times. Raises Corrupt,
        NoSpace, SecondWriter, StoreError; then nothing has changed.
        """
        self._check_usable()
        shards = self._manifest.shards
        at = next((n for n, one in enumerate(shards) if not one.cut), len(shards))
        if at == len(shards) or shards[at].first + shards[at].count > needed:
            return False
        try:
            columns = ShardFile(self.folder, shards[at]).columns("seq", "time_ns")
            times = [time for c in columns for time in zip(c["seq"], c["time_ns"], strict=True)]
            newest = max(ages.since(*time) if ages else time[1] for time in times)
            if not may_go(at, shards, keep, needed, newest, now_ns):
                return False
            self._put_in_place(range(at, at + 1), images=False)
        except OSError as error:
            raise store_error(error, self.folder) from error
        return True

    def merge(self) -> bool:
        """Makes one shard of the first neighbours that are small, if there are any; whether it did.

        Every opening leaves one. Raises as `trim`.
        """
        self._check_usable()
        run = to_merge(self._manifest.shards, SEAL_RECORDS, SEAL_BYTES)
        if run is None:
            return False
        try:
            self._put_in_place(run, images=not self._manifest.shards[run.start].cut)
        except OSError as error:
            raise store_error(error, self.folder) from error
        return True

    def close(self) -> None:
        """Seals what is open and gives the log up. What is acknowledged is durable with or without it."""
        try:
            if self._segment and self._open and not self._failed and not self._moved:
                self._try_to_seal()
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of the files at once, as a process does that dies."""
        if self._segment:
            self._close_file()
            if self._lock >= 0:
                os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _one(self, seq: int) -> Record:
        if not 0 <= seq < self.next_seq:
            raise ConfigError(f"{self.folder}: no record {seq}; there are {self.next_seq}.")
        sealed = self._manifest.sealed
        return self._open[seq - sealed] if seq >= sealed else self._in_shard(seq, ShardFile.record)

    def _in_shard(self, seq: int, read: Callable[[ShardFile, int], T]) -> T:
        shards = self._manifest.shards
        try:
            return read(ShardFile(self.folder, shards[bisect_right(shards, seq, key=lambda s: s.first) - 1]), seq)
        except FileNotFoundError as error:
            raise Corrupt(f"{self.folder}: {error.filename} is missing.") from error
        except OSError as error:
            raise store_error(error, self.folder) from error

    def _took_over(self) -> Manifest:
        """Where no lock keeps others out, one may have sealed its segment while we read it: then from the start."""
        while True:
            found = latest(self.folder)
            try:
                return self._take_over(found)
            except Corrupt:
                if not self._volume.remote or latest(self.folder).number == found.number:
                    raise

    def _take_over(self, found: Manifest) -> Manifest:
        """Fences off whoever wrote before, then seals what they left."""
        tails = [segment.Tail(self.folder / name) for name in found.segments]
        end = found.sealed
        for tail in tails:
            end += len(_read_on(tail).records)  # raises Corrupt before anything is changed
        if not self._volume.remote and (unknown := unnamed(self.folder, found, end)):
            raise Corrupt(f"{self.folder}: {_unnamed_text(unknown, end)}")
        epoch = found.epoch + 1
        own = self._start_segment(found.sealed, epoch)
        claimed = found.next(epoch=epoch, segments=(*found.segments, own))
        commit(self.folder, claimed)
        sealed = claimed
        for tail in tails:  # again: by now their writer can acknowledge nothing more
            left = _read_on(tail)
            if left.torn:
                name = tail.path.name
                log.warning("%s: cut %d bytes of an append that did not end off %s", self.folder, left.torn, name)
            if left.records:
                sealed = self._with_shard(sealed, left.records)
        if found.segments:
            sealed = replace(sealed, number=claimed.number + 1, segments=(own,))
            commit(self.folder, sealed)
        kept = unnamed(self.folder, sealed, sealed.sealed) if self._volume.remote else []
        if kept:  # of an append that was given up, and carried out later
            log.warning("%s: left alone: %s", self.folder, _unnamed_text(kept, sealed.sealed))
        remove(self.folder, [name for name in strangers(self.folder, sealed) if name not in kept])
        return sealed

    def _decide(self) -> None:
        """Before an append: what was given up on a remote volume is carried out or left behind. Raises StoreError."""
        try:
            if self._due:
                self._commit_due()
            elif self._doubtful:
                self._seal()
        except OSError as error:
            raise store_error(error, self.folder) from error

    def _try_to_seal(self) -> None:
        """The records are safe where they are: whatever fails here is no failure of the append."""
        try:
            if self._due:
                self._commit_due()
            if self._open:
                self._seal()
        except (OSError, StoreError) as error:
            self._seal_at = len(self._open) + SEAL_RETRY
            log.warning("%s: could not seal a shard: %s", self.folder, error)

    def _seal(self) -> None:
        """Turns the open segment into a shard and starts the next. Raises SecondWriter, OSError."""
        before, old, old_marker = self._manifest, self._segment, self._marker
        made: list[str] = []
        following = None
        try:
            sealed = self._with_shard(before, self._open) if self._open else before
            made += [new.file for new in sealed.shards[len(before.shards) :]]
            made.append(self._start_segment(self.next_seq, self.epoch))
            following = before.next(shards=sealed.shards, segments=(made[-1],))
            commit(self.folder, following)
        except BaseException as error:
            if self._volume.remote and following and not isinstance(error, SecondWriter):
                self._due = following  # it may come to be at any time: the new segment it is
                raise
            if self._segment is not old and self._segment:
                self._segment.close()
            self._segment, self._marker = old, old_marker
            if isinstance(error, SecondWriter) or (following and self._is_there(following)):
                self._failed = " since a commit did not end"
                self._moved = isinstance(error, SecondWriter)
            else:
                remove(self.folder, made)
            raise
        if old:
            old.close()
        self._move_on(following)

    def _put_in_place(self, places: range, images: bool) -> None:
        """Commits one new shard in place of some; the old files stay for readers at work until some commits later.

        Raises Corrupt, SecondWriter, StoreError, OSError.
        """
        self._decide()
        before, old = self._manifest, self._manifest.shards[places.start : places.stop]
        new = shard.rewrite(self.folder, old, self.epoch, images)
        following = before.next(shards=(*before.shards[: places.start], new, *before.shards[places.stop :]))
        try:
            commit(self.folder, following)
        except SecondWriter:
            self._moved = True
            remove(self.folder, [new.file])
            raise
        except BaseException:
            if self._volume.remote:
                self._due = following  # it may come to be at any time
            elif self._is_there(following):
                self._failed = " since a commit did not end"
            else:
                remove(self.folder, [new.file])
            raise
        self._move_on(following)

    def _check_usable(self) -> None:
        if self._moved:
            raise SecondWriter(self._moved_text)
        if self._failed or self._segment is None:
            raise StoreError(f"{self.folder}: the log is closed{self._failed}; open it again.")

    def _is_there(self, manifest: Manifest) -> bool:
        return manifest_name(manifest.number) in self._volume.names("manifest-")

    def _commit_due(self) -> None:
        """Raises SecondWriter, OSError."""
        assert self._due
        try:
            commit(self.folder, self._due)
        except SecondWriter:
            self._moved = True
            raise
        self._move_on(self._due)

    def _move_on(self, following: Manifest) -> None:
        """It is committed."""
        before, self._manifest = self._manifest, following
        self._due = None
        if following.segments != before.segments:
            self._doubtful = False
            self._open = self._open[following.sealed - before.sealed :]
            self._length, self._open_bytes, self._seal_at = segment.START, 0, SEAL_RECORDS
            remove(self.folder, before.segments)
        kept = {one.file for one in following.shards}
        self._gone += [(following.number, one.file) for one in before.shards if one.file not in kept]
        late = [name for number, name in self._gone if number <= following.number - KEPT]
        if late:
            self._gone = [(number, name) for number, name in self._gone if name not in late]
            ShardFile.forget(self.folder)  # an open file keeps its room on the disk
            remove(self.folder, late)

    def _with_shard(self, manifest: Manifest, records: Sequence[Record]) -> Manifest:
        if [record.seq for record in records] != list(range(manifest.sealed, manifest.sealed + len(records))):
            raise Corrupt(f"{self.folder}: the records after {manifest.sealed - 1} are not in order.")
        return replace(manifest, shards=(*manifest.shards, shard.write(self.folder, records, manifest.epoch)))

    def _start_segment(self, first: int, epoch: int) -> str:
        name = file_name("segment", first, epoch) + ".log"
        self._segment, self._marker = segment.create(self.folder / name)
        return name

    def _close_file(self) -> None:
        if self._segment:
            self._segment.close()
            self._segment = None

    def _check_fence(self) -> None:
        if fenced(self.folder, self._manifest):
            self._moved = True
            raise SecondWriter(self._moved_text)

    def _cut_back(self) -> None:
        """After a failed write: the segment ends where it was acknowledged last."""
        try:
            self._doubtful = not (self._segment and self._segment.cut(self._length))
        except OSError as error:  # no way to tell what is on the disk: opening again will
            self._failed = f" after {error}"


class LogReader:
    """Reads while somebody writes: sealed shards and checked records only. Takes no lock."""

    def __init__(self, folder: Place) -> None:
        """A folder without a log reads as an empty one. Raises Corrupt, StoreError."""
        self.folder = folder
        self._tails: dict[str, segment.Tail] = {}
        self.shards: list[ShardFile] = []
        self.torn: list[str] = []
        self._sealed, self._tail = 0, list[Record]()
        self.refresh()

    def refresh(self) -> None:
        """Sees what was acknowledged since. Raises Corrupt, StoreError."""
        while True:
            number = -1
            try:
                manifest = latest(self.folder)
                number = manifest.number
                return self._show(manifest)
            except (Corrupt, FileNotFoundError) as error:
                if latest(self.folder).number != number:  # a writer sealed or took over meanwhile
                    continue
                if isinstance(error, Corrupt):
                    raise
                raise Corrupt(f"{self.folder}: {error.filename} is missing.") from error
            except OSError as error:
                raise store_error(error, self.folder) from error

    def _show(self, manifest: Manifest) -> None:
        """Raises Corrupt, FileNotFoundError, and then shows what it showed before."""
        known = {file.shard: file for file in self.shards}
        known |= {
            file.shard: file for file in open_shards(self.folder, [s for s in manifest.shards if s not in known])
        }
        shards = [known[s] for s in manifest.shards]
        self._tails = {n: self._tails.get(n) or segment.Tail(self.folder / n) for n in manifest.segments}
        ends = [tail.read_on() for tail in self._tails.values()]
        tail = [record for end in ends for record in end.records]
        for seq, record in enumerate(tail, manifest.sealed):
            if record.seq != seq:
                raise Corrupt(f"{self.folder}: record {record.seq} stands where {seq} should.")
        self.shards, self._sealed, self._tail = shards, manifest.sealed, tail
        self.torn = [f"{end.torn} bytes of an append that did not end" for end in ends if end.torn]

    @property
    def images_from(self) -> int:
        """The first record whose image was not dropped."""
        return next((file.shard.first for file in self.shards if not file.shard.cut), self._sealed)

    def __len__(self) -> int:
        return self._sealed + len(self._tail)

    def records(self, after: int = -1, images: bool = True) -> Iterator[Record]:
        """Records behind number `after`, in order; without `images` their bytes are not even read."""
        shards, tail = self.shards, self._tail  # as they are now, whatever `refresh` does meanwhile
        for file in shards:
            end = file.shard.first + file.shard.count
            if end <= after + 1:
                continue
            try:
                for record in file.records(after + 1, images):
                    yield record
                    after = record.seq
            except FileNotFoundError:  # written again meanwhile: the same records are elsewhere
                for record in LogReader(self.folder).records(after, images):
                    if record.seq >= end:
                        break
                    yield record
                after = end - 1
        for record in tail:
            if record.seq > after:
                yield record if images else replace(record, image=None)

    def get(self, seqs: Sequence[int]) -> list[Record]:
        """Any records by number, in the order asked for. Raises ConfigError for a number that is not there."""
        return [self._one(seq) for seq in seqs]

    def ids(self) -> Ids:
        """Image id -> number of its record; three columns are read."""
        return self._again(lambda: Ids(self._ids))

    def count(self, kind: str) -> int:
        """How many records of a kind there are; two columns are read."""
        return self._again(lambda: sum(1 for _ in self._sealed_of(kind))) + sum(r.kind == kind for r in self._tail)

    def of_kind(self, kind: str) -> Iterator[Record]:
        """The records of a kind, in order, without images; of the others one column is read."""
        seqs, tail = self._again(lambda: (list(self._sealed_of(kind)), self._tail))
        yield from (replace(self._one(seq), image=None) for seq in seqs)
        yield from (replace(record, image=None) for record in tail if record.kind == kind)

    def times(self) -> Iterator[tuple[int, str, int, dict[str, Any]]]:
        """Number, kind, time in ns, and data of the kind `clock`, from the first record on that has its image."""
        for file in self.shards:
            if file.shard.cut:
                continue
            for c in file.columns("seq", "kind", "time_ns"):
                for seq, kind, time_ns in zip(c["seq"], c["kind"], c["time_ns"], strict=True):
                    yield seq, kind, time_ns, self._one(seq).data if kind == CLOCK else {}
        yield from ((record.seq, record.kind, record.time_ns, record.data) for record in self._tail)

    def _ids(self) -> Iterator[tuple[str, int]]:
        for file in self.shards:
            for columns in file.columns("seq", "kind", "id"):
                rows = zip(columns["seq"], columns["kind"], columns["id"], strict=True)
                yield from ((id, seq) for seq, kind, id in rows if kind == "image")
        yield from ((record.id, record.seq) for record in self._tail if record.kind == "image")

    def _sealed_of(self, kind: str) -> Iterator[int]:
        """Numbers of the records of a kind that are in shards."""
        for file in self.shards:
            for columns in file.columns("seq", "kind"):
                rows = zip(columns["seq"], columns["kind"], strict=True)
                yield from (seq for seq, other in rows if other == kind)

    def _again(self, read: Callable[[], T]) -> T:
        """What `read` returns, the second time where a shard was written again meanwhile."""
        try:
            return read()
        except FileNotFoundError:
            self.refresh()
            return read()

    def _one(self, seq: int) -> Record:
        if not 0 <= seq < len(self):
            raise ConfigError(f"{self.folder}: no record {seq}; there are {len(self)}.")
        if seq >= self._sealed:
            return self._tail[seq - self._sealed]
        return self._again(lambda: self._shard_of(seq).record(seq))

    def _shard_of(self, seq: int) -> ShardFile:
        return self.shards[bisect_right(self.shards, seq, key=lambda file: file.shard.first) - 1]


@dataclass(frozen=True)
class Verified:
    """What `verify` found. `inspected`: image records; `unique`: different ids among them."""

    records: int
    inspected: int
    unique: int
    ok: bool
    problems: list[str] = field(default_factory=list)


def verify(folder: Place, quick: bool = False) -> Verified:
    """Checks every checksum, that the numbers are 0, 1, 2, ..., and that no image is there twice.

    quick: counts, and does not read the shards from end to end. Safe while a writer writes.
    """
    problems: list[str] = []
    records = inspected = 0
    ids = Ids()
    try:
        reader = LogReader(folder)
        for _ in range(3):
            if reader.torn:  # perhaps of an append that is being written just now
                time.sleep(0.05)
                reader.refresh()
        problems += reader.torn
        if isinstance(folder, Path) and (unknown := _unnamed_beside(reader)):
            problems.append(_unnamed_text(unknown, len(reader)))
        if not quick:
            problems += [problem for file in reader.shards if (problem := _problem(reader, file))]
        for record in reader.records(images=False):
            records += 1
            if record.kind == "image":
                inspected += 1
                ids[record.id] = record.seq
    except (StoreError, OSError) as error:
        problems.append(str(error))
    if (unique := len(ids)) < inspected:
        problems.append(f"{inspected - unique} images are in it more than once")
    return Verified(records, inspected, unique, not problems, problems)


def unnamed(folder: Place, manifest: Manifest, end: int) -> list[str]:
    """Files that this manifest does not name though they hold records from number `end` on. Raises OSError.

    A writer that died leaves none: what it was about to seal is in a segment that its manifest names. So a manifest is
    missing that was there. (On S3 an append that was given up may be carried out later.)
    """
    known = {*manifest.segments, *(one.file for one in manifest.shards)}
    return [name for name in holding_records(folder) if name not in known and _end_of(folder, name) > end]


def _end_of(folder: Place, name: str) -> int:
    """The number behind a file's last record; of one that cannot be read, behind the number in its name."""
    try:
        if name.startswith("shard-"):
            found = shard.read_alone(folder, name)
            return found.first + found.count
        records = segment.read(folder / name).records
        return records[-1].seq + 1 if records else 0
    except FileNotFoundError:
        return 0
    except Corrupt:
        return first_of(name) + 1


def _unnamed_beside(reader: LogReader) -> list[str]:
    """`unnamed`, while a writer may be at work: it makes a file and then the manifest that names it."""
    while True:
        manifest = latest(reader.folder)
        if not unnamed(reader.folder, manifest, len(reader)):
            return []
        reader.refresh()
        if latest(reader.folder).number == manifest.number:
            return unnamed(reader.folder, manifest, len(reader))


def _unnamed_text(files: list[str], end: int) -> str:
    return (
        f"no manifest names {', '.join(files[:3])}{' ...' * (len(files) > 3)}, with records from number {end} on: a "
        "manifest is missing. Bring it back from a copy, or make one again: everline log repair LINE"
    )


def _problem(reader: LogReader, file: ShardFile) -> str:
    try:
        file.check()
    except FileNotFoundError as error:  # written again meanwhile: that one is checked when the log is next
        return "" if file.shard not in latest(reader.folder).shards else str(error)
    except (Corrupt, OSError) as error:
        return str(error)
    return ""


def _read_on(tail: segment.Tail) -> segment.End:
    """Raises Corrupt, also where it is missing: a manifest names only what is there."""
    try:
        return tail.read_on()
    except FileNotFoundError as error:
        raise Corrupt(f"{tail.path.parent}: {tail.path.name} is missing.") from error


def store_error(error: OSError, folder: Place) -> StoreError:
    """What an error of a volume means to whoever asked."""
    if isinstance(error, Away):
        return StoreDown(f"{folder}: {error.strerror}; what was not acknowledged can be sent again.")
    if error.errno in FULL:
        return NoSpace(f"{folder}: the disk is full; this record was not accepted. Make room and send it again.")
    return StoreError(f"{folder}: {error.strerror or error}")
