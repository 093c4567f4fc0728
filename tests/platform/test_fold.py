"""The fold over the log is a function of the records: order, bits, candidates and what they lead to."""

import numpy as np
import pytest
import torch
from everline.methods.conformance import images, same
from everline.platform.fold import Fold, Publish
from everline.platform.record import Record

PICTURES = images(130, seed=21)


def fold(**given: object) -> Fold:
    return Fold("lemo", {"size": 64}, **given)  # type: ignore[arg-type]


def image(seq: int, *, admitted: bool = True, verdict: str = "pass") -> Record:
    return Record(kind="image", id=str(seq), seq=seq, admitted=admitted, verdict=verdict)


def run(state: Fold, first: int, last: int) -> list[Publish]:
    """Applies image records [first, last); returns what they led to."""
    extractor = state.learner.embed
    found = [state.apply(image(seq), lambda r: extractor(PICTURES[r.seq][None])) for seq in range(first, last)]
    return [ready for ready in found if ready is not None]


def test_records_must_come_in_turn() -> None:
    state = fold()
    run(state, 0, 2)
    for seq in (1, 3):
        with pytest.raises(ValueError, match="applied after 1"):
            state.apply(image(seq), lambda r: torch.zeros(1))


def test_what_is_not_admitted_is_counted_and_not_learned() -> None:
    state = fold()
    run(state, 0, 1)
    before = state.learner.state()
    state.apply(image(1, admitted=False, verdict="reject"), lambda r: torch.zeros(1))
    assert same(before, state.learner.state())
    assert state.counts == {"inspected": 2, "rejected": 1, "not_admitted": 1, "published": 0}


def test_a_candidate_is_judged_on_images_it_has_not_learned() -> None:
    state = fold(false_reject_rate=0.05, probation=1)
    ready = run(state, 0, 60)
    first = ready[0]
    assert first.watermark == 24
    assert first.state.meta["images_learned"] == 25
    snapshot = fold()
    run(snapshot, 0, 25)
    features = [snapshot.learner.embed(PICTURES[i][None]) for i in range(25, 44)]
    want = sorted(float(snapshot.learner.score(f).image[0]) for f in features)
    np.testing.assert_array_equal(first.calibration.scores, want)


def test_snapshots_double_and_then_come_at_a_steady_pace() -> None:
    state = fold(publish_every=60)
    assert [r.watermark + 1 for r in run(state, 0, 130)] == [25, 50, 60]


def test_a_candidate_waits_for_as_many_scores_as_the_rate_needs() -> None:
    ready = run(fold(false_reject_rate=0.1, probation=1, publish_every=100), 0, 40)
    assert len(ready[0].calibration.scores) == 9
    assert ready[0].calibration.calibrated


def test_a_reject_waits_at_its_score_and_is_nothing_where_its_image_is_gone() -> None:
    state = fold()
    run(state, 0, 30)
    for seq, data in enumerate([b"-", None], 30):
        reject = Record(kind="image", id=str(seq), seq=seq, image=data, admitted=False, verdict="reject")
        state.apply(reject, lambda r: state.learner.embed(PICTURES[r.seq][None]))
    assert state.candidate is not None
    assert list(state.candidate.rejected) == [30] and len(state.candidate.scores) == 5


def products(state: Fold, *counts: int) -> list[tuple[int, int, bool]]:
    """So many images of products a, b, a, b, ...; each version is current at once.

    Returns (number of the images so far, of those that the version learned, whether it judges the product at hand).
    """
    found, seq, images, taken = [], 0, 0, iter(PICTURES)
    for turn, count in enumerate(counts):
        name = "ab"[turn % 2]
        state.apply(Record(kind="task", id="t", seq=seq, data={"task": name}), lambda r: torch.zeros(1))
        seq += 1
        for picture in (next(taken) for _ in range(count)):
            record = Record(kind="image", id=str(seq), seq=seq, task=name, admitted=True, verdict="pass")
            ready = state.apply(record, lambda _, one=picture: state.learner.embed(one[None]))  # type: ignore[misc]
            seq, images = seq + 1, images + 1
            if ready is not None:
                told = {"watermark": ready.watermark}
                publish = Record(kind="publish", id="p", seq=seq, version=len(found) + 1, data=told)
                state.apply(publish, lambda r: torch.zeros(1))
                seq += 1
                found.append((images, ready.state.meta["images_learned"], state.knows))
    return found


def test_a_new_product_is_begun_as_a_new_line_is_and_one_that_is_back_is_known() -> None:
    state = fold(false_reject_rate=0.1, publish_every=100)
    assert products(state, 60, 55, 5) == [(50, 25, True), (75, 50, False), (100, 85, True), (110, 100, True)]
    assert state.knows


def test_a_version_that_a_person_made_current_knows_the_product_at_hand_and_no_later_one() -> None:
    state = fold()
    events = [("task", None, "a"), ("rollback", 7, ""), ("task", None, "b"), ("rollback", 7, ""), ("task", None, "a")]
    known = []
    for seq, (kind, version, task) in enumerate(events):
        data = {"task": task} if task else {}
        state.apply(Record(kind=kind, id=kind, seq=seq, version=version, data=data), lambda r: torch.zeros(1))
        known.append(state.knows)
    assert known == [False, True, False, False, True]


def test_publish_and_rollback_records_set_the_current_version() -> None:
    state = fold()
    for seq, (kind, version) in enumerate([("publish", 1), ("publish", 2), ("rollback", 1)]):
        state.apply(Record(kind=kind, id=kind, seq=seq, version=version), lambda r: torch.zeros(1))
    assert state.current == 1
    assert state.counts["published"] == 2


def test_continues_bit_for_bit_from_its_packed_self() -> None:
    whole, first, second = fold(), fold(), fold()
    for state in (whole, first, second):
        state.ask = lambda question: whole.learner.embed(PICTURES[question.number][None])
    ready = run(whole, 0, 70)
    early = run(first, 0, 33)  # in the middle of a candidate's probation
    states, meta = first.pack()
    second.unpack(states, meta)
    late = run(second, 33, 70)
    assert same(whole.learner.state(), second.learner.state())
    assert [r.key for r in ready] == [r.key for r in early + late]
    assert [r.calibration for r in ready] == [r.calibration for r in early + late]
    assert whole.pack()[1] == second.pack()[1]


def test_what_is_learned_does_not_depend_on_the_gate() -> None:
    asked, unasked = fold(), fold()
    asked.ask = lambda question: asked.learner.embed(PICTURES[question.number][None]) * 9
    ready, others = run(asked, 0, 60), run(unasked, 0, 60)
    assert same(asked.learner.state(), unasked.learner.state())
    assert ready[-1].held and not others[-1].held
    assert [(r.key, r.calibration) for r in ready] == [(r.key, r.calibration) for r in others]
