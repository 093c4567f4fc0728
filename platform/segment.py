"""The open end of a log: a file of checked frames, each the records of one append.

    file   = b"EVERLOG1" frame*
    frame  = b"FRAM" length:u32 crc32:u32 payload            (little-endian; crc32 of the payload)
    payload = (head length:u32, image length:u32, head JSON, image bytes)*      (image length 2^32-1: no image)

A frame is written with one call and synced before anyone is told. So only the last frame can be torn; a bad
frame with a good one behind it is corruption, and is never cut off in silence.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..methods.errors import ConfigError, Corrupt
from .record import Record

MAGIC, FRAME = b"EVERLOG1", b"FRAM"
_FRAME, _ROW = struct.Struct("<4sII"), struct.Struct("<II")
NO_IMAGE = 2**32 - 1
MAX_PAYLOAD = 2**31  # one append


def encode(records: Sequence[Record]) -> bytes:
    """One frame. Raises ConfigError when it would be larger than 2 GiB."""
    parts = []
    for record in records:
        head = json.dumps(record.head(), allow_nan=False, separators=(",", ":")).encode()
        parts += [_ROW.pack(len(head), NO_IMAGE if record.image is None else len(record.image)), head]
        parts.append(record.image or b"")
    payload = b"".join(parts)
    if len(payload) > MAX_PAYLOAD:
        raise ConfigError(f"log: one append has at most {MAX_PAYLOAD} bytes, got {len(payload)}.")
    return _FRAME.pack(FRAME, len(payload), zlib.crc32(payload)) + payload


class End(NamedTuple):
    """What a segment holds: checked records, and how many bytes of a torn frame stand behind them."""

    records: list[Record]
    torn: int


def read(path: Path) -> End:
    """All checked records.

    Raises Corrupt for a bad frame with a good one behind it, and for a file that is no segment.
    """
    data = memoryview(path.read_bytes())
    if bytes(data[: len(MAGIC)]) != MAGIC[: len(data)]:
        raise Corrupt(f"{path.name}: not a log segment.")
    if len(data) < len(MAGIC):  # died while it was made
        return End([], 0)
    records: list[Record] = []
    at = len(MAGIC)
    while (payload := _payload(data, at)) is not None:
        records += _rows(payload)
        at += _FRAME.size + len(payload)
    if _good_frame_behind(data, at):
        raise Corrupt(f"{path.name}: a bad frame at byte {at} with good ones behind it.")
    return End(records, len(data) - at)


def _payload(data: memoryview, at: int) -> memoryview | None:
    """The payload of the frame at a place; None where there is no whole and checked one."""
    if len(data) - at < _FRAME.size:
        return None
    magic, length, crc = _FRAME.unpack_from(data, at)
    start = at + _FRAME.size
    if magic != FRAME or len(data) - start < length or zlib.crc32(data[start : start + length]) != crc:
        return None
    return data[start : start + length]


def _good_frame_behind(data: memoryview, at: int) -> bool:
    raw = bytes(data[at + 1 :])
    place = raw.find(FRAME)
    while place >= 0:
        if _payload(data, at + 1 + place) is not None:
            return True
        place = raw.find(FRAME, place + 1)
    return False


def _rows(payload: memoryview) -> Iterator[Record]:
    at = 0
    while at < len(payload):
        head, image = _ROW.unpack_from(payload, at)
        at += _ROW.size
        plain = json.loads(bytes(payload[at : at + head]))
        at += head
        size = 0 if image == NO_IMAGE else image
        yield Record(**plain, image=None if image == NO_IMAGE else bytes(payload[at : at + size]))
        at += size
