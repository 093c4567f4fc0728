"""Paired tests over seeds against numpy and scipy by hand."""

import math

import numpy as np
import pytest
from everline.pipelines.comparing.significance import Cells, against, best_of, holm, pair, paired_t
from scipy import stats

RNG = np.random.default_rng(3)
BEST = RNG.uniform(0.8, 0.9, (6, 3))  # seeds x tasks
WORSE = BEST - RNG.normal(0.03, 0.02, (6, 3))


def cells(values: np.ndarray, first: int = 0) -> Cells:
    return {f"t{n}": {first + k: float(v) for k, v in enumerate(column)} for n, column in enumerate(values.T)}


def test_a_pair_is_the_paired_t_test_of_means_over_tasks() -> None:
    found = pair("worse", cells(WORSE), cells(BEST))
    assert found is not None
    own, other = WORSE.mean(1), BEST.mean(1)
    interval = stats.ttest_1samp(own - other, 0).confidence_interval(0.95)
    assert found.difference == pytest.approx((own - other).mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(stats.ttest_rel(own, other).pvalue)
    assert (found.seeds, found.tasks, found.wins, found.ties) == (6, 3, int((WORSE > BEST).sum()), 0)


def test_p_is_that_of_the_t_distribution_written_out() -> None:
    differences = np.array([0.02, -0.01, 0.04, 0.03])
    mean, low, high, p = paired_t(differences + 0.5, np.full(4, 0.5))
    error = differences.std(ddof=1) / 2
    assert p == pytest.approx(2 * stats.t.sf(differences.mean() / error, 3))
    assert (mean - low, high - mean) == pytest.approx([3.182446305 * error] * 2)  # the table's value for 3 degrees


def test_only_seeds_and_tasks_in_common_count() -> None:
    more = {**cells(WORSE, first=2), "own": dict.fromkeys(range(2, 8), 0.1)}
    found = pair("worse", more, cells(BEST))
    assert found is not None
    assert (found.seeds, found.tasks) == (4, 3)
    assert found.difference == pytest.approx((WORSE[:4].mean(1) - BEST[2:].mean(1)).mean())


def test_a_task_that_lacks_the_figure_is_left_out() -> None:
    holed = WORSE.copy()
    holed[2, 1] = math.nan
    found = pair("worse", cells(holed), cells(BEST))
    assert found is not None
    assert found.tasks == 2 and found.difference == pytest.approx((WORSE - BEST)[:, [0, 2]].mean())
    assert pair("worse", cells(np.full((6, 3), math.nan)), cells(BEST)) is None


def test_fewer_than_two_seeds_in_common_are_no_pair() -> None:
    assert pair("a", cells(WORSE, first=5), cells(BEST)) is None
    assert pair("a", cells(WORSE[:1]), cells(BEST[:1])) is None
    assert pair("a", {}, cells(BEST)) is None


def test_identical_records_differ_by_nothing() -> None:
    found = pair("same", cells(BEST), cells(BEST))
    assert found is not None
    assert (found.difference, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    assert (found.wins, found.ties) == (0, 18)


def test_the_same_difference_with_every_seed_has_no_p() -> None:
    found = pair("less", cells(BEST - 0.1), cells(BEST))  # rounding leaves a spread of 1e-17
    assert found is not None
    assert math.isnan(found.p) and found.difference == pytest.approx(-0.1)
    assert found.low == found.high == found.difference
    assert found.to_json()["p"] is None and found.to_json()["of"] == 18


def test_holm_is_as_in_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    some = holm([0.02, math.nan, 0.01])
    assert math.isnan(some[1]) and [some[0], some[2]] == pytest.approx([0.02, 0.02])


def test_holm_rejects_step_by_step_as_its_definition_says() -> None:
    values = RNG.uniform(0, 0.05, 12)
    for level in (0.01, 0.05, 0.2):
        order, rejected = np.argsort(values), np.zeros(12, bool)
        for k, n in enumerate(order):
            if values[n] > level / (12 - k):
                break
            rejected[n] = True
        assert [p <= level for p in holm(values)] == rejected.tolist()


def test_the_best_is_one_that_can_be_paired() -> None:
    records = {"worse": cells(WORSE), "best": cells(BEST), "lucky": cells(BEST[:1] + 0.1)}
    assert best_of(records) == "best"
    assert best_of({"a": cells(BEST), "b": cells(WORSE, first=100)}) is None
    assert best_of({}) is None


def test_every_other_record_is_set_against_the_best() -> None:
    low = WORSE - RNG.normal(0.05, 0.02, WORSE.shape)
    found = against("best", {"worse": cells(WORSE), "low": cells(low), "best": cells(BEST), "one": cells(BEST[:1])})
    assert [one.record for one in found] == ["worse", "low"]
    assert [one.holm for one in found] == pytest.approx(holm([one.p for one in found]))
