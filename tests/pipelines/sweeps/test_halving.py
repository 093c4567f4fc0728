"""Cutoffs against ten lines of numpy, and what must hold whatever the curves."""

import math
import random

import numpy as np
import pytest
from everline.pipelines.sweeps.halving import cutoffs, stops
from everline.pipelines.sweeps.record import Point
from hypothesis import given
from hypothesis import strategies as st

GRID = [10, 20, 30, 40, 50, 60, 70, 80]  # of 90: the last point is not there


def curve(*values: float, of: int = 90) -> list[Point]:
    return [(images, of, value) for images, value in zip(GRID, values, strict=False)]


def by_numpy(values: np.ndarray, reduction: int) -> dict[int, float]:
    """values: (trials, points of GRID), -inf where a trial was stopped before."""
    found = {}
    for power in (1, 2, 3):
        at = int(np.argmax(np.array(GRID) >= 90 / reduction**power))
        column = values[:, at]
        column = column[np.isfinite(column)]
        if len(column) >= reduction:
            found[GRID[at]] = float(np.sort(column)[::-1][: len(column) // reduction].min())
    return found


@pytest.mark.parametrize("reduction", [2, 3, 4])
def test_cutoffs_are_what_numpy_finds(reduction: int) -> None:
    rng = np.random.default_rng(reduction)
    for trials in range(1, 14):
        values = rng.random((trials, len(GRID)))
        curves = [curve(*row) for row in values]
        for row, one in zip(values, curves, strict=True):
            length = int(rng.integers(0, len(GRID) + 1))
            row[length:] = -np.inf
            del one[length:]
        assert cutoffs(curves, reduction) == by_numpy(values, reduction)


def test_rungs_are_counted_from_the_end() -> None:
    three = [curve(*(value + n for n in range(8))) for value in (0.1, 0.2, 0.3)]
    assert cutoffs(three, 3) == {30: 2.3, 10: 0.3}  # 30 of 90; 10 is a ninth, and the first beyond a 27th


def test_thirds_are_exact_and_the_end_is_no_rung() -> None:
    assert set(cutoffs([[(1, 3, 0.5), (2, 3, 0.6)]] * 3, 3)) == {1}
    assert cutoffs([[(90, 90, 0.5)]] * 3, 3) == {}


def test_no_cutoffs_without_reduction_or_with_too_few_curves() -> None:
    assert cutoffs([curve(*[0.5] * 8)] * 9, 1) == {}
    assert cutoffs([curve(*[0.5] * 8)] * 2, 3) == {}
    assert cutoffs([], 3) == {}


def test_nan_never_counts_and_never_stops() -> None:
    with_nan = [curve(*[math.nan] * 8), *[curve(*[value] * 8) for value in (0.1, 0.2)]]
    assert cutoffs(with_nan, 3) == {}
    assert cutoffs(with_nan, 2) == dict.fromkeys((50, 30, 20), 0.2)
    assert not stops((50, 90, math.nan), {50: 0.2})


def test_a_trial_stops_below_the_cutoff_and_at_no_other_point() -> None:
    assert stops((30, 90, 0.49), {30: 0.5})
    assert not stops((30, 90, 0.5), {30: 0.5})
    assert not stops((40, 90, 0.1), {30: 0.5})
    assert not stops((30, 90, -5.0), {})


figures = st.one_of(st.floats(-1, 1), st.just(math.nan))
curves = st.lists(st.lists(figures, max_size=8).map(lambda values: curve(*values)), max_size=12)


@given(curves, st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_order_of_trials_decides_nothing(earlier: list[list[Point]], reduction: int, rng: random.Random) -> None:
    mixed = rng.sample(earlier, len(earlier))
    assert cutoffs(earlier, reduction) == cutoffs(mixed, reduction)


@given(curves, st.integers(2, 5))
def test_at_least_one_in_reduction_of_the_earlier_ones_would_have_gone_on(
    earlier: list[list[Point]], reduction: int
) -> None:
    for at, least in cutoffs(earlier, reduction).items():
        there = [point for one in earlier for point in one if point[0] == at and not math.isnan(point[2])]
        on = [point for point in there if not stops(point, {at: least})]
        assert len(there) >= reduction and len(on) >= len(there) // reduction
        assert (
            sum(point[2] > least for point in there) < len(there) // reduction
        )  # the cutoff is no lower than need be


@given(curves, st.integers(2, 5), st.floats(0.01, 1))
def test_better_trials_before_never_lower_a_cutoff(earlier: list[list[Point]], reduction: int, more: float) -> None:
    better = [[(images, of, value + more) for images, of, value in one] for one in earlier]
    before, after = cutoffs(earlier, reduction), cutoffs(better, reduction)
    assert before.keys() == after.keys()
    assert all(after[at] >= before[at] for at in before)


@given(curves, st.integers(2, 5))
def test_there_are_three_rungs_at_most_and_none_at_the_end(earlier: list[list[Point]], reduction: int) -> None:
    whole = [one for one in earlier if len(one) == len(GRID)]
    found = cutoffs(whole, reduction)
    assert len(found) <= 3 and all(90 / reduction**3 <= at < 90 for at in found)
