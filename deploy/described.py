"""What the routes take and answer, for /openapi.json and the page at /docs: bodies, answers, errors, who may.

An operation's words stand here and are given to its route (`@app.post(path, **INSPECT)`); parameters are read from
the route itself. The models only describe: no answer passes through them. Tests compare both, with schemathesis.
"""

from importlib.metadata import version as installed
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field, RootModel

from .guard import FREE, Rules, right

ABOUT = """\
Inspect images, watch lines, and take back versions. Every error has one shape, `{"error": {"code", "message",
"request_id"}}`; a 429 or 503 says in `Retry-After` when to send the same thing again. An image that was sent twice
under one id is learned once. Where the server has tokens, only images that come with one that may `inspect` are
learned."""
TAGS = {
    "inspect": "An image in, a verdict out.",
    "lines": "What runs, its state, and its versions.",
    "images": "What a line has seen, and what people say of it.",
    "server": "The server itself.",
}
CODES = {  # status: the codes that an error of it may have, and when
    400: (("bad_image", "bad_request"), "The body is no image that everline takes, or no form."),
    401: (("no_token",), "A token is needed, and none that is known came."),
    403: (("forbidden", "other_site"), "The token has not this right; or a page of another site asked."),
    404: (("unknown_line", "unknown_version", "unknown_image", "not_found"), "There is no such thing."),
    405: (("method_not_allowed",), "Another method is for this address."),
    408: (("body_timeout",), "The body did not come in time, or others needed its room."),
    413: (("too_large",), "The body is above the limit."),
    415: (("unsupported_media_type",), "The body is of another media type."),
    421: (("unknown_host",), "The header Host names no host that this server answers to (`--allow-host`)."),
    422: (("invalid",), "A parameter, or the body, is not what it has to be."),
    429: (("dropped", "too_many_requests"), "Too often; or the line is full, and set to drop."),
    431: (("headers_too_large",), "The request's headers are above the limit."),
    500: (("failed", "internal"), "A fault of the server; its log has more under the request's id."),
    503: (
        (
            "line_down",
            "line_stopped",
            "line_busy",
            "line_moved",
            "store_unavailable",
            "tracking_unavailable",
            "server_busy",
        ),
        "Not now.",
    ),
    504: (("line_timeout", "timeout"), "No answer in time."),
    507: (("no_space",), "The disk is full; the image was not recorded."),
}
VERDICTS = ("pass", "reject", "learning")
IMAGE_KINDS = ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp")
BINARY = {"type": "string", "format": "binary"}
EVENT = {"type": "object", "properties": {"event": {"enum": ["line", "image"]}, "data": {"type": "string"}}}
PRINTABLE: dict[str, Any] = {"format": "printable"}  # of a text: all its characters can be printed
GUARD = (401, 403, 408, 421, 429, 431, 500, 504)  # errors that any request may meet
PARAMETERS = {  # name: what it is, where its route does not say
    "line": "a line of the fleet; GET /lines has them",
    "learn": "false: judge it only",
    "map": "true: with the anomaly map in colours; overlay: over the image; raw: its values",
    "id": "of the image, any printable characters; without: made of the file's name and the bytes",
    "X-Image-Id": "the same; goes before `id`",
    "limit": "how many",
    "before": "only records with a lower number",
    "verdict": "only images with this one",
}
REQUEST_ID = {
    "description": "of this request: the caller's own (1 to 64 of A-Z a-z 0-9 . _ -), or one that is made up",
    "schema": {"type": "string"},
}

ALL_CODES: tuple[Any, ...] = tuple(sorted(code for codes, _ in CODES.values() for code in codes))


class Trouble(BaseModel):
    """What went wrong."""

    code: str = Field(json_schema_extra={"enum": [*ALL_CODES]})
    message: str = Field(description="fit for a person")
    request_id: str = Field(description="the X-Request-Id of the request, under which the server's log has it")


class Problem(BaseModel):
    """The one shape of an error."""

    error: Trouble


class Verdict(BaseModel):
    """The answer to an image."""

    line: str
    id: str = Field(
        description="as given, or made; of a sender without the token that the server asks for: unknown:...; "
        "where another image has that id: ID#2, ID#3, ..."
    )
    record: int = Field(description="its number in the line's log")
    verdict: str = Field(
        description="learning: no version knows the product, or its light, yet",
        json_schema_extra={"enum": [*VERDICTS]},
    )
    score: float | None = Field(description="higher is worse; comparable within one version")
    p_value: float | None = Field(description="share of normal images with a score at least as high")
    threshold: float | None = Field(description="the highest score that passes; null: none")
    version: int | None
    calibrated: bool = Field(default=False, description="whether the threshold can promise the false-reject rate")
    admitted: bool = Field(
        default=False,
        description="whether the line learns from it; where the server has tokens, never without one that may inspect",
    )
    duplicate: bool = Field(
        default=False, description="the log had its bytes with its id already: it is not learned again"
    )
    sent_as: str | None = Field(default=None, description="the id that it came with, where another image has that id")
    map_png: str | None = Field(default=None, description="with map=true: the anomaly map as PNG in base64")
    map_overlay: str | None = Field(default=None, description="with map=overlay: the image under it, PNG in base64")
    map_npy: str | None = Field(default=None, description="with map=raw: float32 (S, S) as a .npy file in base64")
    map_range: list[float] | None = Field(default=None, description="the scores of the map's darkest and lightest")


class InBatch(BaseModel):
    """The answer to one image of a form: as for a single one, or its error."""

    status: int = Field(description="what a request with this image alone would have been answered with")
    id: str
    error: dict[str, str] | None = Field(default=None, description="code and message, where status is not 200")


class Batch(BaseModel):
    """The answers to a form, in its order."""

    line: str
    answers: list[InBatch]


class State(BaseModel):
    """What is known of a line, among more; one whose process does not answer has `state`, `problem` and no counts."""

    line: str
    state: str = Field(description="running, busy, opening, stopped, closed, unavailable")
    problem: str | None = None
    method: str | None = None
    task: str | None = None
    images_learned: int | None = None
    records: int | None = None
    version: int | None = Field(default=None, description="the line's current version")
    serving_version: int | None = Field(default=None, description="the version that this replica judges with")
    threshold: float | None = None
    calibrated: bool | None = None
    advice: str | None = Field(default=None, description="what its images suggest, such as a setting `bits`")


class States(BaseModel):
    """All lines of the fleet."""

    lines: list[State]


class Published(BaseModel):
    """A version of a line."""

    version: int
    aliases: list[str] = Field(description="current, previous, candidate")
    watermark: int = Field(description="number of the last record that it has learned from")
    images_learned: int
    threshold: float | None
    calibrated: bool
    method: str
    created_ms: int = Field(description="since 1970")
    tags: dict[str, str]


class PublishedAll(BaseModel):
    """The versions of a line, newest first."""

    line: str
    versions: list[Published]


class Turned(BaseModel):
    """Which version is current now."""

    line: str
    version: int


class Switched(BaseModel):
    """From which record on the product is another."""

    line: str
    task: str
    record: int


class Row(BaseModel):
    """An image that a line has seen, without its bytes, among more."""

    id: str
    record: int
    score: float | None
    verdict: str | None = None
    threshold: float | None = None
    version: int | None = None
    label: str | None = Field(default=None, description="what a person said: ok, defect, or nothing yet")
    by: str | None = None


class Rows(BaseModel):
    """The last images of a line, newest first."""

    line: str
    images: list[Row]


class Said(BaseModel):
    """A person's word on an image, as it stands in the log."""

    line: str
    record: int = Field(description="number of the word's record")
    of: int = Field(description="number of the image's record")
    label: str = Field(json_schema_extra={"enum": ["ok", "defect"]})
    changed: bool = Field(description="whether another word, or none, stood there before")


class Served(BaseModel):
    """What a replica judges a line with."""

    version: int | None
    problem: str | None = Field(description="why its current version could not be had; null: all is well")


class Health(BaseModel):
    """Whether a replica can answer."""

    status: str = Field(json_schema_extra={"enum": ["ok", "starting"]})
    lines: dict[str, Served]


class Node(BaseModel):
    """Addresses that Prometheus asks."""

    targets: list[str]


class Nodes(RootModel[list[Node]]):
    """Where the metrics are, as Prometheus's HTTP discovery wants it."""


def json_body(model: type[BaseModel], example: dict[str, Any], required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that reads this body by itself."""
    return _body({"application/json": {"schema": model.model_json_schema(), "example": example}}, required)


def describe(app: FastAPI, rules: Rules) -> None:
    """Has the application describe itself so; with it, who needs a token for what, as `rules` have it."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = get_openapi(
                title=app.title,
                version=installed("everline"),
                description=ABOUT,
                routes=app.routes,
                tags=[{"name": name, "description": text} for name, text in TAGS.items()],
                separate_input_output_schemas=False,
            )
            _complete(app.openapi_schema, rules)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _complete(schema: dict[str, Any], rules: Rules) -> None:
    """What is the same for all operations."""
    parts = schema.setdefault("components", {})
    for foreign in ("HTTPValidationError", "ValidationError"):
        parts.get("schemas", {}).pop(foreign, None)
    parts["responses"] = {str(status): _problem(status) for status in CODES}
    parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": "`everline token NAME`"}}
    parts["headers"] = {"X-Request-Id": {**REQUEST_ID, "required": True}}
    parts["parameters"] = {"X-Request-Id": {**REQUEST_ID, "name": "X-Request-Id", "in": "header"}}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            _drop_422(operation)
            for parameter in operation.get("parameters", ()):
                parameter.setdefault("description", PARAMETERS.get(parameter["name"], ""))
            operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/X-Request-Id"})
            operation["security"] = _security(method, path, rules)
            for status, answer in list(operation["responses"].items()):
                if FREE.fullmatch(path) and status in ("401", "403", "429", "504"):
                    del operation["responses"][status]
                elif int(status) in CODES:
                    operation["responses"][status] = {"$ref": f"#/components/responses/{status}"}
                else:
                    answer["headers"] = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}


def _drop_422(operation: dict[str, Any]) -> None:
    """FastAPI expects that any parameter may be wrong; the text in a path never is."""
    foreign = "HTTPValidationError" in str(operation["responses"].get("422"))
    if foreign and all(parameter["in"] == "path" for parameter in operation.get("parameters", ())):
        del operation["responses"]["422"]


def _problem(status: int) -> dict[str, Any]:
    codes, when = CODES[status]
    headers: dict[str, Any] = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}
    if status in (429, 503):
        headers["Retry-After"] = {"description": "seconds", "schema": {"type": "integer"}, "required": True}
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {"description": f"{when} Codes: {', '.join(codes)}.", "headers": headers, "content": content}


def _security(method: str, path: str, rules: Rules) -> list[dict[str, list[str]]]:
    """Who may: everybody ([]), whoever has a token, or everybody, and with a token under its name."""
    if FREE.fullmatch(path):
        return []
    needed = rules.asks(right({"method": method.upper(), "path": path}))
    return ([] if needed else [{}]) + ([{"token": []}] if needed or rules.tokens else [])


def _route(
    tag: str, summary: str, answer: type[BaseModel] | dict[str, str], *errors: int, **more: Any
) -> dict[str, Any]:
    """The keywords of a route. answer: a model, or media types with what they hold. errors: besides the guard's."""
    if isinstance(answer, dict):
        content = {kind: {"schema": EVENT if kind == "text/event-stream" else BINARY} for kind in answer}
        good: dict[str, Any] = {"content": content, "description": "; ".join(dict.fromkeys(answer.values()))}
    else:
        good = {"model": answer, "description": (answer.__doc__ or "").split("\n")[0].rstrip(".:")}
    problems = {status: {"model": Problem, "description": CODES[status][1]} for status in sorted({*errors, *GUARD})}
    return {"tags": [tag], "summary": summary, "responses": {200: good, **problems}, **more}


def _body(content: dict[str, Any], required: bool = True) -> dict[str, Any]:
    return {"requestBody": {"required": required, "content": content}}


def _form(schema: dict[str, Any]) -> dict[str, Any]:
    """A form with files; the names of its fields do not matter."""
    return {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"image": schema}, "required": ["image"]}}
    }


IMAGES = {kind: {"schema": BINARY} for kind in (*IMAGE_KINDS, "application/octet-stream")}
EVENTS_TOLD = {"text/event-stream": "`event: line` with a State, `event: image` with a Row and its line"}
WRITES = (400, 404, 413, 422, 503, 507)
INSPECT = _route("inspect", "Judge an image", Verdict, *WRITES, 415, openapi_extra=_body({**IMAGES, **_form(BINARY)}))
INSPECT["responses"][200]["content"] = {"image/png": {"schema": BINARY}}  # for who accepts nothing else
BATCH = _route(
    "inspect", "Judge the images of a form", Batch, *WRITES, 415,
    openapi_extra=_body(_form({"type": "array", "items": BINARY, "minItems": 1, "maxItems": 64})),
)  # fmt: skip
LINES = _route("lines", "All lines", States)
LINE = _route("lines", "One line", State, 404, 503)
VERSIONS = _route("lines", "The versions of a line", PublishedAll, 404, 503)
ROLLBACK = _route("lines", "Make an older version current", Turned, *WRITES)
TASK = _route("lines", "Switch a line to another product", Switched, *WRITES)
ROWS = _route("images", "The last images of a line", Rows, 404, 422, 503)
IMAGE = _route(
    "images", "An image as it came, or small", dict.fromkeys((*IMAGE_KINDS, "application/octet-stream"), "the image"),
    400, 404, 422, 503, response_class=Response,
)  # fmt: skip
OVERLAY = _route(
    "images", "An image under its heatmap", {"image/png": "grey, with the map over it"}, 400, 404, 422, 503,
    response_class=Response,
)  # fmt: skip
FEEDBACK = _route("images", "Say what an image shows", Said, *WRITES, 415)
EVENTS = _route("lines", "What happens, as it happens", EVENTS_TOLD, 503, response_class=StreamingResponse)
TARGETS = _route("server", "Where Prometheus finds the metrics", Nodes, 503)
HEALTH = _route("server", "Whether this replica answers", Health)
