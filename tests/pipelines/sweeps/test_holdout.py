"""What a search may judge by, and what is kept from it."""

from pathlib import Path

import pytest
from everline.methods.errors import DataError
from everline.pipelines.data.datasets import Sample, Task
from everline.pipelines.sweeps.holdout import halves
from everline.pipelines.sweeps.record import HELD_OUT, SEARCH


def task(good: int = 11, cut: int = 7, dent: int = 1) -> Task:
    kinds = ["good"] * good + ["cut"] * cut + ["dent"] * dent
    test = tuple(Sample(Path(f"{kind}/{n}"), kind != "good", kind) for n, kind in enumerate(kinds))
    return Task("bolt", tuple(Path(f"train/{n}") for n in range(9)), test)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_every_image_is_on_one_side_and_every_kind_on_both(share: float) -> None:
    found = halves(task(dent=2), share, seed=3)
    sides = [{one.path for one in found[phase].test} for phase in (SEARCH, HELD_OUT)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {one.path for one in task(dent=2).test}
    for phase in (SEARCH, HELD_OUT):
        assert {one.kind for one in found[phase].test} == {"good", "cut", "dent"}
        assert found[phase].train == task().train


def test_the_seed_decides_which() -> None:
    assert halves(task(), 0.5, 1) == halves(task(), 0.5, 1)
    assert halves(task(), 0.5, 1) != halves(task(), 0.5, 2)


def test_images_to_learn_are_divided_where_they_are_judged() -> None:
    found = halves(task(), 0.5, 0, training=True)
    assert not set(found[SEARCH].train) & set(found[HELD_OUT].train)
    assert sorted(found[SEARCH].train + found[HELD_OUT].train) == sorted(task().train)


def test_nothing_is_kept_from_the_search_with_a_share_of_zero() -> None:
    assert halves(task(), 0, 0) == {SEARCH: task(), HELD_OUT: task()}


@pytest.mark.parametrize(("good", "cut"), [(1, 5), (5, 1)])
def test_too_few_images_are_refused(good: int, cut: int) -> None:
    with pytest.raises(DataError, match="--holdout 0"):
        halves(task(good, cut, 0), 0.5, 0)
