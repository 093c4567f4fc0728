"""What a log has lost, and a manifest made again from the files that are left.

Manifests can be missing (the records are there, and nothing names them), files in the middle, and the end, of which
checkpoints and MLflow know more than the log does. Nothing is removed but checkpoints that have seen what is lost.
"""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..methods.errors import Corrupt
from . import segment, shard
from .checkpoints import Checkpoints
from .log import LogReader, LogWriter, locked, store_error, unnamed
from .manifest import Manifest, Shard, commit, epoch_of, holding_records, latest, numbers
from .record import Record
from .shard import ShardFile
from .volume import Place

LOST = "lost"  # kind of the record that stands for what was lost


@dataclass(frozen=True)
class LostEnd:
    """Records `first` to `last` were there once, as `witness` says. version: the newest that MLflow knows of them."""

    line: str
    first: int
    last: int
    witness: str
    version: int = 0

    def __str__(self) -> str:
        return (
            f"the log ends before record {self.first}, but {self.witness} has seen record {self.last}: "
            f"{self.last - self.first + 1} acknowledged records are missing at its end. Bring its files back from a "
            f"copy, or accept the loss, which the log then says: everline log repair {self.line} --accept-loss"
        )


def lost_end(reader: LogReader, live: Mapping[int, int]) -> LostEnd | None:
    """What checkpoints and MLflow know of records behind the log's end; None where they know of none.

    live: versions in use -> the last record that each has learned from (`Versions.live`). Raises StoreError, OSError.
    """
    end = len(reader)
    seen = {f"checkpoint {seq}": seq for seq in Checkpoints(reader.folder / "checkpoints").numbers()}
    ahead = {version: mark for version, mark in live.items() if mark >= end}
    if ahead:
        written_off = max((record.data["version"] for record in reader.of_kind(LOST)), default=0)
        ahead = {version: mark for version, mark in ahead.items() if version > written_off}
    seen |= {f"version {version} in MLflow": mark for version, mark in ahead.items()}
    witness = max(seen, key=lambda name: seen[name], default="")
    if not witness or seen[witness] < end:
        return None
    return LostEnd(reader.folder.name, end, seen[witness], witness, max(ahead, default=0))


@dataclass(frozen=True)
class Repaired:
    """What `repair` found and did. records: that the log has now; missing: first and last number of what no file has.

    files: that the new manifest was made from; empty where the old one was whole.
    """

    records: int
    files: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    missing: list[tuple[int, int]] = field(default_factory=list)


def repair(folder: Place, live: Mapping[int, int], accept_loss: bool, by: str) -> Repaired:
    """Makes a manifest again where one is missing, from every record that is left, and says what is not.

    accept_loss: what is lost for good is written into the log, with `by`, so that a line may go on; without it that is
    an error and nothing has changed. live: as of `lost_end`. Raises Corrupt, SecondWriter, StoreError.
    """
    lock = locked(folder) if isinstance(folder, Path) else -1
    try:
        done = Repaired(0) if _is_whole(folder) else _made_again(folder, accept_loss, by)
    except OSError as error:
        raise store_error(error, folder) from error
    finally:
        if lock >= 0:
            os.close(lock)
    reader = LogReader(folder)
    missing = done.missing
    if (end := lost_end(reader, live)) is not None:
        if not accept_loss:
            raise Corrupt(f"{folder}: {end}")
        missing = [*missing, (end.first, end.last)]
        _write_off(folder, end, by)
    if missing:
        _forget_checkpoints(folder, missing[0][0])
    return Repaired(len(LogReader(folder)), done.files, done.unreadable, missing)


def _is_whole(folder: Place) -> bool:
    """Whether the manifest that is there names all that there is, and what it names is there."""
    try:
        reader = LogReader(folder)
    except Corrupt:
        return False
    return not isinstance(folder, Path) or not unnamed(folder, latest(folder), len(reader))


def _write_off(folder: Place, end: LostEnd, by: str) -> None:
    data = {"first": end.first, "last": end.last, "witness": end.witness, "version": end.version, "by": by}
    with LogWriter.open(folder) as writer:
        writer.append([Record(LOST, f"lost-{writer.next_seq}", time.time_ns(), data=data)])


def _forget_checkpoints(folder: Place, first: int) -> None:
    """Those that have seen what is lost: a line's state is what its log says."""
    for name in ("checkpoints", "waiting"):
        there = Checkpoints(folder / name)
        for seq in there.numbers():
            if seq >= first:
                there.remove(seq)


@dataclass(frozen=True)
class _File:
    """A shard or segment that can be read: its records `first` to `end` - 1."""

    name: str
    first: int
    end: int
    epoch: int
    shard: Shard | None  # as a manifest names it
    records: list[Record]  # of a segment

    def worth(self, at: int) -> tuple[bool, bool, int, int]:
        """What to prefer from record `at` on: images, a file as it is, a long one, a later one."""
        images = self.shard is None or not self.shard.cut
        return images, self.shard is not None and self.first == at, self.end, self.epoch

    def behind(self, folder: Place, at: int) -> Iterator[Record]:
        """Its records from number `at` on."""
        if self.shard is not None:
            return ShardFile(folder, self.shard).records(at, True)
        return (record for record in self.records if at <= record.seq < self.end)


def _made_again(folder: Place, accept_loss: bool, by: str) -> Repaired:
    files, unreadable = _readable(folder)
    if unreadable and not files:
        raise Corrupt(f"{folder}: no file in it can be read. {' '.join(unreadable)}")
    named = _last_manifest(folder)
    chosen, missing = _chosen(files, named.sealed)
    if missing and not accept_loss:
        lost = ", ".join(f"{first} to {last}" for first, last in missing)
        raise Corrupt(
            f"{folder}: no file holds the records {lost}. {' '.join(unreadable)} Bring the missing files back from a "
            f"copy, or accept the loss, which the log then says: everline log repair {folder.name} --accept-loss"
        )
    epoch = max([named.epoch, *(epoch_of(name) for name in holding_records(folder))])
    shards = []
    for at, file in chosen:
        if file is None:
            shards.append(shard.write(folder, _placeholders(at, dict(missing)[at], by), epoch))
        elif file.shard is not None and file.first == at:
            shards.append(file.shard)
        else:
            shards.append(shard.write(folder, list(file.behind(folder, at)), epoch))
    number = max(numbers(folder), default=0) + 1
    commit(folder, Manifest(number, epoch, tuple(shards)))
    return Repaired(0, [file.name for _, file in chosen if file], unreadable, missing)


def _last_manifest(folder: Place) -> Manifest:
    """The newest that is left; without any that can be read, an empty one."""
    try:
        return latest(folder)
    except Corrupt:
        return Manifest()


def _placeholders(first: int, last: int, by: str) -> list[Record]:
    """A record for each that is lost in the middle: numbers have no gaps."""
    now = time.time_ns()
    data = {"first": first, "last": last, "version": 0, "by": by}
    return [Record(LOST, f"lost-{seq}", now, data=data, seq=seq) for seq in range(first, last + 1)]


def _readable(folder: Place) -> tuple[list[_File], list[str]]:
    """Files with records, and what is wrong with the others."""
    files, unreadable = list[_File](), []
    for name in holding_records(folder):
        try:
            if name.startswith("shard-"):
                found = shard.read_alone(folder, name)
                files.append(_File(name, found.first, found.first + found.count, epoch_of(name), found, []))
            elif records := segment.read(folder / name).records:
                files.append(_File(name, records[0].seq, records[-1].seq + 1, epoch_of(name), None, records))
        except Corrupt as error:
            unreadable.append(str(error))
    return [_until_the_next(file, files) for file in files], unreadable


def _until_the_next(file: _File, files: list[_File]) -> _File:
    """A segment counts until the next one begins: what came later in it was never acknowledged."""
    if file.shard is not None:
        return file
    later = [
        other.first for other in files if other.shard is None and (other.epoch, other.first) > (file.epoch, file.first)
    ]
    end = min([file.end, *later])
    return _File(file.name, file.first, max(end, file.first), file.epoch, None, file.records)


def _chosen(files: list[_File], sealed: int) -> tuple[list[tuple[int, _File | None]], list[tuple[int, int]]]:
    """Files in order, each behind the first record taken from it (None: lost); and first and last of what is lost.

    sealed: records that there were at least.
    """
    chosen: list[tuple[int, _File | None]] = []
    missing = []
    at, end = 0, max([sealed, *(file.end for file in files)])
    while at < end:
        there = [file for file in files if file.first <= at < file.end]
        if there:
            best = max(there, key=lambda file: file.worth(at))
            chosen.append((at, best))
            at = best.end
            continue
        following = min([end, *(file.first for file in files if file.first > at)])
        chosen.append((at, None))
        missing.append((at, following - 1))
        at = following
    return chosen, missing
