"""The README's pictures: the parts that are drawn for them, and what the command says where it has no browser."""

import io
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner
from everline.methods.registry import build
from everline.pipelines.fleet import screenshots as module
from everline.pipelines.fleet.made_parts import PRODUCTS, SIDE, part
from everline.pipelines.fleet.screenshots import screenshots, small, stream
from everline.platform.images import decode
from everline.platform.line import embed_image
from PIL import Image


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_drawn_part_is_the_same_again_and_every_number_another(product: str) -> None:
    assert part(product, 1) == part(product, 1)
    assert len({part(product, 1), part(product, 2), part(product, 1, defect=True), part(product, 1, warmer=40)}) == 4
    assert decode(part(product, 1)).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_detector_finds_the_drawn_defects(product: str) -> None:
    detector = build("padim", size=64)
    for n in range(20):
        detector.learn(embed_image(detector, part(product, n)))

    def scores(defect: bool) -> list[float]:
        parts = [part(product, n, defect) for n in range(20, 25)]
        return [float(detector.score(embed_image(detector, one)).image[0]) for one in parts]

    assert np.median(scores(defect=True)) > max(scores(defect=False))


def test_a_warmer_light_is_more_red_and_less_blue() -> None:
    cold, warm = (decode(part("cloth", 1, warmer=by)).mean((0, 1)) for by in (0, 30))
    assert warm[0] - cold[0] > 20 and cold[2] - warm[2] > 20


def test_a_stream_begins_with_good_parts_and_ends_with_a_defect_or_in_another_light() -> None:
    caps, cloth = stream("caps", 30), stream("cloth", 30, warmer=40)
    assert [n for n, sent in enumerate(caps) if sent.defect] == [27, 29]
    assert not any(sent.defect for sent in cloth)
    assert cloth[0].data == part("cloth", 1) and cloth[-1].data == part("cloth", 30, warmer=40)
    assert len({sent.id for sent in caps + cloth}) == 60


def test_a_picture_becomes_small_and_keeps_its_size_and_looks() -> None:
    ramp = np.linspace(0, 255, 300).astype(np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], np.uint8(128)), -1)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "png")
    again = Image.open(io.BytesIO(small(out.getvalue())))
    assert (again.mode, again.size, again.format) == ("P", (300, 300), "PNG")
    assert abs(np.asarray(again.convert("RGB")).astype(int) - pixels).mean() < 6


def test_the_command_writes_two_pictures_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    Image.new("RGB", (40, 30)).save(out, "png")
    for name in ("served", "send", "opened"):
        monkeypatch.setattr(module, name, mock.create_autospec(getattr(module, name)))
    monkeypatch.setattr(module, "part", lambda *_: b"")
    taken = mock.create_autospec(module.look, return_value={"page-lines.png": out.getvalue()})
    monkeypatch.setattr(module, "look", taken)
    ran = CliRunner().invoke(screenshots, ["--out", str(tmp_path / "new"), "--images", "100"], catch_exceptions=False)
    assert "page-lines.png: 40 x 30 pixels" in ran.output
    with Image.open(tmp_path / "new" / "page-lines.png") as written:
        assert written.size == (40, 30)
    assert taken.call_args.args[2:] == (["boards", "caps", "cloth", "tiles"], "caps", "caps-0100")


@pytest.mark.parametrize("missing", ["Playwright", "Chromium"])
def test_the_command_says_what_it_misses_before_anything_starts(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None if missing == "Chromium" else "/bin/true")
    if missing == "Playwright":
        monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    monkeypatch.setattr(module, "served", lambda *_: pytest.fail("a fleet was started"))
    ran = CliRunner().invoke(screenshots, [])
    assert missing in str(ran.exception) and "install" in str(ran.exception)
