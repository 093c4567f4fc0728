"""Bound what is decoded at once in a process: so many pixels over all its threads, and fair turns between lines."""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..methods.errors import ServerBusy

PIXELS = 100_000_000  # being decoded at once; a decoder takes up to 16 bytes for each (docs/operations.md)
AT_ONCE = max(4, os.cpu_count() or 1)
BACKLOG = 4  # times the pixels: of images of one line that may wait for their turn


@dataclass(eq=False)
class _Ask:
    who: str
    pixels: int
    granted: threading.Event = field(default_factory=threading.Event)


class Decoders:
    """Room for the images that a process decodes, given in turns: each line's next image, then the next line's.

    One line has at most half of the pixels (or one image), and never all of the decoders, so that an image of another
    line does not have to wait for those of the first. An image of more pixels than there are is decoded alone.
    """

    def __init__(self, pixels: int = PIXELS, at_once: int = AT_ONCE) -> None:
        self.pixels, self.at_once = pixels, at_once
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Ask]] = OrderedDict()  # by line; whose turn is next comes first
        self._running: list[_Ask] = []

    @contextmanager
    def room(self, pixels: int, who: str = "", patience_s: float | None = None) -> Iterator[None]:
        """Wait for a turn to decode an image, and hold its pixels meanwhile. Blocking.

        patience_s: seconds after which ServerBusy is raised, as it is at once where too many images of this line
        wait; None waits as long as it takes.
        """
        ask = _Ask(who, min(pixels, self.pixels))
        self._put(ask, patience_s)
        try:
            if not ask.granted.wait(patience_s):
                raise ServerBusy(f"line {who}: its image waited {patience_s or 0:g} s to be decoded; send it again.")
            yield
        finally:
            self._leave(ask)

    def _put(self, ask: _Ask, patience_s: float | None) -> None:
        with self._lock:
            asks = self._waiting.setdefault(ask.who, deque())
            behind = sum(one.pixels for one in asks) + ask.pixels
            if patience_s is not None and behind > BACKLOG * self.pixels:
                raise ServerBusy(f"line {ask.who}: {len(asks)} large images wait to be decoded; send this one again.")
            asks.append(ask)
            self._grant()

    def _leave(self, ask: _Ask) -> None:
        with self._lock:
            if ask in self._running:
                self._running.remove(ask)
            else:
                self._remove(ask)
            self._grant()

    def _grant(self) -> None:
        while (ask := self._next()) is not None:
            self._remove(ask)
            if ask.who in self._waiting:
                self._waiting.move_to_end(ask.who)
            self._running.append(ask)
            ask.granted.set()

    def _next(self) -> _Ask | None:
        """Return the image whose turn it is, if there is room. One that needs more than is free is not overtaken."""
        first = next((asks[0] for asks in self._waiting.values() if self._within_share(asks[0])), None)
        if first is None or len(self._running) >= self.at_once:
            return None
        return first if sum(one.pixels for one in self._running) + first.pixels <= self.pixels else None

    def _within_share(self, ask: _Ask) -> bool:
        own = [one.pixels for one in self._running if one.who == ask.who]
        return not own or (len(own) < self.at_once - 1 and sum(own) + ask.pixels <= self.pixels // 2)

    def _remove(self, ask: _Ask) -> None:
        asks = self._waiting[ask.who]
        asks.remove(ask)
        if not asks:
            del self._waiting[ask.who]


DECODERS = Decoders()
