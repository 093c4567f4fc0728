"""Sealed shards: immutable Arrow IPC files of up to 512 records, memory-mapped, in batches of 64."""

import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from ..methods.errors import Corrupt
from .manifest import Shard, sync_folder
from .record import SCHEMA, Record, from_batch, to_batch

BATCH = 64
WITHOUT_IMAGE = [name for name in SCHEMA.names if name != "image"]


def write(folder: Path, name: str, records: Sequence[Record]) -> Shard:
    """Writes a shard whole or not at all; it counts once a manifest names it."""
    half = folder / f".{name}.{os.getpid()}.tmp"
    try:
        with half.open("wb") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                for start in range(0, len(records), BATCH):
                    writer.write_batch(to_batch(records[start : start + BATCH]))
            file.flush()
            os.fsync(file.fileno())
        size, crc = half.stat().st_size, crc_of(half)
        half.rename(folder / name)
    finally:
        half.unlink(missing_ok=True)
    sync_folder(folder)
    return Shard(name, records[0].seq, len(records), size, crc)


def crc_of(path: Path) -> int:
    """crc32 of a whole file."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc


class ShardFile:
    """An open shard. Reads only the batches and columns that are asked for."""

    def __init__(self, folder: Path, shard: Shard) -> None:
        """Raises Corrupt where the file is not the one that the manifest names, FileNotFoundError."""
        self.shard, self.path = shard, folder / shard.file
        if self.path.stat().st_size != shard.bytes:
            raise Corrupt(f"{self.path.name}: {self.path.stat().st_size} bytes, the manifest says {shard.bytes}.")
        self._source = pa.memory_map(str(self.path))
        self._readers: dict[bool, pa.ipc.RecordBatchFileReader] = {}

    def records(self, first: int, images: bool) -> Iterator[Record]:
        """Records from number `first` on."""
        skip = max(0, first - self.shard.first)
        for index in range(skip // BATCH, -(-self.shard.count // BATCH)):
            batch = self._batch(index, images)
            yield from from_batch(batch.slice(max(0, skip - index * BATCH)))

    def record(self, seq: int) -> Record:
        """One record; nothing else is read."""
        index, row = divmod(seq - self.shard.first, BATCH)
        (record,) = from_batch(self._batch(index, True).slice(row, 1))
        return record

    def columns(self, *names: str) -> Iterator[dict[str, list[object]]]:
        """The named columns, batch by batch."""
        for index in range(-(-self.shard.count // BATCH)):
            yield self._batch(index, False).select(list(names)).to_pydict()

    def check(self) -> None:
        """Raises Corrupt where any byte differs from what was sealed."""
        if crc_of(self.path) != self.shard.crc32:
            raise Corrupt(f"{self.path.name}: the checksum does not match.")

    def _batch(self, index: int, images: bool) -> pa.RecordBatch:
        try:
            if images not in self._readers:
                fields = None if images else [SCHEMA.get_field_index(name) for name in WITHOUT_IMAGE]
                options = pa.ipc.IpcReadOptions(included_fields=fields)
                self._readers[images] = pa.ipc.open_file(self._source, options=options)
            return self._readers[images].get_batch(index)
        except pa.ArrowException as error:
            raise Corrupt(f"{self.path.name}: {error}") from error
