"""One row of a line's log, and the Arrow schema of sealed shards."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import pyarrow as pa

from ..methods.errors import ConfigError


@dataclass(frozen=True)
class Record:
    """Appended once, never changed. Numbers must be finite; `data` is further plain JSON."""

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
        for name in ("score", "p_value", "threshold"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"record {self.id!r}: {name} must be finite, got {value}.")

    def head(self) -> dict[str, Any]:
        """Everything but the image, as plain JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "image"}


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
        pa.field("image", pa.large_binary()),
    ]
)


def to_batch(records: Sequence[Record]) -> pa.RecordBatch:
    """Records as one Arrow batch."""
    rows = {name: [getattr(r, name) for r in records] for name in SCHEMA.names if name != "data"}
    rows["data"] = [json.dumps(r.data, allow_nan=False) for r in records]
    return pa.RecordBatch.from_arrays([pa.array(rows[f.name], f.type) for f in SCHEMA], schema=SCHEMA)


def from_batch(batch: pa.RecordBatch) -> Iterable[Record]:
    """The reverse; a batch read without its image column gives records without images."""
    for row in batch.to_pylist():
        yield Record(**{**row, "data": json.loads(row["data"])})
