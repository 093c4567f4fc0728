"""The newest answers of a line, for people who watch it: held in memory, bounded, and made from the log alone."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from ..methods.errors import ConfigError, UnknownImage
from .line import Line
from .log import LogReader
from .record import Record
from .volume import Place

KEPT = 500  # answers that are held, and as many rejects beside them, which may be older
SCANNED = 5000  # records that are read back for it
AT_HAND = 64  # records behind which are fetched one by one; more are read in one go
VERDICTS = ("pass", "reject", "learning")


class Recent:
    """The last answers and the last rejects, by record number; images that came again (`repeat`) are left out."""

    def __init__(self) -> None:
        self.next_seq = 0  # the first record that it has not seen
        self._all: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._rejects: OrderedDict[int, dict[str, Any]] = OrderedDict()  # the same rows

    def read(self, folder: Place) -> None:
        """Catches up from the log's files, without images; takes as long as it takes. Raises Corrupt, StoreError."""
        reader = LogReader(folder)
        self.take(reader.records(max(self.next_seq, len(reader) - SCANNED) - 1, images=False))

    def behind(self, line: Line) -> bool:
        """Whether so much is missing that it is better read from the files."""
        return line.writer.next_seq - self.next_seq > AT_HAND

    def follow(self, line: Line) -> None:
        """Catches up with what the line's writer holds. Only in the line's own thread."""
        self.take(line.writer.get(range(self.next_seq, line.writer.next_seq)))

    def take(self, records: Iterable[Record]) -> None:
        """The next records, in order."""
        for record in records:
            if record.seq < self.next_seq:
                continue
            self.next_seq = record.seq + 1
            if record.kind == "image":
                self._add(record)
            elif record.kind == "feedback":
                self._label(record)

    def rows(self, limit: int, before: int | None = None, verdict: str | None = None) -> list[dict[str, Any]]:
        """Newest first; before: only records with a lower number. Raises ConfigError."""
        if not 1 <= limit <= KEPT:
            raise ConfigError(f"recent images: limit must be 1 to {KEPT}, not {limit!r}.")
        if verdict is not None and verdict not in VERDICTS:
            raise ConfigError(f"recent images: verdict must be one of {', '.join(VERDICTS)}, not {verdict!r}.")
        rows = (self._rejects if verdict == "reject" else self._all).values()
        fit = (r for r in reversed(rows) if before is None or r["record"] < before)
        found = [r for r in fit if verdict in (None, r["verdict"])]
        return [dict(row) for row in found[:limit]]

    def _add(self, record: Record) -> None:
        row = {
            "id": record.id,
            "record": record.seq,
            "time_ns": record.time_ns,
            "task": record.task,
            "verdict": record.verdict or "learning",
            "score": record.score,
            "p_value": record.p_value,
            "threshold": record.threshold,
            "version": record.version,
            "calibrated": bool(record.data.get("calibrated")),
            "admitted": bool(record.admitted),
            "label": None,
            "by": "",
        }
        for rows in (self._all, self._rejects) if row["verdict"] == "reject" else (self._all,):
            rows[record.seq] = row
            if len(rows) > KEPT:
                rows.popitem(last=False)

    def _label(self, record: Record) -> None:
        of = record.data.get("of")
        row = self._all.get(of) or self._rejects.get(of)  # type: ignore[arg-type]
        if row is not None:
            row["label"], row["by"] = record.data.get("label"), record.data.get("by") or ""


def image_of(line: Line, id: str) -> bytes:
    """An image's bytes as they came. Raises UnknownImage, ConfigError where retention dropped them, StoreError."""
    if id not in line.ids:
        raise UnknownImage(f"line {line.name}: no image {id!r} in its log.")
    (record,) = line.writer.get([line.ids[id]])
    if record.image is None:
        raise ConfigError(
            f"line {line.name}: the bytes of image {id!r} were dropped (keep_days, keep_images, keep_gib); "
            f"its record, {record.seq}, is kept."
        )
    return record.image
