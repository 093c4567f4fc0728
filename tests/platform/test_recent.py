"""What a line shows of its last images: the newest first, with what people said of them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from everline.methods.errors import ConfigError, UnknownImage
from everline.platform.log import LogReader, LogWriter
from everline.platform.recent import KEPT, Recent, image_of
from everline.platform.record import Record


class Bench:
    """A real log, and what a line has of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer = LogWriter.open(folder)
        self.line: Any = SimpleNamespace(name="mono", writer=self.writer, ids={})

    def images(self, count: int, verdict: str = "pass", image: bytes | None = b"x") -> None:
        start = self.writer.next_seq
        rows = [Record("image", f"i{start + n}", n, image, score=1.0, verdict=verdict) for n in range(count)]
        self.line.ids.update({r.id: r.seq for r in self.writer.append(rows)})

    def feedback(self, of: int, label: str) -> None:
        data = {"of": of, "id": f"i{of}", "label": label, "by": "eve"}
        self.writer.append([Record("feedback", f"feedback-{self.writer.next_seq}", data=data)])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.writer.close()


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["record"] for row in rows]


def test_the_newest_come_first_and_pages_join(bench: Bench) -> None:
    bench.images(7)
    recent = Recent()
    recent.follow(bench.line)
    assert numbers(recent.rows(3)) == [6, 5, 4]
    assert numbers(recent.rows(3, before=4)) == [3, 2, 1]
    assert "image" not in recent.rows(1)[0]


def test_what_is_read_from_files_is_what_was_followed(bench: Bench) -> None:
    followed, read = Recent(), Recent()
    bench.images(600)  # more than a shard: some is sealed, some is not
    bench.feedback(590, "ok")
    bench.images(3, "reject")
    followed.follow(bench.line)
    read.read(bench.folder)
    assert read.rows(KEPT) == followed.rows(KEPT) and len(read.rows(KEPT)) == KEPT
    assert not read.behind(bench.line)


def test_an_old_reject_is_still_there_when_many_parts_have_passed(bench: Bench) -> None:
    bench.images(1, "reject")
    bench.images(KEPT + 20)
    recent = Recent()
    recent.read(bench.folder)
    assert numbers(recent.rows(10, verdict="reject")) == [0]
    assert len(recent._all) == KEPT


def test_the_last_word_on_an_image_is_shown(bench: Bench) -> None:
    bench.images(2, "reject")
    recent = Recent()
    recent.follow(bench.line)
    assert [row["label"] for row in recent.rows(2)] == [None, None]
    bench.feedback(0, "ok")
    bench.feedback(0, "defect")
    recent.follow(bench.line)
    assert [(r["label"], r["by"]) for r in recent.rows(2)] == [(None, ""), ("defect", "eve")]
    assert recent.rows(2) == recent.rows(2, verdict="reject")


@pytest.mark.parametrize("asked", [{"limit": 0}, {"limit": KEPT + 1}, {"limit": 5, "verdict": "bad"}])
def test_what_cannot_be_meant_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        Recent().rows(**asked)


def test_an_image_comes_as_it_was_or_says_why_not(bench: Bench) -> None:
    bench.images(1, image=b"pixels")
    bench.images(1, image=None)
    assert image_of(bench.line, "i0") == b"pixels"
    with pytest.raises(ConfigError, match="dropped"):
        image_of(bench.line, "i1")
    with pytest.raises(UnknownImage, match="'i9'"):
        image_of(bench.line, "i9")
    assert len(LogReader(bench.folder)) == 2
