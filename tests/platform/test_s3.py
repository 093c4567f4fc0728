"""S3 as a place for logs: lost answers, late ones, refusals and deaths at any request; addresses; who may do what."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from everline.methods.errors import ConfigError, StoreDown, StoreError
from everline.platform import log, s3
from everline.platform.log import LogReader, LogWriter, verify
from everline.platform.record import Record
from everline.platform.retention import Keep
from everline.platform.settings import parse_fleet
from everline.platform.volume import Away, S3Path, place_of, volume_of


class Died(BaseException):
    """The process is dead: nothing it asks from here on has an effect."""


class Wire:
    """Stands for boto3's client, counts requests and does something to one of them."""

    LATE = 3  # requests until one that was given up comes to be

    def __init__(self, client: Any, kind: str = "", at: int = -1) -> None:
        self.client, self.kind, self.at, self.calls = client, kind, at, 0
        self.struck = False  # whether the request came that something was to be done to
        self.later: list[tuple[int, Callable[[], Any]]] = []

    def __getattr__(self, name: str) -> Any:
        if name in ("meta", "_request_signer"):
            return getattr(self.client, name)
        if name == "get_paginator":
            return lambda what: Pages(self, self.client.get_paginator(what))
        return lambda **more: self.ask(name, lambda: getattr(self.client, name)(**more))

    def ask(self, name: str, do: Callable[[], Any]) -> Any:
        self.calls += 1
        for due, work in self.later:
            if due <= self.calls:
                self.later.remove((due, work))
                work()
        now, from_now = self.calls == self.at, self.calls >= self.at > 0
        self.struck |= now
        if self.kind.startswith("died") and from_now:
            if now and self.kind == "died after":
                do()
            raise Died
        if now and self.kind == "before":
            raise EndpointConnectionError(endpoint_url="injected")
        if now and self.kind == "busy":
            error = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
            raise ClientError(error, name)  # type: ignore[arg-type]
        if now and self.kind == "late" and name == "put_object":
            self.later.append((self.calls + self.LATE, lambda: quietly(do)))
            raise ReadTimeoutError(endpoint_url="injected")
        result = do()
        if now and self.kind == "after":
            raise ReadTimeoutError(endpoint_url="injected")
        return result


class Pages:
    def __init__(self, wire: Wire, real: Any) -> None:
        self.wire, self.real = wire, real

    def paginate(self, **more: Any) -> Any:
        return self.wire.ask("list", lambda: list(self.real.paginate(**more)))


def quietly(do: Callable[[], Any]) -> None:
    """Nobody waits for the answer any more."""
    with suppress(ClientError, FileExistsError):
        do()


def work(folder: S3Path) -> tuple[list[str], list[str]]:
    """Opens, appends, seals, closes, opens again, ...: ids that were acknowledged, and those that were not."""
    writer, acknowledged, refused = None, list[str](), list[str]()
    for n in range(9):
        try:
            writer = writer or LogWriter.open(folder)
            writer.append([Record("image", f"i{n}", image=bytes([n]) * 700)])
            acknowledged.append(f"i{n}")
            if n in (5, 7):
                with suppress(StoreError):
                    writer.merge()
                with suppress(StoreError):
                    writer.trim(Keep(records=3), n - 2, 0)
            if n == 4:
                writer.close()
                writer = None
        except Died:
            return acknowledged, [*refused, f"i{n}"]
        except StoreError:
            refused.append(f"i{n}")
            if writer and writer._failed:
                writer.release()
                writer = None
    return acknowledged, refused


def survivors(folder: S3Path) -> list[str]:
    """What a new process finds: it can open, read, verify and append."""
    with LogWriter.open(folder) as writer:
        records = list(LogReader(folder).records())
        found = [r.id for r in records]
        assert all(r.image is not None for r in records[-3:] if r.id.startswith("i"))
        writer.append([Record("image", "new", image=b"x")])
    assert [r.id for r in LogReader(folder).records()] == [*found, "new"]
    assert verify(folder).ok
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["before", "after", "busy", "late", "died", "died after"])
def test_a_fault_at_any_request_loses_nothing_and_invents_nothing(
    s3_store: S3Path, monkeypatch: pytest.MonkeyPatch, kind: str, sized: Callable[..., Any]
) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 3)
    real = s3._client()

    def wired(kind: str, at: int) -> Wire:
        wire = Wire(real, kind, at)
        monkeypatch.setattr(s3, "_client", lambda: wire)
        return wire

    wire = wired("", -1)
    assert work(s3_store / "count") == ([f"i{n}" for n in range(9)], [])
    assert None in [r.image for r in LogReader(s3_store / "count").records()]  # so images went, too
    step = sized(30, 1)
    struck = 0
    for at in range(1 + random.Random(kind).randrange(step), wire.calls, step):
        folder = s3_store / str(at)
        wire = wired(kind, at)
        acknowledged, refused = work(folder)
        for _, do in wire.later:
            do()
        wired("", -1)
        found = survivors(folder)
        assert [id for id in found if id in acknowledged] == acknowledged, f"request {at}"
        assert len(set(found)) == len(found)
        assert set(found) <= {*acknowledged, *refused}
        struck += wire.struck
    assert struck  # so faults did strike


@pytest.mark.parametrize("what", ["segment", "shard", "manifest"])
def test_a_write_that_comes_to_be_long_after_it_was_given_up_undoes_nothing(
    s3_store: S3Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 100 if what == "segment" else 3)
    real, late = s3.S3Volume._ask, list[Callable[[], Any]]()
    writer = LogWriter.open(s3_store / "a")
    writer.append([Record("image", "0")])

    def once(volume: s3.S3Volume, ask: str, name: str, **more: Any) -> Any:
        if ask == "put_object" and name.startswith(what) and not late:
            late.append(lambda: quietly(lambda: real(volume, ask, name, **more)))
            raise Away(5, "injected")
        return real(volume, ask, name, **more)

    monkeypatch.setattr(s3.S3Volume, "_ask", once)
    acknowledged = ["0"]
    for n in range(1, 5):  # a seal is due at the third
        try:
            writer.append([Record("image", str(n))])
            acknowledged.append(str(n))
        except StoreDown:
            assert what == "segment"
    assert len(acknowledged) > 3
    late[0]()
    assert [r.id for r in LogReader(s3_store / "a").records()] == acknowledged
    writer.release()  # it dies
    assert survivors(s3_store / "a") == acknowledged


WRITER = """
import random, sys
from everline.platform import log
from everline.platform.record import Record
from everline.platform.volume import place_of
log.SEAL_RECORDS = 4
writer = log.LogWriter.open(place_of(sys.argv[1]))
print('open', flush=True)
while True:
    n = writer.next_seq
    writer.append([Record('image', str(n), image=random.Random(n).randbytes(n * 37 % 3000))])
    print(n, flush=True)
"""


@pytest.mark.slow
def test_acknowledged_records_survive_sigkill(s3_store: S3Path) -> None:
    rng, acknowledged = random.Random(5), -1
    for kill in range(6):
        command = [sys.executable, "-c", WRITER, str(s3_store / "a")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            assert writer.stdout.readline() == "open\n"
            for _ in range(rng.randrange(9)):
                acknowledged = int(writer.stdout.readline())
            time.sleep(rng.random() * 0.1)
            writer.send_signal(signal.SIGKILL)
            for line in writer.stdout:
                acknowledged = int(line)
        found = list(LogReader(s3_store / "a").records())
        assert acknowledged < len(found) <= acknowledged + 2, f"kill {kill}"
        assert all(r.image == random.Random(n).randbytes(n * 37 % 3000) for n, r in enumerate(found))
        acknowledged = len(found) - 1
    assert acknowledged > 6


def test_a_store_that_does_not_answer_is_down_and_nothing_is_recorded(
    s3_store: S3Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LogWriter.open(s3_store / "a") as writer:
        writer.append([Record("image", "0")])
        with monkeypatch.context() as patch:
            patch.setattr(s3, "CONNECT_S", 0.2)
            patch.setattr(s3, "TRIES", 1)
            patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            for _ in range(2):
                with pytest.raises(StoreDown, match="sent again"):
                    writer.append([Record("image", "1")])
            with pytest.raises(StoreDown):
                LogReader(s3_store / "a")
        assert writer.append([Record("image", "1")])[0].seq == 1
    assert [r.id for r in LogReader(s3_store / "a").records()] == ["0", "1"]


def test_a_lost_answer_to_a_commit_is_found_out_by_asking_again(s3_store: S3Path) -> None:
    volume = volume_of(s3_store)
    for _ in range(2):
        volume.create("manifest-000000000001.json", b"mine", "")
    with pytest.raises(FileExistsError):
        volume.create("manifest-000000000001.json", b"another's", "")


def test_no_key_and_no_bucket_are_errors_and_no_outage(s3_store: S3Path) -> None:
    with pytest.raises(OSError, match="NoSuchBucket") as caught:
        volume_of(S3Path("no-such-bucket-here")).names()
    assert not isinstance(caught.value, Away)


def test_a_fleet_may_keep_its_logs_on_s3(tmp_path: Path) -> None:
    fleet = parse_fleet({"store": "s3://factory/lines/", "lines": {"a": {}}}, tmp_path)
    assert fleet.store == S3Path("factory", "lines") == place_of(str(fleet.store))
    assert str(fleet.store / "a") == "s3://factory/lines/a"
    assert fleet.tracking == f"sqlite:///{tmp_path}/everline-data/mlflow.db"


@pytest.mark.parametrize("text", ["s3://", "s3:///x", "s3://A/x", "s3://bucket/../x", "s3://bucket//x"])
def test_strange_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        place_of(text)
