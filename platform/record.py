"""One row of a line's log, and the Arrow schema of sealed shards."""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from ..methods.errors import ConfigError, Corrupt

_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "id": (str,),
    "time_ns": (int,),
    "image": (bytes, type(None)),
    "task": (str,),
    "score": (float, int, type(None)),
    "p_value": (float, int, type(None)),
    "threshold": (float, int, type(None)),
    "version": (int, type(None)),
    "verdict": (str, type(None)),
    "admitted": (bool, type(None)),
    "data": (dict,),
    "seq": (int,),
}
_JSON = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # `dumps` would make one for each call
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Record:
    """Appended once, never changed. Numbers must be finite; `data` is further plain JSON.

    Raises ConfigError for what a shard could not hold: a record that can be appended can be sealed.
    """

    kind: str  # image, publish, rollback, feedback, task, ...
    id: str  # of an image: its identity, unique among the images of the line
    time_ns: int = 0  # since the Unix epoch
    image: bytes | None = None  # encoded, as it came
    task: str = ""
    score: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    version: int | None = None
    verdict: str | None = None
    admitted: bool | None = None  # whether the line learns from it
    data: dict[str, Any] = field(default_factory=dict)
    seq: int = -1  # given by the log: 0, 1, 2, ...

    def __post_init__(self) -> None:
        for name, types in _TYPES.items():
            value = getattr(self, name)
            if type(value) not in types and (not isinstance(value, types) or isinstance(value, bool)):
                kinds = " or ".join(kind.__name__ for kind in types)
                raise ConfigError(f"record {self.id!r}: {name} must be {kinds}, got {type(value).__name__}.")
            if isinstance(value, int) and value not in _INT64:
                raise ConfigError(f"record {self.id!r}: {name} must fit into 64 bits, got {value:.3e}.")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"record {self.id!r}: {name} must be finite, got {value}.")
            if isinstance(value, str) and not _utf8(value):
                raise ConfigError(f"record {self.id!r}: {name} is not text that UTF-8 can hold.")

    def head(self) -> dict[str, Any]:
        """Everything but the image, as plain JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "image"}


def plain_json(data: dict[str, Any]) -> str:
    """JSON of plain values. Raises ConfigError for anything else, and for NaN."""
    try:
        return _JSON.encode(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"record: `data` must be plain JSON without NaN: {error}.") from error


SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("id", pa.string(), nullable=False),
        pa.field("time_ns", pa.int64(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("p_value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("version", pa.int64()),
        pa.field("verdict", pa.string()),
        pa.field("admitted", pa.bool_()),
        pa.field("data", pa.string(), nullable=False),  # JSON
        pa.field("image_crc32", pa.uint32()),
        pa.field("image", pa.large_binary()),
    ]
)
COMPUTED = {"data", "image_crc32"}  # columns that are not simply an attribute of the record


def to_batch(records: Sequence[Record]) -> pa.RecordBatch:
    """Records as one Arrow batch."""
    rows = {name: [getattr(r, name) for r in records] for name in SCHEMA.names if name not in COMPUTED}
    rows["data"] = [plain_json(r.data) for r in records]
    rows["image_crc32"] = [None if r.image is None else zlib.crc32(r.image) for r in records]
    return pa.RecordBatch.from_arrays([pa.array(rows[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def from_batch(batch: pa.RecordBatch) -> Iterator[Record]:
    """The reverse; a batch read without its image column gives records without images.

    Raises Corrupt where an image does not match its checksum.
    """
    for row in batch.to_pylist():
        crc, image = row.pop("image_crc32"), row.get("image")
        if image is not None and zlib.crc32(image) != crc:
            raise Corrupt(f"record {row['seq']}: the image does not match its checksum.")
        yield Record(**{**row, "data": json.loads(row["data"])})


def _utf8(text: str) -> bool:
    """Whether UTF-8 can hold it: half a surrogate pair it cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
