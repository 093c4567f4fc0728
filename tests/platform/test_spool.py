"""S3 is away: a line's records wait on the local disk, within a limit, and come to the log in order, once."""

import io
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from everline.methods.conformance import images
from everline.methods.errors import Corrupt, NoSpace, SecondWriter, StoreDown
from everline.pipelines.fleet.undisturbed import Kept, undisturbed
from everline.platform import s3, segment, spool
from everline.platform.line import Line
from everline.platform.log import LogReader, LogWriter, verify
from everline.platform.record import Record
from everline.platform.settings import LineSettings, parse_fleet
from everline.platform.spool import SpooledWriter, open_log, spool_folder
from everline.platform.volume import S3Path
from PIL import Image

from ..conftest import until

MIB = 2**20


class Switch:
    """Stands for boto3's client; while `down` or `busy` nothing reaches S3, and every request may take a while."""

    def __init__(self, client: Any) -> None:
        self.client, self.down, self.busy, self.takes_s = client, False, False, 0.0

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.client, name)
        if name in ("meta", "_request_signer"):
            return found
        time.sleep(self.takes_s)
        if self.down:
            raise EndpointConnectionError(endpoint_url="injected")
        if self.busy:
            error = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
            raise ClientError(error, name)  # type: ignore[arg-type]
        return found


@pytest.fixture
def switch(s3_store: S3Path, monkeypatch: pytest.MonkeyPatch) -> Switch:
    made = Switch(s3._client())
    monkeypatch.setattr(s3, "_client", lambda: made)
    monkeypatch.setattr(spool, "PAUSE_S", 0.02)
    monkeypatch.setattr(spool, "PAUSE_MAX_S", 0.1)
    monkeypatch.setattr(spool, "CLOSE_S", 0.2)
    return made


@pytest.fixture
def opened(s3_store: S3Path, tmp_path: Path) -> Iterator[Callable[..., SpooledWriter]]:
    """Opens the line's log, as often as asked to; lets go of all of it in the end."""
    writers: list[SpooledWriter] = []

    def once(limit: int = MIB, folder: S3Path | None = None) -> SpooledWriter:
        writer = open_log(folder or s3_store / "a", tmp_path / "waits", limit)
        assert isinstance(writer, SpooledWriter)
        writers.append(writer)
        return writer

    yield once
    for writer in writers:
        writer.release()


def image(n: int, size: int = 100) -> Record:
    return Record("image", f"i{n}", time_ns=n, image=bytes([n]) * size, score=n / 7, admitted=True, data={"n": n})


def logged(writer: Any) -> list[str]:
    assert verify(writer.folder).ok
    return [record.id for record in LogReader(writer.folder).records()]


@pytest.mark.parametrize("kind", ["down", "busy"])
def test_an_append_in_an_outage_waits_on_the_disk_and_goes_out_in_order(
    switch: Switch, opened: Callable[..., SpooledWriter], tmp_path: Path, kind: str
) -> None:
    writer = opened()
    writer.append([image(0)])
    setattr(switch, kind, True)
    for n in range(1, 6):
        assert [record.seq for record in writer.append([image(n)])] == [n]
    assert (writer.spooled, writer.next_seq) == (5, 6)
    assert [record.id for record in writer.get([4, 0, 2])] == ["i4", "i0", "i2"]
    setattr(switch, kind, False)
    until(lambda: writer.spooled == 0)
    until(lambda: not list((tmp_path / "waits").glob("spool-*")))
    writer.append([image(6), image(7)])
    assert logged(writer) == [f"i{n}" for n in range(8)]
    assert list(LogReader(writer.folder).records()) == writer.get(range(8))


def test_a_full_spool_refuses_and_takes_more_once_s3_is_back(
    switch: Switch, opened: Callable[..., SpooledWriter]
) -> None:
    writer = opened(limit=3000)
    switch.down = True
    for n in range(2):
        writer.append([image(n, 1000)])
    with pytest.raises(StoreDown, match="are full"):
        writer.append([image(2, 1000)])
    assert (writer.spooled, writer.next_seq) == (2, 2)
    switch.down = False
    until(lambda: writer.spooled == 0)
    writer.append([image(2, 1000)])
    assert logged(writer) == ["i0", "i1", "i2"]


def test_no_room_for_any_refuses_as_a_log_without_a_spool(switch: Switch, s3_store: S3Path, tmp_path: Path) -> None:
    writer = open_log(s3_store / "a", tmp_path / "waits", 0)
    switch.down = True
    with pytest.raises(StoreDown):
        writer.append([image(0)])
    assert not (tmp_path / "waits").exists() and writer.spooled == 0
    switch.down = False
    assert writer.append([image(0)])[0].seq == 0
    writer.release()


def test_a_slow_store_is_not_waited_for_twice(
    switch: Switch, opened: Callable[..., SpooledWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened()
    monkeypatch.setattr(spool, "SLOW_S", 0.1)
    switch.takes_s = 0.2
    writer.append([image(0)])  # tells that it is slow
    for n in range(1, 20):
        writer.append([image(n)])
    assert writer.spooled > 10  # nineteen appends took less than two requests
    switch.takes_s = 0.0
    until(lambda: writer.spooled == 0)
    assert logged(writer) == [f"i{n}" for n in range(20)]


def test_what_waits_survives_its_process(
    switch: Switch, opened: Callable[..., SpooledWriter], s3_store: S3Path
) -> None:
    writer = opened()
    writer.append([image(0)])
    switch.down = True
    for n in range(1, 4):
        writer.append([image(n)])
    writer.release()
    with pytest.raises(StoreDown):
        opened()
    switch.down = False
    again = opened()
    assert (again.spooled, again.next_seq) == (0, 4)
    assert logged(again) == ["i0", "i1", "i2", "i3"]


def test_closing_in_an_outage_leaves_what_waits_to_the_next_who_opens(
    switch: Switch, opened: Callable[..., SpooledWriter], caplog: pytest.LogCaptureFixture
) -> None:
    writer = opened()
    switch.down = True
    writer.append([image(0), image(1)])
    with caplog.at_level(logging.WARNING):
        writer.close()
    assert "2 records wait in" in caplog.text
    switch.down = False
    assert logged(opened()) == ["i0", "i1"]


def test_an_answer_that_was_lost_does_not_make_two_of_one(
    switch: Switch, opened: Callable[..., SpooledWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part was written, nobody heard of it, and the same record waits on the disk."""
    writer = opened()
    real = s3.S3Volume.write

    def lost(self: s3.S3Volume, name: str, data: bytes) -> None:
        real(self, name, data)
        switch.down = True
        raise s3.Away(5, "injected")

    with monkeypatch.context() as patched:
        patched.setattr(s3.S3Volume, "write", lost)
        writer.append([image(0)])
    writer.append([image(1)])
    assert writer.spooled == 2
    writer.release()
    switch.down = False
    assert logged(opened()) == ["i0", "i1"]


def test_images_that_another_machine_does_not_know_of_follow_what_it_wrote(
    switch: Switch, opened: Callable[..., SpooledWriter]
) -> None:
    writer = opened()
    writer.append([image(0)])
    switch.down = True
    writer.append([image(1), image(2)])
    writer.append([Record("rollback", "rollback-3", time_ns=3, version=4)])
    writer.release()
    switch.down = False
    with LogWriter.open(writer.folder) as other:  # it has no such disk
        other.append([image(2), image(9), replace(image(7), id="i1")])
    for _ in range(2):  # also if it is brought twice
        kept = {path: path.read_bytes() for path in spool_files(writer)}
        again = opened()
        assert logged(again) == ["i0", "i2", "i9", "i1", "i1#2", "late-3-3"]
        late = LogReader(writer.folder).get([4, 5])
        assert [record.kind for record in late] == ["image", "late"]
        assert late[0].data == {"n": 1, "late": 1, "sent_as": "i1"} and late[0].image == image(1).image
        assert late[1].data == {"kind": "rollback"}
        again.release()
        for path, data in kept.items():
            path.write_bytes(data)


def spool_files(writer: SpooledWriter) -> list[Path]:
    return list(writer._spool.glob("spool-*"))


def test_who_was_overtaken_keeps_what_waits_and_says_so(switch: Switch, opened: Callable[..., SpooledWriter]) -> None:
    writer = opened()
    writer.append([image(0)])
    switch.down = True
    with writer._sending:  # nothing is sent on before the other has come
        writer.append([image(2)])
        switch.down = False
        with LogWriter.open(writer.folder) as other:
            other.append([image(1)])
    until(lambda: writer._lost is not None)
    with pytest.raises(SecondWriter):
        writer.append([image(3)])
    writer.close()
    assert logged(opened()) == ["i0", "i1", "i2"]


def test_a_flipped_byte_in_what_waits_is_found(switch: Switch, opened: Callable[..., SpooledWriter]) -> None:
    writer = opened()
    switch.down = True
    writer.append([image(0)])
    writer.append([image(1)])
    writer.release()
    (path,) = spool_files(writer)
    data = bytearray(path.read_bytes())
    data[segment.START + 40] ^= 1
    path.write_bytes(data)
    switch.down = False
    with pytest.raises(Corrupt):
        opened()
    assert path.exists()


def test_a_torn_end_and_a_file_without_a_record_are_no_obstacle(
    switch: Switch, opened: Callable[..., SpooledWriter]
) -> None:
    writer = opened()
    switch.down = True
    writer.append([image(0)])
    writer.release()
    (path,) = spool_files(writer)
    path.write_bytes(path.read_bytes() + b"torn")
    path.with_name("spool-000000000001.log").write_bytes(b"EVER")
    switch.down = False
    again = opened()
    assert logged(again) == ["i0"] and not spool_files(again)


def test_a_full_disk_is_said_and_undoes_nothing(
    switch: Switch, opened: Callable[..., SpooledWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened()
    switch.down = True
    writer.append([image(0)])

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", full)
        with pytest.raises(NoSpace):
            writer.append([image(1)])
    assert writer.append([image(2)])[0].seq == 1
    switch.down = False
    until(lambda: writer.spooled == 0)
    assert logged(writer) == ["i0", "i2"]


def test_two_processes_of_a_machine_do_not_share_a_spool(opened: Callable[..., SpooledWriter]) -> None:
    opened()
    with pytest.raises(SecondWriter):
        opened()


def test_only_a_log_on_s3_spools(tmp_path: Path, s3_store: S3Path) -> None:
    with LogWriter.open(tmp_path / "a") as writer:
        assert writer.spooled == 0
    local = open_log(tmp_path / "b", tmp_path / "waits", MIB)
    assert isinstance(local, LogWriter)
    local.close()
    plain = {"store": "s3://bucket/x", "lines": {"a": {}}}
    assert parse_fleet(plain, tmp_path).spool == tmp_path / "everline-spool"
    assert parse_fleet({**plain, "spool": "/var/spool/e"}, tmp_path).spool == Path("/var/spool/e")
    assert parse_fleet({"lines": {"a": {}}}, tmp_path).spool is None
    assert spool_folder(tmp_path, s3_store, "a") != spool_folder(tmp_path, S3Path("other"), "a")


def parts(count: int) -> list[tuple[bytes, str]]:
    found = []
    for n, pixels in enumerate(images(count, 64)):
        file = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
        found.append((file.getvalue(), f"part-{n}"))
    return found


@pytest.mark.slow
def test_a_line_goes_on_in_an_outage_and_is_what_it_is_without_one(
    switch: Switch, s3_store: S3Path, tmp_path: Path
) -> None:
    settings = LineSettings(
        method="lemo", params={"size": 64}, checkpoint_every=10, false_reject_rate=0.05, probation=1
    )
    shelf, sent = Kept(), parts(90)
    line = Line("a", settings, s3_store, shelf, tmp_path)
    try:
        for n, (data, id) in enumerate(sent):
            switch.down = 20 <= n < 50 or n >= 80
            if n == 65:
                until(lambda: not line.writer.spooled)
            assert line.inspect(data, id).record >= n
            if n == 40:
                assert line.inspect(data, id).duplicate and line.status()["spooled"] > 15
        line.settle()
        line.writer.release()  # it dies with a few in the spool
        switch.down = False
        line = Line("a", settings, s3_store, shelf, tmp_path)
        ids = [record.id for record in LogReader(line.folder).records() if record.kind == "image"]
        assert ids == [id for _, id in sent]
        assert line.status()["spooled"] == 0
        assert line.digest() == undisturbed("a", settings, sent, tmp_path / "alone")
    finally:
        line.writer.release()


CHILD = """
import random, sys, time
from everline.platform import s3, spool
from everline.platform.record import Record
from everline.platform.spool import open_log
from everline.platform.volume import place_of
from pathlib import Path
from botocore.exceptions import EndpointConnectionError

real, rng = s3._client(), random.Random(int(sys.argv[3]))
spool.PAUSE_S = spool.PAUSE_MAX_S = 0.01

class Weather:
    def __getattr__(self, name):
        found = getattr(real, name)
        if name not in ("meta", "_request_signer") and rng.random() < 0.4:
            raise EndpointConnectionError(endpoint_url="injected")
        return found

writer = open_log(place_of(sys.argv[1]), Path(sys.argv[2]), 2**20)
weather = Weather()
s3._client = lambda: weather
print("ready", flush=True)
for n in range(10**6):
    id = f"{sys.argv[3]}-{n}"
    writer.append([Record("image", id, image=b"x" * 500)])
    print(id, flush=True)
    time.sleep(0.005 * rng.random())
"""


@pytest.mark.slow
def test_what_was_acknowledged_in_bad_weather_survives_sigkill(s3_store: S3Path, tmp_path: Path) -> None:
    folder, waits, acknowledged = s3_store / "a", tmp_path / "waits", list[str]()
    rng, left = random.Random(7), 0
    for life in range(6):
        words = [sys.executable, "-c", CHILD, str(folder), str(waits), str(life)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout and child.stdout.readline() == "ready\n"
            acknowledged += [child.stdout.readline().strip() for _ in range(rng.randrange(5, 60))]
            child.send_signal(signal.SIGKILL)
            acknowledged += [line.strip() for line in child.stdout if line.endswith("\n")]
        left += any(path.stat().st_size > segment.START for path in waits.glob("spool-*"))
    assert left  # so there was something to bring
    writer = open_log(folder, waits, MIB)
    found = logged(writer)
    writer.release()
    assert [id for id in found if id in set(acknowledged)] == acknowledged
    assert len(found) == len(set(found)) <= len(acknowledged) + 6
