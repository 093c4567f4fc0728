"""Logs of lines, as their writer makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from everline.platform.log import LogReader, LogWriter
from everline.platform.record import Record

Rows = Sequence[tuple[Any, ...]]


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[..., LogReader]:
    """write_log(images, rows, name="mono"): a log of these rows, and a reader of it.

    A row is ("good" | "bad" | "young" | "seen" | "confirmed", place of its image), where `seen` was inspected and
    not learned; ("ok" | "defect", number of a record) is an operator's word; ("repeat", number) a repeated image.
    """

    def write(images: Sequence[bytes], rows: Rows, name: str = "mono") -> LogReader:
        folder = tmp_path / "store" / name
        with LogWriter.open(folder) as writer:
            for n, (what, which) in enumerate(rows):
                writer.append([_record(what, which, images, n)])
        return LogReader(folder)

    return write


def _record(what: str, which: int, images: Sequence[bytes], n: int) -> Record:
    if what in ("ok", "defect"):
        return Record("feedback", f"feedback-{n}", data={"of": which, "label": what})
    if what == "repeat":
        return Record("repeat", f"r{n}", data={"of": which})
    verdict = {"bad": "reject", "young": "learning"}.get(what, "pass")
    return Record("image", f"i{n}", image=images[which], verdict=verdict, admitted=what in ("good", "young"))
