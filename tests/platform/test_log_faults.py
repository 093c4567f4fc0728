"""Killed at random moments, failed at every file operation: what was acknowledged is there, and nothing else."""

import errno
import io
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytest
from everline.methods.errors import NoSpace, StoreError
from everline.platform import log, volume
from everline.platform.log import LogReader, LogWriter, verify
from everline.platform.manifest import latest
from everline.platform.record import Record
from everline.platform.retention import Keep

ROUND = 10  # kills of one log; then another begins, so that looking at it stays cheap

# A process that forks writers on request and tells each append that was acknowledged, until it is killed.
WRITERS = """
import os, random, sys
from pathlib import Path
from everline.platform import log
from everline.platform.record import Record, to_batch
log.SEAL_RECORDS = 7
to_batch([Record('image', 'warm')])  # Arrow looks for pandas the first time, which takes a second: once, not in each
os.fsync = os.fdatasync = lambda file: None  # a killed process takes nothing from the system's memory with it
for line in sys.stdin:
    seed, folder = line.split()
    child = os.fork()
    if not child:
        rng = random.Random(int(seed))
        writer = log.LogWriter.open(Path(folder))
        while True:
            numbers = range(writer.next_seq, writer.next_seq + rng.randint(1, 3))
            writer.append([Record('image', str(n), image=random.Random(n).randbytes(n * 37 % 3000)) for n in numbers])
            os.write(1, f'{numbers[-1]}\\n'.encode())
    os.write(1, f'pid {child}\\n'.encode())
    os.waitpid(child, 0)
    os.write(1, b'dead\\n')
"""


def test_acknowledged_records_survive_sigkill(
    tmp_path: Path, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], sized: Callable[..., Any]
) -> None:
    kills = pytestconfig.getoption("--kills") or sized(50, 300)
    seed = pytestconfig.getoption("--kill-seed")
    seed = secrets.randbits(32) if seed is None else seed
    with capsys.disabled():
        sys.stdout.write(f"\n{kills} kills, --kill-seed {seed} ")
    rng, acknowledged, in_all = random.Random(seed), -1, 0
    with subprocess.Popen(
        [sys.executable, "-c", WRITERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as writers:
        assert writers.stdin and writers.stdout
        for kill in range(kills):
            folder = tmp_path / str(kill // ROUND)
            if kill % ROUND == 0:
                acknowledged = -1
            writers.stdin.write(f"{rng.randrange(2**32)} {folder}\n")
            acknowledged = killed(writers.stdout, rng, acknowledged)
            found = list(LogReader(folder).records())
            assert acknowledged < len(found) <= acknowledged + 4, f"kill {kill} of --kill-seed {seed}"
            assert all(r.image == random.Random(n).randbytes(n * 37 % 3000) for n, r in enumerate(found))
            in_all += len(found) - 1 - acknowledged
            acknowledged = len(found) - 1  # not acknowledged, but there: it stays
            if kill % ROUND == ROUND - 1 or kill == kills - 1:
                LogWriter.open(folder).close()
                assert verify(folder).ok and verify(folder).unique == acknowledged + 1
                in_all += acknowledged
        writers.stdin.close()
    assert in_all > kills


def killed(told: IO[str], rng: random.Random, acknowledged: int) -> int:
    """Kills the writer that was just asked for at a random moment; the last record that it acknowledged."""
    pid, patience = 0, rng.choice((0.1, 0.3, 0.9))
    for line in iter(told.readline, ""):
        if line.startswith("pid"):
            pid = int(line.split()[1])
        elif line.startswith("dead"):
            return acknowledged
        else:
            acknowledged = int(line)
        if pid and rng.random() < patience:
            time.sleep(rng.random() * 0.002)
            os.kill(pid, signal.SIGKILL)
            pid = 0
    raise AssertionError("the process that makes writers has ended")


class Died(BaseException):
    """The process is dead: nothing it does from here on has an effect."""


class Disk:
    """Stands between the log and the disk, counts operations and makes one (or all from one on) fail."""

    PATHS = ("open", "link", "unlink", "rename", "stat", "listdir")
    FILES = ("write", "fsync", "fdatasync", "ftruncate")
    GROWING = ("open", "link", "rename", "write", "fdatasync")  # what a full disk refuses

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.real = str(folder), {n: getattr(os, n) for n in (*self.PATHS, *self.FILES, "close")}
        self.calls, self.fail_at, self.kind = 0, -1, ""
        self.handles: set[int] = set()
        self.dropped: list[io.IOBase] = []  # what an operation gave to a caller who never got it
        for name in self.PATHS + self.FILES:
            patch.setattr(os, name, self._wrapped(name))
        patch.setattr(os, "close", self._close)
        patch.setattr(Path, "open", lambda path, *args, **more: self._open_path(path, *args, **more))

    def arm(self, kind: str, at: int) -> None:
        self.calls, self.kind, self.fail_at = 0, kind, at

    def _wrapped(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if name in self.PATHS and not str(args[0]).startswith(self.folder):
                return self.real[name](*args, **more)
            if name in ("fsync", "fdatasync"):  # the real ones take their time and change nothing that can be seen
                return self.pass_by(name, lambda: None)
            if name == "write" and self.kind == "short" and len(args[1]) > 1:
                args = (args[0], args[1][: max(1, len(args[1]) // 2)])
            operation = "open to read" if name == "open" and not args[1] & os.O_CREAT else name
            result = self.pass_by(operation, lambda: self.real[name](*args, **more))
            if name == "open":
                self.handles.add(result)
            return result

        return call

    def pass_by(self, name: str, do: Callable[[], Any]) -> Any:
        self.calls += 1
        now, later = self.calls == self.fail_at, self.calls >= self.fail_at > 0
        if self.kind in ("died", "died after") and later:
            if now and self.kind == "died after":
                self._drop(name, do())
            raise Died
        if self.kind == "full" and later and name in self.GROWING:
            raise OSError(errno.ENOSPC, "no space left on device")
        if self.kind in ("EIO", "ENOSPC") and now:
            raise OSError(getattr(errno, self.kind), "injected")
        result = do()
        if self.kind == "EIO after" and now:
            self._drop(name, result)
            raise OSError(errno.EIO, "injected")
        return result

    def _drop(self, name: str, result: Any) -> None:
        """Takes care of what a caller is never given."""
        if isinstance(result, io.IOBase):
            self.dropped.append(result)
        elif name.startswith("open"):
            self.handles.add(result)

    def _close(self, handle: int) -> None:
        if self.kind.startswith("died") and self.calls >= self.fail_at > 0:
            raise Died
        self.handles.discard(handle)
        self.real["close"](handle)

    def _open_path(self, path: Path, mode: str = "r", *args: Any, **more: Any) -> Any:
        if not str(path).startswith(self.folder):
            return open(path, mode, *args, **more)
        if "r" in mode:
            return self.pass_by("read", lambda: open(path, mode, *args, **more))
        raw = self.pass_by("open", lambda: Raw(str(path), mode.replace("b", "")))
        raw.disk = self
        return io.BufferedWriter(raw, 512)

    def restart(self) -> None:
        """The process is gone, and with it its files and locks."""
        self.arm("", -1)
        for handle in self.handles:
            self.real["close"](handle)
        self.handles.clear()
        for file in self.dropped:
            file.close()
        self.dropped.clear()


class Raw(io.FileIO):
    disk: Disk

    def write(self, data: Any) -> int:
        return self.disk.pass_by("write", lambda: super(Raw, self).write(data))


@contextmanager
def disk_for(folder: Path) -> Iterator[Disk]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "SEAL_RECORDS", 3)
        disk = Disk(folder, patch)
        yield disk
        disk.restart()


def work(folder: Path) -> Iterator[tuple[Record, bool]]:
    """Opens, appends, seals, closes, opens again, ...: each record, and whether it was acknowledged."""
    writer: LogWriter | None = None
    for n in range(12):
        record = Record("image", f"i{n}", image=bytes([n]) * 700)
        try:
            writer = writer or LogWriter.open(folder)
            writer.append([record])
            yield record, True
            if n % 4 == 3:
                tidy(writer)
            if n % 5 == 4:
                writer.close()
                writer = None
        except Died:
            yield record, False
            return
        except StoreError:
            if writer and writer._failed:
                writer.release()
                writer = None
            yield record, False
    if writer:
        writer.release()


def tidy(writer: LogWriter) -> None:
    """Merges, and drops images, what can be: no failure of an append, whatever it comes to."""
    for step in (writer.merge, lambda: writer.trim(Keep(records=4), writer.next_seq - 4, 0)):
        with suppress(StoreError):
            step()


def survivors(folder: Path) -> list[str]:
    """What a new process finds: it can open, read, verify and append."""
    with LogWriter.open(folder) as writer:
        records = list(LogReader(folder).records())
        found = [r.id for r in records]
        assert all(r.image == bytes([int(r.id[1:])]) * 700 for r in records[-4:]), "an image that was to be kept"
        assert all(r.image in (None, bytes([int(r.id[1:])]) * 700) for r in records)
        writer.append([Record("image", "new", image=b"x")])
    assert [r.id for r in LogReader(folder).records()] == [*found, "new"]
    assert verify(folder).ok
    return found


def operations(folder: Path) -> int:
    with disk_for(folder) as disk:
        disk.arm("count", -1)
        assert all(acknowledged for _, acknowledged in work(folder))
        return disk.calls


@pytest.mark.parametrize("kind", ["ENOSPC", "EIO", "EIO after", "died", "died after"])
def test_a_fault_at_any_operation_loses_nothing_and_invents_nothing(tmp_path: Path, kind: str) -> None:
    count = operations(tmp_path / "count")
    assert count > 250
    images = [r.image for r in LogReader(tmp_path / "count").records()]
    assert None in images and len(latest(tmp_path / "count").shards) < 5  # so it was trimmed and merged
    refused = 0
    for at in range(1, count + 1):
        folder = tmp_path / str(at)
        with disk_for(folder) as disk:
            disk.arm(kind, at)
            done = list(work(folder))
            disk.restart()
            found = survivors(folder)
        acknowledged = [record.id for record, ok in done if ok]
        last = [done[-1][0].id] if kind.startswith("died") and not done[-1][1] else []  # written, not yet answered
        assert found in (acknowledged, acknowledged + last), f"operation {at}"
        refused += len(done) - len(acknowledged)
    assert refused > 10  # so faults did strike


def test_short_writes_are_continued(tmp_path: Path) -> None:
    with disk_for(tmp_path / "a") as disk:
        disk.arm("short", -1)
        assert all(ok for _, ok in work(tmp_path / "a"))
        disk.restart()
        assert len(survivors(tmp_path / "a")) == 12


def test_a_full_disk_refuses_and_works_again_when_there_is_room(tmp_path: Path) -> None:
    for at in range(1, 60):
        folder = tmp_path / str(at)
        with disk_for(folder) as disk:
            writer = LogWriter.open(folder)
            disk.arm("full", at)
            acknowledged = []
            for n in range(12):
                if n == 8:
                    disk.arm("", -1)  # somebody made room
                try:
                    acknowledged += [r.id for r in writer.append([Record("image", f"i{n}", image=bytes([n]) * 700)])]
                except NoSpace:
                    assert n < 8
            assert acknowledged[-4:] == ["i8", "i9", "i10", "i11"]
            writer.close()
            assert survivors(folder) == acknowledged


@pytest.mark.parametrize("where", ["write_all", "fdatasync"])
def test_an_interrupted_append_gives_its_numbers_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner = os if where == "fdatasync" else volume
    real = getattr(owner, where)

    def interrupted(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    with LogWriter.open(tmp_path / "a") as writer:
        writer.append([Record("image", "0")])
        with monkeypatch.context() as patch:
            patch.setattr(owner, where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.append([Record("image", "lost")])
        assert writer.append([Record("image", "1")])[0].seq == 1
    assert [r.id for r in LogReader(tmp_path / "a").records()] == ["0", "1"]


def test_an_interrupt_at_any_line_of_an_append_leaves_a_log_that_opens(tmp_path: Path) -> None:
    for line in range(200):  # of `append` itself, until there are no more
        writer = LogWriter.open(tmp_path / str(line))
        interrupted = interrupt_at(line, lambda writer=writer: writer.append([Record("image", "lost")]))
        after = [r.id for n in range(2) for r in writer.append([Record("image", str(n))])]
        writer.release()  # it dies before anything is sealed
        LogWriter.open(tmp_path / str(line)).close()
        assert [r.id for r in LogReader(tmp_path / str(line)).records() if r.id != "lost"] == after
        if not interrupted:
            break
    assert line > 10 and not interrupted


def interrupt_at(line: int, call: Callable[[], object]) -> bool:
    """Calls, with a KeyboardInterrupt before the line-th line that `append` runs; whether it came to that."""
    ran = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal ran
        if frame.f_code is not LogWriter.append.__code__:
            return None
        if event == "line":
            ran += 1
            if ran > line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_append_that_cannot_be_taken_back_closes_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "injected")

    writer = LogWriter.open(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(StoreError):
            writer.append([Record("image", "i0", image=bytes(700))])
    with pytest.raises(StoreError, match="open it again"):
        writer.append([Record("image", "i0", image=bytes(700))])
    assert "the log is closed" in writer.failed  # a line that sees this starts again
    writer.close()
    assert survivors(tmp_path / "a") in ([], ["i0"])
