"""One shape for verdicts, one way from codes to tasks, and no way out of the folder of images."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ConfigError, Dropped, ImageError, LineDown
from everline.pipelines.fleet.station import SHAPE, Station, read_below
from everline.platform.images import image_id


class Line:
    """Double of platform/reach.py: knows its ids, refuses `broken`, and does what `plan` says first."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.tasks: list[str] = []
        self.plan: list[Exception] = []

    def inspect(self, data: bytes, id: str) -> dict[str, Any]:
        if self.plan:
            raise self.plan.pop(0)
        if data == b"broken":
            raise ImageError("not an image")
        known = id in self.ids
        self.ids += [] if known else [id]
        verdict = "reject" if data.startswith(b"bad") else "pass"
        return {
            **dict.fromkeys(SHAPE, 0.5),
            "line": "mono",
            "id": id,
            "verdict": verdict,
            "record": self.ids.index(id),
            "duplicate": known,
            "admitted": True,
        }

    def switch(self, task: str) -> int:
        self.tasks.append(task)
        return len(self.tasks) - 1

    def status(self) -> dict[str, Any]:
        return {"state": "running", "task": self.tasks[-1] if self.tasks else "", "inspected": len(self.ids)}


def station(products: Mapping[str, str] | None = None) -> tuple[Station, Line]:
    line = Line()
    return Station("mono", line, products), line


def test_a_verdict_has_the_fields_that_are_promised_and_no_others() -> None:
    one, line = station()
    assert tuple(one.inspect(b"good", name="a.png")) == SHAPE
    assert line.ids == [image_id("a.png", b"good")]
    assert one.inspect(b"good", id="17")["id"] == "17"


@pytest.mark.parametrize(("error", "code"), [(ImageError("x"), "bad_image"), (Dropped("x"), "dropped")])
def test_an_error_of_one_image_is_a_verdict_and_one_of_the_line_is_not(error: Exception, code: str) -> None:
    one, line = station()
    line.plan = [error, LineDown("down")]
    assert one.inspect(b"a", id="1") == {
        "line": "mono",
        "id": "1",
        "verdict": "error",
        "error": {"code": code, "message": "x"},
    }
    with pytest.raises(LineDown):
        one.inspect(b"a", id="1")


def test_a_code_stands_for_a_task() -> None:
    one, line = station({"4006381333931": "cap"})
    assert one.switch(" 4006381333931\n") == {"line": "mono", "task": "cap", "record": 0}
    with pytest.raises(ConfigError, match="4006381333931"):
        one.switch("4006381333930")
    with pytest.raises(ConfigError):
        one.switch("4" * 257)
    plain, _ = station()
    assert plain.switch("bottle")["task"] == "bottle"
    assert line.tasks == ["cap"]


@pytest.mark.parametrize(
    "path", ["day/a.png\0\0\0", "day\\a.png", " day/a.png  ", "day/a.png\r\n", "day/a.png\0old.png"]
)
def test_paths_are_read_as_machines_write_them(path: str, tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "a.png").write_bytes(b"good")
    one, line = station()
    assert one.inspect_named(tmp_path, path)["verdict"] == "pass"
    assert line.ids == [image_id("a.png", b"good")]


def test_a_path_that_is_too_long_is_an_error_of_its_image(tmp_path: Path) -> None:
    one, _ = station()
    assert one.inspect_named(tmp_path, "x" * 300)["error"]["code"] == "bad_image"


def test_a_code_is_read_as_machines_write_it() -> None:
    one, line = station({"17": "cap"})
    assert one.switch("17\0\0\0")["task"] == one.switch(" 17\r\n")["task"] == "cap"
    assert line.tasks == ["cap", "cap"]


def test_a_path_with_backslashes_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "day").mkdir()
    (tmp_path / "b.png").write_bytes(b"good")
    one, line = station()
    assert one.inspect_named(tmp_path / "day", "..\\b.png")["verdict"] == "error" and not line.ids


def test_a_file_that_comes_after_its_trigger_and_in_pieces_is_waited_for(tmp_path: Path) -> None:
    one, line = station()
    path = tmp_path / "a.png"

    def write() -> None:
        path.write_bytes(b"broken")
        assert tried.wait(20)
        path.write_bytes(b"good, and whole")

    inspect, tried = line.inspect, threading.Event()

    def told(data: bytes, id: str) -> dict[str, Any]:
        tried.set()
        return inspect(data, id)

    line.inspect = told  # type: ignore[method-assign]
    camera = threading.Timer(0.1, write)
    camera.start()
    assert one.inspect_named(tmp_path, "a.png")["verdict"] == "pass"
    camera.join()
    path.write_bytes(b"broken")
    assert one.inspect_named(tmp_path, "a.png")["error"]["code"] == "bad_image"


def test_a_file_is_read_below_its_folder_and_nowhere_else(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "day").mkdir(parents=True)
    (root / "day" / "a.png").write_bytes(b"a")
    (tmp_path / "secret").write_bytes(b"s")
    (root / "out").symlink_to(tmp_path)
    (root / "in.png").symlink_to(root / "day" / "a.png")
    os.mkfifo(root / "pipe")
    assert read_below(root, "day/a.png") == read_below(root, "in.png") == b"a"
    (root / "Ka\u0308se.png").write_bytes(b"k")  # as macOS and some file servers spell it
    assert read_below(root, "K\u00e4se.png") == b"k"
    for path in ("../secret", str(tmp_path / "secret"), "out/secret", "pipe", "day", "none", "a\0b", "x" * 5000):
        with pytest.raises(ImageError):
            read_below(root, path)
