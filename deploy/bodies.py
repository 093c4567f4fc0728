"""Receive a request's body before the request takes one of the places that a replica has for requests.

A client that sends a body slowly, or never to its end, then holds a connection and nothing that others wait for.
"""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope

from ..methods.errors import ConfigError

MIB = 2**20
BODY_S = 60.0  # in which a body must have come; EVERLINE_BODY_S in the proxy's environment says otherwise
EACH = 256  # bodies of one client that are read at once
WHOLE = 128 * MIB  # of a larger body only so much is read ahead; web.py refuses it, or reads the rest
TOTAL = 1024 * MIB  # of all bodies together


class BodySlow(Exception):
    """A body did not come in time, or others needed its room meanwhile."""


class BodiesFull(Exception):
    """All bodies together have no more room."""


@dataclass(eq=False)
class _Body:
    client: str
    deadline: asyncio.Timeout
    messages: list[Message] = field(default_factory=list)
    size: int = 0
    ended: bool = False  # before it was complete, for others

    @property
    def complete(self) -> bool:
        return bool(self.messages) and not self.messages[-1].get("more_body", False)


class Bodies:
    """The bodies that one proxy holds. For one event loop.

    Where there is no room for one more, the oldest that is not complete is ended: of its own client where that has
    too many, else of the client that holds most. So slow bodies go, and the others do not wait for them.
    """

    def __init__(self, body_s: float = BODY_S, each: int = EACH, whole: int = WHOLE, total: int = TOTAL) -> None:
        self.body_s, self.each, self.whole, self.total = body_s, each, whole, total
        self._held = 0
        self._reading: list[_Body] = []  # not complete yet; the oldest first

    @asynccontextmanager
    async def received(self, scope: Scope, receive: Receive) -> AsyncIterator[Receive]:
        """Give a `receive` that starts with what has come: all of the body, unless it is very large.

        Raises BodySlow, BodiesFull, and ClientDisconnect where the client went away before its end.
        """
        if not _has_body(scope):
            yield receive
            return
        body = _Body((scope.get("client") or ("",))[0], asyncio.timeout(self.body_s))
        try:
            await self._in_time(body, receive)
            yield _again(body, receive)
        finally:
            self._held -= body.size

    async def _in_time(self, body: _Body, receive: Receive) -> None:
        try:
            async with body.deadline:
                self._begin(body)
                await self._read(body, receive)
        except TimeoutError as error:
            raise BodySlow from error
        finally:
            self._reading.remove(body)
        if body.ended:
            raise BodySlow

    def _begin(self, body: _Body) -> None:
        own = [one for one in self._reading if one.client == body.client and not one.ended]
        if len(own) >= self.each:
            self._end(own[0])
        self._reading.append(body)

    async def _read(self, body: _Body, receive: Receive) -> None:
        while not body.complete and body.size < self.whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            size = len(message.get("body", b""))
            self._make_room(body, size)
            self._held, body.size = self._held + size, body.size + size
            body.messages.append(message)

    def _make_room(self, body: _Body, size: int) -> None:
        """End other bodies until there is room for so many bytes more of this one. Raises BodiesFull."""
        while self._held + size > self.total:
            shares = Counter[str]()
            for one in self._reading:
                shares[one.client] += one.size
            heaviest = shares.most_common(1)[0][0]
            others = [one for one in self._reading if one.client == heaviest and one is not body and one.size]
            if not others:
                raise BodiesFull
            self._end(others[0])

    def _end(self, body: _Body) -> None:
        self._held, body.size, body.ended = self._held - body.size, 0, True
        body.messages.clear()
        if not body.deadline.expired():
            body.deadline.reschedule(asyncio.get_running_loop().time())


def seconds_in_environment(name: str, default: float) -> float:
    """Return a bound that the proxy's environment may set. Raises ConfigError."""
    given = os.environ.get(name, str(default))
    try:
        seconds = float(given)
        if not 0 < seconds < 86400:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{name}: expected seconds, more than 0 and at most a day, got {given!r}.") from None
    return seconds


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


def _again(body: _Body, receive: Receive) -> Receive:
    messages = iter(body.messages)
    body.messages = []

    async def again() -> Message:
        for message in messages:
            return message
        return await receive()

    return again
