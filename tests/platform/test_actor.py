"""The line as a real Ray actor: it dies, comes back, and nothing is lost or learned twice."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from everline.methods.errors import (
    ConfigError,
    Corrupt,
    ImageError,
    LineDown,
    SecondWriter,
    UnknownLine,
    UnknownVersion,
)
from everline.platform.actor import answer, insist, line_handle, start_line
from everline.platform.line import Line
from everline.platform.log import LogReader, line_folder, verify
from everline.platform.settings import Fleet, parse_fleet
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import Versions

pytestmark = pytest.mark.usefixtures("ray_session")
LINE = {"method": "lemo", "false_reject_rate": 0.05, "checkpoint_every": 20, "params": {"size": 64}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")
    made = parse_fleet({"store": "store", "lines": {"killed": LINE, "calm": LINE, "other": LINE}}, folder)
    prepare_tracking(made.tracking)
    return made


@pytest.fixture
def start(fleet: Fleet) -> Iterator[Any]:
    """Starts a line's actor; all are ended afterwards."""
    handles = []

    def make(name: str) -> Any:
        handle, _ = start_line(name, fleet)
        handles.append(handle)
        return handle

    yield make
    for handle in handles:
        ray.kill(handle)


def test_killed_or_not_the_bits_are_the_same(fleet: Fleet, start: Any, parts: list[bytes]) -> None:
    killed, calm = start("killed"), start("calm")
    for index, data in enumerate(parts):
        if index in (10, 35):
            pid = insist(killed.status.remote)["pid"]
            threading.Timer(0.005, os.kill, (pid, signal.SIGKILL)).start()
        insist(lambda data=data, id=f"i{index}": killed.inspect.remote(data, id))
        answer(calm.inspect.remote(data, f"i{index}"))
    assert insist(killed.digest.remote) == answer(calm.digest.remote())
    found = verify(line_folder(fleet.store, "killed"))
    assert (found.inspected, found.unique, found.ok) == (60, 60, True)
    status = answer(killed.status.remote())
    assert status["images_learned"] == sum(
        bool(r.admitted) for r in LogReader(line_folder(fleet.store, "killed")).records()
    )
    assert status["version"] == Versions(fleet.tracking, "killed").current()


def test_errors_arrive_as_they_were_raised(start: Any) -> None:
    handle = start("other")
    with pytest.raises(ImageError):
        answer(handle.inspect.remote(b"no image", "x"))
    with pytest.raises(UnknownVersion):
        answer(handle.rollback.remote(99))


def test_a_line_is_started_once(fleet: Fleet, start: Any) -> None:
    handle = start("other")
    again, started = start_line("other", fleet)
    assert not started
    assert again._actor_id == handle._actor_id
    assert line_handle("other", fleet.store)._actor_id == handle._actor_id


def test_a_second_writer_is_refused_with_the_reason(fleet: Fleet, start: Any) -> None:
    start("other")
    with pytest.raises(SecondWriter):
        Line("other", fleet.line("other"), fleet.store, Versions(fleet.tracking, "other"))


def test_an_unknown_line_has_no_handle(fleet: Fleet) -> None:
    with pytest.raises(UnknownLine, match="nobody"):
        line_handle("nobody", fleet.store)


def test_another_fleets_line_of_the_same_name_is_another_line(fleet: Fleet, start: Any, tmp_path: Path) -> None:
    start("other")
    with pytest.raises(UnknownLine):
        line_handle("other", tmp_path)


def test_a_line_that_runs_with_other_settings_is_not_taken_for_this_one(fleet: Fleet, start: Any) -> None:
    start("other")
    changed = replace(fleet, lines={**fleet.lines, "other": replace(fleet.line("other"), publish_every=300)})
    with pytest.raises(ConfigError, match="other settings"):
        start_line("other", changed)


def test_a_line_that_cannot_come_back_yet_comes_back_later(fleet: Fleet, start: Any) -> None:
    handle = start("other")
    pid = answer(handle.status.remote())["pid"]
    lock = line_folder(fleet.store, "other") / "lock"
    os.kill(pid, signal.SIGKILL)
    with lock.open("r+") as held:  # somebody else has the log for a while
        give_up = time.monotonic() + 20
        while time.monotonic() < give_up:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.02)
        time.sleep(6)
    assert insist(handle.status.remote)["pid"] != pid


def test_an_error_at_the_start_arrives_as_it_was_raised(fleet: Fleet, tmp_path: Path) -> None:
    folder = line_folder(tmp_path, "calm")
    folder.mkdir()
    (folder / "manifest-000000000001.json").write_text("{}")
    with pytest.raises(Corrupt, match="not a manifest") as caught:
        start_line("calm", replace(fleet, store=tmp_path))
    assert not str(caught.value).startswith("everline.")


def test_a_dead_line_says_to_send_again(start: Any) -> None:
    handle = start("other")
    ray.kill(handle)
    with pytest.raises(LineDown):
        insist(handle.status.remote, patience_s=0.5)
