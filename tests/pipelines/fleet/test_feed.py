"""Feeding a line: identities, retries, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import Dropped, ImageError, NoSpace
from everline.pipelines.fleet.feed import feed, image_id


class Line:
    """Stands for a line; `plan` gives an error to raise, or None, for each image."""

    def __init__(self, *plan: Exception | None) -> None:
        self.plan = list(plan)

    def inspect(self, data: bytes, id: str) -> dict[str, Any]:
        error = self.plan.pop(0) if self.plan else None
        if error:
            raise error
        return {"duplicate": False, "admitted": True, "verdict": "pass"}


def files(folder: Path, count: int) -> list[Path]:
    for n in range(count):
        (folder / f"{n}.png").write_bytes(b"%d" % n)
    return [folder / f"{n}.png" for n in range(count)]


def test_an_id_is_the_name_and_the_hash_of_the_bytes() -> None:
    assert image_id("a.png", b"x") != image_id("b.png", b"x")
    assert image_id("a.png", b"x") != image_id("a.png", b"y")
    assert image_id("a.png", b"x").startswith("a.png:2d711642b726b044")


def test_a_broken_image_is_refused_with_its_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    paths = files(tmp_path, 3)
    done = feed(Line(None, ImageError("cut off")), [*paths, tmp_path / "gone.png"])
    assert done.acknowledged == 2
    assert done.refused[str(paths[1])] == "cut off"
    assert str(tmp_path / "gone.png") in done.refused


def test_a_full_disk_ends_the_work(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        feed(Line(None, NoSpace("full")), files(tmp_path, 3))


def test_a_dropped_image_is_counted_as_refused(tmp_path: Path) -> None:
    done = feed(Line(None, Dropped("64 images wait already")), files(tmp_path, 3))
    assert (done.acknowledged, list(done.refused.values())) == (2, ["64 images wait already"])
