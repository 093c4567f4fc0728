"""The replay memory: a bounded set of images that continual learning replays, on Arrow shards.

    FOLDER/lock            held (flock) while the memory is open
    FOLDER/gen-00000003/   a log (docs/store-format.md) of the images that were taken in, one record each

Which image has to go is decided in `selection.py`. What has gone stays in its log, dead, until less than half of the
records are alive (and there are more than 64): then the live ones are copied, in order, into the log of the next
generation. A reservoir of 500 over 20,000 images takes in 2404 (seed 0) and writes 3904 records, 1.62 for each. The
files of a generation are removed when neither of the last two checkpoints needs them.
"""

import fcntl
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..methods.errors import ConfigError, Corrupt, StoreError
from .log import LogWriter, locked
from .record import Record
from .selection import POLICIES, Descriptor, Item, Selection
from .shard import ShardFile

__all__ = ["POLICIES", "ReplayMemory"]
log = logging.getLogger("everline.replay")
FORMAT = 1
SPARE = 64  # records that a generation may hold however few of them are alive
COPY_RECORDS, COPY_BYTES = 64, 8 * 2**20  # of one append while a generation is copied
RETRY = 64  # records until copying is tried again after it failed
_GENERATION = re.compile(r"gen-([0-9]{8})")
_DRAW = (1,)  # keeps the chance of draws apart from that of decisions


class ReplayMemory:
    """At most `capacity` images of a stream. One thread uses it; another process is refused (SecondWriter).

    The images are on the disk; in RAM are their names, numbers and, for herding, descriptors, and those of the open
    segment of the log (at most 512 or 20 MB). What it holds and draws depends on the settings, the images offered
    and the number of the draw alone: neither on time nor on where files begin.
    """

    def __init__(self, folder: Path, selection: Selection, lock: int) -> None:
        """`open` is the way in: it holds the lock."""
        self.folder, self._selection, self._lock = folder, selection, lock
        self._generation, self._draws = 0, 0
        self._checkpointed: tuple[int, ...] = ()  # generations that the last two checkpoints need
        self._compact_at = 0
        self._log: LogWriter

    @classmethod
    def open(
        cls,
        folder: Path,
        capacity: int,
        policy: str = "reservoir",
        seed: int = 0,
        at: Mapping[str, Any] | None = None,
    ) -> Self:
        """An empty memory, or one that goes on bit for bit from what `checkpoint` returned (`at`).

        What was written behind that checkpoint is dead, and generations that it does not know are removed.
        Raises ConfigError for settings out of range or other than those of `at`, and, without `at`, for a folder that
        holds a memory: whether somebody still has a checkpoint of it cannot be told, so whoever knows that nobody has
        removes the folder. SecondWriter, NoSpace, StoreError; Corrupt where files or `at` are damaged, or are not
        those of each other.
        """
        selection = Selection(capacity, policy, seed) if at is None else _selection_of(at, capacity, policy, seed)
        self = cls(folder, selection, locked(folder))
        try:
            self._start(at)
        except BaseException:
            self._unlock()
            raise
        return self

    def offer(
        self, image: bytes, id: str, task: str = "", score: float | None = None, descriptor: Descriptor | None = None
    ) -> bool:
        """The next image of the stream, encoded. True: it was taken in and is on the disk; False: it was not.

        Ids need not be unique: an image that is offered twice is two images. descriptor: (d,) float32, for herding
        only, of equal length each time (normalise it if you want directions to count); score: for hardest, higher is
        harder. Raises ConfigError for what is missing or out of range, NoSpace, SecondWriter, StoreError, Corrupt;
        then nothing has changed, and the image may be offered again.
        """
        self._check_open()
        record = Record("image", id, image=image, task=task, score=score)
        new = self._selection.item(id, task, len(_bytes(image, id)), score, descriptor)
        goes = self._selection.goes(new)
        admitted = goes is None or goes < len(self._selection.items)
        if admitted:
            self._compact_if_due()
            (written,) = self._log.append([replace(record, data={"number": new.number})])
            new = replace(new, seq=written.seq)
        self._selection.take(new, goes)
        return admitted

    def draw(self, count: int) -> list[Record]:
        """`count` different images (all, where there are fewer) at random, in random order; `seq` is the number of the
        image in the stream, from 0.

        Decided by (seed, how many draws were made before) and by what is held. Reads these records only. Raises
        ConfigError for a negative count, Corrupt, StoreError; then the draw was not made.
        """
        items = self._selection.items
        if type(count) is not int or count < 0:
            raise ConfigError(f"replay: draw a whole number of images, 0 or more, got {count!r}.")
        chance = np.random.default_rng(np.random.SeedSequence([self._selection.seed, self._draws], spawn_key=_DRAW))
        places = chance.choice(max(1, len(items)), min(count, len(items)), replace=False)
        found = self._read([items[place] for place in places.tolist()])
        self._draws += 1
        return [replace(record, seq=record.data["number"]) for record in found]

    def all(self) -> Iterator[Record]:
        """Every image held, in the order in which they came, as `draw` gives them; a few are in RAM at a time.

        Images that go while it is being read are left out. Raises Corrupt, StoreError.
        """
        for chunk in _chunks(self._selection.items):
            now = {item.number: item for item in self._selection.items}  # copied elsewhere or gone, meanwhile
            for record in self._read([now[item.number] for item in chunk if item.number in now]):
                yield replace(record, seq=record.data["number"])

    def __len__(self) -> int:
        return len(self._selection.items)

    def tasks(self) -> dict[str, int]:
        """Images held by task, in the order in which the oldest of each came."""
        return dict(Counter(item.task for item in self._selection.items))

    @property
    def nbytes(self) -> int:
        """Bytes of the images held, encoded as they came."""
        return sum(item.bytes for item in self._selection.items)

    @property
    def disk_bytes(self) -> int:
        """Bytes of all files on the disk now: those of dead records and of kept generations too."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def checkpoint(self) -> dict[str, Any]:
        """Plain JSON from which `open` goes on. Keep it with a checksum of your own: it is checked for sense only.

        Generations that neither this nor the checkpoint before it needs are removed; the one before is still good,
        because this one is on no disk yet. Size: about 100 bytes an image; herding adds 5.4 bytes for each value of
        its descriptor. Raises StoreError (closed).
        """
        self._check_open()
        self._checkpointed = (*self._checkpointed[-1:], self._generation)
        self._tidy()
        where = {"format": FORMAT, "generation": self._generation, "records": self._log.next_seq}
        return {**where, "draws": self._draws, "selection": self._selection.pack()}

    def close(self) -> None:
        """Seals what is open and gives the memory up. Go on at the last checkpoint."""
        try:
            if self._lock >= 0:
                self._log.close()
        finally:
            self.release()

    def release(self) -> None:
        """Lets go of the files at once, as a process does that dies."""
        if self._lock >= 0:
            self._log.release()
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, at: Mapping[str, Any] | None) -> None:
        records = 0
        if at is None and _generations(self.folder):
            raise ConfigError(f"{self.folder}: holds a memory; give its last checkpoint, or remove the folder first.")
        if at is not None:
            self._generation, self._draws, records = at["generation"], at["draws"], at["records"]
            self._checkpointed = (self._generation,)
            if not self._path(self._generation).is_dir():
                raise Corrupt(f"{self._path(self._generation)}: missing, and the checkpoint needs it.")
        self._log = LogWriter.open(self._path(self._generation))
        if self._log.next_seq < records:
            self._log.release()
            raise Corrupt(f"{self._log.folder}: {self._log.next_seq} records, the checkpoint knows {records}.")
        self._tidy()

    def _read(self, items: Sequence[Item]) -> list[Record]:
        """Their records. Raises Corrupt where another image stands in an item's place."""
        self._check_open()
        found = self._log.get([item.seq for item in items])
        for item, record in zip(items, found, strict=True):
            wanted = ("image", item.id, item.task, item.bytes, {"number": item.number})
            size = -1 if record.image is None else len(record.image)
            if (record.kind, record.id, record.task, size, record.data) != wanted:
                raise Corrupt(f"{self._log.folder}: record {item.seq} is not image {item.number} ({item.id!r}).")
        return found

    def _compact_if_due(self) -> None:
        """Before an append, so that an append that has been made is never reported as failed. Raises Corrupt."""
        written = self._log.next_seq
        if written <= max(SPARE, 2 * len(self), self._compact_at):
            return
        try:
            self._compact()
        except Corrupt:
            raise
        except (OSError, StoreError) as error:  # the images are safe where they are
            self._compact_at = written + RETRY
            log.warning("%s: could not copy the live images: %s", self.folder, error)

    def _compact(self) -> None:
        """Copies what is alive into the next generation, whole or not at all. Raises Corrupt, NoSpace, StoreError."""
        number = max(_generations(self.folder)) + 1
        try:
            target = LogWriter.open(self._path(number))
            try:
                items = self._copied(target)
            except BaseException:
                target.release()
                raise
        except BaseException:
            _remove(self._path(number))
            raise
        self._log.release()
        self._log, self._generation, self._selection.items, self._compact_at = target, number, items, 0
        self._tidy()

    def _copied(self, target: LogWriter) -> list[Item]:
        items: list[Item] = []
        for chunk in _chunks(self._selection.items):
            copied = target.append(self._read(chunk))
            items += [replace(item, seq=record.seq) for item, record in zip(chunk, copied, strict=True)]
        return items

    def _tidy(self) -> None:
        for number in _generations(self.folder):
            if number not in (*self._checkpointed, self._generation):
                _remove(self._path(number))

    def _path(self, number: int) -> Path:
        return self.folder / f"gen-{number:08d}"

    def _check_open(self) -> None:
        if self._lock < 0:
            raise StoreError(f"{self.folder}: the memory is closed; open it again.")

    def _unlock(self) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        self._lock = -1


def _selection_of(at: Mapping[str, Any], capacity: int, policy: str, seed: int) -> Selection:
    """The selection in a checkpoint, checked. Raises Corrupt, ConfigError for other settings."""
    try:
        if at["format"] != FORMAT:
            raise Corrupt(f"replay: a checkpoint of format {at['format']!r}, this code reads {FORMAT}.")
        counts = [at[name] for name in ("generation", "records", "draws")]
        selection = Selection.unpack(at["selection"])
    except (KeyError, TypeError) as error:
        raise Corrupt(f"replay: not a checkpoint of the memory: {error}") from error
    if not all(type(n) is int and 0 <= n < 2**63 for n in counts) or counts[0] >= 10**8:
        raise Corrupt("replay: a number in the checkpoint is out of range.")
    if any(item.seq >= at["records"] for item in selection.items):
        raise Corrupt("replay: the checkpoint holds an image that it does not know.")
    theirs = selection.capacity, selection.policy, selection.seed
    if theirs != (capacity, policy, seed):
        raise ConfigError(
            f"replay: the checkpoint is of (capacity, policy, seed) {theirs}, not of {(capacity, policy, seed)}."
        )
    return selection


def _bytes(image: bytes, id: str) -> bytes:
    if not isinstance(image, bytes):  # a record may be without an image, an item may not
        raise ConfigError(f"replay: image {id!r} must be bytes, got {type(image).__name__}.")
    return image


def _chunks(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Runs of at most 64 images and, unless one alone is larger, 8 MB."""
    chunk: list[Item] = []
    for item in items:
        if chunk and (len(chunk) == COPY_RECORDS or sum(i.bytes for i in chunk) + item.bytes > COPY_BYTES):
            yield chunk
            chunk = []
        chunk.append(item)
    if chunk:
        yield chunk


def _generations(folder: Path) -> list[int]:
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := _GENERATION.fullmatch(name)))


def _remove(folder: Path) -> None:
    """What cannot be removed does no harm: its number is not given again while it is there."""
    ShardFile.forget(folder)
    shutil.rmtree(folder, ignore_errors=True)
