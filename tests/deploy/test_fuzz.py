"""Whatever comes is answered: no 500, one shape for every error. The whole application, without a socket."""

import io
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from everline.pipelines.fleet.hostile import is_problem, png_of
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

Ask = Callable[..., tuple[int, bytes]]
many = settings(max_examples=80, deadline=None, suppress_health_check=[*HealthCheck])
Headers = list[tuple[bytes, bytes]]


@pytest.fixture(scope="module")
def ask(whole: Callable[..., FastAPI]) -> Iterator[Ask]:
    """Asks as a server does, of what has passed its parser; checks the answer, and returns its status and body."""
    app = whole()

    async def call(method: str, path: bytes, query: bytes, headers: Headers, chunks: list[bytes]) -> tuple[int, bytes]:
        came, parts = iter(chunks), list[dict[str, Any]]()

        async def receive() -> dict[str, Any]:
            chunk = next(came, None)
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

        async def send(message: Any) -> None:
            parts.append(message)

        scope = {
            "type": "http", "method": method, "path": unquote(path.decode("ascii")), "raw_path": path,
            "query_string": query, "headers": headers, "http_version": "1.1", "scheme": "http", "root_path": "",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        }  # fmt: skip
        await app(scope, receive, send)  # type: ignore[arg-type]
        return parts[0]["status"], b"".join(part.get("body", b"") for part in parts[1:])

    with TestClient(app, "http://localhost") as http:
        assert http.portal is not None
        portal = http.portal

        def checked(
            method: str, path: bytes, *, query: bytes = b"", headers: Headers = (), body: bytes = b"", cut: int = 1
        ) -> tuple[int, bytes]:  # type: ignore[assignment]
            size = max(1, -(-len(body) // cut))
            chunks = [body[start : start + size] for start in range(0, len(body), size)]
            status, answer = portal.call(call, method, path, query, [*headers], chunks)
            assert status < 500 or status in (503, 507), answer
            assert status < 400 or is_problem(answer), answer
            return status, answer

        yield checked


def encoded(kind: str, **more: Any) -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind, **more)
    return out.getvalue()


IMAGES = [*map(encoded, ("PNG", "JPEG", "BMP", "TIFF", "WEBP")), encoded("TIFF", compression="tiff_lzw")]
BOMBS = {
    "many pixels": png_of(50_000, 50_000, b""),
    "few rows": png_of(9000, 9000, b"\0" * 1000),
    "a long comment": png_of(64, 64, b"", text=2**25),
    "no pixels": png_of(0, 0, b""),
}
TYPES = (
    b"", b"image/png", b"application/json", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=b",
    b"multipart/form-data; boundary=b; charset=nonsense", b"text/html",
)  # fmt: skip
printable = st.binary(max_size=300).map(lambda raw: bytes(byte for byte in raw if byte >= 32 and byte != 127))
names = st.sampled_from(
    [b"host", b"content-type", b"content-length", b"x-image-id", b"x-request-id", b"authorization", b"accept",
     b"cookie", b"sec-fetch-site", b"transfer-encoding", b"content-encoding", b"expect", b"a" * 1000]
)  # fmt: skip
odd = st.sampled_from(
    [*TYPES, b"[", b"9" * 5000, b"-1", b"5", b"../../etc/passwd", b"Bearer \xff", b"i" * 257, b"i" * 70_000, b"a\tb"]
)  # fmt: skip


@many
@given(st.sampled_from(IMAGES), st.data())
def test_a_broken_image_is_refused_or_judged(ask: Ask, image: bytes, data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(image)))
    broken = bytearray(image[:end])
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=8)):
        if broken:
            broken[place % len(broken)] = byte
    status, _ = ask("POST", b"/lines/mono/inspect", query=b"learn=false", body=bytes(broken) + data.draw(st.binary()))
    assert status in (200, 400)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_decompression_bomb_is_refused(ask: Ask, bomb: str) -> None:
    assert ask("POST", b"/lines/mono/inspect", body=BOMBS[bomb])[0] == 400


@many
@given(st.binary(max_size=2000), odd | printable, st.integers(1, 9), st.sampled_from([b"inspect", b"inspect/batch"]))
@example(b"--b\r\n\r\n--b--", b"multipart/form-data; boundary=b", 1, b"inspect")
def test_any_bytes_of_any_kind_are_refused(ask: Ask, body: bytes, kind: bytes, cut: int, where: bytes) -> None:
    headers = [(b"content-type", kind)]
    assert ask("POST", b"/lines/mono/" + where, headers=headers, body=body, cut=cut)[0] in (400, 415, 431)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python closes a part without an end
@many
@given(st.lists(st.binary(max_size=60) | st.sampled_from(IMAGES[:2]), max_size=70), st.data())
def test_any_form_is_answered(ask: Ask, parts: list[bytes], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([b"a.png", b"../../a", b"\xff", b'"; filename*=x', b"a" * 3000, b"\\", b""]))
    ends = data.draw(st.sampled_from([b"\r\n", b"\n", b""]))
    head = b'--b%sContent-Disposition: form-data; name="image"; filename="%s"%s%s' % (ends, name, ends, ends)
    body = b"".join(head + part + b"\r\n" for part in parts) + data.draw(st.sampled_from([b"--b--\r\n", b"--b", b""]))
    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    where = data.draw(st.sampled_from([b"/lines/mono/inspect", b"/lines/mono/inspect/batch"]))
    assert ask("POST", where, headers=headers, body=body, cut=data.draw(st.integers(1, 9)))[0] in (200, 400, 413)


@many
@given(
    st.lists(st.tuples(names, odd | printable), max_size=6),
    st.sampled_from(["/lines", "/none", "/lines/mono/inspect"]),
)
@example([(b"host", b"[")], "/none")
@example([(b"content-length", b"9" * 5000)], "/lines/mono/inspect")
@example([(b"x-image-id", b"a"), (b"x-image-id", b"\xff" * 200)], "/lines/mono/inspect")
def test_any_headers_are_answered(ask: Ask, headers: Headers, path: str) -> None:
    ask("POST" if "inspect" in path else "GET", path.encode(), headers=headers, body=IMAGES[0])


@many
@given(
    st.lists(
        st.sampled_from(
            ["..", "%2e%2e", "%00", "%ff", "%0d%0a", "lines", "mono", "inspect", "image", "map", "static", "page.css",
             "", "a" * 5000, "%c3%bc", "%F0%9F%8D%8C", "%", ";", "task", "events", "docs", "openapi.json"]
        ) | st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=9),
        max_size=6,
    ),
    st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "NONSENSE"]),
)  # fmt: skip
def test_any_path_is_answered(ask: Ask, pieces: list[str], method: str) -> None:
    path = "/" + "/".join(pieces)
    if path != "/events":  # which has no end
        ask(method, path.encode())


parameters = st.sampled_from([b"id", b"learn", b"map", b"side", b"limit", b"before", b"verdict", b"x"])


@many
@given(
    st.lists(st.tuples(parameters, odd | printable), max_size=5),
    st.sampled_from([b"/inspect", b"/images", b"/image", b"/image/map", b"/versions", b""]),
)  # fmt: skip
def test_any_query_is_answered(ask: Ask, query: list[tuple[bytes, bytes]], where: bytes) -> None:
    text = b"&".join(name + b"=" + value for name, value in query)
    ask("POST" if where == b"/inspect" else "GET", b"/lines/mono" + where, query=text, body=IMAGES[0])


fields = st.sampled_from(["version", "task", "id", "label", "by"])
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner),
    max_leaves=8,
)


@many
@given(
    json_like.map(lambda plain: repr(plain).replace("'", '"').encode("utf-8", "surrogatepass"))
    | st.binary(max_size=100)
)
@example(b"[" * 100_000)
@example(b'{"version": ' + b"9" * 5000 + b"}")
@example(b'{"task": "\\ud800"}')
def test_any_json_is_answered(ask: Ask, body: bytes) -> None:
    for where in (b"rollback", b"task", b"feedback"):
        ask("POST", b"/lines/mono/" + where, headers=[(b"content-type", b"application/json")], body=body)
