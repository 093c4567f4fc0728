"""Measures of a matrix: worked out by hand, with gaps and returns, and what must hold of any matrix."""

import math

import numpy as np
import pytest
from everline.pipelines.records.forgetting import (
    MEASURES,
    average,
    forgetting,
    forgetting_when_learned,
    forward_transfer,
    intransigence,
    mean,
    measures,
    relative_gap,
)
from hypothesis import given
from hypothesis import strategies as st

NAN = math.nan
MATRIX = [[0.8, 0.2, 0.4], [0.9, 0.6, 0.3], [0.5, 0.4, 0.7]]
FIRST = [0, 1, 2]
SHARES = st.floats(0, 1, width=32)


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    """(matrix, first): up to 5 steps, 5 tasks, with values from 0 to 1, each task learned at some step."""
    steps, tasks = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    row = st.lists(SHARES, min_size=tasks, max_size=tasks)
    matrix = draw(st.lists(row, min_size=steps, max_size=steps))
    return matrix, draw(st.lists(st.integers(0, steps - 1), min_size=tasks, max_size=tasks))


def test_every_measure_of_three_tasks_by_hand() -> None:
    joint = [[0.8, NAN, NAN], [0.8, 0.7, NAN], [0.7, 0.6, 0.9]]
    found = measures(MATRIX, FIRST, [0.1, 0.1, 0.2], [0.8, 0.8, 0.8], joint)
    assert found == pytest.approx({
        "average": 1.6 / 3,
        "forgetting": (0.4 + 0.2) / 2,  # a: .9 was its best, not .8; b: .6
        "forgetting_relative": (0.4 / 0.9 + 0.2 / 0.6) / 2,
        "forgetting_when_learned": (0.3 + 0.2) / 2,
        "backward_transfer": -0.25,
        "forward_transfer": (0.2 - 0.1 + 0.3 - 0.2) / 2,  # b before step 2, c before step 3
        "intransigence": (0.0 + 0.1 + 0.2) / 3,
        "relative_gap": 1 / 3,
    })  # fmt: skip
    assert tuple(found) == MEASURES


def test_what_the_last_step_learned_does_not_count_as_forgotten() -> None:
    assert forgetting(MATRIX, [0, 2, 2]) == pytest.approx(0.4)
    assert forgetting_when_learned(MATRIX, [0, 2, 2]) == pytest.approx(0.3)
    assert math.isnan(forgetting(MATRIX, [2, 2, 2])) and math.isnan(forgetting([[0.5]], [0]))


def test_a_value_from_before_a_task_was_learned_is_none_that_can_be_forgotten() -> None:
    assert forgetting([[0.5, 0.9], [0.5, 0.6], [0.5, 0.6]], [0, 1]) == 0


def test_a_task_that_comes_again_is_counted_from_the_first_time() -> None:
    matrix = [[0.8, 0.1], [0.3, 0.7], [0.9, 0.4]]  # a, b, a again
    assert forgetting(matrix, [0, 1]) == pytest.approx((0.8 - 0.9 + 0.7 - 0.4) / 2)  # a gained
    assert forgetting_when_learned(matrix, [0, 1]) == pytest.approx((-0.1 + 0.3) / 2)


def test_figures_that_do_not_exist_are_left_out_of_means() -> None:
    matrix = [[0.8, NAN, 0.4], [NAN, NAN, 0.3], [0.5, NAN, 0.7]]
    assert average(matrix) == pytest.approx(0.6)
    assert forgetting(matrix, FIRST) == pytest.approx(0.3)
    assert forward_transfer(matrix, FIRST, [0, 0, 0.1]) == pytest.approx(0.2)
    assert relative_gap(matrix, [1.0, 0.2, 0.5]) == pytest.approx((0.75 - 0.6) / 0.75)  # of the two that both have
    assert math.isnan(mean([NAN])) and math.isnan(average([[NAN, NAN]]))


def test_a_joint_model_that_was_not_made_at_a_step_says_nothing_of_it() -> None:
    assert intransigence(MATRIX, FIRST, [[NAN] * 3, [NAN] * 3, [0.5, 0.5, 0.9]]) == pytest.approx(0.2)


def test_nothing_is_divided_by_zero() -> None:
    assert math.isnan(relative_gap([[0.5]], [0.0])) and math.isnan(forgetting([[0.0], [0.0]], [0], relative=True))


def test_models_of_their_own_neither_forget_nor_lag_behind() -> None:
    found = measures(MATRIX, FIRST, [0, 0, 0], [0.8] * 3, MATRIX, sequential=False)
    known = {name for name, value in found.items() if not math.isnan(value)}
    assert known == {"average", "relative_gap"}
    assert math.isnan(measures(MATRIX, FIRST, [0, 0, 0])["relative_gap"])


@given(sequences())
def test_the_best_was_at_least_what_was_reached_when_learned(case: tuple[list[list[float]], list[int]]) -> None:
    matrix, first = case
    found = measures(matrix, first, [0.0] * len(first))
    if math.isnan(found["forgetting"]):
        assert min(first) == len(matrix) - 1
    else:
        assert found["forgetting"] >= found["forgetting_when_learned"] - 1e-9
        assert found["backward_transfer"] == -found["forgetting_when_learned"]
        assert -1 <= found["forgetting"] <= 1


@given(sequences())
def test_the_measures_are_those_of_numpy(case: tuple[list[list[float]], list[int]]) -> None:
    matrix, first = np.array(case[0]), case[1]
    early = [j for j, step in enumerate(first) if step < len(matrix) - 1]
    best = [matrix[first[j] : -1, j].max() - matrix[-1, j] for j in early]
    assert average(case[0]) == pytest.approx(matrix[-1].mean())
    assert forgetting(case[0], first) == pytest.approx(np.mean(best) if best else NAN, nan_ok=True)


@given(SHARES, st.integers(2, 5))
def test_what_never_changes_is_never_forgotten(value: float, count: int) -> None:
    matrix = [[value] * count] * count
    found = measures(matrix, range(count), [value] * count, [value] * count, matrix)
    zero = [found[name] for name in MEASURES if name != "average"]
    assert all(at == pytest.approx(0, abs=1e-12) or (value == 0 and math.isnan(at)) for at in zero)
    assert found["average"] == pytest.approx(value)


@given(sequences(), st.randoms(use_true_random=False))
def test_the_order_of_columns_says_nothing(case: tuple[list[list[float]], list[int]], random: object) -> None:
    matrix, first = case
    places = list(range(len(first)))
    random.shuffle(places)  # type: ignore[attr-defined]
    turned = [[row[j] for j in places] for row in matrix]
    chance = [0.1 * j for j in range(len(first))]
    before = measures(matrix, first, chance, chance)
    after = measures(turned, [first[j] for j in places], [chance[j] for j in places], [chance[j] for j in places])
    assert after == pytest.approx(before, nan_ok=True)
