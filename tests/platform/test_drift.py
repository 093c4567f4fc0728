"""Drift is seen soon, told apart from a run of defects, and its watch goes on exactly from what a checkpoint keeps."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from everline.methods.errors import StateError
from everline.platform import drift
from everline.platform.drift import KEEP, LIGHT, RECENT, REFERENCE, Watch, moments
from everline.platform.record import Record
from hypothesis import given, settings
from hypothesis import strategies as st


def stream(
    count: int,
    *,
    first: int = 0,
    seed: int = 0,
    shift: float = 0.0,
    light: float = 0.0,
    rejects: float = 0.0,
    task: str = "",
    low: float = 0.0,
) -> list[Record]:
    """Records of images: moments around `shift`, a share of them rejected, p-values uniform in (low's complement)."""
    chance = np.random.default_rng([seed, first])
    found = []
    for seq in range(first, first + count):
        grey = 120 + light + 8 * chance.standard_normal() + chance.standard_normal(LIGHT)
        values = [*grey.round(4).tolist(), *(chance.standard_normal(32) + shift).round(4).tolist()]
        bad = bool(chance.random() < rejects)
        p = 0.005 if bad else float(0.01 + (0.99 - low) * chance.random())
        found.append(
            Record(
                kind="image",
                id=str(seq),
                seq=seq,
                task=task,
                p_value=p,
                verdict="reject" if bad else "pass",
                data={"moments": values},
            )
        )
    return found


def watch(*parts: list[Record], policy: str = "adapt") -> Watch:
    state = Watch(0.01, policy)
    for record in [record for part in parts for record in part]:
        state.take(record)
    return state


def until(state: Watch, records: list[Record], wanted: str) -> int | None:
    """After how many of the records the state is the wanted one."""
    for n, record in enumerate(records, 1):
        state.take(record)
        if state.state == wanted:
            return n
    return None


def test_a_calm_line_raises_no_alarm() -> None:
    for seed in range(5):
        state = Watch(0.01)
        assert until(state, stream(1500, seed=seed), "drift") is None


def test_moved_moments_are_a_drift_within_fifteen_images() -> None:
    state = watch(stream(150))
    assert (until(state, stream(40, first=150, shift=1.5), "drift") or 99) <= 15
    assert state.status()["by"] == "moments"
    assert 150 <= state.status()["since"] < 165


@pytest.mark.parametrize("light", [-12.0, 12.0])
def test_a_lamp_that_gives_more_or_less_light_is_a_drift_within_forty_images(light: float) -> None:
    state = watch(stream(150))
    assert until(state, stream(40, first=150, light=light), "drift") is not None
    assert state.status()["by"] == "light"


def test_scores_that_creep_up_below_the_threshold_are_a_drift() -> None:
    state = watch(stream(150))
    assert until(state, stream(60, first=150, low=0.85), "drift") is not None
    assert state.status()["by"] == "scores"


def test_a_run_of_rejects_among_calm_images_is_defects_and_ends() -> None:
    state = watch(stream(150))
    assert until(state, stream(60, first=150, rejects=0.5), "defects") is not None
    assert state.status()["by"] == "rejects"
    assert until(state, stream(RECENT, first=210), "drift") is None
    assert state.state == "none"


def test_drift_is_not_called_defects_although_it_rejects_everything() -> None:
    state = watch(stream(150), stream(20, first=150, shift=2.0, rejects=1.0))
    assert state.state == "drift"


def test_adapt_takes_what_came_since_for_usual() -> None:
    state = watch(stream(150), stream(20 + REFERENCE, first=150, shift=2.0))
    assert state.state == "none"
    assert until(state, stream(200, first=400, shift=2.0), "drift") is None


@pytest.mark.parametrize("policy", ["hold", "alarm"])
def test_the_others_wait_until_the_line_is_as_it_was(policy: str) -> None:
    state = watch(stream(150), stream(200, first=150, shift=2.0), policy=policy)
    assert state.state == "drift"
    assert state.holds == (policy == "hold")
    assert until(state, stream(2 * RECENT, first=400), "none") is not None
    assert not state.holds


def test_a_person_ends_it() -> None:
    state = watch(stream(150), stream(30, first=150, shift=2.0), policy="hold")
    state.forgive()
    assert not state.holds


def test_a_change_of_product_is_no_drift() -> None:
    state = watch(stream(150, task="a"), stream(150, first=150, shift=5.0, task="b"))
    assert state.state == "none"
    assert until(state, stream(100, first=300, task="a"), "drift") is None


def test_records_without_moments_are_passed_over() -> None:
    state = watch([Record(kind="image", id="a", seq=0, verdict="reject"), Record(kind="publish", id="b", seq=1)])
    assert state.status() == {"state": "none", "since": None, "by": ""}


def test_who_asks_a_watch_waits_for_nothing_to_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    young, at_work = Watch(0.01), watch(stream(60))
    monkeypatch.setattr(drift, "_test", lambda _: pytest.fail("river is imported, and a test made, for a question"))
    assert young.status() == at_work.status() == {"state": "none", "since": None, "by": ""}
    assert not young.holds


def test_images_that_are_not_meant_for_learning_are_passed_over() -> None:
    state = watch(stream(150))
    others = [replace(one, data={**one.data, "learn": False}) for one in stream(60, first=150, shift=2.0)]
    assert until(state, others, "drift") is None


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(0, 2 * KEEP), seed=st.integers(0, 9), policy=st.sampled_from(["adapt", "hold"]))
def test_goes_on_exactly_from_what_a_checkpoint_keeps(cut: int, seed: int, policy: str) -> None:
    parts = stream(700, seed=seed), stream(150, first=700, shift=1.0, seed=seed, rejects=0.2), stream(300, first=850)
    records = [record for part in parts for record in part]
    whole, first = watch(records, policy=policy), watch(records[:cut], policy=policy)
    second = Watch(0.01, policy)
    second.unpack(json.loads(json.dumps(first.pack())))
    for record in records[cut:]:
        second.take(record)
    assert second.pack() == whole.pack()
    assert second.status() == whole.status()


def test_what_no_watch_packed_is_refused() -> None:
    for plain in ({}, {"streams": [["a", {"moved": 1, "scored": []}]]}, {"streams": [3]}):
        with pytest.raises(StateError, match="watch"):
            Watch(0.01).unpack(plain)  # type: ignore[arg-type]


def test_moments_are_few_plain_numbers_that_a_small_defect_hardly_moves() -> None:
    clean = torch.rand(1, 176, 16, 16, generator=torch.Generator().manual_seed(0))
    spoilt, lit = clean.clone(), clean + 0.5
    spoilt[..., :4, :4] += 5
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    found = [np.array(moments(pixels, x)) for x in (clean, spoilt, lit)]
    assert all(len(x) == LIGHT + 32 for x in found)
    assert np.abs(found[1] - found[0]).max() * 4 < np.abs(found[2] - found[0]).max()
    assert len(moments(pixels, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))) == LIGHT + 3
