"""Load and hostile requests over real HTTP on real lines: nothing fails, nothing dies, no answer is another's."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from everline.pipelines.fleet.fuzz import Memory
from everline.pipelines.fleet.fuzz import drive as send_hostile
from everline.pipelines.fleet.hostile import Maker
from everline.pipelines.fleet.load import drive as hold_load

from .conftest import Served

pytestmark = pytest.mark.slow


def test_no_request_fails_while_versions_are_promoted_and_rolled_back(
    served: Served, swapped: tuple[int, int], parts: list[bytes], sized: Callable[..., Any]
) -> None:
    one = replace(served.fleet, lines={"swap": served.fleet.line("swap")})
    pictures, numbers, handles = {"swap": parts[:10]}, {"swap": swapped}, {"swap": served.handle("swap")}
    token, seconds = served.tokens["change"], sized(1.0, 15.0)
    phases, moves = hold_load(one, pictures, numbers, handles, served.port, 3, seconds, 1, token)
    for name, sent in phases.items():
        assert sent.failed == [] and len(sent.latency_ms) > 0, name
    assert len(moves.promoted_s) == len(moves.rolled_back_s) >= 1
    assert moves.checked >= 3 and moves.stale == 0
    assert served.ask("GET", "/health")[2]["lines"]["swap"]["version"] == swapped[0]


def test_hostile_requests_are_all_answered_and_nothing_dies_or_grows(
    served: Served, taught: Any, parts: list[bytes], sized: Callable[..., Any]
) -> None:
    memory, count = Memory(), sized(160, 25_000)
    found = send_hostile(served.port, Maker("mono", parts).make, count, 1, 4, memory.look)
    assert found.wrong == []
    assert sum(sum(counts.values()) for counts in found.answers.values()) == count
    assert found.answers["good"].keys() == {"200"}
    rows = memory.rows()
    assert {row["process"] for row in rows} == {"line", "proxy", "replica"}
    assert not any(row["died"] for row in rows)
