"""Sealed shards: immutable Arrow IPC files of up to 512 records, in batches of 64; local ones are memory-mapped."""

import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from ..methods.errors import ConfigError, Corrupt
from .manifest import Shard, file_name, first_of, remove
from .record import SCHEMA, Record, from_batch, to_batch
from .volume import Away, Place, volume_of

BATCH = 64
BLOCK = 2**23  # bytes that are checked at a time
OPEN_FILES = 64  # at most, of all logs of this process
OPEN_BYTES = 2**26  # ... with their images: pages that were read of a mapped file are memory of the process
WITHOUT_IMAGE = [name for name in SCHEMA.names if name != "image"]


def write(folder: Place, records: Sequence[Record], epoch: int) -> Shard:
    """Writes a shard; it counts once a manifest names it. Raises OSError."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        for start in range(0, len(records), BATCH):
            writer.write_batch(to_batch(records[start : start + BATCH]))
    return _written(folder, sink.getvalue().to_pybytes(), records[0].seq, len(records), epoch)


def _written(folder: Place, data: bytes, first: int, count: int, epoch: int) -> Shard:
    name = file_name("shard", first, epoch) + ".arrow"
    volume = volume_of(folder)
    try:
        volume.write(name, data)
        volume.sync()
    except BaseException:
        remove(folder, [name])
        raise
    return Shard(name, first, count, len(data), zlib.crc32(data))


def rewrite(folder: Place, shards: Sequence[Shard], epoch: int, images: bool) -> Shard:
    """Neighbours as one new shard, without their images if not `images`; it counts once a manifest names it.

    Every byte of the old ones is checked before. Raises Corrupt, FileNotFoundError, OSError.
    """
    tables = []
    for old in shards:
        data = volume_of(folder).read(old.file)
        if zlib.crc32(data) != old.crc32:
            raise Corrupt(f"{old.file}: the checksum does not match.")
        tables.append(pa.ipc.open_file(pa.BufferReader(data)).read_all())
    table = pa.concat_tables(tables).combine_chunks()
    if not images:
        at = SCHEMA.get_field_index("image")
        table = table.set_column(at, SCHEMA.field(at), pa.nulls(len(table), SCHEMA.field(at).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(table.cast(SCHEMA), max_chunksize=BATCH)
    return replace(_written(folder, sink.getvalue().to_pybytes(), shards[0].first, len(table), epoch), cut=not images)


def read_alone(folder: Place, name: str) -> Shard:
    """What a manifest would say of a shard, from the file itself; every record of it is checked.

    Raises Corrupt, FileNotFoundError, OSError.
    """
    data = volume_of(folder).read(name)
    first, count, cut = first_of(name), 0, False
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as file:
            for index in range(file.num_record_batches):
                batch = file.get_batch(index)
                batch.validate(full=True)
                for record in from_batch(batch):
                    if record.seq != first + count:
                        raise Corrupt(f"{name}: record {record.seq} stands where {first + count} should.")
                    count += 1
                cut = cut or bool(pc.any(pc.and_(batch["image"].is_null(), batch["image_crc32"].is_valid())).as_py())
    except (pa.ArrowException, ValueError, TypeError, KeyError, RecursionError, MemoryError, ConfigError) as error:
        raise Corrupt(f"{name}: {error}") from error
    if not count:
        raise Corrupt(f"{name}: no records in it.")
    return Shard(name, first, count, len(data), zlib.crc32(data), cut)


def open_shards(folder: Place, shards: Sequence[Shard]) -> "list[ShardFile]":
    """All of them, with few looks at the folder. Raises Corrupt, FileNotFoundError."""
    sizes = volume_of(folder).sizes([shard.file for shard in shards])
    return [ShardFile(folder, shard, size) for shard, size in zip(shards, sizes, strict=True)]


class ShardFile:
    """A shard to read from. Reads only the batches and columns that are asked for, and opens the file for these."""

    _open: ClassVar[OrderedDict[tuple[Place, bool], tuple[pa.ipc.RecordBatchFileReader, int]]] = OrderedDict()
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, folder: Place, shard: Shard, size: int | None = None) -> None:
        """Raises Corrupt where the file is not as long as the manifest says, FileNotFoundError.

        size: how long it is, where that is known already.
        """
        self.shard, self.path, self._volume = shard, folder / shard.file, volume_of(folder)
        if (size := self._volume.sizes([shard.file])[0] if size is None else size) != shard.bytes:
            raise Corrupt(f"{self.path.name}: {size} bytes, the manifest says {shard.bytes}.")

    def records(self, first: int, images: bool) -> Iterator[Record]:
        """Records from number `first` on. Raises Corrupt."""
        skip = max(0, first - self.shard.first)
        for index in range(skip // BATCH, self._batches):
            at = max(0, skip - index * BATCH)
            yield from self._rows(index, at, BATCH, images)

    def record(self, seq: int) -> Record:
        """One record; nothing else is read. Raises Corrupt."""
        index, row = divmod(seq - self.shard.first, BATCH)
        return self._rows(index, row, 1, True)[0]

    def checksum(self, seq: int) -> int | None:
        """CRC-32 of a record's image, which may have been dropped. Raises Corrupt."""
        index, row = divmod(seq - self.shard.first, BATCH)
        crc: int | None = self._batch(index, False)["image_crc32"][row].as_py()
        return crc

    def columns(self, *names: str) -> Iterator[dict[str, list[Any]]]:
        """The named columns (not `image`), batch by batch. Raises Corrupt."""
        for index in range(self._batches):
            yield self._batch(index, False).select(list(names)).to_pydict()

    def check(self) -> None:
        """Raises Corrupt where any byte differs from what was sealed."""
        crc = 0
        with self._volume.open(self.shard.file) as file:
            while block := file.read(BLOCK):
                crc = zlib.crc32(block, crc)
        if crc != self.shard.crc32:
            raise Corrupt(f"{self.path.name}: the checksum does not match.")

    @classmethod
    def forget(cls, folder: Place) -> None:
        """Closes what is open of a folder that is about to be removed: an open file keeps its room on the disk."""
        with cls._lock:
            for key in [key for key in cls._open if key[0].parent == folder]:
                del cls._open[key]

    @property
    def _batches(self) -> int:
        return -(-self.shard.count // BATCH)

    def _rows(self, index: int, at: int, count: int, images: bool) -> list[Record]:
        try:
            found = list(from_batch(self._batch(index, images).slice(at, count)))
        except (ValueError, TypeError, KeyError, RecursionError, ConfigError) as error:
            raise Corrupt(f"{self.path.name}: {error}") from error
        expected = self.shard.first + index * BATCH + at
        if [record.seq for record in found] != list(range(expected, expected + len(found))):
            raise Corrupt(f"{self.path.name}: the records from {expected} on are out of order.")
        return found

    def _batch(self, index: int, images: bool) -> pa.RecordBatch:
        """A checked batch: offsets that lead out of the file would otherwise end the process."""
        try:
            batch = self._reader(images).get_batch(index)
            batch.validate(full=True)
        except FileNotFoundError:  # its records are in another file by now, or it is missing: whoever asks looks
            raise
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            if isinstance(error, OSError) and isinstance(away := self._volume.fault(error), Away):
                raise away from error
            raise Corrupt(f"{self.path.name}: {error}") from error
        wanted = SCHEMA.names if images else WITHOUT_IMAGE
        if batch.num_rows != min(BATCH, self.shard.count - index * BATCH) or batch.schema.names != wanted:
            raise Corrupt(f"{self.path.name}: batch {index} is not what the manifest says.")
        return batch

    def _reader(self, images: bool) -> pa.ipc.RecordBatchFileReader:
        """Shards may be many and open files are few: the ones used last are kept open."""
        key = (self.path, images)
        with self._lock:
            if key not in self._open:
                fields = None if images else [SCHEMA.get_field_index(name) for name in WITHOUT_IMAGE]
                options = pa.ipc.IpcReadOptions(included_fields=fields)
                reader = pa.ipc.open_file(self._volume.open(self.shard.file), options=options)
                self._open[key] = reader, self.shard.bytes if images else 0  # pages that nobody reads take no room
            self._open.move_to_end(key)
            size = sum(size for _, size in self._open.values())
            while len(self._open) > OPEN_FILES or (size > OPEN_BYTES and len(self._open) > 1):
                size -= self._open.popitem(last=False)[1][1]
            return self._open[key][0]
