"""The routes of the operator's page, over a real desk and doubles of the line and of MLflow; and its events."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline.deploy import events as events_module
from everline.deploy.desk import Desk
from everline.deploy.events import FOR_HOLDERS, LISTENERS, OF_ONE_CLIENT, Events, Listener
from everline.deploy.web import application
from everline.methods.detector import State
from everline.methods.errors import Busy, ConfigError, LineDown, UnknownImage
from everline.methods.registry import build
from everline.platform.calibration import Calibration
from everline.platform.images import prepare
from everline.platform.settings import Fleet, LineSettings
from fastapi.testclient import TestClient
from PIL import Image

PARAMS = {"size": 64, "weights": "none"}
NASTY = "a/../b?c=%2e&<img src=x onerror=alert(1)>#ü/map"


def png(seed: int, side: int = 48) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, 2 * side, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


class Line:
    """Double of platform.actor.LineActor: `handle.verb.remote(...)`."""

    def __init__(self) -> None:
        self.images = {NASTY: png(1), "..": b"II*\0 no image"}
        self.asked: list[tuple[Any, ...]] = []
        self.down = False

    def __getattr__(self, verb: str) -> Any:
        async def call(*args: Any) -> Any:
            if self.down:
                raise LineDown("it is away")
            self.asked.append((verb, *args))
            return getattr(self, f"_{verb}")(*args)

        return type("Verb", (), {"remote": staticmethod(call)})

    def _settings(self) -> LineSettings:
        return LineSettings(method="padim", params=PARAMS)

    def _recent(self, limit: int, before: int | None, verdict: str | None) -> list[dict[str, Any]]:
        return [{"id": NASTY, "record": 3, "score": float("inf")}]

    def _image(self, id: str) -> bytes:
        if id not in self.images:
            raise UnknownImage(f"line mono: no image {id!r} in its log.")
        return self.images[id]

    def _feedback(self, id: str, label: str, by: str) -> dict[str, Any]:
        if label not in ("ok", "defect"):
            raise ConfigError("a label is ok or defect")
        self._image(id)
        return {"record": 9, "of": 3, "label": label, "changed": True}


class Registry:
    """Double of platform.versions.Versions with one version, or none."""

    def __init__(self) -> None:
        self.state: State | None = None

    def current(self) -> int | None:
        return 1 if self.state else None

    def load(self, version: int) -> tuple[State, Calibration]:
        assert self.state
        return self.state, Calibration.of([1.0, 2.0, 3.0], 0.25)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.line, self.registry = Line(), Registry()
        fleet = Fleet(store=folder, tracking="", lines={"mono": self.line._settings()})
        self.desk = Desk(fleet, poll_s=60, handle=lambda _: self.line, versions=lambda *_: self.registry)
        self.http = TestClient(application(self.desk), "http://localhost", raise_server_exceptions=False)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    with bench.http:
        yield bench


@pytest.fixture
def scoring(tmp_path: Path) -> Iterator[Bench]:
    bench, detector = Bench(tmp_path), build("padim", **PARAMS)
    for n in range(3):
        detector.learn(detector.embed(prepare(png(n), 64)[None]))
    bench.registry.state = detector.state()
    with bench.http:
        yield bench


def error_of(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.json()["error"].keys() == {"code", "message", "request_id"}
    return str(response.json()["error"]["code"])


@pytest.mark.parametrize(("path", "kind"), [("/", "text/html"), ("/static/page.js", "text/javascript")])
def test_the_page_may_load_nothing_from_elsewhere(bench: Bench, path: str, kind: str) -> None:
    response = bench.http.get(path)
    assert (response.status_code, response.headers["content-type"]) == (200, f"{kind}; charset=utf-8")
    assert response.headers["content-security-policy"].startswith("default-src 'self';")
    assert response.headers["x-content-type-options"] == "nosniff"


def test_no_file_of_the_page_names_another_host() -> None:
    files = list((Path(events_module.__file__).parent / "static").iterdir())
    texts = [file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "") for file in files]
    assert len(files) == 6 and all(texts)
    assert not [t for t in texts if "//" in t.replace("// ", "") or "innerHTML" in t or "style=" in t]


def test_only_the_page_s_own_files_are_there(bench: Bench) -> None:
    for path in ("/static/", "/static/../page.py", "/static/%2e%2e/page.py", "/static/index.html"):
        error_of(bench.http.get(path), 404)


def test_recent_images_are_asked_of_the_line_within_limits(bench: Bench) -> None:
    answer = bench.http.get("/lines/mono/images?limit=7&before=9&verdict=reject").json()
    assert answer == {"line": "mono", "images": [{"id": NASTY, "record": 3, "score": None}]}
    assert bench.line.asked[-1] == ("recent", 7, 9, "reject")
    for query in ("limit=0", "limit=501", "limit=x", "before=-1"):
        assert error_of(bench.http.get(f"/lines/mono/images?{query}"), 422) == "invalid"


def test_an_image_of_any_id_comes_as_it_was(bench: Bench) -> None:
    response = bench.http.get("/lines/mono/image", params={"id": NASTY})
    assert (response.content, response.headers["content-type"]) == (png(1), "image/png")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert bench.http.get("/lines/mono/image", params={"id": ".."}).headers["content-type"] == "image/tiff"


def test_a_small_copy_is_small(bench: Bench) -> None:
    response = bench.http.get("/lines/mono/image", params={"id": NASTY, "side": 32})
    picture = Image.open(io.BytesIO(response.content))
    assert (picture.format, picture.size, response.headers["content-type"]) == ("JPEG", (32, 16), "image/jpeg")
    assert error_of(bench.http.get("/lines/mono/image", params={"id": "..", "side": 32}), 400) == "bad_image"
    assert error_of(bench.http.get("/lines/mono/image", params={"id": NASTY, "side": 9}), 422) == "invalid"


def test_an_unknown_image_or_line_is_a_404(bench: Bench) -> None:
    assert error_of(bench.http.get("/lines/mono/image?id=none"), 404) == "unknown_image"
    assert error_of(bench.http.get("/lines/none/image?id=none"), 404) == "unknown_line"
    assert error_of(bench.http.get("/lines/none/images"), 404) == "unknown_line"


def test_the_map_lies_over_the_image_and_needs_a_version(scoring: Bench, tmp_path: Path) -> None:
    response = scoring.http.get("/lines/mono/image/map", params={"id": NASTY})
    assert response.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(response.content))
    assert picture.size == (96, 48)
    assert picture.tobytes() != Image.open(io.BytesIO(png(1))).convert("L").convert("RGB").tobytes()
    assert error_of(scoring.http.get("/lines/mono/image/map", params={"id": ".."}), 400) == "bad_image"
    with (learning := Bench(tmp_path)).http:
        assert error_of(learning.http.get("/lines/mono/image/map", params={"id": NASTY}), 404) == "unknown_version"


def test_feedback_reaches_the_line(bench: Bench) -> None:
    response = bench.http.post("/lines/mono/feedback", json={"id": NASTY, "label": "ok", "by": "eve"})
    assert response.json() == {"line": "mono", "record": 9, "of": 3, "label": "ok", "changed": True}
    assert bench.line.asked[-1] == ("feedback", NASTY, "ok", "eve")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"id": "none", "label": "ok"}, 404),
        ({"id": NASTY, "label": "fine"}, 422),
        ({"id": NASTY}, 422),
        ({"id": NASTY, "label": "ok", "by": 7}, 422),
        ({"id": "", "label": "ok"}, 422),
        ([], 422),
    ],
)
def test_feedback_that_cannot_be_meant_is_refused(bench: Bench, body: Any, status: int) -> None:
    error_of(bench.http.post("/lines/mono/feedback", json=body), status)


def test_feedback_from_another_origin_s_form_is_refused(bench: Bench) -> None:
    body = json.dumps({"id": NASTY, "label": "ok"})
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = bench.http.post("/lines/mono/feedback", content=body, headers={"Content-Type": kind})
        assert error_of(response, 415) == "unsupported_media_type"
    assert not [call for call in bench.line.asked if call[0] == "feedback"]


class Lines:
    """Double of the desk for the events; counts how often it is looked at."""

    def __init__(self) -> None:
        self.looks = 0
        self.rows = [{"record": 0, "label": None}]
        self.trouble: Exception | None = None

    def health(self) -> dict[str, Any]:
        return {"lines": {"mono": {}}}

    async def line(self, line: str) -> dict[str, Any]:
        self.looks += 1
        if self.trouble:
            raise self.trouble
        return {"line": line, "state": "running", "threshold": float("inf")}

    async def recent(self, line: str, limit: int, before: int | None, verdict: str | None) -> list[dict[str, Any]]:
        return list(reversed(self.rows))[:limit]


async def told(stream: AsyncIterator[bytes], count: int) -> list[tuple[str, Any]]:
    """The next events of a stream; comments and `retry` are left out."""
    found: list[tuple[str, Any]] = []
    while len(found) < count:
        text = (await asyncio.wait_for(anext(stream), 10)).decode()
        assert text.endswith("\n\n")
        if text.startswith("event: "):
            kind, data = text.removesuffix("\n\n").split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_new_records_and_labels_are_told_once_and_old_ones_not() -> None:
    async def play() -> None:
        lines = Lines()
        stream = Events(lines, period_s=0.01).listen()
        assert await told(stream, 1) == [("line", {"line": "mono", "state": "running", "threshold": None})]
        lines.rows += [{"record": 1, "label": None}, {"record": 2, "label": None}]
        assert [(kind, e["record"]) for kind, e in await told(stream, 2)] == [("image", 1), ("image", 2)]
        lines.rows[1] = {"record": 1, "label": "ok"}
        assert await told(stream, 1) == [("image", {"line": "mono", "record": 1, "label": "ok"})]
        await stream.aclose()

    asyncio.run(play())


def test_a_line_that_goes_away_is_told_and_comes_back() -> None:
    async def play() -> None:
        lines = Lines()
        stream = Events(lines, period_s=0.01).listen()
        await told(stream, 1)
        lines.trouble = LineDown("away")
        assert await told(stream, 1) == [("line", {"line": "mono", "state": "unavailable", "problem": "away"})]
        lines.trouble = RuntimeError("a bug")  # does not end the stream
        await asyncio.sleep(0.05)
        lines.trouble = None
        assert (await told(stream, 1))[0][1]["state"] == "running"
        await stream.aclose()

    asyncio.run(play())


def test_all_listeners_share_one_look_which_ends_with_the_last() -> None:
    async def play() -> None:
        lines = Lines()
        events = Events(lines, period_s=0.01)
        streams = [events.listen() for _ in range(5)]
        for stream in streams:
            assert len(await told(stream, 1)) == 1
        tasks = [t for t in asyncio.all_tasks() if "_keep_looking" in str(t.get_coro())]
        assert len(tasks) == 1
        for stream in streams:
            await stream.aclose()
        await asyncio.sleep(0.05)
        looks = lines.looks
        await asyncio.sleep(0.05)
        assert lines.looks == looks

    asyncio.run(play())


def test_a_slow_listener_is_sent_away_and_the_others_hear_on() -> None:
    async def play() -> None:
        events = Events(Lines(), period_s=60)
        slow, quick = events.listen(), events.listen()
        await told(slow, 1)
        await told(quick, 1)
        for n in range(events_module.BEHIND + 1):
            events._tell(b"event: image\ndata: %d\n\n" % n)
            await told(quick, 1)
        assert [event async for event in slow] == []
        assert len(events._queues) == 1
        await quick.aclose()

    asyncio.run(play())


def test_a_silent_stream_has_a_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "HEARTBEAT_S", 0.01)

    async def play() -> None:
        stream = Events(Lines(), period_s=60).listen()
        assert (await anext(stream)).startswith(b"retry")
        heard = [await anext(stream) for _ in range(3)]
        assert b": still here\n\n" in heard
        await stream.aclose()

    asyncio.run(play())


def test_more_listeners_than_there_may_be_are_refused() -> None:
    async def play() -> None:
        events = Events(Lines(), period_s=60, listeners=1)
        stream = events.listen()
        await told(stream, 1)
        with pytest.raises(Busy, match="close one"):
            events.check()
        await stream.aclose()
        events.check()

    asyncio.run(play())


async def listening(events: Events, *clients: Listener) -> list[AsyncIterator[bytes]]:
    """Streams that have begun, each after its check, as the route does it."""
    streams = []
    for who in clients:
        events.check(who)
        streams.append(events.listen(who))
        await anext(streams[-1])
    return streams


def test_who_has_no_token_leaves_places_to_those_who_have() -> None:
    async def play() -> None:
        events = Events(Lines(), period_s=60, for_holders=FOR_HOLDERS)
        most = LISTENERS - FOR_HOLDERS
        streams = await listening(events, *(Listener(f"address {n}", False) for n in range(most)))
        with pytest.raises(Busy, match=f"{most} pages without a token"):
            events.check(Listener("address 99", False))
        streams += [events.listen(Listener("address", False)) for _ in range(FOR_HOLDERS)]  # past the check at once
        for stream in streams[most:]:
            await anext(stream)
        streams += await listening(events, *(Listener(f"token {n}", True) for n in range(FOR_HOLDERS)))
        with pytest.raises(Busy, match=f"{LISTENERS} pages listen"):
            events.check(Listener("token 99", True))
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        events.check(Listener("address 99", False))

    asyncio.run(play())


@pytest.mark.parametrize("holder", [False, True])
def test_no_client_takes_all_places_to_listen(holder: bool) -> None:
    async def play() -> None:
        events = Events(Lines(), period_s=60)
        one, other = Listener("one", holder), Listener("other", holder)
        streams = await listening(events, *[one] * OF_ONE_CLIENT)
        with pytest.raises(Busy, match=f"{OF_ONE_CLIENT} pages of this client"):
            events.check(one)
        streams += await listening(events, *[other] * (LISTENERS - OF_ONE_CLIENT))
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]

    asyncio.run(play())


@pytest.mark.parametrize("path", ["/lines/", "/docs/", "/health/", "/lines/mono/inspect/"])
def test_no_address_is_redirected_by_what_the_host_header_says(bench: Bench, path: str) -> None:
    for ask in (bench.http.get, bench.http.post):
        answer = ask(path, headers={"Host": "192.0.2.7"}, follow_redirects=False)
        assert (answer.status_code, "location" in answer.headers) == (404, False)
