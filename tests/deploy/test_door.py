"""What stands in front of Ray Serve's proxy: headers that it must not see, and bounds on what a client may send."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import uvicorn
import uvicorn.config
from everline.deploy import door
from everline.deploy.answers import HEADERS_LIMIT
from everline.deploy.bodies import Bodies, seconds_in_environment
from everline.deploy.door import Bounded, Door, middlewares
from everline.methods.errors import ConfigError

from ..conftest import until


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


@pytest.fixture
def port() -> Iterator[int]:
    """A real server whose connections are bounded."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(hello, http=Bounded, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


def said(port: int, *pieces: bytes) -> bytes:
    """Everything that the server says until it ends the connection."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        came = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(0.02)
            while part := connection.recv(2**16):
                came += part
        except ConnectionError:
            pass
    return came


def test_what_serve_would_obey_or_stumble_over_is_taken_out() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    kept = [
        (b"x-request-id", b"shift-2.17"),
        (b"host", b"\xff"),
        (b"traceparent", b"00-ab-cd-01"),
        (b"x-image-id", b"\xff"),
    ]
    gone = [
        (b"x-request-id", b"\xff"), (b"x-request-id", b"<script>"), (b"serve_multiplexed_model_id", b"a"),
        (b"serve-multiplexed-model-id", b"\xff"), (b"x-session-id", b"\xff"), (b"traceparent", b"\xff"),
        (b"x-request-timeout-seconds", b"-1"), (b"x-request-disconnect-disabled", b"?1"),
    ]  # fmt: skip
    asyncio.run(Door(app)({"type": "http", "path": "/", "headers": [*gone, *kept]}, None, None))  # type: ignore[arg-type]
    assert seen == kept


@pytest.mark.parametrize(
    ("status", "ready", "said", "code", "after"),
    [
        (503, True, 503, "server_busy", "2"),
        (500, True, 503, "server_busy", "2"),  # a replica died
        (404, True, 404, "not_found", None),
        (404, False, 503, "server_busy", "2"),  # the application is not there yet
    ],
)
def test_what_the_proxy_refuses_itself_has_the_shape_of_all_errors(
    status: int, ready: bool, said: int, code: str, after: str | None
) -> None:
    headers, body = refused(status, b"text/plain; charset=utf-8", b"Request dropped", ready=ready, said=said)
    assert headers["content-type"] == "application/json" and headers.get("retry-after") == after
    assert headers["x-request-id"] == json.loads(body)["error"]["request_id"] == "id-1"
    assert json.loads(body)["error"]["code"] == code


@pytest.mark.parametrize(("status", "kind"), [(503, b"application/json"), (200, b"text/plain"), (404, b"text/html")])
def test_what_the_application_answers_passes_as_it_is(status: int, kind: bytes) -> None:
    headers, body = refused(status, kind, b"as it is")
    assert (headers["content-type"], body) == (kind.decode(), b"as it is")


@pytest.mark.parametrize("path", ["/-/routes", "/-/routes/", "/-/"])
def test_the_addresses_of_serve_itself_are_not_served(path: str) -> None:
    came: list[Any] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it must not be asked")

    async def send(message: Any) -> None:
        came.append(message)

    for given, said in ((b"shift-2.17", "shift-2.17"), (b"<script>", None)):
        came.clear()
        scope = {"type": "http", "path": path, "headers": [(b"x-request-id", given)]}
        asyncio.run(Door(proxy)(scope, None, send))  # type: ignore[arg-type]
        headers = {key.decode(): value.decode() for key, value in came[0]["headers"]}
        error = json.loads(came[1]["body"])["error"]
        assert (came[0]["status"], error["code"]) == (404, "not_found")
        assert error["request_id"] == headers["x-request-id"] and said in (None, headers["x-request-id"])


def test_the_health_of_serve_passes() -> None:
    assert refused(200, b"text/plain", b"success", "/-/healthz")[1] == b"success"


def test_the_id_of_a_request_is_said_once() -> None:
    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-request-id", b"id-1"), (b"content-type", b"text/html"), (b"X-Request-ID", b"id-1")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def send(message: Any) -> None:
        assert [name.lower() for name, _ in message["headers"]].count(b"x-request-id") == 1

    asyncio.run(Door(proxy)({"type": "http", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]


def refused(
    status: int, kind: bytes, body: bytes, path: str = "/lines", *, ready: bool = True, said: int = 0
) -> tuple[dict[str, str], bytes]:
    """Headers and body that come through the door. ready: an application has answered before; said: another status."""
    came: list[Any] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        first = scope["path"] == "/first"
        headers = [(b"content-type", b"application/json" if first else kind), (b"X-Request-ID", b"id-1")]
        await send({"type": "http.response.start", "status": 200 if first else status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    async def send(message: Any) -> None:
        came.append(message)

    async def ask() -> None:
        door: Any = Door(proxy)
        for one in ("/first", path) if ready else (path,):
            came.clear()
            await door({"type": "http", "path": one, "headers": []}, None, send)

    asyncio.run(ask())
    start, *parts = came
    assert (start["type"], start["status"]) == ("http.response.start", said or status)
    headers = {key.decode().lower(): value.decode() for key, value in start["headers"]}
    return headers, b"".join(part["body"] for part in parts)


def test_serve_gets_the_door_and_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "nothing")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1")
    assert [one.cls for one in middlewares()] == [Door]
    config = uvicorn.Config(hello)
    config.load()
    assert config.http_protocol_class is Bounded


def test_the_server_of_serve_believes_no_header_about_a_client_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "nothing")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1,::1")  # uvicorn's own
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["client"], scope["scheme"]))

    middlewares()
    config = uvicorn.Config(app)
    config.load()
    headers = [(b"x-forwarded-for", b"192.0.2.1"), (b"x-forwarded-proto", b"https")]
    for peer in ("127.0.0.1", "::1", "10.0.0.7"):
        scope = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": headers}
        asyncio.run(config.loaded_app(scope, None, None))
    assert seen == [(("127.0.0.1", 1), "http"), (("::1", 1), "http"), (("10.0.0.7", 1), "http")]


def test_headers_without_an_end_are_refused_while_they_come(port: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\n"
    assert b"200 OK" in said(port, head + b"X: " + b"x" * (HEADERS_LIMIT // 2) + b"\r\nConnection: close\r\n\r\n")
    lines = [b"X-%d: " % n + b"x" * 2**18 + b"\r\n" for n in range(40)]
    answer = said(port, head, *lines)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert b"200 OK" in said(port, head, b"Connection: close\r\n", b"\r\n")


def test_headers_that_do_not_come_to_their_end_are_refused_in_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HEAD_S", 0.2)
    assert said(port).startswith(b"HTTP/1.1 400")
    assert said(port, b"GET / HTTP/1.1\r\n", b"Host: a\r\n").startswith(b"HTTP/1.1 400")


def test_a_body_and_a_second_request_take_their_time(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "HEAD_S", 0.3)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n"
    answer = said(port, head + b"\r\n", *[b"x" * 45_000] * 20, head + b"Connection: close\r\n\r\n", b"x" * 900_000)
    assert answer.count(b"200 OK") == 2 and b"400" not in answer


class Replica:
    """An application with places for so many requests, as one of Serve: the next waits, whatever it asks for."""

    def __init__(self, places: int) -> None:
        self.places = asyncio.Semaphore(places)
        self.bodies: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self.places:
            size, more = 0, scope["method"] == "POST"
            while more:
                message = await receive()
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            self.bodies.append(size)
            await hello(scope, receive, send)


@contextmanager
def behind(bodies: Bodies, app: Any) -> Iterator[int]:
    """The port of a real server whose requests come through the door."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(256)
        config = uvicorn.Config(Door(app, bodies), http=Bounded, log_level="critical", lifespan="off")
        config.timeout_graceful_shutdown = 1
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n"


@pytest.fixture
def dripping() -> Iterator[Callable[[int, int], None]]:
    """Opens so many connections to a port that send a part of a body, and no more."""
    with ExitStack() as stack:

        def drip(port: int, count: int) -> None:
            for _ in range(count):
                one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30))
                one.sendall(POST + b"\r\n" + b"x" * 1000)

        yield drip


def test_bodies_that_do_not_come_to_their_end_hold_nobody_up(dripping: Callable[[int, int], None]) -> None:
    with behind(Bodies(body_s=120, each=100), Replica(places=1)) as port:
        dripping(port, 64)
        assert b"200 OK" in said(port, b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert b"200 OK" in said(port, WHOLE)


def test_a_body_that_does_not_come_in_time_is_answered_and_the_connection_ends() -> None:
    with behind(Bodies(body_s=0.2), Replica(places=1)) as port:
        answer = said(port, POST + b"X-Request-Id: shift-2\r\n\r\n", b"x" * 1000)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408") and b"x-request-id: shift-2" in head.lower()
    error = json.loads(body)["error"]
    assert (error["code"], error["request_id"]) == ("body_timeout", "shift-2")


WHOLE = POST + b"Connection: close\r\n\r\n" + b"x" * 900_000


def test_of_one_client_s_half_bodies_the_oldest_is_ended_for_a_new_one(dripping: Callable[[int, int], None]) -> None:
    bodies, app = Bodies(each=2), Replica(places=9)
    with behind(bodies, app) as port:
        dripping(port, 3)
        until(lambda: [one.size for one in bodies._reading] == [1000, 1000])
        assert all(b"200 OK" in said(port, WHOLE) for _ in range(3))
        assert app.bodies == [900_000] * 3
        until(lambda: len(bodies._reading) <= 1)


def test_half_bodies_give_way_where_all_together_have_no_more_room(dripping: Callable[[int, int], None]) -> None:
    bodies, app = Bodies(total=900_500), Replica(places=9)
    with behind(bodies, app) as port:
        dripping(port, 3)
        until(lambda: bodies._held == 3000)
        assert all(b"200 OK" in said(port, WHOLE) for _ in range(3))
        until(lambda: not bodies._reading)
    assert (app.bodies, bodies._held) == ([900_000] * 3, 0)


def test_a_body_larger_than_all_may_have_together_is_refused() -> None:
    bodies = Bodies(total=1_000_000)
    with behind(bodies, Replica(places=1)) as port:
        large = said(port, POST.replace(b"900000", b"9000000") + b"\r\n", b"x" * 1_100_000)
        assert b"200 OK" in said(port, WHOLE)
    assert large.startswith(b"HTTP/1.1 503") and b"server_busy" in large
    assert bodies._held == 0


def test_a_body_larger_than_what_is_read_ahead_comes_whole() -> None:
    app = Replica(places=1)
    with behind(Bodies(whole=100_000), app) as port:
        assert b"200 OK" in said(port, WHOLE)
        chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        assert b"200 OK" in said(port, chunked, b"3\r\nabc\r\n", b"0\r\n\r\n")
    assert app.bodies == [900_000, 3]


def test_what_serve_does_not_begin_to_answer_is_answered_in_time() -> None:
    came: list[Any] = []

    async def lost(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/events":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.sleep(0.05)
            return
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        came.append(message)

    door: Any = Door(lost, answer_s=0.01)
    asyncio.run(door({"type": "http", "path": "/lines", "headers": []}, None, send))
    assert came[0]["status"] == 503 and b"did not begin to answer within 0.01 s" in came[1]["body"]
    came.clear()
    asyncio.run(door({"type": "http", "path": "/events", "headers": []}, None, send))
    assert [message.get("status") for message in came] == [200], "what has begun may take its time"


def test_times_are_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seconds_in_environment("EVERLINE_BODY_S", 60) == 60
    monkeypatch.setenv("EVERLINE_BODY_S", "7.5")
    assert seconds_in_environment("EVERLINE_BODY_S", 60) == 7.5
    monkeypatch.setenv("EVERLINE_BODY_S", "nan")
    with pytest.raises(ConfigError, match="EVERLINE_BODY_S"):
        seconds_in_environment("EVERLINE_BODY_S", 60)
