"""Manifests: creating one is the commit; damaged and hostile ones are refused."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import Corrupt, SecondWriter
from everline.platform import manifest
from everline.platform.manifest import Manifest, Shard, commit, fenced, latest, manifest_name, numbers, strangers
from everline.platform.volume import Place, volume_of


def path_of(folder: Path, number: int) -> Path:
    return folder / manifest_name(number)


SHARD = Shard("shard-000000000000-00000001-0123abcd.arrow", 0, 64, 1000, 2**32 - 1)
SEGMENT = "segment-000000000064-00000001-0123abcd.log"
ONE = Manifest(1, 1, (SHARD,), (SEGMENT,))


def test_a_folder_without_one_has_number_zero(tmp_path: Path) -> None:
    assert latest(tmp_path) == latest(tmp_path / "missing") == Manifest()


def test_what_is_committed_is_the_latest(tmp_path: Path) -> None:
    commit(tmp_path, ONE)
    assert latest(tmp_path) == ONE
    commit(tmp_path, ONE.next(epoch=2))
    assert latest(tmp_path) == replace(ONE, number=2, epoch=2)


def test_a_taken_number_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    commit(tmp_path, ONE)
    with pytest.raises(SecondWriter):
        commit(tmp_path, replace(ONE, epoch=9))
    assert latest(tmp_path) == ONE
    assert volume_of(tmp_path).names() == [manifest_name(1)]


def test_a_few_manifests_are_kept(tmp_path: Path) -> None:
    now = ONE
    for _ in range(9):
        commit(tmp_path, now)
        now = now.next()
    assert numbers(tmp_path) == [6, 7, 8, 9]
    assert len(volume_of(tmp_path).names()) == 4


def test_a_writer_is_fenced_once_somebody_commits_after_it(place: Place) -> None:
    commit(place, ONE)
    assert not fenced(place, ONE)
    newer = ONE
    for _ in range(8):
        newer = newer.next()
        commit(place, newer)
        assert fenced(place, ONE)
        assert not fenced(place, newer)


def test_a_commit_long_overtaken_changes_nothing(place: Place) -> None:
    newer = ONE
    for _ in range(9):
        commit(place, newer)
        newer = newer.next(epoch=2)
    late = ONE.next()  # its number was free again: it is pruned at once, and its writer is fenced
    commit(place, late)
    assert latest(place).number == 9
    assert fenced(place, late)


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    commit(tmp_path, ONE)
    path = path_of(tmp_path, 1)
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(Corrupt):
            latest(tmp_path)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_torn_one_is_refused(tmp_path: Path, length: int) -> None:
    commit(tmp_path, ONE)
    path = path_of(tmp_path, 1)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(Corrupt):
        latest(tmp_path)


def hostile(folder: Path, **changes: Any) -> None:
    """A manifest with a right checksum over wrong values."""
    shard = {"file": SHARD.file, "first": 0, "count": 64, "bytes": 1000, "crc32": 5}
    plain = {"format": 1, "number": 1, "epoch": 1, "shards": [shard], "segments": [SEGMENT]}
    plain["shards"] = [{**shard, **changes.pop("shard", {})}]
    plain |= changes
    crc = zlib.crc32(json.dumps(plain, sort_keys=True).encode())
    path_of(folder, 1).write_text(json.dumps({**plain, "crc32": crc}))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"number": 7},
        {"epoch": -1},
        {"epoch": "1"},
        {"epoch": True},
        {"epoch": 2**63},
        {"segments": ["../segment-000000000064-00000001-0123abcd.log"]},
        {"segments": ["/etc/passwd"]},
        {"segments": [SHARD.file]},
        {"segments": [7]},
        {"segments": None},
        {"shards": 5},
        {"shards": [[]]},
        {"shards": [{"file": SHARD.file}]},
        {"shard": {"file": "../../x"}},
        {"shard": {"file": SEGMENT}},
        {"shard": {"file": None}},
        {"shard": {"file": SHARD.file + "\n"}},
        {"shard": {"first": 1}},
        {"shard": {"count": 0}},
        {"shard": {"count": -64}},
        {"shard": {"count": 10**30}},
        {"shard": {"count": 1.5}},
        {"shard": {"bytes": -1}},
        {"shard": {"crc32": "0"}},
        {"shard": {"strange": 1}},
    ],
)
def test_hostile_values_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    hostile(tmp_path)
    assert latest(tmp_path).number == 1
    hostile(tmp_path, **changes)
    with pytest.raises(Corrupt):
        latest(tmp_path)


@pytest.mark.parametrize("text", ["", "5", '"x"', "[]", "null", "{}", "[" * 100_000, "\0", '{"crc32": {}}'])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path_of(tmp_path, 1).write_text(text)
    with pytest.raises(Corrupt, match="not a manifest"):
        latest(tmp_path)


def test_a_huge_one_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path, ONE)
    monkeypatch.setattr(manifest, "MAX_BYTES", 100)
    with pytest.raises(Corrupt, match="larger than 100"):
        latest(tmp_path)


@pytest.mark.parametrize("name", ["manifest-٠٠٠٠٠٠٠٠٠٠٠٩.json", "manifest-9.json", "manifest-000000000009.json.tmp"])
def test_other_names_are_no_manifests(tmp_path: Path, name: str) -> None:
    commit(tmp_path, ONE)
    (tmp_path / name).write_text("{}")
    assert latest(tmp_path) == ONE


def test_files_of_a_newer_writer_are_no_strangers(tmp_path: Path) -> None:
    old = ["segment-000000000001-00000001-00000000.log", ".shard-000000000000-00000001-00000000.tmp"]
    new = ["segment-000000000064-00000002-00000000.log", ".manifest-000000000002-00000002-00000000.tmp"]
    for name in [*old, *new, SEGMENT, SHARD.file, "lock", "notes.txt"]:
        (tmp_path / name).touch()
    assert sorted(strangers(tmp_path, ONE)) == sorted(old)
