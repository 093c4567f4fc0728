"""What operators said of a line's images, from its log: the last word on each counts."""

from dataclasses import dataclass
from typing import Any

from .log import LogReader
from .record import Record


@dataclass(frozen=True)
class Word:
    """The last word on an image. record: number of the feedback record; learned: it was learned by some word."""

    record: int
    label: str
    learned: bool = False

    def to_json(self, of: int, changed: bool) -> dict[str, Any]:
        """The answer to who said it."""
        return {"record": self.record, "of": of, "label": self.label, "changed": changed}


def words(reader: LogReader) -> dict[int, Word]:
    """Number of an image's record -> the last word on it. Images are not read."""
    found: dict[int, Word] = {}
    for record in reader.of_kind("feedback"):
        heard(found, record)
    return found


def heard(known: dict[int, Word], record: Record) -> Word:
    """Takes one more feedback record in; returns what is the last word now."""
    of = record.data["of"]
    learned = bool(record.admitted) or (of in known and known[of].learned)
    known[of] = Word(record.seq, record.data["label"], learned)
    return known[of]
