"""Requests that no honest client sends, made from a seed: broken images, wrong types, lengths, headers, paths."""

import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

KINDS_OF_BODY = (
    "image/png", "image/jpeg", "image/*", "image/", "application/octet-stream", "application/json", "text/html", "",
    "application/x-www-form-urlencoded", "multipart/form-data", "image/png; charset=\xff", "\x00", "a" * 9000,
)  # fmt: skip
PIECES = (
    "..", "%2e%2e", "%2e%2e%2f", ".", "%00", "%0d%0aX-A:b", "%ff%fe", "%", "%zz", "%c3%28", "a" * 3000, "%F0%9F%8D%8C",
    "etc", "passwd", "static", "lines", "inspect", "batch", "image", "versions", "nobody", ";", "%3Fa", "%23", "*",
)  # fmt: skip
METHODS = ("HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND", "TRACE", "CONNECT", "get", "QUERY", "A" * 40)
QUERIES = (
    "map=maybe", "learn=", "learn=2", "id=", "id=%00", "id=" + "a" * 300, "id=%ff", "id=a&id=b", "map=true", "limit=0",
    "limit=1e9", "limit=-1", "limit=501", "before=99999999999999999999", "before=-1", "verdict=maybe", "side=1",
    "side=16", "side=99999", "side=nan", "&&&&", "=", "%", "a" * 5000, "id=..%2f..%2fetc", "[]=1", "learn[]=1",
)  # fmt: skip
HEADERS = (
    "Host: [", "Host: a b", "Host: " + "h" * 2000, "Host: \xff\xfe", "Content-Type: \xff", "Accept: " + "*/*," * 500,
    "Authorization: Bearer", "Authorization: Bearer \xff\xfe", "Authorization: Basic " + "A" * 4000, "Cookie: \xe9",
    "X-Request-Id: " + "a" * 65, "X-Request-Id: <script>", "X-Request-Id: \xff", "X-Image-Id: ../../etc/passwd",
    "X-Image-Id: \xff\xfe", "X-Image-Id: " + "i" * 257, "X-Image-Id: a\tb", "X-Image-Id: %00", "X-Image-Id:",
    "X-Request-Timeout-Seconds: \xff", "X-Request-Timeout-Seconds: nan", "X-Request-Timeout-Seconds: -1",
    "Sec-Fetch-Site: cross-site", "Range: bytes=0-999999", "If-None-Match: *", "Expect: 100-continue",
    "X-Forwarded-For: " + "1.2.3.4," * 200, "Content-Encoding: gzip", "Upgrade: websocket\r\nConnection: Upgrade",
    "X-A: b\r\n" * 50 + "X-A: b", "X-Long: " + "l" * 30_000, "X-Huge: " + "l" * 80_000,
    "serve_multiplexed_model_id: \xff", "X-Session-Id: \xff", "Expect: 200-ok", "Traceparent: \xff",
)  # fmt: skip
BROKEN_HEADERS = ("X A: b", ": b", "X-A", "X-A: b\rX-B: c", "X-A: \x00", "X-\xff: b", " folded", "X-A : b")
JSONS = (
    "", "{", "[]", "null", '"x"', "[" * 20_000, '{"a":' * 5000, '{"version": NaN}', '{"version": 1e400}', "\ufeff{}",
    '{"version": 123456789012345678901234567890}', '{"version": "1"}', '{"version": true}', '{"version": -1}',
    '{"version": 99}', '{"task": ""}', '{"task": "\\u0000"}', '{"task": "\\ud800"}', '{"task": ["a"]}', '{"task": 1}',
    '{"id": "none", "label": "ok"}', '{"id": "", "label": "ok"}', '{"id": "i", "label": "fine"}', '{"id": {}}',
    '{"id": "i", "label": "ok", "by": "' + "b" * 65 + '"}', '{"version": 1, "version": 2}', '{"version": 1} x',
)  # fmt: skip
NO_HTTP = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50, b"\x00" * 500,
    b"GET /\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET  /  HTTP/1.1\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n",
    b"GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n", b"GET \xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
)  # fmt: skip


@dataclass(frozen=True)
class Hostile:
    """What one connection sends."""

    kind: str
    data: bytes
    whole: bool = True  # HTTP as it should be: the application must answer, in its own shape
    pieces: int = 1  # that it is sent in, with pauses
    leaves: bool = False  # the client is gone before an answer can come


@dataclass(frozen=True)
class Maker:
    """Makes them for a line. images: good ones, which are then broken."""

    line: str
    images: Sequence[bytes]

    def make(self, rng: Random) -> Hostile:
        """One, of any kind."""
        kind: Callable[[Random], Hostile] = rng.choice(
            [
                self.good, self.image, self.image, self.anything, self.form, self.form, self.plain, self.plain,
                self.path, self.query, self.headers, self.headers, self.broken_headers, self.length, self.half,
                self.slow, self.no_http, self.method,
            ]
        )  # fmt: skip
        return kind(rng)

    def good(self, rng: Random) -> Hostile:
        """An honest one: it must be answered by 200 among all the others."""
        return Hostile("good", self._inspect(rng.choice(self.images), ["Content-Type: image/png"]))

    def image(self, rng: Random) -> Hostile:
        """An image that is damaged, or much larger than it says."""
        return Hostile("image", self._inspect(broken(rng, rng.choice(self.images)), ["Content-Type: image/png"]))

    def anything(self, rng: Random) -> Hostile:
        """Any bytes, said to be anything."""
        kind = rng.choice(KINDS_OF_BODY)
        body = rng.randbytes(rng.choice([0, 1, 10, 1000, 100_000]))
        return Hostile("bytes", self._inspect(body, [f"Content-Type: {kind}"]), whole="\x00" not in kind)

    def form(self, rng: Random) -> Hostile:
        """A form that is not one, or has odd parts."""
        boundary = rng.choice(["b", "", "x" * 70, "\xff", '"', "b; charset=nonsense", "b\tc"])
        name = rng.choice(["a.png", "../../a.png", "\xff", "a" * 5000, '"; x="', "a\\..\\b", ""])
        part = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        odd = rng.choice(
            [
                part, part * 3, part.replace("form-data", "x" * 9000), part.replace("\r\n", "\n"), part[:30], "",
                part.replace("; name", "; nome"), part + "X-Y: " * 3000, f"--{boundary}\r\n" * 300,
            ]
        )  # fmt: skip
        body = odd.encode("latin-1") + rng.choice(self.images) + f"\r\n--{boundary}--\r\n".encode("latin-1")
        body = rng.choice([body, body * 70, body[: len(body) // 2], body])
        where = rng.choice(["inspect", "inspect/batch"])
        headers = [f"Content-Type: multipart/form-data; boundary={boundary}"]
        return Hostile("form", http("POST", f"/lines/{self.line}/{where}?learn=false", headers, body))

    def plain(self, rng: Random) -> Hostile:
        """JSON of the wrong shape, or none."""
        where, body = rng.choice(["rollback", "task", "feedback"]), rng.choice(JSONS).encode("utf-8")
        body = rng.choice([body, body, body.decode().encode("utf-16"), body[: len(body) // 2]])
        kind = rng.choice(["application/json", "application/json", "text/plain", "application/json; charset=x"])
        return Hostile("json", http("POST", f"/lines/{self.line}/{where}", [f"Content-Type: {kind}"], body))

    def path(self, rng: Random) -> Hostile:
        """A path that leads out of where it should."""
        pieces = [rng.choice([*PIECES, self.line]) for _ in range(rng.randint(1, 6))]
        return Hostile("path", http(rng.choice(["GET", "POST"]), "/" + "/".join(pieces), [], b""))

    def query(self, rng: Random) -> Hostile:
        """Parameters out of their bounds."""
        rest = rng.choice(["inspect", "images", "image", "image/map", "versions"])
        query = "&".join(rng.sample(QUERIES, rng.randint(1, 4)))
        body = rng.choice(self.images) if rest == "inspect" else b""
        method = "POST" if rest == "inspect" else "GET"
        return Hostile("query", http(method, f"/lines/{self.line}/{rest}?{query}", ["Content-Type: image/png"], body))

    def headers(self, rng: Random) -> Hostile:
        """Headers that are legal, and odd."""
        odd = rng.sample(HEADERS, rng.randint(1, 4))
        if rng.random() < 0.5:
            return Hostile("headers", self._inspect(rng.choice(self.images), odd))
        return Hostile("headers", http("GET", rng.choice(["/", "/lines", "/health", "/none", "/docs"]), odd, b""))

    def broken_headers(self, rng: Random) -> Hostile:
        """Headers that are none."""
        return Hostile("broken headers", self._inspect(self.images[0], [rng.choice(BROKEN_HEADERS)]), whole=False)

    def length(self, rng: Random) -> Hostile:
        """A length that is not the body's."""
        wrong = rng.choice(
            [
                "Content-Length: 5", "Content-Length: 999999", "Content-Length: -1", "Content-Length: 1e3",
                "Content-Length: " + "9" * 30, "Content-Length: 99999999999",
                "Content-Length: 5\r\nContent-Length: 6",
                "Transfer-Encoding: chunked",
                "Transfer-Encoding: x", "Content-Length: 5\r\nTransfer-Encoding: chunked",
                "Content-Length: \xb2",
            ]
        )  # fmt: skip
        body = rng.choice([self.images[0], b"ZZ\r\nabc\r\n0\r\n\r\n", b"FFFFFFFFFFFFFFFFF\r\n", b"5\r\nab"])
        head = f"POST /lines/{self.line}/inspect?learn=false HTTP/1.1\r\nHost: localhost\r\n{wrong}\r\n\r\n"
        return Hostile("length", head.encode("latin-1") + body, whole=False)

    def half(self, rng: Random) -> Hostile:
        """A client that goes away in the middle."""
        data = self._inspect(rng.choice(self.images), [])
        return Hostile("half", data[: rng.randrange(len(data))], whole=False, leaves=True)

    def slow(self, rng: Random) -> Hostile:
        """An honest request in many small pieces."""
        return Hostile("slow", self._inspect(rng.choice(self.images), []), pieces=rng.randint(3, 12))

    def no_http(self, rng: Random) -> Hostile:
        """Another protocol, or noise."""
        return Hostile("no http", rng.choice([*NO_HTTP, rng.randbytes(300)]), whole=False)

    def method(self, rng: Random) -> Hostile:
        """A method that the address has not."""
        method, path = rng.choice(METHODS), rng.choice(["/", "/lines", f"/lines/{self.line}/inspect", "/events"])
        return Hostile("method", http(method, path, [], b""), whole=method in METHODS[:6])

    def _inspect(self, body: bytes, headers: Sequence[str]) -> bytes:
        return http("POST", f"/lines/{self.line}/inspect?learn=false", headers, body)


def http(method: str, target: str, headers: Sequence[str], body: bytes) -> bytes:
    """A request with the body's length; its connection ends with the answer."""
    own = [] if any(header.lower().startswith("host:") for header in headers) else ["Host: localhost"]
    lines = [f"{method} {target} HTTP/1.1", *own, *headers, f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def broken(rng: Random, image: bytes) -> bytes:
    """An image with something wrong."""
    at = rng.randrange(len(image))
    damaged = bytearray(image)
    for _ in range(rng.choice([1, 10, 200])):
        damaged[rng.randrange(8, len(damaged))] = rng.randrange(256)
    side = rng.choice([0, 1, 2**31 - 1, 50_000, 10_001])
    return rng.choice(
        [
            image[:at], bytes(damaged), image[:at] + rng.randbytes(50) + image[at:], image[:at] + image, image[at:],
            png_of(side, side, b""), png_of(9000, 9000, b"\0" * 100), png_of(64, 64, b"", text=2**24),
            b"GIF89a" + rng.randbytes(100), b"II*\0" + rng.randbytes(200), b"BM" + rng.randbytes(100),
            b"RIFF" + rng.randbytes(4) + b"WEBPVP8 " + rng.randbytes(100), b"\xff\xd8\xff\xe0" + rng.randbytes(300),
        ]
    )  # fmt: skip


@cache
def png_of(width: int, height: int, rows: bytes, text: int = 0) -> bytes:
    """A PNG that says how large it is, with so much of its pixels. text: bytes of a comment, packed."""
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    note = _chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * text)) if text else b""
    return b"\x89PNG\r\n\x1a\n" + head + note + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def is_problem(body: bytes) -> bool:
    """Whether an error's body has the one shape."""
    try:
        found: Any = json.loads(body)
    except ValueError:
        return False
    error = found.get("error") if isinstance(found, dict) else None
    return isinstance(error, dict) and error.keys() == {"code", "message", "request_id"}


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
