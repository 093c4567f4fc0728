"""The line as a real Ray actor: it dies, comes back, and nothing is lost or learned twice."""

import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
import ray
from everline.methods.errors import (
    Busy,
    ConfigError,
    Corrupt,
    Dropped,
    ImageError,
    LineDown,
    LineStopped,
    SecondWriter,
    TrackingError,
    UnknownLine,
    UnknownVersion,
)
from everline.platform.actor import NAMESPACE, LineActor, actor_name, answer, insist, line_handle, start_line
from everline.platform.crew import stop_line
from everline.platform.line import Line
from everline.platform.log import LogReader, LogWriter, line_folder, locked, verify
from everline.platform.reach import Reach
from everline.platform.settings import Fleet, parse_fleet, parse_line
from everline.platform.tracking import prepare_tracking
from everline.platform.trouble import STARTS, Trouble, read_trouble
from everline.platform.versions import Versions

from ..conftest import until

pytestmark = pytest.mark.usefixtures("ray_session")
DEADLY = {10: signal.SIGKILL, 35: signal.SIGTERM}  # what happens at which image
LINE = {"method": "lemo", "false_reject_rate": 0.05, "probation": 1, "checkpoint_every": 20, "params": {"size": 64}}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    folder = tmp_path_factory.mktemp("fleet")
    narrow = {"short": {**LINE, "queue": 1}, "deaf": {**LINE, "queue": 1, "when_full": "drop"}}
    lines = {**dict.fromkeys(("killed", "calm", "other", "ended", "mortal", "idle", "late", "moved"), LINE), **narrow}
    made = parse_fleet({"store": "store", "lines": lines}, folder)
    prepare_tracking(made.tracking)
    return made


@pytest.fixture(scope="module")
def other(ray_session: str, fleet: Fleet) -> Iterator[Any]:
    """A line that runs, for tests that leave it running."""
    handle, _ = start_line("other", fleet)
    yield handle
    ray.kill(handle)


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


def images_in(fleet: Fleet, name: str) -> set[str]:
    return set(LogReader(line_folder(fleet.store, name)).ids())


def test_killed_or_not_the_bits_are_the_same(fleet: Fleet, start: Any, parts: list[bytes]) -> None:
    killed, calm = start("killed"), start("calm")
    for index, data in enumerate(parts):
        if index in DEADLY:
            pid = insist(killed.status.remote)["pid"]
            threading.Timer(0.005, os.kill, (pid, DEADLY[index])).start()
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


@pytest.mark.slow
def test_what_waits_for_mlflow_goes_out_though_no_image_comes(fleet: Fleet, start: Any, parts: list[bytes]) -> None:
    database = Path(fleet.tracking.removeprefix("sqlite:///"))
    away = database.rename(database.with_suffix(".away"))
    handle = start("idle")
    with pytest.raises(TrackingError):  # loads MLflow, too, which would look slow to fail
        answer(handle.rollback.remote())
    for index, data in enumerate(parts):
        answer(handle.inspect.remote(data, f"i{index}"))
    before = answer(handle.status.remote())
    away.rename(database)
    give_up = time.monotonic() + 300
    while (status := answer(handle.status.remote()))["versions_waiting"]:
        assert time.monotonic() < give_up
        time.sleep(0.2)
    assert before["versions_waiting"] > 0 and status["inspected"] == len(parts)
    assert status["version"] == Versions(fleet.tracking, "idle").current() == before["versions_waiting"]


def test_errors_arrive_as_they_were_raised(other: Any) -> None:
    with pytest.raises(ImageError):
        answer(other.inspect.remote(b"no image", "x"))
    with pytest.raises(UnknownVersion):
        answer(other.rollback.remote(99))


def test_a_line_is_started_once(fleet: Fleet, other: Any) -> None:
    again, started = start_line("other", fleet)
    assert not started
    assert again._actor_id == other._actor_id
    assert line_handle("other", fleet.store)._actor_id == other._actor_id


def test_a_second_writer_is_refused_with_the_reason(fleet: Fleet, other: Any) -> None:
    with pytest.raises(SecondWriter):
        Line("other", fleet.line("other"), fleet.store, Versions(fleet.tracking, "other"))


def test_a_log_that_a_killed_command_still_holds_is_waited_for(fleet: Fleet) -> None:
    lock = locked(line_folder(fleet.store, "late"))
    named = {"name": actor_name("late", fleet.store), "namespace": NAMESPACE}
    with ThreadPoolExecutor(1) as beside:
        starting = beside.submit(start_line, "late", fleet)
        until(lambda: named in ray.util.list_named_actors(all_namespaces=True))
        handle = line_handle("late", fleet.store)
        assert answer(handle.status.remote(3.0))["state"] == "opening"  # not stopped, though it was refused by now
        os.close(lock)
        assert starting.result()[1]
    assert answer(handle.status.remote())["state"] == "running"
    ray.kill(handle)


def test_a_line_whose_log_was_taken_over_ends_and_says_why(fleet: Fleet, start: Any, parts: list[bytes]) -> None:
    moved = start("moved")
    answer(moved.inspect.remote(parts[0], "i0"))
    LogWriter(line_folder(fleet.store, "moved"), -1).release()  # on another machine no lock keeps it out
    for index in (1, 2, 3):
        with pytest.raises(SecondWriter, match="has taken over"):
            answer(moved.inspect.remote(parts[index], f"i{index}"))
    with pytest.raises(SecondWriter, match="this one has ended its work"):
        answer(moved.switch.remote("bolt"))
    status = answer(moved.status.remote())
    assert status["state"] == "stopped" and "another process has taken over its log" in status["problem"]
    answer(moved.close.remote())


def test_an_unknown_line_has_no_handle(fleet: Fleet) -> None:
    with pytest.raises(UnknownLine, match="nobody"):
        line_handle("nobody", fleet.store)


def test_another_fleets_line_of_the_same_name_is_another_line(fleet: Fleet, other: Any, tmp_path: Path) -> None:
    with pytest.raises(UnknownLine):
        line_handle("other", tmp_path)


def test_a_line_that_runs_with_other_settings_is_not_taken_for_this_one(fleet: Fleet, other: Any) -> None:
    changed = replace(fleet, lines={**fleet.lines, "other": replace(fleet.line("other"), publish_every=300)})
    with pytest.raises(ConfigError, match="other settings"):
        start_line("other", changed)


def test_a_line_that_cannot_come_back_yet_comes_back_later(fleet: Fleet, other: Any) -> None:
    pid = answer(other.status.remote())["pid"]

    def stands() -> Any:
        return insist(lambda: other.status.remote(0.1))

    lock = line_folder(fleet.store, "other") / "lock"
    os.kill(pid, signal.SIGKILL)
    with lock.open("r+") as held:  # somebody else has the log for a while
        until(lambda: taken(held))
        until(lambda: stands()["pid"] != pid)  # its next process is there
        assert stands()["state"] == "opening"
    until(lambda: stands()["state"] == "running")


def taken(lock: IO[str]) -> bool:
    """Whether the lock could be taken."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_an_error_at_the_start_arrives_as_it_was_raised(fleet: Fleet, tmp_path: Path) -> None:
    folder = line_folder(tmp_path, "calm")
    folder.mkdir()
    (folder / "manifest-000000000001.json").write_text("{}")
    with pytest.raises(Corrupt, match="not a manifest") as caught:
        start_line("calm", replace(fleet, store=tmp_path))
    assert not str(caught.value).startswith("everline.")


@pytest.mark.parametrize(("name", "kind"), [("short", Busy), ("deaf", Dropped)])
def test_a_full_queue_sends_away_and_forgets(
    fleet: Fleet, start: Any, parts: list[bytes], name: str, kind: type[Busy]
) -> None:
    handle = start(name)
    asked = {f"i{n}": handle.inspect.remote(data, f"i{n}") for n, data in enumerate(parts)}
    status = answer(handle.status.remote())  # goes before the images that wait
    assert status["waiting"] <= 1
    refused = set()
    for id, ref in asked.items():
        try:
            answer(ref)
        except Busy as error:
            assert type(error) is kind  # noqa: PT017
            refused.add(id)
    assert 0 < len(refused) < len(parts)
    assert images_in(fleet, name) == asked.keys() - refused
    assert answer(handle.status.remote())["dropped"] == (len(refused) if kind is Dropped else 0)


def test_callers_that_wait_lose_nothing(fleet: Fleet, start: Any, more_parts: list[bytes]) -> None:
    handle = start("short")

    def one(number: int) -> int:
        line = Reach(lambda: handle)
        return line.inspect(more_parts[number], f"w{number}")["record"]

    with ThreadPoolExecutor(8) as callers:
        records = list(callers.map(one, range(len(more_parts))))
    assert len(set(records)) == len(more_parts)
    assert {f"w{n}" for n in range(len(more_parts))} <= images_in(fleet, "short")


def test_a_closed_line_sends_its_callers_to_the_next(fleet: Fleet, start: Any, parts: list[bytes]) -> None:
    handle = start("ended")
    answer(handle.close.remote())
    assert answer(handle.status.remote())["state"] == "closed"
    with pytest.raises(LineDown, match="being ended"):
        answer(handle.inspect.remote(parts[0], "late"))
    assert "late" not in images_in(fleet, "ended")


@pytest.mark.slow
def test_a_log_that_cannot_be_opened_stops_its_line_and_no_other(
    fleet: Fleet, start: Any, other: Any, parts: list[bytes]
) -> None:
    mortal = start("mortal")
    for index, data in enumerate(parts[:5]):
        answer(mortal.inspect.remote(data, f"i{index}"))
    before, pid = answer(mortal.digest.remote()), answer(mortal.status.remote())["pid"]
    (segment,) = line_folder(fleet.store, "mortal").glob("segment-*")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:100] + b"?" + whole[101:])
    os.kill(pid, signal.SIGKILL)
    insist(lambda: other.inspect.remote(parts[0], "meanwhile"))
    give_up = time.monotonic() + 280
    while (status := insist(mortal.status.remote))["state"] != "stopped" and time.monotonic() < give_up:
        time.sleep(0.2)
    assert f"stopped after {STARTS} starts" in status["problem"]
    assert segment.name in status["problem"]
    with pytest.raises(LineStopped, match="mend it"):
        insist(lambda: mortal.inspect.remote(parts[5], "i5"))
    assert answer(other.status.remote())["state"] == "running"

    segment.write_bytes(whole)
    stop_line("mortal", fleet)
    again = start("mortal")
    assert answer(again.digest.remote()) == before
    answer(again.inspect.remote(parts[5], "i5"))
    answer(again.digest.remote())  # it has settled
    assert read_trouble(line_folder(fleet.store, "mortal")) == Trouble()


@pytest.mark.slow
def test_a_process_that_is_killed_at_every_start_is_not_started_for_ever(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(LineActor):
        """Travels by value; as a line does whose recovery takes more memory than there is."""

        def __init__(self, *args: Any) -> None:
            import everline.platform.actor as module

            module.Line = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            super().__init__(*args)

    monkeypatch.setattr("everline.platform.actor.LineActor", Deadly)
    with pytest.raises(LineStopped, match=rf"{STARTS} starts: its process ended without a word"):
        start_line("calm", replace(fleet, store=tmp_path))
    with pytest.raises(UnknownLine):
        line_handle("calm", tmp_path)


@pytest.mark.parametrize("asked", [{"gpus": 60.5, "device": "cuda"}, {"place": "nowhere"}])
def test_what_no_node_has_is_told_at_once(fleet: Fleet, asked: dict[str, Any]) -> None:
    impossible = replace(fleet, lines={"nowhere": parse_line("nowhere", asked)})
    with pytest.raises(ConfigError, match="line nowhere: no node has"):
        start_line("nowhere", impossible)


def test_a_dead_line_says_to_send_again(start: Any) -> None:
    handle = start("ended")
    ray.kill(handle)
    with pytest.raises(LineDown):
        insist(handle.status.remote, patience_s=0.5)


def test_a_line_that_was_ended_this_moment_can_be_started(fleet: Fleet, start: Any) -> None:
    for _ in range(2):
        ray.kill(start("ended"))
    assert answer(start("ended").status.remote())["state"] == "running"
