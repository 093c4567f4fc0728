"""The open end of a log: a file of checked frames, each the records of one append.

    file    = b"EVERLOG1" marker crc32:u32 frame*      (crc32 of the marker)
    marker  = 8 random bytes, chosen when the file is made
    frame   = marker length:u32 crc32:u32 payload      (little-endian; crc32 of length and payload)
    payload = (head length:u32, image length:u32, head JSON, image bytes)*      (image length 2^32-1: no image)

A frame is written with one call and synced before anyone is told, and what a failed write left is cut off before
the next. So only the last frame can be torn: a bad frame with another one begun behind it is corruption, and is
never cut off in silence. Nobody outside knows the marker, so no image can look like a frame.
"""

import json
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..methods.errors import ConfigError, Corrupt
from .record import Record, plain_json
from .volume import Growing, Place, volume_of

MAGIC = b"EVERLOG1"
_START = struct.Struct("<8s8sI")
START = _START.size
_FRAME, _ROW, _LENGTH = struct.Struct("<8sII"), struct.Struct("<II"), struct.Struct("<I")
NO_IMAGE = 2**32 - 1
MAX_PAYLOAD = 2**31  # one append


def create(path: Place) -> tuple[Growing, bytes]:
    """A new durable segment, open to append: (segment, marker). Raises OSError; then nothing of it counts."""
    marker = secrets.token_bytes(8)
    return volume_of(path.parent).start(path.name, _START.pack(MAGIC, marker, zlib.crc32(marker))), marker


def encode(records: Sequence[Record], marker: bytes) -> bytes:
    """One frame. Raises ConfigError when it would be larger than 2 GiB, or `data` is not plain JSON."""
    rows = [(plain_json(record.head()).encode(), record.image) for record in records]
    size = sum(_ROW.size + len(head) + len(image or b"") for head, image in rows)
    if size > MAX_PAYLOAD:
        raise ConfigError(f"log: one append has at most {MAX_PAYLOAD} bytes, got {size}.")
    parts = []
    for head, image in rows:
        parts += [_ROW.pack(len(head), NO_IMAGE if image is None else len(image)), head, image or b""]
    payload = b"".join(parts)
    return _FRAME.pack(marker, len(payload), _crc(payload)) + payload


def decode(data: bytes, marker: bytes) -> list[Record]:
    """The records of frames that were written. Raises Corrupt where they are not as they were."""
    view, at, records = memoryview(data), 0, list[Record]()
    while at < len(data):
        payload = _payload(view, at, marker)
        if payload is None:
            raise Corrupt("a frame is not what was written.")
        records += _rows(payload)
        at += _FRAME.size + len(payload)
    return records


class End(NamedTuple):
    """What a segment holds: checked records, and how many bytes of a torn frame stand behind them."""

    records: list[Record]
    torn: int


def read(path: Place) -> End:
    """All checked records.

    Raises Corrupt for a bad frame with another one behind it, and for a file that is no segment; FileNotFoundError.
    """
    return Tail(path).read_on()


class Tail:
    """A segment that is read while it grows."""

    def __init__(self, path: Place) -> None:
        self.path, self._volume = path, volume_of(path.parent)
        self._at = 0  # locally, where the last frame begins: it can be taken back
        self._forget()

    def read_on(self) -> End:
        """All checked records; only what came since the last call is read. Raises as `read` does."""
        if self._at and not self._volume.remote:
            if (end := self._read_from_last()) is not None:
                return end
            self._forget()  # the last frame was taken back
        data, at = self._volume.grown(self.path.name, self._at)
        start = 0
        if not self._at:
            self._marker, start = self._head(data), START
        try:
            end = self._parse(memoryview(data), start)
            if self._volume.remote and end.torn:
                raise Corrupt(f"{self.path.name}: {end.torn} bytes that are no frame.")
        except Corrupt:
            self._forget()
            raise
        if self._volume.remote:
            self._at = at
        return end

    def _forget(self) -> None:
        self._records: list[Record] = []
        self._marker, self._at = b"", 0
        self._last, self._before = b"", 0

    def _read_from_last(self) -> End | None:
        """None where the last frame is not what it was."""
        data, _ = self._volume.grown(self.path.name, self._at)
        if data[: len(self._last)] != self._last:
            return None
        del self._records[self._before :]
        return self._parse(memoryview(data), 0)

    def _head(self, data: bytes) -> bytes:
        magic, marker, crc = _START.unpack_from(data) if len(data) >= START else (b"", b"", 0)
        if magic != MAGIC or zlib.crc32(marker) != crc:  # a manifest names whole files only, so this is no crash
            raise Corrupt(f"{self.path.name}: not a log segment.")
        return marker

    def _parse(self, data: memoryview, at: int) -> End:
        base = self._at
        while (payload := _payload(data, at, self._marker)) is not None:
            before = len(self._records)
            try:
                self._records += _rows(payload)
            except (ValueError, TypeError, KeyError, RecursionError, struct.error, ConfigError) as error:
                raise Corrupt(f"{self.path.name}: the frame at byte {base + at} holds no records: {error}") from error
            if not self._volume.remote:
                self._at, self._before = base + at, before
                self._last = bytes(data[at : at + _FRAME.size])
            at += _FRAME.size + len(payload)
        if self._marker in bytes(data[at + 1 :]):  # a later append was begun, so this one was acknowledged
            raise Corrupt(f"{self.path.name}: a bad frame at byte {base + at} with others behind it.")
        return End(list(self._records), len(data) - at)


def _payload(data: memoryview, at: int, marker: bytes) -> memoryview | None:
    """The payload of the frame at a place; None where there is no whole and checked one."""
    if len(data) - at < _FRAME.size:
        return None
    found, length, crc = _FRAME.unpack_from(data, at)
    payload = data[at + _FRAME.size :][:length]
    return payload if found == marker and len(payload) == length > 0 and _crc(payload) == crc else None


def _crc(payload: bytes | memoryview) -> int:
    return zlib.crc32(payload, zlib.crc32(_LENGTH.pack(len(payload))))


def _rows(payload: memoryview) -> Iterator[Record]:
    at = 0
    while at < len(payload):
        head, image = _ROW.unpack_from(payload, at)
        at += _ROW.size
        plain = json.loads(bytes(payload[at : at + head]))
        at += head
        size = 0 if image == NO_IMAGE else image
        if at + size > len(payload):
            raise ValueError("a record reaches beyond its frame")
        yield Record(**plain, image=None if image == NO_IMAGE else bytes(payload[at : at + size]))
        at += size
