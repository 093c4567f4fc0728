"""States on disk: equal bits back, any damage found; a digest of exactly the bits."""

import json
import random
from pathlib import Path

import pytest
import torch
from everline.methods.conformance import same
from everline.methods.detector import State
from everline.methods.errors import Corrupt
from everline.platform import statefiles
from everline.platform.statefiles import digest, load_state, save_state


def state() -> State:
    tensors = {
        "float": torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "rng": torch.arange(20, dtype=torch.uint8),
        "long": torch.tensor(2**62),
        "flag": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
    }
    return State(tensors, {"method": "m", "params": {"size": 64, "rate": 0.1}, "images_learned": 12})


def test_gives_back_equal_bits(tmp_path: Path) -> None:
    save_state(tmp_path, state())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detector.json", "state.safetensors"]
    assert same(load_state(tmp_path), state())
    assert digest(load_state(tmp_path)) == digest(state())


def test_special_floats_keep_their_bits(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, -0x80000000, 1, 0x7F800000], dtype=torch.int64).to(torch.int32)
    special = State({"x": bits.view(torch.float32)}, {})
    save_state(tmp_path, special)
    assert torch.equal(load_state(tmp_path).tensors["x"].view(torch.int32), bits)


@pytest.mark.parametrize("name", ["detector.json", "state.safetensors"])
def test_any_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    save_state(tmp_path, state())
    data = (tmp_path / name).read_bytes()
    rng = random.Random(4)
    for at in range(len(data)):
        (tmp_path / name).write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        with pytest.raises(Corrupt):
            load_state(tmp_path)


@pytest.mark.parametrize("name", ["detector.json", "state.safetensors"])
def test_a_missing_or_torn_file_is_corruption(tmp_path: Path, name: str) -> None:
    save_state(tmp_path, state())
    data = (tmp_path / name).read_bytes()
    for length in (len(data) - 1, 8, 0):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(Corrupt):
            load_state(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(Corrupt):
        load_state(tmp_path)


@pytest.mark.parametrize("text", ["[]", "5", "null", '["sha256"]', "{}", '{"sha256": null}', "[" * 100_000, "\0"])
def test_other_json_is_corruption(tmp_path: Path, text: str) -> None:
    save_state(tmp_path, state())
    (tmp_path / "detector.json").write_text(text)
    with pytest.raises(Corrupt):
        load_state(tmp_path)


def test_large_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, state())
    monkeypatch.setattr(statefiles, "MAX_META", 10)
    with pytest.raises(Corrupt, match="larger than 10"):
        load_state(tmp_path)


def test_metadata_that_is_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        save_state(tmp_path, State({}, {"x": float("nan")}))
    assert not list(tmp_path.glob("*.json"))


def test_a_digest_does_not_depend_on_order_or_on_lists_and_tuples() -> None:
    one = state()
    other = State(dict(reversed(one.tensors.items())), dict(reversed(one.meta.items())))
    assert digest(one) == digest(other)
    assert digest(State({}, {"a": (1, 2)})) == digest(State(json.loads("{}"), {"a": [1, 2]}))


def test_a_digest_changes_with_any_bit_name_type_shape_and_metadata() -> None:
    x = torch.arange(6, dtype=torch.int32)
    flipped = x.clone()
    flipped[3] ^= 1 << 30
    different = [
        State({"x": x}, {}),
        State({"x": flipped}, {}),
        State({"y": x}, {}),
        State({"x": x.view(torch.float32)}, {}),
        State({"x": x.reshape(2, 3)}, {}),
        State({"x": x.reshape(3, 2)}, {}),
        State({"x": x, "y": x[:0]}, {}),
        State({"x": x}, {"n": 1}),
        State({"x": x}, {"n": 1.0}),
        State({"x": x}, {"n": "1"}),
        State({"x": -torch.zeros(1)}, {}),
        State({"x": torch.zeros(1)}, {}),
        State({}, {}),
    ]
    assert len({digest(one) for one in different}) == len(different)


def test_a_digest_is_of_values_and_not_of_strides() -> None:
    x = torch.arange(6).reshape(2, 3)
    assert digest(State({"x": x.T}, {})) == digest(State({"x": x.T.contiguous()}, {}))
