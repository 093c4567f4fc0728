"""A clock that is wrong for a while makes no image go; what time really does to them it does later."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from everline.platform import log
from everline.platform.ages import CLOCK, SLACK_NS, Ages, WallClock
from everline.platform.line import Line
from everline.platform.log import LogReader
from everline.platform.retention import DAY_NS
from hypothesis import given
from hypothesis import strategies as st

from .lines import SETTINGS, STREAM, Shelf, die

KEEP = replace(SETTINGS, checkpoint_every=5, keep_days=30)
YEAR_NS = 365 * DAY_NS
steps = st.lists(st.tuples(st.integers(0, 40 * DAY_NS), st.integers(-800 * DAY_NS, 800 * DAY_NS)), max_size=20)


class Clocks:
    """What the clocks of this machine say: the one that people set, and the one that nobody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.up, self.wrong = DAY_NS, 0
        monkeypatch.setattr(WallClock, "now_ns", lambda _: 50 * YEAR_NS + self.up + self.wrong)
        monkeypatch.setattr(WallClock, "up_ns", lambda _: self.up)


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    monkeypatch.setattr(log, "SEAL_RECORDS", 5)
    return Clocks(monkeypatch)


def sent(line: Line, clocks: Clocks, first: int, count: int = 20) -> None:
    """One image a second."""
    for n in range(first, first + count):
        clocks.up += 10**9
        line.inspect(STREAM[n % 60], f"i{n}")
    line.settle()


@given(steps)
def test_no_image_goes_before_its_time_whatever_the_clock_says(moves: list[tuple[int, int]]) -> None:
    """Records after any waits and settings of the clock: what seems older than 30 days is."""
    real, wrong, made = 0, 0, list[tuple[int, int]]()
    ages = Ages(30)
    for seq, (passed, by) in enumerate(moves):
        real, wrong = real + passed, wrong + by
        made.append((real, real + wrong))
        jumped = {"by_s": by // 10**9} if abs(by) > SLACK_NS else {}
        ages.add(seq, CLOCK if jumped else "image", real + wrong, jumped)
    for seq, (then, stamped) in enumerate(made):
        seems = (ages.now_ns or 0) - ages.since(seq, stamped)
        assert seems <= real - then + SLACK_NS * len(moves)


def test_steps_that_no_work_explains_are_jumps_though_nobody_saw_the_clock_be_set() -> None:
    ages = Ages(30)
    told = [ages.add(seq, "image", time, {}) for seq, time in enumerate([0, 29 * DAY_NS, 60 * DAY_NS, 59 * DAY_NS])]
    assert [jump and jump.by_ns // DAY_NS for jump in told] == [None, None, 31, -1]
    assert ages.since(1, 29 * DAY_NS) == 59 * DAY_NS and ages.since(3, 59 * DAY_NS) == 59 * DAY_NS
    assert ages.add(4, "late", 0, {}) is None and ages.now_ns == 59 * DAY_NS  # it tells of a time before
    ages.add(5, CLOCK, 59 * DAY_NS, {"right": True, "by": "Ann"})
    assert ages.since(1, 29 * DAY_NS) == 29 * DAY_NS


@pytest.mark.parametrize("wrong", [-2 * YEAR_NS, 2 * YEAR_NS, -20 * DAY_NS, 20 * DAY_NS])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_clock_that_is_wrong_for_a_while_makes_no_image_go(
    wrong: int, restarts: bool, opened: Callable[..., Line], clocks: Clocks
) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=KEEP)
    sent(line, clocks, 0, 15)
    clocks.up += 15 * DAY_NS
    for first, set_by in ((15, wrong), (35, -wrong)):
        if restarts and abs(wrong) > YEAR_NS:
            die(line)
        clocks.wrong += set_by
        if restarts and abs(wrong) > YEAR_NS:
            line = opened(shelf, settings=KEEP)
        sent(line, clocks, first)
    assert line.writer.images_from == 0
    clocks.up += 14 * DAY_NS
    sent(line, clocks, 55, 5)
    assert line.writer.images_from == 0
    clocks.up += 29 * DAY_NS
    sent(line, clocks, 60, 5)
    assert line.writer.images_from > 0  # and in the end they go


def test_a_running_line_that_nobody_used_for_long_drops_what_is_old(
    opened: Callable[..., Line], clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    line = opened(Shelf(), settings=KEEP)
    sent(line, clocks, 0)
    clocks.up += 60 * DAY_NS
    sent(line, clocks, 20)
    assert line.writer.images_from > 0 and "jump" not in caplog.text
    (said,) = LogReader(line.folder).of_kind(CLOCK)
    assert said.data["idle_s"] in (60 * 86_400, 60 * 86_400 + 1)


def test_a_line_that_was_off_for_long_keeps_its_images_until_somebody_says_that_the_times_are_right(
    opened: Callable[..., Line], clocks: Clocks, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Shelf()
    line = opened(shelf, settings=KEEP)
    sent(line, clocks, 0)
    line.close()
    clocks.up += 60 * DAY_NS
    line = opened(shelf, settings=KEEP)
    with caplog.at_level(logging.WARNING):
        sent(line, clocks, 20)
    assert line.writer.images_from == 0
    assert "jump by +60.00 days at record 20" in caplog.text and "log clock a --right" in caplog.text
