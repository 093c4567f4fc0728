"""A line that nothing happens to, to compare one with that was killed: the same images give the same state."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...platform.line import Line
from ...platform.settings import LineSettings


def undisturbed(name: str, settings: LineSettings, images: Iterable[tuple[bytes, str]], store: Path) -> str:
    """The digest of a line that inspects encoded images with their ids, in a store of its own. Blocking, no Ray."""
    line = Line(name, settings, store, Kept())
    for data, id in images:
        line.inspect(data, id)
    found = line.digest()
    line.close()
    return found


class Kept:
    """Versions kept in memory: for a line that is only run to be compared with."""

    def __init__(self) -> None:
        self._versions: list[tuple[Any, Any] | None] = []

    def publish(self, state: Any, calibration: Any, *, watermark: int, key: str, tags: dict[str, str]) -> int:
        """Keeps it and returns its number, from 1."""
        self._versions = [*(None for _ in self._versions), (state, calibration)]  # nobody asks for older ones
        return len(self._versions)

    def load(self, version: int) -> tuple[Any, Any]:
        """What `publish` was given."""
        found = self._versions[version - 1]
        assert found is not None
        return found

    def prune(self, keep: int) -> list[int]:
        """All are kept in a way: older ones are forgotten by `publish`."""
        return []

    def target(self, version: int | None = None) -> int:
        """Nobody rolls such a line back."""
        raise NotImplementedError

    def live(self) -> dict[int, int]:
        """Nobody makes such a version again."""
        return {}

    def current(self) -> int | None:
        """The newest."""
        return len(self._versions) or None

    def rollback(self, version: int | None = None) -> int:
        """Nobody rolls such a line back."""
        raise NotImplementedError
