"""Which trials a sweep has: decided by what was asked and what came of trials, never by when."""

import math
import random
from collections.abc import Callable

import pytest
from everline.pipelines.sweeps.conductor import Conductor
from everline.pipelines.sweeps.record import COMPLETE, FAILED, HELD_OUT, SEARCH, STOPPED, Item, TrialRecord
from everline.pipelines.sweeps.settings import SweepSettings

Answer = Callable[[Item], TrialRecord]
TASKS = ["bolt", "nut"]


def value(item: Item) -> float:
    """A made-up figure: the nearer sigma is to 3, the better; nuts are harder."""
    sigma = item.params.get("sigma", 4.0)
    return 1 - 0.05 * abs(sigma - 3) - 0.1 * (item.task == "nut")


def answer(item: Item) -> TrialRecord:
    """As a worker would: a curve of three points, stopped where it is below its cutoff."""
    points = [(n, 100, value(item) - 1 / n) for n in (10, 34, 70)]
    for n, point in enumerate(points):
        if point[2] < item.cutoffs.get(point[0], -math.inf):
            return TrialRecord(item, "k", STOPPED, points=points[: n + 1])
    return TrialRecord(item, "k", COMPLETE, objective=value(item), points=points)


def run(conductor: Conductor, seed: int = 0, at_once: int = 1, answer: Answer = answer) -> list[TrialRecord]:
    """All trials, so many at work at once, ending in an order that the seed decides."""
    chance, working, found = random.Random(seed), [], []
    while not conductor.finished:
        while len(working) < at_once and (item := conductor.next()) is not None:
            working.append(item)
        assert working, "it waits for nothing"
        record = answer(working.pop(chance.randrange(len(working))))
        conductor.done(record)
        found.append(record)
    return sorted(found, key=lambda one: one.item.number)


def asked(**changed: object) -> SweepSettings:
    plain = {"methods": ("padim", "coreset"), "samples": 10, "generation": 3, "search": ("sigma",)}
    return SweepSettings(**(plain | changed))  # type: ignore[arg-type]


def test_one_machine_or_twenty_in_any_order_give_the_same_trials() -> None:
    alone = run(Conductor(asked(), TASKS))
    for seed, at_once in ((1, 2), (2, 7), (3, 40)):
        assert run(Conductor(asked(), TASKS), seed, at_once) == alone


def test_every_trial_has_a_number_of_its_own_and_all_were_expected() -> None:
    conductor = Conductor(asked(), TASKS)
    found = run(conductor)
    assert len({one.item.number for one in found}) == len(found)
    phases = [one.item.phase for one in found]
    assert (phases.count(SEARCH), phases.count(HELD_OUT)) == (conductor.searched, conductor.judged)
    assert conductor.searched == 2 * 10 * len(TASKS)


def test_the_first_configuration_has_the_defaults() -> None:
    found = run(Conductor(asked(), TASKS))
    assert [one.item.params for one in found if one.item.configuration in (0, 1)] == [{}] * 4 * 2


def test_what_was_chosen_and_the_defaults_are_judged_on_images_held_out() -> None:
    found = run(Conductor(asked(methods=("padim",)), TASKS))
    means = {}
    for one in found:
        if one.item.phase == SEARCH and one.status == COMPLETE:
            means.setdefault(one.item.configuration, []).append(one.objective)
    whole = {n: sum(v) / 2 for n, v in means.items() if len(v) == 2}
    best = max(whole, key=lambda n: whole[n])
    assert {one.item.configuration for one in found if one.item.phase == HELD_OUT} == {0, best}


def test_nothing_is_held_out_where_that_was_asked() -> None:
    assert {one.item.phase for one in run(Conductor(asked(holdout=0), TASKS))} == {SEARCH}


def test_every_memory_size_has_a_search_of_its_own() -> None:
    found = run(Conductor(asked(methods=("coreset", "padim"), memory=(100, 300), samples=2), TASKS))
    sizes = {(one.item.method, one.item.memory) for one in found}
    assert sizes == {("coreset", 100), ("coreset", 300), ("padim", None)}


def test_a_failing_trial_does_not_stop_the_others() -> None:
    def failing(item: Item) -> TrialRecord:
        broken = item.method == "coreset" and item.task == "nut"
        return TrialRecord(item, "k", FAILED, error="broken") if broken else answer(item)

    conductor = Conductor(asked(), TASKS)
    found = run(conductor, answer=failing)
    assert sum(one.item.phase == SEARCH for one in found) == conductor.searched
    assert {one.item.method for one in found if one.item.phase == HELD_OUT} == {"padim"}


def test_later_generations_are_stopped_below_what_the_earlier_ones_had() -> None:
    found = run(Conductor(asked(methods=("padim",)), ["bolt"]))
    assert all(not one.item.cutoffs for one in found[:3])
    assert any(one.status == STOPPED for one in found)
    assert all(one.status == COMPLETE for one in run(Conductor(asked(reduction=1), TASKS)))


def test_more_samples_keep_the_trials_that_there_were() -> None:
    few = run(Conductor(asked(samples=6), TASKS))
    many = {one.item.number: one for one in run(Conductor(asked(samples=12), TASKS))}
    assert all(many[one.item.number] == one for one in few if one.item.phase == SEARCH)


def test_latency_is_never_a_reason_to_stop_on_the_way() -> None:
    assert not any(one.item.cutoffs for one in run(Conductor(asked(objective="latency"), TASKS)))


def test_a_sequence_is_one_trial_for_all_tasks() -> None:
    settings = asked(protocol="continual", options={"strategy": "replay"}, memory=(10, 20), samples=1, search=())
    found = [one for one in run(Conductor(settings, TASKS)) if one.item.phase == SEARCH]
    assert [(one.item.task, one.item.memory) for one in found] == [("", 10), ("", 20)] * 2


@pytest.mark.parametrize(
    "changed",
    [{"samples": 0}, {"holdout": 1.0}, {"memory": (5, 5)}, {"methods": ()}, {"given": {"sgma": 1}}, {"seeds": 0}],
)
def test_what_makes_no_sweep_is_refused(changed: dict[str, object]) -> None:
    from everline.methods.errors import ConfigError

    with pytest.raises(ConfigError):
        asked(**changed)


def test_settings_come_back_from_their_file() -> None:
    import json

    settings = asked(
        memory=(10, 20),
        given={"coreset.guard": 0},
        data={"folders": ["/a"], "dataset": None, "root": None},
        images={"a": "1"},
    )
    assert SweepSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
