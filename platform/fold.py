"""The fold over the log: what a line knows is a function of its settings and of the records so far.

No disk, no Ray, no MLflow and no clock in here. The same records give the same state to the last bit,
whether they come live or are replayed after a crash.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..methods.detector import Detector, State
from ..methods.errors import StateError
from ..methods.registry import build, restore
from .calibration import Calibration
from .drift import DRIFT, Watch
from .online import DEFECT, OK, InForce, Online, explained_by
from .ownjudge import LABELLED, Question, Remembered, held_for, packed, unpacked
from .record import Record

FIRST_SNAPSHOT = 25
ASK_EVERY = 2  # images that a candidate scores: then it is asked about one of the log, which has to be embedded
QUESTIONS, AT_ONCE = 48, 2  # that a short probation is to hold; with an image, at most
DEFECTS, DEFECT_BYTES = 16, 4 * 2**20  # known defects that passed, whose images the next versions are shown


class Decides(Protocol):
    """The settings that a line's state depends on."""

    @property
    def method(self) -> str: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def device(self) -> str: ...
    @property
    def false_reject_rate(self) -> float: ...
    @property
    def publish_every(self) -> int: ...
    @property
    def probation(self) -> int: ...
    @property
    def drift(self) -> str: ...


@dataclass
class Candidate:
    """A snapshot of the learner on probation: it scores fresh images before anyone learns them."""

    detector: Detector
    watermark: int  # sequence number of the last record that it learned from
    scores: list[float] = field(default_factory=list)
    rejected: dict[int, float] = field(default_factory=dict)  # record -> its score, where nobody has said anything
    asked: dict[Question, float | None] = field(default_factory=dict)  # score; None: the image could not be had


@dataclass(frozen=True)
class Publish:
    """An instruction: register this version and make it current. `key` makes carrying it out twice harmless.

    held: why it is not to be published after all.
    """

    key: str
    state: State
    calibration: Calibration
    watermark: int
    held: tuple[str, ...] = ()


class Fold:
    """Learner, candidate and counts of one line. `apply` is the only thing that changes them.

    ask: features (1, C, h, w) of an image of the log for the gate, or None where it cannot be had; without `ask`
    candidates are asked nothing, and none is held. What the learner learns does not depend on it.
    """

    def __init__(
        self,
        method: str,
        params: dict[str, Any],
        *,
        device: str = "cpu",
        false_reject_rate: float = 0.01,
        publish_every: int = 200,
        probation: int = 25,
        drift: str = "adapt",
    ) -> None:
        self.learner = build(method, **params, device=device)
        self.false_reject_rate, self.publish_every, self.probation = false_reject_rate, publish_every, probation
        self.candidate: Candidate | None = None
        self.watermark = -1  # sequence number of the last applied record
        self.current: int | None = None  # the version that gives verdicts
        self.task, self.switched = "", -1  # the product at hand, and the record that said so
        self.counts = {"inspected": 0, "rejected": 0, "not_admitted": 0, "published": 0}
        self.online = Online(false_reject_rate)
        self.defects: dict[int, bytes] = {}  # number of the image's record -> the image, oldest first
        self._shown: dict[int, dict[int, float]] = {}  # watermark of a version to be published -> scores of defects
        self._enough = max(Calibration((), false_reject_rate).needed, probation)
        self.watch = Watch(false_reject_rate, drift)
        self.remembered = Remembered()
        self.ask: Callable[[Question], Tensor | None] | None = None
        self.held: dict[str, Any] | None = None  # the last candidate, where it was held: {"record", "reasons"}
        self._answers: dict[int, dict[Question, bool]] = {}  # watermark of a version that is due -> what it rejects
        self._answered: dict[Question, bool] = {}  # ... of the current version
        self._learned: dict[str, int] = {}  # task -> images learned, since its last drift where that is adapted to
        self._since: dict[str, int] = {}  # task -> the record with which a version of these records knows it
        self._marks: dict[int, int] = {}  # version -> the last record that it knows
        self._shifted: dict[str, int] = {}  # task -> the first record after a drift that left no version knowing it

    @classmethod
    def of(cls, settings: Decides) -> Self:
        """Before the first record of a line with these settings."""
        return cls(
            settings.method,
            settings.params,
            device=settings.device,
            false_reject_rate=settings.false_reject_rate,
            publish_every=settings.publish_every,
            probation=settings.probation,
            drift=settings.drift,
        )

    def apply(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        """Takes in the next record; `embed` gives the features (1, C, h, w) of a record that has an image.

        Returns what is to be carried out, if anything. Raises ValueError for a record out of turn.
        """
        if record.seq != self.watermark + 1:
            raise ValueError(f"record {record.seq} applied after {self.watermark}")
        ready = None
        if record.kind == "image":
            ready = self._image(record, embed)
        elif record.kind == "feedback":
            ready = self._feedback(record, embed)
        elif record.kind in ("publish", "rollback"):
            self._turn(record)
        elif record.kind == "held":
            self.held = {"record": record.seq, "reasons": record.data["reasons"]}
            self._drop_before(record.data["watermark"])
        elif record.kind == "task":
            self.task, self.switched = record.data["task"], record.seq
            if self.task in self._shifted:
                self._shifted[self.task] = record.seq  # not by rank among another product's images
            self.learner.begin_task(self.task)
        self.watermark = record.seq
        return ready

    @property
    def knows(self) -> bool:
        """Whether the current version is to judge the product at hand: it has learned 25 images of it.

        A line that has never seen a product judges none of it, as it did when it was new: else it would reject all,
        and learn nothing. A version that a person made current knows the product that was at hand then.
        """
        if self.current is None:
            return False
        return self._since.get(self.task, self.watermark + 1) <= self._marks.get(self.current, self.watermark)

    @property
    def shifted(self) -> int | None:
        """The record from which on images are judged by their rank among each other, since the light has shifted.

        None: it has not, or a version that learned 25 images since is current.
        """
        return None if self.knows else self._shifted.get(self.task)

    def in_force(self, base: Calibration) -> InForce:
        """What decides now, given the scores that the current version was published with."""
        return self.online.in_force(base, self.shifted)

    def _turn(self, record: Record) -> None:
        """Another version is current."""
        self.current, self.held = record.version, None
        self.counts["published"] += record.kind == "publish"
        mark = record.data.get("watermark", -1)
        if record.version is not None and record.version not in self._marks:
            self._marks[record.version] = mark if record.kind == "publish" else record.seq
            if record.kind == "rollback":
                self._since.setdefault(self.task, record.seq)
        if record.kind == "rollback" and record.version is not None and self._shifted.pop(self.task, None) is not None:
            mark_of = self._marks[record.version]
            self._since[self.task] = min(self._since.get(self.task, mark_of), mark_of)  # a person has seen the light
        self.online.turn(record.version, self._shown.get(mark, {}))
        self._answered = self._answers.get(mark, {})
        self._drop_before(mark)
        if record.kind == "rollback":
            self.candidate = None  # it learned what the operator has just turned down
            self._shown.clear()
            self._answers.clear()
            self.watch.forgive()

    def _drop_before(self, mark: int) -> None:
        """What versions made of images, of those that are not to come any more."""
        self._shown = {later: shown for later, shown in self._shown.items() if later > mark}
        self._answers = {later: answers for later, answers in self._answers.items() if later > mark}

    def _image(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        self.counts["inspected"] += 1
        self.counts["rejected"] += record.verdict == "reject"
        if record.data.get("unknown_sender"):  # whoever it was: no evidence of anything
            self.counts["not_admitted"] += 1
            return None
        self.online.see(record)
        self.watch.take(record)
        if self.watch.state == DRIFT and self.watch.policy == "adapt":
            self._drifted(record)
        if record.admitted:
            self.remembered.normal(record.seq, record.task)
            return self._learn(record, embed)
        self.counts["not_admitted"] += 1
        if record.verdict == "reject" and record.image is not None and record.data.get("learn") is not False:
            self._spared(record, embed)
        return None

    def _drifted(self, record: Record) -> None:
        """An image of a drift that is adapted to: snapshots come as soon as of a new product.

        Where light or moments have moved, which a defect hardly does, and the current version rejects all that comes,
        it does not know what it sees, and the line begins anew with its product.
        """
        if self.watch.since == record.seq:
            self.remembered.forget(record.task)  # what is usual from now on looks another way
            self._learned[record.task] = 0
        shifted = self.online.overtaken() if self.knows and self.watch.everywhere else None
        if shifted is not None:
            self._shifted[record.task], self._learned[record.task] = shifted, 0
            self._since.pop(record.task, None)
            self.candidate = None  # of the light before
            self.online.aim = self.false_reject_rate

    def _spared(self, record: Record, embed: Callable[[Record], Tensor]) -> None:
        """A rejected image is not shown to the candidate, but kept in mind at its score."""
        if self.candidate is not None:
            self.candidate.rejected[record.seq] = _score(self.candidate.detector, embed(record))

    def _feedback(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        """An operator's word. A rejected image that is `ok` comes with its bytes, and is learned if `admitted`."""
        of, label = record.data["of"], record.data["label"]
        self.online.hear(record)
        self.remembered.drop(of)
        if label == DEFECT:
            self.remembered.defect(of, record.task)
        elif label == OK and record.verdict == "reject":
            self.remembered.normal(of, record.task)
        if label == DEFECT and record.version == self.current and record.verdict in ("pass", "reject"):
            self._answer(Question(of, DEFECT, record.task), record.verdict == "reject")
        self.defects.pop(of, None)
        for shown in self._shown.values():
            shown.pop(of, None)
        if self.candidate is not None:
            self.candidate.rejected.pop(of, None)
        if label == DEFECT and record.image is not None and len(record.image) <= DEFECT_BYTES:
            self.defects[of] = record.image
            while len(self.defects) > DEFECTS:
                del self.defects[next(iter(self.defects))]
        return self._learn(record, embed) if record.admitted else None

    def _answer(self, question: Question, rejected: bool) -> None:
        """What the current version made of a defect before it was known as one; of no more than are asked about."""
        self._answered[question] = rejected
        known = [one for one in self._answered if one.kind == DEFECT]
        if len(known) > LABELLED:
            del self._answered[known[0]]

    def _learn(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        """The candidate scores the image before the learner learns it."""
        features = embed(record)
        if self.candidate is not None:
            self.candidate.scores.append(_score(self.candidate.detector, features))
            self._ask(self.candidate)
        self.learner.learn(features)
        images = self._learned[record.task] = self._learned.get(record.task, 0) + 1
        if images == FIRST_SNAPSHOT:
            self._since.setdefault(record.task, record.seq)
        ready = self._graduate(embed, record.task)
        if self._snapshot_due(record.task) and self.learner.ready:
            self.candidate = Candidate(restore(self.learner.state(), self.learner.device), record.seq)
        return ready

    def _ask(self, candidate: Candidate) -> None:
        """A question now and then, so that no image has to wait for many of them."""
        if self.ask is None:
            return
        scored, asked = len(candidate.scores), len(candidate.asked)
        due = max(scored // ASK_EVERY, scored * QUESTIONS // self._enough) - asked
        new = (one for one in self.remembered.questions() if one not in candidate.asked)
        for question in list(islice(new, max(0, min(due, AT_ONCE)))):
            features = self.ask(question)
            candidate.asked[question] = None if features is None else _score(candidate.detector, features)

    def _graduate(self, embed: Callable[[Record], Tensor], task: str) -> Publish | None:
        """The candidate has enough fresh scores, or must make room for the next one.

        Images that the current version rejected are not among its scores. As many of them as were normal, by the tail
        of what passed, count at what it makes of them, the lowest first; where that cannot be told, as many as the
        promised rate explains, at the highest score it saw.
        """
        candidate = self.candidate
        if candidate is None or not candidate.scores:
            return None
        if len(candidate.scores) < self._enough and not self._snapshot_due(task):
            return None
        self.candidate = None
        shown = {
            of: _score(candidate.detector, embed(Record(kind="feedback", id="", image=data)))
            for of, data in self.defects.items()
        }
        if shown:
            self._shown[candidate.watermark] = shown
        calibration = Calibration.of(candidate.scores + self._cut_off(candidate), self.false_reject_rate)
        answers = {
            question: calibration.verdict(score) == "reject"
            for question, score in candidate.asked.items()
            if score is not None
        }
        self._answers[candidate.watermark] = answers
        return Publish(
            key=f"snapshot-{candidate.watermark}",
            state=candidate.detector.state(),
            calibration=calibration,
            watermark=candidate.watermark,
            held=held_for(answers, self._answered, self.false_reject_rate),
        )

    def _cut_off(self, candidate: Candidate) -> list[float]:
        """Scores of images that the current version rejected, though they were normal as far as can be told."""
        count, share = len(candidate.scores), self.online.cut_off(self.shifted)
        rejects = sorted(candidate.rejected.values())
        if share is None:
            return [max(candidate.scores)] * min(len(rejects), explained_by(count, self.false_reject_rate))
        return rejects[: round(share * count)]

    def _snapshot_due(self, task: str) -> bool:
        """At 25, 50, 100, ... images while the line, the product or its light is young; and every `publish_every`.

        Until a version knows the new light, images of before do not count: a snapshot that they brought would know
        none, or take the place of one that does after a few scores.
        """
        of_all, of_task = self.learner.images_learned, self._learned[task]
        steady = of_all if self.shifted is None else of_task
        early = any(images < self.publish_every and _doubled(images) for images in (steady, of_task))
        return early or steady % self.publish_every == 0

    def pack(self) -> tuple[dict[str, State], dict[str, Any]]:
        """States and plain values from which `unpack` continues bit for bit."""
        states = {"learner": self.learner.state(), "online": self.online.pack()}
        meta: dict[str, Any] = {"watermark": self.watermark, "current": self.current, "counts": self.counts}
        meta["settings"] = self._settings()
        meta["task"] = {"name": self.task, "record": self.switched}
        meta["known"] = [list(one.items()) for one in (self._learned, self._since, self._marks, self._shifted)]
        if self.candidate is not None:
            states["candidate"] = self.candidate.detector.state()
            meta["candidate"] = {
                "watermark": self.candidate.watermark,
                "scores": self.candidate.scores,
                "rejected": list(self.candidate.rejected.items()),
                "asked": [[q.number, q.kind, q.task, score] for q, score in self.candidate.asked.items()],
            }
        if self.defects:
            tensors = {
                str(of): torch.frombuffer(bytearray(data), dtype=torch.uint8) for of, data in self.defects.items()
            }
            states["defects"] = State(tensors, {"order": list(self.defects)})
        meta["shown"] = [[mark, list(scores.items())] for mark, scores in self._shown.items()]
        meta["watch"] = {"policy": self.watch.policy, **self.watch.pack()}
        meta["gate"] = {
            "remembered": self.remembered.pack(),
            "answers": [[mark, packed(answers)] for mark, answers in self._answers.items()],
            "answered": packed(self._answered),
            "held": self.held,
        }
        return states, meta

    def unpack(self, states: dict[str, State], meta: dict[str, Any]) -> None:
        """The reverse of `pack`. Raises StateError where the method, its parameters or the other settings differ.

        One of an everline that knew no feedback goes on without the verdicts before it.
        """
        if meta.get("settings") != self._settings():
            raise StateError("it was made with another false_reject_rate, publish_every or probation")
        self.learner.load_state(states["learner"])
        if "candidate" in states:
            kept = meta["candidate"]
            detector = restore(states["candidate"], self.learner.device)
            rejected = dict(map(tuple, kept.get("rejected", [])))
            asked = {Question(n, kind, task): score for n, kind, task, score in kept.get("asked", [])}
            self.candidate = Candidate(detector, kept["watermark"], list(kept["scores"]), rejected, asked)
        self.watermark, self.current = meta["watermark"], meta["current"]
        if "online" in states:
            self.online = Online.unpack(self.false_reject_rate, states["online"])
        else:
            self.online.turn(self.current, {})
        if "defects" in states:
            kept_images = states["defects"]
            self.defects = {of: kept_images.tensors[str(of)].numpy().tobytes() for of in kept_images.meta["order"]}
        self._shown = {mark: dict(map(tuple, scores)) for mark, scores in meta.get("shown", [])}
        self.counts = dict(meta["counts"])
        if meta.get("watch", {}).get("policy") == self.watch.policy:  # another policy begins anew
            self.watch.unpack(meta["watch"])
        if "gate" in meta:
            self.remembered.unpack(meta["gate"]["remembered"])
            self._answers = {mark: unpacked(answers) for mark, answers in meta["gate"]["answers"]}
            self._answered, self.held = unpacked(meta["gate"]["answered"]), meta["gate"]["held"]
        if "task" in meta:  # older checkpoints know of no product change
            self.task, self.switched = meta["task"]["name"], meta["task"]["record"]
        if "known" in meta:
            self._learned, self._since, self._marks, *shifted = map(dict, meta["known"])
            self._shifted = shifted[0] if shifted else {}  # older checkpoints know of no shift

    def _settings(self) -> dict[str, Any]:
        """What decides, beside the learner, which versions come of the records."""
        names = ("false_reject_rate", "publish_every", "probation")
        return {name: getattr(self, name) for name in names}


def _doubled(images: int) -> bool:
    """Whether it is 25, 50, 100, ..."""
    times, rest = divmod(images, FIRST_SNAPSHOT)
    return rest == 0 and times.bit_count() == 1


def _score(detector: Detector, features: Tensor) -> float:
    return float(detector.score(features).image[0])
