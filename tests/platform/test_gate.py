"""The gate: exact tests against values from elsewhere, and each rule on its own."""

import math
from math import comb

import numpy as np
import pytest
from everline.methods.errors import ConfigError
from everline.platform.gate import Decision, Evidence, Limits, decide, mcnemar
from scipy.stats import binom

ONE_PERCENT = Limits(0.01)


def evidence(rejected: int, normal: int, missed: int = 0, defects: int = 20, first: int = 0) -> Evidence:
    """Threshold 1: so many normal images above it, from place `first` on, and so many defects below."""
    scores = [2.0 if first <= n < first + rejected else 0.0 for n in range(normal)]
    return Evidence(tuple(scores), tuple(0.0 if n < missed else 2.0 for n in range(defects)), 1.0)


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def test_an_equal_candidate_is_promoted_with_its_counts() -> None:
    found = decide(evidence(1, 200), evidence(1, 200), ONE_PERCENT)
    assert (found.promote, found.word) == (True, "promote")
    assert any("1 of 200 normal images rejected" in says for says in found.reasons)


@pytest.mark.parametrize(("rejected", "held"), [(5, False), (6, True)])
def test_the_rate_is_tested_exactly(rejected: int, held: bool) -> None:
    # By hand: P(X >= 5) = 0.0517 and P(X >= 6) = 0.0160 for X ~ Bin(200, 0.01).
    found = decide(None, evidence(rejected, 200), ONE_PERCENT)
    (check,) = [one for one in found.checks if one.name == "false-reject rate"]
    by_hand = 1 - sum(comb(200, k) * 0.01**k * 0.99 ** (200 - k) for k in range(rejected))
    assert check.p_value == pytest.approx(by_hand)
    assert (failed(found) == ["false-reject rate"]) is held


def test_the_rate_check_holds_a_version_that_keeps_its_rate_seldom() -> None:
    rejected = np.random.default_rng(0).binomial(300, 0.01, size=2000)
    held = np.mean([not decide(None, evidence(int(k), 300), ONE_PERCENT).promote for k in rejected])
    assert held <= binom.sf(6, 300, 0.01) + 0.015  # 7 is the first count with a p-value below 5 %


@pytest.mark.parametrize(
    ("b", "c", "p"),
    [(5, 0, 1 / 32), (4, 0, 1 / 16), (8, 2, 56 / 1024), (9, 2, 67 / 2048), (0, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_against_values_by_hand(b: int, c: int, p: float) -> None:
    both = [True] * 3 + [False] * 4
    one = [True] * b + [False] * c + both
    other = [False] * b + [True] * c + both
    assert mcnemar(one, other) == (b, c, pytest.approx(p))


@pytest.mark.parametrize(("missed", "held"), [(4, False), (5, True)])
def test_recall_must_not_be_clearly_lower(missed: int, held: bool) -> None:
    found = decide(evidence(0, 100), evidence(0, 100, missed), ONE_PERCENT)
    assert (failed(found) == ["recall"]) is held


def test_more_false_rejects_than_the_current_on_the_same_images_hold_it() -> None:
    wide = Limits(0.2)
    assert failed(decide(evidence(0, 100), evidence(5, 100), wide)) == ["false rejects"]
    assert decide(evidence(5, 100, first=50), evidence(5, 100), wide).promote


def test_an_image_that_both_get_wrong_counts_for_neither() -> None:
    assert decide(evidence(9, 100), evidence(9, 100), Limits(0.2)).promote


def test_remembered_images_count_for_the_rate_and_are_not_compared() -> None:
    scores = (2.0,) * 5 + (0.0,) * 495
    candidate = Evidence((), (), 1.0, remembered=scores)
    current = Evidence((), (), 1.0, remembered=(0.0,) * 500)
    assert decide(current, candidate, ONE_PERCENT).promote
    assert failed(decide(current, candidate, Limits(0.002))) == ["false-reject rate"]


def test_too_few_images_hold_it_unless_forced() -> None:
    few = evidence(0, 99)
    found = decide(None, few, ONE_PERCENT)
    assert not found.promote
    assert found.reasons == [
        "not enough evidence: 99 normal images, but 0.01 shows in 100 or more",
    ]
    assert decide(None, few, Limits(0.01, force=True)).promote
    assert decide(None, evidence(0, 100), ONE_PERCENT).promote


def test_force_does_not_let_a_worse_one_through_nor_one_without_any_image() -> None:
    forced = Limits(0.01, force=True)
    assert failed(decide(None, evidence(3, 20), forced)) == ["false-reject rate"]
    assert failed(decide(None, evidence(0, 0), forced)) == ["evidence"]


def test_a_candidate_without_a_threshold_is_held() -> None:
    assert failed(decide(None, Evidence((0.0,) * 200, (), math.inf), ONE_PERCENT)) == ["threshold"]


def test_a_score_that_is_no_number_is_a_rejection() -> None:
    assert Evidence((), (), 1.0).rejects([math.nan, 1.0, 1.1]) == [True, False, True]


def test_without_a_current_version_nothing_is_compared() -> None:
    assert {check.name for check in decide(None, evidence(0, 100), ONE_PERCENT).checks} == {
        "threshold",
        "evidence",
        "false-reject rate",
    }


def test_both_must_have_seen_the_same_images() -> None:
    with pytest.raises(ConfigError, match="same defect images"):
        decide(evidence(0, 100, defects=3), evidence(0, 100, defects=4), ONE_PERCENT)


def test_as_json_it_says_all() -> None:
    plain = decide(evidence(0, 100), evidence(0, 100, 9), ONE_PERCENT).to_json()
    assert plain["decision"] == "hold"
    assert [row["name"] for row in plain["checks"] if not row["passed"]] == ["recall"]
    assert len(plain["reasons"]) == 1
