"""The HTTP side without Ray: real routes and a real desk, in front of a double of the line and of MLflow."""

import asyncio
import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from everline.deploy.desk import Desk
from everline.deploy.scoring import overlaid, wanted
from everline.deploy.web import BODIES, application, base_name
from everline.methods.detector import State
from everline.methods.errors import (
    Busy,
    Corrupt,
    Dropped,
    EverlineError,
    LineDown,
    LineStopped,
    NoSpace,
    SecondWriter,
    StoreError,
    TrackingError,
    UnknownVersion,
)
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.decoders import BACKLOG, DECODERS, Decoders
from everline.platform.depth import ENOUGH
from everline.platform.images import prepare, views
from everline.platform.settings import Fleet, LineSettings
from everline.platform.versions import Version
from fastapi.testclient import TestClient
from PIL import Image

from ..conftest import flat_webp, until

LIMIT = 100_000
PARAMS = {"size": 64, "weights": "none"}
CALIBRATION = Calibration.of([1.0, 2.0, 3.0], 0.25)


def png(seed: int, side: int = 48) -> bytes:
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def taught(seed: int) -> State:
    detector = build("padim", **PARAMS)
    for n in range(3):
        detector.learn(detector.embed(prepare(png(seed + n), 64)[None]))
    return detector.state()


class Line:
    """Double of platform.actor.LineActor, with Ray's way of calling: `handle.verb.remote(...)`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.started_with = LineSettings(method="padim", params=PARAMS)
        self.trouble: Exception | None = None
        self.plan: list[Exception] = []  # raised first, one at a call
        self.on_rollback: Callable[[int | None], int] = lambda version: version or 1

    def __getattr__(self, verb: str) -> Any:
        async def call(*args: Any) -> Any:
            if verb == "settings":
                return self.started_with
            self.calls.append((verb, *args))
            if self.plan and verb == "record":
                raise self.plan.pop(0)
            if self.trouble:
                raise self.trouble
            return getattr(self, f"_{verb}")(*args)

        return SimpleNamespace(remote=call)

    def _record(
        self,
        data: bytes,
        features: Any,
        moments: list[float],
        scored: dict[str, Any] | None,
        id: str,
        learn: bool,
        request: str,
        known: bool,
    ) -> Any:
        nothing = dict.fromkeys(["score", "p_value", "threshold", "version"])
        given = scored or {**nothing, "verdict": "learning", "calibrated": False}
        common = {"line": "mono", "id": id, "record": len(self.calls) - 1, "duplicate": False}
        return {**common, **given, "admitted": learn and given["verdict"] != "reject"}

    def _rollback(self, version: int | None) -> int:
        return self.on_rollback(version)

    def _switch(self, task: str) -> int:
        return 7

    def _room(self) -> bool:
        return True

    def _status(self) -> dict[str, Any]:
        return {"line": "mono", "images_learned": 3, "threshold": float("inf")}


class Registry:
    """Double of platform.versions.Versions."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.now: int | None = None
        self.trouble: Exception | None = None

    def current(self) -> int | None:
        if self.trouble:
            raise self.trouble
        return self.now

    def load(self, version: int) -> tuple[State, Calibration]:
        if version not in self.states:
            raise Corrupt(f"version {version} is damaged")
        return self.states[version], CALIBRATION

    def list(self) -> list[Version]:
        if self.trouble:
            raise self.trouble
        return [
            Version(n, ("current",) if n == self.now else (), n, 3, float("inf"), False, "padim", 0, {})
            for n in sorted(self.states, reverse=True)
        ]


class Bench:
    """A client, and what stands behind it."""

    def __init__(
        self,
        folder: Path,
        poll_s: float,
        lines: tuple[str, ...] = ("mono",),
        decoders: Decoders = DECODERS,
        limit: int = LIMIT,
    ) -> None:
        self.line, self.registry = Line(), Registry()
        settings = LineSettings(method="padim", params=PARAMS, max_megapixels=1)
        fleet = Fleet(store=folder, tracking="", lines=dict.fromkeys(lines, settings))
        self.desk = Desk(
            fleet,
            poll_s=poll_s,
            patience_s=0.5,
            handle=lambda _: self.line,
            versions=lambda *_: self.registry,
            decoders=decoders,
        )
        self.failed: list[str] = []
        app = application(self.desk, body_limit=limit, failed=self.failed.append)
        self.http = TestClient(app, "http://localhost", raise_server_exceptions=False)

    def publish(self, number: int, state: State | None = None) -> None:
        self.registry.states[number] = state or taught(10 * number)
        self.registry.now = number

    def served(self) -> int | None:
        version: int | None = self.http.get("/health").json()["lines"]["mono"]["version"]
        return version


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, poll_s=0.02)
    with bench.http:
        yield bench


@pytest.fixture
def scoring(bench: Bench) -> Bench:
    """A bench that serves version 1."""
    bench.publish(1)
    until(lambda: bench.served() == 1)
    return bench


def error_of(response: Any, status: int, code: str) -> str:
    """Checks the one shape of an error; returns its message."""
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    (body,) = response.json().values()
    assert list(response.json()) == ["error"]
    assert body.keys() == {"code", "message", "request_id"}
    assert (body["code"], body["request_id"]) == (code, response.headers["x-request-id"])
    assert body["message"]
    return str(body["message"])


def test_a_line_without_a_version_is_learning(bench: Bench) -> None:
    response = bench.http.post("/lines/mono/inspect?map=true", content=png(1))
    assert response.status_code == 200
    answer = response.json()
    assert (answer["verdict"], answer["score"], answer["version"], answer["map_png"]) == ("learning", None, None, None)
    (verb, data, _, _, scored, id, learn, _, known) = bench.line.calls[0]
    assert (verb, data, scored, learn) == ("record", png(1), None, True)
    assert known, "without tokens everybody may teach"
    assert id == hashlib.sha256(png(1)).hexdigest()[:16]


def test_the_line_gets_the_features_that_it_would_make_itself(bench: Bench) -> None:
    bench.http.post("/lines/mono/inspect", content=png(1))
    bench.publish(1)
    until(lambda: bench.served() == 1)
    bench.http.post("/lines/mono/inspect", content=png(1))
    features = build("padim", **PARAMS).embed(prepare(png(1), 64)[None]).numpy()
    assert all(np.array_equal(call[2], features) for call in bench.line.calls)
    assert [call[4] is None for call in bench.line.calls] == [True, False]


def test_the_answer_is_the_version_s(scoring: Bench) -> None:
    answer = scoring.http.post("/lines/mono/inspect", content=png(5)).json()
    detector = build("padim", **PARAMS)
    detector.load_state(scoring.registry.states[1])
    score = float(detector.score(detector.embed(prepare(png(5), 64)[None])).image[0])
    assert answer == {
        "line": "mono", "id": hashlib.sha256(png(5)).hexdigest()[:16], "record": 0, "duplicate": False,
        "score": pytest.approx(score, rel=1e-5), "verdict": CALIBRATION.verdict(score),
        "p_value": CALIBRATION.p_value(score), "threshold": 3.0, "version": 1, "calibrated": True,
        "admitted": CALIBRATION.verdict(score) == "pass",
    }  # fmt: skip


def test_the_map_comes_as_a_picture_of_the_version_s_range(scoring: Bench) -> None:
    answer = scoring.http.post("/lines/mono/inspect?map=true", content=png(5)).json()
    picture = Image.open(io.BytesIO(base64.b64decode(answer["map_png"])))
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert answer["map_range"] == [2.0, 4.0]


def test_the_map_comes_as_its_values_to_the_last_bit(scoring: Bench) -> None:
    answer = scoring.http.post("/lines/mono/inspect?map=raw", content=png(5)).json()
    values = np.load(io.BytesIO(base64.b64decode(answer["map_npy"])), allow_pickle=False)
    detector = build("padim", **PARAMS)
    detector.load_state(scoring.registry.states[1])
    wanted = detector.score(detector.embed(prepare(png(5), 64)[None])).maps[0].numpy()
    assert (values.dtype, values.shape) == (np.dtype("<f4"), (64, 64))
    assert np.array_equal(values, wanted)
    assert answer["map_range"] == [2.0, 4.0]
    assert not answer.keys() & {"map_png", "map_overlay"}


def test_the_map_comes_as_a_picture_over_its_image(scoring: Bench) -> None:
    answer = scoring.http.post("/lines/mono/inspect?map=overlay", content=png(5)).json()
    data = base64.b64decode(answer["map_overlay"])
    picture = Image.open(io.BytesIO(data))
    assert (picture.format, picture.size, picture.mode) == ("PNG", (48, 48), "RGB")  # the image's, not the map's
    assert answer["map_range"] == [2.0, 4.0]
    mono = scoring.desk._counters["mono"]
    assert data == overlaid(mono, png(5), views(png(5), **wanted(mono, own=False, picture=True)))


@pytest.mark.parametrize(("query", "name"), [("", "map_overlay"), ("&map=true", "map_png")])
def test_who_accepts_a_png_gets_the_picture_itself(scoring: Bench, query: str, name: str) -> None:
    path = "/lines/mono/inspect?learn=false&id=%C3%BC 1"
    asked = scoring.http.post(f"{path}{query or '&map=overlay'}", content=png(5)).json()
    response = scoring.http.post(path + query, content=png(5), headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert response.content == base64.b64decode(asked.pop(name))
    assert {**json.loads(response.headers["x-everline-answer"]), "record": asked["record"]} == asked


def test_without_a_picture_the_answer_is_json(bench: Bench) -> None:
    response = bench.http.post("/lines/mono/inspect", content=png(1), headers={"Accept": "image/png"})
    assert (response.json()["verdict"], response.json()["map_overlay"]) == ("learning", None)
    bench.publish(1)
    until(lambda: bench.served() == 1)
    raw = bench.http.post("/lines/mono/inspect?map=raw", content=png(1), headers={"Accept": "image/png"})
    assert raw.json()["map_npy"]
    browser = bench.http.post("/lines/mono/inspect", content=png(1), headers={"Accept": "text/html,image/png,*/*"})
    assert "map_overlay" not in browser.json()


def test_another_kind_of_map_is_refused_and_nothing_recorded(scoring: Bench) -> None:
    error_of(scoring.http.post("/lines/mono/inspect?map=jpeg", content=png(1)), 422, "invalid")
    assert not scoring.line.calls


def test_learn_false_reaches_the_line(scoring: Bench) -> None:
    scoring.http.post("/lines/mono/inspect?learn=false", content=png(1))
    assert scoring.line.calls[0][6] is False


def test_the_id_of_its_request_goes_along_with_an_image(bench: Bench) -> None:
    answer = bench.http.post("/lines/mono/inspect", content=png(1), headers={"X-Request-Id": "shift-2.17"})
    assert bench.line.calls[0][7] == "shift-2.17" == answer.headers["x-request-id"]
    answer = bench.http.post("/lines/mono/inspect", content=png(2))
    assert bench.line.calls[1][7] == answer.headers["x-request-id"] != ""


@pytest.mark.parametrize(
    ("query", "headers", "expected"),
    [
        ("?id=cell-7", {}, "cell-7"),
        ("?id=cell-7", {"X-Image-Id": b"cell-8"}, "cell-8"),
        ("", {"X-Image-Id": "Prüfling 8".encode()}, "Prüfling 8"),
        ("", {"X-Image-Id": "Prüfling 8".encode("latin-1")}, "Prüfling 8"),
    ],
)
def test_an_image_may_bring_its_id(bench: Bench, query: str, headers: dict[str, bytes], expected: str) -> None:
    assert bench.http.post(f"/lines/mono/inspect{query}", content=png(1), headers=headers).json()["id"] == expected


@pytest.mark.parametrize("path", ["/health", "/lines", "/lines/mono", "/"])
def test_what_can_be_got_can_be_asked_for_its_head(bench: Bench, path: str) -> None:
    whole, head = bench.http.get(path), bench.http.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"")


def test_a_file_s_id_is_its_name_and_hash(bench: Bench) -> None:
    answer = bench.http.post("/lines/mono/inspect", files={"image": ("../a/cell 1.png", png(1), "image/png")}).json()
    assert answer["id"] == f"cell 1.png:{hashlib.sha256(png(1)).hexdigest()[:16]}"
    assert bench.line.calls[0][1] == png(1)


@pytest.mark.parametrize(
    ("name", "expected"), [("..\\x\\a.png", "a.png"), ("/etc/a\n.png", "a.png"), ("a" * 300, "a" * 200), ("..", "..")]
)
def test_a_file_s_name_loses_its_folders(name: str, expected: str) -> None:
    assert base_name(name) == expected


@pytest.mark.parametrize("files", [{}, {"a": ("a.png", b"1"), "b": ("b.png", b"2")}])
def test_a_form_holds_one_image(bench: Bench, files: dict[str, Any]) -> None:
    response = bench.http.post("/lines/mono/inspect", files=files, data={"note": "x"} if files else None)
    assert response.status_code == 400
    assert bench.line.calls == []


def test_a_batch_is_answered_in_order_and_each_image_by_itself(scoring: Bench) -> None:
    form = [("images", (name, data)) for name, data in (("a.png", png(1)), ("b.png", b"no"), ("c.png", png(2)))]
    body = scoring.http.post("/lines/mono/inspect/batch?learn=false", files=form).json()
    assert [answer["status"] for answer in body["answers"]] == [200, 400, 200]
    assert [answer["id"].partition(":")[0] for answer in body["answers"]] == ["a.png", "b.png", "c.png"]
    assert body["answers"][1]["error"]["code"] == "bad_image" and body["answers"][2]["version"] == 1
    assert [call[1] for call in scoring.line.calls] == [png(1), png(2)]


def test_a_batch_ends_where_the_line_is_away(bench: Bench) -> None:
    bench.line.trouble = LineStopped("it kept dying")
    form = [("images", (f"{n}.png", png(n))) for n in range(3)]
    answers = bench.http.post("/lines/mono/inspect/batch", files=form).json()["answers"]
    assert [(answer["status"], answer["error"]["code"]) for answer in answers] == [(503, "line_stopped")] * 3
    assert len(bench.line.calls) == 1


@pytest.mark.parametrize(
    ("path", "more", "status"),
    [
        ("mono", {}, 415),
        ("mono", {"files": [("a", (f"{n}.png", b"1")) for n in range(65)]}, 400),
        ("nobody", {"files": {"a": ("a.png", png(1))}}, 404),
    ],
)
def test_a_batch_that_cannot_be_begun_is_refused_whole(
    bench: Bench, path: str, more: dict[str, Any], status: int
) -> None:
    assert bench.http.post(f"/lines/{path}/inspect/batch", **more).status_code == status
    assert bench.line.calls == []


@pytest.mark.parametrize("body", [b"", b"no image", png(1)[:100]])
def test_what_is_no_image_is_refused_and_not_recorded(scoring: Bench, body: bytes) -> None:
    error_of(scoring.http.post("/lines/mono/inspect", content=body), 400, "bad_image")
    assert scoring.line.calls == []


def test_another_media_type_is_refused(bench: Bench) -> None:
    response = bench.http.post("/lines/mono/inspect", json={"image": "x"})
    assert "application/json" in error_of(response, 415, "unsupported_media_type")


def chunks(total: int) -> Iterator[bytes]:
    for _ in range(total // 1000):
        yield b"x" * 1000


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_above_the_limit_is_refused(bench: Bench, declared: bool) -> None:
    body: Any = b"x" * (LIMIT + 1) if declared else chunks(LIMIT + 1000)
    message = error_of(bench.http.post("/lines/mono/inspect", content=body), 413, "too_large")
    assert "100,000 bytes" in message


def test_a_form_above_the_limit_is_refused(bench: Bench) -> None:
    error_of(bench.http.post("/lines/mono/inspect", files={"image": b"x" * (LIMIT + 1)}), 413, "too_large")


def test_an_endless_body_is_not_read_to_its_end(bench: Bench) -> None:
    came = 0

    def endless() -> Iterator[bytes]:
        nonlocal came
        while came < 50 * LIMIT:
            came += 1000
            yield b"x" * 1000

    sent: list[dict[str, Any]] = []
    source = endless()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": next(source), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/lines/mono/inspect", "headers": [], "query_string": b"",
        "http_version": "1.1", "scheme": "http", "client": None, "server": None, "root_path": "",
    }  # fmt: skip
    asyncio.run(bench.http.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413
    assert came <= 4 * LIMIT + 1000


@pytest.mark.parametrize(
    ("verb", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/lines/mono/inspect", 405, "method_not_allowed"),
        ("POST", "/lines/none/inspect", 404, "unknown_line"),
        ("GET", "/lines/none", 404, "unknown_line"),
        ("GET", "/lines/none/versions", 404, "unknown_line"),
        ("POST", "/lines/none/rollback", 404, "unknown_line"),
        ("POST", "/lines/mono/inspect?learn=maybe", 422, "invalid"),
    ],
)
def test_every_error_has_one_shape(bench: Bench, verb: str, path: str, status: int, code: str) -> None:
    message = error_of(bench.http.request(verb, path), status, code)
    assert "mono" in message or status != 404 or code == "not_found"


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (NoSpace("full"), 507, "no_space"),
        (LineDown("gone"), 503, "line_down"),
        (LineStopped("mend it"), 503, "line_stopped"),
        (Busy("64 wait"), 503, "line_busy"),
        (Dropped("64 wait"), 429, "dropped"),
        (SecondWriter("moved"), 503, "line_moved"),
        (TrackingError("away"), 503, "tracking_unavailable"),
        (StoreError("broken"), 500, "failed"),
        (TimeoutError(), 504, "line_timeout"),
        (ZeroDivisionError("secret detail"), 500, "internal"),
    ],
)
def test_a_line_s_trouble_is_answered(bench: Bench, trouble: Exception, status: int, code: str) -> None:
    bench.line.trouble = trouble
    response = bench.http.post("/lines/mono/inspect", content=png(1))
    assert "secret" not in error_of(response, status, code)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    assert bench.served() is None  # and the server goes on


def test_every_error_is_counted_once_by_its_code(scoring: Bench) -> None:
    scoring.http.post("/lines/mono/inspect", content=b"no image")
    scoring.http.post("/lines/none/inspect", content=png(1))
    scoring.http.get("/nowhere")
    scoring.http.post("/lines/mono/inspect", content=b"x" * (LIMIT + 1))
    files = [("files", (f"{n}", data)) for n, data in enumerate([png(1), b"no image", png(2)])]
    assert scoring.http.post("/lines/mono/inspect/batch", files=files).status_code == 200
    assert scoring.failed == ["bad_image", "unknown_line", "not_found", "too_large", "bad_image"]


def test_where_the_metrics_are_is_told_as_prometheus_wants_it(bench: Bench) -> None:
    (group,) = bench.http.get("/metrics/targets").json()
    assert group.keys() == {"targets"}
    assert all(":" in target for target in group["targets"])


def test_a_line_that_comes_back_costs_its_caller_time_and_no_error(bench: Bench) -> None:
    bench.line.plan = [LineDown("gone"), Busy("64 wait"), LineDown("gone")]
    assert bench.http.post("/lines/mono/inspect?id=a", content=png(1)).status_code == 200
    sent = [call for call in bench.line.calls if call[0] == "record"]
    assert len(sent) == 4
    assert {call[5] for call in sent} == {"a"}  # under the same id, which keeps it from being learned twice
    assert [call for call in bench.line.calls if call[0] == "room"] == [("room",)]


@pytest.mark.parametrize("final", [LineStopped("mend it"), Dropped("64 wait")])
def test_what_will_not_pass_is_not_tried_again(bench: Bench, final: Exception) -> None:
    bench.line.plan = [final]
    assert bench.http.post("/lines/mono/inspect", content=png(1)).status_code in (429, 503)
    assert len(bench.line.calls) == 1


def test_a_line_that_embeds_otherwise_gets_no_features_of_this_server(bench: Bench) -> None:
    bench.line.started_with = LineSettings(method="padim", params={**PARAMS, "size": 96})
    response = bench.http.post("/lines/mono/inspect", content=png(1))
    assert "other settings" in error_of(response, 503, "line_down")
    assert not bench.line.calls
    bench.line.started_with = LineSettings(method="padim", params=PARAMS, queue=8)
    assert bench.http.post("/lines/mono/inspect", content=png(1)).status_code == 200


def test_a_caller_s_request_id_comes_back(bench: Bench) -> None:
    assert bench.http.get("/none", headers={"X-Request-Id": "abc-1"}).json()["error"]["request_id"] == "abc-1"
    strange = bench.http.get("/none", headers={"X-Request-Id": "a b<script>"}).json()["error"]["request_id"]
    assert strange.isalnum()


def test_a_new_version_swaps_in_by_itself(scoring: Bench) -> None:
    first = scoring.http.post("/lines/mono/inspect", content=png(5)).json()
    scoring.publish(2, taught(70))
    until(lambda: scoring.served() == 2)
    second = scoring.http.post("/lines/mono/inspect", content=png(5)).json()
    assert (first["version"], second["version"]) == (1, 2)
    assert first["score"] != second["score"]


def test_a_damaged_version_leaves_the_old_one_at_work(scoring: Bench) -> None:
    scoring.registry.now = 9
    until(lambda: scoring.http.get("/health").json()["lines"]["mono"]["problem"] is not None)
    assert scoring.http.post("/lines/mono/inspect", content=png(5)).json()["version"] == 1


def test_mlflow_away_leaves_the_version_at_work_and_comes_back(scoring: Bench) -> None:
    scoring.registry.trouble = TrackingError("no answer")
    until(lambda: scoring.http.get("/health").json()["lines"]["mono"]["problem"] == "no answer")
    assert scoring.http.post("/lines/mono/inspect", content=png(5)).json()["version"] == 1
    error_of(scoring.http.get("/lines/mono/versions"), 503, "tracking_unavailable")
    scoring.registry.trouble = None
    until(lambda: scoring.http.get("/health").json()["lines"]["mono"]["problem"] is None)


def test_a_version_with_another_embedding_still_scores(scoring: Bench) -> None:
    detector = build("padim", size=96, weights="none")
    for n in range(3):
        detector.learn(detector.embed(prepare(png(n), 96)[None]))
    scoring.publish(2, detector.state())
    until(lambda: scoring.served() == 2)
    answer = scoring.http.post("/lines/mono/inspect", content=png(5)).json()
    score = detector.score(detector.embed(prepare(png(5), 96)[None])).image[0]
    assert answer["score"] == pytest.approx(float(score), rel=1e-5)
    assert scoring.line.calls[0][2].shape[-2:] == (8, 8)  # what the learner takes, of 64 pixels


def test_lines_and_their_state(scoring: Bench) -> None:
    (line,) = scoring.http.get("/lines").json()["lines"]
    expected = {"line": "mono", "images_learned": 3, "threshold": None, "state": "running", "serving_version": 1}
    assert line == expected == scoring.http.get("/lines/mono").json()
    scoring.line.trouble = LineDown("it restarts")
    (line,) = scoring.http.get("/lines").json()["lines"]
    assert line == {"line": "mono", "state": "unavailable", "problem": "it restarts"}


def test_unused_bits_of_images_are_told_with_the_lines_state(scoring: Bench) -> None:
    out = io.BytesIO()
    Image.fromarray(np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)).save(out, "PNG")  # up to 2,303
    for _ in range(ENOUGH):
        assert "advice" not in scoring.http.get("/lines/mono").json()
        assert scoring.http.post("/lines/mono/inspect", content=out.getvalue()).status_code == 200
    assert "set bits: 12" in scoring.http.get("/lines/mono").json()["advice"]


def test_versions_are_listed(scoring: Bench) -> None:
    body = scoring.http.get("/lines/mono/versions").json()
    assert body["line"] == "mono"
    (version,) = body["versions"]
    assert (version["version"], version["aliases"], version["threshold"]) == (1, ["current"], None)


@pytest.mark.parametrize(("body", "version"), [(b"", 1), (b"{}", 1), (b'{"version": 1}', 1)])
def test_a_rollback_is_served_at_once(scoring: Bench, body: bytes, version: int) -> None:
    scoring.publish(2)
    until(lambda: scoring.served() == 2)

    def back(asked: int | None) -> int:
        scoring.registry.now = asked or 1
        return scoring.registry.now

    scoring.line.on_rollback = back
    assert scoring.http.post("/lines/mono/rollback", content=body).json() == {"line": "mono", "version": version}
    assert scoring.http.post("/lines/mono/inspect", content=png(5)).json()["version"] == version


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"version": "1"}', b'{"version": 0}', b'{"verison": 1}'])
def test_a_rollback_s_body_is_checked(bench: Bench, body: bytes) -> None:
    error_of(bench.http.post("/lines/mono/rollback", content=body), 422, "invalid")
    assert bench.line.calls == []


def test_a_rollback_to_nowhere_names_the_versions(bench: Bench) -> None:
    bench.line.trouble = UnknownVersion("line mono: no version 9; valid: 1")
    response = bench.http.post("/lines/mono/rollback", json={"version": 9})
    assert "valid: 1" in error_of(response, 404, "unknown_version")


def test_all_of_our_errors_have_a_status() -> None:
    from everline.deploy.web import ERRORS

    kinds = [EverlineError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert all(issubclass(kind, tuple(row[0] for row in ERRORS)) for kind in kinds)


def test_one_thread_of_torch_per_replica(scoring: Bench) -> None:
    seen: list[int] = []
    scorer = scoring.desk._counters["mono"].scorer
    assert scorer is not None
    judge = scorer.judge
    scorer.judge = lambda f: (seen.append(torch.get_num_threads()), judge(f))[1]  # type: ignore[method-assign]
    scoring.http.post("/lines/mono/inspect", content=png(1))
    assert seen == [1]


def test_a_task_is_switched_through_the_line(bench: Bench) -> None:
    asked = bench.http.post("/lines/mono/task", json={"task": "cap"})
    assert asked.json() == {"line": "mono", "task": "cap", "record": 7}
    assert bench.line.calls == [("switch", "cap")]
    error_of(bench.http.post("/lines/momo/task", json={"task": "cap"}), 404, "unknown_line")


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b'{"task": 1}', b'{"task": "a", "b": 1}'])
def test_a_task_s_body_is_checked(bench: Bench, body: bytes) -> None:
    error_of(bench.http.post("/lines/mono/task", content=body), 422, "invalid")
    assert bench.line.calls == []


def test_an_image_of_more_pixels_than_its_line_takes_is_refused_before_it_is_decoded(bench: Bench) -> None:
    small, large = (bench.http.post("/lines/mono/inspect", content=flat_webp(side)) for side in (1000, 1001))
    assert small.status_code == 200
    assert "1001 x 1001 pixels; at most 1,000,000" in error_of(large, 400, "bad_image")
    assert [call[0] for call in bench.line.calls] == ["record"]


def test_a_line_s_flood_of_large_images_neither_stops_another_line_nor_waits_without_end(tmp_path: Path) -> None:
    decoders = Decoders(pixels=2_000_000)
    bench, large = Bench(tmp_path, 60, ("mono", "flood"), decoders), flat_webp(1000)
    with bench.http, ThreadPoolExecutor(64) as callers:
        with decoders.room(1_000_000, "flood"):  # half of all: one of its images is being decoded
            sent = [callers.submit(bench.http.post, "/lines/flood/inspect", content=large) for _ in range(20)]
            until(lambda: sum(one.done() for one in sent) == 20 - 2 * BACKLOG)
            assert bench.http.post("/lines/mono/inspect", content=large).status_code == 200
            assert sum(one.done() for one in sent) == 20 - 2 * BACKLOG
        answers = [one.result() for one in sent]
    refused = [one for one in answers if one.status_code != 200]
    assert len(refused) == 20 - 2 * BACKLOG
    for one in refused:
        assert "send this one again" in error_of(one, 503, "server_busy")
        assert one.headers["retry-after"]


@pytest.mark.parametrize("where", ["inspect", "inspect/batch"])
def test_a_large_form_needs_no_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    bench, large = Bench(tmp_path, 60, limit=2**23), png(1, 700)
    assert len(large) > 2**20  # from there on a form would be kept in files
    with bench.http:
        answer = bench.http.post(f"/lines/mono/{where}", files={"image": ("a.png", large)})
    assert answer.status_code == 200
    assert [call[1] for call in bench.line.calls] == [large]


async def posted(app: Any, receive: Callable[[], Any]) -> tuple[int, Any]:
    """Status and answer of an inspection whose body comes from `receive`."""
    came: list[Any] = []

    async def send(message: Any) -> None:
        came.append(message)

    scope = {"type": "http", "method": "POST", "path": "/lines/mono/inspect", "query_string": b"", "headers": []}
    await app({**scope, "raw_path": b"", "http_version": "1.1", "client": None}, receive, send)
    return came[0]["status"], json.loads(came[1]["body"])


def test_all_bodies_together_have_a_bound(tmp_path: Path) -> None:
    bench, go, halves = Bench(tmp_path, 60), asyncio.Event(), 0

    async def whole() -> Any:
        return {"type": "http.request", "body": b"x" * LIMIT, "more_body": False}

    def half() -> Callable[[], Any]:
        pieces = iter([b"x" * LIMIT])

        async def receive() -> Any:
            nonlocal halves
            for piece in pieces:
                return {"type": "http.request", "body": piece, "more_body": True}
            halves += 1
            await go.wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        return receive

    async def all_of_them() -> list[tuple[int, Any]]:
        app: Any = bench.http.app
        async with app.router.lifespan_context(app):
            sent = [asyncio.create_task(posted(app, half())) for _ in range(BODIES)]
            while halves < BODIES:
                await asyncio.sleep(0.01)
            refused = await posted(app, whole)
            go.set()
            return [refused, *[await one for one in sent], await posted(app, whole)]

    refused, *others = asyncio.run(all_of_them())
    assert (refused[0], refused[1]["error"]["code"]) == (503, "server_busy")
    assert {status for status, _ in others} == {400}  # no images, but read
