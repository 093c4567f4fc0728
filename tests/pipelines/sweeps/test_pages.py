"""A sweep's tables, diagrams and page: what stands where, and that nothing from outside is more than text."""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from everline.pipelines.records.continued import Continued
from everline.pipelines.records.curves import svg
from everline.pipelines.records.report import render
from everline.pipelines.records.results import Result
from everline.pipelines.sweeps.diagrams import against_bytes, against_memory, of_trial, over_stream
from everline.pipelines.sweeps.pages import (
    MOST_BYTES,
    MOST_PANELS,
    by_memory,
    counted,
    memory_markdown,
    page,
    panels,
    tables,
)
from everline.pipelines.sweeps.record import Item, TrialRecord
from everline.platform.pictures import png

Made = Callable[..., Any]
HOSTILE = "\"'><script>alert(1)</script><img src=http://x.example/y onerror=z>"
SIZES = {100: 0.5, 300: 0.946, 800: 0.95}
PICTURE = png(np.zeros((4, 4, 3), np.uint8))


@pytest.fixture
def sized(trial: Made, outcome: Made) -> Any:
    """Three memory sizes with held-out figures of two, another method, a failed trial and a stopped one."""
    records = [trial(n, n, at, memory=size, size=size * 1000) for n, (size, at) in enumerate(SIZES.items())]
    records += [trial(3, 1, 0.7, memory=300, phase="held-out"), trial(4, 2, 0.75, memory=800, phase="held-out")]
    records += [trial(5, 5, 0.6, method="padim", params={"floor": 0.5}, ms=1.0, size=9_000_000)]
    records += [trial(6, 6, status="failed", error="first\nsecond " + "x" * 500), trial(7, 7, status="stopped")]
    return outcome(*records)


def test_the_best_stand_first_and_failures_last_on_one_line(sized: Any) -> None:
    best, front, memory, failed = tables(sized)
    assert [row[0] for row in best.rows] == ["coreset 800", "coreset 300", "padim floor=0.5", "coreset 100"]
    assert best.columns[:3] == ["configuration", "image\nAUROC", "held-out\nimage\nAUROC"]
    assert best.rows[1][1:3] == ["0.946", "0.700"] and best.rows[2][2] is None
    assert {row[0] for row in front.rows} == {"coreset 800", "coreset 300", "padim floor=0.5", "coreset 100"}
    assert len(memory.rows) == 3 and failed.rows[0][0] == "6 coreset on bolt"
    assert "\n" not in failed.rows[0][1] and len(failed.rows[0][1]) == 200


def test_by_memory_says_which_size_is_enough(sized: Any) -> None:
    table = by_memory(sized)
    column = {name: [row[n] for row in table.rows] for n, name in enumerate(table.columns)}
    assert column["memory"] == [100, 300, 800] and column["enough"] == [None, "enough", None]
    assert column["MB"] == ["0.10", "0.30", "0.80"] and column["ms/img"] == ["20.0"] * 3
    assert "0.005" in table.note and "search images" in table.note


def test_the_markdown_of_memory_has_a_row_for_each_size(sized: Any, trial: Made, outcome: Made) -> None:
    text = memory_markdown(sized)
    assert len(re.findall(r"^\| coreset \|", text, re.M)) == 3 and "| coreset | 300 | 0.946 | 0.700 |" in text
    assert memory_markdown(outcome(trial(0, 0))) == ""


def test_columns_that_nobody_has_are_left_out(trial: Made, outcome: Made) -> None:
    (best, _) = tables(outcome(trial(0, 0, aupro=float("nan"))))
    assert best.columns == ["configuration", "image\nAUROC", "MB", "ms/img"]


def test_seeds_show_their_deviation(trial: Made, outcome: Made) -> None:
    (best, _) = tables(outcome(trial(0, 0, 0.5, by_seed=(0.25, 0.75)), seeds=2))
    assert best.rows[0][1] == "0.500 ± 0.354"


def test_each_task_has_its_best_trial(trial: Made, outcome: Made) -> None:
    records = [trial(0, 0, 0.5), trial(1, 0, 0.9, task="nut"), trial(2, 1, 0.6), trial(3, 1, 0.7, task="nut")]
    made = tables(outcome(*records, images={"bolt": "1", "nut": "2"}))[-1]
    assert [(row[0], row[2]) for row in made.rows] == [("bolt", "0.600"), ("nut", "0.900")]


def test_nothing_done_is_a_page_too(outcome: Made) -> None:
    assert tables(outcome()) == [] and "0 of 0 trials" in render(page(outcome(finished=False)))


def test_how_far_it_came_is_counted(sized: Any, outcome: Made) -> None:
    assert counted(sized) == "6 of 8 trials in 12 s, 1 stopped early, 1 failed."
    assert "interrupted" in counted(outcome(finished=False))


def test_the_diagram_against_memory_is_labelled_at_the_sizes(sized: Any) -> None:
    curve = against_memory(sized, held=False)
    assert curve.series == {"coreset": [(float(size), at) for size, at in SIZES.items()]}
    texts = ["".join(one.itertext()) for one in ET.fromstring(svg(curve)).iter("{http://www.w3.org/2000/svg}text")]
    assert {"100", "300", "800", "enough: coreset"} <= set(texts) and "256" not in texts
    assert against_memory(sized, held=True).series == {"coreset": [(300.0, 0.7), (800.0, 0.75)]}


def test_no_sizes_are_no_diagram(trial: Made, outcome: Made) -> None:
    one = outcome(trial(0, 0, memory=100))
    assert against_memory(one, held=False) is None and against_bytes(one) is None


def test_every_configuration_is_a_dot(sized: Any) -> None:
    curve = against_bytes(sized)
    assert set(curve.dots) == {"coreset", "padim"} and curve.doubling
    assert curve.series["padim"] == [(9.0, 0.6)] and len(curve.series["coreset"]) == 3


def test_the_stream_is_drawn_for_the_best_of_each_method_and_task(trial: Made, outcome: Made) -> None:
    records = [trial(0, 0, 0.5), trial(1, 0, 0.9, task="nut"), trial(2, 1, 0.4), trial(3, 1, 0.7, task="nut")]
    curves = over_stream(outcome(*records, images={"bolt": "1", "nut": "2"}))
    assert [curve.title for curve in curves] == ["bolt", "nut"]
    assert curves[0].series == {"coreset": [(1, 0.4), (2, 0.45), (4, 0.475)]}


def test_a_sequence_is_drawn_by_its_steps(
    outcome: Made, sequence: Callable[..., Continued], record: Callable[..., Result]
) -> None:
    one = TrialRecord(Item(0, 0, "padim", None, {}, ""), "0" * 64, "complete", 0.5, record(sequence()))
    made = outcome(one, protocol="continual", images=dict.fromkeys("abc", "1"))
    assert [len(curve.series["padim"]) for curve in over_stream(made)] == [3, 3]
    assert of_trial(one).x_label == "step" and "sequence of 3 tasks" in render(page(made))


def test_a_trial_without_a_curve_is_not_drawn(trial: Made) -> None:
    assert of_trial(trial(0, 0, status="failed")) is None
    assert of_trial(trial(0, 0)).series["bolt"][-1] == (4.0, 0.475)


def test_heatmaps_of_the_best_of_each_method_are_shown_held_out_first(sized: Any, tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    by_number = {one.item.number: one for one in sized.records}
    for number, ground in ((2, 0), (4, 9), (5, 7), (0, 1)):
        picture = png(np.full((4, 4, 3), ground, np.uint8))
        (tmp_path / "trials" / f"{by_number[number].stem}.png").write_bytes(picture)
    shown = [np.asarray(read(panel.png))[0, 0, 0] for panel in panels(sized, tmp_path)]
    assert shown == [9, 7]  # of the best coreset (800) the held-out one, and padim's


@pytest.mark.parametrize("content", [b"<svg onload=alert(1)>", b"\x89PNG\r\n" + b"x" * MOST_BYTES, b""])
def test_a_file_that_is_no_small_picture_is_not_shown(
    content: bytes, trial: Made, outcome: Made, tmp_path: Path
) -> None:
    one = trial(0, 0)
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / f"{one.stem}.png").write_bytes(content)
    assert panels(outcome(one), tmp_path) == []


def test_no_page_has_pictures_without_end(trial: Made, outcome: Made, tmp_path: Path) -> None:
    names = [f"t{n}" for n in range(MOST_PANELS + 3)]
    records = [trial(n, 0, task=name) for n, name in enumerate(names)]
    (tmp_path / "trials").mkdir()
    for one in records:
        (tmp_path / "trials" / f"{one.stem}.png").write_bytes(PICTURE)
    made = page(outcome(*records, images=dict.fromkeys(names, "1")), tmp_path)
    assert len(made.panels) == MOST_PANELS == render(made).count('class="panel"')


class Tags(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))


def test_hostile_names_stay_text_on_a_page_that_asks_nobody(trial: Made, outcome: Made, tmp_path: Path) -> None:
    records = [trial(n, n, 0.5 + n / 10, task=HOSTILE, memory=100 * n, params={"x": HOSTILE}) for n in (1, 2)]
    records += [trial(3, 3, task=HOSTILE, status="failed", error=HOSTILE)]
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials" / f"{records[1].stem}.png").write_bytes(PICTURE)
    made = outcome(*records, images={HOSTILE: "1"})
    tags = Tags(render(page(made, tmp_path))).found
    assert not [tag for tag, attrs in tags if tag == "script" or "onerror" in attrs]
    asked = [attrs[key] for _, attrs in tags for key in ("src", "href") if key in attrs]
    assert len(asked) == 1 and str(asked[0]).startswith("data:image/png;base64,")
    assert "<script" not in memory_markdown(made)


def read(data: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(data))
