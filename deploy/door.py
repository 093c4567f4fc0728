"""The very door of a Ray Serve cluster's HTTP server: what its proxy must not read, may keep, and how it refuses.

A proxy asks `middlewares` for it where its environment has RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=
everline.deploy.door:middlewares, as in every cluster that everline starts (platform/cluster.py).
"""

import os
import re
import uuid
from asyncio import TimerHandle, Transport

import uvicorn.config
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .answers import HEADERS_LIMIT, REQUEST_ID, RETRY_AFTER_S, begins_in_time, problem
from .bodies import BODY_S, Bodies, BodiesFull, BodySlow, seconds_in_environment

HEALTHZ = "/-/healthz"  # of Serve: says `success`, for load balancers
HEAD_S = 30.0  # in which a request's headers must be there
OBEYED = re.compile(rb"serve_multiplexed_model_id|x_session_id|x_request_(timeout_seconds|disconnect_disabled)")
READ = 2**18  # bytes that asyncio hands over at once
TRACING = (b"traceparent", b"tracestate")
ANSWER_S = 150.0  # until an answer begins, longer than the replicas' own time-out; for where none of them is left
BUSY = 503, "server_busy", "more requests than the server takes wait already, or it is not ready; send the same again."
REFUSALS = {  # the proxy's own, which are plain text; those of the application have our shape already
    404: (404, "not_found", "nothing is served at this address."),
    500: (503, "server_busy", "the replica that had this request is gone; send the same again."),
    503: BUSY,
}


def middlewares() -> list[Middleware]:
    """What Serve puts round its proxy; the server that it then starts is bounded, too.

    That server leaves a client's address as it is: uvicorn would take it from the header X-Forwarded-For of anybody on
    this machine. Which proxies are trusted is a server's own setting (`Rules.proxies`).
    """
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:Bounded"
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    bodies = Bodies(seconds_in_environment("EVERLINE_BODY_S", BODY_S))
    return [Middleware(Door, bodies=bodies, answer_s=seconds_in_environment("EVERLINE_ANSWER_S", ANSWER_S))]


class Door:
    """Takes out of a request what Ray Serve would obey (a time-out, a model) or cannot decode (and answer by 500).

    A request goes on when its body is there (bodies.py). Where the proxy itself refuses a request, the answer gets the
    shape of all our errors. Serve's own addresses (/-/routes) are not served, but for its health: no token and no rate
    would stand before them. What Serve does not begin to answer in time is answered here.
    """

    def __init__(self, app: ASGIApp, bodies: Bodies | None = None, answer_s: float = ANSWER_S) -> None:
        """answer_s: seconds until an answer must begin, once the body is there."""
        self.app, self.bodies, self.answer_s = app, bodies or Bodies(), answer_s
        self._ready = False  # an application has answered: before that a 404 means "not yet"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/-/") and scope["path"] != HEALTHZ:
            await _not_found(scope)(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["headers"] = [header for header in scope["headers"] if _passes(*header)]
        try:
            async with self.bodies.received(scope, receive) as body:
                await self._answered(scope, body, self._in_our_shape(scope, receive, send))
        except ClientDisconnect:
            return
        except BodySlow:
            text = f"the body did not come within {self.bodies.body_s:g} s, or others needed its room; send it again."
            await _refusal(scope, 408, "body_timeout", text)(scope, receive, send)
        except BodiesFull:
            await _refusal(scope, *BUSY)(scope, receive, send)

    async def _answered(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application's answer, or 503 where none begins in time: Serve waits for ever for what is lost."""
        if not await begins_in_time(self.app, scope, receive, send, self.answer_s):
            text = f"the server did not begin to answer within {self.answer_s:g} s; send the same again."
            await _refusal(scope, 503, "server_busy", text)(scope, receive, send)

    def _in_our_shape(self, scope: Scope, receive: Receive, send: Send) -> Send:
        """`send` that says a refusal of the proxy's in our words, and the id of a request once."""
        refused = False

        async def answer(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                headers = {key.lower(): value.decode("latin-1") for key, value in message["headers"]}
                plain = headers.get(b"content-type", "").startswith("text/plain")
                refused = plain and message["status"] in REFUSALS
                self._ready = self._ready or not plain
                if refused:
                    id = scope["everline.request_id"] = headers.get(b"x-request-id", "")
                    status, code, text = REFUSALS[message["status"]] if self._ready else BUSY
                    after = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
                    await problem(scope, status, code, text, {"X-Request-Id": id, **after})(scope, receive, send)
            if not refused:
                if message["type"] == "http.response.start":
                    _say_id_once(message)
                await send(message)

        return answer


def _refusal(scope: Scope, status: int, code: str, text: str) -> ASGIApp:
    """An answer in our shape, after which the connection ends, since the rest of the body is not read."""
    id = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1") or uuid.uuid4().hex
    scope["everline.request_id"] = id
    after = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else {}
    return problem(scope, status, code, text, {"X-Request-Id": id, "Connection": "close", **after})


def _not_found(scope: Scope) -> JSONResponse:
    """The answer to an address of Serve's own."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
    id = scope["everline.request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
    return problem(scope, *REFUSALS[404], {"X-Request-Id": id})


def _say_id_once(message: Message) -> None:
    """Keep one X-Request-Id: the application says it, and Serve again."""
    ids = [header for header in message["headers"] if header[0].lower() == b"x-request-id"]
    others = [header for header in message["headers"] if header[0].lower() != b"x-request-id"]
    message["headers"] = [*others, *ids[:1]]


def _passes(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return not OBEYED.fullmatch(name.replace(b"-", b"_")) and (name not in TRACING or value.isascii())


class Bounded(HttpToolsProtocol):
    """uvicorn's connection, which by itself would hold headers of any size, for any time."""

    _came = 0  # bytes of headers that are not complete yet
    _timer: TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        """Refuses headers above the limit while they come."""
        super().data_received(data)
        if self._timer is not None:
            self._came += len(data)
            if self._came > HEADERS_LIMIT + READ:  # what is a little above the limit the application refuses itself
                self._refuse()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Somebody connects, and should say something."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_S, self._refuse)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._stop()
        self._came, self._timer = 0, self.loop.call_later(HEAD_S, self._refuse)

    def on_headers_complete(self) -> None:
        """Its headers are there."""
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop()
        super().connection_lost(exc)

    def _refuse(self) -> None:
        self._stop()
        if not self.transport.is_closing():
            self.send_400_response("The headers are too large, or too slow.")

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
