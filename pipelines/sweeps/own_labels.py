"""What a line's log says of its images: normal, or a defect, and by whose word.

An operator's word is a record of kind `feedback` with `{"of": number of the image's record, "label": "ok" or
"defect"}`; of several, the last counts. Where no operator spoke there is the guard's opinion: what it admitted to
learning is normal, what it rejected is a defect. Before a line's first version everything is admitted, and nobody
has looked. The rest (inspected only, and passed) says nothing and is left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from ...methods.errors import DataError
from ...platform.record import Record

OPERATOR, GUARD, NOBODY = "operator", "guard", "nobody"
LABELS = {"ok": False, "defect": True}


@dataclass(frozen=True)
class Label:
    """What is known of the image of record `seq`. by: OPERATOR, GUARD or NOBODY."""

    seq: int
    id: str
    defect: bool
    by: str


def read_labels(records: Iterable[Record]) -> tuple[list[Label], int]:
    """All of a log's records, in order (without their images, to be quick) -> labels in order, images left out.

    Raises DataError for feedback that is none.
    """
    opinions: dict[int, Label | None] = {}
    ids: dict[int, str] = {}
    repeats: dict[int, int] = {}
    for record in records:
        if record.kind == "image":
            opinions[record.seq], ids[record.seq] = _opinion(record), record.id
        elif record.kind == "repeat" and isinstance(record.data.get("of"), int):
            repeats[record.seq] = record.data["of"]
        elif record.kind == "feedback":
            of, defect = _feedback(record)
            of = repeats.get(of, of)
            if of not in opinions:
                raise DataError(f"record {record.seq}: feedback on record {of}, which is no image of this log.")
            opinions[of] = Label(of, ids[of], defect, OPERATOR)
    labels = [label for label in opinions.values() if label is not None]
    return labels, len(opinions) - len(labels)


def _opinion(record: Record) -> Label | None:
    if record.data.get("unknown_sender"):
        return None
    if record.admitted:
        return Label(record.seq, record.id, False, NOBODY if record.verdict == "learning" else GUARD)
    return Label(record.seq, record.id, True, GUARD) if record.verdict == "reject" else None


def _feedback(record: Record) -> tuple[int, bool]:
    of, label = record.data.get("of"), record.data.get("label")
    if not isinstance(of, int) or isinstance(of, bool) or not isinstance(label, str) or label not in LABELS:
        raise DataError(f"record {record.seq}: feedback names a record and says ok or defect, got {record.data!r}.")
    return of, LABELS[label]
