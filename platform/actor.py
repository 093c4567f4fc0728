"""The line as a Ray actor: one process, one writer, restarted by Ray when it dies. Thin on purpose.

Ray restarts the process but keeps nothing of it; what the line knows comes back from its log. A caller
that got no answer sends the same image id again: what was acknowledged is not learned twice.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ..methods.errors import EverlineError, LineDown, StoreError, UnknownLine
from .line import Line, plain
from .settings import Fleet, LineSettings
from .versions import Versions

log = logging.getLogger("everline.actor")
NAMESPACE = "everline"
T = TypeVar("T")


class LineActor:
    """What other processes may ask of a line. One thing at a time, in the order it came."""

    def __init__(self, name: str, settings: LineSettings, store: str, tracking: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)  # torch counts threads by thread: everything in this one
        self._line: Line = self._thread.submit(Line, name, settings, Path(store), Versions(tracking, name)).result()

    async def inspect(self, data: bytes, id: str, learn: bool = True) -> dict[str, Any]:
        """An encoded image -> the fields of `Inspection`; it is durable when this returns, learned soon after."""
        return await self._record(data, id, learn, None)

    async def record(
        self, data: bytes, features: np.ndarray, scored: dict[str, Any] | None, id: str, learn: bool = True
    ) -> dict[str, Any]:
        """The same for a serving replica, which embedded (1, C, h, w) and scored the image already."""
        return await self._record(data, id, learn, (torch.from_numpy(np.array(features)), scored))

    async def score(self, features: np.ndarray) -> np.ndarray:
        """Image scores (B,) of features (B, C, h, w) by the learner as it stands; nothing is learned or logged."""

        def work() -> np.ndarray:
            parts = [self._line.score(torch.from_numpy(np.array(part))) for part in _chunks(features, 16)]
            return torch.cat(parts).numpy()

        return await self._alone(work)

    async def rollback(self, version: int | None = None) -> int:
        """Makes an older version current again; returns its number."""
        return await self._alone(self._line.rollback, version)

    async def status(self) -> dict[str, Any]:
        """Counts, version, threshold, ... and the process that holds them."""
        return {**await self._alone(self._line.status), "pid": os.getpid()}

    async def digest(self) -> str:
        """A checksum over the learner's state."""
        return await self._alone(self._line.digest)

    async def close(self) -> None:
        """Learns what is pending, saves a checkpoint, gives up the log."""
        await self._alone(self._line.close)

    async def _record(self, data: bytes, id: str, learn: bool, judged: Any) -> dict[str, Any]:
        inspection = await self._alone(lambda: self._line.inspect(data, id, learn=learn, judged=judged))
        self._thread.submit(self._settle)  # learn while the caller has its answer
        return plain(inspection)

    async def _alone(self, work: Any, *args: Any) -> Any:
        """Runs blocking work in the line's own thread: one piece at a time, in the order of the calls."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _settle(self) -> None:
        try:
            self._line.settle()
        except Exception:  # the next call meets the same error and tells its caller
            log.exception("line %s could not learn", self._line.name)


def start_line(name: str, fleet: Fleet) -> tuple[Any, bool]:
    """The handle of a line's actor, and whether it had to be started. Raises UnknownLine, SecondWriter, ..."""
    settings = fleet.line(name)
    try:
        return line_handle(name), False
    except UnknownLine:
        kind: Any = ray.remote(LineActor)
        actor = kind.options(
            name=f"line:{name}",
            namespace=NAMESPACE,
            max_restarts=-1,
            max_concurrency=64,
            num_cpus=0,
            num_gpus=settings.gpus,
        )
        handle = actor.remote(name, settings, str(fleet.store), fleet.tracking)
        answer(handle.status.remote())
        return handle, True


def line_handle(name: str) -> Any:
    """The handle of a running line. Raises UnknownLine."""
    try:
        return ray.get_actor(f"line:{name}", namespace=NAMESPACE)
    except ValueError:
        raise UnknownLine(f"line {name!r} does not run here.") from None


def answer(ref: Any, timeout_s: float | None = None) -> Any:
    """The result behind a reference, with everline's own errors as they were raised.

    Raises LineDown while the actor is gone or coming back: send the same thing again.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except (RayActorError, RayTaskError, GetTimeoutError) as error:
        raise translated(error) from error


async def answer_soon(ref: Awaitable[T]) -> T:
    """`answer` for asynchronous callers."""
    try:
        return await ref
    except (RayActorError, RayTaskError) as error:
        raise translated(error) from error


def translated(error: Exception) -> Exception:
    """Ray's errors as ours. An actor that could not start says why in the text of its death."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EverlineError):
        return cause
    if isinstance(error, RayActorError) and "The actor died because of an error raised in its creation task" in str(
        error
    ):
        return StoreError(str(error).strip().splitlines()[-1])
    if isinstance(error, RayActorError | GetTimeoutError):
        return LineDown(f"the line's process does not answer: {type(error).__name__}")
    return error


def insist(ask: Any, patience_s: float = 60.0, pause_s: float = 0.2) -> Any:
    """Calls `ask()` (which returns a reference) until it is answered; raises LineDown after `patience_s`."""
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return answer(ask())
        except LineDown:
            if time.monotonic() > give_up:
                raise
            time.sleep(pause_s)


def _chunks(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]
