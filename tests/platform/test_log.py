"""The log as its users see it: what is appended is there, in order, for every reader, after any restart."""

import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, Corrupt, SecondWriter, StoreError
from everline.platform import log, manifest, s3, segment, volume
from everline.platform.log import LogReader, LogWriter, line_folder, verify
from everline.platform.record import Record
from everline.platform.retention import Keep
from everline.platform.shard import ShardFile
from everline.platform.volume import Place, volume_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)


@contextmanager
def opening(store: Place) -> Iterator[Callable[..., LogWriter]]:
    """Give a function that opens the log; release the writers that are still open at the end."""
    writers: list[LogWriter] = []

    def make() -> LogWriter:
        writers.append(LogWriter.open(store / "a"))
        return writers[-1]

    yield make
    for writer in writers:
        writer.release()


@pytest.fixture
def opened(place: Place) -> Iterator[Callable[..., LogWriter]]:
    """Open the log on the disk and on S3: for what asks whether its volume is remote, and for races and takeovers."""
    with opening(place) as make:
        yield make


@pytest.fixture
def opened_here(tmp_path: Path) -> Iterator[Callable[..., LogWriter]]:
    """Open the log on the disk: S3 keeps the same promises (test_volume.py), and the log above does the same."""
    with opening(tmp_path) as make:
        yield make


def image(n: int) -> Record:
    return Record("image", f"i{n}", image=random.Random(n).randbytes(40), score=n / 3, data={"n": n})


def filled(writer: LogWriter, count: int) -> list[Record]:
    return [writer.append([image(writer.next_seq)])[0] for _ in range(count)]


def read(folder: Place) -> list[Record]:
    return list(LogReader(folder).records())


def edited(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_other_users_of_the_machine_cannot_look_into_a_new_store(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        LogWriter.open(tmp_path / "store" / "a").close()
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("store", "store/a")] == [0o750, 0o750]


def test_a_whole_life(place: Place, opened: Callable[..., LogWriter]) -> None:
    """Append, seal, die, go on, close, merge, trim; then read in every way."""
    assert not log.has_log(place / "a")
    writer = opened()
    got = writer.append([image(0), Record("task", "größe/∞", image=b""), Record("note", "")])
    got += filled(writer, 9)
    writer.release()
    with opened() as writer:
        assert read(writer.folder) == got
        got += filled(writer, 2)
    writer = opened()
    assert (writer.epoch, writer.next_seq, read(writer.folder)) == (3, 14, got)
    assert [writer.merge(), writer.merge()] == [True, False]
    assert [s.count for s in manifest.latest(writer.folder).shards] == [5, 5, 4]
    assert [writer.trim(Keep(records=8), 14, 0) for _ in range(2)] == [True, False]
    got = [replace(r, image=None) for r in got[:5]] + got[5:]
    got += filled(writer, 9)
    assert writer.images_from == 5

    reader = LogReader(writer.folder)
    assert list(reader.records()) == got
    assert list(reader.records(9, images=False)) == [replace(r, image=None) for r in got[10:]]
    assert reader.get([22, 0, 12, 5]) == writer.get([22, 0, 12, 5]) == [got[n] for n in (22, 0, 12, 5)]
    assert reader.ids() == {r.id: r.seq for r in got if r.kind == "image"}
    assert list(reader.of_kind("note")) == [got[2]]
    assert (reader.count("image"), reader.count("note")) == (21, 1)
    assert verify(writer.folder) == log.Verified(23, 21, 21, True)
    writer.close()
    with opened() as writer:
        assert (writer.epoch, read(writer.folder)) == (4, got)
    kinds = {name.split("-")[0] for name in volume_of(writer.folder).names()}
    assert kinds - {"lock"} == {"manifest", "segment", "shard"}
    assert manifest.strangers(writer.folder, manifest.latest(writer.folder)) == []


def test_gives_numbers_and_gives_records_back(opened_here: Callable[..., LogWriter]) -> None:
    with opened_here() as writer:
        got = writer.append([image(0), Record("task", "größe/∞", image=b"")]) + writer.append([Record("note", "")])
        assert [r.seq for r in got] == [0, 1, 2]
        assert writer.append([]) == []
    assert read(writer.folder) == got
    assert [r.image for r in got[1:]] == [b"", None]


def test_an_empty_log_and_no_log_read_as_empty(tmp_path: Path, opened_here: Callable[..., LogWriter]) -> None:
    assert len(LogReader(tmp_path / "nowhere")) == len(LogReader(opened_here().folder)) == 0
    assert volume_of(tmp_path).folders() == ["a"]
    assert (log.has_log(tmp_path / "nowhere"), log.has_log(tmp_path / "a")) == (False, True)


@pytest.mark.parametrize("count", [4, 5, 6, 10, 23])
def test_seals_shards_of_the_set_length(opened_here: Callable[..., LogWriter], count: int) -> None:
    writer = opened_here()
    got = filled(writer, count)
    found = manifest.latest(writer.folder)
    assert [s.count for s in found.shards] == [5] * (count // 5)
    assert read(writer.folder) == got
    writer.close()
    assert manifest.latest(writer.folder).sealed == count
    assert read(writer.folder) == got


def test_seals_when_bytes_are_many(opened_here: Callable[..., LogWriter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEAL_BYTES", 1000)
    writer = opened_here()
    writer.append([Record("image", "large", image=bytes(1000))])
    assert manifest.latest(writer.folder).sealed == 1


def test_leaves_no_file_behind(opened_here: Callable[..., LogWriter]) -> None:
    writer = opened_here()
    filled(writer, 23)
    writer.close()
    kinds = sorted(name.split("-")[0] for name in volume_of(writer.folder).names() if name != "lock")
    assert kinds == ["manifest"] * 4 + ["segment"] + ["shard"] * 5


def test_goes_on_where_it_stopped(opened_here: Callable[..., LogWriter]) -> None:
    got = []
    for epoch, ending in enumerate([LogWriter.close, LogWriter.release] * 3, 1):
        writer = opened_here()
        assert (writer.epoch, writer.next_seq) == (epoch, len(got))
        got += filled(writer, 4)
        ending(writer)
        assert read(writer.folder) == got
    assert verify(writer.folder) == log.Verified(24, 24, 24, True)


def test_gets_any_records_by_number(opened_here: Callable[..., LogWriter]) -> None:
    writer = opened_here()
    got = filled(writer, 23)
    reader = LogReader(writer.folder)
    wanted = [random.Random(3).randrange(23) for _ in range(60)] + [22, 0]
    assert reader.get(wanted) == [got[n] for n in wanted]
    for strange in (-1, 23):
        with pytest.raises(ConfigError, match="there are 23"):
            reader.get([0, strange])


@pytest.mark.parametrize("after", [-1, 0, 4, 5, 18, 22, 40])
def test_reads_behind_a_number_with_or_without_images(opened_here: Callable[..., LogWriter], after: int) -> None:
    got = filled(writer := opened_here(), 23)[after + 1 :]
    reader = LogReader(writer.folder)
    assert list(reader.records(after)) == got
    assert list(reader.records(after, images=False)) == [replace(r, image=None) for r in got]


def test_ids_are_those_of_images(opened_here: Callable[..., LogWriter]) -> None:
    writer = opened_here()
    for n in range(6):
        writer.append([Record("task", "t"), image(n)])
    assert LogReader(writer.folder).ids() == {f"i{n}": 2 * n + 1 for n in range(6)}


def test_a_reader_sees_more_after_refresh_and_not_before(opened: Callable[..., LogWriter]) -> None:
    writer = opened()
    got = filled(writer, 3)
    reader = LogReader(writer.folder)
    begun = reader.records()
    next(begun)
    got += filled(writer, 9)
    assert len(reader) == 3
    reader.refresh()
    assert (len(reader), list(reader.records())) == (12, got)
    assert len([*begun]) in (2, 11)  # never with a gap


@pytest.mark.parametrize("data", [{"x": float("nan")}, {"x": {1}}])
def test_what_is_no_json_is_refused_and_nothing_is_written(opened_here: Callable[..., LogWriter], data: dict) -> None:
    writer = opened_here()
    with pytest.raises(ConfigError):
        writer.append([image(0), Record("note", "x", data=data)])
    assert read(writer.folder) == []
    filled(writer, 6)
    assert len(read(writer.folder)) == 6


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "-a", "a\n", "a\0", "ü", "a" * 65, "_a"]
)
def test_hostile_line_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="line"):
        line_folder(tmp_path, name)


def test_plain_line_names_are_folders(tmp_path: Path) -> None:
    assert line_folder(tmp_path, "Line-1_a.b") == tmp_path / "Line-1_a.b"


def test_a_second_writer_is_refused_while_the_first_lives(opened_here: Callable[..., LogWriter]) -> None:
    first = opened_here()
    filled(first, 2)
    with pytest.raises(SecondWriter):
        opened_here()
    filled(first, 2)
    first.release()
    assert opened_here().next_seq == 4


def run(script: str, *args: str) -> str:
    command = [sys.executable, "-c", script, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_a_second_writer_in_another_process_is_refused(opened_here: Callable[..., LogWriter]) -> None:
    script = """
import sys
from pathlib import Path
from everline.methods.errors import SecondWriter
from everline.platform.log import LogWriter
heavy = sorted({'torch', 'mlflow', 'ray'} & set(sys.modules))
try:
    LogWriter.open(Path(sys.argv[1]))
except SecondWriter:
    print('refused', heavy)
"""
    assert run(script, str(opened_here().folder)) == "refused []"  # and the log loads without torch, MLflow and Ray


def thought_dead(writer: LogWriter) -> None:
    """Its lock is gone, as when another machine takes over; itself it knows nothing of it."""
    if writer._lock >= 0:
        fcntl.flock(writer._lock, fcntl.LOCK_UN)


@pytest.mark.parametrize(
    ("place", "before", "after"),
    [
        *(("local", before, after) for before in (0, 3, 4) for after in (0, 1, 30)),
        *(("s3", before, after) for before, after in ((4, 0), (0, 1), (3, 15))),  # 15: old manifests are pruned
    ],
    indirect=["place"],
)
def test_a_fenced_writer_is_refused_and_damages_nothing(
    opened: Callable[..., LogWriter], before: int, after: int
) -> None:
    old = opened()
    got = filled(old, before)
    thought_dead(old)
    new = opened()
    got += filled(new, after)
    for _ in range(2):  # and it goes on saying why
        with pytest.raises(SecondWriter, match="taken over this log"):
            old.append([image(99)])
    assert old.moved and not old.failed
    old.close()
    got += filled(new, 7)
    assert read(new.folder) == got
    assert verify(new.folder).ok


# steps of an append or a seal: (where, name, which call of it)
STEPS = [(log, "fenced", 9), (log.shard, "write", 1), (segment, "create", 1), (log, "remove", 1)]
DISK_STEPS = [*STEPS, (log, "fenced", 8), (log, "commit", 1)]  # on S3 an append looks once
DISK_STEPS += [(volume.LocalGrowing, "append", 4), (os, "fdatasync", 4), (os, "link", 1)]
S3_STEPS = [*STEPS, (s3.S3Growing, "append", 5), (s3.S3Volume, "create", 1)]


@pytest.mark.parametrize(
    ("place", "where", "name", "at", "newer"),
    [
        *(("local", *step, newer) for step in DISK_STEPS for newer in (1, 6, 40)),
        *(("s3", *step, 1) for step in S3_STEPS),
        *(("s3", *step, 15) for step in (S3_STEPS[0], *S3_STEPS[-2:])),  # the old writer's next manifest is pruned
    ],
    indirect=["place"],
)
def test_overtaken_at_any_moment_of_an_append_or_a_seal(
    monkeypatch: pytest.MonkeyPatch, opened: Callable[..., LogWriter], where: object, name: str, at: int, newer: int
) -> None:
    old, acknowledged = opened(), list[Record]()
    thought_dead(old)
    real, calls, new = getattr(where, name), 0, list[LogWriter]()

    def overtake(*args: object, **more: object) -> object:
        nonlocal calls, acknowledged
        calls += 1
        if calls == at:
            new.append(opened())
            acknowledged += filled(new[0], newer)
        return real(*args, **more)

    monkeypatch.setattr(where, name, overtake)
    try:
        for n in range(12):
            acknowledged += old.append([Record("image", f"old{n}")])
        pytest.fail("never noticed")
    except StoreError:
        old.close()
    acknowledged += filled(new[0], 9)
    found = read(new[0].folder)
    assert all(found[r.seq] == r for r in acknowledged)
    assert len(found) <= len(acknowledged) + 1  # one append may be there and not be acknowledged
    assert verify(new[0].folder).records == len(found)


def test_a_torn_end_is_reported_then_cut(
    opened_here: Callable[..., LogWriter], caplog: pytest.LogCaptureFixture
) -> None:
    writer = opened_here()
    got = filled(writer, 3)
    writer.release()
    (path,) = writer.folder.glob("segment-*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    checked = verify(writer.folder)
    assert (checked.records, checked.ok) == (2, False)
    assert "did not end" in checked.problems[0]
    again = opened_here()
    assert "cut" in caplog.text
    assert again.next_seq == 2
    assert read(writer.folder) == got[:2]
    assert verify(writer.folder).ok


def test_a_writer_gives_back_what_is_sealed_and_what_is_open(
    opened_here: Callable[..., LogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened_here()
    got = filled(writer, 13)
    monkeypatch.setattr(segment, "Tail", None)  # the open segment is not read from the disk for it
    assert writer.get([12, 0, 9, 10, 4, 5, 0]) == [got[n] for n in (12, 0, 9, 10, 4, 5, 0)]
    assert writer.get([]) == []


@pytest.mark.parametrize("seq", [-1, 7])
def test_a_writer_has_no_other_records(opened_here: Callable[..., LogWriter], seq: int) -> None:
    writer = opened_here()
    filled(writer, 7)
    with pytest.raises(ConfigError, match=f"no record {seq}; there are 7"):
        writer.get([0, seq])


def test_a_closed_writer_gives_nothing_back(opened_here: Callable[..., LogWriter]) -> None:
    with opened_here() as writer:
        filled(writer, 1)
    with pytest.raises(StoreError, match="closed"):
        writer.get([0])


def test_a_writer_finds_damaged_and_missing_shards(opened_here: Callable[..., LogWriter]) -> None:
    writer = opened_here()
    filled(writer, 11)
    first, second = sorted(writer.folder.glob("shard-*"))
    data = bytearray(first.read_bytes())
    data[data.index(image(2).image or b"")] ^= 1
    first.write_bytes(data)
    second.unlink()
    with pytest.raises(Corrupt, match="checksum"):
        writer.get([2])
    with pytest.raises(Corrupt, match="missing"):
        writer.get([7])
    assert [r.id for r in writer.get([0, 10])] == ["i0", "i10"]


def test_damage_before_the_end_refuses_to_open_and_changes_nothing(opened_here: Callable[..., LogWriter]) -> None:
    writer = opened_here()
    filled(writer, 4)
    writer.release()
    (path,) = writer.folder.glob("segment-*")
    edited(path, 50)
    before = {p.name: p.read_bytes() for p in writer.folder.iterdir()}
    with pytest.raises(Corrupt):
        opened_here()
    assert {p.name: p.read_bytes() for p in writer.folder.iterdir()} == before
    with pytest.raises(Corrupt):
        LogReader(writer.folder)
    assert not verify(writer.folder).ok


@pytest.mark.parametrize("kind", ["shard", "segment", "manifest"])
def test_any_damaged_file_is_found(opened_here: Callable[..., LogWriter], tmp_path: Path, kind: str) -> None:
    writer = opened_here()
    filled(writer, 13)
    writer.release()
    rng = random.Random(5)
    for n in range(25):
        copy = tmp_path / f"copy{n}"
        shutil.copytree(writer.folder, copy)
        path = max(copy.glob(f"{kind}-*")) if kind == "manifest" else rng.choice(sorted(copy.glob(f"{kind}-*")))
        edited(path, rng.randrange(path.stat().st_size))
        assert not verify(copy).ok


@pytest.fixture(scope="module")
def left_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a segment and four manifests, as a process leaves them that dies."""
    folder = tmp_path_factory.mktemp("left") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "SEAL_RECORDS", 5)
        writer = LogWriter.open(folder)
        filled(writer, 13)
        writer.append([image(13), Record("feedback", "word", data={"of": 2, "label": "ok"})])
        writer.release()
    return folder


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_flipped_bit_of_any_file_that_counts_is_found(left_log: Path, data: st.DataObject) -> None:
    """All shards, the segment, and the newest manifest: older ones are there for readers still at work alone."""
    newest = manifest.latest(left_log)
    names = [*(s.file for s in newest.shards), *newest.segments, manifest.manifest_name(newest.number)]
    path = left_log / data.draw(st.sampled_from(names))
    whole = path.read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << bit
    try:
        path.write_bytes(flipped)
        ShardFile.forget(left_log)
        assert not verify(left_log).ok
    finally:
        path.write_bytes(whole)
        ShardFile.forget(left_log)


@pytest.mark.parametrize("kind", ["shard", "segment"])
def test_a_missing_file_is_corruption(opened: Callable[..., LogWriter], kind: str) -> None:
    writer = opened()
    filled(writer, 7)
    writer.release()
    volume = volume_of(writer.folder)
    volume.remove(volume.names(kind)[0])
    with pytest.raises(Corrupt, match="missing"):
        LogReader(writer.folder)
    assert not verify(writer.folder).ok
    assert not verify(writer.folder, quick=True).ok
    if kind == "segment":
        with pytest.raises(Corrupt, match="missing"):
            opened()


def test_an_image_that_is_there_twice_is_reported(opened_here: Callable[..., LogWriter]) -> None:
    writer = opened_here()
    writer.append([image(1), image(2), image(1)])
    found = verify(writer.folder)
    assert (found.inspected, found.unique, found.ok) == (3, 2, False)


def test_a_reader_beside_a_writer_sees_a_whole_prefix(opened: Callable[..., LogWriter]) -> None:
    writer = opened()
    acknowledged, done = 0, False
    count = 150 if isinstance(writer.folder, Path) else 25

    def write() -> None:
        nonlocal acknowledged, done
        for _ in range(count):
            filled(writer, 1)
            acknowledged = writer.next_seq
        done = True

    thread = threading.Thread(target=write)
    thread.start()
    reader, seen = LogReader(writer.folder), 0
    while not done:
        at_least = acknowledged
        reader.refresh()
        ids = [r.id for r in reader.records(images=seen % 2 == 0)]
        assert ids == [f"i{n}" for n in range(len(ids))]
        assert len(ids) == len(reader) >= max(at_least, seen)
        seen = len(ids)
    thread.join()
    assert verify(writer.folder).records == count


def test_a_reader_starts_again_when_a_segment_is_sealed_under_it(
    opened: Callable[..., LogWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = opened()
    filled(writer, 4)
    real, calls = segment.Tail.read_on, 0

    def read_late(tail: segment.Tail) -> segment.End:
        nonlocal calls
        calls += 1
        if calls == 1:
            filled(writer, 2)
        return real(tail)

    monkeypatch.setattr(segment.Tail, "read_on", read_late)
    assert len(LogReader(writer.folder)) == 6


def test_verify_beside_a_writer_finds_no_fault(opened: Callable[..., LogWriter]) -> None:
    writer = opened()
    thread = threading.Thread(target=lambda: filled(writer, 60 if isinstance(writer.folder, Path) else 15))
    thread.start()
    while thread.is_alive():
        assert verify(writer.folder).ok
    thread.join()


FIXTURE = Path(__file__).parents[1] / "fixtures" / "log-format-1"


def test_logs_of_format_1_are_read_for_ever(tmp_path: Path) -> None:
    wanted = json.loads((FIXTURE / "expected.json").read_text())
    copy = tmp_path / "log"
    shutil.copytree(FIXTURE / "log", copy)
    for _ in range(2):  # as it was left, then taken over and sealed by the code of today
        assert verify(copy).ok
        got = [{**r.head(), "image": None if r.image is None else r.image.hex()} for r in LogReader(copy).records()]
        assert got == wanted
        LogWriter.open(copy).close()


def test_documentation_reads_a_log_with_plain_arrow(opened_here: Callable[..., LogWriter]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text("utf-8")
    example = text.split("```python\n")[1].split("```")[0]
    assert "everline" not in example
    with opened_here() as writer:
        filled(writer, 12)
    printed = run(example, str(writer.folder)).splitlines()
    assert printed[0] == "12 records"
    assert printed[1].startswith("i0 40 bytes")


small = st.builds(
    Record,
    kind=st.sampled_from(["image", "task", "publish"]),
    id=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    image=st.none() | st.binary(max_size=30),
    time_ns=st.integers(-(2**63), 2**63 - 1),
    score=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    version=st.none() | st.integers(0, 9),
    verdict=st.none() | st.sampled_from(["pass", "reject"]),
    admitted=st.none() | st.booleans(),
    data=st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(max_size=3), max_size=2),
)


class Model(RuleBasedStateMachine):
    """The log against a list."""

    @initialize(seal=st.integers(1, 9))
    def start(self, seal: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(log, "SEAL_RECORDS", seal)
        self.holder = tempfile.TemporaryDirectory()
        self.folder = Path(self.holder.name) / "log"
        self.writer = LogWriter.open(self.folder)
        self.reader = LogReader(self.folder)
        self.list: list[Record] = []

    @rule(batch=st.lists(small, max_size=5))
    def append(self, batch: list[Record]) -> None:
        got = self.writer.append(batch)
        self.list += [replace(r, seq=len(self.list) + n) for n, r in enumerate(batch)]
        assert got == self.list[len(self.list) - len(batch) :]

    @rule()
    def close_and_open(self) -> None:
        self.writer.close()
        self.writer = LogWriter.open(self.folder)

    @rule(torn=st.binary(max_size=40))
    def crash(self, torn: bytes) -> None:
        """Dies with part of an append written."""
        self.writer.release()
        path = self.folder / manifest.latest(self.folder).segments[-1]
        frame = segment.encode([image(0)], path.read_bytes()[8:16])  # its marker
        with path.open("ab") as file:
            file.write(frame[: len(torn)] if len(torn) % 2 else torn)
        self.writer = LogWriter.open(self.folder)

    @rule()
    def overtake(self) -> None:
        old = self.writer
        thought_dead(old)
        self.writer = LogWriter.open(self.folder)
        with pytest.raises(SecondWriter):
            old.append([image(0)])
        old.release()

    @rule(data=st.data())
    def get(self, data: st.DataObject) -> None:
        self.reader.refresh()
        if self.list:
            wanted = data.draw(st.lists(st.integers(0, len(self.list) - 1), max_size=6))
            assert self.reader.get(wanted) == [self.list[n] for n in wanted]
            assert self.writer.get(wanted) == [self.list[n] for n in wanted]

    @invariant()
    def same(self) -> None:
        if hasattr(self, "reader"):
            self.reader.refresh()
            assert list(self.reader.records()) == self.list
            assert self.reader.ids() == {r.id: r.seq for r in self.list if r.kind == "image"}

    def teardown(self) -> None:
        if hasattr(self, "holder"):
            self.writer.release()
            self.patch.undo()
            self.holder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
