"""The gate of a line's own candidates holds what is clearly worse, says why, and asks a bounded set of images."""

import pytest
from everline.methods.errors import ConfigError
from everline.platform.ownjudge import (
    DEFECT,
    NEWEST,
    NORMAL,
    RESERVOIR,
    SYNTHETIC,
    Answers,
    Question,
    Remembered,
    held_for,
)

NORMALS = [Question(n, NORMAL, "ab"[n % 2]) for n in range(80)]
DEFECTS = [Question(n, DEFECT) for n in range(80, 100)]
MADE = [Question(n, SYNTHETIC) for n in range(100, 120)]
ALL = [*NORMALS, *DEFECTS, *MADE]


def answers(wrong: set[int] = frozenset()) -> Answers:  # type: ignore[assignment]
    """Right but for these numbers."""
    return Answers(tuple(float((q.kind == NORMAL) == (q.number in wrong)) for q in ALL), 0.5)


def test_an_equal_candidate_is_published() -> None:
    assert held_for(ALL, answers(), answers(), 0.01) == ()
    assert held_for(ALL, answers({1, 85, 101}), answers({85}), 0.01) == ()


def test_one_that_rejects_too_many_normals_is_held_and_says_so() -> None:
    (all_tasks,) = [r for r in held_for(ALL, answers(set(range(12))), answers(), 0.01) if "all tasks" in r]
    assert "12 of 80" in all_tasks


def test_one_that_forgot_an_old_task_is_held_although_the_rest_is_well() -> None:
    old = [Question(n, NORMAL, "old") for n in range(10)] + [Question(n, NORMAL, "new") for n in range(10, 200)]
    worse = Answers(tuple(1.0 if q.number < 4 else 0.0 for q in old), 0.5)
    reasons = held_for(old, worse, None, 0.01)
    assert [r for r in reasons if "task 'old'" in r] == list(reasons) != []


@pytest.mark.parametrize(("first", "name"), [(80, "labelled"), (100, "synthetic")])
def test_one_that_misses_defects_that_the_current_finds_is_held(first: int, name: str) -> None:
    (reason,) = held_for(ALL, answers(set(range(first, first + 6))), answers(), 0.01)
    assert f"misses 6 of 20 {name} defects, the current 0" in reason
    assert held_for(ALL, answers(set(range(first, first + 6))), None, 0.01) == ()


def test_a_score_that_is_no_number_is_a_reject() -> None:
    assert held_for(NORMALS, Answers((float("nan"),) * 80, 0.5), None, 0.01) != ()


def test_answers_to_other_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match="same images"):
        held_for(NORMALS, Answers((0.0,), 1.0), None, 0.01)


def test_what_is_remembered_is_bounded_the_newest_among_it_and_a_function_of_the_stream() -> None:
    one, same, other = Remembered(), Remembered(), Remembered(seed=1)
    for n in range(1000):
        for memory in (one, same, other):
            memory.offer(n, "a" if n < 500 else "b")
    assert one.questions == same.questions != other.questions
    assert len(one.questions) == NEWEST + 2 * RESERVOIR
    assert {q.number for q in one.questions} >= set(range(1000 - NEWEST, 1000))
    assert sum(q.task == "a" for q in one.questions) == RESERVOIR
    one.drop(999)
    assert 999 not in {q.number for q in one.questions}
