"""A line as its callers see it: wherever its process is by now, an image is sent until it is acknowledged."""

import random
import time
from collections.abc import Callable
from typing import Any

from ..methods.errors import Busy, Dropped, LineDown, LineStopped, UnknownLine
from .actor import answer

PAUSE_S = 0.2


class Reach:
    """One caller, one image at a time; so what waits for room waits here, not in the line's memory."""

    def __init__(self, find: Callable[[], Any], patience_s: float = 60.0) -> None:
        """find() -> the line's handle, asked again whenever the process does not answer (`everline up` may have put

        another in its place). patience_s: for a line that is down; for one that is busy there is no end to it.
        """
        self._find, self._patience_s = find, patience_s
        self._handle: Any = None

    def inspect(self, data: bytes, id: str) -> dict[str, Any]:
        """An encoded image -> the fields of `Inspection`. The same id goes with every try: it is learned once.

        Raises Dropped, LineStopped, LineDown, ImageError, NoSpace, ...
        """
        return self._insist(lambda handle: handle.inspect.remote(data, id))

    def switch(self, task: str) -> int:
        """Another product; returns the record's number. Raises ConfigError, LineStopped, LineDown, NoSpace, ..."""
        return self._insist(lambda handle: handle.switch.remote(task))

    def status(self) -> dict[str, Any]:
        """As of `LineActor`. Raises LineDown at once."""
        return self._ask(lambda handle: handle.status.remote(5.0))

    def _insist(self, ask: Callable[[Any], Any]) -> Any:
        give_up = None  # counted from the first failure: a node that falls silent costs a minute before that
        while True:
            try:
                return self._ask(ask)
            except (Dropped, LineStopped):
                raise
            except Busy:
                self._wait_for_room()
                give_up = None
            except LineDown:
                give_up = give_up or time.monotonic() + self._patience_s
                if time.monotonic() > give_up:
                    raise
                time.sleep(PAUSE_S)

    def _wait_for_room(self) -> None:
        try:
            if not self._ask(lambda handle: handle.room.remote()):
                time.sleep(PAUSE_S * random.uniform(0.5, 1.5))  # noqa: S311 - so that many do not come at once
        except LineDown:
            return  # the image itself will meet it

    def _ask(self, ask: Callable[[Any], Any]) -> Any:
        try:
            self._handle = self._handle or self._find()
            return answer(ask(self._handle))
        except UnknownLine as error:
            self._handle = None
            raise LineDown(str(error)) from error
        except LineDown:
            self._handle = None
            raise
