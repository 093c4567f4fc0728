"""The web application: routes, limits, and one JSON shape for every error. No Ray, no detectors.

{"error": {"code": "unknown_line", "message": "...", "request_id": "..."}}
"""

import json
import logging
import math
import sys
import uuid
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from ..methods.errors import (
    Busy,
    ConfigError,
    Dropped,
    EverlineError,
    ImageError,
    LineDown,
    LineStopped,
    NoSpace,
    SecondWriter,
    ServerBusy,
    StoreDown,
    TrackingError,
    UnknownImage,
    UnknownLine,
    UnknownVersion,
)
from ..platform.ids import MAX_ID
from ..platform.images import base_name, image_id
from . import described, manual, page, tasks
from .answers import HEADERS_LIMIT, REQUEST_ID, RETRY_AFTER_S, problem
from .guard import Guard, Rules

log = logging.getLogger("everline.web")
BODY_LIMIT = 32 * 2**20
BATCH = 64  # images of one form
BODIES = 32  # body limits that all requests of a replica hold together
DRAIN = 4  # body limits that are read, and thrown away, of a body that is too large
RAW = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")  # the last: curl --data-binary
ANSWER = "X-Everline-Answer"  # header beside a picture
ERRORS: tuple[tuple[type[BaseException], int, str], ...] = (  # the first that fits
    (UnknownLine, 404, "unknown_line"),
    (UnknownVersion, 404, "unknown_version"),
    (UnknownImage, 404, "unknown_image"),
    (ImageError, 400, "bad_image"),
    (ConfigError, 422, "invalid"),
    (NoSpace, 507, "no_space"),
    (LineStopped, 503, "line_stopped"),
    (LineDown, 503, "line_down"),
    (Dropped, 429, "dropped"),
    (ServerBusy, 503, "server_busy"),
    (Busy, 503, "line_busy"),
    (SecondWriter, 503, "line_moved"),
    (StoreDown, 503, "store_unavailable"),
    (TrackingError, 503, "tracking_unavailable"),
    (EverlineError, 500, "failed"),
    (TimeoutError, 504, "line_timeout"),
)
CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}

Id = Annotated[str, Field(max_length=MAX_ID, json_schema_extra=described.PRINTABLE)]


class Lines(Protocol):
    """What the routes need (deploy/desk.py)."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def inspect(
        self, line: str, data: bytes, id: str, learn: bool, want_map: str, request: str, known: bool
    ) -> dict[str, Any]: ...
    async def lines(self) -> list[dict[str, Any]]: ...
    async def line(self, line: str) -> dict[str, Any]: ...
    async def versions(self, line: str) -> list[dict[str, Any]]: ...
    async def rollback(self, line: str, version: int | None) -> int: ...
    async def switch(self, line: str, task: str) -> int: ...
    async def recent(self, line: str, limit: int, before: int | None, verdict: str | None) -> list[dict[str, Any]]: ...
    async def image(self, line: str, id: str) -> bytes: ...
    async def small(self, line: str, id: str, side: int) -> Any: ...
    async def overlay(self, line: str, id: str) -> bytes: ...
    async def targets(self) -> list[str]: ...
    async def feedback(self, line: str, id: str, label: str, by: str) -> dict[str, Any]: ...
    def health(self) -> dict[str, Any]: ...


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 3.0 is an integer in JSON


class Rollback(BaseModel):
    """The body of a rollback; without a version, the one before the current."""

    model_config = ConfigDict(extra="forbid", strict=True)
    version: Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_whole)] | None = None


@dataclass(frozen=True)
class Upload:
    """An image as it came."""

    data: bytes
    name: str = ""  # of the file, where it came as one


class Finite(JSONResponse):
    """JSON without Infinity and NaN, which are not JSON: they become null."""

    def render(self, content: Any) -> bytes:
        return super().render(_finite(content))


def application(
    lines: Lines,
    *,
    body_limit: int = BODY_LIMIT,
    rules: Rules = Rules(),  # noqa: B008 - frozen
    failed: Callable[[str], None] = lambda code: None,
) -> FastAPI:
    """The routes over `lines`, which is started and stopped with it. body_limit: bytes of a request's body.

    rules: who is let in, how often, and for how long. failed: hears the code of every error that is answered.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await lines.start()
        yield
        await lines.stop()

    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every form that is none
    # FastAPI's own pages would load scripts from the internet, which a plant may not have; see manual.py.
    # A redirect to the address without its last slash would name the Host as it came, and http behind a proxy's TLS.
    app = FastAPI(
        title="everline",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        default_response_class=Finite,
    )
    app.add_middleware(Guard, rules=rules)
    if rules.proxies:  # the guard then sees the right-most address that is none of theirs
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=[*rules.proxies])
    app.add_middleware(Envelope, body_limit=body_limit, failed=failed)
    _handle_errors(app)
    _add_routes(app, lines, failed)
    tasks.add(app, lines)
    page.add(app, lines, rules.tokens is not None)
    manual.add(app)
    _answer_head(app)
    described.describe(app, rules)
    return app


def _answer_head(app: FastAPI) -> None:
    """Monitors and load balancers ask with HEAD what others ask with GET. A stream has no answer to it."""
    for route in [one for one in app.routes if isinstance(one, APIRoute) and "GET" in (one.methods or ())]:
        if route.path != "/events":
            app.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)


def _utf8(value: Any) -> Any:
    """A header as its sender wrote it: HTTP hands over bytes as Latin-1, and people write UTF-8."""
    try:
        return value.encode("latin-1").decode() if isinstance(value, str) else value
    except UnicodeError:
        return value


def _add_routes(app: FastAPI, lines: Lines, failed: Callable[[str], None]) -> None:
    @app.post("/lines/{line}/inspect", **described.INSPECT)
    async def inspect(
        request: Request,
        line: str,
        learn: bool = True,
        want_map: Annotated[bool | Literal["overlay", "raw"], Query(alias="map")] = False,
        id: Annotated[Id | None, Query()] = None,
        own: Annotated[Id | None, BeforeValidator(_utf8), Header(alias="X-Image-Id")] = None,
    ) -> Any:
        """Judge an image (raw body or multipart) and hand it to the line, which logs it and may learn from it.

        Where the server has tokens, it is learned only with one that may `inspect`; without, the answer says
        `admitted: false`, and its id begins with `unknown:`.

        `map=true`: with the map as PNG; `overlay`: as PNG over the image; `raw`: its float32 values as .npy. With
        `Accept: image/png` that picture (the overlay, unless `map=true`) is the body, and the answer a header.
        """
        upload = await _upload(request)
        image_id = own or id or default_id(upload)
        asked, known = request.scope["everline.request_id"], request.scope["everline.known"]
        as_picture = request.headers.get("accept") == "image/png"
        kind = want_map if isinstance(want_map, str) else "png" if want_map else "overlay" if as_picture else ""
        answer = await lines.inspect(line, upload.data, image_id, learn, kind, asked, known)
        return _picture(answer) if as_picture and kind != "raw" else Finite(answer)

    @app.post("/lines/{line}/inspect/batch", **described.BATCH)
    async def inspect_batch(request: Request, line: str, learn: bool = True) -> Any:
        """Judge the images of a form one after the other, in its order; each has its own answer, or its own error.

        They are learned under the same condition as a single image.
        """
        answers, down = list[dict[str, Any]](), dict[str, Any]()
        asked, known = request.scope["everline.request_id"], request.scope["everline.known"]
        for upload in await _uploads(request):
            id = default_id(upload)
            if down:  # nobody answers: the rest is not tried, and not recorded
                answers.append({**down, "id": id})
                continue
            try:
                answer = await lines.inspect(line, upload.data, id, learn, "", asked, known)
                answers.append({"status": 200, **answer})
            except UnknownLine:  # so it is for all of them
                raise
            except (EverlineError, TimeoutError) as error:
                status, code = _known(error)
                failed(code)
                answers.append({"status": status, "id": id, "error": {"code": code, "message": str(error)}})
                down = answers[-1] if status >= 500 else {}
        return Finite({"line": line, "answers": answers})

    @app.get("/lines", **described.LINES)
    async def all_lines() -> Any:
        """All lines of the fleet with their state."""
        return Finite({"lines": await lines.lines()})

    @app.get("/lines/{line}", **described.LINE)
    async def one_line(line: str) -> Any:
        """One line: method, counts, current version, threshold."""
        return Finite(await lines.line(line))

    @app.get("/lines/{line}/versions", **described.VERSIONS)
    async def versions(line: str) -> Any:
        """The published versions of a line, newest first."""
        return Finite({"line": line, "versions": await lines.versions(line)})

    back = described.json_body(Rollback, {"version": 3}, required=False)

    @app.post("/lines/{line}/rollback", **described.ROLLBACK, openapi_extra=back)
    async def rollback(request: Request, line: str) -> Any:
        """Make an older version current."""
        try:
            asked = Rollback.model_validate_json(await request.body() or b"{}")
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        return Finite({"line": line, "version": await lines.rollback(line, asked.version)})

    @app.get("/metrics/targets", **described.TARGETS)
    async def targets() -> Any:
        """Where the metrics of the cluster's nodes are, as Prometheus's HTTP discovery wants it."""
        return [{"targets": await lines.targets()}]

    @app.get("/health", **described.HEALTH)
    async def health() -> Any:
        """Whether this replica answers; asks no other process."""
        return Finite(lines.health())


def _picture(answer: dict[str, Any]) -> Response:
    """The picture of an answer, the rest of it as a header; as JSON while there is no version to make one."""
    rest = {name: value for name, value in answer.items() if name not in ("map_png", "map_overlay")}
    encoded = answer.get("map_png") or answer.get("map_overlay")
    if encoded is None:
        return Finite(answer)
    return Response(b64decode(encoded), media_type="image/png", headers={ANSWER: json.dumps(_finite(rest))})


def _handle_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> JSONResponse:
        status, code = _known(error)
        if status >= 500:
            log.warning("%s %s: %s: %s", request.method, request.scope["path"], code, error)
        headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (429, 503) else None
        return problem(request.scope, status, code, str(error), headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        texts = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()]
        return problem(request.scope, 422, "invalid", "; ".join(texts))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.scope["path"][:200]  # as it came; request.url believes the Host header
        known = {404: f"no such address: {path}.", 405: f"{request.method} is not for {path}."}
        text = known.get(error.status_code, str(error.detail))
        code = CODES.get(error.status_code, f"http_{error.status_code}")
        return problem(request.scope, error.status_code, code, text, dict(error.headers or {}))

    for kind, _, _ in ERRORS:
        app.add_exception_handler(kind, ours)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _known(error: Exception) -> tuple[int, str]:
    """An error's status and code."""
    return next((status, code) for kind, status, code in ERRORS if isinstance(error, kind))


@dataclass
class _Body:
    """Bytes of a request's body: those that came, and those that are held in memory."""

    came: int = 0
    held: int = 0


class Envelope:
    """Round every request: an id for it, a limit on its body, and an answer in our shape whatever goes wrong."""

    def __init__(self, app: ASGIApp, body_limit: int, failed: Callable[[str], None]) -> None:
        self.app, self.body_limit, self.failed = app, body_limit, failed
        self._held = 0  # bytes of the bodies of all requests that are at work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.lower(): v.decode("latin-1") for k, v in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        scope["everline.request_id"] = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started, body = False, _Body()
        size = sum(len(key) + len(value) for key, value in scope["headers"])

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if code := scope.get("everline.error"):
                    self.failed(code)
                MutableHeaders(scope=message)["X-Request-Id"] = scope["everline.request_id"]
            await send(message)

        if size + len(scope.get("raw_path") or b"") + len(scope["query_string"]) > HEADERS_LIMIT:
            text = f"the request's address and headers are above {HEADERS_LIMIT:,} bytes."
            await problem(scope, 431, "headers_too_large", text, {"Connection": "close"})(scope, receive, answer)
            return
        try:
            await self.app(scope, self._counted(headers.get(b"content-length", ""), receive, body), answer)
        except ClientDisconnect:
            log.info("request %s: the client went away", scope["everline.request_id"])
        except Exception as error:  # the last stop: logged with its id, and answered
            if started:
                raise
            log.error("request %s failed", scope["everline.request_id"], exc_info=error)
            text = "something went wrong inside the server; its log has the details under this request_id."
            await problem(scope, 500, "internal", text)(scope, receive, answer)
        finally:
            self._held -= body.held

    def _counted(self, declared: str, receive: Receive, body: "_Body") -> Receive:
        """`receive` that refuses a body above the limit: by what it declares, and by what comes.

        It also refuses what is more than all bodies together may have. Raises HTTPException 413, ServerBusy.
        """

        async def counted() -> Message:
            message = await receive()
            came = len(message.get("body", b""))
            body.came += came
            if body.came > self.body_limit or self._declares_more(declared):
                await self._drain(receive, message, body)
                raise self._too_large()
            if self._held + came > BODIES * self.body_limit:
                await self._drain(receive, message, body)
                raise ServerBusy("the bodies of all requests together are too large for now; send the same again.")
            self._held, body.held = self._held + came, body.held + came
            return message

        return counted

    async def _drain(self, receive: Receive, message: Message, body: "_Body") -> None:
        """Most clients read no answer before they have sent everything: let them, within bounds."""
        while message.get("more_body") and body.came < DRAIN * self.body_limit:
            message = await receive()
            body.came += len(message.get("body", b""))

    def _declares_more(self, declared: str) -> bool:
        return declared.isdecimal() and (len(declared) > 18 or int(declared) > self.body_limit)

    def _too_large(self) -> HTTPException:
        text = f"the request's body is above {self.body_limit:,} bytes; send a smaller image."
        return HTTPException(413, text, {"Connection": "close"})


async def _upload(request: Request) -> Upload:
    """The image of a request. Raises HTTPException 415 for another media type, ImageError for none or several."""
    kind = request.headers.get("content-type", "").lower()
    if kind.startswith("multipart/form-data"):
        return (await _uploads(request, 1))[0]
    if kind and not kind.startswith(RAW):
        raise HTTPException(415, f"expected an image, as the body or as multipart/form-data, got {kind!r}.")
    return Upload(await request.body())


async def _uploads(request: Request, most: int = BATCH) -> list[Upload]:
    """The files of a form, in its order. Raises HTTPException 415 for another media type, ImageError for too many."""
    kind = request.headers.get("content-type", "").lower()
    if not kind.startswith("multipart/form-data"):
        raise HTTPException(415, f"expected images as multipart/form-data, got {kind!r}.")
    form = await _form(request, most + 1)
    try:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not 0 < len(files) <= most:
            wanted = "one image file" if most == 1 else f"1 to {most} image files"
            raise ImageError(f"expected {wanted} in the form, got {len(files)}.")
        return [Upload(await file.read(), base_name(file.filename or "")) for file in files]
    finally:
        await form.close()


class InMemory(MultiPartParser):
    """A form without temporary files, whose folder may be full: limits on bodies bound the memory."""

    spool_max_size = sys.maxsize


async def _form(request: Request, max_files: int) -> FormData:
    """As `request.form()`, in memory. Raises HTTPException."""
    try:
        async with aclosing(request.stream()) as stream:
            return await InMemory(request.headers, stream, max_files=max_files, max_fields=16).parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error


def default_id(upload: Upload) -> str:
    """The identity of an image that came without one: its file's name, if any, and the hash of its bytes."""
    return image_id(upload.name, upload.data)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, list | tuple) else content
