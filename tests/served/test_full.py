"""A line that is full, over real HTTP: more callers than it has room for."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from everline.platform.actor import answer

from .conftest import Served

CALLERS = 10
STILL_S = 1.0  # for which the line's process stands still, so that all callers stand before it when it goes on


@pytest.mark.slow
@pytest.mark.parametrize("line", ["drops", "waits"])
def test_a_full_line_says_so_or_lets_wait_and_loses_nothing(served: Served, parts: list[bytes], line: str) -> None:
    images = {f"full-{n}": data for n, data in enumerate(parts[:20])}
    assert served.inspect(line, parts[20], "full-first")[0] == 200
    before = answer(served.handle(line).status.remote())
    os.kill(before["pid"], signal.SIGSTOP)
    threading.Timer(STILL_S, os.kill, (before["pid"], signal.SIGCONT)).start()
    with ThreadPoolExecutor(CALLERS) as callers:
        found = list(callers.map(lambda id: served.inspect(line, images[id], id), images))
    answers = dict(zip(images, found, strict=True))
    refused = {id for id, (status, *_) in answers.items() if status != 200}
    for id in refused:
        status, headers, body = answers[id]
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "2", "dropped")
        assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert (0 < len(refused) < len(images)) if line == "drops" else not refused
    recorded = [one.id for one in served.log(line) if one.kind == "image" and one.id in images]
    assert sorted(recorded) == sorted(images.keys() - refused)  # what was answered, once
    assert answer(served.handle(line).status.remote())["dropped"] == before["dropped"] + len(refused)
    for id in sorted(refused):  # as its caller was told to: the same again
        assert served.inspect(line, images[id], id)[0] == 200
    assert {one.id for one in served.log(line)} >= images.keys()
