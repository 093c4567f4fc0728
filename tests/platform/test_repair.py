"""What a log has lost is noticed before anything goes on, and a manifest can be made again from what is left."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from everline.methods.errors import Corrupt, SecondWriter
from everline.platform import log, manifest, segment
from everline.platform.line import Line
from everline.platform.log import LogReader, LogWriter, has_log, locked, verify
from everline.platform.record import Record
from everline.platform.repair import LOST, lost_end, repair
from everline.platform.retention import Keep
from everline.platform.shard import ShardFile
from everline.platform.volume import Place, volume_of
from hypothesis import given, settings
from hypothesis import strategies as st

from .lines import Shelf, die, send


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)


def filled(folder: Place, count: int) -> LogWriter:
    """A log that its writer left as a process does that dies."""
    writer = LogWriter.open(folder)
    fill(writer, count)
    writer.release()
    return writer


def fill(writer: LogWriter, count: int) -> None:
    for _ in range(count):
        n = writer.next_seq
        writer.append([Record("image", f"i{n}", image=b"image %d" % n, data={"n": n})])


def read(folder: Place) -> list[Record]:
    return list(LogReader(folder).records())


def lose(folder: Place, prefix: str, keep: int = 0) -> None:
    """Removes the newest files whose names begin so, all but some."""
    volume = volume_of(folder)
    for name in sorted(volume.names(prefix))[keep:]:
        volume.remove(name)


def test_a_log_without_its_manifests_is_refused_and_keeps_every_file(place: Place) -> None:
    filled(place / "a", 13)
    lose(place / "a", "manifest-")
    before = sorted(volume_of(place / "a").names())
    with pytest.raises(Corrupt, match=r"its manifests are missing; records lie in .*log repair"):
        LogWriter.open(place / "a")
    with pytest.raises(Corrupt, match="manifests are missing"):
        LogReader(place / "a")
    assert has_log(place / "a")
    assert "manifests are missing" in verify(place / "a").problems[0]
    assert sorted(volume_of(place / "a").names()) == before


def test_its_manifest_is_made_again_from_what_is_left(place: Place) -> None:
    filled(place / "a", 13)
    filled(place / "a", 4)
    before = read(place / "a")
    lose(place / "a", "manifest-")
    done = repair(place / "a", {}, accept_loss=False, by="me")
    assert (done.records, done.missing, done.unreadable) == (17, [], [])
    assert read(place / "a") == before
    filled(place / "a", 4)
    assert read(place / "a")[:17] == before
    assert verify(place / "a").ok


def test_a_whole_log_is_left_as_it_is(place: Place) -> None:
    filled(place / "a", 8)
    before = sorted(volume_of(place / "a").names())
    assert repair(place / "a", {}, accept_loss=True, by="me").files == []
    assert sorted(volume_of(place / "a").names()) == before


def test_a_first_opening_that_died_before_its_first_manifest_is_no_loss(place: Place) -> None:
    writer = LogWriter.open(place / "a")
    writer.release()
    lose(place / "a", "manifest-")
    assert not has_log(place / "a")
    filled(place / "a", 3)
    assert len(read(place / "a")) == 3


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_manifests_are_lost_no_record_is_lost_in_silence(data: st.DataObject) -> None:
    """A log's life, then its newest manifests are gone: it is refused, or whole; and repaired it is whole."""
    folder = Path(tempfile.mkdtemp()) / "a"
    try:
        for _ in range(data.draw(st.integers(1, 4))):
            with_writer(folder, data)
        before = read(folder)
        there = len(volume_of(folder).names("manifest-"))
        lose(folder, "manifest-", keep=data.draw(st.integers(0, there - 1)))
        try:
            filled(folder, 0)
        except Corrupt:
            assert not verify(folder).ok
            assert repair(folder, {}, accept_loss=False, by="").missing == []
        assert [strip(record) for record in read(folder)] == [strip(record) for record in before]
        filled(folder, 7)
        assert [strip(record) for record in read(folder)][: len(before)] == [strip(record) for record in before]
        assert verify(folder).ok
    finally:
        ShardFile.forget(folder)
        shutil.rmtree(folder.parent)


def with_writer(folder: Path, data: st.DataObject) -> None:
    writer = LogWriter.open(folder)
    for step in data.draw(st.lists(st.sampled_from(["fill", "merge", "trim"]), max_size=5)):
        if step == "fill":
            fill(writer, data.draw(st.integers(1, 9)))
        elif step == "merge":
            writer.merge()
        else:
            writer.trim(Keep(records=1), writer.next_seq, 0)
    if data.draw(st.booleans()):
        writer.close()
    writer.release()


def strip(record: Record) -> tuple[int, str]:
    """Images that retention dropped may be back."""
    return record.seq, record.id


def test_a_segment_that_no_manifest_names_is_not_removed(tmp_path: Path) -> None:
    """As where the newest manifests are lost, and the files they replaced have come back."""
    folder = tmp_path / "a"
    filled(folder, 4)
    kept = {path: path.read_bytes() for kind in ("manifest-*", "segment-*") for path in folder.glob(kind)}
    filled(folder, 4)
    before = read(folder)
    lose(folder, "manifest-")
    for path, content in kept.items():
        path.write_bytes(content)
    with pytest.raises(Corrupt, match=r"no manifest names segment-.*from number 4 on.*log repair"):
        LogWriter.open(folder)
    assert not verify(folder).ok
    repair(folder, {}, accept_loss=False, by="me")
    assert read(folder) == before


def test_on_s3_a_late_append_is_left_alone_until_the_log_has_its_number(s3_store: Place) -> None:
    """An append that was given up may be carried out when its segment is not named any more."""
    folder = s3_store / "a"
    filled(folder, 4)
    name = "segment-000000000000-00000001-00000000.log"
    late, marker = segment.create(folder / name)
    late.append(segment.encode([Record("image", "late", image=b"x", seq=4)], marker))
    parts = sorted(volume_of(folder).names(name))
    filled(folder, 0)
    assert sorted(volume_of(folder).names(name)) == parts
    filled(folder, 3)
    filled(folder, 0)
    assert volume_of(folder).names(name) == []
    assert [record.id for record in read(folder)] == [f"i{n}" for n in range(7)]


def test_what_no_file_holds_is_said_and_accepted_only_in_words(place: Place) -> None:
    filled(place / "a", 17)
    shards = sorted(volume_of(place / "a").names("shard-"))
    volume_of(place / "a").remove(shards[1])
    ShardFile.forget(place / "a")
    lose(place / "a", "manifest-")
    with pytest.raises(Corrupt, match=r"no file holds the records 5 to 9.*everline log repair a --accept-loss"):
        repair(place / "a", {}, accept_loss=False, by="me")
    done = repair(place / "a", {}, accept_loss=True, by="me")
    assert done.missing == [(5, 9)]
    found = read(place / "a")
    assert [record.kind for record in found] == ["image"] * 5 + [LOST] * 5 + ["image"] * 7
    assert {record.data["by"] for record in found if record.kind == LOST} == {"me"}
    assert verify(place / "a").ok


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "a", 12)
    path = sorted((tmp_path / "a").glob("shard-*"))[0]
    path.write_bytes(path.read_bytes()[:200])
    lose(tmp_path / "a", "manifest-")
    with pytest.raises(Corrupt, match=f"records 0 to 4. {path.name}"):
        repair(tmp_path / "a", {}, accept_loss=False, by="me")


def test_an_append_after_the_next_segment_was_begun_was_never_acknowledged(tmp_path: Path) -> None:
    """A writer that was fenced off may still write a frame."""
    folder = tmp_path / "a"
    old = LogWriter.open(folder)
    fill(old, 2)
    old_segment = folder / manifest.latest(folder).segments[-1]
    left = old_segment.read_bytes()
    old.release()
    filled(folder, 2)
    late = segment.encode([Record("image", "late", image=b"x", seq=2)], left[8:16])
    old_segment.write_bytes(left + late)
    lose(folder, "manifest-")
    repair(folder, {}, accept_loss=False, by="me")
    assert [record.id for record in read(folder)] == ["i0", "i1", "i2", "i3"]


def test_a_log_that_is_written_is_not_repaired(tmp_path: Path) -> None:
    filled(tmp_path / "a", 3)
    lock = locked(tmp_path / "a")
    with pytest.raises(SecondWriter):
        repair(tmp_path / "a", {}, accept_loss=False, by="me")
    assert lock


def cut_off(store: Path, records: int) -> None:
    """The log as it was after so many records, as where a disk gave back an old state; checkpoints stay."""
    folder = store / "a"
    kept = read(folder)[:records]
    for kind in ("manifest-*", "shard-*", "segment-*"):
        for path in folder.glob(kind):
            path.unlink()
    ShardFile.forget(folder)
    writer = LogWriter.open(folder)
    writer.append(kept)
    writer.release()


def test_a_log_shorter_than_its_checkpoints_is_refused_until_the_loss_is_accepted(
    tmp_path: Path, opened: Callable[..., Line]
) -> None:
    line = opened()
    send(line, 0, 50)
    line.close()
    last = max(line.checkpoints.numbers())
    cut_off(tmp_path / "store", 20)
    with pytest.raises(Corrupt, match=f"ends before record 20, but checkpoint {last} has seen record {last}"):
        opened()
    folder = tmp_path / "store" / "a"
    with pytest.raises(Corrupt, match="everline log repair a --accept-loss"):
        repair(folder, {}, accept_loss=False, by="me")
    assert repair(folder, {}, accept_loss=True, by="me").missing == [(20, last)]
    again = opened()
    assert again.writer.next_seq == 21
    assert [record.data["by"] for record in LogReader(folder).of_kind(LOST)] == ["me"]
    assert send(again, 20, 21)[0].duplicate is False
    die(again)


def test_a_log_shorter_than_what_a_version_has_learned_is_refused(tmp_path: Path, opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf)
    send(line, 0, 60)
    line.close()
    shutil.rmtree(tmp_path / "store")  # as where a disk is not mounted
    mark = shelf.watermarks[-1]
    with pytest.raises(Corrupt, match=f"ends before record 0, but version {shelf.alias} in MLflow has seen record"):
        opened(shelf)
    repair(tmp_path / "store" / "a", shelf.live(), accept_loss=True, by="me")
    die(opened(shelf))
    assert lost_end(LogReader(tmp_path / "store" / "a"), shelf.live()) is None
    later = {shelf.alias + 1: mark}
    assert lost_end(LogReader(tmp_path / "store" / "a"), later), "only what was known then is written off"


def test_the_words_in_the_record_are_plain(tmp_path: Path) -> None:
    filled(tmp_path / "a", 3)
    repair(tmp_path / "a", {7: 9}, accept_loss=True, by="anna")
    (record,) = LogReader(tmp_path / "a").of_kind(LOST)
    assert json.loads(json.dumps(record.data)) == {
        "first": 3,
        "last": 9,
        "witness": "version 7 in MLflow",
        "version": 7,
        "by": "anna",
    }
