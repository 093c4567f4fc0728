"""The operator's page in a real browser: a running fleet, Ray Serve, one line, and somebody who looks and clicks."""

from functools import partial
from typing import Any
from urllib.parse import quote

import pytest
from everline.platform.versions import Versions

from ..conftest import until
from .conftest import Served, Taught

NASTY = "<img src=x onerror=document.title='hacked'>/../50 %?a=b&c"


@pytest.mark.slow
def test_an_operator_sees_labels_and_turns_back(
    served: Served, taught: Taught, browser: Any, parts: list[bytes]
) -> None:
    page = browser.new_page()
    page.set_default_timeout(30_000)
    wrong: list[str] = []
    asked: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: wrong.append(str(e)))
    page.on("request", lambda r: asked.append(r.url))
    page.goto(served.url)

    page.get_by_role("button", name="mono").click()
    page.locator("#connection", has_text="live").wait_for()
    page.locator("#images li").first.wait_for()

    assert served.inspect("mono", parts[2] + b"!", query=f"?id={quote(NASTY, safe='')}")[0] == 200  # an image comes
    page.locator("#images li", has_text=NASTY).wait_for()
    page.locator("#caption", has_text=NASTY).wait_for()
    width = partial(page.locator("#picture").evaluate, "picture => picture.naturalWidth")
    until(lambda: width() > 0)  # from here: a page that forbids `eval` cannot wait by itself
    assert page.locator("#strip rect").count() > 0

    page.locator("#heat").click()
    page.locator("#picture[data-shows=map]").wait_for()
    until(lambda: width() == 64)

    page.locator("#defect").click()
    page.locator("#login").wait_for()
    page.keyboard.type(served.tokens["change"])
    page.keyboard.press("Enter")
    page.locator("#facts", has_text="said: defect by change").wait_for()
    said = [r.data for r in served.log("mono") if r.kind == "feedback"]
    assert [(d["id"], d["label"], d["by"]) for d in said] == [(NASTY, "defect", "change")]

    page.locator("#images [aria-current=true]").focus()  # the next by keyboard alone
    page.keyboard.press("ArrowRight")
    page.locator("#caption:not(:has-text('/../'))").wait_for()
    page.keyboard.press("o")
    page.locator("#facts", has_text="said: ok").wait_for()

    versions = Versions(served.fleet.tracking, "mono")
    other = next(one.version for one in versions.list() if one.version != versions.current())
    page.get_by_role("button", name=f"Make version {other} current").click()
    page.locator("#no").click()
    assert versions.current() != other
    page.get_by_role("button", name=f"Make version {other} current").click()
    page.locator("#yes").click()
    page.locator("#versions tr", has_text="current").filter(has_text=str(other)).first.wait_for()
    until(lambda: versions.current() == other)

    assert page.title() == "everline"
    assert [url for url in asked if not url.startswith((served.url, f"blob:{served.url}"))] == []
    assert all("401" in text for text in wrong)  # the browser's own word where a token was asked for
    page.close()
