"""Conformal thresholds keep what they promise, and say when they cannot."""

import math

import numpy as np
import pytest
from everline.platform.calibration import Calibration


def test_one_percent_needs_99_scores() -> None:
    assert Calibration.of(range(98), 0.01).calibrated is False
    assert Calibration.of(range(99), 0.01).calibrated is True


@pytest.mark.parametrize(("count", "rate"), [(99, 0.01), (199, 0.05), (25, 0.1), (1000, 0.01)])
def test_verdict_and_p_value_agree(count: int, rate: float) -> None:
    calibration = Calibration.of(np.random.default_rng(0).normal(size=count), rate)
    for score in np.linspace(-4, 4, 200):
        rejected = calibration.verdict(score) == "reject"
        assert rejected == (calibration.p_value(score) <= rate)


def test_rate_is_kept_on_fresh_normals() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        calibration = Calibration.of(rng.exponential(size=99), 0.05)
        rates.append(np.mean(rng.exponential(size=200) > calibration.threshold))
    assert np.mean(rates) == pytest.approx(0.05, abs=0.01)


def test_too_few_scores_reject_only_what_was_never_seen() -> None:
    calibration = Calibration.of([1.0, 3.0, 2.0], 0.01)
    assert calibration.threshold == 3.0
    assert calibration.verdict(3.0) == "pass"
    assert calibration.verdict(3.1) == "reject"


def test_no_scores_reject_nothing_but_nonsense() -> None:
    calibration = Calibration.of([], 0.01)
    assert calibration.threshold == math.inf
    assert calibration.verdict(1e9) == "pass"
    assert calibration.verdict(math.nan) == "reject"


def test_survives_json() -> None:
    calibration = Calibration.of([0.1, 0.30000000000000004], 0.02)
    assert Calibration.from_json(calibration.to_json()) == calibration
