"""The report: one well-formed file that needs nothing else, escapes what it is given, says wrong in words."""

import base64
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from everline.methods.errors import ConfigError, DataError, UnknownName
from everline.pipelines.records.curves import Curve
from everline.pipelines.records.report import (
    Gallery,
    Heat,
    Panel,
    Picture,
    Report,
    Table,
    column,
    render,
    write_report,
)
from PIL import Image

VOID = {"meta", "img", "br", "link", "input", "hr"}
HOSTILE = "\"'><script>alert(1)</script><img src=http://x.example/y onerror=z>"


class Page(HTMLParser):
    """Collects what a test asks about, and fails on a tag that closes wrongly."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def _picture(seed=0, caption="a tile", **options):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)
    return Picture(image, rng.random((8, 6), np.float32), caption, 1.25, **options)


def _report(text="plain"):
    return Report(
        text,
        text + "\n\nSecond paragraph",
        [Table(text, [text, "n"], [[text, 3], [None, 0.5]], text)],
        [Curve(text, text, text, {text: [(0, 1), (1, 2)]}, markers={text: 0.5}, note=text)],
        [Gallery(text, [_picture(caption=text, mask=np.eye(8), threshold=1.0, verdict="reject", truth="ok")], text)],
        text,
    )


def test_a_page_is_well_formed_and_holds_each_part():
    page = Page(render(_report()))
    assert [len(page.all(tag)) for tag in ("table", "h1", "figure", "svg", "footer")] == [1, 1, 2, 2, 1]
    assert "Second paragraph" in page.text


def test_an_empty_report_is_a_page():
    page = Page(render(Report("Nothing yet", galleries=[Gallery("None", [])], tables=[Table("T", ["a"], [])])))
    assert "Nothing yet" in page.text and not page.all("img")


def test_what_comes_from_outside_stays_text():
    page = Page(render(_report(HOSTILE)))
    assert not page.all("script") and not any("onerror" in attrs for _, attrs in page.tags)
    assert [attrs["alt"] for attrs in page.all("img")][1].startswith(HOSTILE)
    assert page.text.count("alert(1)") >= 8


def test_a_page_asks_nobody_for_anything():
    page = Page(render(_report(HOSTILE)))
    asked = [
        attrs[key] for _, attrs in page.tags for key in ("src", "href", "xlink:href", "data", "action") if key in attrs
    ]
    assert len(asked) == 3 and all(address.startswith("data:image/") for address in asked)
    assert not page.all("link") and not re.search(r"@import|url\(", render(_report()))
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")


def test_every_image_has_words_and_decodes_to_its_stated_size():
    page = Page(render(_report()))
    for attrs in page.all("img"):
        assert attrs["alt"]
        shown = Image.open(BytesIO(base64.b64decode(attrs["src"].partition(",")[2], validate=True)))
        shown.load()
        assert "width" not in attrs or shown.size == (int(attrs["width"]), int(attrs["height"]))


@pytest.mark.parametrize(
    ("verdict", "truth", "outcome"),
    [
        ("pass", "ok", "correct"),
        ("reject", "defect", "correct"),
        ("reject", "ok", "false reject"),
        ("pass", "defect", "missed defect"),
        ("pass", "", ""),
        ("", "ok", ""),
    ],
)
def test_the_outcome_is_said_in_words(verdict, truth, outcome):
    picture = _picture(verdict=verdict, truth=truth)
    page = Page(render(Report("r", galleries=[Gallery("g", [picture])])))
    assert picture.outcome == outcome
    assert f"✗ {outcome}" in page.text or outcome in ("", "correct")
    assert ("✓ correct" in page.text) == (outcome == "correct")
    assert any(attrs.get("class") == "picture wrong" for attrs in page.all("figure")) == (
        outcome[-6:] in ("reject", "defect")
    )


def test_a_verdict_that_is_none_is_refused_by_name():
    with pytest.raises(UnknownName, match="did you mean reject"):
        _picture(verdict="rejected")
    with pytest.raises(UnknownName, match="truth"):
        _picture(truth="good")


def test_one_scale_serves_the_whole_gallery():
    calm, wild = np.full((8, 8), 0.2, np.float32), np.full((8, 8), 5.0, np.float32)
    image = np.full((8, 8, 3), 90, np.uint8)
    pair = [Picture(image, calm, "calm", 0.2, truth="ok"), Picture(image, wild, "wild", 5.0, truth="defect")]
    shown = [attrs["src"] for attrs in Page(render(Report("r", galleries=[Gallery("g", pair)]))).all("img")]
    assert Gallery("g", pair).range() == pytest.approx((0.2, 5.0))
    assert shown[1] == shown[3] and shown[2] != shown[4]  # the first is the scale itself


def test_a_scale_ignores_what_is_not_finite_and_can_be_given():
    maps = [np.array([[np.nan, np.inf], [1.0, 3.0]])]
    picture = Picture(np.zeros((2, 2, 3), np.uint8), maps[0], "odd", float("nan"))
    low, high = Gallery("g", [picture]).range()
    assert (low, high) == pytest.approx((2.0, 3.0), abs=0.01)
    assert Gallery("g", [picture], scale=(0.0, 9.0)).range() == (0.0, 9.0)
    assert Gallery("g", [Picture(picture.image, np.full((2, 2), np.nan), "none", 0.0)]).range() == (0.0, 1.0)
    assert "score –" in Page(render(Report("r", galleries=[Gallery("g", [picture])]))).text


def test_a_column_shows_its_numbers_alike():
    assert column([0.98123, 0.9, None, float("nan")]) == ["0.9812", "0.9000", "–", "–"]
    assert column([14.2, 15.0, 12345.6]) == ["14.2", "15", "12,346"]
    assert column([1200, True, False, "x", None]) == ["1,200", "yes", "no", "x", "–"]
    assert column([0.0, 2.5, float("inf")]) == ["0.0", "2.5", "inf"]
    assert column([1e-9, 0.5]) == ["1e-09", "0.5"]


def test_figures_with_their_deviation_are_set_to_the_right():
    table = Table(
        "t", ["name", "figure", "text"], [["a", "0.912 ± 0.013", "0.5"], ["b", "+0.125", "half"], ["c", None, "-"]]
    )
    head = [
        attrs.get("class")
        for attrs in Page(render(Report("r", tables=[table]))).all("th")
        if attrs.get("scope") == "col"
    ]
    assert head == [None, "number", None]


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(ConfigError, match="row 1 has 1 cells for 2 columns"):
        Table("t", ["a", "b"], [[1, 2], [3]])


def test_thirty_large_pictures_stay_below_a_megabyte_and_a_half():
    noise = np.random.default_rng(0).integers(0, 256, (75, 75, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(noise).resize((900, 900), Image.Resampling.BICUBIC))
    many = [Picture(image, np.random.default_rng(1).random((28, 28)), str(n), 1.0) for n in range(30)]
    assert len(render(Report("r", galleries=[Gallery("g", many)]))) < 1_500_000


def test_writing_replaces_the_page_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "deep" / "report.html"
    assert write_report(_report("first"), path) == path
    write_report(_report("second"), str(path))
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert "second" in path.read_text("utf-8") and "first" not in path.read_text("utf-8")


def test_a_failed_write_keeps_the_old_page_and_cleans_up(tmp_path, monkeypatch):
    path = write_report(_report("old"), tmp_path / "report.html")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write_report(_report("new"), path)
    assert "old" in path.read_text("utf-8") and len(list(tmp_path.iterdir())) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))):
            write_report(_report(), path)


def test_the_template_travels_with_the_package():
    settings = (Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8")
    assert '"everline.pipelines.records" = ["templates/*.html"]' in settings


def test_a_heat_says_its_values_and_colours_them():
    heat = Heat("h", ["step 1", "step 2"], ["a", "b"], [[0.25, float("nan")], [0.0, 1.0]], "a note")
    page = Page(render(Report("r", heats=[heat])))
    cells = page.all("td")
    assert [attrs.get("style") for attrs in cells] == ["--share: 0.250", None, "--share: 0.000", "--share: 1.000"]
    assert "step 1 0.250 – step 2 0.000 1.000" in page.text and "a note" in page.text
    assert [attrs["scope"] for attrs in page.all("th") if "scope" in attrs] == ["col", "col", "row", "row"]


def test_a_heat_keeps_to_what_it_is_given():
    page = Page(render(Report("r", heats=[Heat(HOSTILE, [HOSTILE], [HOSTILE], [[0.5]], HOSTILE)])))
    assert not page.all("script") and not page.all("img") and page.text.count("alert(1)") == 4


def test_a_heat_is_a_table_too():
    table = Heat("h", ["x"], ["a", "b"], [[0.5, float("nan")]], "n").table("step")
    assert (table.columns, table.rows, table.note) == (["step", "a", "b"], [["x", "0.500", None]], "n")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[0.5]], "2 rows of 1"),
        ([[0.5], [0.5, 0.5]], "2 rows of 1"),
        ([[0.5], [1.5]], "got 1.5"),
        ([[-0.1], [0]], "-0.1"),
    ],
)
def test_a_heat_that_is_none_is_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        Heat("h", ["x", "y"], ["a"], values)


def test_a_panel_is_shown_as_it_was_made():
    made = BytesIO()
    Image.new("RGB", (3, 2)).save(made, "PNG")
    page = Page(render(Report("r", panels=[Panel(HOSTILE, made.getvalue(), HOSTILE)])))
    (attrs,) = page.all("img")
    assert base64.b64decode(attrs["src"].removeprefix("data:image/png;base64,")) == made.getvalue()
    assert attrs["alt"] == HOSTILE and page.text.count("alert(1)") == 2


def test_a_panel_that_is_no_png_is_refused():
    with pytest.raises(ConfigError, match="PNG"):
        Panel("p", b"<svg/>")
