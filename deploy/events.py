"""What happens on the lines, as server-sent events: one look a second per replica, whoever listens.

event: line     data: the status of a line, when it has changed
event: image    data: {"line": ..., **row of `recent`}, new or with another label; oldest first
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from ..methods.errors import Busy, EverlineError

log = logging.getLogger("everline.events")
PERIOD_S = 1.0
HEARTBEAT_S = 10.0
PATIENCE_S = 5.0  # for a line to answer, in one look
LISTENERS = 16  # a replica has places for 64 requests, and each listener takes one for as long as it stays
OF_ONE_CLIENT = 8  # of them, for one token or address
FOR_HOLDERS = 4  # of them, that only holders of a token get, where the server has tokens
BEHIND = 256  # events that a listener may be behind
ROWS = 50  # of each line, that are looked at


class Watched(Protocol):
    """What is looked at (deploy/desk.py)."""

    async def line(self, line: str) -> dict[str, Any]: ...
    async def recent(self, line: str, limit: int, before: int | None, verdict: str | None) -> list[dict[str, Any]]: ...
    def health(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Listener:
    """Who listens: a client as the guard knows it, and whether it has a token."""

    client: str
    holder: bool


NOBODY = Listener("", False)


class Events:
    """Looks at the lines while anybody listens, and tells everybody the same."""

    def __init__(
        self, lines: Watched, *, period_s: float = PERIOD_S, listeners: int = LISTENERS, for_holders: int = 0
    ) -> None:
        """for_holders: places of `listeners` that only holders of a token get."""
        self.lines, self.period_s, self.listeners, self.for_holders = lines, period_s, listeners, for_holders
        self._queues: dict[asyncio.Queue[bytes | None], Listener] = {}
        self._status: dict[str, bytes] = {}  # the last event of each line
        self._seen: dict[str, dict[int, Any]] = {}  # of each line: record -> label
        self._looking: asyncio.Task[None] | None = None

    async def listen(self, who: Listener = NOBODY) -> AsyncIterator[bytes]:
        """The stream of one listener, which begins with the lines as they are known. It ends for one that is slow."""
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(BEHIND)
        for known in self._status.values():
            queue.put_nowait(known)
        self._queues[queue] = who
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._keep_looking())
        try:
            yield b"retry: 2000\n\n"
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), HEARTBEAT_S)
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                if event is None:
                    return
                yield event
        finally:
            self._leave(queue)

    def check(self, who: Listener = NOBODY) -> None:
        """Raise Busy where as many listen as may: of this client, of all without a token, or of all."""
        there = list(self._queues.values())
        if there.count(who) >= OF_ONE_CLIENT:
            raise Busy(f"{OF_ONE_CLIENT} pages of this client listen to this server already; close one and try again.")
        most = self.listeners - self.for_holders
        strangers = sum(not one.holder for one in there)
        if not who.holder and strangers >= most:
            raise Busy(f"{most} pages without a token listen to this server already; close one, or use a token.")
        if len(there) - strangers + min(strangers, most) >= self.listeners:
            raise Busy(f"{self.listeners} pages listen to this server already; close one and try again.")

    def end(self) -> None:
        """Sends every listener away."""
        for queue in list(self._queues):
            self._dismiss(queue)

    def _leave(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._queues.pop(queue, None)
        if not self._queues and self._looking is not None:
            self._looking.cancel()
            self._looking, self._seen, self._status = None, {}, {}

    def _dismiss(self, queue: asyncio.Queue[bytes | None]) -> None:
        self._queues.pop(queue, None)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)

    def _tell(self, event: bytes) -> None:
        for queue in list(self._queues):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                log.info("a listener was %d events behind, and is sent away", BEHIND)
                self._dismiss(queue)

    async def _keep_looking(self) -> None:
        while self._queues:
            try:
                await asyncio.gather(*(self._look(name) for name in self.lines.health()["lines"]))
            except Exception:  # whatever it is, the pages must not fall silent
                log.exception("could not look at the lines")
            await asyncio.sleep(self.period_s)

    async def _look(self, name: str) -> None:
        """One line: tells what is new of it."""
        status, rows = await self._asked(name), list[dict[str, Any]]()
        if status.get("state") == "running":
            with suppress(EverlineError, TimeoutError):
                rows = await asyncio.wait_for(self.lines.recent(name, ROWS, None, None), PATIENCE_S)
        seen = self._seen.get(name)
        if rows or seen is None:
            self._seen[name] = {row["record"]: row["label"] for row in rows}
        event = _event("line", status)
        if self._status.get(name) != event:
            self._status[name] = event
            self._tell(event)
        if seen is None:  # who has just come asks for the images there were
            return
        for row in reversed(rows):
            if seen.get(row["record"], "unseen") != row["label"]:
                self._tell(_event("image", {"line": name, **row}))

    async def _asked(self, name: str) -> dict[str, Any]:
        try:
            return await asyncio.wait_for(self.lines.line(name), PATIENCE_S)
        except TimeoutError:
            return {"line": name, "state": "busy"}
        except EverlineError as error:
            return {"line": name, "state": "unavailable", "problem": str(error)}


def _event(kind: str, content: dict[str, Any]) -> bytes:
    finite = json.loads(json.dumps(content), parse_constant=lambda _: None)  # Infinity and NaN are not JSON
    return f"event: {kind}\ndata: {json.dumps(finite, separators=(',', ':'))}\n\n".encode()
