"""The page at /docs: what /openapi.json says, for people. Made from it once, here; loads nothing from other hosts."""

import json
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .page import GUARDED

ADDRESS = "http://127.0.0.1:8000"  # what `everline serve` listens on; docs.js puts the page's own in its place
SAMPLES = {"line": "mono", "id": "part-17.png:d292dcf5251acf7e"}  # values of parameters in examples
BOUNDS = (
    ("minimum", "≥ {}"), ("exclusiveMinimum", "> {}"), ("maximum", "≤ {}"), ("exclusiveMaximum", "< {}"),
    ("minLength", "{} characters or more"), ("maxLength", "up to {} characters"), ("minItems", "{} or more"),
    ("maxItems", "up to {}"),
)  # fmt: skip
ERROR = "Problem"  # the component that all errors are


def add(app: FastAPI) -> None:
    """Adds the page, which is made when it is first asked for: all routes are there by then."""
    made: list[Response] = []

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        if not made:
            made.append(Response(render(app.openapi()), media_type="text/html", headers=GUARDED))
        return made[0]


def render(schema: dict[str, Any]) -> str:
    """An OpenAPI document of FastAPI's -> HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tags = {tag["name"]: {"about": tag["description"], "operations": []} for tag in schema["tags"]}
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["more"])[0]
            group = tags.setdefault(tag, {"about": "", "operations": []})
            group["operations"].append(_operation(schema, method, path, operation))
    shapes = {name: _fields(shape) for name, shape in schema["components"]["schemas"].items()}
    about = {name: shape.get("description", "") for name, shape in schema["components"]["schemas"].items()}
    page = environment.get_template("docs.html")
    return page.render(info=schema["info"], tags=tags, shapes=shapes, about=about, address=ADDRESS)


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> dict[str, Any]:
    parameters = [_resolved(schema, p) for p in operation.get("parameters", ())]
    bodies = operation.get("requestBody", {}).get("content", {})
    answers = [(status, _answer(_resolved(schema, answer))) for status, answer in operation["responses"].items()]
    return {
        "id": f"{method}{path.translate(str.maketrans('/', '-', '{}'))}",
        "method": method.upper(),
        "path": path,
        "summary": operation.get("summary", ""),
        "description": operation.get("description", ""),
        "token": _token(operation["security"]),
        "parameters": [
            {
                "name": p["name"],
                "in": p["in"],
                "kind": kind(p["schema"]),
                "default": json.dumps(p["schema"]["default"]) if p["schema"].get("default") is not None else "",
                **_about(p),
            }
            for p in parameters
        ],
        "bodies": [
            {"kind": name, "fields": _fields(body["schema"]), "example": body.get("example")}
            for name, body in bodies.items()
        ],
        "answers": [answer for answer in answers if answer[1]["shape"] != ERROR],
        "errors": [answer for answer in answers if answer[1]["shape"] == ERROR],
        "curl": _curl(method, path, parameters, bodies, operation["security"]),
    }


def kind(shape: dict[str, Any]) -> str:
    """A schema in words: its type and bounds."""
    if "anyOf" in shape:
        return " or ".join(kind(one) for one in shape["anyOf"] if one != {"type": "null"})
    if "$ref" in shape:
        return str(shape["$ref"]).rpartition("/")[2]
    if "enum" in shape or "const" in shape:
        return ", ".join(json.dumps(value) for value in shape.get("enum", [shape.get("const")]))
    word = "bytes" if shape.get("format") == "binary" else shape.get("type", "anything")
    if "items" in shape:
        word = f"list of {kind(shape['items'])}"
    if isinstance(shape.get("additionalProperties"), dict):
        word = f"object of {kind(shape['additionalProperties'])}"
    return ", ".join([word, *(text.format(f"{shape[key]:,}") for key, text in BOUNDS if key in shape)])


def _fields(shape: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "kind": kind(one), "needed": name in shape.get("required", ()), **_about(one)}
        for name, one in shape.get("properties", {}).items()
    ]


def _about(part: dict[str, Any]) -> dict[str, str]:
    return {"about": part.get("description", "")}


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    content = answer.get("content", {})
    json_kind = content.get("application/json", {}).get("schema", {})
    shape = kind(json_kind) if "$ref" in json_kind else ""
    return {"about": answer["description"], "kinds": list(content), "shape": shape}


def _token(security: list[dict[str, Any]]) -> str:
    if not security or security == [{}]:
        return ""
    return "optional" if {} in security else "needed"


def _curl(
    method: str, path: str, parameters: list[dict[str, Any]], bodies: dict[str, Any], security: list[dict[str, Any]]
) -> str:
    """A command for a shell that tries the operation."""
    words = [] if method == "get" else [f"-X {method.upper()}"]
    if _token(security) == "needed":
        words.append('-H "Authorization: Bearer $TOKEN"')
    if "image/png" in bodies:
        words.append("-H 'Content-Type: image/png' --data-binary @part.png")
    elif "multipart/form-data" in bodies:
        words.append("-F image=@part-1.png -F image=@part-2.png")
    elif bodies:
        words.append(f"-H 'Content-Type: application/json' -d '{json.dumps(bodies['application/json']['example'])}'")
    needed = [p["name"] for p in parameters if p["in"] == "query" and p.get("required")]
    query = "?" * bool(needed) + "&".join(f"{name}={SAMPLES.get(name, '')}" for name in needed)
    for name, value in SAMPLES.items():
        path = path.replace(f"{{{name}}}", value)
    return " ".join(["curl", *words, f"'{ADDRESS}{path}{query}'"])


def _resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """A part, or what it refers to."""
    for name in part["$ref"].removeprefix("#/").split("/") if "$ref" in part else ():
        schema = schema[name]
    return schema if "$ref" in part else part
