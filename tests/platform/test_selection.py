"""Who has to go: chances against the binomial, shares against counting, herding against brute force."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from everline.methods.errors import ConfigError, Corrupt, UnknownName
from everline.platform.selection import POLICIES, Item, Selection, victim
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

Vectors = NDArray[np.float32]


def offer(held: Selection, task: str = "", score: float | None = None, vector: Vectors | None = None) -> None:
    new = held.item(f"i{held.offered.total()}", task, 10, score, vector)
    held.take(replace(new, seq=new.number), held.goes(new))


def kept(policy: str, tasks: Iterable[str], capacity: int, seed: int = 0) -> list[Item]:
    held = Selection(capacity, policy, seed)
    for n, task in enumerate(tasks):
        offer(held, task, float(n * 7919 % 101), np.float32([n % 5, n % 3]))
    return held.items


def outside(counts: NDArray[np.int64], trials: int, share: float) -> NDArray[np.bool_]:
    """Where a count is one that a binomial has less often than once in ten million."""
    low, high = binom.ppf([1e-7, 1 - 1e-7], trials, share)
    return (counts < low) | (counts > high)


def times_held(policy: str, tasks: list[str], capacity: int, seeds: int) -> NDArray[np.int64]:
    times = np.zeros(len(tasks), dtype=np.int64)
    for seed in range(seeds):
        times[[item.number for item in kept(policy, tasks, capacity, seed)]] += 1
    return times


def test_a_reservoir_holds_each_image_offered_with_equal_probability() -> None:
    assert not outside(times_held("reservoir", [""] * 30, 6, 1500), 1500, 6 / 30).any()


def test_the_bound_on_chances_finds_a_sliding_window() -> None:
    assert outside(np.array([0] * 24 + [1500] * 6), 1500, 6 / 30).all()


@pytest.mark.parametrize("tasks", ["a" * 20 + "b" * 12, "ab" * 10 + "a" * 12, "b" * 3 + "a" * 20 + "b" * 9])
def test_balanced_holds_each_image_of_a_task_with_equal_probability(tasks: str) -> None:
    times, is_a = times_held("balanced", list(tasks), 6, 1500), np.array(list(tasks)) == "a"
    assert not outside(times[is_a], 1500, 3 / is_a.sum()).any()
    assert not outside(times[~is_a], 1500, 3 / (~is_a).sum()).any()


@given(
    tasks=st.lists(st.sampled_from("abcd"), max_size=60), capacity=st.integers(4, 20), seed=st.integers(0, 2**63 - 1)
)
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_shares_differ_by_at_most_one(policy: str, tasks: list[str], capacity: int, seed: int) -> None:
    tasks = tasks + [t for t in dict.fromkeys(tasks) for _ in range(capacity)]  # each has offered enough
    held = Counter(item.task for item in kept(policy, tasks, capacity, seed))
    assert held.total() == min(capacity, len(tasks))
    assert set(held) == set(tasks)
    assert not held or max(held.values()) - min(held.values()) <= 1


@given(tasks=st.lists(st.sampled_from("abc"), min_size=1, max_size=40), capacity=st.integers(1, 12))
@settings(deadline=None, max_examples=60)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_small_task_is_held_whole_and_order_is_kept(policy: str, tasks: list[str], capacity: int) -> None:
    items = kept(policy, tasks, capacity)
    numbers = [item.number for item in items]
    assert numbers == sorted(set(numbers)) and len(items) == min(capacity, len(tasks))
    assert all(tasks[item.number] == item.task for item in items)
    assert all(tasks[: item.number].count(item.task) == item.number_in_task for item in items)
    if policy != "reservoir":
        for task in set(tasks):
            if tasks.count(task) <= capacity // 3:
                assert sum(item.task == task for item in items) == tasks.count(task)


@given(
    data=st.data(), tasks=st.lists(st.sampled_from("abc"), min_size=2, max_size=30), policy=st.sampled_from(POLICIES)
)
@settings(deadline=None, max_examples=60)
def test_goes_on_bit_for_bit_through_json(data: st.DataObject, tasks: list[str], policy: str) -> None:
    held = Selection(5, policy, 3)
    for n, task in enumerate(tasks):
        if data.draw(st.booleans(), label="cut"):
            held = Selection.unpack(json.loads(json.dumps(held.pack(), allow_nan=False)))
        offer(held, task, float(n * 7919 % 101), np.float32([n % 5, n % 3]))
    assert [i.number for i in held.items] == [i.number for i in kept(policy, tasks, 5, 3)]


def test_shares_that_cannot_be_equal_do_not_favour_what_came_last() -> None:
    times = times_held("balanced", list("ab" * 15), 5, 1500)
    assert not outside(times[::2], 1500, 3 / 15).any()
    assert not outside(times[1::2], 1500, 2 / 15).any()


def test_decisions_follow_the_seed() -> None:
    held = [[i.number for i in kept("reservoir", [""] * 60, 10, seed)] for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]


@given(st.integers(1, 8), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=60)
def test_herding_drops_whom_brute_force_drops(count: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count + 1, 3)).astype(np.float32)
    mean = np.random.default_rng(seed + 1).normal(size=3)
    items = [Item(n, n, "a", "", 1, descriptor=v) for n, v in enumerate(vectors)]
    far = [np.linalg.norm(np.delete(vectors, n, 0).mean(0, dtype=np.float64) - mean) for n in range(count + 1)]
    assert victim("herding", items[:-1], items[-1], 0, {"a": mean}) == int(np.argmin(far))


@pytest.mark.parametrize("seed", range(5))
def test_herding_keeps_the_mean_of_drifting_data_better_than_a_reservoir(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(size=(600, 8))
    vectors = (noise + np.linspace(0, 6, 600)[:, None]).astype(np.float32)
    away = {}
    for policy in ("reservoir", "herding"):
        held = Selection(20, policy, seed)
        for vector in vectors:
            offer(held, "a", None, vector)
        rest = vectors[[item.number for item in held.items]]
        away[policy] = np.linalg.norm(rest.mean(axis=0) - vectors.mean(axis=0))
    assert away["herding"] < 0.5 * away["reservoir"]


def test_the_running_mean_is_that_of_all_descriptors_offered() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    held = Selection(3, "herding", 0)
    for n, vector in enumerate(vectors):
        offer(held, "ab"[n % 2], None, vector)
    np.testing.assert_allclose(held.means["b"], vectors[1::2].mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_hardest_holds_the_highest_scores_of_each_task() -> None:
    scores = np.random.default_rng(1).permutation(80).astype(float)
    held = Selection(8, "hardest", 0)
    for n, score in enumerate(scores):
        offer(held, "ab"[n // 40], score)
    for task, rows in (("a", scores[:40]), ("b", scores[40:])):
        best = sorted(rows)[-4:]
        assert sorted(item.score for item in held.items if item.task == task) == best


def test_of_equal_scores_the_newest_goes() -> None:
    held = Selection(3, "hardest", 0)
    for _ in range(9):
        offer(held, "a", 1.0)
    assert [item.number for item in held.items] == [0, 1, 2]


def test_a_held_descriptor_is_a_copy() -> None:
    held, vector = Selection(2, "herding", 0), np.ones(2, dtype=np.float32)
    offer(held, "a", None, vector)
    vector[:] = 5
    assert held.items[0].descriptor is not None and held.items[0].descriptor.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("policy", "score", "vector", "said"),
    [
        ("hardest", None, None, "no score"),
        ("herding", None, None, "no descriptor"),
        ("herding", None, np.float32([1, 2, 3]), "2 values"),
        ("herding", None, np.float32([[1, 2]]), "one axis"),
        ("herding", None, np.float32([1, np.nan]), "not finite"),
    ],
)
def test_refuses_an_image_it_cannot_judge(policy: str, score: float | None, vector: Vectors, said: str) -> None:
    held = Selection(4, policy, 0)
    offer(held, "a", 1.0, np.float32([1, 2]))
    with pytest.raises(ConfigError, match=said):
        offer(held, "a", score, vector)
    assert len(held.items) == held.offered.total() == 1


@pytest.mark.parametrize("settings", [(0, "reservoir", 0), (True, "reservoir", 0), (5, "reservoir", -1), (5, "x", 0)])
def test_refuses_settings(settings: tuple[int, str, int]) -> None:
    with pytest.raises(UnknownName if settings[1] == "x" else ConfigError):
        Selection(*settings)


def test_refuses_long_names() -> None:
    with pytest.raises(ConfigError, match="1024"):
        Selection(1, "reservoir", 0).item("i" * 1025, "", 1, None, None)


@pytest.mark.parametrize(
    "change",
    [
        {"capacity": 2},
        {"policy": "reservoir"},
        {"policy": 3},
        {"offered": {"a": 2}},
        {"offered": {"a": -1}},
        {"offered": {"a": "4"}},
        {"means": {}},
        {"means": {"a": "AAAA"}},
        {"items": [[0, 0, 0, "a", "x", 1, None, None]]},
        {"items": [[0, 0, 0, "a", "x", 1, None, "AACAPwAAgD8AAIA/"]]},
        {"items": [[0, 0, 0, "a", "x", 1, None, "AADAfwAAwH8="]]},
        {"items": [[0, 0, 0, "a", "x", -1, None, "AACAPwAAgD8="]]},
        {"items": [[0, 0, 0, "a", "x"]]},
        {"items": None},
    ],
)
def test_refuses_a_state_that_is_none(change: dict[str, object]) -> None:
    held = Selection(3, "herding", 0)
    for _ in range(4):
        offer(held, "a", None, np.float32([1, 1]))
    assert Selection.unpack(held.pack()).items == held.items
    with pytest.raises(Corrupt, match="not a state"):
        Selection.unpack({**held.pack(), **change})
