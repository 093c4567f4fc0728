"""A line for tests: what it is sent, and a registry of versions in memory."""

import io
from typing import Any

import pytest
from everline.methods.conformance import images
from everline.methods.detector import State
from everline.methods.errors import (
    TrackingError,
    UnknownVersion,
)
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.line import Line, embed_image
from everline.platform.settings import LineSettings
from PIL import Image

SETTINGS = LineSettings(method="lemo", params={"size": 64}, checkpoint_every=20, false_reject_rate=0.05, probation=1)


class Shelf:
    """Versions in memory, behind the seam that platform/versions.py fills; `down` makes it fail."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[State, Calibration]] = {}
        self.alias: int | None = None
        self.watermarks: list[int] = []  # of versions that a line's own learner made
        self.down = False

    def publish(
        self, state: State, calibration: Calibration, *, watermark: int, key: str, tags: dict[str, str]
    ) -> int:
        self._answer()
        self.watermarks += [] if key in self.kept else [watermark]
        self.kept.setdefault(key, (state, calibration))
        self.alias = list(self.kept).index(key) + 1
        return self.alias

    def _answer(self) -> None:
        if self.down:
            raise TrackingError("down")

    def load(self, version: int) -> tuple[State, Calibration]:
        self._answer()
        return list(self.kept.values())[version - 1]

    def current(self) -> int | None:
        self._answer()
        return self.alias

    def live(self) -> dict[int, int]:
        self._answer()
        own = self.alias is not None and self.alias <= len(self.watermarks)
        return {self.alias: self.watermarks[self.alias - 1]} if own and self.alias else {}

    def prune(self, keep: int) -> list[int]:
        self._answer()
        return []

    def target(self, version: int | None = None) -> int:
        self._answer()
        number = version if version is not None else (self.alias or 0) - 1
        if not 1 <= number <= len(self.kept):
            raise UnknownVersion(f"no version {number}")
        return number

    def rollback(self, version: int | None = None) -> int:
        self.alias = self.target(version)
        return self.alias


def png(index: int, defect: bool = False) -> bytes:
    pixels = images(1, seed=1000 + index, defect=defect)[0].permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    return out.getvalue()


STREAM = [png(i) for i in range(60)]


def send(line: Line, first: int, last: int) -> list[Any]:
    return [line.inspect(STREAM[i], f"i{i}") for i in range(first, last)]


def die(line: Line) -> None:
    """As SIGKILL would: the lock goes, nothing is settled or saved."""
    line.writer.release()


def ask_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everline.platform.line.RETRY_S", 0.0)
    monkeypatch.setattr("everline.platform.line.RETRY_SHARE", 0)


QUICK = LineSettings(method="lemo", params={"size": 64}, false_reject_rate=0.2, probation=1, publish_every=25)


def another(shelf: Shelf) -> int:
    """Another version of the same line, of another method, that nobody has made current."""
    detector = build("padim", size=64)
    for data in STREAM[:20]:
        detector.learn(embed_image(detector, data))
    scores = [float(detector.score(embed_image(detector, data)).image[0]) for data in STREAM[20:40]]
    shelf.kept["sweep"] = (detector.state(), Calibration.of(scores, 0.2))
    return len(shelf.kept)
