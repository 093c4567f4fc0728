"""Checkpoints: the newest whole one counts; leftovers of a crash and broken ones are in nobody's way."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from everline.methods.conformance import same
from everline.methods.detector import State
from everline.methods.errors import ConfigError
from everline.platform import checkpoints, volume
from everline.platform.checkpoints import Checkpoints
from everline.platform.volume import Place, volume_of


def states(n: int) -> dict[str, State]:
    return {name: State({"x": torch.full((3,), n)}, {"n": n}) for name in ("learner", "candidate")}


def saved(folder: Place, *seqs: int) -> Checkpoints:
    kept = Checkpoints(folder)
    for seq in seqs:
        kept.save(seq, states(seq), {"watermark": seq, "scores": [0.1, 1e-300]})
    return kept


def folder(store: Path, seq: int) -> Path:
    """Where the checkpoint after a record lies."""
    (found,) = store.glob(f"{seq:012d}-*")
    return found


def newest(folder: Place) -> int | None:
    found = Checkpoints(folder).latest()
    return found and found[0]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").latest() is None
    saved(tmp_path, -1)
    assert newest(tmp_path) is None
    assert volume_of(tmp_path).folders() == []


def test_gives_back_the_newest(place: Place) -> None:
    found = saved(place / "made", 3, 20).latest()
    assert found is not None
    seq, got, meta = found
    assert (seq, meta) == (20, {"watermark": 20, "scores": [0.1, 1e-300]})
    assert got.keys() == states(20).keys()
    assert all(same(got[name], states(20)[name]) for name in got)


def test_keeps_two(tmp_path: Path) -> None:
    saved(tmp_path, 1, 5, 7, 100)
    assert sorted(name[:12] for name in volume_of(tmp_path).folders()) == ["000000000007", "000000000100"]


def test_the_same_number_again_takes_its_place(tmp_path: Path) -> None:
    saved(tmp_path, 4, 4)
    assert newest(tmp_path) == 4
    assert len(volume_of(tmp_path).folders()) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a-b", "A", "x\n"])
def test_state_names_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        Checkpoints(tmp_path).save(1, {name: State({}, {})}, {})
    assert list(tmp_path.iterdir()) == []


def test_any_flipped_bit_leads_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    caplog.set_level(logging.CRITICAL)
    files = sorted(folder(tmp_path, 2).iterdir())
    assert len(files) == 5
    for path in files:
        data = path.read_bytes()
        for at in range(0, len(data), 3):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
            assert newest(tmp_path) == 1
        path.write_bytes(data)
    assert newest(tmp_path) == 2


@pytest.mark.parametrize(
    "text", ["", "5", "[]", "null", "{}", '{"sha256": "", "states": 7}', "[" * 100_000, '{"states": ["../x"]}']
)
def test_a_broken_list_is_passed_over_and_told(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path, 1, 2)
    (folder(tmp_path, 2) / "checkpoint.json").write_text(text)
    assert newest(tmp_path) == 1
    assert "checkpoint 2 is passed over" in caplog.text


def test_hostile_state_names_are_not_followed(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    path = folder(tmp_path, 1) / "checkpoint.json"
    plain = {"seq": 1, "states": ["../../x"], "meta": {}}
    path.write_text(json.dumps({**plain, "sha256": checkpoints._sum(plain)}))
    assert newest(tmp_path) is None


def test_one_under_another_number_is_passed_over(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    folder(tmp_path, 2).rename(tmp_path / "000000000009")
    assert newest(tmp_path) == 1


@pytest.mark.parametrize("name", ["²", "٣", "12", "notes.txt", ".000000000009.tmp"])
def test_other_names_are_no_checkpoints(tmp_path: Path, name: str) -> None:
    saved(tmp_path, 1)
    (tmp_path / name).mkdir()
    assert newest(tmp_path) == 1


def test_a_crash_at_any_write_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(at: int, real: Callable[..., None]) -> Callable[..., None]:
        calls = 0

        def call(*args: object) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise OSError(28, "no space left on device")
            real(*args)

        return call

    saved(tmp_path, 1)
    for at in range(1, 6):
        with monkeypatch.context() as patch:
            patch.setattr(volume.LocalVolume, "write", dying(at, volume.LocalVolume.write))
            with pytest.raises(OSError, match="no space"):
                saved(tmp_path, 2)
        assert newest(tmp_path) == 1
    saved(tmp_path, 3)
    assert newest(tmp_path) == 3
    assert sorted(p.name[:12] for p in tmp_path.iterdir()) == ["000000000001", "000000000003"]  # leftovers are gone


def test_checkpoints_without_a_random_part_in_their_names_are_read(tmp_path: Path) -> None:
    saved(tmp_path, 1, 4)
    folder(tmp_path, 4).rename(tmp_path / "000000000004")
    assert newest(tmp_path) == 4
    saved(tmp_path, 9, 12)
    assert sorted(p.name[:12] for p in tmp_path.iterdir()) == ["000000000009", "000000000012"]


def test_another_writers_checkpoint_after_the_same_record_is_never_mixed_with_mine(tmp_path: Path) -> None:
    kept = saved(tmp_path, 4)
    (before,) = volume_of(tmp_path).folders()
    saved(tmp_path, 4)
    assert kept.latest() is not None
    (after,) = volume_of(tmp_path).folders()
    assert before != after


FIXTURE = Path(__file__).parents[1] / "fixtures" / "checkpoint-format-1"


@pytest.mark.parametrize("kind", ["first", "random"])
def test_checkpoints_of_format_1_are_read_for_ever(kind: str) -> None:
    """With names as they first were, and with names that have a random part."""
    found = Checkpoints(FIXTURE / kind).latest()
    assert found is not None
    seq, got, meta = found
    assert (seq, meta) == (20, {"watermark": 20, "scores": [0.1, 1e-300]})
    assert got.keys() == states(20).keys() and all(same(got[name], states(20)[name]) for name in got)
