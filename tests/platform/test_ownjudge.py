"""The gate of a line's own candidates holds what is clearly worse, says why, and asks a bounded set of images."""

from collections import Counter
from collections.abc import Collection

import pytest
from everline.methods.errors import StateError
from everline.platform.ownjudge import (
    DEFECT,
    LABELLED,
    MADE,
    NORMAL,
    NORMALS,
    SYNTHETIC,
    TASKS,
    Question,
    Remembered,
    held_for,
    packed,
    unpacked,
)

NORMAL_ONES = [Question(n, NORMAL, "ab"[n % 2]) for n in range(80)]
DEFECTS = [Question(n, DEFECT) for n in range(80, 100)]
MADE_ONES = [Question(n, SYNTHETIC) for n in range(100, 120)]
ALL = [*NORMAL_ONES, *DEFECTS, *MADE_ONES]


def answers(wrong: Collection[int] = ()) -> dict[Question, bool]:
    """Right but for these numbers."""
    return {q: (q.kind == NORMAL) == (q.number in wrong) for q in ALL}


def test_an_equal_candidate_is_published() -> None:
    assert held_for(answers(), answers(), 0.01) == ()
    assert held_for(answers({1, 85, 101}), answers({85}), 0.01) == ()
    assert held_for({}, {}, 0.01) == ()


def test_one_that_rejects_too_many_normals_is_held_and_says_so() -> None:
    (all_tasks,) = [r for r in held_for(answers(range(12)), answers(), 0.01) if "all tasks" in r]
    assert "12 of 80" in all_tasks


def test_what_the_current_version_rejects_as_well_is_not_held_against_it() -> None:
    assert held_for(answers(range(12)), answers(range(10)), 0.01) == ()


def test_one_that_forgot_an_old_task_is_held_although_the_rest_is_well() -> None:
    old = {Question(n, NORMAL, "old"): n < 6 for n in range(10)}
    new = {Question(n, NORMAL, "new"): False for n in range(10, 400)}
    (reason,) = held_for(old | new, {}, 0.01)
    assert "6 of 10 remembered normal images of task 'old'" in reason


@pytest.mark.parametrize(("first", "name"), [(80, "labelled"), (100, "synthetic")])
def test_one_that_misses_defects_that_the_current_finds_is_held(first: int, name: str) -> None:
    worse = answers(range(first, first + 6))
    (reason,) = held_for(worse, answers(), 0.01)
    assert f"misses 6 of 20 {name} defects" in reason
    assert held_for(worse, {}, 0.01) == ()
    assert held_for(worse, {q: r for q, r in answers().items() if q.number >= first + 2}, 0.01) == ()


def test_what_is_remembered_is_bounded_and_a_function_of_the_stream() -> None:
    one, same, other = Remembered(), Remembered(), Remembered(seed=1)
    for n in range(2000):
        for memory in (one, same, other):
            memory.normal(n, "a" if n < 1000 else "b")
            if n % 10 == 0:
                memory.defect(n)
    found = list(one.questions())
    assert found == list(same.questions()) != list(other.questions())
    assert Counter(q.kind for q in found) == {NORMAL: 2 * NORMALS, DEFECT: LABELLED, SYNTHETIC: MADE}
    assert {q.task for q in found[:2]} == {"a", "b"}, "each task is asked early"
    for n in range(2000, 2100):
        one.normal(n, f"task {n}")
    assert len({q.task for q in one.questions() if q.kind == NORMAL}) == TASKS


def test_of_the_task_at_hand_it_remembers_what_came_of_late_and_of_others_what_was_there() -> None:
    memory = Remembered()
    for n in range(3000):
        memory.normal(n, "old" if n < 1000 else "new")
    numbers = {
        task: [q.number for q in memory.questions() if (q.kind, q.task) == (NORMAL, task)] for task in ("old", "new")
    }
    assert sum(n > 2700 for n in numbers["new"]) > NORMALS / 2
    assert len(numbers["old"]) == NORMALS


def test_a_word_of_an_operator_makes_a_normal_image_a_defect() -> None:
    memory = Remembered()
    memory.normal(7)
    memory.defect(7)
    assert list(memory.questions()) == [Question(7, DEFECT)]
    memory.drop(7)
    assert list(memory.questions()) == []


def test_a_task_can_be_forgotten() -> None:
    memory = Remembered()
    memory.normal(1, "a")
    memory.normal(2, "b")
    memory.forget("a")
    assert {q.number for q in memory.questions()} == {2}


def test_what_was_packed_goes_on_the_same() -> None:
    one, other = Remembered(), Remembered()
    for n in range(500):
        one.normal(n, "ab"[n % 2])
    one.defect(3, "a")
    other.unpack(one.pack())
    for memory in (one, other):
        for n in range(500, 600):
            memory.normal(n)
    assert list(one.questions()) == list(other.questions())
    assert unpacked(packed(answers({1}))) == answers({1})
    with pytest.raises(StateError):
        other.unpack({"normal": 3})
