"""The operator's page in a real browser over the whole application without Ray: for hands, eyes and small screens."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from everline.deploy.guard import Rules
from everline.deploy.tokens import Tokens, make_token
from everline.pipelines.fleet.screenshots import WIDTH, look
from fastapi import FastAPI
from PIL import Image

from .conftest import serving

pytestmark = pytest.mark.slow
LONG = "station-7/2026-11-27T12.59.59/" + "w" * 120 + ".png"  # an id without a place to break it
LEAST = 4.5  # contrast of text, WCAG 2.1 AA
CONTRASTS = """() => {
  const parts = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const family = (node) => node ? [...family(node.tagName === "DIALOG" ? null : node.parentElement), node] : [];
  const found = {};
  for (const node of document.querySelectorAll("body *")) {
    const text = [...node.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data).join(" ").trim();
    const shown = node.checkVisibility({ visibilityProperty: true }) && node.tagName !== "NOSCRIPT";
    if (!(text || node.tagName === "INPUT") || !shown) continue;
    let ground = [255, 255, 255, 1];
    let see = 1;
    for (const one of family(node)) {
      const style = getComputedStyle(one);
      ground = over(parts(style.backgroundColor), ground);
      see *= Number(style.opacity);
    }
    const ink = parts(getComputedStyle(node).color);
    const [a, b] = [light(over([...ink.slice(0, 3), ink[3] * see], ground)), light(ground)];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = `${node.tagName}#${node.id}.${node.className} ${text.slice(0, 30)}`;
    found[name] = Math.min(found[name] ?? 99, Math.round(100 * ratio) / 100);
  }
  return found;
}"""


@dataclass
class Plant:
    """The page's address, what it sends, and what went wrong in it."""

    url: str
    page: Any
    wrong: list[str]

    def send(self, id: str, odd: bool = False) -> None:
        """An image to the line; an odd one is noise, which is rejected."""
        grey = np.random.default_rng(len(id)).integers(0, 256, (64, 64, 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(grey if odd else np.full_like(grey, 90)).save(out, "png")
        headers = {"X-Image-Id": id, "Content-Type": "image/png"}
        request = Request(f"{self.url}/lines/mono/inspect", out.getvalue(), headers)
        with urlopen(request, timeout=60) as response:
            assert json.load(response)["verdict"] == "reject" or not odd

    def rows(self) -> dict[str, Any]:
        with urlopen(f"{self.url}/lines/mono/images?limit=500", timeout=60) as response:
            return {row["id"]: row for row in json.load(response)["images"]}

    def open(self) -> None:
        self.page.goto(f"{self.url}/#mono")
        self.page.locator("#connection", has_text="live").wait_for()
        self.page.locator("#images li").first.wait_for()


Opens = Callable[..., Plant]


@pytest.fixture
def plant(whole: Callable[..., FastAPI], browser: Any) -> Iterator[Opens]:
    """plant(rules, **options of the page): a served line of its own, and a page that has not been opened yet."""
    with ExitStack() as stack:

        def make(rules: Rules = Rules(), **options: Any) -> Plant:  # noqa: B008 - frozen
            url, wrong = stack.enter_context(serving(whole(rules))), list[str]()
            page = browser.new_page(**options)
            stack.callback(page.close)
            page.set_default_timeout(30_000)
            page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda e: wrong.append(str(e)))
            return Plant(url, page, wrong)

        yield make


def test_quarantine_is_worked_through_and_is_empty_then(plant: Opens) -> None:
    here = plant()
    odd = ["odd-1", "odd-22", "odd-333"]
    for id in odd:
        here.send(id, odd=True)
    here.open()
    waiting = {id for id, row in here.rows().items() if row["verdict"] == "reject"}
    assert waiting >= set(odd)
    page = here.page
    page.locator("#by").fill("eve")
    page.locator("#show-quarantine").click()
    for left in range(len(waiting), 0, -1):
        page.locator("#waiting", has_text=f"({left})").wait_for()
        assert page.locator("#images li").count() == left
        assert page.locator("#caption").inner_text() in waiting
        page.locator("#defect" if left % 2 else "#ok").click()
    page.get_by_text("Nothing waits to be looked at.").wait_for()
    assert page.locator("#viewer").is_hidden() and page.locator("#waiting").inner_text() == "(0)"
    said = {row["id"]: row["by"] for row in here.rows().values() if row["label"]}
    assert said == dict.fromkeys(waiting, "eve")
    page.locator("#show-live").click()
    assert page.locator("#images li").count() > len(waiting)
    assert here.wrong == []


def test_a_token_is_asked_for_and_what_was_wanted_is_done_with_it(plant: Opens, tmp_path: Path) -> None:
    token = make_token(tmp_path / "tokens.yaml", "maria", ("change",))
    here = plant(Rules(tokens=Tokens(tmp_path / "tokens.yaml")))
    here.open()
    page, login = here.page, here.page.locator("#login")
    page.locator("#ok").click()
    login.wait_for()
    page.keyboard.press("Escape")  # who has none changes nothing, and may look on
    login.wait_for(state="hidden")
    page.locator("#message", has_text="this needs a token").wait_for()
    assert not any(row["label"] for row in here.rows().values())

    page.locator("#ok").click()
    login.wait_for()
    assert page.locator("#not-taken").is_hidden()
    page.keyboard.type("not-a-token")
    page.keyboard.press("Enter")
    page.locator("#not-taken", has_text="It does not know that token.").wait_for()
    page.keyboard.type(token)
    page.keyboard.press("Enter")
    page.locator("#facts", has_text="said: ok by maria").wait_for()
    assert login.is_hidden() and page.locator("#message").is_hidden()

    page.locator("#defect").click()  # it is kept
    page.locator("#facts", has_text="said: defect by maria").wait_for()
    (said,) = [row for row in here.rows().values() if row["label"]]
    assert (said["label"], said["by"]) == ("defect", "maria")
    assert token not in page.content()
    assert all("401" in text for text in here.wrong)  # the browser's own word on the refusals


def test_a_token_that_may_not_do_it_is_refused_by_name_and_another_one_taken(plant: Opens, tmp_path: Path) -> None:
    file = tmp_path / "tokens.yaml"
    camera, token = make_token(file, "camera-1", ("inspect",)), make_token(file, "maria", ("change",))
    here = plant(Rules(tokens=Tokens(file)))
    here.open()
    page, login = here.page, here.page.locator("#login")
    page.locator("#ok").click()
    login.wait_for()
    page.keyboard.type(camera)
    page.keyboard.press("Enter")
    page.locator("#not-taken", has_text="the token of camera-1 may not change, only inspect").wait_for()
    page.keyboard.press("Escape")  # who has no other one may look on, and is asked again next time
    page.locator("#message", has_text="this needs another token; nothing was changed").wait_for()
    assert not any(row["label"] for row in here.rows().values())

    page.locator("#ok").click()
    page.locator("#not-taken", has_text="camera-1").wait_for()
    page.keyboard.type(token)
    page.keyboard.press("Enter")
    page.locator("#facts", has_text="said: ok by maria").wait_for()
    assert login.is_hidden() and page.locator("#message").is_hidden()
    page.locator("#defect").click()  # it is kept in place of the other
    page.locator("#facts", has_text="said: defect by maria").wait_for()
    assert all("401" in text or "403" in text for text in here.wrong)


def test_tab_and_enter_alone_mark_an_image_ok(plant: Opens) -> None:
    here = plant()
    page = here.page
    page.goto(here.url)
    page.locator("#lines button").wait_for()

    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", f"{selector} does not show that it has the focus"
                return
        pytest.fail(f"Tab does not lead to {selector}")

    tab_to("#lines button")
    page.keyboard.press("Enter")
    page.locator("#images li").first.wait_for()
    id = page.locator("#caption").inner_text()
    tab_to("#images button")
    tab_to("#ok")
    page.keyboard.press("Enter")
    page.locator("#facts", has_text="said: ok").wait_for()
    assert {one: row["label"] for one, row in here.rows().items() if row["label"]} == {id: "ok"}
    assert here.wrong == []


@pytest.mark.parametrize("width", [768, 360])
def test_nothing_is_wider_than_the_screen_of_a_tablet_or_a_phone(plant: Opens, width: int) -> None:
    here = plant(viewport={"width": width, "height": 1024})
    here.send(LONG, odd=True)
    here.open()
    page = here.page
    page.locator("#caption", has_text=LONG).wait_for()
    for step in ("#heat", "#defect", "#show-quarantine", "#show-live", "#versions button"):
        if page.locator(step).count():
            page.locator(step).first.click()
        across, shown = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert across <= shown == width, step
    small = page.locator("button:visible").evaluate_all(
        "all => all.filter((b) => Math.min(b.offsetWidth, b.offsetHeight) < 44).map((b) => b.id || b.textContent)"
    )
    assert small == []  # for fingers
    here.page.goto(f"{here.url}/docs")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_is_behind_it(plant: Opens, scheme: str) -> None:
    here = plant(color_scheme=scheme)
    here.send("odd-1", odd=True)
    here.open()
    page = here.page
    seen: dict[str, float] = {}

    def measure() -> None:
        for name, ratio in page.evaluate(CONTRASTS).items():
            seen[name] = min(ratio, seen.get(name, 99.0))

    page.locator("#facts", has_text="reject").wait_for()
    measure()
    page.locator("#defect").click()
    page.locator("#facts", has_text="said: defect").wait_for()
    page.locator("#show-quarantine").click()
    measure()
    page.locator("#show-live").click()
    page.evaluate("document.querySelectorAll('#message, #trouble').forEach((one) => { one.hidden = false; })")
    page.evaluate("document.querySelectorAll('#message, #trouble').forEach((one) => { one.textContent = 'Away.'; })")
    page.evaluate("document.querySelectorAll('dialog').forEach((one) => one.show())")
    page.evaluate("Object.assign(document.getElementById('not-taken'), { hidden: false, textContent: 'No.' })")
    measure()
    page.evaluate("document.body.classList.add('away')")
    measure()
    assert len(seen) > 60
    page.goto(f"{here.url}/docs")
    measure()
    assert {name: ratio for name, ratio in seen.items() if ratio < LEAST} == {}


def test_pictures_are_taken_of_all_lines_and_of_one_under_its_heatmap(plant: Opens, browser: Any) -> None:
    here = plant()
    here.send("odd-1", odd=True)
    taken = look(browser, here.url, ["mono"], "mono", "odd-1")
    lines, line = (Image.open(io.BytesIO(taken[name])) for name in ("page-lines.png", "page-line.png"))
    assert lines.width == line.width == WIDTH
    assert lines.height < 300 < 1000 < line.height
    colours = np.asarray(line.convert("HSV"))[..., 1]  # the noise is grey under its map
    assert (colours > 60).mean() > 0.02
