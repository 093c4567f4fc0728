"""What a sweep comes to: every figure worked out by hand or by brute force, and strict JSON."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from everline.methods.coreset import Coreset
from everline.methods.detector import Traits
from everline.pipelines.records.continued import Continued
from everline.pipelines.records.results import METRICS, Result
from everline.pipelines.sweeps.objectives import FRONT, front
from everline.pipelines.sweeps.outcome import TOLERANCE
from everline.pipelines.sweeps.record import Item, TrialRecord
from hypothesis import given
from hypothesis import strategies as st

Made = Callable[..., Any]
TWO = {"bolt": "1", "nut": "2"}


def test_a_trial_is_a_row_with_all_that_was_measured(trial: Made, outcome: Made) -> None:
    (row,) = outcome(trial(3, 1, 0.75, params={"slack": 0.5}, size=2_000_000, ms=16.0)).trials
    assert (row["number"], row["configuration"], row["task"], row["method"]) == (3, 1, "bolt", "coreset")
    assert (row["objective"], row["state_bytes"], row["ms_per_image"], row["seconds"]) == (0.75, 2e6, 16.0, 1.5)
    assert row["times"] == {"backbone": 8.0, "score": 4.0, "learn": 4.0}
    assert row["metrics"]["image_auroc"] == 0.75 and math.isnan(row["metrics"]["image_ap"])
    assert row["held_out"] is None and row["reached"] is None and row["status"] == "complete"


def test_parameters_are_what_one_would_type_to_get_it_again(
    trial: Made, outcome: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Coreset, "traits", Traits(memory="memory"))
    given = {"guard": 0, "coreset.sketch": 32, "padim.floor": 0.5}
    made = outcome(trial(0, 0, memory=100, params={"slack": 0.5}), given=given, memory=(100,), seed=7, seeds=2)
    (row,) = made.trials
    assert row["params"] == {"seed": 7, "guard": 0, "sketch": 32, "memory": 100, "slack": 0.5}
    assert row["searched"] == {"slack": 0.5} and row["seeds"] == [7, 8]


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_figures_of_a_trial_that_did_not_end_are_not_known(trial: Made, outcome: Made, status: str) -> None:
    made = outcome(trial(0, 0, 0.9, status=status, error="out of luck"), trial(1, 1, 0.5)).to_json()
    row = made["trials"][0]
    assert set(row["metrics"].values()) == {None} and row["error"] == "out of luck"
    assert row["objective"] is row["state_bytes"] is row["ms_per_image"] is None
    assert row["reached"] == {"images": 2, "of": 4, "figure": pytest.approx(0.85)}
    assert made[status] == 1 and made["best"]["configuration"] == 1


def test_a_configuration_is_complete_on_every_task_or_none(trial: Made, outcome: Made) -> None:
    whole = [trial(0, 0, 0.5, size=100, ms=10.0), trial(1, 0, 0.75, task="nut", size=300, ms=20.0)]
    half = [trial(2, 1, 1.0), trial(3, 1, 1.0, task="nut", status="stopped")]
    made = outcome(*half, *whole, images=TWO)
    (row,) = made.configurations
    assert (row["configuration"], row["trials"]) == (0, [0, 1])
    assert (row["objective"], row["metrics"]["image_auroc"]) == (0.625, 0.625)
    assert (row["state_bytes"], row["ms_per_image"]) == (200, 15.0)
    assert made.best == row and made.best_by_task["bolt"]["number"] == 2


def test_a_mean_that_a_task_spoils_is_none(trial: Made, outcome: Made) -> None:
    records = [trial(0, 0, aupro=0.5), trial(1, 0, task="nut", aupro=math.nan)]
    (row,) = outcome(*records, images=TWO).configurations
    assert math.isnan(row["metrics"]["aupro"]) and row["metrics"]["image_auroc"] == 0.5


def test_deviation_is_that_of_the_mean_over_tasks(trial: Made, outcome: Made) -> None:
    bolt, nut = (0.5, 0.75, 1.0), (0.25, 0.75, 0.5)
    records = [trial(0, 0, by_seed=bolt), trial(1, 0, task="nut", by_seed=nut)]
    (row,) = outcome(*records, images=TWO, seeds=3).configurations
    assert row["deviation"] == pytest.approx(np.std(np.mean([bolt, nut], 0), ddof=1))
    assert math.isnan(outcome(trial(0, 0)).configurations[0]["deviation"])


def test_held_out_figures_stand_beside_those_that_chose(trial: Made, outcome: Made) -> None:
    search = [trial(0, 0, 0.5), trial(1, 0, 1.0, task="nut")]
    held = [trial(2, 0, 0.25, phase="held-out"), trial(3, 0, 0.75, task="nut", phase="held-out")]
    made = outcome(*search, *held, images=TWO)
    assert [row["held_out"]["objective"] for row in made.trials] == [0.25, 0.75] and len(made.trials) == 2
    assert made.best["held_out"]["metrics"]["image_auroc"] == 0.5 and "never saw" in made.note
    part = outcome(*search, held[0], images=TWO)
    assert part.best["held_out"] is None and part.trials[0]["held_out"] is not None


def test_what_judged_is_said_plainly(trial: Made, outcome: Made) -> None:
    assert "same images" in outcome(trial(0, 0), holdout=0).note
    assert "nothing was judged" in outcome(trial(0, 0)).note
    failed = outcome(trial(0, 0), trial(1, 0, phase="held-out", status="failed", error="no luck"))
    assert "nothing was judged" in failed.note and failed.trials[0]["held_out"] is None
    assert failed.to_json()["failed"] == 1 and failed.errors[0]["phase"] == "held-out"


def test_of_those_alike_the_smaller_one_is_best_then_the_earlier(trial: Made, outcome: Made) -> None:
    records = [trial(0, 0, 0.5, size=10), trial(1, 1, 0.75, size=30), trial(2, 2, 0.75, size=20)]
    records += [trial(3, 3, 0.75, size=20)]
    made = outcome(*records)
    assert made.best["configuration"] == 2
    assert [row["configuration"] for row in made.ranked(made.configurations)] == [2, 3, 1, 0]


def test_an_objective_may_be_one_to_make_small(trial: Made, outcome: Made) -> None:
    records = [trial(n, n, ms=ms, objective="latency") for n, ms in enumerate((20.0, 8.0, 16.0))]
    assert outcome(*records, objective="latency").best["configuration"] == 1


def test_nothing_complete_has_no_best(trial: Made, outcome: Made) -> None:
    for records in ([], [trial(0, 0, status="failed", error="x")], [trial(0, 0, objective="f1", aupro=math.nan)]):
        made = outcome(*records).to_json()
        assert made["best"] is None and made["best_by_task"] == {} and made["enough"]["methods"] == {}


def test_the_front_is_what_nothing_beats_in_all_three(trial: Made, outcome: Made) -> None:
    rng = np.random.default_rng(0)
    rows = [(float(a), int(b), float(c)) for a, b, c in rng.integers(1, 6, (30, 3))]
    records = [trial(n, n, a / 8, size=b, ms=c) for n, (a, b, c) in enumerate(rows)]
    wanted = [
        n
        for n, (a, b, c) in enumerate(rows)
        if not any(x >= a and y <= b and z <= c and (x, y, z) != (a, b, c) for x, y, z in rows)
    ]
    assert [row["configuration"] for row in outcome(*records).pareto] == wanted and 0 < len(wanted) < 30


def test_a_respect_that_none_has_is_left_out_of_the_front(trial: Made, outcome: Made) -> None:
    records = [trial(n, n, math.nan, size=size, ms=ms) for n, (size, ms) in enumerate([(1, 4.0), (2, 2.0), (3, 4.0)])]
    assert [row["configuration"] for row in outcome(*records).pareto] == [0, 1]
    one = trial(3, 3, 0.5, size=9, ms=9.0)
    assert [row["configuration"] for row in outcome(*records, one).pareto] == [3]


def test_memory_that_is_enough_is_the_smallest_near_the_best(trial: Made, outcome: Made) -> None:
    figures = {100: 0.90, 300: 0.946, 800: 0.95, 1600: 0.948}
    records = [trial(n, n, at, memory=size, size=size) for n, (size, at) in enumerate(figures.items())]
    records += [trial(9, 9, 0.5, memory=300), trial(10, 10, 0.5, method="padim")]
    made = outcome(*reversed(records))
    assert [(row["method"], row["memory"]) for row in made.by_memory] == [
        *(("coreset", size) for size in figures), ("padim", None)
    ]  # fmt: skip
    assert {row["metrics"]["image_auroc"] for row in made.by_memory} == {*figures.values(), 0.5}
    assert made.enough.keys() == {"coreset"}
    row = made.enough["coreset"]
    assert (row["memory"], row["best_memory"], row["images"]) == (300, 800, "search")
    assert made.to_json()["enough"]["tolerance"] == TOLERANCE == 0.005


def test_enough_is_judged_on_held_out_images_where_all_sizes_have_them(trial: Made, outcome: Made) -> None:
    search = [trial(0, 0, 0.5, memory=100), trial(1, 1, 0.9, memory=300)]
    held = [
        trial(2, 0, 0.8, memory=100, phase="held-out"), trial(3, 1, 0.8, memory=300, phase="held-out")
    ]  # fmt: skip
    one = outcome(*search, *held).enough["coreset"]
    assert (one["memory"], one["images"], one["image_auroc"]) == (100, "held-out", 0.8)
    other = outcome(*search, held[0]).enough["coreset"]
    assert (other["memory"], other["images"]) == (300, "search")


def test_exactly_the_tolerance_below_is_enough(trial: Made, outcome: Made) -> None:
    records = [trial(0, 0, 0.995, memory=100), trial(1, 1, 1.0, memory=300)]
    assert outcome(*records).enough["coreset"]["memory"] == 100


def test_all_of_it_is_strict_json(trial: Made, outcome: Made) -> None:
    made = outcome(trial(0, 0), trial(1, 1, status="failed", error="x"), finished=False).to_json()
    again = json.loads(json.dumps(made, allow_nan=False))
    assert again == made and made["features"] == {"ratio": None, "shards": 2}
    assert (made["finished"], made["expected"], made["seconds"]) == (False, 2, 12.5)
    assert made["settings"]["methods"] == ["coreset", "padim"] and made["errors"][0]["error"] == "x"


def test_a_sequence_is_one_trial_with_averages_after_its_last_step(
    outcome: Made, sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    result = record(sequence(), "replay", {"memory": 300})
    item = Item(0, 0, "padim", 300, {}, "")
    made = outcome(
        TrialRecord(item, "k", "complete", 1.6 / 3, result), methods=("padim",), protocol="continual",
        options={"strategy": "replay"}, memory=(300,), images=dict.fromkeys("abc", "1"),
    )  # fmt: skip
    (row,) = made.configurations
    assert made.tasks == [""] and row["memory"] == 300 and row["params"] == {"seed": 0}
    assert row["metrics"]["image_auroc"] == pytest.approx(1.6 / 3) and row["state_bytes"] == 6_000_000
    assert row["ms_per_image"] == 20.0 and set(row["metrics"]) == set(METRICS)


POINT = st.fixed_dictionaries({name: st.sampled_from([1.0, 2.0, 3.0, math.nan]) for name in FRONT})


@given(st.lists(POINT, max_size=12))
def test_a_front_beats_all_others_and_none_of_its_own(points: list[dict[str, float]]) -> None:
    signs = {name: 1 if more else -1 for name, more in FRONT.items()}
    on = front(points)

    def beats(one: dict[str, float], other: dict[str, float]) -> bool:
        gains = [sign * (one[name] - other[name]) for name, sign in signs.items()]
        return min(gains) >= 0 and max(gains) > 0

    known = [n for n, point in enumerate(points) if not any(map(math.isnan, point.values()))]
    assert set(on) <= set(known)
    assert not any(beats(points[m], points[n]) for n in on for m in known)
    assert all(any(beats(points[m], points[n]) for m in on) for n in set(known) - set(on))
