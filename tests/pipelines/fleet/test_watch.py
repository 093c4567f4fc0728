"""A watched folder: each complete file gets one verdict, whatever else lies there."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import ConfigError, DataError, LineDown, StoreError
from everline.pipelines.fleet import watch
from everline.pipelines.fleet.station import Station, Unreadable
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


class Swapping(Line):
    """While it judges, the camera writes another file of the same name, as many times as `swaps` says."""

    def __init__(self, folder: Path, swaps: int = 1) -> None:
        super().__init__()
        self.folder, self.swaps = folder, swaps

    def inspect(self, data: bytes, id: str) -> dict[str, Any]:
        if self.swaps:
            self.swaps -= 1
            write(self.folder, "new.tmp", b"bad %d" % self.swaps, 10 + self.swaps)
            os.replace(self.folder / "new.tmp", self.folder / "latest.png")
        return super().inspect(data, id)


def test_only_the_file_that_was_judged_is_moved(tmp_path: Path) -> None:
    write(tmp_path, "latest.png", b"good", 1)
    one, out = watcher(tmp_path, Swapping(tmp_path), move=True)
    one.run(0.01, once=True)
    assert told(out) == [("latest.png", "pass"), ("latest.png", "reject")]
    assert [p.name for p in (tmp_path / "pass").iterdir()] == []
    assert (tmp_path / "reject" / "latest.png").read_bytes() == b"bad 0"


def test_a_file_that_takes_its_place_in_the_last_moment_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "latest.png", b"good", 1)
    rename = os.rename

    def late(file: Path, to: Path) -> None:
        monkeypatch.setattr(watch.os, "rename", rename)
        write(tmp_path, "latest.png", b"bad", 2)
        rename(file, to)

    monkeypatch.setattr(watch.os, "rename", late)
    one, out = watcher(tmp_path, move=True)
    one.run(0.01, once=True)
    assert told(out) == [("latest.png", "pass"), ("latest.png", "reject")]
    assert (tmp_path / "reject" / "latest.png").read_bytes() == b"bad"


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_a_file_that_cannot_be_renamed_is_copied_or_stays_and_ends_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename = os.rename

    def refused(file: Path, to: Path) -> None:
        if file.name == "a.png":
            raise OSError(code, os.strerror(code), str(file))
        rename(file, to)

    monkeypatch.setattr(watch.os, "rename", refused)
    write(tmp_path, "a.png", b"good", 1)
    write(tmp_path, "b.png", b"good, too", 2)
    one, out = watcher(tmp_path, move=True)
    one.run(0.01, once=True)
    assert told(out) == [("a.png", "pass"), ("b.png", "pass")]
    moved = {path.name for path in (tmp_path / "pass").iterdir()}
    if code == errno.EXDEV:
        assert moved == {"a.png", "b.png"} and (tmp_path / "pass" / "a.png").read_bytes() == b"good"
    else:
        assert moved == {"b.png"} and (tmp_path / "a.png").read_bytes() == b"good"
        assert "a.png: stays where it is, it cannot be moved" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_read_for_a_while_is_tried_again_and_other_rights_make_it_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock, rights = [0.0], True
    read = watch.read_below

    def reads(root: Path, path: str) -> bytes:
        if not rights:
            raise Unreadable("'a.png' cannot be read: Permission denied")
        return read(root, path)

    monkeypatch.setattr(watch, "read_below", reads)
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    write(tmp_path, "a.png", b"good", 1)
    one, out = watcher(tmp_path)
    rights = False
    for clock[0] in (0.0, 30.0, 60.0):
        assert one.ready() == ["a.png"] and not one._inspect("a.png")
    rights = True
    assert one.ready() == ["a.png"] and one._inspect("a.png")
    assert told(out) == [("a.png", "pass")] and capsys.readouterr().err.count("waiting") == 1
    write(tmp_path, "a.png", b"good", 2)
    rights = False
    for clock[0] in (100.0, 161.0):
        assert one.ready() == ["a.png"]
        one._inspect("a.png")
    assert told(out)[1:] == [("a.png", "error")] and one.ready() == []
    rights = True
    (tmp_path / "a.png").chmod(0o640)
    assert one.ready() == ["a.png"]


def test_a_folder_that_is_gone_for_a_while_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    folder = tmp_path / "share"
    folder.mkdir()
    write(folder, "a.png", b"good", 1)
    one, _ = watcher(folder)
    one.run(0.01, once=True)
    folder.rename(tmp_path / "away")
    assert one.ready() == []
    clock[0] = watch.GONE_S
    assert one.ready() == []
    (tmp_path / "away").rename(folder)
    assert one.ready() == []  # it has its verdict
    folder.rename(tmp_path / "away")
    for clock[0] in (2000.0, 2000.0 + watch.GONE_S + 1):
        with pytest.raises(DataError, match="cannot be read for 600 s") if clock[0] > 2000 else nullcontext():
            one.ready()


def test_verdicts_that_cannot_be_written_end_it_with_one_clear_line(tmp_path: Path) -> None:
    write(tmp_path, "a.png", b"good", 1)
    with open("/dev/full", "w") as full:
        one = Watcher(tmp_path, Station("mono", Line()), full, move=True, quiet_s=0)
        with pytest.raises(StoreError, match=r"/dev/full: cannot be written: .*No space.*a.png gets its"):
            one.run(0.01, once=True)
        with suppress(OSError):
            full.close()
    assert (tmp_path / "a.png").exists()


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
