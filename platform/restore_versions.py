"""The versions of a line, registered again in an MLflow that has lost them: from the log, under their old numbers.

A version is only registered where all bits are those that were published: their digests stand in the log.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..methods.errors import Corrupt, StateError
from .calibration import Calibration
from .checkpoints import Checkpoints
from .fold import Fold, Publish
from .line import machine, publication_key, version_tags
from .log import LogReader
from .rebuild import SNAPSHOT, base_of, replayed
from .record import Record
from .settings import LineSettings
from .threads import threads
from .versions import Versions


@dataclass
class Restored:
    """What came of it. lost: number of a version -> why it could not be registered."""

    line: str
    restored: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)  # that MLflow had
    lost: dict[int, str] = field(default_factory=dict)
    current: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def restore_versions(
    versions: Versions,
    reader: LogReader,
    settings: LineSettings,
    told: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> Restored:
    """Registers what the log says was published, the newest `keep_versions`, and makes the current one current.

    settings: the line's, as they were then: with others the log leads to other bits, which are not registered. The
    line does not run. told(stage, done, of): records folded. Raises TrackingError, Corrupt, StoreError.
    """
    published = {record.version: record for record in reader.of_kind("publish") if record.version is not None}
    there = {one.version: one.key for one in versions.list()}
    found = Restored(versions.line)
    found.current = _current(reader)
    newest = sorted(published)[-settings.keep_versions or None :]
    for number, record in sorted(published.items()):
        if there.get(number) == record.data["key"]:
            found.known.append(number)
        elif number not in newest and number != found.current:
            found.lost[number] = f"older than the {settings.keep_versions} versions that are kept"
    wanted = {number: published[number] for number in sorted(published) if number not in {*found.known, *found.lost}}
    with threads(settings.threads):
        for number, ready in _made(wanted, reader, settings, told):
            if isinstance(ready, str):
                found.lost[number] = ready
            else:
                _register(versions, number, ready, settings, found)
    if found.current in {*found.restored, *found.known}:
        versions.rollback(found.current)
    elif found.current is not None:
        found.lost.setdefault(found.current, "the line's own log did not make it (a person or a sweep did)")
    return found


def _current(reader: LogReader) -> int | None:
    """The version that the log says is current."""
    turns = [record for kind in ("publish", "rollback") for record in reader.of_kind(kind)]
    return max(turns, key=lambda record: record.seq).version if turns else None


def _register(versions: Versions, number: int, ready: Publish, settings: LineSettings, found: Restored) -> None:
    tags = version_tags(settings, [machine(settings.threads, settings.device)]) | {"restored": "true"}
    key = publication_key(versions.line, ready)
    if versions.publish_as(number, ready.state, ready.calibration, watermark=ready.watermark, key=key, tags=tags):
        found.restored.append(number)
    else:
        found.lost[number] = "MLflow has given its number to another version"


def _made(
    wanted: Mapping[int, Record], reader: LogReader, settings: LineSettings, told: Callable[[str, int, int], None]
) -> "list[tuple[int, Publish | str]]":
    """Each version wanted, by number, or why it cannot be had: the line's own copy, else folded from the log."""
    own = {number: copy for number, record in wanted.items() if (copy := _own_copy(number, record, reader))}
    keys = {record.data["key"]: number for number, record in wanted.items() if number not in own}
    folded = _folded(keys, wanted, reader, settings, told) if keys else {}
    other = "with the line's settings of today the log leads to other bits, or its images are gone"
    return [(number, own.get(number) or folded.get(number) or other) for number in wanted]


def _own_copy(number: int, record: Record, reader: LogReader) -> Publish | None:
    """What the line keeps of its current version, if it is that one to the last bit."""
    try:
        states, meta = Checkpoints(reader.folder / "current").load(number)
    except Corrupt:
        return None
    watermark, calibration = int(record.data["watermark"]), Calibration.from_json(meta["calibration"])
    ready = Publish(f"{SNAPSHOT}-{watermark}", states["current"], calibration, watermark)
    return ready if publication_key(reader.folder.name, ready) == record.data["key"] else None


def _folded(
    keys: Mapping[str, int],
    wanted: Mapping[int, Record],
    reader: LogReader,
    settings: LineSettings,
    told: Callable[[str, int, int], None],
) -> dict[int, Publish]:
    fold = _begun(sorted(int(wanted[number].data["watermark"]) for number in keys.values()), reader, settings)
    if fold is None:
        return {}
    last = max(wanted[number].seq for number in keys.values())
    found: dict[int, Publish] = {}
    for record, ready in replayed(fold, reader, told):
        if ready is not None and (number := keys.get(publication_key(reader.folder.name, ready))) is not None:
            found[number] = ready
        if record.seq >= last or len(found) == len(keys):
            break
    return found


def _begun(watermarks: list[int], reader: LogReader, settings: LineSettings) -> Fold | None:
    """A fold before the first record; where old images are gone, at the checkpoint that the most versions follow."""
    if not reader.images_from:
        return Fold.of(settings)
    for mark in watermarks:
        if (base := base_of(reader, mark)) is not None:
            fold = Fold.of(settings)
            try:
                fold.unpack(base[1], base[2])
            except StateError:  # of other settings
                return None
            return fold
    return None
