"""What callers, Serve's own proxy and a dead line do wrong: every answer has one shape, and the server goes on."""

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import ray
from everline.deploy.server import free_port, start_server
from everline.methods.errors import ConfigError, PortInUse
from everline.platform.actor import start_line
from ray import serve

from ..conftest import PATIENCE_S, until
from .conftest import Served

pytestmark = pytest.mark.slow


def say(served: Served, data: bytes) -> bytes:
    """Sends it as it is; returns what comes until the server ends the connection."""
    came = b""
    with socket.create_connection(("127.0.0.1", served.port), PATIENCE_S) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(2**16):
                came += part
        except ConnectionError:
            pass
    return came


def test_errors_keep_their_shape_through_serve(served: Served, parts: list[bytes]) -> None:
    status, headers, body = served.inspect("none", parts[0])
    assert (status, body["error"]["code"]) == (404, "unknown_line")
    assert body["error"]["request_id"] == headers["x-request-id"]
    assert served.inspect("mono", b"x" * (33 * 2**20))[0] == 413
    assert served.ask("GET", "/health")[2]["status"] == "ok"


@pytest.mark.parametrize(
    "header",
    [b"X-Request-Id: \xff", b"X-Request-Timeout-Seconds: \xff", b"X-Request-Timeout-Seconds: 0.000001",
     b"Serve-Multiplexed-Model-Id: \xff", b"X-Session-Id: \xff", b"X-Request-Disconnect-Disabled: \xff"],
)  # fmt: skip
def test_a_header_that_serve_would_obey_or_cannot_read_changes_nothing(served: Served, header: bytes) -> None:
    answer = say(served, b"GET /lines HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + header + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(re.findall(rb"(?im)^x-request-id: (.*?)\r", answer)) == 1


def test_serve_tells_nobody_its_own_routes(served: Served) -> None:
    status, headers, body = served.ask("GET", "/-/routes")
    assert (status, body["error"]["code"]) == (404, "not_found")
    assert body["error"]["request_id"] == headers["x-request-id"] != ""
    assert say(served, b"GET /-/healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").count(b"success") == 1


def test_a_name_and_a_page_of_another_site_are_refused_through_serve(served: Served, parts: list[bytes]) -> None:
    status, _, body = served.ask("GET", "/lines/swap/images", Host="evil.example")
    assert (status, body["error"]["code"]) == (421, "unknown_host")
    change = served.tokens["change"]
    status, _, body = served.ask("POST", "/lines/swap/rollback", b"{}", change, Origin="http://evil.example")
    assert (status, body["error"]["code"]) == (403, "other_site")


def test_headers_without_an_end_are_not_kept(served: Served) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"x" * 60_000) for n in range(100))
    answer = say(served, b"GET /lines HTTP/1.1\r\nHost: localhost\r\n" + lines)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")


def test_a_queue_of_serve_s_own_that_is_full_is_told_in_our_shape(served: Served) -> None:
    @serve.deployment(max_ongoing_requests=1, max_queued_requests=1)
    class Slow:
        async def __call__(self) -> str:
            await asyncio.sleep(1)
            return "{}"

    def ask(_: int) -> tuple[int, dict[str, str], Any]:
        return served.ask("GET", "/slow")

    app: Any = Slow
    serve.run(app.options(ray_actor_options={"num_cpus": 0}).bind(), name="slow", route_prefix="/slow")
    try:
        with ThreadPoolExecutor(6) as callers:
            answers = list(callers.map(ask, range(6)))
    finally:
        serve.delete("slow")
    assert {status for status, *_ in answers} == {200, 503}
    for status, headers, body in answers:
        if status == 503:
            assert (body["error"]["code"], headers["retry-after"]) == ("server_busy", "2")
            assert body["error"]["request_id"] == headers["x-request-id"] != ""


def test_bodies_that_do_not_come_to_their_end_hold_nobody_up(
    served: Served, swapped: tuple[int, int], parts: list[bytes]
) -> None:
    head = b"POST /lines/swap/inspect HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(80):  # a replica takes 64 requests
            one = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), PATIENCE_S))
            one.sendall(head + b"x" * 1000)
        assert served.ask("GET", "/health")[0] == 200
        assert served.ask("GET", "/lines")[0] == 200
        assert served.inspect("swap", parts[0], query="?learn=false")[0] == 200


def test_serve_is_not_started_twice(served: Served) -> None:
    with pytest.raises(PortInUse, match=str(served.port)):
        start_server(served.fleet, port=served.port)
    with pytest.raises(ConfigError, match="already"):
        start_server(served.fleet, port=free_port())


def test_a_dead_line_is_a_503_until_it_is_back(served: Served, swapped: tuple[int, int], parts: list[bytes]) -> None:
    ray.kill(served.handle("swap"))  # and Ray is not to start it again
    status, headers, body = served.inspect("swap", parts[0], query="?learn=false")
    assert (status, headers["retry-after"], body["error"]["code"]) == (503, "2", "line_down")
    assert served.ask("GET", "/health")[0] == 200
    served.kept.append(start_line("swap", served.fleet)[0])
    until(lambda: served.inspect("swap", parts[0], query="?learn=false")[0] == 200)
