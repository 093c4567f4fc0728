"""The line as a Ray actor: one process, one writer, restarted by Ray when it dies. Thin on purpose.

Ray restarts the process but keeps nothing of it; what the line knows comes back from its log. A caller
that got no answer sends the same image id again: what was acknowledged is not learned twice.
"""

import asyncio
import hashlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayTaskError

from ..methods.errors import (
    ConfigError,
    Dropped,
    EverlineError,
    LineDown,
    LineStopped,
    NoSpace,
    SecondWriter,
    StateError,
    StoreDown,
    TrackingError,
    UnknownLine,
)
from . import metrics, trouble
from .line import Line, plain
from .log import line_folder
from .recent import Recent, image_of
from .settings import Fleet, LineSettings
from .versions import Versions
from .volume import Place, place_of
from .waiting import OUTSIDE, Waiting

log = logging.getLogger("everline.actor")
NAMESPACE, LINE = "everline", "line:"  # of Ray's named actors: where they are, and how the names of lines begin
RETRY_S = 2.0
TEND_S = 5.0  # between two looks at whether something is owed; and Prometheus is told how the line stands
LOOK_SHARE = 100  # times as long as a look at that took, until the next: images wait for them 1 % of the time
LOOK_MOST_S = 60.0  # ... but no longer: after one look that was slow by chance, figures must not be old for minutes
ROOM_S = 5.0  # that a caller waits for room in one call
PLACE_S = 60.0  # for a node that has room for a line which reserves something
GONE_S = 10.0  # until what was killed is gone: its process, and Ray's word that it is there
OPEN_S = 600.0  # for a process that dies while its line is opened; opening itself may take as long as it takes
BESIDE = 64  # calls beside images and those who wait for room
T = TypeVar("T")


class LineActor:
    """What other processes may ask of a line. One thing at a time: images in the order they came, the rest before.

    The process stands at once, and the line is opened behind it: one that cannot be opened is `stopped`, and says why.
    """

    def __init__(
        self,
        name: str,
        settings: LineSettings,
        store: str,
        tracking: str,
        artifacts: str = "",
        spool: Path | None = None,
        detached: bool = False,
        origin: Mapping[str, str] | None = None,
    ) -> None:
        """detached: nobody's end is its end (platform/crew.py). origin: see that method."""
        context = ray.get_runtime_context()
        self._name, self._settings = name, settings
        self._shell = {"pid": os.getpid(), "node": context.get_node_id(), "detached": detached}
        self._origin = {**(origin or {}), "line": name}
        self._waiting = Waiting(name, settings.queue, settings.when_full == "drop")
        self._folder = line_folder(place_of(store), name)
        self._line: Line | None = None
        self._problem: Exception | None = None  # why there is no line
        self._closed = False
        self._recent = Recent()
        self._reading = asyncio.Lock()
        self._stands: dict[str, Any] = {}  # the line's status when it was looked at last, for Prometheus
        self._look_at = 0.0  # monotonic seconds; before that it is not looked at again
        self._fruitless = -1  # records when it was opened; -1: the log has advanced since
        self._thread = ThreadPoolExecutor(max_workers=1)  # torch counts threads by thread: everything in this one
        versions = Versions(tracking, name, artifacts)
        threading.Thread(target=self._tend, name="everline-tend", daemon=True).start()
        self._thread.submit(self._open, place_of(store), versions, spool, context.was_current_actor_reconstructed)

    async def opened(self) -> None:
        """Returns as soon as the line is open. Raises what kept it from that."""
        await self._alone(lambda line: None)

    async def inspect(self, data: bytes, id: str, learn: bool = True) -> dict[str, Any]:
        """An encoded image -> the fields of `Inspection`; it is durable when this returns, learned soon after.

        Raises Busy, or Dropped, while as many images wait as may: `room` says when to send it again.
        """
        return await self._record(data, id, learn, None)

    async def record(
        self,
        data: bytes,
        features: np.ndarray,
        moments: list[float],
        scored: dict[str, Any] | None,
        id: str,
        learn: bool = True,
        request: str = "",
        known: bool = True,
    ) -> dict[str, Any]:
        """The same for a serving replica, which embedded (1, C, h, w) and scored the image of a request already."""
        judged = torch.from_numpy(np.array(features)), moments, scored
        return await self._record(data, id, learn, judged, request, known)

    async def room(self) -> bool:
        """Waits, some seconds at most, until another image may wait here; whether it may."""
        return await self._waiting.room(ROOM_S)

    async def score(self, features: np.ndarray) -> np.ndarray:
        """Image scores (B,) of features (B, C, h, w) by the learner as it stands; nothing is learned or logged."""

        def work(line: Line) -> np.ndarray:
            parts = [line.score(torch.from_numpy(np.array(part))) for part in _chunks(features, 16)]
            return torch.cat(parts).cpu().numpy()

        return await self._alone(work)

    async def rollback(self, version: int | None = None) -> int:
        """Makes an older version current again; returns its number."""
        return await self._alone(lambda line: line.rollback(version))

    async def switch(self, task: str) -> int:
        """From the next image on the product is this one; returns the record's number."""
        return await self._alone(lambda line: line.switch(task))

    async def feedback(self, id: str, label: str, by: str = "") -> dict[str, Any]:
        """An operator's word on an image (`Line.feedback`); durable when this returns, learned soon after."""
        given = await self._alone(lambda line: line.feedback(id, label, by))
        self._thread.submit(self._settle)
        return given

    async def promote(self, version: int, instead_of: int | None) -> int:
        """Makes a version current that its gate let through; returns its number."""
        return await self._alone(lambda line: line.promote(version, instead_of))

    async def recent(
        self, limit: int = 50, before: int | None = None, verdict: str | None = None
    ) -> list[dict[str, Any]]:
        """The last answers, newest first, with what was said of them since (platform/recent.py). No image bytes.

        The line is not held up while the log is read back: only its last few records are taken in its own thread.
        """

        def rows(line: Line) -> list[dict[str, Any]]:
            self._recent.follow(line)
            return self._recent.rows(limit, before, verdict)

        async with self._reading:
            if await self._alone(self._recent.behind):
                await asyncio.get_running_loop().run_in_executor(None, self._recent.read, self._folder)
            return await self._alone(rows)

    async def image(self, id: str) -> bytes:
        """An image as it came. Raises UnknownImage, and ConfigError where retention dropped it."""
        return await self._alone(lambda line: image_of(line, id))

    async def status(self, patience_s: float = 60.0) -> dict[str, Any]:
        """Counts, version, threshold, ... and the process that holds them.

        state: running, closed, opening (no counts yet), stopped (with its problem), or busy: it has been at one thing
        for longer than patience_s. dropped: images, since the process started.
        """
        found = await self._counts(patience_s)
        waiting = {"waiting": self._waiting.waiting, "dropped": self._waiting.dropped}
        return {"line": self._name, "method": self._settings.method, **found, **waiting, **self._shell}

    async def settings(self) -> LineSettings:
        """What the line was started with."""
        return self._settings

    async def origin(self) -> Mapping[str, str]:
        """The fleet file that it was started from, the places which that named, and the line's own name.

        Not a part of the status, which a server shows to everybody.
        """
        return self._origin

    async def digest(self) -> str:
        """A checksum over the learner's state."""
        return await self._alone(Line.digest)

    async def close(self) -> None:
        """Learns what is pending, saves a checkpoint, gives up the log. Images that wait are sent away, unrecorded."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)

    async def _record(
        self, data: bytes, id: str, learn: bool, judged: Any, request: str = "", known: bool = True
    ) -> dict[str, Any]:
        began = time.monotonic()
        try:
            async with self._waiting.turn():
                inspection = await self._alone(
                    lambda line: line.inspect(data, id, learn=learn, judged=judged, request=request, known=known)
                )
                self._thread.submit(self._settle)  # learn while the caller has its answer
        except Dropped:
            metrics.dropped(self._name)
            raise
        metrics.recorded(self._name, inspection, time.monotonic() - began)
        return plain(inspection)

    async def _alone(self, work: Callable[[Line], T]) -> T:
        """Runs blocking work in the line's own thread: one piece at a time, in the order of the calls."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(self._at_work()))
        finally:
            self._start_again_if_broken()

    async def _counts(self, patience_s: float) -> dict[str, Any]:
        if self._problem is None:
            asked = asyncio.get_running_loop().run_in_executor(self._thread, self._look)
            try:
                return await asyncio.wait_for(asked, patience_s)
            except TimeoutError:
                return {"state": "busy" if self._line else "opening"}
            except EverlineError:
                pass
        return {"state": "stopped", "problem": str(self._problem)}

    def _look(self) -> dict[str, Any]:
        if self._line is None:
            raise self._problem or LineDown(f"line {self._name} is not open.")
        return {**self._line.status(), "state": "closed" if self._closed else "running"}

    def _at_work(self) -> Line:
        if self._problem is not None:
            raise self._problem
        if self._line is None or self._closed:
            raise LineDown(f"line {self._name} is being ended; send the same thing again when it runs.")
        return self._line

    def _close(self) -> None:
        if self._line is not None and not self._closed and self._problem is None:
            self._closed = True
            self._line.close()
            trouble.clear(self._folder)

    def _settle(self) -> None:
        """Blocking, in the line's own thread, as everything that follows."""
        try:
            line = self._at_work()
            line.settle()
            if 0 <= self._fruitless < line.writer.next_seq:
                self._fruitless = -1
                trouble.clear(self._folder)
        except LineDown:
            return
        except Exception:  # the next call meets the same error and tells its caller
            log.exception("line %s could not learn", self._name)
        self._start_again_if_broken()

    def _tend(self) -> None:
        """A thread: what waits for MLflow goes out though no image comes, and Prometheus hears how the line stands."""
        tended: Future[None] | None = None
        while not self._closed:
            metrics.process(self._name, self._line is not None and self._problem is None, self._waiting.waiting)
            if self._stands:  # the same again, if need be: Ray soon forgets a gauge that is not set
                metrics.stands(self._name, self._stands)
            if self._line and (tended is None or tended.done()):
                tended = self._thread.submit(self._tended)
            time.sleep(TEND_S)

    def _tended(self) -> None:
        if self._line and self._line.owes:
            self._settle()
        self._keep_alias()
        began = time.monotonic()
        if began < self._look_at:
            return
        try:
            self._stands = self._look()
        except LineDown:
            return
        except Exception:  # nobody waits for this one
            log.exception("line %s could not say how it stands", self._name)
        now = time.monotonic()
        self._look_at = now + pause_after(now - began)

    def _keep_alias(self) -> None:
        try:
            if self._at_work().keep_alias():
                metrics.alias_put_back(self._name)
                self._settle()
        except EverlineError as error:
            log.warning("line %s could not compare MLflow's alias: %s", self._name, error)

    def _start_again_if_broken(self) -> None:
        """A state that cannot be trusted ends with its process: Ray starts another, which folds over the log.

        Not so where another process has the log now: to start again would take it back, and so on for ever.
        """
        if self._line is None or self._problem is not None:
            return
        if self._line.writer.moved:
            self._problem = SecondWriter(
                f"line {self._name}: another process has taken over its log, so this one has ended its work. Send to "
                "the other one; where there should be only this one, end the other and start the line again."
            )
            log.error("%s", self._problem)
            self._line.writer.release()
        elif why := self._line.unusable:
            log.error("line %s starts again: %s", self._name, why)
            trouble.failed(self._folder, StateError(why))
            os._exit(1)

    def _open(self, store: Place, versions: Versions, spool: Path | None, again: bool) -> None:
        """Where Ray started the process *again*, what may pass is waited for, and the rest tried several times.

        Where a person starts it, only the log is waited for, a moment: the process of a command that was killed ends
        some time after the command.
        """
        give_up = time.monotonic() + GONE_S
        if not again:
            trouble.clear(self._folder)
        while True:
            try:
                before = trouble.begin(self._folder, self._name)
                self._line = Line(self._name, self._settings, store, versions, spool)
                self._fruitless = self._line.writer.next_seq
                return
            except LineStopped as error:
                self._problem = error
                return
            except (TrackingError, SecondWriter, NoSpace, StoreDown) as error:
                trouble.forgive(self._folder, before)
                if not again and not (isinstance(error, SecondWriter) and time.monotonic() < give_up):
                    self._problem = error
                    return
                log.warning("line %s cannot be opened yet: %s", self._name, error)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and takes no other line along
                trouble.failed(self._folder, error)
                if not again:
                    self._problem = error
                    return
                log.warning("line %s did not come back: %s", self._name, error)
            time.sleep(RETRY_S)


def pause_after(took_s: float) -> float:
    """Seconds for which a line is not looked at again for Prometheus, after a look that took so long."""
    return min(LOOK_SHARE * took_s, LOOK_MOST_S)


def start_line(name: str, fleet: Fleet, detached: bool = False) -> tuple[Any, bool]:
    """The handle of a line's actor, and whether it had to be started. detached: it stays when this process ends.

    Raises UnknownLine, SecondWriter, ..., ConfigError where it runs with other settings or no node could ever take
    it, and LineDown where none takes it now.
    """
    settings = fleet.line(name)
    handle = _running(name, settings, fleet.store)
    if handle is not None:
        return handle, False
    check_room(name, settings)
    handle = _actor(name, settings, fleet, detached)
    try:
        _placed(name, settings, handle)
        insist(handle.opened.remote, patience_s=OPEN_S)
    except BaseException:
        ray.kill(handle)
        raise
    return handle, True


def _running(name: str, settings: LineSettings, store: Place) -> Any:
    """Its handle; None where it does not run. One that was just ended still has its name for a moment."""
    give_up = time.monotonic() + GONE_S
    while True:
        try:
            handle = line_handle(name, store)
            if answer(handle.settings.remote()) != settings:
                raise ConfigError(f"line {name} runs with other settings; stop what runs it, then start it again.")
            return handle
        except UnknownLine:
            return None
        except LineDown as error:
            if not isinstance(error.__cause__, ActorDiedError) or time.monotonic() > give_up:
                raise
            time.sleep(0.1)


def check_room(name: str, settings: LineSettings) -> None:
    """Raises ConfigError where no node of the cluster has what the line reserves: it would wait for ever."""
    wanted = settings.resources
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(kind, 0) >= much for kind, much in wanted.items()) for node in nodes):
        asked = " and ".join(f"{kind} {much:g}" for kind, much in wanted.items())
        has = "; ".join(", ".join(f"{kind} {node.get(kind, 0):g}" for kind in wanted) for node in nodes)
        raise ConfigError(f"line {name}: no node has {asked}, as its settings ask; the nodes have: {has}.")


def _actor(name: str, settings: LineSettings, fleet: Fleet, detached: bool) -> Any:
    kind: Any = ray.remote(LineActor)
    resources = settings.resources
    options = kind.options(
        name=actor_name(name, fleet.store),
        namespace=NAMESPACE,
        lifetime="detached" if detached else None,
        max_restarts=-1,
        max_concurrency=settings.queue + OUTSIDE + BESIDE,
        num_cpus=0,
        num_gpus=resources.pop("GPU", 0),
        resources=resources,
    )
    try:
        origin = {"file": fleet.file, **fleet.places}
        own = (str(fleet.store), fleet.tracking, fleet.artifacts, fleet.spool)
        return options.remote(name, settings, *own, detached, origin)
    except ValueError as error:  # Ray: that name is taken
        raise LineDown(f"line {name} is being started by another command: {error}") from error


def _placed(name: str, settings: LineSettings, handle: Any) -> None:
    """Waits until a node has made a process of it. Raises LineDown where none does."""
    wanted, free = settings.resources, ray.available_resources()
    patience_s = PLACE_S if wanted else OPEN_S
    if not ray.wait([handle.settings.remote()], timeout=patience_s)[0]:
        asked = ", ".join(f"{kind} {much:g} (free in all: {free.get(kind, 0):g})" for kind, much in wanted.items())
        raise LineDown(f"line {name}: no node took it within {patience_s:g} s; it asks for {asked or 'a process'}.")


def line_handle(name: str, store: Place) -> Any:
    """The handle of a running line of the fleet that keeps its logs in `store`. Raises UnknownLine."""
    try:
        return ray.get_actor(actor_name(name, store), namespace=NAMESPACE)
    except ValueError:
        raise UnknownLine(f"line {name!r} does not run here.") from None


def actor_name(name: str, store: Place) -> str:
    """Two fleets of one cluster may both have a line of that name; a log has one writer."""
    return f"{LINE}{hashlib.sha256(str(store).encode()).hexdigest()[:12]}:{name}"


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
    """Ray's errors as ours."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, EverlineError):
        return cause
    if isinstance(error, RayActorError | GetTimeoutError):
        return LineDown(f"the line's process does not answer: {type(error).__name__}")
    return error


def insist(ask: Any, patience_s: float = 60.0, pause_s: float = 0.2) -> Any:
    """Calls `ask()` (which returns a reference) until it is answered.

    Raises LineDown `patience_s` after the first failure; a line that stays down (LineStopped) is not waited for.
    """
    give_up = None
    while True:
        try:
            return answer(ask())
        except LineStopped:
            raise
        except LineDown:
            give_up = give_up or time.monotonic() + patience_s
            if time.monotonic() > give_up:
                raise
            time.sleep(pause_s)


def _chunks(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]
