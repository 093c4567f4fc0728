"""The calibration that goes on: what was promised, drift, words, and defects that the threshold is kept below."""

import math

import numpy as np
import pytest
from everline.platform.calibration import Calibration
from everline.platform.online import Online, beyond, explained_by, interval
from everline.platform.record import Record
from hypothesis import given, settings
from hypothesis import strategies as st

RATE = 0.05


def judged(online: Online, base: Calibration, seq: int, score: float) -> Record:
    """An image as the line would record it."""
    force = online.in_force(base)
    verdict = force.verdict(score)
    record = Record("image", str(seq), score=score, threshold=force.threshold, version=1, verdict=verdict, seq=seq)
    online.see(record)
    return record


def say(online: Online, record: Record, label: str) -> None:
    online.hear(
        Record(
            "feedback",
            "f",
            score=record.score,
            threshold=record.threshold,
            version=record.version,
            verdict=record.verdict,
            data={"of": record.seq, "label": label},
        )
    )


def fresh(rate: float = RATE) -> Online:
    online = Online(rate)
    online.turn(1, {})
    return online


def stream(online: Online, base: Calibration, scores: np.ndarray, word: str | None, first: int = 0) -> list[bool]:
    """Whether each normal image was rejected; a reject gets the word, if any."""
    found = []
    for seq, score in enumerate(scores, first):
        record = judged(online, base, seq, float(score))
        found.append(record.verdict == "reject")
        if found[-1] and word:
            say(online, record, word)
    return found


@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("word", [None, "ok"])
def test_the_rate_of_fresh_normals_is_what_was_asked(draw: str, seed: int, word: str | None) -> None:
    rng = np.random.default_rng(seed)
    online, base = fresh(), Calibration.of(getattr(rng, draw)(size=200), RATE)
    rejected = stream(online, base, getattr(rng, draw)(size=600), word)
    low, high = interval(sum(rejected), len(rejected), confidence=0.999)
    spread = 3.3 * math.sqrt(RATE * (1 - RATE) / 200)  # of what 200 scores may be off by
    assert low - spread <= RATE <= high + spread


def test_after_a_shift_confirmed_rejects_bring_the_rate_back() -> None:
    rng = np.random.default_rng(3)
    base = Calibration.of(rng.normal(size=200), RATE)
    adapted, left = fresh(), fresh()
    moved = rng.normal(2.0, 1.0, size=400)
    stream(adapted, base, moved, "ok")
    stream(left, base, moved, None)
    later = rng.normal(2.0, 1.0, size=400)
    low, _ = interval(sum(stream(adapted, base, later, "ok", 400)), 400)
    assert low <= RATE
    assert np.mean(stream(left, base, later, None, 400)) > 5 * RATE


def test_rejects_without_a_word_neither_lift_the_threshold_nor_let_it_creep_down() -> None:
    rng = np.random.default_rng(4)
    online, base = fresh(), Calibration.of(rng.normal(size=200), RATE)
    start = online.in_force(base).threshold
    scores = np.where(rng.random(1500) < 0.2, rng.normal(8.0, 2.0, 1500), rng.normal(size=1500))
    stream(online, base, scores, None)
    assert online.in_force(base).threshold == pytest.approx(start, abs=0.35)


@given(st.lists(st.tuples(st.floats(-5, 50), st.sampled_from([None, "defect"])), max_size=60))
@settings(max_examples=60, deadline=None)
def test_without_an_ok_the_threshold_never_rises(images: list[tuple[float, str | None]]) -> None:
    online, base = fresh(), Calibration.of(range(40), RATE)
    for seq, (score, word) in enumerate(images):
        before = online.in_force(base).threshold
        record = judged(online, base, seq, score)
        if word and record.verdict == "reject":
            say(online, record, word)
        assert online.in_force(base).threshold <= max(before, 39.0)


def test_a_defect_that_passed_is_kept_out_and_the_threshold_stays_below_it() -> None:
    rng = np.random.default_rng(5)
    base = Calibration.of(rng.normal(size=400), RATE)
    online = fresh()
    at = online.in_force(base).threshold
    record = judged(online, base, 0, at - 0.01)
    say(online, record, "defect")
    force = online.in_force(base)
    assert record.verdict == "pass" and force.verdict(record.score or 0.0) == "reject"
    assert np.mean(np.array(base.scores) > force.threshold) <= 2 * RATE
    say(online, record, "ok")  # the last word counts
    assert online.in_force(base).verdict(record.score or 0.0) == "pass"


def test_a_defect_among_the_normals_is_not_bought_with_more_than_twice_the_rate() -> None:
    base, online = Calibration.of(range(400), RATE), fresh()
    say(online, judged(online, base, 0, 200.5), "defect")
    assert online.in_force(base).threshold == base.threshold


def test_below_the_needed_scores_it_is_uncalibrated_and_judges_as_the_version() -> None:
    online, base = fresh(0.01), Calibration.of(range(98), 0.01)
    assert (online.in_force(base).calibrated, online.in_force(base).threshold) == (False, 97.0)
    judged(online, base, 0, 3.0)
    assert online.in_force(base).calibrated


def test_another_word_takes_back_what_the_first_did() -> None:
    online, base = fresh(), Calibration.of(range(100), RATE)
    record = judged(online, base, 0, 300.0)
    before = online.in_force(base)
    say(online, record, "ok")
    assert online.in_force(base).threshold > before.threshold
    say(online, record, "defect")
    assert online.aim == pytest.approx(RATE)
    assert online.in_force(base).threshold <= before.threshold


def test_the_achieved_rate_says_what_nobody_has_looked_at() -> None:
    online, base = fresh(), Calibration.of(range(100), RATE)
    rejects = [judged(online, base, n, 500.0) for n in range(4)]
    for n in range(4, 100):
        judged(online, base, n, 3.0)
    found = online.achieved()
    assert (found.rate, found.low, found.n, found.unconfirmed) == (None, 0.0, 96, 4)
    say(online, rejects[0], "ok")
    say(online, rejects[1], "defect")
    found = online.achieved()
    assert found.rate == pytest.approx(2 / 98) and found.unconfirmed == 2
    assert found.low is not None and found.high is not None
    assert found.low < 1 / 97 < found.high


def test_clopper_pearson_is_the_published_one() -> None:
    assert interval(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert interval(2, 20) == pytest.approx((0.0123, 0.3170), abs=1e-4)
    assert interval(5, 5)[1] == 1.0


def test_a_promise_explains_its_share_of_what_passed() -> None:
    assert [explained_by(n, 0.01) for n in (98, 99, 198)] == [0, 1, 2]


@given(st.lists(st.tuples(st.floats(-5, 60), st.sampled_from([None, "ok", "defect"])), max_size=40))
@settings(max_examples=40, deadline=None)
def test_goes_on_from_its_packed_self_to_the_last_bit(images: list[tuple[float, str | None]]) -> None:
    online, base = fresh(), Calibration.of(range(40), RATE)
    for seq, (score, word) in enumerate(images):
        record = judged(online, base, seq, score)
        if word:
            say(online, record, word)
        again = Online.unpack(RATE, online.pack())
        assert vars(again) == vars(online)
        online = again


@pytest.mark.parametrize("draw", ["normal", "exponential", "lognormal"])
@pytest.mark.parametrize("share", [0.1, 0.2])
def test_what_is_cut_off_is_told_by_the_tail_of_what_passed(draw: str, share: float) -> None:
    scores = getattr(np.random.default_rng(6), draw)(size=4000)
    limit = float(np.quantile(scores, 1 - share))
    found = beyond(scores[scores <= limit].tolist(), limit) / len(scores)
    assert 0.4 * share < found < 3 * share  # of normal scores it is too many: their tail is no exponential


def test_of_what_thins_out_before_the_limit_nothing_is_cut_off() -> None:
    assert beyond(np.random.default_rng(7).normal(size=500).tolist(), 30.0) < 0.01
    assert beyond([1.0] * 50, 1.0) == beyond([1.0] * 50, 90.0) == 0.0


@given(st.lists(st.floats(0, 1), min_size=30, max_size=200))
def test_no_more_is_held_to_be_cut_off_than_the_scores_that_tell_it(scores: list[float]) -> None:
    assert 0 <= beyond(scores, max(scores)) <= math.ceil(0.3 * len(scores))


def test_no_run_of_defects_moves_what_is_held_to_be_cut_off() -> None:
    rng = np.random.default_rng(8)
    base, (plain, struck) = Calibration.of(rng.normal(size=200), 0.2), (fresh(0.2), fresh(0.2))
    scores = [float(s) for s in rng.normal(size=300)]
    stream(plain, base, np.array(scores), None)
    for seq, score in enumerate(scores):
        judged(struck, base, seq, score)
        judged(struck, base, 1000 + seq, 50.0)
    told, same = plain.cut_off(), struck.cut_off()
    assert told is not None and same is not None
    assert 0.1 < told < 0.4 and same == pytest.approx(told, abs=0.1)


def test_a_version_that_rejects_nine_of_ten_is_overtaken_unless_an_operator_names_defects() -> None:
    online, base = fresh(), Calibration.of(np.arange(100), RATE)
    records = [judged(online, base, seq, 50.0 if seq < 5 else 500.0 + seq) for seq in range(14)]
    assert online.overtaken() == 4
    say(online, records[8], "defect")
    assert online.overtaken() is None


def test_images_since_a_shift_are_judged_by_their_rank_and_those_named_defects_do_not_count() -> None:
    online, base = fresh(), Calibration.of(np.arange(100), RATE)
    records = [judged(online, base, seq, 500.0 + seq) for seq in range(30)]
    assert online.in_force(base).threshold < 100 and online.in_force(base, 25).threshold < 100  # fewer than ten
    force = online.in_force(base, 10)
    assert (force.threshold, force.calibrated) == (529.0, False)  # the 20th of 20
    say(online, records[29], "defect")
    assert online.in_force(base, 10).threshold == 528.0


def test_what_is_cut_off_since_a_shift_is_told_by_ranks_alone() -> None:
    online, base, rng = fresh(0.1), Calibration.of(np.arange(100), 0.1), np.random.default_rng(2)
    for seq, score in enumerate(rng.exponential(size=100) + 500):
        force = online.in_force(base, 0)
        said, fields = force.verdict(score), {"score": float(score), "threshold": force.threshold, "version": 1}
        online.see(Record("image", str(seq), seq=seq, verdict=said, **fields))
    assert 0.03 < (online.cut_off(0) or 0) < 0.3
