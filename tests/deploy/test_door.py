"""What stands in front of Ray Serve's proxy: headers that it must not see, and bounds on what a client may send."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
import uvicorn.config
from everline.deploy import door
from everline.deploy.answers import HEADERS_LIMIT
from everline.deploy.door import Bounded, Door, middlewares


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


@pytest.mark.parametrize(("status", "code", "after"), [(503, "server_busy", "2"), (404, "not_found", None)])
def test_what_the_proxy_refuses_itself_has_the_shape_of_all_errors(status: int, code: str, after: str | None) -> None:
    headers, body = refused(status, b"text/plain; charset=utf-8", b"Request dropped due to backpressure")
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


def refused(status: int, kind: bytes, body: bytes, path: str = "/lines") -> tuple[dict[str, str], bytes]:
    """Headers and body that come through the door."""
    came: list[Any] = []

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind), (b"X-Request-ID", b"id-1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:3], "more_body": True})
        await send({"type": "http.response.body", "body": body[3:]})

    async def send(message: Any) -> None:
        came.append(message)

    asyncio.run(Door(proxy)({"type": "http", "path": path, "headers": []}, None, send))  # type: ignore[arg-type]
    start, *parts = came
    assert (start["type"], start["status"]) == ("http.response.start", status)
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
