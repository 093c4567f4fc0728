"""A trial of a sweep: what is to be run, and what came of it. Plain values that cross processes and a crash.

OUT/trials/NUMBER-KEY.json holds a `TrialRecord` of each trial that has ended, written whole or not at all by whoever
ran it; its heatmaps lie beside it as NUMBER-KEY.png. What is there is never run again.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...methods.errors import DataError
from ..data.fingerprint import checksum
from ..files import Whole
from ..records.results import MAX_BYTES, Result
from ..records.rows import Row

SEARCH, HELD_OUT = "search", "held-out"
COMPLETE, STOPPED, FAILED = "complete", "stopped", "failed"
Point = tuple[int, int, float]  # images (steps of a sequence) at a point of a curve, of how many, the figure there


@dataclass(frozen=True)
class Item:
    """A trial to run: one configuration of one method on one task, or ("" for the task) on all in sequence.

    configuration: its number; trials of one configuration differ in `task` and `phase` alone. phase: SEARCH on the
    images to choose by, or HELD_OUT on the others. params: beside those that are fixed. cutoffs: where the figure at
    so many images is below this, the trial is stopped.
    """

    number: int
    configuration: int
    method: str
    memory: int | None
    params: Mapping[str, Any]
    task: str
    phase: str = SEARCH
    cutoffs: Mapping[int, float] = field(default_factory=dict)

    def key(self, asked: str) -> str:
        """Names the trial by all that decides what comes of it. asked: what the sweep was asked for, as text."""
        return checksum(asked, json.dumps({**asdict(self), "cutoffs": sorted(self.cutoffs.items())}, sort_keys=True))


@dataclass(frozen=True)
class TrialRecord:
    """What came of an item. result: its record, of a stopped one as far as its curve came; None where it failed.

    objective: NaN but for a complete trial. points: of the first seed's curve, without the last. seconds: wall time.
    """

    item: Item
    key: str
    status: str
    objective: float = math.nan
    result: Result | None = None
    points: Sequence[Point] = ()
    seconds: float = math.nan
    error: str = ""

    @property
    def stem(self) -> str:
        """The name of its files, without what stands behind the point."""
        return stem(self.item, self.key)

    def to_json(self) -> dict[str, Any]:
        """Plain values, NaN as None."""
        return {
            "item": {**asdict(self.item), "cutoffs": sorted(self.item.cutoffs.items())},
            "key": self.key,
            "status": self.status,
            "objective": _number(self.objective),
            "result": None if self.result is None else self.result.to_json(),
            "points": [[images, of, _number(value)] for images, of, value in self.points],
            "seconds": _number(self.seconds),
            "error": self.error,
        }

    @classmethod
    def from_json(cls, plain: Any, who: str = "trial") -> "TrialRecord":
        """The reverse. Raises DataError for anything else."""
        row = Row(plain, who)
        item = Row(row.get("item", dict), f"{who}: item")
        result = row.plain.get("result")
        status = row.get("status", str)
        if status not in (COMPLETE, STOPPED, FAILED) or (status == COMPLETE and result is None):
            raise DataError(f"{who}: status {status!r} without its record; this is no trial of a sweep.")
        return cls(
            item=Item(
                **{name: item.get(name, int) for name in ("number", "configuration")},
                **{name: item.get(name, str) for name in ("method", "task", "phase")},
                memory=item.get("memory", (int, type(None))),
                params=item.get("params", dict),
                cutoffs={int(at): value for at, value in _tuples(item.get("cutoffs", list), 2, who)},
            ),
            key=row.get("key", str),
            status=status,
            objective=row.figure("objective"),
            result=None if result is None else Result.from_json(result, f"{who}: result"),
            points=[(int(a), int(of), value) for a, of, value in _tuples(row.get("points", list), 3, who)],
            seconds=row.figure("seconds"),
            error=row.get("error", str),
        )


def stem(item: Item, key: str) -> str:
    """The name of a trial's files in OUT/trials, without what stands behind the point."""
    return f"{item.number:05d}-{key[:16]}"


def write_trial(folder: Path, record: TrialRecord) -> None:
    """Writes it whole or not at all. Raises StoreError."""
    with Whole(folder / f"{record.stem}.json") as half:
        half.write_text(json.dumps(record.to_json(), indent=1, allow_nan=False), "utf-8")


def read_trial(folder: Path, item: Item, key: str) -> TrialRecord | None:
    """The record of an item that has ended; None where there is none. Raises DataError for a file that is no such."""
    file = folder / f"{stem(item, key)}.json"
    if not file.is_file():
        return None
    if file.stat().st_size > MAX_BYTES:
        raise DataError(f"{file}: larger than {MAX_BYTES:,} bytes; this is no trial of a sweep.")
    try:
        plain = json.loads(file.read_text("utf-8"))
        found = TrialRecord.from_json(plain, str(file))
    except (OSError, ValueError, RecursionError, DataError) as error:
        raise DataError(f"{file}: not a trial of a sweep; delete it, and the trial is run again: {error}") from error
    if found.key != key:
        raise DataError(f"{file}: made by another sweep; name another --out.")
    return replace(found, item=item)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _tuples(listed: list[Any], length: int, who: str) -> list[list[float]]:
    found = [Row({"row": one}, who).numbers("row") for one in listed]
    if any(len(row) != length for row in found):
        raise DataError(f"{who}: expected rows of {length} numbers.")
    return found
