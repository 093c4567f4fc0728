"""The queue in front of a line: so many images may wait in its memory, in the order they came, and no more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ..methods.errors import Busy, Dropped

OUTSIDE = 512  # callers that may wait for room without an image, in one process


class Waiting:
    """Turns, one at a time, in one event loop. An image beyond `most` is sent away before it takes any room.

    drop: what is sent away is lost and counted; else its caller waits outside (`room`) and comes again.
    """

    def __init__(self, line: str, most: int, drop: bool = False) -> None:
        self.line, self.most, self.drop = line, most, drop
        self.waiting = 0  # images that wait for their turn
        self.dropped = 0
        self._outside = 0
        self._turn = asyncio.Lock()  # fair: first come, first served
        self._left = asyncio.Condition()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """While this image is the one at work. Raises Busy, or Dropped, where too many wait already."""
        if self._full:
            self._send_away()
        self.waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.waiting -= 1
            async with self._left:
                self._left.notify()
        try:
            yield
        finally:
            self._turn.release()

    async def room(self, patience_s: float) -> bool:
        """Waits until another image may wait; False where it took too long, or too many wait so."""
        if self._outside >= OUTSIDE:
            return False
        self._outside += 1
        try:
            async with asyncio.timeout(patience_s), self._left:
                await self._left.wait_for(lambda: not self._full)
                return True
        except TimeoutError:
            return False
        finally:
            self._outside -= 1

    @property
    def _full(self) -> bool:
        return self.waiting >= self.most

    def _send_away(self) -> None:
        if not self.drop:
            raise Busy(f"line {self.line}: {self.most} images wait already; wait a little, then send it again.")
        self.dropped += 1
        raise Dropped(f"line {self.line}: {self.most} images wait already, and it drops what is more; not recorded.")
