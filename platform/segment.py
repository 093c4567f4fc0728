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
import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..methods.errors import ConfigError, Corrupt
from .manifest import sync_folder
from .record import Record, plain_json

MAGIC = b"EVERLOG1"
_START = struct.Struct("<8s8sI")
START = _START.size
_FRAME, _ROW, _LENGTH = struct.Struct("<8sII"), struct.Struct("<II"), struct.Struct("<I")
NO_IMAGE = 2**32 - 1
MAX_PAYLOAD = 2**31  # one append


def create(path: Path) -> tuple[int, bytes]:
    """A new durable segment, open to append: (file descriptor, marker). Raises OSError; then nothing is left."""
    marker = secrets.token_bytes(8)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        write_all(file, _START.pack(MAGIC, marker, zlib.crc32(marker)))
        os.fsync(file)
        sync_folder(path.parent)
    except BaseException:
        os.close(file)
        path.unlink(missing_ok=True)
        raise
    return file, marker


def write_all(file: int, data: bytes) -> None:
    """Writes on where a write was short. Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


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


class End(NamedTuple):
    """What a segment holds: checked records, and how many bytes of a torn frame stand behind them."""

    records: list[Record]
    torn: int


def read(path: Path) -> End:
    """All checked records.

    Raises Corrupt for a bad frame with another one behind it, and for a file that is no segment; FileNotFoundError.
    """
    data = memoryview(path.read_bytes())
    magic, marker, crc = _START.unpack_from(data) if len(data) >= START else (b"", b"", 0)
    if magic != MAGIC or zlib.crc32(marker) != crc:  # a manifest names whole files only, so this is no crash
        raise Corrupt(f"{path.name}: not a log segment.")
    records: list[Record] = []
    at = START
    while (payload := _payload(data, at, marker)) is not None:
        try:
            records += _rows(payload)
        except (ValueError, TypeError, KeyError, RecursionError, struct.error, ConfigError) as error:
            raise Corrupt(f"{path.name}: the frame at byte {at} holds no records: {error}") from error
        at += _FRAME.size + len(payload)
    if marker in bytes(data[at + 1 :]):  # a later append was begun, so this one was acknowledged
        raise Corrupt(f"{path.name}: a bad frame at byte {at} with others behind it.")
    return End(records, len(data) - at)


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
