"""A published version made again from the log, and compared with what MLflow holds, to the last bit.

What it takes: method and parameters (the seed among them) from the version's own state, the rate from its calibration,
what else decided from its tags, and the records from the first on. The fleet file of today does not come into it.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..methods.detector import State
from ..methods.errors import Corrupt, StateError, UnknownVersion
from .calibration import Calibration
from .checkpoints import Checkpoints
from .fold import Fold, Publish
from .line import embed_image, machine, publication_key
from .log import LogReader
from .record import Record
from .settings import LineSettings
from .statefiles import canonical, digest
from .threads import threads
from .versions import Version, Versions

SNAPSHOT = "snapshot"  # in the key of a version that a line's own learner made


@dataclass(frozen=True)
class Rebuilt:
    """What came of it. equal: None where the line's log did not make the version, so that there is nothing to prove.

    published: whether the rebuilt bits are those that were published (their digests are in the version's key); where
    they are and `equal` is False, what MLflow holds was changed since.
    """

    line: str
    version: int
    equal: bool | None
    published: bool = False
    records: int = 0  # of the log that were folded
    images_learned: int = 0
    state: str = ""  # digest of the rebuilt state
    differences: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)  # why bits may differ although nothing is wrong

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def rebuild(
    versions: Versions,
    number: int,
    reader: LogReader,
    settings: LineSettings,
    told: Callable[[str, int, int], None] = lambda stage, done, of: None,
) -> Rebuilt:
    """Folds the log from its first record with the settings that the version was made with. No lock is taken.

    settings: the line's of today, for what older versions do not say. told(stage, done, of): records folded.
    Raises UnknownVersion, TrackingError, Corrupt (the log, or a version whose files cannot even be read).
    """
    known = {version.version: version for version in versions.list()}
    if number not in known:
        valid = ", ".join(map(str, sorted(known))) or "none"
        raise UnknownVersion(f"line {versions.line}: no version {number}; valid: {valid}.")
    version = known[number]
    kind = version.key.removeprefix(f"{versions.line}/").partition("-")[0]
    if kind != SNAPSHOT:
        return Rebuilt(versions.line, number, None, differences=[_origin(version)])
    stored, differences = _stored(versions, number)
    made = _Made.of(version, stored, settings)
    with threads(made.threads):
        fold, since = made.fold(), []
        if reader.images_from:
            since = _resumed(fold, version, reader)
        found = _found(fold, version, reader, told)
        caveats = [*since, *made.caveats()]
    done: dict[str, Any] = {"records": fold.watermark + 1, "caveats": caveats}
    if found is None:
        differences.append(_nowhere(version, fold))
        return Rebuilt(versions.line, number, False, differences=differences, **done)
    differences += _differences(stored, (found.state, found.calibration))
    return Rebuilt(
        versions.line,
        number,
        equal=not differences,
        published=publication_key(versions.line, found) == version.key,
        images_learned=int(found.state.meta["images_learned"]),
        state=digest(found.state),
        differences=differences,
        **done,
    )


@dataclass(frozen=True)
class _Made:
    """How a version was made, as it says itself."""

    method: str
    params: dict[str, Any]
    false_reject_rate: float
    publish_every: int
    probation: int
    threads: int
    device: str
    made_on: str
    drift: str
    guessed: list[str]

    @classmethod
    def of(cls, version: Version, stored: tuple[State, Calibration], today: LineSettings) -> "_Made":
        """Raises StateError for a state that does not say what made it."""
        (state, calibration), tags = stored, version.tags
        method, params = state.meta.get("method"), state.meta.get("params")
        if not isinstance(method, str) or not isinstance(params, dict):
            raise StateError(f"version {version.version}: its state does not say which method and parameters made it.")
        names = ("publish_every", "probation", "threads", "device", "drift")
        fallback = {name: getattr(today, name) for name in names}
        say = {name: tags.get(name, str(value)) for name, value in fallback.items()}
        return cls(
            method=method,
            params=dict(params),
            false_reject_rate=calibration.false_reject_rate,
            publish_every=_number(say["publish_every"]),
            probation=_number(say["probation"]),
            threads=_number(say["threads"]),
            device=say["device"] if torch.device(say["device"]).type == "cpu" or torch.cuda.is_available() else "cpu",
            made_on=tags.get("made_on", ""),
            drift=say["drift"],
            guessed=[name for name in fallback if name not in tags],
        )

    def fold(self) -> Fold:
        """Before the first record."""
        return Fold.of(self)

    def caveats(self) -> list[str]:
        """What may make other bits here than there, in sentences."""
        here = machine(self.threads, self.device)
        told = []
        if self.guessed:
            told.append(f"an older version, which does not say its {', '.join(self.guessed)}: as in the fleet file")
        if "; " in self.made_on:
            told.append(f"the line learned on more than one kind of machine until then: {self.made_on}; here: {here}")
        elif self.made_on and self.made_on != here:
            told.append(f"it was made on another kind of machine: {self.made_on}; here: {here}")
        return told


def _resumed(fold: Fold, version: Version, reader: LogReader) -> list[str]:
    """Old images are gone: from the newest checkpoint that is no newer than the version. Raises StateError."""
    gone = f"the images before record {reader.images_from} are gone (keep_days, keep_images, keep_gib)"
    base = base_of(reader, version.watermark)
    if base is None:
        raise StateError(
            f"line {reader.folder.name}: {gone}, and no checkpoint before version {version.version} was kept: it "
            "cannot be made again."
        )
    seq, states, meta = base
    fold.unpack(states, meta)
    return [f"{gone}: rebuilt from the checkpoint after record {seq}, and not from the first record"]


def base_of(reader: LogReader, watermark: int) -> tuple[int, dict[str, State], dict[str, Any]] | None:
    """The newest checkpoint (record, states, meta) that has seen no more; None where images behind it are gone."""
    base = Checkpoints(reader.folder / "checkpoints").latest(upto=watermark)
    return None if base is None or base[0] + 1 < reader.images_from else base


def replayed(
    fold: Fold, reader: LogReader, told: Callable[[str, int, int], None]
) -> Iterator[tuple[Record, Publish | None]]:
    """Applies the records that follow, one by one: each, and what became due by it. Raises Corrupt."""

    def embed(record: Record) -> Tensor:
        if record.image is None:
            raise Corrupt(f"{reader.folder}: record {record.seq} has no image to learn from.")
        return embed_image(fold.learner, record.image)

    for record in reader.records(after=fold.watermark):
        ready = fold.apply(record, embed)
        told("records", record.seq + 1, len(reader))
        yield record, ready


def _found(fold: Fold, version: Version, reader: LogReader, told: Callable[[str, int, int], None]) -> Publish | None:
    """The version's snapshot, once it is calibrated; None where the log does not lead to it."""
    for record, ready in replayed(fold, reader, told):
        if ready is not None and ready.watermark == version.watermark:
            return ready
        waits = fold.candidate is not None and fold.candidate.watermark == version.watermark
        if record.seq >= version.watermark and not waits:
            return None
    return None


def _nowhere(version: Version, fold: Fold) -> str:
    if fold.watermark < version.watermark:
        return f"the log ends at record {fold.watermark}, but the version has learned from record {version.watermark}"
    return (
        f"the log does not lead to a version of record {version.watermark} with {fold.learner.name}, publish_every "
        f"{fold.publish_every} and a false-reject rate of {fold.false_reject_rate:g}: another log, or other settings"
    )


def _origin(version: Version) -> str:
    """Where a version comes from that no line published."""
    source = version.tags.get("source", "elsewhere")
    more = ", ".join(f"{name} {value}" for name, value in sorted(version.tags.items()) if not name.startswith("gate"))
    return f"it comes from a {source}, not from the line's log alone; what is known of it: {more or 'nothing'}"


def _stored(versions: Versions, number: int) -> tuple[tuple[State, Calibration], list[str]]:
    """What MLflow holds, changed or not, and what its checksums say. Raises Corrupt where nothing can be read."""
    try:
        return versions.load(number), []
    except Corrupt as error:
        return versions.load(number, check=False), [str(error)]


def _differences(stored: tuple[State, Calibration], made: tuple[State, Calibration]) -> list[str]:
    """In what the stored one differs from the rebuilt, in sentences; nothing where all bits are equal."""
    (old, old_calibration), (new, new_calibration) = stored, made
    told = [
        f"metadata {name}: stored {old.meta.get(name)!r}, rebuilt {new.meta.get(name)!r}"
        for name in sorted(old.meta.keys() | new.meta.keys())
        if canonical(old.meta.get(name)) != canonical(new.meta.get(name))
    ]
    for name in sorted(old.tensors.keys() | new.tensors.keys()):
        told += _tensors(name, old.tensors.get(name), new.tensors.get(name))
    if not told and digest(old) != digest(new):
        told.append("the states' digests differ")
    if old_calibration != new_calibration:
        told.append(_calibrations(old_calibration, new_calibration))
    return told


def _tensors(name: str, old: Tensor | None, new: Tensor | None) -> list[str]:
    if old is None or new is None:
        return [f"tensor {name}: only in the {'rebuilt' if old is None else 'stored'} state"]
    if (old.dtype, old.shape) != (new.dtype, new.shape):
        shapes = [f"{t.dtype} {list(t.shape)}" for t in (old, new)]
        return [f"tensor {name}: stored {shapes[0]}, rebuilt {shapes[1]}"]
    differ = _bytes(old) != _bytes(new)
    if not bool(differ.any()):
        return []
    count = int(differ.view(old.numel(), -1).any(dim=1).sum())
    largest = float((old.double() - new.double()).abs().nan_to_num(float("inf")).max())
    return [f"tensor {name}: {count} of {old.numel()} values differ, by {largest:.3g} at most"]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _calibrations(old: Calibration, new: Calibration) -> str:
    if len(old.scores) != len(new.scores):
        return f"calibration: {len(old.scores)} scores stored, {len(new.scores)} rebuilt"
    largest = max((abs(a - b) for a, b in zip(old.scores, new.scores, strict=True)), default=0.0)
    return f"calibration: scores differ by {largest:.3g} at most, thresholds are {old.threshold} and {new.threshold}"


def _number(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**31:
        raise StateError(f"a version's tag must be a whole number, got {text[:40]!r}.")
    return int(text)
