"""The line as a Ray actor: one process, one writer, restarted by Ray when it dies. Thin on purpose.

Ray restarts the process but keeps nothing of it; what the line knows comes back from its log. A caller
that got no answer sends the same image id again: what was acknowledged is not learned twice.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from ..methods import errors
from ..methods.errors import (
    ConfigError,
    EverlineError,
    LineDown,
    NoSpace,
    SecondWriter,
    StoreDown,
    TrackingError,
    UnknownLine,
)
from .line import Line, plain
from .settings import Fleet, LineSettings
from .versions import Versions
from .volume import Place, place_of

log = logging.getLogger("everline.actor")
NAMESPACE = "everline"
RETRY_S = 2.0
T = TypeVar("T")


class LineActor:
    """What other processes may ask of a line. One thing at a time, in the order it came."""

    def __init__(self, name: str, settings: LineSettings, store: str, tracking: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1)  # torch counts threads by thread: everything in this one
        self._settings = settings
        self._line: Line = self._thread.submit(_open, name, settings, place_of(store), tracking).result()

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

    async def promote(self, version: int, instead_of: int | None) -> int:
        """Makes a version current that its gate let through; returns its number."""
        return await self._alone(self._line.promote, version, instead_of)

    async def status(self) -> dict[str, Any]:
        """Counts, version, threshold, ... and the process that holds them."""
        return {**await self._alone(self._line.status), "pid": os.getpid()}

    async def settings(self) -> LineSettings:
        """What the line was started with."""
        return self._settings

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
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        finally:
            self._start_again_if_broken()

    def _settle(self) -> None:
        try:
            self._line.settle()
        except Exception:  # the next call meets the same error and tells its caller
            log.exception("line %s could not learn", self._line.name)
        self._start_again_if_broken()

    def _start_again_if_broken(self) -> None:
        """A state that cannot be trusted ends with its process: Ray starts another, which folds over the log."""
        if self._line.broken:
            log.error("line %s starts again: %s", self._line.name, self._line.broken)
            os._exit(1)


def _open(name: str, settings: LineSettings, store: Place, tracking: str) -> Line:
    """The line. Ray tries a constructor once: where it starts the line *again*, what may pass is waited for."""
    while True:
        try:
            return Line(name, settings, store, Versions(tracking, name))
        except (TrackingError, SecondWriter, NoSpace, StoreDown) as error:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                raise
            log.warning("line %s cannot come back yet: %s", name, error)
            time.sleep(RETRY_S)


def start_line(name: str, fleet: Fleet) -> tuple[Any, bool]:
    """The handle of a line's actor, and whether it had to be started.

    Raises UnknownLine, SecondWriter, ..., and ConfigError where it runs with other settings.
    """
    settings = fleet.line(name)
    try:
        handle = line_handle(name, fleet.store)
        if answer(handle.settings.remote()) != settings:
            raise ConfigError(f"line {name} runs with other settings; stop what runs it, then start it again.")
        return handle, False
    except UnknownLine:
        kind: Any = ray.remote(LineActor)
        actor = kind.options(
            name=actor_name(name, fleet.store),
            namespace=NAMESPACE,
            max_restarts=-1,
            max_concurrency=64,
            num_cpus=0,
            num_gpus=settings.gpus,
        )
        handle = actor.remote(name, settings, str(fleet.store), fleet.tracking)
        answer(handle.status.remote())
        return handle, True


def line_handle(name: str, store: Place) -> Any:
    """The handle of a running line of the fleet that keeps its logs in `store`. Raises UnknownLine."""
    try:
        return ray.get_actor(actor_name(name, store), namespace=NAMESPACE)
    except ValueError:
        raise UnknownLine(f"line {name!r} does not run here.") from None


def actor_name(name: str, store: Place) -> str:
    """Two fleets of one cluster may both have a line of that name; a log has one writer."""
    return f"line:{hashlib.sha256(str(store).encode()).hexdigest()[:12]}:{name}"


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
    if isinstance(error, RayActorError) and "error raised in its creation task" in str(error):
        kind, _, message = str(error).strip().splitlines()[-1].partition(": ")
        known = getattr(errors, kind.rpartition(".")[2], None)
        return known(message) if isinstance(known, type) and issubclass(known, EverlineError) else LineDown(message)
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
