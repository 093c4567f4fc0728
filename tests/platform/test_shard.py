"""Sealed shards: any part can be read alone, any damage is found, nothing foreign is believed."""

import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest
from everline.methods.errors import Corrupt
from everline.platform import shard
from everline.platform.manifest import Shard
from everline.platform.record import SCHEMA, Record
from everline.platform.shard import ShardFile
from everline.platform.volume import Place

FIRST = 1000


def record(n: int) -> Record:
    kind = "image" if n % 3 else "task"
    image = random.Random(n).randbytes(n % 50) if kind == "image" else None
    return Record(kind, f"id{n}", image=image, score=n / 7, data={"n": n}, seq=FIRST + n)


RECORDS = [record(n) for n in range(150)]


@pytest.fixture
def sealed(tmp_path: Path) -> Shard:
    return shard.write(tmp_path, RECORDS, epoch=3)


def test_gives_back_what_was_sealed(place: Place) -> None:
    file = ShardFile(place, shard.write(place, RECORDS, epoch=3))
    file.check()
    assert list(file.records(0, images=True)) == RECORDS
    assert list(file.records(0, images=False)) == [replace(r, image=None) for r in RECORDS]


@pytest.mark.parametrize("skip", [0, 1, 63, 64, 65, 128, 149, 150])
def test_reads_from_any_record_on(tmp_path: Path, sealed: Shard, skip: int) -> None:
    assert list(ShardFile(tmp_path, sealed).records(FIRST + skip, images=True)) == RECORDS[skip:]


def test_reads_single_records(tmp_path: Path, sealed: Shard) -> None:
    file = ShardFile(tmp_path, sealed)
    assert [file.record(FIRST + n) for n in (149, 0, 64, 63)] == [RECORDS[n] for n in (149, 0, 64, 63)]


def test_reads_single_columns(tmp_path: Path, sealed: Shard) -> None:
    batches = list(ShardFile(tmp_path, sealed).columns("seq", "id"))
    assert [len(b["seq"]) for b in batches] == [64, 64, 22]
    assert [i for b in batches for i in b["id"]] == [r.id for r in RECORDS]


def test_is_a_plain_arrow_file(tmp_path: Path, sealed: Shard) -> None:
    with pa.memory_map(str(tmp_path / sealed.file)) as source:
        table = pa.ipc.open_file(source).read_all()
    assert table.schema.equals(SCHEMA)
    assert table["image"].to_pylist() == [r.image for r in RECORDS]


def damaged(folder: Path, sealed: Shard, at: int, bit: int) -> ShardFile:
    """The shard under a new name with one bit flipped."""
    data = bytearray((folder / sealed.file).read_bytes())
    data[at] ^= 1 << bit
    name = f"flipped-{at}-{bit}"
    (folder / name).write_bytes(data)
    return ShardFile(folder, replace(sealed, file=name))


def test_any_flipped_bit_is_found(tmp_path: Path, sealed: Shard) -> None:
    rng = random.Random(1)
    for _ in range(200):
        with pytest.raises(Corrupt, match="checksum"):
            damaged(tmp_path, sealed, rng.randrange(sealed.bytes), rng.randrange(8)).check()


def test_a_flipped_bit_never_changes_an_image_and_never_ends_the_process(tmp_path: Path, sealed: Shard) -> None:
    rng = random.Random(2)
    noticed = 0
    for _ in range(400):
        file = damaged(tmp_path, sealed, rng.randrange(sealed.bytes), rng.randrange(8))
        try:
            images = [r.image for r in file.records(0, images=True)]
        except Corrupt:
            noticed += 1
            continue
        assert [i for i in images if i is not None] == [r.image for r in RECORDS if r.image is not None]
    assert noticed > 20


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_another_length_is_corruption(tmp_path: Path, sealed: Shard, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / sealed.file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Corrupt, match="manifest says"):
        ShardFile(tmp_path, sealed)


def foreign(folder: Path, table: pa.Table | bytes) -> ShardFile:
    """Another file of the right length under a shard's name."""
    path = folder / "foreign.arrow"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        with pa.ipc.new_file(str(path), table.schema) as out:
            out.write_table(table, max_chunksize=64)
    return ShardFile(folder, Shard(path.name, FIRST, len(RECORDS), path.stat().st_size, 0))


def columns(folder: Path, sealed: Shard) -> pa.Table:
    with pa.ipc.open_file(str(folder / sealed.file)) as file:
        return file.read_all()


@pytest.mark.parametrize(
    "change",
    [
        lambda t: b"not an Arrow file, and long enough to be one",
        lambda t: t.drop_columns(["id"]),
        lambda t: t.slice(0, 149),
        lambda t: t.slice(0, 64),
        lambda t: t.take(list(range(149, -1, -1))),
        lambda t: t.set_column(0, "seq", pa.array(["x"] * 150)),
        lambda t: t.set_column(11, "data", pa.array(["no JSON"] * 150)),
        lambda t: t.set_column(11, "data", pa.array(["[]"] * 150)),
        lambda t: t.set_column(2, "id", pa.nulls(150, pa.string())),
    ],
)
@pytest.mark.parametrize("images", [True, False])
def test_a_foreign_file_is_corruption(tmp_path: Path, sealed: Shard, change: Callable, images: bool) -> None:
    file = foreign(tmp_path, change(columns(tmp_path, sealed)))
    with pytest.raises(Corrupt):
        list(file.records(0, images))


@pytest.mark.parametrize("bound", ["files", "bytes"])
def test_many_shards_need_few_open_files(bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = [shard.write(tmp_path, [RECORDS[0]], epoch=n) for n in range(20)]
    monkeypatch.setattr(shard, f"OPEN_{bound.upper()}", 3 if bound == "files" else 3 * sealed[0].bytes)
    files = [ShardFile(tmp_path, one) for one in sealed]
    assert [file.record(FIRST) for file in files] == [RECORDS[0]] * 20
    here = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _there(fd)]
    assert sum(name.startswith(str(tmp_path)) for name in here) <= 3


def _there(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")
