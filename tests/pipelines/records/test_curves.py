"""Curves: XML that parses, values in their places, nothing lost by thinning, hostile names harmless."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from everline.methods.errors import ConfigError
from everline.pipelines.records.curves import (
    HEIGHT,
    MOST_POINTS,
    Curve,
    _domain,
    _mark_rows,
    _thinned,
    _ticks,
    described,
    svg,
)

NS = "{http://www.w3.org/2000/svg}"


def _curve(series, **options):
    return Curve("Quality", "images", "AUROC", series, **options)


def _paths(curve):
    plot = ET.fromstring(svg(curve)).find(f"{NS}svg")
    return [path.get("d") for path in plot.iter(f"{NS}path")]


def _texts(curve):
    return ["".join(text.itertext()) for text in ET.fromstring(svg(curve)).iter(f"{NS}text")]


def _places(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_values_land_where_the_axes_say():
    places = _places(_paths(_curve({"a": [(0, 0), (5, 0.5), (10, 1)]}, y_range=(0, 1)))[0])
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (y0, y1, y2) == (HEIGHT, HEIGHT / 2, 0)
    assert x0 == 0 and x1 == pytest.approx(x2 / 2, abs=0.1)


def test_a_gap_breaks_the_line_and_a_lone_point_is_a_dot():
    path = _paths(_curve({"a": [(0, 1), (1, 2), (2, float("nan")), (3, 2), (4, float("inf")), (5, 3), (6, 3)]}))[0]
    assert path.count("M") == 3 and path.count("L") == 2 and path.count("h0") == 1


def test_names_from_outside_are_text_and_never_markup():
    hostile = "</svg><script>alert(1)</script>&\x00\ud800"
    drawing = svg(Curve(hostile, hostile, hostile, {hostile: [(0, 1), (1, 2)]}, markers={hostile: 0.5}))
    assert "<script" not in drawing
    assert drawing.encode("utf-8") and ET.fromstring(drawing).tag == f"{NS}svg"


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(1, 1)],
        [(0, 0), (0, 0)],
        [(float("nan"), 1)],
        [(1e300, 1), (2, 2)],
        [(1e9, 1e-12), (1e9 + 1, 2e-12)],
        [(-5, -1e12), (5, 1e12)],
        [(0, 0.1), (1, 0.1 + 1e-17)],
    ],
)
def test_any_values_give_a_drawing_without_nan(points):
    drawing = svg(_curve({"a": points}))
    assert ET.fromstring(drawing) is not None
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', drawing.replace(described(_curve({"a": points})), ""))


def test_nothing_to_draw_says_so():
    assert "no values yet" in _texts(_curve({})) and "no values yet" in _texts(_curve({"a": []}))
    assert "no values yet" not in _texts(_curve({"a": [(0, 1)]}))


def test_a_long_series_is_thinned_and_keeps_its_peaks_ends_and_gap():
    points = np.column_stack([np.arange(50_000.0), np.random.default_rng(0).random(50_000)])
    points[31_234, 1], points[777, 1], points[40_000, 1] = 9.0, -9.0, np.nan
    thin = _thinned(points)
    assert len(thin) <= MOST_POINTS
    assert {9.0, -9.0} <= set(thin[:, 1]) and np.isnan(thin[:, 1]).sum() == 1
    assert (thin[0] == points[0]).all() and (thin[-1] == points[-1]).all()
    assert (np.diff(thin[:, 0]) > 0).all()


def test_a_drawing_stays_small_however_long_the_stream():
    rng = np.random.default_rng(0)
    series = {name: list(zip(range(20_000), rng.random(20_000).tolist(), strict=True)) for name in "abc"}
    assert len(svg(_curve(series))) < 60_000


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 4983), (-3e-5, 2e-5), (0.9312, 0.9977), (1e6, 1e6 + 3), (0, 2e12)]
)
def test_ticks_are_inside_evenly_spaced_and_told_apart(low, high):
    values, labels = zip(*_ticks(low, high, 6), strict=True)
    assert 2 <= len(values) <= 8 and len(set(labels)) == len(labels)
    slack = 1e-5 * (high - low)
    assert min(values) >= low - slack and max(values) <= high + slack
    assert np.diff(values) == pytest.approx(values[1] - values[0])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.9, 1), (0, 2.5), (-250, 250), (0, 12.5)])
def test_tick_labels_say_the_tick(low, high):
    for value, label in _ticks(low, high, 5):
        assert float(label.replace(",", "")) == pytest.approx(value, abs=1e-9)


def test_one_value_gets_a_domain_with_room_on_both_sides():
    low, high = _domain([np.array([3.0, np.nan, 3.0])])
    assert low < 3 < high


def test_marks_close_together_stand_in_rows_of_their_own():
    rows = _mark_rows({"killed": 100.0, "restarted": 104.0, "far away": 400.0})
    assert rows["killed"] != rows["restarted"]
    assert {"killed", "drift"} <= set(_texts(_curve({"a": [(0, 1), (9, 2)]}, markers={"killed": 3, "drift": 3.1})))


def test_series_differ_by_dash_where_they_share_a_colour():
    drawing = ET.fromstring(svg(_curve({str(n): [(x, n) for x in range(40)] for n in range(12)})))
    paths = drawing.find(f"{NS}svg").iter(f"{NS}path")
    looks = [(path.get("stroke"), path.get("stroke-dasharray")) for path in paths]
    assert len(looks) == 12 == len(set(looks))


def test_a_series_of_dots_has_no_line():
    paths = _paths(_curve({"scores": [(n, n % 3) for n in range(100)]}, dots={"scores"}))
    assert len(paths) == 1 and paths[0].count("h0") == 100 and "L" not in paths[0]


def test_many_dots_keep_their_distribution():
    rng = np.random.default_rng(0)
    points = list(zip(range(20_000), rng.random(20_000).tolist(), strict=True))
    heights = np.array([y for _, y in _places(_paths(_curve({"a": points}, y_range=(0, 1), dots={"a"}))[0])])
    shares = np.histogram(heights, bins=5, range=(0, HEIGHT))[0] / len(heights)
    assert shares == pytest.approx(0.2, abs=0.02) and len(heights) < 13_000


def test_the_drawing_tells_its_values_in_words():
    words = ET.fromstring(svg(_curve({"a": [(0, 0.5), (9, 0.75)], "b": []}, markers={"killed": 4}))).get("aria-label")
    assert "a: 0.5 at 0, 0.75 at 9." in words and "b: no values." in words and "Mark killed at 4." in words


def test_a_range_upside_down_and_points_that_are_no_pairs_are_refused():
    with pytest.raises(ConfigError, match="y_range"):
        _curve({}, y_range=(1.0, 0.0))
    with pytest.raises(ConfigError, match="pairs"):
        svg(_curve({"a": [(1, 2, 3)]}))


def test_doubling_places_powers_of_two_at_equal_steps():
    curve = _curve(
        {"a": [(1, 0), (2, 0.5), (4, 1), (0, 0.5), (-1, 0.5)]}, y_range=(0, 1), markers={"half": 2}, doubling=True
    )
    places = _places(_paths(curve)[0])
    assert len(places) == 3 and places[1][0] == pytest.approx(places[2][0] / 2, abs=0.1)
    assert _texts(curve)[:1] == ["a"] and [text for text in _texts(curve) if text in "124"] == ["1", "2", "4"]
    mark = next(line for line in ET.fromstring(svg(curve)).iter(f"{NS}line") if line.get("class") == "mark")
    plot = ET.fromstring(svg(curve)).find(f"{NS}svg")
    assert float(mark.get("x1")) == pytest.approx(float(plot.get("x")) + 5 + places[1][0], abs=0.2)


def test_a_long_doubling_axis_has_few_labels():
    labels = [text for text in _texts(_curve({"a": [(1, 0), (2**40, 1)]}, doubling=True)) if text]
    assert len(labels) < 25 and "16" in labels


def test_labels_stand_where_they_are_asked_for():
    points = {"a": [(100, 0.1), (300, 0.2), (800, 0.3)]}
    texts = _texts(_curve(points, doubling=True, ticks=(800, 100, 300)))
    assert {"100", "300", "800"} <= set(texts) and not {"128", "256"} & set(texts)


def test_labels_that_would_touch_or_lie_outside_are_left_out():
    texts = _texts(_curve({"a": [(1000, 0.1), (9000, 0.2)]}, ticks=(500, 1000, 1001, 9000)))
    assert "1,000" in texts and "9,000" in texts and not {"500", "1,001"} & set(texts)
