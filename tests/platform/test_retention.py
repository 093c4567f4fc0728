"""Old images go and nothing else does: not a record, and no image that a recovery or a version still needs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from everline.methods.errors import Corrupt, SecondWriter
from everline.platform import log, manifest
from everline.platform.log import LogReader, LogWriter, verify
from everline.platform.manifest import Shard, latest
from everline.platform.record import Record
from everline.platform.retention import DAY_NS, Keep, bases, first_needed, may_go, to_merge
from hypothesis import given
from hypothesis import strategies as st

ALL = 10**6
numbers = st.lists(st.integers(0, 60), max_size=8, unique=True)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[LogWriter]:
    writer = LogWriter.open(tmp_path / "a")
    yield writer
    writer.release()


def filled(writer: LogWriter, count: int) -> list[Record]:
    first = writer.next_seq
    return [r for n in range(first, first + count) for r in writer.append([Record("image", f"i{n}", n, bytes([n]))])]


def read(folder: Path) -> list[Record]:
    return list(LogReader(folder).records())


def blank(records: list[Record], count: int) -> list[Record]:
    return [replace(r, image=None) if n < count else r for n, r in enumerate(records)]


@given(numbers, numbers, st.integers(0, 10))
def test_nothing_that_is_needed_is_ever_cut(checkpoints: list[int], watermarks: list[int], ahead: int) -> None:
    """Through any history: checkpoints and versions come, the images before `first_needed` go each time."""
    kept: set[int] = set()
    cut = 0
    for seq in sorted(checkpoints):
        live = [mark for mark in watermarks if mark <= seq + ahead][-3:]
        kept = bases(kept | {seq}, live)
        cut = max(cut, first_needed(kept, live))
        if cut:
            newest = sorted(kept)[-2:]
            assert len(newest) == 2 and all(one + 1 >= cut for one in newest)  # both lead to today without a cut image
    if cut and checkpoints:
        for mark in [m for m in watermarks if m <= max(checkpoints) + ahead][-3:]:
            base = [seq for seq in kept if seq <= mark]
            assert first_needed(kept, [mark]) == 0 or base


@given(numbers, numbers)
def test_a_version_can_be_made_again_after_the_cut(checkpoints: list[int], watermarks: list[int]) -> None:
    kept = bases(checkpoints, watermarks)
    needed = first_needed(kept, watermarks)
    assert kept <= set(checkpoints) and needed == first_needed(checkpoints, watermarks)  # pruning changes nothing
    assert len(kept) <= 2 + len(watermarks)
    for mark in watermarks:  # the images from behind its base on are there
        base = max((seq for seq in kept if seq <= mark), default=-1)
        assert needed <= base + 1


@pytest.mark.parametrize(
    ("keep", "gone"),
    [
        (Keep(), 0),
        (Keep(records=10), 2),
        (Keep(records=11), 1),
        (Keep(records=1), 3),
        (Keep(bytes=300), 1),
        (Keep(bytes=50), 4),
        (Keep(days=2), 2),
        (Keep(days=2, records=19), 2),
    ],
)
def test_an_image_goes_as_soon_as_one_bound_says_so(keep: Keep, gone: int) -> None:
    shards = [Shard(f"{n}", 5 * n, 5, 100, 0) for n in range(4)]
    went = 0
    for at in range(4):
        if not may_go(at, shards, keep, ALL, at * DAY_NS, 4 * DAY_NS + (-1 if keep.days else 0)):
            break
        shards[at] = replace(shards[at], cut=True, bytes=1)
        went += 1
    assert went == gone


def test_what_is_needed_stays_whatever_the_bounds() -> None:
    shards = [Shard("0", 0, 5, 100, 0), Shard("1", 5, 5, 100, 0)]
    assert may_go(0, shards, Keep(records=1), 5, 0, 0)
    assert not may_go(0, shards, Keep(records=1), 4, 0, 0)
    assert not may_go(0, [replace(shards[0], cut=True), shards[1]], Keep(records=1), 5, 0, 0)


@given(st.lists(st.tuples(st.integers(1, 10), st.booleans()), max_size=12))
def test_merging_ends_and_puts_together_only_what_fits(given_shards: list[tuple[int, bool]]) -> None:
    shards = [Shard(f"{n}", 0, count, count, 0, cut) for n, (count, cut) in enumerate(given_shards)]
    steps = 0
    while (run := to_merge(shards, 10, 100)) is not None:
        old = [shards[n] for n in run]
        assert len(old) > 1 and sum(s.count for s in old) <= 10 and len({s.cut for s in old}) == 1
        new = replace(old[0], count=sum(s.count for s in old), bytes=sum(s.bytes for s in old))
        shards[run.start : run.stop] = [new]
        steps += 1
    assert steps <= len(given_shards)
    assert sum(s.count for s in shards) == sum(count for count, _ in given_shards)


def test_old_images_go_and_all_else_stays(writer: LogWriter) -> None:
    records = filled(writer, 23)
    keep = Keep(records=9)
    assert [writer.trim(keep, ALL, 0) for _ in range(4)] == [True, True, False, False]
    wanted = blank(records, 10)
    assert read(writer.folder) == wanted and writer.get(list(range(23))) == wanted
    assert LogReader(writer.folder).ids() == {r.id: r.seq for r in records}
    assert verify(writer.folder).ok and verify(writer.folder).unique == 23
    assert writer.images_from == 10
    crcs = [
        c for file in LogReader(writer.folder).shards for b in file.columns("image_crc32") for c in b["image_crc32"]
    ]
    assert None not in crcs  # what the image was can still be proved
    writer.close()
    with LogWriter.open(writer.folder) as again:
        assert read(writer.folder) == wanted and again.images_from == 10


def test_age_counts_from_a_shards_newest_record(writer: LogWriter) -> None:
    filled(writer, 10)
    keep = Keep(days=1)
    assert not writer.trim(keep, ALL, DAY_NS + 4)
    assert writer.trim(keep, ALL, DAY_NS + 5)
    assert not writer.trim(keep, 9, DAY_NS + 50)  # needed


def test_short_shards_become_one(tmp_path: Path) -> None:
    records = []
    for _ in range(7):
        with LogWriter.open(tmp_path / "a") as writer:
            records += filled(writer, 1)
    with LogWriter.open(tmp_path / "a") as writer:
        assert [writer.merge() for _ in range(3)] == [True, True, False]
        assert [s.count for s in latest(writer.folder).shards] == [5, 2]
        assert read(writer.folder) == records and verify(writer.folder).ok


def test_readers_at_work_go_on(writer: LogWriter) -> None:
    records = filled(writer, 20)
    reader = LogReader(writer.folder)
    begun = reader.records()
    got = [next(begun)]
    while writer.trim(Keep(records=1), ALL, 0):
        pass
    filled(writer, 60)  # enough commits for the old files to go
    assert not (writer.folder / reader.shards[1].shard.file).exists()
    got += begun
    assert [r.seq for r in got] == list(range(20)) and got[:5] == records[:5]
    assert [r.id for r in reader.get([17, 3])] == ["i17", "i3"]
    assert len(LogReader(writer.folder).ids()) == 80


@pytest.mark.parametrize(
    "ask", [lambda log: log.count("image"), lambda log: len(log.ids()), lambda log: len(list(log.of_kind("image")))]
)
def test_what_readers_count_is_counted_again_where_shards_are_written_again_meanwhile(
    writer: LogWriter, ask: Callable[[LogReader], int]
) -> None:
    filled(writer, 20)
    reader = LogReader(writer.folder)
    while writer.trim(Keep(records=1), ALL, 0):
        pass
    filled(writer, 60)
    assert not (writer.folder / reader.shards[1].shard.file).exists()
    assert ask(reader) == 80


def test_old_files_stay_for_a_few_commits_and_then_go(writer: LogWriter) -> None:
    filled(writer, 10)
    old = writer.folder / latest(writer.folder).shards[0].file
    assert writer.trim(Keep(records=1), ALL, 0)
    assert old.exists()
    filled(writer, 5 * manifest.KEPT)
    assert not old.exists()
    kinds = sorted(p.name.split("-")[0] for p in writer.folder.iterdir())
    assert kinds == ["lock"] + ["manifest"] * 4 + ["segment"] + ["shard"] * 6


def test_damage_is_not_given_a_new_checksum(writer: LogWriter) -> None:
    filled(writer, 10)
    path = writer.folder / latest(writer.folder).shards[0].file
    data = bytearray(path.read_bytes())
    data[data.index(b"i0i1i2") + 1] ^= 1  # an id, which nothing but the checksum guards
    path.write_bytes(data)
    before = latest(writer.folder)
    with pytest.raises(Corrupt):
        writer.trim(Keep(records=1), ALL, 0)
    assert latest(writer.folder) == before
    filled(writer, 1)  # and the line goes on


def test_a_writer_that_was_overtaken_cuts_nothing(writer: LogWriter) -> None:
    import fcntl

    records = filled(writer, 10)
    fcntl.flock(writer._lock, fcntl.LOCK_UN)
    with LogWriter.open(writer.folder):
        with pytest.raises(SecondWriter):
            writer.trim(Keep(records=1), ALL, 0)
        assert read(writer.folder) == records


def test_manifests_say_nothing_of_cutting_where_nothing_was_cut(writer: LogWriter) -> None:
    filled(writer, 10)
    assert "cut" not in (writer.folder / manifest.manifest_name(latest(writer.folder).number)).read_text()
    assert writer.trim(Keep(records=1), ALL, 0)
    assert '"cut": true' in (writer.folder / manifest.manifest_name(latest(writer.folder).number)).read_text()
