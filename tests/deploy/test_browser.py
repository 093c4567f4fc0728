"""The operator's page in a real browser: a running fleet, Ray Serve, one line, and somebody who looks and clicks."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
import ray
from everline.deploy.server import free_port, start_server, stop_server
from everline.platform.actor import answer, start_line
from everline.platform.log import LogReader, line_folder
from everline.platform.settings import Fleet, parse_fleet
from everline.platform.tracking import prepare_tracking
from everline.platform.versions import Versions

from ..conftest import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
NASTY = "<img src=x onerror=document.title='hacked'>/../50 %?a=b&c"
LINE = {"method": "lemo", "false_reject_rate": 0.2, "probation": 1, "publish_every": 25, "params": {"size": 64}}


@dataclass
class Plant:
    url: str
    fleet: Fleet
    handle: Any

    def send(self, data: bytes, id: str) -> None:
        kind = {"Content-Type": "image/png"}
        request = Request(f"{self.url}/lines/mono/inspect?id={quote(id, safe='')}", data, kind)
        with urlopen(request, timeout=60) as response:
            assert response.status == 200

    def log(self) -> list[Any]:
        return list(LogReader(line_folder(self.fleet.store, "mono")).records(images=False))


@pytest.fixture
def plant(ray_session: None, tmp_path: Path, parts: list[bytes]) -> Iterator[Plant]:
    """A server over a line that has published two versions and seen an image of a nasty id."""
    fleet = parse_fleet({"store": "store", "lines": {"mono": LINE}}, tmp_path)
    prepare_tracking(fleet.tracking)
    handle, _ = start_line("mono", fleet)
    for index, data in enumerate(parts):
        answer(handle.inspect.remote(data, f"i{index}"))
    assert len(Versions(fleet.tracking, "mono").list()) >= 2
    plant = Plant(start_server(fleet, port=free_port()), fleet, handle)
    yield plant
    stop_server()
    ray.kill(handle)


def test_an_operator_sees_labels_and_turns_back(plant: Plant, browser: Any, more_parts: list[bytes]) -> None:
    page = browser.new_page()
    page.set_default_timeout(30_000)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(plant.url)

    page.get_by_role("button", name="mono").click()
    page.locator("#connection", has_text="live").wait_for()
    page.locator("#images li").first.wait_for()

    plant.send(more_parts[0], NASTY)  # an image comes
    page.locator("#images li", has_text=NASTY).wait_for()
    page.locator("#caption", has_text=NASTY).wait_for()
    width = partial(page.locator("#picture").evaluate, "picture => picture.naturalWidth")
    until(lambda: width() > 0)  # from here: a page that forbids `eval` cannot wait by itself
    assert page.locator("#strip rect").count() > 0

    page.locator("#heat").click()
    page.locator("#picture[data-shows=map]").wait_for()
    until(lambda: width() == 64)

    page.locator("#by").fill("eve")
    page.locator("#defect").click()
    page.locator("#facts", has_text="said: defect by eve").wait_for()
    said = [r.data for r in plant.log() if r.kind == "feedback"]
    assert [(d["id"], d["label"], d["by"]) for d in said] == [(NASTY, "defect", "eve")]

    page.locator("#images [aria-current=true]").focus()  # the next by keyboard alone
    page.keyboard.press("ArrowRight")
    page.locator("#caption:not(:has-text('/../'))").wait_for()
    page.keyboard.press("o")
    page.locator("#facts", has_text="said: ok").wait_for()

    versions = Versions(plant.fleet.tracking, "mono")
    page.get_by_role("button", name="Make version 1 current").click()
    page.locator("#no").click()
    assert versions.current() != 1
    page.get_by_role("button", name="Make version 1 current").click()
    page.locator("#yes").click()
    page.locator("#versions tr", has_text="current").filter(has_text="1").first.wait_for()
    until(lambda: versions.current() == 1)

    assert {r.verdict for r in plant.log() if r.kind == "image"} >= {"pass"}
    assert page.title() == "everline"
    assert [url for url in asked if not url.startswith((plant.url, f"blob:{plant.url}"))] == []
    assert wrong == []
    page.close()
