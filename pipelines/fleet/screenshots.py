"""`python -m everline.pipelines.fleet.screenshots`: pictures of the operator's page, for the README.

A small fleet of its own inspects drawn parts, some with a defect, over HTTP; a browser looks at it.
"""

import io
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from PIL import Image

from ...deploy.server import free_port, start_server, stop_server
from ...methods.errors import ConfigError, EverlineError
from ...platform.actor import start_line
from ...platform.cluster import connect, disconnect
from ...platform.settings import Fleet, parse_fleet
from ...platform.tracking import prepare_tracking
from ..console import ERR, launch, progress
from ..files import FilePath
from .client import Client
from .made_parts import part

WIDTH, HEIGHT = 1056, 800  # pixels of the window
PATIENCE_S = 60.0  # for the page to show something
MARGIN = 16  # below the lines
COLOURS = 256  # of a picture that is written
LIVE = "caps"  # the line that is shown on its own
SPOILT = 14  # every so many parts, and the last, have a defect
WARMER, LEVELS = 0.8, 45.0  # of the line whose light changes: after which share of its parts, by how much
SETTINGS = {"method": "coreset", "false_reject_rate": 0.05, "publish_every": 50, "params": {"size": 128}}


@dataclass(frozen=True)
class Sent:
    """A part on its way to a line, under this id."""

    id: str
    data: bytes
    defect: bool


@click.command()
@click.option("--out", type=FilePath(), default=Path("docs"), show_default=True, help="Folder.")
@click.option(
    "--images",
    type=click.IntRange(100, 2000),
    default=200,
    show_default=True,
    help="Of the line that is shown alone; others get fewer.",
)
def screenshots(out: Path, images: int) -> None:
    """Take pictures of the operator's page over a fleet that runs: page-lines.png and page-line.png."""
    with ExitStack() as stack:
        browser = stack.enter_context(opened())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="everline-")))
        streams = {
            "boards": stream("boards", images // 2),
            LIVE: stream("caps", images),
            "cloth": stream("cloth", images // 2, warmer=LEVELS),
            "tiles": stream("tiles", 16, defects=False),  # it has just begun
        }
        fleet = parse_fleet({"store": "store", "lines": dict.fromkeys(streams, SETTINGS)}, folder)
        ERR.print(f"[dim]{len(streams)} lines start ...[/dim]")
        port = free_port()
        stack.enter_context(served(fleet, port))
        send(port, streams)
        out.mkdir(parents=True, exist_ok=True)
        for name, taken in look(
            browser, f"http://127.0.0.1:{port}", list(streams), LIVE, streams[LIVE][-1].id
        ).items():
            data = small(taken)
            (out / name).write_bytes(data)
            width, height = Image.open(io.BytesIO(data)).size
            click.echo(f"{out / name}: {width} x {height} pixels, {len(data):,} bytes")


def stream(product: str, count: int, defects: bool = True, warmer: float = 0.0) -> list[Sent]:
    """The parts of a line. warmer: of the light at the end of the stream, in levels (made_parts.py)."""
    found = []
    for n in range(1, count + 1):
        bad = defects and not warmer and (n % SPOILT == 0 or n == count) and n > SPOILT
        light = warmer if n > WARMER * count else 0.0
        found.append(Sent(f"{product}-{n:04}", part(product, n, bad, light), bad))
    return found


@contextmanager
def opened() -> Iterator[Any]:
    """Debian's Chromium without a window, driven by Playwright. Raises ConfigError where one of them is missing."""
    program = shutil.which("chromium")
    if program is None:
        raise ConfigError("screenshots need the browser Chromium: apt-get install chromium.")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise ConfigError("screenshots need Playwright: make setup, or pip install 'everline[dev]'.") from error
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])  # it sees our page alone
        yield browser
        browser.close()


@contextmanager
def served(fleet: Fleet, port: int) -> Iterator[None]:
    """The fleet's lines and a server in a Ray cluster of their own, which ends with them."""
    prepare_tracking(fleet.tracking)
    connect(own=True)
    try:
        kept = [start_line(name, fleet)[0] for name in fleet.lines]  # a line lives as long as its handle
        start_server(fleet, port=port)
        try:
            yield
        finally:
            stop_server()
        del kept
    finally:
        disconnect()


def send(port: int, streams: dict[str, list[Sent]]) -> None:
    """All streams at the same time, over HTTP; then an operator's word on each line's rejects but the newest two."""
    with progress() as bars, ThreadPoolExecutor(len(streams)) as pool:

        def one(line: str, bar: Any) -> None:
            client, rejects = Client(port=port), list[Sent]()
            for sent in streams[line]:
                if client.inspect(line, sent.data, id=sent.id)["verdict"] == "reject":
                    rejects.append(sent)
                bars.advance(bar)
            for sent in rejects[:-2]:
                client.feedback(line, sent.id, "defect" if sent.defect else "ok", by="ann")
            client.close()

        bars_of = [bars.add_task(line, total=len(own)) for line, own in streams.items()]
        for future in [pool.submit(one, line, bar) for line, bar in zip(streams, bars_of, strict=True)]:
            future.result()


def look(browser: Any, url: str, lines: Sequence[str], live: str, last: str) -> dict[str, bytes]:
    """The page as PNG, by file: all lines; and the line `live` with its last image, `last`, under its heatmap."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, locale="en-GB", timezone_id="UTC")
    page.set_default_timeout(PATIENCE_S * 1000)
    page.goto(url)
    page.locator("#connection", has_text="live").wait_for()
    for line in lines:
        page.locator(f'[data-line="{line}"]').wait_for()
    cards = page.locator("#lines").bounding_box()
    bottom = cards["y"] + cards["height"] + MARGIN
    found = {"page-lines.png": page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": bottom})}
    page.locator(f'[data-line="{live}"]').click()
    page.locator("#caption", has_text=last).wait_for()
    page.locator("#versions tr").first.wait_for()
    page.locator("#heat").click()
    page.locator("#picture[data-shows=map]").wait_for()
    loaded = "all => all.length > 0 && all.every(one => one.naturalWidth > 0)"
    until(lambda: page.locator("#images img, #picture").evaluate_all(loaded))
    found["page-line.png"] = page.screenshot(full_page=True)
    page.close()
    return found


def until(true: Callable[[], bool]) -> None:
    """Waits from here: a page that forbids `eval` cannot wait by itself."""
    give_up = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > give_up:
            raise EverlineError(f"the page did not show all its images within {PATIENCE_S:g} s.")
        time.sleep(0.1)


def small(picture: bytes) -> bytes:
    """PNG with a palette, and dithered, since a heatmap has more colours than that: half the size."""
    out, whole = io.BytesIO(), Image.open(io.BytesIO(picture)).convert("RGB")
    palette = whole.quantize(COLOURS, kmeans=3)
    whole.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(out, "png", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    launch(screenshots)
