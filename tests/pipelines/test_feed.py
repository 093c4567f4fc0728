"""Feeding a line: identities, retries, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ImageError, LineDown, NoSpace
from everline.pipelines import feed as module
from everline.pipelines.feed import feed, image_id


class Handle:
    """Stands for an actor's handle; `plan` gives an error to raise, or None, for each call."""

    def __init__(self, *plan: Exception | None) -> None:
        self.plan, self.calls = list(plan), []
        self.inspect = self

    def remote(self, data: bytes, id: str) -> Any:
        self.calls.append(id)
        error = self.plan.pop(0) if self.plan else None
        return error or {"duplicate": False, "admitted": True, "verdict": "pass"}


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def insist(ask: Any) -> Any:
        while isinstance(answer := ask(), LineDown):
            continue
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "insist", insist)


def files(folder: Path, count: int) -> list[Path]:
    for n in range(count):
        (folder / f"{n}.png").write_bytes(b"%d" % n)
    return [folder / f"{n}.png" for n in range(count)]


def test_an_id_is_the_name_and_the_hash_of_the_bytes() -> None:
    assert image_id("a.png", b"x") != image_id("b.png", b"x")
    assert image_id("a.png", b"x") != image_id("a.png", b"y")
    assert image_id("a.png", b"x").startswith("a.png:2d711642b726b044")


def test_an_image_without_an_answer_is_sent_again_under_the_same_id(tmp_path: Path) -> None:
    handle = Handle(None, LineDown("gone"), LineDown("gone"))
    done = feed(handle, files(tmp_path, 2))
    assert done.acknowledged == 2
    assert len(handle.calls) == 4
    assert len(set(handle.calls)) == 2


def test_a_broken_image_is_refused_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    paths = files(tmp_path, 3)
    done = feed(Handle(None, ImageError("cut off")), [*paths, tmp_path / "gone.png"])
    assert done.acknowledged == 2
    assert done.refused[str(paths[1])] == "cut off"
    assert str(tmp_path / "gone.png") in done.refused


def test_a_full_disk_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        feed(Handle(None, NoSpace("full")), files(tmp_path, 3))
