"""The fold over the log: what a line knows is a function of its settings and of the records so far.

No disk, no Ray, no MLflow and no clock in here. The same records give the same state to the last bit,
whether they come live or are replayed after a crash.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..methods.detector import Detector, State
from ..methods.errors import StateError
from ..methods.registry import build, restore
from .calibration import Calibration
from .online import DEFECT, Online, explained_by
from .record import Record

FIRST_SNAPSHOT = 25
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


@dataclass
class Candidate:
    """A snapshot of the learner on probation: it scores fresh images before anyone learns them."""

    detector: Detector
    watermark: int  # sequence number of the last record that it learned from
    scores: list[float] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)  # records of which nobody has said anything


@dataclass(frozen=True)
class Publish:
    """An instruction: register this version and make it current. `key` makes carrying it out twice harmless."""

    key: str
    state: State
    calibration: Calibration
    watermark: int


class Fold:
    """Learner, candidate and counts of one line. `apply` is the only thing that changes them."""

    def __init__(
        self,
        method: str,
        params: dict[str, Any],
        *,
        device: str = "cpu",
        false_reject_rate: float = 0.01,
        publish_every: int = 200,
    ) -> None:
        self.learner = build(method, **params, device=device)
        self.false_reject_rate, self.publish_every = false_reject_rate, publish_every
        self.candidate: Candidate | None = None
        self.watermark = -1  # sequence number of the last applied record
        self.current: int | None = None  # the version that gives verdicts
        self.task, self.switched = "", -1  # the product at hand, and the record that said so
        self.counts = {"inspected": 0, "rejected": 0, "not_admitted": 0, "published": 0}
        self.online = Online(false_reject_rate)
        self.defects: dict[int, bytes] = {}  # number of the image's record -> the image, oldest first
        self._shown: dict[int, dict[int, float]] = {}  # watermark of a version to be published -> scores of defects
        self._needed = Calibration((), false_reject_rate).needed

    @classmethod
    def of(cls, settings: Decides) -> Self:
        """Before the first record of a line with these settings."""
        return cls(
            settings.method,
            settings.params,
            device=settings.device,
            false_reject_rate=settings.false_reject_rate,
            publish_every=settings.publish_every,
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
            self.current = record.version
            self.counts["published"] += record.kind == "publish"
            mark = record.data.get("watermark", -1)
            self.online.turn(record.version, self._shown.get(mark, {}))
            self._shown = {later: shown for later, shown in self._shown.items() if later > mark}
            if record.kind == "rollback":
                self.candidate = None  # it learned what the operator has just turned down
                self._shown.clear()
        elif record.kind == "task":
            self.task, self.switched = record.data["task"], record.seq
            self.learner.begin_task(self.task)
        self.watermark = record.seq
        return ready

    def _image(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        self.counts["inspected"] += 1
        self.counts["rejected"] += record.verdict == "reject"
        self.online.see(record)
        if record.admitted:
            return self._learn(record, embed)
        self.counts["not_admitted"] += 1
        if self.candidate is not None and record.verdict == "reject" and record.data.get("learn") is not False:
            self.candidate.rejected.append(record.seq)
        return None

    def _feedback(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        """An operator's word. A rejected image that is `ok` comes with its bytes, and is learned if `admitted`."""
        of, label = record.data["of"], record.data["label"]
        self.online.hear(record)
        self.defects.pop(of, None)
        for shown in self._shown.values():
            shown.pop(of, None)
        if self.candidate is not None and of in self.candidate.rejected:
            self.candidate.rejected.remove(of)
        if label == DEFECT and record.image is not None and len(record.image) <= DEFECT_BYTES:
            self.defects[of] = record.image
            while len(self.defects) > DEFECTS:
                del self.defects[next(iter(self.defects))]
        return self._learn(record, embed) if record.admitted else None

    def _learn(self, record: Record, embed: Callable[[Record], Tensor]) -> Publish | None:
        """The candidate scores the image before the learner learns it."""
        features = embed(record)
        if self.candidate is not None:
            self.candidate.scores.append(_score(self.candidate.detector, features))
        self.learner.learn(features)
        ready = self._graduate(embed)
        if self._snapshot_due() and self.learner.ready:
            self.candidate = Candidate(restore(self.learner.state(), self.learner.device), record.seq)
        return ready

    def _graduate(self, embed: Callable[[Record], Tensor]) -> Publish | None:
        """The candidate has enough fresh scores, or must make room for the next one.

        Of the rejects that it was spared, as many as the promised rate explains count as the highest score it saw:
        they were cut off the top of what it was shown.
        """
        candidate = self.candidate
        if candidate is None or not candidate.scores:
            return None
        if len(candidate.scores) < self._needed and not self._snapshot_due():
            return None
        self.candidate = None
        cut_off = min(len(candidate.rejected), explained_by(len(candidate.scores), self.false_reject_rate))
        shown = {
            of: _score(candidate.detector, embed(Record(kind="feedback", id="", image=data)))
            for of, data in self.defects.items()
        }
        if shown:
            self._shown[candidate.watermark] = shown
        return Publish(
            key=f"snapshot-{candidate.watermark}",
            state=candidate.detector.state(),
            calibration=Calibration.of(candidate.scores + [max(candidate.scores)] * cut_off, self.false_reject_rate),
            watermark=candidate.watermark,
        )

    def _snapshot_due(self) -> bool:
        """At 25, 50, 100, ... images while the line is young, then every `publish_every`."""
        images, step = self.learner.images_learned, FIRST_SNAPSHOT
        while step < images:
            step *= 2
        return images % self.publish_every == 0 or (images == step and images < self.publish_every)

    def pack(self) -> tuple[dict[str, State], dict[str, Any]]:
        """States and plain values from which `unpack` continues bit for bit."""
        states = {"learner": self.learner.state(), "online": self.online.pack()}
        meta: dict[str, Any] = {"watermark": self.watermark, "current": self.current, "counts": self.counts}
        meta["settings"] = self._settings()
        meta["task"] = {"name": self.task, "record": self.switched}
        if self.candidate is not None:
            states["candidate"] = self.candidate.detector.state()
            meta["candidate"] = {
                "watermark": self.candidate.watermark,
                "scores": self.candidate.scores,
                "rejected": self.candidate.rejected,
            }
        if self.defects:
            tensors = {
                str(of): torch.frombuffer(bytearray(data), dtype=torch.uint8) for of, data in self.defects.items()
            }
            states["defects"] = State(tensors, {"order": list(self.defects)})
        meta["shown"] = [[mark, list(scores.items())] for mark, scores in self._shown.items()]
        return states, meta

    def unpack(self, states: dict[str, State], meta: dict[str, Any]) -> None:
        """The reverse of `pack`. Raises StateError where the method, its parameters or the other settings differ.

        One of an everline that knew no feedback goes on without the verdicts before it.
        """
        if meta.get("settings") != self._settings():
            raise StateError("it was made with another false_reject_rate or publish_every")
        self.learner.load_state(states["learner"])
        if "candidate" in states:
            kept = meta["candidate"]
            detector = restore(states["candidate"], self.learner.device)
            rejected = list(kept.get("rejected", []))
            self.candidate = Candidate(detector, kept["watermark"], list(kept["scores"]), rejected)
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
        if "task" in meta:  # older checkpoints know of no product change
            self.task, self.switched = meta["task"]["name"], meta["task"]["record"]

    def _settings(self) -> dict[str, Any]:
        """What decides, beside the learner, which versions come of the records."""
        return {"false_reject_rate": self.false_reject_rate, "publish_every": self.publish_every}


def _score(detector: Detector, features: Tensor) -> float:
    return float(detector.score(features).image[0])
