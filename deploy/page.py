"""The operator's page and what it asks for: the last images of a line, their pictures, feedback, events.

An image's id may hold any printable character, so it travels in the query or the body, never in the path: `..`,
`a/map` and `50 %` would be rewritten by browsers and proxies, or taken for another address.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from anyio import to_thread
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..platform.ids import MAX_ID
from ..platform.images import suffix_of
from ..platform.pictures import jpeg
from . import described
from .events import FOR_HOLDERS, Events, Listener

STATIC = Path(__file__).parent / "static"
FILES = {"/": "index.html"} | {
    f"/static/{name}": name for name in ("page.css", "page.js", "docs.css", "docs.js", "icon.svg")
}
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".bmp": "image/bmp",
    ".tif": "image/tiff",
    ".webp": "image/webp",
}
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
GUARDED = {  # nothing from other hosts, no scripts but our own file; pictures are fetched, and shown from memory
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    **NOSNIFF,
}
KEPT = {"Cache-Control": "private, max-age=3600", **NOSNIFF}  # what an id stands for does not change
SIDES = Query(ge=16, le=2048, description="longest side in pixels of a JPEG copy")


class Shown(Protocol):
    """What these routes need (deploy/desk.py)."""

    async def line(self, line: str) -> dict[str, Any]: ...
    async def recent(self, line: str, limit: int, before: int | None, verdict: str | None) -> list[dict[str, Any]]: ...
    async def image(self, line: str, id: str) -> bytes: ...
    async def small(self, line: str, id: str, side: int) -> Any: ...
    async def overlay(self, line: str, id: str) -> bytes: ...
    async def feedback(self, line: str, id: str, label: str, by: str) -> dict[str, Any]: ...
    def health(self) -> dict[str, Any]: ...


class Feedback(BaseModel):
    """What a person says of an image: label `ok` or `defect`; by: who, if they say."""

    model_config = ConfigDict(extra="forbid", strict=True)
    id: str = Field(min_length=1, max_length=MAX_ID, json_schema_extra=described.PRINTABLE)
    label: Literal["ok", "defect"]
    by: str = Field(default="", max_length=64, json_schema_extra=described.PRINTABLE)


def add(app: FastAPI, lines: Shown, tokens: bool) -> None:
    """Adds the page and its routes to the application. tokens: whether the server has any."""
    _add_files(app)
    _add_images(app, lines)
    events = Events(lines, for_holders=FOR_HOLDERS if tokens else 0)

    @app.get("/events", **described.EVENTS)
    async def all_events(request: Request) -> StreamingResponse:
        """Server-sent events: `line` with a line's status when it changes, `image` for new records and new labels."""
        who = Listener(request.scope["everline.client"], bool(request.scope["everline.who"]))
        events.check(who)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # the second: nginx passes them on at once
        return StreamingResponse(events.listen(who), media_type="text/event-stream", headers=headers)


def _add_images(app: FastAPI, lines: Shown) -> None:
    @app.get("/lines/{line}/images", **described.ROWS)
    async def images(
        line: str,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        before: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
        verdict: Literal["pass", "reject", "learning"] | None = None,
    ) -> Any:
        """The last images of a line, newest first, without their bytes; before: a record number."""
        return {"line": line, "images": await lines.recent(line, limit, before, verdict)}

    @app.get("/lines/{line}/image", **described.IMAGE)
    async def image(
        line: str, id: Annotated[str, Query(max_length=MAX_ID)], side: Annotated[int | None, SIDES] = None
    ) -> Response:
        """An image as it came, or with `side` a JPEG copy that is no larger."""
        if side is not None:
            data = await to_thread.run_sync(jpeg, await lines.small(line, id, side))
        else:
            data = await lines.image(line, id)
        return Response(data, media_type=PICTURES.get(suffix_of(data), "application/octet-stream"), headers=KEPT)

    @app.get("/lines/{line}/image/map", **described.OVERLAY)
    async def overlay(line: str, id: Annotated[str, Query(max_length=MAX_ID)]) -> Response:
        """PNG: the image in grey under the heatmap of the version that serves now."""
        data = await lines.overlay(line, id)
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store", **NOSNIFF})

    said_so = described.json_body(Feedback, {"id": "part-17.png:d292dcf5251acf7e", "label": "ok"})

    @app.post("/lines/{line}/feedback", **described.FEEDBACK, openapi_extra=said_so)
    async def feedback(request: Request, line: str) -> Any:
        """Say that an image was `ok` or shows a `defect`: a record of its own, from which the line learns."""
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":  # what a page of another origin cannot send unasked
            raise HTTPException(415, f"expected application/json, got {kind!r}.")
        try:
            said = Feedback.model_validate_json(await request.body())
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        by = request.scope.get("everline.who") or said.by  # whose token it is, is known better
        return {"line": line, **await lines.feedback(line, said.id, said.label, by)}


def _add_files(app: FastAPI) -> None:
    for path, name in FILES.items():
        content, kind = (STATIC / name).read_bytes(), KINDS[Path(name).suffix]
        answer = partial(Response, content, media_type=kind, headers=GUARDED)
        app.add_api_route(path, _always(answer), include_in_schema=False)


def _always(answer: partial[Response]) -> Any:
    async def file() -> Response:
        return answer()

    return file
