"""A line that is full, over real HTTP: Ray Serve, a real line, and more callers than it has room for."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import pytest
import ray
from everline.deploy.server import free_port, start_server, stop_server
from everline.platform.actor import answer, start_line
from everline.platform.log import LogReader, line_folder
from everline.platform.settings import Fleet, parse_fleet
from everline.platform.tracking import prepare_tracking

pytestmark = pytest.mark.slow
LINE = {"method": "lemo", "params": {"size": 64}, "queue": 1}
CALLERS = 12
STILL_S = 4.0


@pytest.fixture(scope="module")
def served(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fleet, int, dict[str, Any]]]:
    """A server over two lines with room for one image: who comes too many is sent away, or waits."""
    lines = {"drops": {**LINE, "when_full": "drop"}, "waits": {**LINE, "when_full": "wait"}}
    fleet = parse_fleet({"store": "store", "lines": lines}, tmp_path_factory.mktemp("full"))
    prepare_tracking(fleet.tracking)
    handles = {name: start_line(name, fleet)[0] for name in lines}
    port = free_port()
    start_server(fleet, port=port)
    yield fleet, port, handles
    stop_server()
    for handle in handles.values():
        ray.kill(handle)


def inspect(port: int, line: str, id: str, data: bytes) -> tuple[int, dict[str, str], Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"X-Image-Id": id, "Content-Type": "image/png"}
        connection.request("POST", f"/lines/{line}/inspect", data, headers)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("line", ["drops", "waits"])
def test_a_full_line_says_so_or_lets_wait_and_loses_nothing(
    served: tuple[Fleet, int, dict[str, Any]], parts: list[bytes], line: str
) -> None:
    fleet, port, handles = served
    images = {f"i{n}": data for n, data in enumerate(parts)}
    pid = answer(handles[line].status.remote())["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that all of them stand before it when it wakes up
    threading.Timer(STILL_S, os.kill, (pid, signal.SIGCONT)).start()
    with ThreadPoolExecutor(CALLERS) as callers:
        found = list(callers.map(lambda id: inspect(port, line, id, images[id]), images))
    answers = dict(zip(images, found, strict=True))
    refused = {id for id, (status, *_) in answers.items() if status != 200}
    for id in refused:
        status, headers, body = answers[id]
        assert (status, headers["retry-after"], body["error"]["code"]) == (429, "2", "dropped")
        assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert (0 < len(refused) < len(images)) if line == "drops" else not refused
    records = LogReader(line_folder(fleet.store, line)).records(images=False)
    recorded = [one.id for one in records if one.kind == "image"]
    assert sorted(recorded) == sorted(images.keys() - refused)  # what was answered, once
    assert answer(handles[line].status.remote())["dropped"] == len(refused)
    for id in sorted(refused):  # as its caller was told to: the same again
        assert inspect(port, line, id, images[id])[0] == 200
    assert set(LogReader(line_folder(fleet.store, line)).ids()) == set(images)
