"""What stands behind the routes: scores with each line's current version, and hands images to the lines' actors.

Every replica watches the alias `current` of every line. A new version is loaded and tried out in a thread of
its own; then one reference is assigned. Requests see the old version or the new one, and never wait for either.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

from ..methods.errors import Busy, Dropped, EverlineError, LineDown, LineStopped, TrackingError, UnknownLine
from ..methods.registry import build
from ..platform import metrics
from ..platform.actor import answer_soon, line_handle
from ..platform.cluster import metrics_targets
from ..platform.decoders import DECODERS, Decoders
from ..platform.images import MAX_PIXELS, Views, views
from ..platform.settings import Fleet
from ..platform.versions import Versions
from .scoring import MAPS, Counter, Job, Queue, Seen, backbones, look, overlaid, try_out, wanted

log = logging.getLogger("everline.desk")
T = TypeVar("T")
PATIENCE_S = 60.0  # for a line's actor to answer
RETRY_S = 30.0  # for a line that comes back, or has room again
PAUSE_S = 0.2
DECODING = 64  # threads: as many images as requests come to a replica, most of which wait for their turn
DECODE_S = 30.0  # that an image waits for its turn to be decoded


class Desk:
    """All lines of a fleet. `start` before use, `stop` after; both in the event loop that uses it."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        poll_s: float = 0.5,
        patience_s: float = RETRY_S,
        handle: Callable[[str], Any] | None = None,
        versions: Callable[[str, str], Any] = Versions,
        decoders: Decoders = DECODERS,
    ) -> None:
        """poll_s: seconds between two looks at the aliases. patience_s: for a line that is down or busy.

        handle, versions, decoders: seams that tests replace.
        """
        self._decoders = decoders
        self.fleet, self.poll_s, self.patience_s = fleet, poll_s, patience_s
        self._handle = handle or partial(line_handle, store=fleet.store)
        self._counters = {
            name: Counter(
                name=name,
                embedder=build(s.method, **s.params, device=s.device),
                versions=versions(fleet.tracking, name),
                threads=s.threads,
                device=s.device,
            )
            for name, s in fleet.lines.items()
        }
        # torch's work on images happens in one thread, so that it neither blocks the event loop nor competes
        # with itself; what waits for it is decoded in others, and one more looks up and loads versions. How many
        # images are decoded at once, and whose turn it is, is for `decoders` to say.
        self._decode = ThreadPoolExecutor(DECODING, "everline-decode")
        self._waiting = Queue()
        self._compute = ThreadPoolExecutor(1, "everline-compute")
        self._watch = ThreadPoolExecutor(1, "everline-watch")
        self._watching: asyncio.Task[None] | None = None
        self._handles: dict[str, Any] = {}

    async def start(self) -> None:
        """Loads weights and current versions, and begins to watch. An MLflow that does not answer is no obstacle.

        Raises WeightsError.
        """
        for counter in self._counters.values():
            await self._run(self._compute, partial(try_out, counter.embedder))
        await self._look()
        shared = backbones(self._counters.values())
        log.info("%d lines embed with %d backbones", len(self._counters), len(shared))
        self._watching = asyncio.create_task(self._keep_looking())

    async def stop(self) -> None:
        """Ends the watch and the threads."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self._decode.shutdown(wait=False, cancel_futures=True)
        self._compute.shutdown(wait=False, cancel_futures=True)
        self._waiting.clear()
        self._watch.shutdown(wait=False, cancel_futures=True)

    async def inspect(
        self, line: str, data: bytes, id: str, learn: bool, want_map: str, request: str = "", known: bool = True
    ) -> dict[str, Any]:
        """An encoded image -> the fields of `Inspection`, once the line has it durably; with its map on request.

        want_map: one of scoring.MAPS, or empty. request: the id of the HTTP request, which the record keeps. known:
        whether the sender may teach the line (platform/line.py).

        A line that is coming back, or has no room for another image, is waited for; its id keeps an image from being
        learned twice. Raises UnknownLine, ImageError, ConfigError, StoreError, NoSpace, TrackingError, Busy, Dropped,
        ServerBusy, LineDown, LineStopped, TimeoutError.
        """
        counter = self._counter(line)
        if counter.scorer is None and counter.problem:  # there may well be a version: `learning` would be a lie
            raise TrackingError(counter.problem)
        began = time.monotonic()
        seen = await self._seen(counter, data, want_map)
        judged = seen.features, seen.moments, seen.scored
        answer = await self._insist(line, "record", data, *judged, id, learn, request, known)
        metrics.inspected(line, time.monotonic() - began)
        return {**answer, **(seen.map or {MAPS[want_map]: None, "map_range": None})} if want_map else answer

    async def lines(self) -> list[dict[str, Any]]:
        """`line` of each; one whose actor does not answer has `state` "unavailable" and says why."""
        return list(await asyncio.gather(*(self._state(name) for name in self.fleet.lines)))

    async def line(self, line: str) -> dict[str, Any]:
        """The status of one line. Raises UnknownLine, LineDown, TimeoutError."""
        counter = self._counter(line)
        status = await self._ask(line, "status")
        serving = counter.scorer.version if counter.scorer else None
        advice = {"advice": counter.unused.advice} if counter.unused.advice else {}
        return {"state": "running", **status, "serving_version": serving, **advice}

    async def versions(self, line: str) -> list[dict[str, Any]]:
        """The line's versions, newest first. Raises UnknownLine, TrackingError."""
        counter = self._counter(line)
        return [asdict(version) for version in await self._run(self._watch, counter.versions.list)]

    async def rollback(self, line: str, version: int | None) -> int:
        """Makes an older version current, in this replica at once, in others at their next look."""
        counter = self._counter(line)
        number = int(await self._ask(line, "rollback", version))
        await self._run(self._watch, partial(look, counter))
        return number

    async def switch(self, line: str, task: str) -> int:
        """Another product; waits for a line that is coming back. Raises UnknownLine, ConfigError, LineDown, ..."""
        self._counter(line)
        return int(await self._insist(line, "switch", task))

    async def recent(self, line: str, limit: int, before: int | None, verdict: str | None) -> list[dict[str, Any]]:
        """The last answers of a line, newest first. Raises UnknownLine, ConfigError, LineDown, TimeoutError."""
        self._counter(line)
        rows: list[dict[str, Any]] = await self._ask(line, "recent", limit, before, verdict)
        return rows

    async def image(self, line: str, id: str) -> bytes:
        """A logged image as it came. Raises UnknownLine, UnknownImage, ConfigError, LineDown, TimeoutError."""
        self._counter(line)
        return bytes(await self._ask(line, "image", id))

    async def overlay(self, line: str, id: str) -> bytes:
        """PNG of a logged image under the serving version's map. Raises as `image`, UnknownVersion, ServerBusy."""
        counter, data = self._counter(line), await self.image(line, id)
        found = await self._views(line, data, MAX_PIXELS, **wanted(counter, own=False, picture=True))
        return await self._run(self._compute, partial(overlaid, counter, data, found))

    async def small(self, line: str, id: str, side: int) -> Any:
        """A logged image as uint8 (h, w, 3), no side above `side`. Raises as `image`, and ServerBusy."""
        bits = self._counter(line).embedder.bits
        return (await self._views(line, await self.image(line, id), MAX_PIXELS, side=side, bits=bits)).picture

    async def feedback(self, line: str, id: str, label: str, by: str) -> dict[str, Any]:
        """What a person says of an image, as a record. Raises UnknownLine, UnknownImage, ConfigError, LineDown."""
        self._counter(line)
        said: dict[str, Any] = await self._ask(line, "feedback", id, label, by)
        return said

    async def targets(self) -> list[str]:
        """Where Prometheus finds the metrics of all nodes: `host:port` of each."""
        return await self._run(self._watch, metrics_targets)

    def health(self) -> dict[str, Any]:
        """Whether this replica can answer, and with which versions; asks nobody."""
        watching = self._watching is not None and not self._watching.done()
        lines = {
            name: {"version": c.scorer.version if c.scorer else None, "problem": c.problem or None}
            for name, c in self._counters.items()
        }
        return {"status": "ok" if watching else "starting", "lines": lines}

    def _counter(self, line: str) -> Counter:
        self.fleet.line(line)  # raises UnknownLine with the lines there are
        return self._counters[line]

    async def _seen(self, counter: Counter, data: bytes, want_map: str) -> Seen:
        """Features and verdict of an encoded image. Raises ImageError, ServerBusy."""
        most = self.fleet.line(counter.name).max_pixels
        what = wanted(counter, True, want_map == "overlay")
        found = await self._views(counter.name, data, most, strict=True, **what)
        counter.unused.see(found.unsure)
        job = Job(counter, data, found, want_map)
        self._waiting.put(job)
        self._compute.submit(self._waiting.work)
        return await asyncio.wrap_future(job.done)

    async def _views(self, line: str, data: bytes, max_pixels: int, **what: Any) -> Views:
        """Decode an image when it is the line's turn. Raises ImageError, ServerBusy."""
        room = partial(self._decoders.room, who=line, patience_s=DECODE_S)
        return await self._run(self._decode, partial(views, data, max_pixels=max_pixels, room=room, **what))

    async def _state(self, name: str) -> dict[str, Any]:
        try:
            return await self.line(name)
        except (EverlineError, TimeoutError) as error:
            return {"line": name, "state": "unavailable", "problem": str(error)}

    async def _insist(self, line: str, verb: str, *args: Any) -> Any:
        """The same again until it is answered, as long as `patience_s` allows."""
        give_up = None
        while True:
            try:
                return await self._ask(line, verb, *args)
            except (Dropped, LineStopped):
                raise
            except (Busy, LineDown) as error:
                give_up = give_up or time.monotonic() + self.patience_s
                if time.monotonic() > give_up:
                    raise
                full = isinstance(error, Busy)
            with suppress(LineDown, TimeoutError):
                if full and await self._ask(line, "room"):
                    continue
            await asyncio.sleep(PAUSE_S)

    async def _ask(self, line: str, verb: str, *args: Any) -> Any:
        """Calls the line's actor. Looking it up may block, so that happens in a thread too, and once."""
        try:
            if line not in self._handles:
                self._handles[line] = await self._found(line)
            return await asyncio.wait_for(answer_soon(getattr(self._handles[line], verb).remote(*args)), PATIENCE_S)
        except TimeoutError:
            raise TimeoutError(f"line {line} did not answer within {PATIENCE_S:g} s.") from None
        except UnknownLine:  # it is in the fleet
            raise LineDown(f"line {line} does not run (yet).") from None
        except LineDown:
            self._handles.pop(line, None)  # the next call looks for a new actor of that name
            raise

    async def _found(self, line: str) -> Any:
        """The handle of its actor, which must embed as this replica does: the line learns what it is given.

        Raises UnknownLine, LineDown.
        """
        handle = await asyncio.get_running_loop().run_in_executor(None, self._handle, line)
        theirs = await asyncio.wait_for(answer_soon(handle.settings.remote()), PATIENCE_S)
        mine = self.fleet.line(line)
        if any(getattr(theirs, name) != getattr(mine, name) for name in ("method", "params", "device", "threads")):
            raise LineDown(f"line {line} runs with other settings than this server was started with; start it again.")
        return handle

    async def _run(self, where: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(where, work)

    async def _look(self) -> None:
        for counter in self._counters.values():
            await self._run(self._watch, partial(look, counter))
            metrics.serves(counter.name, counter.scorer.version if counter.scorer else None)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(self.poll_s)
            await self._look()
