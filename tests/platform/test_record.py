"""A record that can be made can be appended and sealed; everything else is refused before it reaches a disk."""

import math

import pyarrow as pa
import pytest
from everline.methods.errors import ConfigError, Corrupt
from everline.platform.record import SCHEMA, Record, from_batch, plain_json, to_batch

FULL = Record(
    kind="image",
    id="größe/∞/🦆",
    time_ns=2**63 - 1,
    image=b"\0\xff",
    task="a task",
    score=-0.1,
    p_value=1e-300,
    threshold=5,
    version=7,
    verdict="reject",
    admitted=False,
    data={"b": [1, None, {"ü": "\ud800"}], "a": 1.5},
    seq=3,
)


def test_arrow_gives_back_what_it_was_given() -> None:
    records = [FULL, Record("task", "", image=b"", seq=4), Record("note", "x", seq=5)]
    assert list(from_batch(to_batch(records))) == records


def test_without_the_image_column_only_the_image_is_missing() -> None:
    batch = to_batch([FULL])
    (got,) = from_batch(batch.select([n for n in SCHEMA.names if n != "image"]))
    assert (got.image, got.head()) == (None, FULL.head())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", math.nan),
        ("threshold", math.inf),
        ("p_value", "0.5"),
        ("score", True),
        ("time_ns", 2**63),
        ("time_ns", 1.0),
        ("version", -(2**63) - 1),
        ("version", True),
        ("admitted", 1),
        ("image", "text"),
        ("kind", None),
        ("id", b"bytes"),
        ("verdict", "\ud800"),
        ("data", [1]),
    ],
)
def test_what_a_shard_could_not_hold_is_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Record(**{"kind": "image", "id": "x", name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, {1, 2}, b"x", object()])
def test_data_must_be_plain_json(value: object) -> None:
    with pytest.raises(ConfigError, match="plain JSON"):
        plain_json({"x": value})


def test_a_changed_image_is_noticed_when_it_is_read() -> None:
    batch = to_batch([FULL])
    changed = pa.array([b"\0\xfe"], "large_binary")
    wrong = batch.set_column(SCHEMA.get_field_index("image"), SCHEMA.field("image"), changed)
    with pytest.raises(Corrupt, match="record 3"):
        list(from_batch(wrong))
