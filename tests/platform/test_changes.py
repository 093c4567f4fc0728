"""What `everline up` would do: plain data in, plain data out."""

from dataclasses import replace

from everline.platform.changes import Change, Running, astray, changes
from everline.platform.settings import LineSettings

ONE, TWO = LineSettings(), LineSettings(method="lemo", queue=8)


def words(found: list[Change]) -> list[tuple[str, str]]:
    return [(change.line, change.what) for change in found]


def test_what_is_missing_is_started_and_what_is_too_much_stopped() -> None:
    found = changes({"b": ONE, "a": ONE}, {"old": Running(ONE), "a": Running(ONE)})
    assert words(found) == [("old", "stop"), ("b", "start"), ("a", "keep")]


def test_a_second_time_nothing_changes() -> None:
    wanted = {"a": ONE, "b": TWO}
    running = {name: Running(settings) for name, settings in wanted.items()}
    assert {change.what for change in changes(wanted, running)} == {"keep"}


def test_other_settings_are_a_restart_that_says_which() -> None:
    (found,) = changes({"a": TWO}, {"a": Running(ONE)})
    assert (found.what, found.why) == ("restart", "method: coreset -> lemo, queue: 64 -> 8")
    (found,) = changes({"a": replace(ONE, params={"size": 64})}, {"a": Running(ONE)})
    assert (found.what, found.why) == ("restart", "params: {} -> {'size': 64}")


def test_a_stopped_line_is_tried_again_and_says_why_it_was() -> None:
    (found,) = changes({"a": ONE}, {"a": Running(ONE, "stopped", "record 7 cannot be applied")})
    assert (found.what, found.why) == ("restart", "record 7 cannot be applied")
    (found,) = changes({"a": ONE}, {"a": Running(ONE, "closed")})
    assert found.what == "restart"


def test_a_line_that_comes_back_is_left_to_it() -> None:
    for state in ("opening", "busy"):
        assert words(changes({"a": ONE}, {"a": Running(ONE, state)})) == [("a", "keep")]


def test_a_process_that_does_not_answer_is_replaced() -> None:
    assert words(changes({"a": ONE}, {"a": Running(None, "lost")})) == [("a", "restart")]


def test_another_commands_line_is_left_alone() -> None:
    running = {"a": Running(TWO, detached=False), "b": Running(ONE, detached=False)}
    assert words(changes({"a": ONE}, running)) == [("a", "leave"), ("b", "leave")]


def test_a_line_that_keeps_its_versions_elsewhere_is_started_again() -> None:
    here = {"store": "/s", "tracking": "sqlite:////s/mlflow.db"}
    assert words(changes({"a": ONE}, {"a": Running(ONE, places={"line": "a", **here})}, here)) == [("a", "keep")]
    assert words(changes({"a": ONE}, {"a": Running(ONE)}, here)) == [("a", "keep")]  # of an older everline
    (found,) = changes({"a": ONE}, {"a": Running(ONE, places={**here, "tracking": "http://m"})}, here)
    assert (found.what, found.why) == ("restart", "tracking: http://m -> sqlite:////s/mlflow.db")


def test_a_line_of_the_file_that_writes_to_the_store_of_before_is_stopped() -> None:
    running = {
        "a": Running(ONE, places={"store": "/old"}),
        "b": Running(ONE, detached=False, places={"store": "/old"}),
    }
    ended, left = astray(running)
    assert (ended.line, ended.what, ended.store) == ("a", "stop", "/old")
    assert ended.why == "it writes to another store than the file says, /old"
    assert (left.line, left.what) == ("b", "leave")
