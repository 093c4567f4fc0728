"""What the doors to a factory share: an image in, a verdict out as plain JSON; a code in, another product.

A verdict has one shape, whichever door it leaves by:

    {"line", "id", "verdict": "pass" | "reject" | "learning", "score", "threshold", "p_value", "version",
     "calibrated", "record", "duplicate"}    and "sent_as": the id it came with, where another image had that already
    {"line", "id", "verdict": "error", "error": {"code", "message"}}    this image gets no other answer
"""

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from ...methods.errors import ConfigError, Dropped, ImageError, UnknownName
from ...platform.actor import answer, line_handle, start_line
from ...platform.images import MAX_BYTES, image_id
from ...platform.names import on_disk
from ...platform.reach import Reach
from ...platform.settings import Fleet
from .lines import connected, ready_for_lines

SHAPE = ("line", "id", "verdict", "score", "threshold", "p_value", "version", "calibrated", "record", "duplicate")
MAX_CODE = 256  # characters of a barcode
WAIT_S, SETTLED_S, POLL_S = 2.0, 0.5, 0.02  # for a file that a trigger names; for one that grows; between two looks
ASIDE = (ImageError, Dropped, ConfigError)  # errors of one image, or of one code: the next may do


class Unreadable(ImageError):
    """A file that cannot be read now, and perhaps later."""


class Line(Protocol):
    """What a line answers (platform/reach.py)."""

    def inspect(self, data: bytes, id: str) -> dict[str, Any]: ...
    def switch(self, task: str) -> int: ...
    def status(self) -> dict[str, Any]: ...


class Station:
    """One line behind a door. Not for several threads at once."""

    def __init__(self, name: str, line: Line, products: Mapping[str, str] | None = None) -> None:
        """products: barcode or recipe number -> task; None: a code is the task's name."""
        self.name, self.line, self.products = name, line, products

    def inspect(self, data: bytes, id: str = "", name: str = "") -> dict[str, Any]:
        """A verdict. id: else made of the file's `name` and the bytes. Raises LineDown, NoSpace, StoreDown, ..."""
        id = id or image_id(name, data)
        try:
            reply = self.line.inspect(data, id)
        except ASIDE as error:
            return self.refused(error, id)
        sent_as = {"sent_as": reply["sent_as"]} if reply.get("sent_as") else {}
        return {field: reply.get(field) for field in SHAPE} | sent_as

    def inspect_below(self, root: Path, path: str, id: str = "", name: str = "") -> dict[str, Any]:
        """The same for a file in a folder or below it; `name` instead of the file's own."""
        try:
            data = read_below(root, path)
        except ImageError as error:
            return self.refused(error, id or path[:MAX_CODE])
        return self.inspect(data, id, name or Path(path).name)

    def inspect_named(self, root: Path, path: str, id: str = "", name: str = "") -> dict[str, Any]:
        """The same for a file that a trigger names, as machines write paths, and perhaps before the file is whole.

        The file is waited for, up to two seconds; one that is no image, as long as it changes, and half a second.
        """
        path = plain_path(path)
        until = time.monotonic() + WAIT_S
        while _state(root / path) is None and time.monotonic() < until:
            time.sleep(POLL_S)
        until = time.monotonic() + WAIT_S
        while True:
            before, reply = _state(root / path), self.inspect_below(root, path, id, name)
            if reply["verdict"] != "error" or reply["error"]["code"] != "bad_image":
                return reply
            settled = time.monotonic() + SETTLED_S
            while _state(root / path) == before:
                if before is None or time.monotonic() > min(settled, until):
                    return reply
                time.sleep(POLL_S)

    def switch(self, code: str) -> dict[str, Any]:
        """{"line", "task", "record"} of the product that a code stands for.

        Raises ConfigError for a code that stands for none, LineDown, ...
        """
        code = plain_text(code)
        if len(code) > MAX_CODE:
            raise ConfigError(f"{self.name}: a code has at most {MAX_CODE} characters.")
        if self.products is not None and code not in self.products:
            raise UnknownName.among(self.name, "code", code, self.products)
        task = code if self.products is None else self.products[code]
        return {"line": self.name, "task": task, "record": self.line.switch(task)}

    def refused(self, error: Exception, id: str = "") -> dict[str, Any]:
        """An error in the verdict's shape."""
        kinds: dict[type, str] = {Dropped: "dropped", ImageError: "bad_image"}  # as over HTTP
        kind = next((kind for of, kind in kinds.items() if isinstance(error, of)), "invalid")
        return {"line": self.name, "id": id, "verdict": "error", "error": {"code": kind, "message": str(error)}}


def plain_text(text: str) -> str:
    """Without what fills a machine's string of fixed length (NUL and what stands behind it, blanks), and line ends."""
    return text.split("\0")[0].strip()


def plain_path(text: str) -> str:
    """The same of a path, in which `\\` may part folders."""
    return plain_text(text).replace("\\", "/")


@contextmanager
def stations(fleet: Fleet, products: Mapping[str, Mapping[str, str] | None]) -> Iterator[dict[str, Station]]:
    """Lines with their codes; those that do not run are started, and closed at the end."""
    for name in products:
        fleet.line(name)
    ready_for_lines(fleet)
    started = []
    with connected():
        try:
            for name in products:
                handle, mine = start_line(name, fleet)
                started += [handle] if mine else []
            find: Callable[[str], Any] = partial(line_handle, store=fleet.store)
            yield {name: Station(name, Reach(partial(find, name)), codes) for name, codes in products.items()}
        finally:
            for handle in started:
                answer(handle.close.remote())


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written; None: it is not there."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_below(root: Path, path: str) -> bytes:
    """A plain file in a folder or below it; links may not lead out of it. Raises ImageError, Unreadable."""
    try:
        top = root.resolve(strict=True)
        found = on_disk(top / path).resolve(strict=True)
        if not found.is_relative_to(top):
            raise ImageError(f"{path[:MAX_CODE]!r} is not below the folder of images.")
        with open(os.open(found, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ImageError(f"{path[:MAX_CODE]!r} is not a file.")
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a null byte; RuntimeError: a loop of links
        raise Unreadable(f"{path[:MAX_CODE]!r} cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path[:MAX_CODE]!r} is larger than {MAX_BYTES} bytes.")
    return data
