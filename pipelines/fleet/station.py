"""What the doors to a factory share: an image in, a verdict out as plain JSON; a code in, another product.

A verdict has one shape, whichever door it leaves by:

    {"line", "id", "verdict": "pass" | "reject" | "learning", "score", "threshold", "p_value", "version",
     "calibrated", "record", "duplicate"}
    {"line", "id", "verdict": "error", "error": {"code", "message"}}    this image gets no other answer
"""

import os
import stat
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
ASIDE = (ImageError, Dropped, ConfigError)  # errors of one image, or of one code: the next may do


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
        return {field: reply.get(field) for field in SHAPE}

    def inspect_below(self, root: Path, path: str, id: str = "", name: str = "") -> dict[str, Any]:
        """The same for a file in a folder or below it; `name` instead of the file's own."""
        try:
            data = read_below(root, path)
        except ImageError as error:
            return self.refused(error, id or path[:MAX_CODE])
        return self.inspect(data, id, name or Path(path).name)

    def switch(self, code: str) -> dict[str, Any]:
        """{"line", "task", "record"} of the product that a code stands for.

        Raises ConfigError for a code that stands for none, LineDown, ...
        """
        code = code.strip()
        if len(code) > MAX_CODE:
            raise ConfigError(f"{self.name}: a code has at most {MAX_CODE} characters.")
        if self.products is not None and code not in self.products:
            raise UnknownName.among(self.name, "code", code, self.products)
        task = code if self.products is None else self.products[code]
        return {"line": self.name, "task": task, "record": self.line.switch(task)}

    def refused(self, error: Exception, id: str = "") -> dict[str, Any]:
        """An error in the verdict's shape."""
        kinds: dict[type, str] = {Dropped: "dropped", ImageError: "bad_image"}  # as over HTTP
        kind = kinds.get(type(error), "invalid")
        return {"line": self.name, "id": id, "verdict": "error", "error": {"code": kind, "message": str(error)}}


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


def read_below(root: Path, path: str) -> bytes:
    """A plain file in a folder or below it; links may not lead out of it. Raises ImageError."""
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
        raise ImageError(f"{path[:MAX_CODE]!r} cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{path[:MAX_CODE]!r} is larger than {MAX_BYTES} bytes.")
    return data
