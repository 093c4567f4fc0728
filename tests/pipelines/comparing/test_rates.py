"""Wilson's interval and McNemar's test against their formulas."""

import math

import pytest
from everline.pipelines.comparing.rates import Share, mcnemar


def test_the_interval_is_wilsons_formula() -> None:
    z, share, n = 1.959963985, 3 / 20, 20
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert Share(3, 20).interval == pytest.approx((middle - half, middle + half))
    assert Share(3, 20).text() == "3 of 20: 0.150 (0.052 to 0.360)"


def test_no_errors_are_no_proof_of_none() -> None:
    low, high = Share(0, 10).interval
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(1.959964**2 / (10 + 1.959964**2))


def test_a_share_of_no_images_is_none() -> None:
    nothing = Share(0, 0)
    assert math.isnan(nothing.value) and all(map(math.isnan, nothing.interval))
    assert nothing.text() is None and nothing.to_json() is None
    assert Share(1, 2) + Share(3, 4) == Share(4, 6)


def test_changed_verdicts_are_tested_as_a_fair_coin() -> None:
    assert mcnemar(1, 6) == pytest.approx(2 * (1 + 7) / 2**7)
    assert mcnemar(6, 1) == mcnemar(1, 6) and mcnemar(2, 2) == 1
    assert math.isnan(mcnemar(0, 0))
