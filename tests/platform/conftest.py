"""A line with a log on the disk."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from everline.platform.line import Line
from everline.platform.settings import LineSettings

from .lines import SETTINGS, Shelf


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Line]]:
    """Opens a line; those still open at the end are closed."""
    lines: list[Line] = []

    def make(shelf: Shelf | None = None, store: str = "store", settings: LineSettings = SETTINGS) -> Line:
        lines.append(Line("a", settings, tmp_path / store, shelf or Shelf()))
        return lines[-1]

    yield make
    for line in lines:
        line.writer.release()
