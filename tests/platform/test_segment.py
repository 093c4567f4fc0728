"""Frames: torn ends are cut, damage before the end is never cut, images cannot look like frames."""

import json
import struct
import zlib
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, Corrupt
from everline.platform import segment
from everline.platform.record import Record

BATCHES = [
    [Record("image", "a", image=b"first", seq=0)],
    [Record("image", "ü∞", image=b"", data={"k": [1, "é"]}, seq=1), Record("publish", "p", version=1, seq=2)],
    [Record("image", "last", image=b"third" * 5, score=0.25, admitted=True, seq=3)],
]


def written(path: Path, batches: list[list[Record]]) -> list[int]:
    """A segment of one frame per batch; returns where each frame ends."""
    growing, marker = segment.create(path)
    ends = []
    for batch in batches:
        growing.append(segment.encode(batch, marker))
        ends.append(path.stat().st_size)
    growing.close()
    return ends


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s.log"


def test_gives_back_what_was_written(path: Path) -> None:
    written(path, BATCHES)
    assert segment.read(path) == ([r for b in BATCHES for r in b], 0)


def test_an_empty_segment_has_no_records(path: Path) -> None:
    written(path, [])
    assert segment.read(path) == ([], 0)


def test_a_last_frame_torn_at_any_length_is_cut(path: Path) -> None:
    *_, before, end = written(path, BATCHES)
    data = path.read_bytes()
    for length in range(before, end):
        path.write_bytes(data[:length])
        assert segment.read(path) == (BATCHES[0] + BATCHES[1], length - before)


def test_a_last_frame_that_became_zeros_is_cut(path: Path) -> None:
    *_, before, end = written(path, BATCHES)
    path.write_bytes(path.read_bytes()[:before] + bytes(end - before))
    assert segment.read(path) == (BATCHES[0] + BATCHES[1], end - before)


def test_any_flipped_bit_before_the_last_frame_is_corruption(path: Path) -> None:
    *_, before, _ = written(path, BATCHES)
    data = path.read_bytes()
    for at in range(before):
        for bit in (0, 7):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            with pytest.raises(Corrupt):
                segment.read(path)


def test_a_bad_frame_before_a_torn_one_is_corruption(path: Path) -> None:
    first, second, _ = written(path, BATCHES)
    data = bytearray(path.read_bytes()[: second + 9])
    data[first + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(Corrupt, match=f"byte {first} "):
        segment.read(path)


def test_an_image_that_holds_a_segment_does_not_look_like_frames(path: Path, tmp_path: Path) -> None:
    written(tmp_path / "other", BATCHES)
    hostile = Record("image", "h", image=(tmp_path / "other").read_bytes() * 2, seq=4)
    *_, before, end = written(path, [*BATCHES, [hostile]])
    path.write_bytes(path.read_bytes()[: end - 1])
    assert segment.read(path).torn == end - 1 - before


@pytest.mark.parametrize(
    "data", [b"", b"EVER", b"EVERLOG1", b"EVERLOG1" + bytes(11), b"EVERLOG2" + bytes(12), b"EVERLOG1" + b"x" * 99]
)
def test_what_is_no_segment_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="not a log segment"):
        segment.read(path)


def row(head: object, image: int, rest: bytes = b"") -> bytes:
    text = json.dumps(head).encode()
    return struct.pack("<II", len(text), image) + text + rest


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",
        struct.pack("<II", 2**31, 0),
        row({"kind": "image", "id": "x"}, 5, b"four"),
        row({"kind": "image", "id": "x"}, 2**32 - 2),
        row([], 0),
        row({"kind": "image", "id": "x", "strange": 1}, 0),
        row({"kind": "image"}, 0),
        row({"kind": "image", "id": 7}, 0),
        row({"kind": "image", "id": "x", "score": "NaN"}, 0),
        row({"kind": "image", "id": "x", "image": "twice"}, 0),
        struct.pack("<II", 100_000, 0) + b"[" * 100_000,
    ],
)
def test_a_checked_frame_of_nonsense_is_corruption(path: Path, payload: bytes) -> None:
    growing, marker = segment.create(path)
    length = struct.pack("<I", len(payload))
    growing.append(marker + length + struct.pack("<I", zlib.crc32(length + payload)) + payload)
    growing.close()
    with pytest.raises(Corrupt, match="holds no records"):
        segment.read(path)


def test_one_append_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment, "MAX_PAYLOAD", 500)
    segment.encode([Record("image", "x", image=bytes(100))], b"8 bytes.")
    with pytest.raises(ConfigError, match="at most 500"):
        segment.encode([Record("image", "x", image=bytes(500))], b"8 bytes.")


def test_a_segment_is_never_made_over_another(path: Path) -> None:
    written(path, BATCHES)
    with pytest.raises(FileExistsError):
        segment.create(path)
    assert len(segment.read(path).records) == 4
