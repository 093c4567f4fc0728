"""A line whose MLflow is away: it goes on, and what is due goes out later, once and in order."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from everline.methods.detector import State
from everline.methods.errors import (
    NoSpace,
    TrackingError,
)
from everline.platform.calibration import Calibration
from everline.platform.line import Line
from everline.platform.log import LogReader, LogWriter, verify

from .lines import QUICK, Shelf, another, die, png, send


def outage(opened: Callable[..., Line], shelf: Shelf, **settings: Any) -> Line:
    """A line with version 1, and two that became due since MLflow is away."""
    line = opened(shelf, settings=replace(QUICK, **{"checkpoint_every": 20, **settings}))
    send(line, 0, 35)
    line.settle()
    assert line.status()["version"] == 1
    shelf.down = True
    send(line, 35, 60)
    line.settle()
    for index in range(60, 110):
        line.inspect(png(index), f"i{index}")
    line.settle()
    return line


def in_order(line: Line, shelf: Shelf) -> None:
    """Three versions, each registered once, in order, and the last is current; the log says the same."""
    snapshots = [int(key.split("/")[1].removeprefix("snapshot-")) for key in shelf.kept]
    assert snapshots == sorted(set(snapshots))
    assert len(snapshots) == 3
    published = [r.data["key"] for r in LogReader(line.folder).records() if r.kind == "publish"]
    assert published == list(shelf.kept)
    assert (line.status()["version"], line.status()["versions_waiting"], shelf.alias) == (3, 0, 3)


def test_what_is_due_in_an_outage_goes_out_later_in_order_and_once(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = outage(opened, shelf)
    assert line.inspect(png(115), "meanwhile").version == 1
    assert [r.kind for r in LogReader(line.folder).records()].count("due") == line.status()["versions_waiting"] == 2
    assert line.checkpoints.latest()[0] > 60  # type: ignore[index]
    shelf.down = False
    line._retry_at = 0.0
    line.settle()
    in_order(line, shelf)


@pytest.mark.parametrize("lost", ["nothing", "waiting", "checkpoints", "both"])
def test_a_crash_in_an_outage_loses_no_version_and_no_order(opened: Callable[..., Line], lost: str) -> None:
    calm, shelf = Shelf(), Shelf()
    whole = outage(opened, calm)
    calm.down, whole._retry_at = False, 0.0
    whole.settle()
    die(whole)
    (whole.folder).rename(whole.folder.with_name("calm"))
    line = outage(opened, shelf)
    before = line.digest()
    die(line)
    for name in {"nothing": (), "both": ("waiting", "checkpoints")}.get(lost, (lost,)):
        shutil.rmtree(line.folder / name)
    line = opened(shelf, settings=QUICK)
    assert (line.digest(), line.status()["versions_waiting"]) == (before, 2)
    assert line.inspect(png(115), "meanwhile").version == 1
    die(line)
    shelf.down = False
    line = opened(shelf, settings=QUICK)
    line.settle()
    in_order(line, shelf)
    assert list(shelf.kept) == list(calm.kept)


def test_a_crash_while_versions_go_out_sends_none_twice(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = outage(opened, shelf, checkpoint_every=1000)
    shelf.down, line._retry_at = False, 0.0
    line.checkpoint()
    line._publish_waiting()  # the first of two
    die(line)
    line = opened(shelf, settings=replace(QUICK, checkpoint_every=1000))
    line.settle()
    in_order(line, shelf)


def test_another_method_in_an_outage_sends_what_waits_first(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    die(outage(opened, shelf))
    shelf.down = False
    line = opened(shelf, settings=replace(QUICK, method="padim"))
    line.settle()
    methods = [state.meta["method"] for state, _ in shelf.kept.values()]
    assert methods == ["lemo", "lemo", "lemo", "padim"]
    assert line.status()["version"] == 4


def test_a_full_temporary_folder_lets_versions_wait_and_the_line_go_on(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()

    def full(*args: object, **more: object) -> Any:
        raise NoSpace("could not publish a version: the disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "_answer", full)
        line = opened(shelf, settings=replace(QUICK, checkpoint_every=20))
        assert [one.verdict for one in send(line, 0, 50)] == ["learning"] * 50
        line.settle()
        assert line.status()["versions_waiting"] >= 1
    line._retry_at = 0.0
    line.settle()
    assert (line.status()["version"], line.status()["versions_waiting"]) == (len(shelf.kept), 0)
    die(line)
    monkeypatch.setattr(Shelf, "_answer", full)
    line = opened(shelf, settings=replace(QUICK, checkpoint_every=20))  # from its own copy
    assert line.inspect(png(115), "meanwhile").version == len(shelf.kept)


FULL = """
import sys, tempfile
from pathlib import Path
from everline.platform.line import Line
from everline.platform.log import LogReader
from everline.platform.versions import Versions
from everline.tests.platform.lines import QUICK, send

store, uri, tempfile.tempdir = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
filler = Path(sys.argv[3], "filler")

def fill():
    with filler.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == 28, error

fill()
line = Line("a", QUICK, store, versions := Versions(uri, "a"))
send(line, 0, 60)
line.settle()
images = [record.kind for record in LogReader(line.folder).records()].count("image")
waiting = line.status()["versions_waiting"]
filler.unlink()
line._retry_at = 0.0
line.settle()
fill()
versions.load(line.status()["version"])  # what lies on this machine needs no temporary folder
current = line.status()["version"] == versions.current() == waiting
print(images, waiting > 0, line.status()["versions_waiting"], current)
line.close()
"""


def test_a_temporary_folder_that_is_really_full_stops_no_line(tracking_uri: str, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    (tmp_path / "full").mkdir()
    mount = 'mount -t tmpfs -o size=16m none "$3" && exec "$0" -c "$4" "$1" "$2" "$3"'
    words = [sys.executable, tmp_path / "store", tracking_uri, tmp_path / "full", FULL]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == ["60", "True", "0", "True"], ran.stderr


def test_no_more_than_the_current_version_waits_in_memory(opened: Callable[..., Line]) -> None:
    line = outage(opened, Shelf())
    assert (line._fresh, line._waiting._memory) == (None, {})
    here = [int(path.name[:12]) for path in sorted((line.folder / "waiting").iterdir())]
    assert here == line._waiting.numbers


def test_a_disk_that_takes_no_waiting_version_keeps_it_in_memory_and_takes_no_checkpoint(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=replace(QUICK, checkpoint_every=20))
    shelf.down = True

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(line._waiting._disk, "save", full)
    send(line, 0, 50)
    line.settle()
    assert line.status()["versions_waiting"] >= 1
    assert line.checkpoints.latest()[0] < 40  # type: ignore[index]
    shelf.down, line._retry_at = False, 0.0
    line.settle()
    assert line.status()["versions_waiting"] == 0
    assert line.status()["version"] == len(shelf.kept)


def test_a_decision_in_an_outage_is_refused_and_changes_nothing(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = outage(opened, shelf)
    number, records = another(shelf), verify(line.folder).records
    for decide in (lambda: line.rollback(), lambda: line.rollback(1), lambda: line.promote(number, 1)):
        with pytest.raises(TrackingError):
            decide()
    assert (verify(line.folder).records, line.status()["version"], line.status()["versions_waiting"]) == (
        records,
        1,
        2,
    )


def test_an_outage_just_after_a_decision_moves_the_alias_later(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=QUICK)
    send(line, 0, 60)
    line.settle()
    load = shelf.load

    def away(version: int) -> tuple[State, Calibration]:
        loaded, shelf.down = load(version), True
        return loaded

    shelf.load = away  # type: ignore[method-assign]
    assert line.rollback(1) == 1
    assert (line.status()["version"], shelf.alias) == (1, 2)
    assert line.inspect(png(115), "next").version == 1
    shelf.down, line._retry_at = False, 0.0
    line.settle()
    assert shelf.alias == 1


def test_a_roll_back_that_the_log_did_not_take_drops_nothing(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()
    line = outage(opened, shelf)
    shelf.down = False

    def full(*args: object) -> None:
        raise NoSpace("full")

    with monkeypatch.context() as patch:
        patch.setattr(LogWriter, "append", full)
        with pytest.raises(NoSpace):
            line.rollback(1)
    line._retry_at = 0.0
    line.settle()
    in_order(line, shelf)


def test_mlflow_is_asked_less_often_the_longer_it_takes_to_fail(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, asked = [1000.0], []
    monkeypatch.setattr("everline.platform.line.time.monotonic", lambda: now[0])
    line = opened()

    def silent() -> None:
        asked.append(now[0])
        now[0] += 3.0  # a time-out
        raise TrackingError("silent")

    began = now[0]
    while now[0] < began + 600:
        line._tried(silent)
        now[0] += 1.0
    assert 3.0 * len(asked) <= 0.05 * 630
