"""What a sequence adds to a record: written and read back, seeds as means, references, refusals."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from everline.methods.errors import DataError
from everline.pipelines.records.continued import FIGURES, Continued, pooled_runs
from everline.pipelines.records.results import Result, read_result, write_result

NAN = math.nan
LOW = [[0.6, 0.2, 0.4], [0.7, 0.4, 0.3], [0.5, 0.2, 0.5]]
PARTS = [[0.8, NAN, NAN], [0.8, 0.7, NAN], [0.8, 0.7, 0.9]]
BARE = {name: [[NAN] * 3] * 3 for name in FIGURES if name.startswith(("pixel", "aupro"))}

Sequence = Callable[..., Continued]


def back(own: Continued, record: Callable[..., Result], file: Path) -> Continued:
    """Written to a file and read again."""
    write_result(record(own), file)
    found = read_result(file).continued
    assert found is not None
    return found


def test_what_is_written_is_read_back(sequence: Sequence, record: Callable[..., Result], tmp_path: Path) -> None:
    own = sequence(inferred=[[0.5, 0.25, 1.0]] * 3)
    own = own.beside(sequence([[0.8] * 3] * 3), sequence([[0.9] * 3] * 3))
    assert back(own, record, tmp_path / "r.json") == own


def test_several_seeds_and_gaps_are_read_back(
    sequence: Sequence, record: Callable[..., Result], tmp_path: Path
) -> None:
    runs = [sequence(figures=BARE), sequence(LOW, figures=BARE, seed=1)]
    own = pooled_runs(runs).beside(pooled_runs([sequence(PARTS)] * 2), None)
    found = back(own, record, tmp_path / "r.json")
    assert json.dumps(found.to_json()) == json.dumps(own.to_json())  # NaN is not equal to itself
    assert [run.seed for run in found.runs] == [0, 1]


def test_the_record_says_which_f1_its_three_figures_are_of(sequence: Sequence) -> None:
    plain = sequence(figures={"image_f1": LOW}).to_json()
    assert (plain["continual"]["f1"], plain["average_f1"]) == ("pixel_f1", pytest.approx(1.6 / 3))
    plain = sequence(figures=BARE | {"image_f1": LOW}).to_json()
    assert (plain["continual"]["f1"], plain["average_f1"]) == ("image_f1", pytest.approx(0.4))
    assert plain["average_forgetting"] == pytest.approx((0.2 + 0.2) / 2) and math.isnan(plain["relative_gap"])


def test_seeds_are_means_of_their_measures_with_the_samples_deviation(sequence: Sequence) -> None:
    own = pooled_runs([sequence(), sequence(LOW, seed=1, training_s=7.5)])
    assert own.matrix["aupro"][1] == pytest.approx([0.8, 0.5, 0.3]) and own.training_s == 10
    assert own.measures["aupro"]["forgetting"] == pytest.approx((0.3 + 0.2) / 2)
    assert own.deviation is not None and own.deviation["aupro"]["forgetting"] == pytest.approx(0.1 / 2**0.5)
    assert own.seed is None and own.columns == ["a", "b", "c"]


def test_one_seed_is_as_it_is(sequence: Sequence) -> None:
    one = sequence(seed=3)
    assert pooled_runs([one]) == replace(one, seed=None)
    assert pooled_runs([one]).deviation is None


def test_seeds_in_several_orders_have_columns_without_names(sequence: Sequence) -> None:
    own = pooled_runs([sequence(names="abc"), sequence(LOW, names="cab", seed=1)])
    assert own.columns == ["1.", "2.", "3."] and own.steps == [["step 1"], ["step 2"], ["step 3"]]


def test_the_trend_is_over_the_tasks_learned_by_then(sequence: Sequence) -> None:
    assert sequence().trend("aupro") == pytest.approx([0.8, 0.75, 1.6 / 3])
    assert sequence(first=[0, 0, 2]).trend("aupro") == pytest.approx([0.5, 0.75, 1.6 / 3])


def test_references_are_the_last_row_of_single_models_and_all_of_joint_ones(sequence: Sequence) -> None:
    own = sequence().beside(sequence([[0.1] * 3, [0.2] * 3, [0.8] * 3]), sequence(PARTS))
    assert own.measures["aupro"]["relative_gap"] == pytest.approx(1 / 3)
    assert own.measures["aupro"]["intransigence"] == pytest.approx((0.0 + 0.1 + 0.2) / 3)
    assert own.beside(None, None) == own  # nothing is lost


def test_every_seed_is_measured_against_its_own_reference(sequence: Sequence) -> None:
    single = pooled_runs([sequence([[0.8] * 3] * 3), sequence([[0.5] * 3] * 3, seed=1)])
    own = pooled_runs([sequence(), sequence(LOW, seed=1)]).beside(single, None)
    gaps = [(0.8 - 1.6 / 3) / 0.8, (0.5 - 0.4) / 0.5]
    assert [run.measures["aupro"]["relative_gap"] for run in own.runs] == pytest.approx(gaps)
    assert own.measures["aupro"]["relative_gap"] == pytest.approx(sum(gaps) / 2)


def test_the_share_of_images_whose_task_was_found_is_that_of_the_end(sequence: Sequence) -> None:
    assert sequence(inferred=[[0.0, NAN, NAN], [1.0, 0.5, NAN]]).inference() == 0.75
    assert math.isnan(sequence().inference())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["continual"].update(sequential=1), "'sequential' must be true or false"),
        (lambda r: r["continual"].update(columns="abc"), "'columns' has the wrong type"),
        (lambda r: r["continual"].update(columns=["a", "b", 3]), "'columns' has the wrong type"),
        (lambda r: r["continual"].update(steps=["a", "b", "c"]), "'steps' has the wrong type"),
        (lambda r: r["continual"].update(first=[0, 1, 3]), "'first' must name one of the 3 steps"),
        (lambda r: r["continual"].update(first=[0, -1, 2]), "'first' must name one of the 3 steps"),
        (lambda r: r["continual"].update(first=[0, 1]), "'first' must name one of the 3 steps"),
        (lambda r: r["continual"].update(single={}), "single: 'image_auroc' is missing"),
        (lambda r: r["continual"]["chance"].update(aupro=[0.1]), "expected 3 values"),
        (lambda r: r["continual"].update(inferred=[[0.5]]), "'inferred' must be 3 rows of 3 numbers"),
        (lambda r: r["continual"].update(runs=[{}]), r"runs\[0\]: 'continual' is missing"),
        (lambda r: r["matrix"].pop("aupro"), "matrix: 'aupro' is missing"),
        (lambda r: r["matrix"]["aupro"][0].append(0.5), "'aupro' must be 3 rows of 3 numbers"),
        (lambda r: r["memory_bytes"].pop("replay"), "memory_bytes: 'replay' is missing"),
        (lambda r: r.pop("memory_bytes"), "'memory_bytes' is missing"),
    ],
)
def test_what_is_no_sequence_is_refused_by_name(
    sequence: Sequence, record: Callable[..., Result], change: Any, said: str
) -> None:
    plain = record(sequence()).to_json()
    change(plain)
    with pytest.raises(DataError, match=said):
        Result.from_json(plain)


def test_runs_of_runs_are_refused(sequence: Sequence, record: Callable[..., Result]) -> None:
    two = pooled_runs([sequence(), sequence(seed=1)])
    plain = record(replace(two, runs=[two, two])).to_json()
    with pytest.raises(DataError, match="cannot be several runs"):
        Result.from_json(plain)
