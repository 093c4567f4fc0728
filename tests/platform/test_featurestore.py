"""Stores of features: every bit comes back, any damage is found, and a store is there whole or not at all."""

import errno
import json
import math
import os
import random
import re
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from everline.methods.errors import ConfigError, Corrupt, NoSpace, StoreError
from everline.platform import featurestore, featurewriter
from everline.platform.featurestore import MANIFEST, FeatureStore, Manifest, Shard
from everline.platform.featurewriter import write_features
from torch import Tensor

KEY = "0123456789abcdef" * 4
SHAPE = (3, 4, 5)
ODD = ["", "a/b", "../../etc", "naïve ü", "日本", "\n\0", "x" * 5000, ".", "'; --"]


def rows(count: int = 20, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"image {n}", torch.randn(1, *shape, generator=generator)) for n in range(count)]


def written(folder: Path, given: list[tuple[str, Tensor]], ms: float = 1.5) -> FeatureStore:
    assert write_features(folder, KEY, given, lambda: ms)
    return FeatureStore(folder, KEY)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images of SHAPE in each."""
    monkeypatch.setattr(featurewriter, "SHARD_BYTES", 3 * 4 * math.prod(SHAPE))


@pytest.fixture
def store(tmp_path: Path, small_shards: None) -> FeatureStore:
    return written(tmp_path / "store", rows())


def same(one: Tensor, other: Tensor) -> bool:
    """Bit by bit, so that NaN is equal to itself and -0 is not 0."""
    return one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()


def test_gives_back_every_bit_in_any_order(store: FeatureStore) -> None:
    given = rows()
    random.Random(0).shuffle(given)
    assert all(same(store.get(name), features) for name, features in given)
    assert len(store) == 20 and store.shape == SHAPE and store.ms_per_image == 1.5
    assert "image 3" in store and "image 20" not in store


def test_numbers_that_are_none_come_back_too(tmp_path: Path) -> None:
    odd = torch.tensor([math.nan, -0.0, math.inf, -math.inf, 1e-45, 3.4e38]).reshape(1, 1, 2, 3)
    assert same(written(tmp_path / "store", [("odd", odd)]).get("odd"), odd)


def test_names_may_be_any_text(tmp_path: Path) -> None:
    given = [(name, torch.full((1, 1, 1, 1), float(n))) for n, name in enumerate(ODD)]
    store = written(tmp_path / "a store, ü%20", given)
    assert [store.get(name).item() for name in ODD] == list(range(len(ODD)))
    assert [path.name for path in tmp_path.iterdir()] == ["a store, ü%20"]


def test_what_is_read_is_the_callers_own(store: FeatureStore) -> None:
    store.get("image 0").zero_()
    assert same(store.get("image 0"), rows()[0][1])


def test_features_of_other_strides_are_stored_as_they_are_seen(tmp_path: Path) -> None:
    last = rows(1)[0][1].contiguous(memory_format=torch.channels_last)
    assert same(written(tmp_path / "store", [("last", last)]).get("last"), last.contiguous())


def test_shards_are_bounded_and_hold_one_image_a_batch(store: FeatureStore) -> None:
    files = sorted(store.folder.glob("*.arrow"))
    assert [pa.ipc.open_file(str(file)).num_record_batches for file in files] == [3] * 6 + [2]
    assert store.nbytes == sum(file.stat().st_size for file in files)


def test_an_image_that_is_larger_than_a_shard_has_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(featurewriter, "SHARD_BYTES", 1)
    store = written(tmp_path / "store", rows(3))
    assert len(list(store.folder.glob("*.arrow"))) == 3 and same(store.get("image 2"), rows(3)[2][1])


def test_images_are_written_as_they_come(tmp_path: Path, small_shards: None) -> None:
    sizes = []

    def watched() -> Iterator[tuple[str, Tensor]]:
        for row in rows(9):
            sizes.append(len(list(tmp_path.glob(".store.*.tmp/*.arrow"))))
            yield row

    write_features(tmp_path / "store", KEY, watched(), lambda: 0.0)
    assert sizes == [0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_only_the_shard_of_an_image_is_opened(store: FeatureStore) -> None:
    for file in sorted(store.folder.glob("*.arrow"))[1:]:
        file.unlink()
    assert same(store.get("image 2"), rows()[2][1])
    with pytest.raises(Corrupt, match="shard-0001"):
        store.get("image 3")


def test_many_shards_need_few_open_files(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(featurestore, "OPEN_FILES", 2)
    assert all(same(store.get(name), features) for name, features in rows())
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    here = [os.readlink(link) for link in links if os.path.islink(link)]
    assert sum(name.startswith(str(store.folder)) for name in here) <= 2


def flipped(path: Path, at: int, bit: int) -> None:
    """As a new file: a mapping of the old one stays as it was."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    half = path.with_suffix(".new")
    half.write_bytes(data)
    half.replace(path)


def test_a_flipped_bit_in_a_shard_never_changes_features_and_never_ends_the_process(store: FeatureStore) -> None:
    path, rng, noticed = store.folder / "shard-0000.arrow", random.Random(1), 0
    whole = path.read_bytes()
    for _ in range(300):
        path.write_bytes(whole)
        flipped(path, rng.randrange(len(whole)), rng.randrange(8))
        try:
            found = [store.get(f"image {n}") for n in range(3)]
        except Corrupt:
            noticed += 1
            continue
        assert all(same(one, row[1]) for one, row in zip(found, rows(), strict=False))
    assert noticed > 100


def test_a_flipped_bit_in_an_image_is_found_in_that_image_alone(store: FeatureStore) -> None:
    path = store.folder / "shard-0000.arrow"
    wanted = rows()[1][1].numpy().tobytes()
    flipped(path, path.read_bytes().index(wanted) + 17, 3)
    assert same(store.get("image 0"), rows()[0][1])
    with pytest.raises(Corrupt, match="checksum of image 1"):
        store.get("image 1")


def test_any_flipped_bit_in_the_manifest_is_found(store: FeatureStore) -> None:
    path, rng = store.folder / MANIFEST, random.Random(2)
    whole = path.read_bytes()
    for _ in range(200):
        path.write_bytes(whole)
        flipped(path, rng.randrange(len(whole)), rng.randrange(8))
        with pytest.raises(Corrupt, match="not a store"):
            FeatureStore(store.folder, KEY)


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b"", lambda d: d[: len(d) // 2]])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_shard_of_another_length_is_corruption(
    store: FeatureStore, change: Callable[[bytes], bytes], read_before: bool
) -> None:
    path = store.folder / "shard-0000.arrow"
    if read_before:
        store.get("image 0")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(Corrupt, match="manifest says"):
        store.get("image 0")


def table(schema: pa.Schema, name: str, values: list[Any]) -> pa.Table:
    return pa.Table.from_arrays([pa.array([name]), pa.array([values], schema.field("features").type)], schema=schema)


def foreign(folder: Path, table: pa.Table | bytes) -> FeatureStore:
    """A store whose manifest is right, and whose only shard is another file of the right length."""
    path = folder / "shard-0000.arrow"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        with pa.ipc.new_file(str(path), table.schema) as out:
            out.write_table(table)
    crc = zlib.crc32(torch.arange(60.0).numpy().tobytes())
    manifest = Manifest(KEY, SHAPE, 0.0, (Shard(path.stat().st_size, (("a", crc),)),))
    (folder / MANIFEST).write_bytes(manifest.dumps())
    return FeatureStore(folder, KEY)


RIGHT = featurestore.schema(SHAPE)
FLOATS = torch.arange(60.0).tolist()
NULLS = pa.schema([("name", pa.string()), ("features", pa.list_(pa.float32(), 60))])


def test_a_store_made_by_hand_is_read(tmp_path: Path) -> None:
    assert foreign(tmp_path, table(RIGHT, "a", FLOATS)).get("a").flatten().tolist() == FLOATS


@pytest.mark.parametrize(
    "made",
    [
        b"not an Arrow file, and long enough to be one",
        table(RIGHT, "b", FLOATS),
        table(RIGHT, "a", [*FLOATS[:-1], 0.0]),
        table(RIGHT, "a", FLOATS).slice(0, 0),
        table(NULLS, "a", [None, *FLOATS[1:]]),
        table(featurestore.schema((3, 4, 4)), "a", FLOATS[:48]),
        table(pa.schema([("name", pa.string()), ("features", pa.list_(pa.float64(), 60))]), "a", FLOATS),
        table(RIGHT, "a", FLOATS).select(["features"]),
    ],
)
def test_a_foreign_shard_is_corruption(tmp_path: Path, made: pa.Table | bytes) -> None:
    with pytest.raises(Corrupt):
        foreign(tmp_path, made).get("a")


def signed(**changes: Any) -> bytes:
    """A manifest with a right checksum, whatever it says."""
    plain = json.loads(Manifest(KEY, SHAPE, 0.0, (Shard(8, (("a", 1), ("b", 2))),)).dumps())
    plain = {name: value for name, value in {**plain, **changes}.items() if value is not ... and name != "crc32"}
    return json.dumps({**plain, "crc32": featurestore._crc(plain)}).encode()


@pytest.mark.parametrize(
    "made",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        signed(format=2),
        signed(key="../../etc"),
        signed(key=1),
        signed(shape=[3, 4]),
        signed(shape=[3, 4, -5]),
        signed(shape=[3, 4, True]),
        signed(shape=[2**16, 2**16, 2**16]),
        signed(ms_per_image=math.nan),
        signed(ms_per_image=-1.0),
        signed(ms_per_image="1"),
        signed(shards=...),
        signed(shards=[{"bytes": 8, "rows": []}]),
        signed(shards=[{"bytes": 0, "rows": [["a", 1]]}]),
        signed(shards=[{"bytes": 8, "rows": [["a", 2**32]]}]),
        signed(shards=[{"bytes": 8, "rows": [[1, 1]]}]),
        signed(shards=[{"bytes": 8, "rows": [["a", 1], ["a", 1]]}]),
    ],
)
def test_a_manifest_that_says_something_else_is_corruption(tmp_path: Path, made: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(signed())
    FeatureStore(tmp_path, KEY)  # unchanged, it is believed
    (tmp_path / MANIFEST).write_bytes(made)
    with pytest.raises(Corrupt, match="not a store"):
        FeatureStore(tmp_path, KEY)


def test_a_manifest_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / MANIFEST).write_bytes(signed())
    monkeypatch.setattr(featurestore, "MAX_MANIFEST", 10)
    with pytest.raises(Corrupt, match="larger than"):
        FeatureStore(tmp_path, KEY)


def test_what_was_made_from_something_else_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="something else"):
        FeatureStore(store.folder, "f" * 64)
    with pytest.raises(FileNotFoundError):
        FeatureStore(tmp_path / "none", KEY)
    assert FeatureStore.there(store.folder) and not FeatureStore.there(tmp_path / "none")


def test_of_two_writers_the_first_counts(tmp_path: Path) -> None:
    folder, both = tmp_path / "store", threading.Barrier(2)
    done: dict[int, bool] = {}

    def write(seed: int) -> None:
        def meeting() -> Iterator[tuple[str, Tensor]]:
            yield from rows(5, seed)
            both.wait(timeout=30)

        done[seed] = write_features(folder, KEY, meeting(), lambda: float(seed))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done.values()) == [False, True]
    winner = next(seed for seed, won in done.items() if won)
    store = FeatureStore(folder, KEY)
    assert store.ms_per_image == winner and same(store.get("image 4"), rows(5, winner)[4][1])
    assert list(tmp_path.iterdir()) == [folder]


def test_who_loses_against_something_else_is_told(tmp_path: Path) -> None:
    written(tmp_path / "store", rows(1))
    with pytest.raises(Corrupt, match="something else"):
        write_features(tmp_path / "store", "f" * 64, rows(1), lambda: 0.0)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(StoreError, match="taken"):
        write_features(tmp_path / "taken", KEY, rows(1), lambda: 0.0)


def failing(error: Exception) -> Iterator[tuple[str, Tensor]]:
    yield from rows(5)
    raise error


@pytest.mark.parametrize(
    ("error", "raised"),
    [(ConfigError("no"), ConfigError), (OSError(errno.ENOSPC, "full"), NoSpace), (OSError("broken"), StoreError)],
)
def test_a_writer_that_fails_leaves_nothing(
    tmp_path: Path, small_shards: None, error: Exception, raised: type[Exception]
) -> None:
    with pytest.raises(raised):
        write_features(tmp_path / "store", KEY, failing(error), lambda: 0.0)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys, torch
from pathlib import Path
from everline.platform.featurewriter import write_features
def rows():
    yield "a", torch.ones(1, 1, 1, 1)
    os.kill(os.getpid(), signal.SIGKILL)
write_features(Path(sys.argv[1]), "0" * 64, rows(), lambda: 0.0)
"""


def test_what_a_killed_writer_left_is_no_store_and_goes_in_time(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    ran = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    (half,) = tmp_path.iterdir()
    assert ran.returncode == -9 and half != folder and not FeatureStore.there(folder)
    written(folder, rows(1))
    assert half.is_dir()  # who knows: its writer may be at work on another machine
    for path in (half, *half.iterdir()):
        os.utime(path, (0, 0))
    assert not write_features(folder, KEY, rows(1), lambda: 0.0)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [("a", torch.zeros(1, 2, 2))],
        [("a", torch.zeros(2, 1, 2, 2))],
        [("a", torch.zeros(1, 0, 2, 2))],
        [("a", torch.zeros(1, 1, 2, 2, dtype=torch.uint8))],
        [("a", torch.zeros(1, 1, 2, 2)), ("b", torch.zeros(1, 1, 2, 3))],
        [("a", torch.zeros(1, 1, 2, 2)), ("a", torch.zeros(1, 1, 2, 2))],
        [("\ud800", torch.zeros(1, 1, 2, 2))],
    ],
)
def test_what_is_no_features_is_refused(tmp_path: Path, wrong: list[tuple[str, Tensor]]) -> None:
    with pytest.raises(ConfigError, match="features"):
        write_features(tmp_path / "store", KEY, wrong, lambda: 0.0)
    assert not list(tmp_path.iterdir())


def test_the_pages_example_reads_a_store_without_everline(store: FeatureStore, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text("utf-8")
    (code,) = [one for one in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "features.json" in one]
    (tmp_path / "read.py").write_text(code)
    ran = subprocess.run(
        [sys.executable, "read.py", str(store.folder)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    first = rows()[0][1]
    assert ran.stdout.splitlines()[0] == "20 images, each (3, 4, 5)"
    assert ran.stdout.splitlines()[1] == f"image 0 {first.mean().item():.4f}"


def test_stores_of_format_1_are_read_for_ever() -> None:
    store = FeatureStore(Path(__file__).parents[1] / "fixtures" / "features-format-1", KEY)
    assert store.shape == (2, 1, 3) and store.ms_per_image == 1.5 and len(store) == 2
    for n in range(2):
        assert same(store.get(f"image {n}"), torch.arange(6, dtype=torch.float32).reshape(1, 2, 1, 3) / 8 + n)
