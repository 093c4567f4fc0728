"""The order in which the images of several tasks come."""

from collections import Counter
from pathlib import Path

import pytest
from everline.methods.errors import ConfigError, DataError
from everline.pipelines.data.datasets import Task
from everline.pipelines.protocols.sequence import epoch_of, first_steps, order_of, steps_of


def tasks(*counts: int) -> list[Task]:
    return [
        Task(f"task{place}", tuple(Path(f"task{place}/{n}.png") for n in range(count)), ())
        for place, count in enumerate(counts)
    ]


def test_orders_are_given_drawn_or_spelled_out() -> None:
    assert order_of("given", 3, 0) == [0, 1, 2]
    assert order_of("0,2,1,0", 3, 0) == [0, 2, 1, 0]
    drawn = {tuple(order_of("shuffled", 4, seed)) for seed in range(20)}
    assert len(drawn) > 5 and all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    assert order_of("shuffled", 4, 7) == order_of("shuffled", 4, 7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("0,3", "no task 3"),
        ("0,-1", "no task -1"),
        ("0,2", "task 1 never comes"),
        ("0,0,1,2", "twice in a row"),
        ("first", "got 'first'"),
        ("", "got ''"),
    ],
)
def test_an_order_that_is_none_is_refused(words: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        order_of(words, 3, 0)


def test_every_image_comes_once_in_an_order_of_the_seed() -> None:
    given = tasks(5, 7, 3)
    steps = steps_of(given, [2, 0, 1], 1, 0, seed=3)
    assert [step.tasks for step in steps] == [(2,), (0,), (1,)]
    for step in steps:
        (place,) = step.tasks
        assert Counter(step.images) == Counter((place, path) for path in given[place].train)
    assert steps == steps_of(given, [2, 0, 1], 1, 0, seed=3) != steps_of(given, [2, 0, 1], 1, 0, seed=4)


def test_a_task_that_returns_shows_images_it_has_not_shown() -> None:
    given = tasks(7, 4)
    first, _, again = steps_of(given, [0, 1, 0], 1, 0, seed=0)
    assert {len(first.images), len(again.images)} == {4, 3}
    assert Counter(first.images + again.images) == Counter((0, path) for path in given[0].train)
    with pytest.raises(DataError, match="too few for 2 visits"):
        steps_of(tasks(1, 4), [0, 1, 0], 1, 0, seed=0)


def test_a_block_mixes_its_tasks() -> None:
    one, two = steps_of(tasks(20, 20, 6), [0, 1, 2], 2, 0, seed=0)
    assert one.tasks in ((0, 1), (1, 0)) and two.tasks == (2,)
    assert 5 < sum(place == 0 for place, _ in one.images[:20]) < 15
    assert first_steps([one, two]) == {one.tasks[0]: 0, one.tasks[1]: 0, 2: 1}


def test_blended_borders_mix_the_ends_alone() -> None:
    given = tasks(20, 20, 20)
    plain, blended = (steps_of(given, [0, 1, 2], 1, blend, seed=0) for blend in (0, 0.25))
    assert [len(step.images) for step in blended] == [20, 20, 20]
    assert Counter(shot for step in blended for shot in step.images) == Counter(
        s for step in plain for s in step.images
    )
    assert blended[0].images[:15] == plain[0].images[:15] and blended[2].images[5:] == plain[2].images[5:]
    strangers = sum(place != 0 for place, _ in blended[0].images)
    assert strangers == sum(place == 0 for place, _ in blended[1].images) > 0


def test_epochs_are_shuffled_each_in_its_own_way() -> None:
    (step,) = steps_of(tasks(9), [0], 1, 0, seed=0)
    orders = [epoch_of(step.images, epoch, 0, 0) for epoch in range(3)]
    assert orders[0] == list(step.images) and orders[0] != orders[1] != orders[2]
    assert all(Counter(order) == Counter(step.images) for order in orders)
