"""Feeding a line: one image after the other, each with an identity, until each is acknowledged."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ...methods.errors import Dropped, ImageError
from ...platform.images import MAX_BYTES, image_id


class Line(Protocol):
    """What takes images (platform/reach.py)."""

    def inspect(self, data: bytes, id: str) -> dict[str, Any]: ...


@dataclass
class Fed:
    """What came of feeding: every image is acknowledged, a duplicate, or refused with its reason."""

    acknowledged: int = 0
    duplicates: int = 0
    admitted: int = 0
    rejected: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def images_per_s(self) -> float:
        """Acknowledged images a second, learning included."""
        return self.acknowledged / self.seconds if self.seconds else 0.0


def feed(
    line: Line,
    files: Iterable[Path],
    *,
    told: Callable[[Path, dict[str, Any] | None], None] = lambda path, answer: None,
) -> Fed:
    """Sends files to a line in order; `told` hears of each answer (None: refused).

    An image that got no answer because the line's process died is sent again: its id keeps it from being
    learned twice. Raises what ends the work (NoSpace, LineStopped, ...); a broken or dropped image does not.
    """
    done, start = Fed(), time.monotonic()
    for path in files:
        answer: dict[str, Any] | None = None
        try:
            data = _read(path)
            answer = line.inspect(data, image_id(path.name, data))
        except (ImageError, Dropped) as error:
            done.refused[str(path)] = str(error)
        else:
            done.acknowledged += 1
            done.duplicates += answer["duplicate"]
            done.admitted += answer["admitted"] and not answer["duplicate"]
            done.rejected += answer["verdict"] == "reject" and not answer["duplicate"]
        done.seconds = time.monotonic() - start
        told(path, answer)
    return done


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(f"{path.name}: larger than {MAX_BYTES} bytes.")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path.name}: cannot be read: {error.strerror}") from error
