"""An id that senders use again names each of their images."""

import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from textwrap import dedent

import pytest
from everline.methods.errors import StoreError, UnknownImage
from everline.platform import log
from everline.platform.ids import COMPARED, MAX_ID, Ids, numbered, which
from everline.platform.line import Line
from everline.platform.log import LogReader, verify
from hypothesis import given, settings
from hypothesis import strategies as st

from .lines import SETTINGS, STREAM, Shelf, die, png, send


@given(st.lists(st.tuples(st.sampled_from(["a", "a#2", "b" * MAX_ID]), st.integers(0, 5)), max_size=40))
def test_each_image_of_an_id_has_one_name_of_its_own(sent: list[tuple[str, int]]) -> None:
    known: dict[str, int] = {}
    crcs: list[int] = []
    names: dict[tuple[str, int], str] = {}
    for id, content in sent:
        image = bytes([content])
        name, record = which(id, image, known, crcs.__getitem__)
        assert len(name) <= MAX_ID
        if record is None:
            assert name not in known
            known[name] = len(crcs)
            crcs.append(zlib.crc32(image))
        else:
            assert known[name] == record and crcs[record] == zlib.crc32(image)
        assert names.setdefault((id, content), name) == name


def test_of_many_images_with_one_id_the_newest_and_the_first_are_recognised() -> None:
    known = {numbered("a", n): n for n in range(1, 1001)}
    asked: list[int] = []

    def checksum(record: int) -> int:
        asked.append(record)
        return zlib.crc32(b"%d" % record)

    assert which("a", b"1000", known, checksum) == ("a#1000", 1000)
    assert which("a", b"1", known, checksum) == ("a", 1)
    asked.clear()
    assert which("a", b"another", known, checksum) == ("a#1001", None)
    assert len(asked) == COMPARED + 1


def test_other_bytes_with_a_known_id_are_another_image(opened: Callable[..., Line]) -> None:
    shelf = Shelf()
    line = opened(shelf)
    send(line, 0, 48)
    bad = png(1, defect=True)
    for again in (False, True):
        if again:
            die(line)
            line = opened(shelf)
        answer = line.inspect(bad, "i3")
        assert (answer.id, answer.sent_as, answer.verdict, answer.duplicate) == ("i3#2", "i3", "reject", again)
        first = line.inspect(STREAM[3], "i3")
        assert (first.id, first.sent_as, first.record, first.duplicate) == ("i3", None, 3, True)
    (record,) = line.writer.get([line.ids["i3#2"]])
    assert record.image == bad
    assert line.feedback("i3#2", "defect")["of"] == record.seq
    with pytest.raises(UnknownImage):
        line.feedback("i3#3", "defect")
    assert verify(line.folder).ok and verify(line.folder).unique == 49


def test_what_a_replica_judged_is_another_image_too_and_learned(opened: Callable[..., Line]) -> None:
    line = opened()
    send(line, 0, 30)
    answer = line.inspect(STREAM[40], "i3", judged=line._judge(STREAM[40]))
    assert (answer.id, answer.duplicate, answer.admitted) == ("i3#2", False, True)
    again = line.inspect(STREAM[40], "i3", judged=line._judge(STREAM[40]))
    assert (again.id, again.duplicate, again.admitted) == ("i3#2", True, False)
    assert [r.kind for r in LogReader(line.folder).records(answer.record - 1)] == ["image", "repeat"]
    stranger = [line.inspect(STREAM[n], "i3", known=False).id for n in (41, 42, 41)]
    assert stranger == ["unknown:i3", "unknown:i3#2", "unknown:i3"]


def test_an_image_whose_bytes_were_dropped_is_still_recognised(
    opened: Callable[..., Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    line = opened(settings=replace(SETTINGS, checkpoint_every=5, keep_images=5))
    send(line, 0, 24)
    assert line.writer.images_from > 3
    assert line.inspect(STREAM[2], "i2").duplicate
    assert line.inspect(STREAM[50], "i2").id == "i2#2"


def apart(code: str) -> tuple[str, str]:
    """What a process of its own that knows `Ids` writes to its outputs."""
    whole = "import resource\nfrom everline.platform.ids import Ids\n" + dedent(code)
    done = subprocess.run([sys.executable, "-c", whole], check=True, capture_output=True, text=True)
    return done.stdout, done.stderr


@settings(max_examples=30)
@given(st.lists(st.text(max_size=2), max_size=30), st.integers(0, 30))
def test_ids_on_the_disk_are_what_a_dictionary_of_them_would_be(sent: list[str], first: int) -> None:
    pairs = [(id, seq) for seq, id in enumerate(sent)]
    found = Ids(lambda: pairs[:first])
    for id, seq in pairs[first:]:
        found[id] = seq
    wanted = dict(pairs)
    assert found == wanted and len(found) == len(wanted)
    assert found.get("another") is None and "\ud800" not in found


def test_ids_take_some_mib_of_memory_however_many_there_are() -> None:
    resident = "int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20"
    grown, _ = apart(f"""
        before = {resident}
        found = Ids(lambda: ((f"part-{{n:060}}", n) for n in range(200_000)))
        for n in range(200_000, 300_000):
            found[f"part-{{n:060}}"] = n
        assert found[f"part-{{7:060}}"] == 7 and found[f"part-{{299_999:060}}"] == 299_999
        print({resident} - before)
    """)
    assert float(grown) < 20  # a dictionary: 60


def test_ids_for_which_the_disk_has_no_room_stay_in_memory_and_a_warning_says_so() -> None:
    out, said = apart("""
        grown = Ids()
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
        pairs = {f"part-{n:060}": n for n in range(50_000)}
        for id, seq in pairs.items():
            grown[id] = seq
        made = Ids(pairs.items)
        made["another"] = 7
        print(grown == pairs, made == {**pairs, "another": 7}, grown.failed + made.failed)
    """)
    assert out.split() == ["True", "True"]
    assert said.count("image ids cannot be written to ") == 2  # each tells once


def test_a_line_whose_ids_cannot_be_read_records_nothing_and_is_made_again_from_its_log(
    opened: Callable[..., Line],
) -> None:
    shelf = Shelf()
    line = opened(shelf)
    send(line, 0, 12)
    line.ids._db.close()  # as where the disk below it has died
    records = line.writer.next_seq
    with pytest.raises(StoreError, match=r"image ids .* cannot be read: .* Start the line again"):
        line.inspect(STREAM[3], "i3")
    assert line.writer.next_seq == records and line.unusable
    die(line)
    line = opened(shelf)
    assert line.inspect(STREAM[3], "i3").duplicate and not line.unusable


def test_what_is_not_the_disks_fault_is_said_as_it_is() -> None:
    def pairs() -> Iterator[tuple[str, int]]:
        yield "a", 0
        raise FileNotFoundError("shard")

    with pytest.raises(FileNotFoundError, match="shard"):
        Ids(pairs)
