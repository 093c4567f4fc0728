"""/openapi.json says what the routes do, tried by schemathesis against the whole application; /docs shows it."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from everline.deploy import described, manual
from everline.deploy.door import REFUSALS
from everline.deploy.guard import Rules
from everline.deploy.tokens import Tokens, make_token
from everline.deploy.web import CODES, ERRORS, application
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import serving

Whole = Callable[..., FastAPI]
OPERATIONS = 14


def bare(rules: Rules = Rules()) -> FastAPI:  # noqa: B008 - frozen
    """Routes with nothing behind them, which say what they are."""
    nothing: Any = None
    return application(nothing, rules=rules)


@asynccontextmanager
async def no_lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.fixture
def sent(parts: list[bytes]) -> Callable[..., dict[str, set[int]]]:
    """Sends what schemathesis makes of a description, and checks the answers by it; operation -> statuses."""
    for kind in (*described.IMAGE_KINDS, "application/octet-stream"):
        schemathesis.openapi.media_type(kind, st.sampled_from([*parts, b"no image"]))
    printable = st.characters(codec="latin-1", categories=["L", "N", "P", "S"])
    schemathesis.openapi.format("printable", st.text(printable, min_size=1, max_size=64))

    def send(app: FastAPI, examples: int, headers: dict[str, str], *leave: str) -> dict[str, set[int]]:
        headers = {"Host": "localhost", **headers}
        schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers=headers)
        found: dict[str, set[int]] = {}
        turn = count()

        @schema.hook
        def map_path_parameters(context: Any, value: Any) -> Any:
            return {**value, "line": "mono"} if value and len(value["line"]) % 8 else value

        def one(case: schemathesis.Case) -> None:
            if case.operation.label.startswith("GET /lines/{line}/image") and len(case.query.get("id", "")) % 2:
                case.query["id"] = "i3"
            if isinstance(case.body, dict) and case.operation.label.endswith(("/feedback", "/rollback")):
                known = {
                    "id": "i3",
                    "version": 1,
                }  # every second time: what is drawn changes with any word of the code
                case.body.update({name: known[name] for name in known if name in case.body and next(turn) % 2 == 0})
            wait: dict[str, Any] = {"timeout": 1.0} if case.operation.path == "/events" else {}  # it has no end
            response = case.call_and_validate(headers=headers, excluded_checks=excluded(case), **wait)
            found.setdefault(case.operation.label, set()).add(response.status_code)

        for result in schema.exclude(path=list(leave)).get_all_operations():
            strategy = result.ok().as_strategy()
            most = 1 if result.ok().path == "/events" else examples  # it ends with a time-out
            few = settings(
                max_examples=most, deadline=None, derandomize=True, database=None, suppress_health_check=[*HealthCheck]
            )
            few(given(case=strategy)(one))()
        return found

    return send


def excluded(case: schemathesis.Case) -> list[Any]:
    """Checks that cannot hold: a description cannot say that bytes are an image, and some of these are none."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    return [positive_data_acceptance] if "inspect" in case.operation.path else []


def test_the_description_is_true(whole: Whole, sent: Any) -> None:
    found = sent(whole(), 1, {}, "/events")
    assert len(found) == OPERATIONS - 1
    assert not [label for label, statuses in found.items() if max(statuses) >= 500]


@pytest.mark.slow
def test_the_description_is_true_of_many_requests(whole: Whole, sent: Any, sized: Callable[..., Any]) -> None:
    found = sent(whole(), sized(20, 60), {})
    assert len(found) == OPERATIONS
    assert not [label for label, statuses in found.items() if max(statuses) >= 500 or 200 not in statuses]


@pytest.mark.slow
def test_the_description_is_true_where_all_need_a_token(whole: Whole, sent: Any, tmp_path: Path) -> None:
    token = make_token(tmp_path / "t", "boss", ("read", "inspect", "change"))
    found = sent(whole(Rules(Tokens(tmp_path / "t"), all=True)), 6, {"Authorization": f"Bearer {token}"})
    assert not [label for label, statuses in found.items() if max(statuses) >= 500 or not statuses - {401}]


def test_every_error_of_the_server_is_in_the_description() -> None:
    known = {(status, code) for status, (codes, _) in described.CODES.items() for code in codes}
    raised = {(status, code) for _, status, code in ERRORS} | {(status, code) for status, code in CODES.items()}
    raised |= {(status, code) for status, code, _ in REFUSALS.values()}
    guards = {
        (401, "no_token"),
        (403, "forbidden"),
        (403, "other_site"),
        (408, "body_timeout"),
        (421, "unknown_host"),
        (429, "too_many_requests"),
        (504, "timeout"),
    }
    assert known - raised == guards | {(422, "invalid"), (431, "headers_too_large"), (500, "internal")} - raised
    assert raised <= known


def test_every_route_is_described_and_has_its_words() -> None:
    schema = bare().openapi()
    operations = [operation for path in schema["paths"].values() for operation in path.values()]
    assert len(operations) == OPERATIONS
    for operation in operations:
        assert operation["tags"][0] in described.TAGS and operation["summary"] and operation["description"]
        assert all(p.get("description", p.get("$ref")) for p in operation["parameters"]), operation["summary"]
        assert {"200", "421", "431", "500"} <= operation["responses"].keys()
    assert "HTTPValidationError" not in str(schema)


def test_who_needs_a_token_is_what_the_server_asks(tmp_path: Path) -> None:
    make_token(tmp_path / "t", "boss", ("change",))
    tokens = Tokens(tmp_path / "t")
    needed, either = [{"token": []}], [{}, {"token": []}]
    asked = {"/lines": "get", "/lines/{line}/inspect": "post", "/lines/{line}/rollback": "post", "/health": "get"}
    for rules, expected in (
        (Rules(), [[{}], [{}], [{}], []]),
        (Rules(open=False), [[{}], [{}], needed, []]),
        (Rules(tokens), [either, either, needed, []]),
        (Rules(tokens, all=True), [needed, needed, needed, []]),
    ):
        paths = bare(rules).openapi()["paths"]
        assert [paths[path][verb]["security"] for path, verb in asked.items()] == expected


def test_the_page_has_every_route_and_an_example_and_names_no_other_host(tmp_path: Path) -> None:
    make_token(tmp_path / "t", "boss", ("change",))
    http = TestClient(app := bare(Rules(Tokens(tmp_path / "t"), all=True)), "http://localhost")
    response = http.get("/docs")  # as the operator's page: free, it shows nothing of the plant
    assert (response.status_code, http.get("/openapi.json").status_code) == (200, 401)
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    text = response.text
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            assert f"<b>{method.upper()}</b> {path}<" in text
            assert operation["summary"] in text
    commands = re.findall(r"<code>(curl .*?)</code>", text, re.DOTALL)
    assert len(commands) == OPERATIONS
    assert sum("Bearer $TOKEN" in command for command in commands) == OPERATIONS - 1
    assert set(re.findall(r"[a-z]+://[^/&\"'<]*", text)) == {manual.ADDRESS}
    assert "<script>" not in text and "style=" not in text and "onclick" not in text
    for target in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{target}"' in text, target


@pytest.mark.slow
def test_the_page_works_by_keyboard_and_asks_nobody_else(browser: Any) -> None:
    app = bare()
    app.router.lifespan_context = no_lifespan
    with serving(app) as url:
        page = browser.new_page(color_scheme="dark")
        wrong: list[str] = []
        asked: list[str] = []
        page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: wrong.append(str(e)))
        page.on("request", lambda r: asked.append(r.url))
        page.goto(f"{url}/docs")
        page.locator(".example button").first.wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the routes"
        page.locator(".example button").nth(2).focus()
        page.keyboard.press("Enter")
        page.locator("#said", has_text="C").wait_for()  # Copied, or Selected: copy it
        assert f"'{url}/lines'" in page.locator(".example code").nth(2).inner_text()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
        page.close()
    assert not [one for one in asked if not one.startswith(url)] and len(asked) >= 4
    assert wrong == []


def test_what_a_description_says_is_shown_as_text() -> None:
    app = FastAPI(title="<script>alert(1)</script>")

    @app.get("/a", summary="<b>bold</b>", tags=["server"])
    async def a(limit: int = 3) -> None:
        """<img src=x onerror=alert(1)>"""

    described.describe(app, Rules())
    page = manual.render(app.openapi())
    assert "<script>alert" not in page and "<img" not in page and "<b>bold" not in page


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"type": "integer", "minimum": 1, "exclusiveMaximum": 5000}, "integer, ≥ 1, < 5,000"),
        ({"anyOf": [{"type": "string", "maxLength": 256}, {"type": "null"}]}, "string, up to 256 characters"),
        ({"enum": ["ok", "defect"], "type": "string"}, '"ok", "defect"'),
        ({"type": "array", "items": {"$ref": "#/components/schemas/Row"}}, "list of Row"),
        ({"type": "string", "format": "binary"}, "bytes"),
    ],
)
def test_a_schema_in_words(shape: dict[str, Any], words: str) -> None:
    assert manual.kind(shape) == words
