"""Versions that are due and wait for MLflow, oldest first: on disk, since an outage may last and states are large.

The log says which wait (records of kind `due`, docs/store-format.md); what lies here only saves folding again.
"""

import logging
from typing import Any

from ..methods.detector import State
from ..methods.errors import Corrupt
from .calibration import Calibration
from .checkpoints import Checkpoints
from .fold import Publish
from .volume import Place

log = logging.getLogger("everline.due")


class Waiting:
    """A queue on disk; an entry's number is that of its `due` record."""

    def __init__(self, folder: Place) -> None:
        self._disk = Checkpoints(folder)
        self._memory: dict[int, tuple[Publish, dict[str, str]]] = {}  # what the disk would not take
        self.numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def durable(self) -> bool:
        """Whether all of it would be found again by another process."""
        return not self._memory

    def put(self, number: int, ready: Publish, tags: dict[str, str]) -> None:
        """At the end. A disk that is full keeps it in memory: it takes no images either, so they stay few."""
        plain = {"key": ready.key, "watermark": ready.watermark, "calibration": ready.calibration.to_json()}
        try:
            self._disk.save(number, {"version": ready.state}, {**plain, "tags": tags}, None)
        except OSError as error:
            log.warning("%s: a version waits in memory: %s", self._disk.folder, error)
            self._memory[number] = ready, tags
        self.numbers.append(number)

    def take(self, number: int) -> bool:
        """Adds one that another process has put here; False where it is not here, or not whole."""
        if number not in self._disk.numbers():
            return False
        try:
            self._load(number)
        except Corrupt as error:
            log.warning("%s", error)
            return False
        self.numbers.append(number)
        return True

    def first(self) -> tuple[Publish, dict[str, str]]:
        """The oldest and its tags. Raises Corrupt."""
        return self._load(self.numbers[0])

    def drop(self, numbers: list[int]) -> None:
        """They went out, or were turned down. On the disk they stay until `tidy`: a checkpoint may name them."""
        for number in numbers:
            self._memory.pop(number, None)
        self.numbers = [number for number in self.numbers if number not in numbers]

    def tidy(self) -> None:
        """Removes from the disk what does not wait any more."""
        for number in set(self._disk.numbers()) - set(self.numbers):
            self._disk.remove(number)

    def _load(self, number: int) -> tuple[Publish, dict[str, str]]:
        if number in self._memory:
            return self._memory[number]
        states, plain = self._disk.load(number)
        return _publish(states["version"], plain), dict(plain["tags"])


def _publish(state: State, plain: dict[str, Any]) -> Publish:
    return Publish(plain["key"], state, Calibration.from_json(plain["calibration"]), plain["watermark"])
