"""The fold over the log is a function of the records: order, bits, candidates and what they lead to."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from everline.methods.conformance import images, same
from everline.platform.calibration import Calibration
from everline.platform.drift import DRIFT
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


def test_an_image_of_an_unknown_sender_changes_nothing_in_a_drift_that_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, seen = fold(drift="adapt"), []
    run(state, 0, 2)
    state.watch._now.state = DRIFT
    monkeypatch.setattr(state, "_drifted", seen.append)
    foreign = replace(image(2, admitted=False, verdict="reject"), data={"learn": False, "unknown_sender": True})
    state.apply(foreign, lambda r: torch.zeros(1))
    assert not seen and state.counts["inspected"] == 3
    state.apply(replace(image(3, admitted=False), data={"learn": False}), lambda r: torch.zeros(1))
    assert [record.seq for record in seen] == [3]


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


CALM = Calibration.of(np.linspace(0.5, 1.0, 40), 0.1)
FEATURES: dict[int, torch.Tensor] = {}


class Plant:
    """A fold that is told records as a line writes them: version 1 judges by made scores after `calm` images."""

    def __init__(self, drift: str = "adapt", calm: int = 60) -> None:
        self.state = fold(false_reject_rate=0.1, publish_every=1000, probation=1, drift=drift)
        self.published: list[Publish] = []  # due after version 1
        self.said: list[Record] = []
        for _ in range(calm):
            self.see()
        self.tell("publish", version=1, watermark=24)

    def tell(self, kind: str, version: int | None = None, **data: object) -> None:
        seq = self.state.watermark + 1
        record = Record(kind=kind, id=kind, seq=seq, version=version, data=data, task=self.state.task)
        assert self.state.apply(record, self.features) is None

    def see(self, score: float | None = None, light: float = 0.0, p_value: float | None = None) -> Record:
        """One image; a score that is not given is one in the middle of those of the version's calibration."""
        state, seq = self.state, self.state.watermark + 1
        chance = np.random.default_rng(seq)
        moved = [120 + light + 8 * chance.standard_normal()] * 3 + chance.standard_normal(32).tolist()
        fields: dict[str, Any] = {"verdict": "learning"}
        if state.current is not None and (state.knows or state.shifted is not None):
            value, force = score or float(chance.uniform(0.5, 0.9)), state.in_force(CALM)
            said = force.verdict(value)
            fields = {"score": value, "threshold": force.threshold, "version": state.current, "verdict": said}
            fields["p_value"] = p_value or force.calibration.p_value(value)
            if said == "pass" and state.shifted is not None:
                fields["verdict"] = "learning"
        admitted = fields["verdict"] != "reject"
        data = {"moments": moved}
        record = Record(
            kind="image", id=str(seq), seq=seq, image=b"-", admitted=admitted, task=state.task, **fields, data=data
        )
        ready = state.apply(record, self.features)
        self.said.append(record)
        if ready is not None and state.current is not None:
            self.published.append(ready)
        return record

    def features(self, record: Record) -> torch.Tensor:
        n = record.seq % len(PICTURES)
        return FEATURES.setdefault(n, self.state.learner.embed(PICTURES[n][None]))

    def shift(self, count: int) -> list[str | None]:
        """So many images in another light, which version 1 takes for unusual; what is said of them."""
        return [self.see(5 + float(np.random.default_rng(n).uniform(0, 1)), light=60).verdict for n in range(count)]


def test_after_a_shift_of_light_that_a_version_does_not_know_the_line_begins_anew() -> None:
    plant = Plant()
    said = plant.shift(60)
    begun = said.index("learning")
    assert 5 <= begun <= 20 and set(said[:begun]) == {"reject"}
    assert 1 <= said[begun:].count("reject") <= 12  # by rank: one tenth, and more while there are few
    learned = [r for r in plant.said if r.verdict == "learning" and r.seq > 60]
    assert [p.watermark for p in plant.published] == [learned[24].seq]
    assert not plant.state.knows
    plant.tell("publish", version=2, watermark=plant.published[0].watermark)
    assert plant.state.knows and plant.state.shifted is None


@pytest.mark.parametrize("mild", [0, 35])
def test_only_images_that_were_learned_since_the_version_gave_way_bring_one_that_knows(mild: int) -> None:
    plant = Plant(calm=85)  # the hundredth comes among the first of the new light
    for _ in range(mild):
        assert plant.see(light=60).verdict == "pass"
    begun = plant.state.watermark
    plant.shift(60)
    learned = [r for r in plant.said if r.verdict == "learning" and r.seq > begun]
    assert [p.watermark for p in plant.published if p.watermark > begun] == [learned[24].seq]


def test_what_is_high_among_the_images_since_the_shift_is_not_learned() -> None:
    plant = Plant()
    plant.shift(30)
    record = plant.see(9.0, light=60)
    assert (record.verdict, record.admitted) == ("reject", False)
    assert plant.see(5.1, light=60).verdict == "learning"
    assert not plant.state.in_force(CALM).calibrated


@pytest.mark.parametrize("drift", ["hold", "alarm"])
def test_the_other_policies_go_on_rejecting(drift: str) -> None:
    plant = Plant(drift)
    assert set(plant.shift(40)) == {"reject"} and plant.state.shifted is None


def test_a_run_of_defects_is_not_learned() -> None:
    plant = Plant()
    for n in range(60):
        plant.see(5.0 if n % 10 else None)
        assert plant.state.watch.state != "drift" and plant.state.shifted is None
    assert plant.state.watch.state == "defects" and not any(r.admitted for r in plant.said if r.score == 5.0)


def test_a_drift_of_scores_alone_brings_versions_sooner_and_the_threshold_stays() -> None:
    plant = Plant()
    for n in range(80):
        plant.see(p_value=None if n < 30 else 0.11)
        if plant.state.watch.state == "drift":
            break
    learned, since = plant.state.learner.images_learned, plant.state.watermark
    assert plant.state.watch.status()["by"] == "scores"
    for _ in range(12):
        assert plant.see(5.0).verdict == "reject" and plant.state.shifted is None
    for _ in range(40):
        plant.see()
    marks = [p.watermark for p in plant.published if p.watermark > since]
    assert marks and learned % 25 and marks[0] == since + 12 + 24  # the alarm's image is the first


def test_a_person_who_rolls_back_is_judged_by_what_they_chose() -> None:
    plant = Plant()
    plant.shift(30)
    plant.tell("rollback", version=1)
    assert plant.state.knows and plant.state.shifted is None
    assert plant.see().verdict == "pass"


def test_another_product_is_judged_as_before_and_the_shifted_one_by_rank_among_its_own() -> None:
    plant = Plant()
    plant.shift(30)
    plant.tell("task", task="b")
    assert plant.see().verdict == "learning" and plant.state.shifted is None
    plant.tell("task", task="")
    assert plant.state.shifted == plant.state.watermark


def test_goes_on_bit_for_bit_in_the_middle_of_a_shift_and_from_a_checkpoint_that_knew_of_none() -> None:
    whole, half = Plant(), Plant()
    for plant, count in ((whole, 60), (half, 30)):
        plant.shift(count)
    states, meta = half.state.pack()
    half.state = fold(false_reject_rate=0.1, publish_every=1000, probation=1)
    half.state.unpack(states, json.loads(json.dumps(meta)))
    assert half.state.shifted is not None
    for n in range(30, 60):
        half.see(5 + float(np.random.default_rng(n).uniform(0, 1)), light=60)
    assert whole.said == half.said and whole.state.pack()[1] == half.state.pack()[1]
    assert same(whole.state.learner.state(), half.state.learner.state())
    older = fold(false_reject_rate=0.1, publish_every=1000, probation=1)
    older.unpack(states, {**meta, "known": meta["known"][:3]})
    assert older.shifted is None and older.watermark == meta["watermark"]
