"""One line: its log, its learner, the version that gives verdicts. No Ray in here.

The journey of an image: decode, embed, score with the current version, append to the log, acknowledge;
then (in `settle`, before the next image is scored) learn, and publish what is due. After a crash `Line`
loads the last checkpoint and applies the records behind it: the state is what it would have been.
"""

import logging
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ..methods.detector import Detector, State
from ..methods.errors import ConfigError, StateError, StoreError, TrackingError, UnknownVersion
from ..methods.registry import restore
from .calibration import Calibration
from .checkpoints import Checkpoints
from .fold import Fold, Publish
from .images import prepare
from .log import LogReader, LogWriter, line_folder
from .record import Record
from .retention import Keep, first_needed
from .settings import LineSettings
from .statefiles import digest
from .volume import Place

log = logging.getLogger("everline.line")
MAX_ID = 256
EMBEDDING = ("size", "backbone", "weights", "strides")  # parameters that decide what `embed` returns
RETRY_S = 10.0


class Publisher(Protocol):
    """What a line needs of the versions' registry (platform/versions.py)."""

    def publish(
        self, state: State, calibration: Calibration, *, watermark: int, key: str, tags: dict[str, str]
    ) -> int: ...

    def load(self, version: int) -> tuple[State, Calibration]: ...

    def current(self) -> int | None: ...

    def live(self) -> dict[int, int]: ...

    def target(self, version: int | None = None) -> int: ...

    def rollback(self, version: int | None = None) -> int: ...


@dataclass(frozen=True)
class Inspection:
    """The answer to one image. Scores are None while the line has no version yet (verdict `learning`)."""

    line: str
    id: str
    record: int
    verdict: str  # pass, reject or learning
    score: float | None = None
    p_value: float | None = None
    threshold: float | None = None
    version: int | None = None
    calibrated: bool = False  # whether the threshold can promise the false-reject rate
    admitted: bool = False  # whether the line learns from it
    duplicate: bool = False  # the id was in the log already: it is not learned again


def embed_image(detector: Detector, data: bytes) -> Tensor:
    """An encoded image -> its features (1, C, h, w). One at a time, so that a replay gives equal bits."""
    return detector.embed(prepare(data, detector.size)[None])


class Scorer:
    """A published version at work: an immutable detector and its calibration."""

    def __init__(self, version: int, state: State, calibration: Calibration, device: str = "cpu") -> None:
        self.version, self.calibration = version, calibration
        self.detector: Detector = restore(state, device)

    def takes_features_of(self, other: Detector) -> bool:
        """Whether what `other` embeds is what this version scores: not so once a line's method or size changed."""
        return all(getattr(self.detector, n, None) == getattr(other, n, None) for n in EMBEDDING)

    def judge(self, features: Tensor) -> tuple[dict[str, Any], Tensor]:
        """features (1, C, h, w) -> the verdict's fields of `Inspection`, and the map (S, S)."""
        scores = self.detector.score(features)
        score, calibration = float(scores.image[0]), self.calibration
        return {
            "score": score,
            "verdict": calibration.verdict(score),
            "p_value": calibration.p_value(score),
            "threshold": calibration.threshold,
            "version": self.version,
            "calibrated": calibration.calibrated,
        }, scores.maps[0]


class Line:
    """The one writer of a line's log. Not thread-safe: platform/actor.py holds the lock."""

    def __init__(self, name: str, settings: LineSettings, store: Place, versions: Publisher) -> None:
        """Opens or creates the line's log and recovers. Raises SecondWriter, Corrupt, ConfigError."""
        torch.set_num_threads(settings.threads)
        self.name, self.settings, self.versions = name, settings, versions
        self.folder = line_folder(store, name)
        self.keep = Keep(settings.keep_days, settings.keep_images, round(settings.keep_gib * 2**30))
        self.writer = LogWriter.open(self.folder)
        try:
            self.reader = LogReader(self.folder)
            self.ids: dict[str, int] = self.reader.ids()
            self.checkpoints = Checkpoints(self.folder / "checkpoints")
            self.fold = self._fresh_fold()
            self.scorer: Scorer | None = None
            self._features: OrderedDict[int, Tensor] = OrderedDict()  # of records that are not applied yet
            self._pending: list[Record] = []
            self._outbox: list[Publish] = []
            self.broken = ""  # why the fold cannot be trusted any more; what is in the log is safe
            self._retry_at = 0.0  # monotonic seconds; before that MLflow is not asked again
            self._recover()
        except BaseException:  # whoever tries again must find the log free
            self.writer.release()
            raise

    def inspect(
        self, data: bytes, id: str, *, learn: bool = True, judged: tuple[Tensor, dict[str, Any] | None] | None = None
    ) -> Inspection:
        """One image: verdict, record, acknowledgement. What follows from it happens in `settle`.

        data: an encoded image as it came. id: 1 to 256 characters; an image whose id is in the log already is
        not learned again and gets its first answer. judged: features and verdict, where a serving replica made
        them already; that verdict was given, so a repeated id is recorded once more, as kind `repeat`.
        Raises ImageError, ConfigError, NoSpace (nothing was recorded), SecondWriter, StoreError.
        """
        if not 0 < len(id) <= MAX_ID or not id.isprintable():
            raise ConfigError(f"line {self.name}: an image's id has 1 to {MAX_ID} printable characters.")
        self.settle()
        if id in self.ids and judged is None:
            return self._known(id)
        features, verdict = judged or self._judge(data)
        verdict = verdict or {"verdict": "learning"}
        first = self.ids.get(id)
        record = Record(
            kind="image" if first is None else "repeat",
            id=id,
            time_ns=time.time_ns(),
            image=data if first is None else None,
            admitted=learn and first is None and verdict["verdict"] != "reject",
            data={"calibrated": verdict.get("calibrated", False), **({} if first is None else {"of": first})},
            score=verdict.get("score"),
            p_value=verdict.get("p_value"),
            threshold=verdict.get("threshold"),
            version=verdict.get("version"),
            verdict=verdict["verdict"],
        )
        (record,) = self.writer.append([record])
        self._pending.append(record)
        if first is None:
            self.ids[id] = record.seq
            self._features[record.seq] = features
        return _answer(self.name, record, duplicate=first is not None)

    def settle(self) -> None:
        """Applies every record that is not applied yet, and carries out what follows from it."""
        if self.broken:
            raise StateError(f"line {self.name}: its state is not to be trusted ({self.broken}); start it again.")
        while self._pending:
            record = self._pending[0]
            try:
                ready = self.fold.apply(record, self._embed)
            except Exception as error:
                self.broken = f"record {record.seq} was applied in part: {type(error).__name__}: {error}"
                raise
            self._pending.pop(0)
            self._features.pop(record.seq, None)
            if ready is not None:
                self._outbox.append(ready)
            self._publish_due()
            if (record.seq + 1) % self.settings.checkpoint_every == 0:
                self.checkpoint()

    def rollback(self, version: int | None = None) -> int:
        """Makes an older version (or the one before) current again, as a record. Raises UnknownVersion."""
        self.settle()
        return self._turn_to(self.versions.target(version))

    def promote(self, version: int, instead_of: int | None) -> int:
        """Makes a version current that was judged better than `instead_of`, the current one (None: there is none).

        To the log it is a `rollback` whose data says `promoted`: a person has decided which version is current, and
        what was on its way to be published is dropped. Raises UnknownVersion, and StateError where another version
        is current by now.
        """
        self.settle()
        current = self.scorer.version if self.scorer else None
        if current == version:  # asked again, since the answer was lost
            return self.versions.rollback(version)
        if current != instead_of:
            raise StateError(
                f"line {self.name}: version {version} was judged beside {_named(instead_of)}, but by now "
                f"{_named(current)} is current; judge it again."
            )
        return self._turn_to(self.versions.target(version), promoted=True, instead_of=instead_of)

    def _turn_to(self, number: int, **data: Any) -> int:
        """By a person's decision this version is current."""
        scorer = Scorer(number, *self.versions.load(number), self.settings.device)
        self._outbox.clear()  # what waits to be published is no newer than what is turned down
        self._append_event("rollback", number, **data)  # first: recovery moves the alias to what the log says
        self.scorer = scorer
        return self.versions.rollback(number)

    def score(self, features: Tensor) -> Tensor:
        """Image scores (B,) by the learner as it stands; changes nothing."""
        self.settle()
        return self.fold.learner.score(features).image

    def checkpoint(self) -> None:
        """Saves the fold, so that a recovery need not start from the first record.

        Not while a publication waits: it exists only as something the records behind a checkpoint lead to.
        """
        if self._outbox or self.broken:
            return
        states, meta = self.fold.pack()
        needed = self._watermarks() if self.keep else []
        try:
            self.checkpoints.save(self.fold.watermark, states, meta, needed)
        except OSError as error:  # costs only time, at the next recovery
            log.warning("line %s: no checkpoint: %s", self.name, error)
            return
        self._tend(needed)

    def _tend(self, watermarks: list[int] | None) -> None:
        """One step of tidying the log: small shards become one, or one old shard loses its images."""
        try:
            if self.writer.merge() or not self.keep or watermarks is None:
                return
            needed = first_needed(self.checkpoints.numbers(), watermarks)
            self.writer.trim(self.keep, needed, time.time_ns())
        except (StoreError, OSError) as error:  # the records are safe where they are; there is a next time
            log.warning("line %s: its log was not tidied: %s", self.name, error)

    def _watermarks(self) -> list[int] | None:
        """Of versions in use and of the candidate on probation; None where MLflow does not say."""
        try:
            live = list(self.versions.live().values())
        except TrackingError as error:
            log.warning("line %s: all checkpoints are kept for now: %s", self.name, error)
            return None
        return live + ([self.fold.candidate.watermark] if self.fold.candidate else [])

    def status(self) -> dict[str, Any]:
        """Plain values for tables, HTTP and JSON."""
        scorer, learner = self.scorer, self.fold.learner
        return {
            "line": self.name,
            "method": self.settings.method,
            **self.fold.counts,
            "records": self.writer.next_seq,
            "images_learned": learner.images_learned,
            "version": scorer.version if scorer else None,
            "calibrated": bool(scorer and scorer.calibration.calibrated),
            "threshold": scorer.calibration.threshold if scorer else None,
            "false_reject_rate": self.settings.false_reject_rate,
            "state_bytes": learner.state().nbytes,
            "images_from": self.writer.images_from,
            "epoch": self.writer.epoch,
        }

    def digest(self) -> str:
        """A checksum over the learner's whole state: equal digests, equal bits."""
        self.settle()
        return digest(self.fold.learner.state())

    def close(self) -> None:
        """Applies what is pending, saves a checkpoint and gives up the log."""
        try:
            self.settle()
            self.checkpoint()
        finally:
            self.writer.close()

    def _judge(self, data: bytes) -> tuple[Tensor, dict[str, Any] | None]:
        learner, scorer = self.fold.learner, self.scorer
        features = embed_image(learner, data)
        if scorer is None:
            return features, None
        fit = scorer.takes_features_of(learner)
        return features, scorer.judge(features if fit else embed_image(scorer.detector, data))[0]

    def _embed(self, record: Record) -> Tensor:
        """Features of a record: still at hand, or made again from the logged bytes (equal bits)."""
        if record.seq in self._features:
            return self._features[record.seq]
        if record.image is None:
            raise StateError(f"line {self.name}: record {record.seq} has no image to learn from.")
        return embed_image(self.fold.learner, record.image)

    def _known(self, id: str) -> Inspection:
        """The first answer that an id got."""
        seq = self.ids[id]
        if seq >= len(self.reader):
            self.reader.refresh()
        (record,) = self.reader.get([seq])
        return _answer(self.name, record, duplicate=True)

    def _publish_due(self) -> None:
        """Publishes what waits, oldest first. While MLflow does not answer the line goes on, and asks again later."""
        while self._outbox and time.monotonic() >= self._retry_at:
            try:
                self._publish(self._outbox[0])
            except TrackingError as error:
                self._retry_at = time.monotonic() + RETRY_S
                log.warning("line %s: a version waits to be published: %s", self.name, error)
                return
            self._outbox.pop(0)

    def _publish(self, ready: Publish) -> None:
        tags = {"threads": str(self.settings.threads), "torch": str(torch.__version__)}
        number = self.versions.publish(
            ready.state, ready.calibration, watermark=ready.watermark, key=self._key(ready), tags=tags
        )
        self._append_event("publish", number, key=self._key(ready), watermark=ready.watermark)
        self.scorer = Scorer(number, ready.state, ready.calibration, self.settings.device)
        log.info("line %s: version %d is current (learned up to record %d)", self.name, number, ready.watermark)

    def _key(self, ready: Publish) -> str:
        """Names a publication by all that it is; a replay of the same log gives equal bits, so the same key."""
        calibration = State({}, ready.calibration.to_json())
        return f"{self.name}/{ready.key}/{digest(ready.state)[:16]}/{digest(calibration)[:16]}"

    def _append_event(self, kind: str, version: int, **data: Any) -> None:
        """A publish or rollback record; it is applied after the records that are still pending."""
        (record,) = self.writer.append(
            [
                Record(
                    kind=kind, id=f"{kind}-{self.writer.next_seq}", time_ns=time.time_ns(), version=version, data=data
                )
            ]
        )
        self._pending.append(record)

    def _fresh_fold(self) -> Fold:
        s = self.settings
        return Fold(
            s.method,
            s.params,
            device=s.device,
            false_reject_rate=s.false_reject_rate,
            publish_every=s.publish_every,
        )

    def _recover(self) -> None:
        """Last checkpoint, then the records behind it; then whatever was decided but not carried out."""
        latest = self.checkpoints.latest(len(self.reader))
        if latest is not None:
            _, states, meta = latest
            try:
                self.fold.unpack(states, meta)
            except StateError as error:  # another method over yesterday's log
                log.warning("line %s: folding the whole log again, since %s", self.name, error)
                self.fold = self._fresh_fold()
        undone: dict[str, Publish] = {}
        lost = 0
        for record in self.reader.records(after=self.fold.watermark):
            if record.kind == "image" and record.admitted and record.image is None:
                record, lost = replace(record, admitted=False), lost + 1
            ready = self.fold.apply(record, self._embed)
            if ready is not None:
                undone = {self._key(ready): ready}  # an older one that never went out is superseded
            if record.kind == "publish":
                undone.pop(record.data.get("key", ""), None)
            elif record.kind == "rollback":
                undone.clear()
        if lost:
            log.warning(
                "line %s: folded without %d old images, whose bytes were dropped (keep_days, keep_images, keep_gib): "
                "the learner begins with the first image that is left",
                self.name,
                lost,
            )
        if self.fold.current is not None:
            try:
                kept = self.versions.load(self.fold.current)
            except UnknownVersion as error:
                raise TrackingError(
                    f"line {self.name}: its log says that version {self.fold.current} is current, but the tracking "
                    f"store does not have it ({error}) Restore it, or name the store that belongs to this log."
                ) from error
            self.scorer = Scorer(self.fold.current, *kept, self.settings.device)
            if self.versions.current() != self.fold.current:  # died between the record and the alias
                self.versions.rollback(self.fold.current)
        self._outbox = list(undone.values())
        self._publish_due()
        self.settle()


def _named(version: int | None) -> str:
    return "no version" if version is None else f"version {version}"


def _answer(line: str, record: Record, duplicate: bool = False) -> Inspection:
    return Inspection(
        line=line,
        id=record.id,
        record=record.seq,
        verdict=record.verdict or "learning",
        score=record.score,
        p_value=record.p_value,
        threshold=record.threshold,
        version=record.version,
        calibrated=bool(record.data.get("calibrated")),
        admitted=bool(record.admitted),
        duplicate=duplicate,
    )


def plain(inspection: Inspection) -> dict[str, Any]:
    """JSON-able; an infinite threshold (no scores yet) becomes None."""
    out = asdict(inspection)
    if out["threshold"] == float("inf"):
        out["threshold"] = None
    return out
