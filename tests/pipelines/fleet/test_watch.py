"""A watched folder: each complete file gets one verdict, whatever else lies there."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ConfigError, LineDown
from everline.pipelines.fleet import watch
from everline.pipelines.fleet.station import Station
from everline.pipelines.fleet.watch import Watcher
from everline.platform.log import line_folder, verify

from .test_station import Line

FLEET = """\
store: store
tracking: sqlite:///mlflow.db
lines:
  mono: {method: lemo, params: {size: 64}}
"""


def watcher(folder: Path, line: Line | None = None, move: bool = False, quiet_s: float = 0.0) -> tuple[Watcher, Any]:
    out = io.StringIO()
    return Watcher(folder, Station("mono", line or Line()), out, move, quiet_s), out


def told(out: io.StringIO) -> list[tuple[str, str]]:
    return [(one["file"], one["verdict"]) for one in map(json.loads, out.getvalue().splitlines())]


def write(folder: Path, name: str, data: bytes, mtime: int) -> None:
    (folder / name).write_bytes(data)
    os.utime(folder / name, (mtime, mtime))


def test_files_come_oldest_first_each_once_and_go_where_their_verdict_says(tmp_path: Path) -> None:
    write(tmp_path, "b.png", b"good", 1)
    write(tmp_path, "a.PNG", b"bad", 2)
    write(tmp_path, "c.jpg", b"broken", 3)
    write(tmp_path, "notes.txt", b"good", 0)
    write(tmp_path, ".half.png", b"good", 0)
    one, out = watcher(tmp_path, move=True)
    one.run(0.01, once=True)
    write(tmp_path, "b.png", b"good, too", 4)
    one.run(0.01, once=True)
    assert told(out) == [("b.png", "pass"), ("a.PNG", "reject"), ("c.jpg", "error"), ("b.png", "pass")]
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()} == {
        *("pass/b.png", "pass/b-1.png", "reject/a.PNG", "error/c.jpg", "notes.txt", ".half.png")
    }


def test_a_file_that_grows_is_left_alone_until_it_is_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    one, _ = watcher(tmp_path, quiet_s=1.0)
    write(tmp_path, "a.png", b"g", 1)
    assert one.ready() == []
    now = 0.9
    write(tmp_path, "a.png", b"go", 1)
    assert one.ready() == []
    now = 1.8  # quiet for 0.9 s
    assert one.ready() == []
    now = 2.0
    assert one.ready() == ["a.png"]


def test_what_lies_there_has_its_verdict_once_and_again_when_it_is_another_file(tmp_path: Path) -> None:
    write(tmp_path, "a.png", b"good", 1)
    one, out = watcher(tmp_path)
    one.run(0.01, once=True)
    one.run(0.01, once=True)
    write(tmp_path, "a.png", b"bad", 2)
    one.run(0.01, once=True)
    assert told(out) == [("a.png", "pass"), ("a.png", "reject")]


def test_started_again_it_learns_nothing_twice(tmp_path: Path) -> None:
    line = Line()
    write(tmp_path, "a.png", b"good", 1)
    for _ in range(2):
        one, out = watcher(tmp_path, line)
        one.run(0.01, once=True)
    assert json.loads(out.getvalue())["duplicate"] is True
    assert len(line.ids) == 1


def test_links_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(tmp_path, "secret.png", b"good", 1)
    (folder / "a.png").symlink_to(tmp_path / "secret.png")
    (folder / "d.png").mkdir()
    one, out = watcher(folder)
    one.run(0.01, once=True)
    assert told(out) == []
    (folder / "pass").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="link"):
        watcher(folder, move=True)


def test_no_more_than_the_backlog_is_looked_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BACKLOG", 3)
    for n in range(8):
        write(tmp_path, f"{n}.png", b"good%d" % n, n)
    one, out = watcher(tmp_path)
    assert one.ready() == ["0.png", "1.png", "2.png"]
    one.run(0.01, once=True)
    assert [name for name, _ in told(out)] == [f"{n}.png" for n in range(8)]


def test_a_line_that_is_down_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "PAUSE_S", 0.0)
    line = Line()
    line.plan = [LineDown("down"), LineDown("down")]
    write(tmp_path, "a.png", b"good", 1)
    one, out = watcher(tmp_path, line)
    one.run(0.01, once=True)
    assert told(out) == [("a.png", "pass")]


@pytest.mark.slow
def test_a_watched_folder_from_the_command_line_until_ctrl_c(
    tmp_path: Path, parts: list[bytes], ray_session: str, tracking_uri: str
) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    folder = tmp_path / "in"
    folder.mkdir()
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from everline.pipelines.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "watch", "mono", str(folder), "--out", "out.jsonl", "--move", "--quiet", "0"],
        cwd=tmp_path,
        env={**os.environ, "RAY_ADDRESS": ray_session},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for n, data in enumerate(parts[:5]):
        (tmp_path / "half").write_bytes(data)
        (tmp_path / "half").rename(folder / f"{n}.png")
    (folder / "no.png").write_bytes(b"no image")
    out = tmp_path / "out.jsonl"
    while process.poll() is None and not (out.exists() and len(out.read_text().splitlines()) == 6):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 130, err
    assert sorted(p.name for p in (folder / "learning").iterdir()) == [f"{n}.png" for n in range(5)]
    assert [p.name for p in (folder / "error").iterdir()] == ["no.png"]
    assert verify(line_folder(tmp_path / "store", "mono")).unique == 5
