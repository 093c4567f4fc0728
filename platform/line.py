"""One line: its log, its learner, the version that gives verdicts. No Ray in here.

The journey of an image: decode, embed, score with the current version, append to the log, acknowledge;
then (in `settle`, before the next image is scored) learn, and publish what is due. After a crash `Line`
loads the last checkpoint and applies the records behind it: the state is what it would have been.
"""

import logging
import platform
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..methods.detector import Detector, State
from ..methods.errors import (
    ConfigError,
    Corrupt,
    EverlineError,
    NoSpace,
    StateError,
    StoreError,
    TrackingError,
    UnknownImage,
    UnknownVersion,
)
from ..methods.registry import restore
from .ages import CLOCK, Ages, Jump, WallClock
from .calibration import Calibration
from .checkpoints import Checkpoints
from .depth import Unused
from .drift import moments
from .due import Waiting
from .fold import Fold, Publish
from .ids import MAX_ID, foreign, which
from .images import Views, prepare, views
from .log import LogReader, line_folder
from .online import DEFECT, LABELS, OK, InForce
from .ownjudge import SYNTHETIC, Question
from .record import Record
from .repair import lost_end
from .retention import DAY_NS, Keep, first_needed
from .settings import LineSettings
from .spool import SpooledWriter, open_log, spool_folder
from .statefiles import digest
from .synthetic import spoiled
from .volume import Place
from .words import Word, heard, words

log = logging.getLogger("everline.line")
MAX_TASK = 64
EMBEDDING = ("size", "bits", "backbone", "weights", "strides")  # parameters that decide what `embed` returns
RETRY_S = 10.0  # at least, between two times that MLflow is asked while it does not answer
RETRY_SHARE = 20  # ... and so many times as long as it took to fail: images wait for it 5 % of the time at most
CATCH_UP_S = 2.0  # after an outage: what waits goes out for so long before the next image has its turn


class Publisher(Protocol):
    """What a line needs of the versions' registry (platform/versions.py)."""

    def publish(
        self, state: State, calibration: Calibration, *, watermark: int, key: str, tags: dict[str, str]
    ) -> int: ...

    def load(self, version: int) -> tuple[State, Calibration]: ...

    def current(self) -> int | None: ...

    def live(self) -> dict[int, int]: ...

    def prune(self, keep: int) -> Sequence[int]: ...

    def target(self, version: int | None = None) -> int: ...

    def rollback(self, version: int | None = None) -> int: ...


@dataclass(frozen=True)
class Inspection:
    """The answer to one image. Scores are None while no version knows the product yet (verdict `learning`).

    After a drift that the version at work does not know either, `learning` comes with that version's score, and
    `reject` says that the score is high among those since the drift.
    """

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
    duplicate: bool = False  # the log had this image already, by its id and its bytes: it is not learned again
    sent_as: str | None = None  # the id that it came with, where another image had that already


def seen(detector: Detector, image: Views) -> tuple[Tensor, list[float]]:
    """A decoded image -> its features (1, C, h, w), and the numbers by which a drift is seen (platform/drift.py)."""
    pixels = image.squares[detector.size]
    features = detector.embed(pixels[None])
    return features, moments(pixels, features)


def embed_image(detector: Detector, data: bytes) -> Tensor:
    """An encoded image -> its features (1, C, h, w). One at a time, so that a replay gives equal bits."""
    return detector.embed(prepare(data, detector.size, bits=detector.bits)[None])


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

    def __init__(
        self, name: str, settings: LineSettings, store: Place, versions: Publisher, spool: Path | None = None
    ) -> None:
        """Opens or creates the line's log and recovers. Raises SecondWriter, Corrupt, ConfigError.

        spool: folder on the local disk for what cannot be written while S3 is away.
        """
        torch.set_num_threads(settings.threads)
        self.name, self.settings, self.versions = name, settings, versions
        self.folder = line_folder(store, name)
        self.unused = Unused(f"line {name}")
        self.keep = Keep(settings.keep_days, settings.keep_images, round(settings.keep_gib * 2**30))
        waits = spool and spool_folder(spool, store, name)
        self.writer = open_log(self.folder, waits, settings.spool_mib * 2**20)
        try:
            self.reader = LogReader(self.folder)
            self.ids = self.reader.ids()
            self._clock, self._ages = (
                WallClock(),
                Ages.of(self.reader.times() if self.keep.days else (), self.keep.days),
            )
            for jump in self._ages.jumps:
                self._tell_of(jump)
            self.words: dict[int, Word] = words(self.reader)  # image record's number -> an operator's last word
            self.checkpoints = Checkpoints(self.folder / "checkpoints")
            self.fold = self._fresh_fold()
            self.scorer: Scorer | None = None
            self._kept = Checkpoints(self.folder / "current")  # the current version, for an MLflow that is down
            self._features: OrderedDict[int, Tensor] = OrderedDict()  # of records that are not applied yet
            self._pending: list[Record] = []
            self._fresh: Publish | None = None  # due by the record applied last
            self._waiting = Waiting(self.folder / "waiting")
            self._alias_behind = False  # whether MLflow has not heard yet which version is current
            self._wrong_alias: str | None = None  # what somebody made current in MLflow, when it was looked at last
            self._made_on = [machine(settings.threads, settings.device)]  # all that the learner has computed on
            self.broken = ""  # why the fold cannot be trusted any more; what is in the log is safe
            self._retry_at = 0.0  # monotonic seconds; before that MLflow is not asked again
            self._recover()
        except BaseException:  # whoever tries again must find the log free
            self.writer.release()
            raise

    def inspect(
        self,
        data: bytes,
        id: str,
        *,
        learn: bool = True,
        judged: tuple[Tensor, list[float], dict[str, Any] | None] | None = None,
        request: str = "",
        known: bool = True,
    ) -> Inspection:
        """One image: verdict, record, acknowledgement. What follows from it happens in `settle`.

        data: an encoded image as it came. id: 1 to 256 characters; the same bytes with the same id are not learned
        again and get their first answer, other bytes are another image, `id#2` (platform/ids.py). judged: features,
        moments and verdict, where a serving replica made them already; then such a repeat is recorded, as kind
        `repeat`. Its score counts where it is of the version that is current here; threshold, p-value and verdict are
        the line's. request: by which it came over HTTP, kept in the record's data. known: whether the sender may teach
        the line; if not, the image is never learned and nothing is concluded from it, its record says
        `unknown_sender`, and its id begins with `unknown:`, so that nobody can take the id of an image to come.
        Raises ImageError, ConfigError, NoSpace (nothing was recorded), SecondWriter, StoreError.
        """
        if not 0 < len(id) <= MAX_ID or not id.isprintable():
            raise ConfigError(f"line {self.name}: an image's id has 1 to {MAX_ID} printable characters.")
        if not known:
            id, learn = foreign(id), False
        self.settle()
        sent_as = id
        id, first = which(id, data, self.ids, self.writer.checksum)
        if first is not None and judged is None:
            return self._known(first)
        features, numbers, verdict = judged or self._judge(data)
        if judged and (verdict or {}).get("version") != (self.scorer.version if self.scorer else None):
            verdict = self._judged_here(features, data)
        judges = self.fold.knows or self.fold.shifted is not None
        verdict = self._decided(verdict) if verdict and judges else {"verdict": "learning"}
        data_of = {
            "calibrated": verdict.get("calibrated", False),
            "moments": numbers,
            **({} if first is None else {"of": first}),
            **({"request": request} if request else {}),
            **({} if learn else {"learn": False}),
            **({} if known else {"unknown_sender": True}),
            **({} if id == sent_as else {"sent_as": sent_as}),
        }
        record = Record(
            kind="image" if first is None else "repeat",
            id=id,
            time_ns=self._clock.now_ns(),
            image=data if first is None else None,
            task=self.fold.task,
            admitted=learn and first is None and verdict["verdict"] != "reject" and not self._holds,
            data=data_of,
            score=verdict.get("score"),
            p_value=verdict.get("p_value"),
            threshold=verdict.get("threshold"),
            version=verdict.get("version"),
            verdict=verdict["verdict"],
        )
        record = self._append(record)
        if first is None:
            self.ids[id] = record.seq
            self._features[record.seq] = features
        return _answer(self.name, record, duplicate=first is not None)

    @property
    def unusable(self) -> str:
        """Why it must be started again before it can go on; empty: it need not."""
        return self.broken or self.writer.failed or self.ids.failed

    @property
    def _holds(self) -> bool:
        """Whether nothing is to be learned, since what the camera sees has drifted; a young line goes on."""
        return self.fold.watch.holds and self.scorer is not None

    def feedback(self, id: str, label: str, by: str = "") -> dict[str, Any]:
        """An operator's word on an image: `ok` or `defect`; a record, and the last one on an image counts.

        A rejected image that is ok is learned, once, unless its bytes were dropped. Returns {"record", "of", "label",
        "changed"}: numbers of the feedback's and the image's records, the word, and whether another one stood there.
        The same word again is answered and not recorded. Raises ConfigError, UnknownImage, NoSpace, StoreError.
        """
        if label not in LABELS:
            raise ConfigError(f"line {self.name}: feedback is {' or '.join(LABELS)}, got {label[:40]!r}.")
        if len(by) > MAX_ID or not (by.isprintable() or not by):
            raise ConfigError(f"line {self.name}: a name has up to {MAX_ID} printable characters.")
        if id not in self.ids:
            raise UnknownImage(f"line {self.name}: no image {id[:80]!r} in its log.")
        self.settle()
        of = self.ids[id]
        before = self.words.get(of)
        if before is not None and before.label == label:
            return before.to_json(of, changed=False)
        (image,) = self.writer.get([of])
        rejected = image.verdict == "reject"
        learn = label == OK and rejected and image.image is not None and not (before and before.learned)
        shown = learn or (label == DEFECT and not rejected)
        record = Record(
            kind="feedback",
            id=f"feedback-{self.writer.next_seq}",
            time_ns=self._clock.now_ns(),
            image=image.image if shown else None,  # retention drops it when its turn has come, and not with the first
            task=image.task,
            score=image.score,
            p_value=image.p_value,
            threshold=image.threshold,
            version=image.version,
            verdict=image.verdict,
            admitted=learn,
            data={"of": of, "id": id, "label": label, "by": by},
        )
        record = self._append(record)
        return heard(self.words, record).to_json(of, changed=before is not None)

    def settle(self) -> None:
        """Applies every record that is not applied yet, and carries out what follows from it."""
        if self.broken:
            raise StateError(f"line {self.name}: its state is not to be trusted ({self.broken}); start it again.")
        self._look_at_clock()
        self._carry_out()
        while self._pending:
            record, drift = self._pending[0], self.fold.watch.state
            try:
                ready = self.fold.apply(record, self._embed)
            except Exception as error:
                self.broken = f"record {record.seq} was applied in part: {type(error).__name__}: {error}"
                raise
            if self.fold.watch.state != drift:
                log.warning("line %s: drift: %s, at record %d", self.name, self.fold.watch.state, record.seq)
            self._pending.pop(0)
            self._features.pop(record.seq, None)
            self._fresh = ready or self._fresh
            self._carry_out()
            if (record.seq + 1) % self.settings.checkpoint_every == 0:
                self.checkpoint()

    def rollback(self, version: int | None = None) -> int:
        """Makes an older version (or the one before) current again, as a record.

        Raises UnknownVersion, and TrackingError where MLflow does not answer; then nothing has changed.
        """
        self.settle()
        self._move_alias()
        return self._turn_to(self.versions.target(version))

    def switch(self, task: str) -> int:
        """From the next image on the product is `task`, be it new or back again; returns the number of the record.

        Said again of the product at hand it changes nothing. Raises ConfigError for a name that is not 1 to 64
        printable characters, and where the method keeps its products apart and has no room for another.
        """
        if not 0 < len(task) <= MAX_TASK or not task.isprintable():
            raise ConfigError(f"line {self.name}: a task's name has 1 to {MAX_TASK} printable characters.")
        self.settle()
        learner = self.fold.learner
        if task == self.fold.task:
            return self.fold.switched
        most = learner.most_tasks
        if most is not None and task not in learner.tasks and len(learner.tasks) >= most:
            raise ConfigError(
                f"line {self.name}: {learner.name} has learned {most} tasks and has no room for {task!r}; "
                "give it more memory."
            )
        record = self._append_event("task", None, task=task)
        self.settle()
        return record.seq

    def promote(self, version: int, instead_of: int | None) -> int:
        """Makes a version current that was judged better than `instead_of`, the current one (None: there is none).

        To the log it is a `rollback` whose data says `promoted`: a person has decided which version is current, and
        what was on its way to be published is dropped. Raises UnknownVersion, StateError where another version
        is current by now, and TrackingError where MLflow does not answer; then nothing has changed.
        """
        self.settle()
        self._move_alias()
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
        state, calibration = self.versions.load(number)
        scorer = Scorer(number, state, calibration, self.settings.device)
        self._append_event("rollback", number, **data)  # first: recovery moves the alias to what the log says
        self._fresh = None  # what waits to be published is no newer than what is turned down
        self._waiting.drop(self._waiting.numbers)
        self._make_current(scorer, state)
        self._alias_behind, self._retry_at = True, 0.0
        self._tried(self._move_alias)  # decided, and in the log: an MLflow that went away just now hears of it later
        return number

    def score(self, features: Tensor) -> Tensor:
        """Image scores (B,) by the learner as it stands; changes nothing."""
        self.settle()
        return self.fold.learner.score(features).image

    def checkpoint(self) -> None:
        """Saves the fold, so that a recovery need not start from the first record.

        Not while a version waits in memory: it exists only as something the records behind a checkpoint lead to. Nor
        while records wait on the local disk: the log must hold what a checkpoint has seen.
        """
        if self._fresh or not self._waiting.durable or self.broken or self.writer.spooled:
            return
        states, meta = self.fold.pack()
        # A `due` record that is not applied yet is found behind the checkpoint.
        meta["waiting"] = [number for number in self._waiting.numbers if number <= self.fold.watermark]
        meta["made_on"] = self._made_on
        needed = self._watermarks() if self.keep else []
        try:
            self.checkpoints.save(self.fold.watermark, states, meta, needed)
            self._waiting.tidy()
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
            self.writer.trim(self.keep, needed, self._ages.now_ns or 0, self._ages)
        except (StoreError, OSError) as error:  # the records are safe where they are; there is a next time
            log.warning("line %s: its log was not tidied: %s", self.name, error)

    def _watermarks(self) -> list[int] | None:
        """Of versions in use and of the candidate on probation; None where MLflow does not say, or has not heard."""
        if self._waiting:
            return None
        try:
            live = list(self.versions.live().values())
        except TrackingError as error:
            log.warning("line %s: all checkpoints are kept for now: %s", self.name, error)
            return None
        return live + ([self.fold.candidate.watermark] if self.fold.candidate else [])

    @property
    def owes(self) -> bool:
        """Whether MLflow has not heard yet of something: `settle` tells it when it answers."""
        return bool(self._waiting or self._alias_behind) and not self.broken

    def status(self) -> dict[str, Any]:
        """Plain values for tables, HTTP and JSON."""
        scorer, learner = self.scorer, self.fold.learner
        force = self._in_force()
        calibrated = bool(force and force.calibrated)
        achieved = asdict(self.fold.online.achieved())
        return {
            "line": self.name,
            "method": self.settings.method,
            "task": self.fold.task,
            **self.fold.counts,
            "records": self.writer.next_seq,
            "images_learned": learner.images_learned,
            "version": scorer.version if scorer else None,
            "calibrated": calibrated,
            "calibration": "calibrated" if calibrated else "uncalibrated",
            "threshold": force.threshold if force else None,
            "false_reject_rate": self.settings.false_reject_rate,
            "false_rejects": {"target": self.settings.false_reject_rate, **achieved},
            "state_bytes": learner.state().nbytes,
            "versions_waiting": len(self._waiting),
            "spooled": self.writer.spooled,
            "images_from": self.writer.images_from,
            "epoch": self.writer.epoch,
            "drift": self.fold.watch.status(),
            "held": "; ".join(self.fold.held["reasons"]) if self.fold.held else None,
            "advice": self.unused.advice or None,
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

    def _judge(self, data: bytes) -> tuple[Tensor, list[float], dict[str, Any] | None]:
        learner = self.fold.learner
        image = views(data, (learner.size,), bits=learner.bits, strict=True, max_pixels=self.settings.max_pixels)
        self.unused.see(image.unsure)
        features, numbers = seen(learner, image)
        return features, numbers, self._judged_here(features, data)

    def _judged_here(self, features: Tensor, data: bytes) -> dict[str, Any] | None:
        """A verdict's fields by the current version, whatever others take for it; None without one."""
        scorer = self.scorer
        if scorer is None:
            return None
        fit = scorer.takes_features_of(self.fold.learner)
        return scorer.judge(features if fit else embed_image(scorer.detector, data))[0]

    def _in_force(self) -> InForce | None:
        """The current version's calibration as it stands by now; None without a version."""
        return self.fold.in_force(self.scorer.calibration) if self.scorer else None

    def _decided(self, verdict: dict[str, Any]) -> dict[str, Any]:
        """A verdict's fields by what is in force, where its version is the current one."""
        force, score = self._in_force(), verdict.get("score")
        if force is None or score is None or self.fold.online.version != verdict.get("version"):
            return verdict
        said = force.verdict(score)
        return {
            **verdict,
            "verdict": "learning" if said == "pass" and self.fold.shifted is not None else said,
            "p_value": force.calibration.p_value(score),
            "threshold": force.threshold,
            "calibrated": force.calibrated,
        }

    def _embed(self, record: Record) -> Tensor:
        """Features of a record: still at hand, or made again from the logged bytes (equal bits)."""
        if record.seq in self._features:
            return self._features[record.seq]
        if record.image is None:
            raise StateError(f"line {self.name}: record {record.seq} has no image to learn from.")
        return embed_image(self.fold.learner, record.image)

    def _known(self, number: int) -> Inspection:
        """The first answer that an image got."""
        (record,) = self.writer.get([number])
        return _answer(self.name, record, duplicate=True)

    def _carry_out(self) -> None:
        """Publishes what is due, oldest first. What cannot go out now waits in the log, and the line goes on."""
        until = time.monotonic() + CATCH_UP_S
        while (self._alias_behind or self._waiting) and time.monotonic() < until:
            if not self._tried(self._move_alias if self._alias_behind else self._publish_waiting):
                break
        if self._fresh is not None:
            if self._fresh.held:
                self._hold(self._fresh)
            elif self._waiting or not self._tried(self._publish, self._fresh, self._tags()):
                self._set_aside(self._fresh)
            self._fresh = None

    def _tried(self, work: Callable[..., None], *args: Any) -> bool:
        """Whether MLflow did it. One that did not answer, or had no disk to write to, is not asked again for a while.

        Without room on the log's own disk nothing is lost either: its next record says so, by NoSpace.
        """
        began = time.monotonic()
        if began < self._retry_at:
            return False
        try:
            work(*args)
        except (TrackingError, NoSpace) as error:
            now = time.monotonic()
            self._retry_at = now + max(RETRY_S, RETRY_SHARE * (now - began))
            log.warning("line %s: goes on, and tells MLflow later, since now it cannot: %s", self.name, error)
            return False
        return True

    def _publish(self, ready: Publish, tags: dict[str, str]) -> None:
        key = publication_key(self.name, ready)
        number = self.versions.publish(ready.state, ready.calibration, watermark=ready.watermark, key=key, tags=tags)
        self._append_event("publish", number, key=key, watermark=ready.watermark)
        self._make_current(Scorer(number, ready.state, ready.calibration, self.settings.device), ready.state)
        log.info("line %s: version %d is current (learned up to record %d)", self.name, number, ready.watermark)
        self._tried(self._prune)

    def _prune(self) -> None:
        """Old versions go: a version is a whole state, and a busy line makes hundreds a day. Raises TrackingError."""
        if gone := self.versions.prune(self.settings.keep_versions):
            log.info("line %s: removed old versions: %s", self.name, ", ".join(map(str, gone)))

    def _publish_waiting(self) -> None:
        """The one that waits longest."""
        try:
            self._publish(*self._waiting.first())
        except Corrupt as error:  # it can be made again, but not by a fold that has gone on
            self.broken = f"a version that waits to be published cannot be read: {error}"
            raise StateError(f"line {self.name}: {self.broken}; start it again.") from error
        self._waiting.drop(self._waiting.numbers[:1])

    def _hold(self, ready: Publish) -> None:
        """It is not published, and a record says why."""
        key = publication_key(self.name, ready)
        self._append_event("held", None, key=key, watermark=ready.watermark, reasons=list(ready.held))
        log.warning("line %s: a version is held: %s", self.name, "; ".join(ready.held))

    def _set_aside(self, ready: Publish) -> None:
        """It waits: a record says so, and its bits lie on the disk."""
        record = self._append_event("due", None, key=publication_key(self.name, ready), watermark=ready.watermark)
        self._waiting.put(record.seq, ready, self._tags())

    def _move_alias(self) -> None:
        """Tells MLflow which version is current, where it has not heard. Raises TrackingError."""
        if self._alias_behind and self.scorer and self.versions.current() != self.scorer.version:
            self._put_alias_back(self.scorer.version)
        self._alias_behind = False

    def _put_alias_back(self, version: int) -> None:
        try:
            self.versions.rollback(version)
        except UnknownVersion as error:  # somebody removed it; the line has it, and goes on
            log.error("line %s: MLflow does not have its current version any more: %s", self.name, error)

    def keep_alias(self) -> bool:
        """Puts MLflow's alias back where somebody moved it; whether so. The log says which version is current."""
        if self.scorer is None or self._alias_behind:
            return False
        self._tried(self._compare_alias, self.scorer.version)
        return self._alias_behind

    def _compare_alias(self, version: int) -> None:
        found = self.versions.current()
        told, self._wrong_alias = self._wrong_alias, None if found == version else _named(found)
        if self._wrong_alias in (None, told):  # what cannot be put back is told once
            return
        self._append_event("alias", version, found=found)
        self._alias_behind = True
        log.error(
            "line %s: somebody made %s current in MLflow; the log says %s, and the alias is put back. A version is "
            "made current by `everline rollback`.",
            self.name,
            self._wrong_alias,
            _named(version),
        )

    def _make_current(self, scorer: Scorer, state: State) -> None:
        """From now on it gives the verdicts, in this process and in one that starts while MLflow is down."""
        self.scorer = scorer
        try:
            self._kept.save(scorer.version, {"current": state}, {"calibration": scorer.calibration.to_json()})
            for other in set(self._kept.numbers()) - {scorer.version}:
                self._kept.remove(other)
        except OSError as error:
            log.warning("line %s: no copy of version %d: %s", self.name, scorer.version, error)

    def _tags(self) -> dict[str, str]:
        return version_tags(self.settings, self._made_on)

    def _append_event(self, kind: str, version: int | None, **data: Any) -> Record:
        """A publish, due, task or rollback record; it is applied after the records that are still pending."""
        id = f"{kind}-{self.writer.next_seq}"
        return self._append(Record(kind=kind, id=id, time_ns=self._clock.now_ns(), version=version, data=data))

    def _append(self, record: Record) -> Record:
        """Durable, and due to be applied; returns it with its number."""
        (record,) = self.writer.append([record])
        self._pending.append(record)
        if jump := self._ages.add(record.seq, record.kind, record.time_ns, record.data):
            self._tell_of(jump)
        return record

    def _look_at_clock(self) -> None:
        """A record says where the clock was set, and where the line was idle for so long that it would seem so."""
        if self._clock.was_set():
            self._append_event(CLOCK, None, by_s=round(self._clock.set_by_ns / 1e9))
            self._clock.forget()
        elif (idle := self._clock.passed_ns(self._ages.now_ns)) > self._ages.most_ns:
            self._append_event(CLOCK, None, idle_s=idle // 10**9)

    def _tell_of(self, jump: Jump) -> None:
        kept = (
            f"Images from before count as made then. Where the times are right: everline log clock {self.name} --right"
        )
        log.warning(
            "line %s: the times in its log jump by %+.2f days at record %d. %s",
            self.name,
            jump.by_ns / DAY_NS,
            jump.seq,
            kept if self.keep.days else "",
        )

    def _fresh_fold(self) -> Fold:
        fold = Fold.of(self.settings)
        fold.ask = self._asked if self.settings.gate else None
        return fold

    def _asked(self, question: Question) -> Tensor | None:
        """Features of an image of the log, with a defect on it where that is the question; None: it is not there."""
        try:
            (record,) = self.writer.get([question.number])
            if record.image is None:
                return None
            detector = self.fold.learner
            pixels = prepare(record.image, detector.size, bits=detector.bits)
            if question.kind == SYNTHETIC:
                pixels = spoiled(pixels, question.number)[0]
            return detector.embed(pixels[None])
        except (EverlineError, OSError) as error:
            log.info("line %s: nobody can be asked about record %d: %s", self.name, question.number, error)
            return None

    def _recover(self) -> None:
        """Last checkpoint, then the records behind it; then whatever was decided but not carried out."""
        self._resume()
        lost: dict[str, int] = {}
        gone = 0
        for record in self.reader.records(after=self.fold.watermark):
            if record.admitted and record.image is None:
                record, gone = replace(record, admitted=False), gone + 1
            self._fresh = self._applied(record) or self._fresh  # one that never went out is superseded
            if record.kind == "due" and not self._due_again(record):
                lost[record.data["key"]] = record.seq
            elif record.kind in ("publish", "held"):
                self._went_out(record)
                lost.pop(record.data.get("key", ""), None)
            elif record.kind == "rollback":
                self._fresh = None
                lost.clear()
                self._waiting.drop(self._waiting.numbers)
        for key, number in lost.items():
            log.error("line %s: the version of record %d cannot be had any more (%s)", self.name, number, key)
        if gone:
            log.warning(
                "line %s: folded without %d old images, whose bytes were dropped (keep_days, keep_images, keep_gib): "
                "the learner begins with the first image that is left",
                self.name,
                gone,
            )
        if self.fold.current is not None:
            scorer, state = self._load_current(self.fold.current)
            self._make_current(scorer, state)
            self._alias_behind = True  # as it may have died between the record and the alias
        self._check_end()
        self.settle()

    def _check_end(self) -> None:
        """Raises Corrupt where checkpoints, or versions in use, have seen records that the log does not have."""
        live: dict[int, int] = {}
        self._tried(lambda: live.update(self.versions.live()))
        lost = lost_end(self.reader, live)
        if lost is None:
            return
        if isinstance(self.writer, SpooledWriter):  # they may wait on another machine's disk, and come later
            log.warning("line %s: %s", self.name, lost)
            return
        raise Corrupt(f"line {self.name}: {lost}")

    def _applied(self, record: Record) -> Publish | None:
        try:
            return self.fold.apply(record, self._embed)
        except Exception as error:
            text = f"line {self.name}: record {record.seq} ({record.kind} {record.id!r}) cannot be applied"
            raise StateError(f"{text}: {type(error).__name__}: {error}") from error

    def _resume(self) -> None:
        """Continues from the last checkpoint, if it is of these settings and all is there that waited."""
        latest = self.checkpoints.latest(len(self.reader))
        if latest is None:
            return
        _, states, meta = latest
        try:
            self.fold.unpack(states, meta)
            if not all(self._waiting.take(number) for number in meta.get("waiting", [])):
                raise StateError("a version that waited to be published is not here any more")
            made_on = meta.get("made_on", [])
            self._made_on = [*made_on, *(now for now in self._made_on if now not in made_on)]
        except StateError as error:  # another method over yesterday's log, ...
            log.warning("line %s: folding the whole log again, since %s", self.name, error)
            self.fold, self._waiting.numbers = self._fresh_fold(), []

    def _due_again(self, record: Record) -> bool:
        """A version that had to wait: its bits are on the disk, or the fold has just made them again; else False."""
        here = self._waiting.take(record.seq)
        if self._fresh is not None and publication_key(self.name, self._fresh) == record.data.get("key"):
            if not here:
                self._waiting.put(record.seq, self._fresh, self._tags())
            self._fresh, here = None, True
        return here

    def _went_out(self, record: Record) -> None:
        """A version was published, or held: it is not due any more."""
        key = record.data.get("key", "")
        if self._fresh is not None and publication_key(self.name, self._fresh) == key:
            self._fresh = None
        if self._waiting and publication_key(self.name, self._waiting.first()[0]) == key:
            self._waiting.drop(self._waiting.numbers[:1])

    def _load_current(self, number: int) -> tuple[Scorer, State]:
        """The version that gives verdicts, from MLflow, or from this line's own copy while that is down."""
        try:
            state, calibration = self.versions.load(number)
        except UnknownVersion as error:
            raise TrackingError(
                f"line {self.name}: its log says that version {number} is current, but the tracking "
                f"store does not have it ({error}) Name the store that belongs to this log; where its database "
                f"was lost, register the versions again: everline versions {self.name} --restore"
            ) from error
        except (TrackingError, NoSpace) as error:
            try:
                states, meta = self._kept.load(number)
            except Corrupt:
                raise error from None
            log.warning("line %s: version %d comes from its own copy: %s", self.name, number, error)
            state, calibration = states["current"], Calibration.from_json(meta["calibration"])
            self._retry_at = time.monotonic() + RETRY_S
        return Scorer(number, state, calibration, self.settings.device), state


def publication_key(line: str, ready: Publish) -> str:
    """Names a publication by all that it is; a replay of the same log gives equal bits, so the same key."""
    calibration = State({}, ready.calibration.to_json())
    return f"{line}/{ready.key}/{digest(ready.state)[:16]}/{digest(calibration)[:16]}"


def version_tags(settings: LineSettings, made_on: Sequence[str]) -> dict[str, str]:
    """What a rebuild must know beside the state and its calibration (platform/rebuild.py). made_on: see `machine`."""
    return {
        "threads": str(settings.threads),
        "torch": str(torch.__version__),
        "device": settings.device,
        "publish_every": str(settings.publish_every),
        "probation": str(settings.probation),
        "drift": settings.drift,
        "made_on": "; ".join(made_on),
    }


def machine(threads: int, device: str) -> str:
    """What bits depend on beside records and method: torch, the kind of processor, threads, device."""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return f"torch {torch.__version__}, {cpu}, threads {threads}, {device}"


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
        sent_as=record.data.get("sent_as"),
    )


def plain(inspection: Inspection) -> dict[str, Any]:
    """JSON-able; an infinite threshold (no scores yet) becomes None."""
    out = asdict(inspection)
    if out["threshold"] == float("inf"):
        out["threshold"] = None
    return out
