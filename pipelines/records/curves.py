"""Curves as small inline SVG: axes, ticks, legend, marks. Told apart by colour and dash, readable without scripts."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...methods.errors import ConfigError

Points = NDArray[np.float64]  # (n, 2) x and y; NaN where there is no value

WIDTH, HEIGHT = 480, 230  # of the whole drawing and of its plot, in SVG units; the page scales it
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#008564",
    "#aa4499",
    "#7a6a00",
    "#3b8fc4",
)  # after Okabe and Ito, dark enough on white
DASHES = ("", "7 4", "2 3", "10 3 2 3")
MOST_POINTS = 1200  # drawn of one series; more cannot be seen at this size
_TOO_LARGE = 1e150  # the arithmetic of an axis stays finite below it
_LETTER = 6.6  # mean width of a letter at 12 units, on the wide side
_ROW = 18
_DOTS_UP_TO = 30  # points of a series that are also marked as dots
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Curve:
    """One diagram. `series`: name -> (x, y) points in drawing order, NaN breaks the line; `markers`: name -> x."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[tuple[float, float]]]
    y_range: tuple[float, float] | None = None  # None: what the points need
    markers: Mapping[str, float] = field(default_factory=dict)  # vertical marks such as 'killed'
    dots: Collection[str] = ()  # the series that are drawn as dots without a line, such as one score for each image
    note: str = ""
    doubling: bool = False  # x by powers of two, for points at 1, 2, 4, 8, ...; x of 0 and below is a gap
    ticks: Sequence[float] = ()  # where x is labelled, such as sizes that were tried; none: at round values

    def __post_init__(self) -> None:
        if self.y_range is not None and not (np.isfinite(self.y_range).all() and self.y_range[0] < self.y_range[1]):
            raise ConfigError(f"curve {self.title!r}: y_range is (low, high), low below high, not {self.y_range}.")


def svg(curve: Curve) -> str:
    """The curve as one <svg> element, well-formed XML, with everything from outside escaped."""
    series = {name: _points(curve, points) for name, points in curve.series.items()}
    along = zip(curve.markers, _along(curve, list(curve.markers.values())).tolist(), strict=True)
    marks = {name: x for name, x in along if abs(x) < _TOO_LARGE}
    xs = _domain([*(p[:, 0] for p in series.values()), np.array(list(marks.values()), np.float64)])
    ys = curve.y_range or _wide(_domain([p[:, 1] for p in series.values()]))
    x_ticks, y_ticks = _x_ticks(curve, *xs), list(_ticks(*ys, 5))
    left = 34 + _LETTER * max((len(label) for _, label in y_ticks), default=1)
    across = WIDTH - left - 16
    legend = list(_flow([48 + _LETTER * len(_short(name)) for name in series], WIDTH - 20))
    rows = max((row for row, _ in legend), default=-1) + 1
    tops = _mark_rows({name: (x - xs[0]) / (xs[1] - xs[0]) * across for name, x in marks.items()})
    top = 14 + _ROW * (rows + max(tops.values(), default=-1) + 1)
    root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "class": "curve", "role": "img"})
    root.set("viewBox", f"0 0 {WIDTH} {top + HEIGHT + 46}")
    root.set("font-size", "12")
    root.set("aria-label", _clean(described(curve)))
    _legend(root, list(series), legend, curve.dots)
    frame = _Frame(root, left, top, across, xs, ys)
    frame.axes(curve, x_ticks, y_ticks)
    frame.marks(marks, tops, 14 + _ROW * rows)
    frame.lines(series, curve.dots)
    return ET.tostring(root, encoding="unicode")


def picture(curve: Curve) -> str:
    """The curve as a file of its own, which has no page around it to give it colours: on white."""
    style = "text{fill:#1b1f24}.grid{stroke:#d5dae0}.axis,.mark{stroke:#565f6b}svg{background:#fff}"
    body = svg(curve)
    start = body.index(">") + 1
    return f'{body[: start - 1]} font-family="sans-serif"><style>{style}</style>{body[start:]}\n'


def described(curve: Curve) -> str:
    """The curve in words, for those who cannot see it: axes, and where each series starts and ends."""
    words = [f"{curve.title}. {curve.y_label} over {curve.x_label}."]
    for name, points in curve.series.items():
        known = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        if not known:
            words.append(f"{name}: no values.")
            continue
        (x0, y0), (x1, y1) = known[0], known[-1]
        words.append(f"{name}: {y0:.4g} at {x0:.6g}, {y1:.4g} at {x1:.6g}.")
    return " ".join(words + [f"Mark {name} at {x:.6g}." for name, x in curve.markers.items()])


class _Frame:
    """The plot area: turns values into places and draws into `root`."""

    def __init__(self, root: ET.Element, left: float, top: float, across: float, xs: tuple, ys: tuple) -> None:
        self.root, self.left, self.top, self.across, self.xs, self.ys = root, left, top, across, xs, ys

    def place(self, points: Points) -> Points:
        """(n, 2) values -> (n, 2) places inside the plot."""
        (x0, x1), (y0, y1) = self.xs, self.ys
        return np.column_stack(
            [(points[:, 0] - x0) / (x1 - x0) * self.across, (y1 - points[:, 1]) / (y1 - y0) * HEIGHT]
        )

    def axes(self, curve: Curve, x_ticks: list, y_ticks: list) -> None:
        """Grid lines with their numbers, the two axes, their names."""
        left, bottom, right = self.left, self.top + HEIGHT, self.left + self.across
        for value, label in y_ticks:
            y = self.top + self.place(np.array([[self.xs[0], value]]))[0, 1]
            _line(self.root, "grid", left, y, right, y)
            _text(self.root, label, left - 7, y + 4, "end")
        for value, label in x_ticks:
            x = left + self.place(np.array([[value, self.ys[0]]]))[0, 0]
            _line(self.root, "axis", x, bottom, x, bottom + 5)
            _text(self.root, label, x, bottom + 19, "middle")
        _line(self.root, "axis", left, bottom, right, bottom)
        _line(self.root, "axis", left, self.top, left, bottom)
        _text(self.root, curve.x_label, (left + right) / 2, bottom + 39, "middle")
        name = _text(self.root, curve.y_label, 0, 0, "middle")
        name.set("transform", f"translate(13 {self.top + HEIGHT / 2:.1f}) rotate(-90)")

    def marks(self, marks: Mapping[str, float], rows: Mapping[str, int], top: float) -> None:
        """Vertical lines with their names above the plot."""
        for name, value in marks.items():
            x = self.left + self.place(np.array([[value, self.ys[0]]]))[0, 0]
            y = top + _ROW * rows[name]
            _line(self.root, "mark", x, y - 10, x, self.top + HEIGHT, dash="3 3")
            leftward = x - self.left > self.across * 0.6
            _text(self.root, _short(name), x + (-5 if leftward else 5), y, "end" if leftward else "start")

    def lines(self, series: Mapping[str, Points], dots: Collection[str]) -> None:
        """The series, cut off at the edge of the plot."""
        edge = 5  # so that a dot on the edge stays whole
        box = {
            "x": self.left - edge,
            "y": self.top - edge,
            "width": self.across + 2 * edge,
            "height": HEIGHT + 2 * edge,
        }
        plot = ET.SubElement(self.root, "svg", {key: f"{value:.1f}" for key, value in box.items()})
        plot.set("viewBox", f"{-edge} {-edge} {box['width']:.1f} {box['height']:.1f}")
        plot.set("overflow", "hidden")  # a nested svg clips without an id, and ids would clash between curves
        for number, (name, points) in enumerate(series.items()):
            places = _visible(self.place(points)) if name in dots else self.place(_thinned(points))
            if name not in dots:
                ET.SubElement(plot, "path", _look(number) | {"d": _path(places), "fill": "none"})
            if name in dots or len(places) <= _DOTS_UP_TO:
                look = _look(number, dash="", width="7" if len(places) <= _DOTS_UP_TO else "4")
                ET.SubElement(plot, "path", look | {"d": _path(places, dots=True), "fill": "none"})
        if not any(np.isfinite(points).all(axis=1).any() for points in series.values()):
            _text(self.root, "no values yet", self.left + self.across / 2, self.top + HEIGHT / 2, "middle")


def _along(curve: Curve, xs: Sequence[float] | NDArray) -> NDArray[np.float64]:
    """Where values of x stand on the axis: at themselves or, doubling, at their logarithms."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log2(np.asarray(xs, np.float64)) if curve.doubling else np.asarray(xs, np.float64)


def _x_ticks(curve: Curve, low: float, high: float) -> list[tuple[float, str]]:
    """Places on the axis with their labels; of those asked for, the ones that leave the one before room."""
    if not curve.ticks:
        return list((_doublings if curve.doubling else _ticks)(low, high, 6))
    kept: list[tuple[float, str]] = []
    for place, value in zip(_along(curve, sorted(curve.ticks)).tolist(), sorted(curve.ticks), strict=True):
        label = f"{value:,.6g}"
        room = _LETTER * (len(label) + 1) / WIDTH * (high - low)
        if low <= place <= high and (not kept or place - kept[-1][0] >= room):
            kept.append((place, label))
    return kept


def _points(curve: Curve, points: Sequence[tuple[float, float]]) -> Points:
    """Pairs -> (n, 2); a pair that cannot be drawn becomes NaN, that is, a gap."""
    array = np.array(points, np.float64).reshape(-1, 2) if len(points) == 0 else np.array(points, np.float64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ConfigError(f"curve {curve.title!r}: a series is a list of (x, y) pairs, not of shape {array.shape}.")
    array[:, 0] = _along(curve, array[:, 0])
    array[~(np.abs(array) < _TOO_LARGE).all(axis=1)] = np.nan
    return array


def _thinned(points: Points) -> Points:
    """At most MOST_POINTS: of each run of neighbours the first, lowest, highest, last. Peaks and gaps stay."""
    if len(points) <= MOST_POINTS:
        return points
    kept = []
    for run in np.array_split(np.arange(len(points)), MOST_POINTS // 5):
        y = points[run, 1]
        gap = np.flatnonzero(np.isnan(y))[:1]
        known = [] if len(gap) == len(run) or np.isnan(y).all() else [np.nanargmin(y), np.nanargmax(y)]
        kept.append(run[np.unique([0, len(run) - 1, *known, *gap])])
    return points[np.concatenate(kept)]


def _visible(places: Points) -> Points:
    """One dot of each 3 x 3 units, in order: dots are wider, so no other would show. (`_thinned` favours extremes.)"""
    known = places[np.isfinite(places).all(axis=1)]
    cells = np.floor(np.clip(known, -30, 2 * WIDTH) / 3)
    return known[np.sort(np.unique(cells, axis=0, return_index=True)[1])]


def _path(places: Points, dots: bool = False) -> str:
    """SVG path data; a lone point between gaps becomes a dot (a line of no length with round ends)."""
    known: NDArray[np.bool_] = np.asarray(np.isfinite(places).all(axis=1))
    after = np.append(known, False)[1:]
    parts, pen_up = [], True
    for (x, y), here, joined in zip(places.tolist(), known.tolist(), after.tolist(), strict=True):
        if here:
            lone = dots or (pen_up and not joined)
            parts.append(f"{'M' if pen_up or dots else 'L'}{x:.1f} {y:.1f}{'h0' if lone else ''}")
        pen_up = not here
    return "".join(parts)


def _domain(values: Sequence[NDArray]) -> tuple[float, float]:
    """Lowest and highest known value, made wider where they are one; (0, 1) where there is none."""
    known = np.concatenate([*values, np.empty(0)])
    known = known[np.isfinite(known)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    least = max(abs(low), abs(high)) * 1e-9
    if high - low > least:
        return low, high
    pad = max(abs(low) * 0.05, least) or 0.5
    return low - pad, high + pad


def _step(low: float, high: float, wanted: int) -> float:
    """The round distance (1, 2, 2.5, 5 times a power of ten) that gives at most about `wanted` ticks."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= raw * 0.999)


def _wide(domain: tuple[float, float]) -> tuple[float, float]:
    """The domain out to the next round values."""
    step = _step(*domain, 5)
    return math.floor(domain[0] / step + 1e-6) * step, math.ceil(domain[1] / step - 1e-6) * step


def _ticks(low: float, high: float, wanted: int) -> Iterator[tuple[float, str]]:
    """Round values inside low..high with their labels."""
    step = _step(low, high, wanted)
    digits = max(0, -math.floor(math.log10(step) + 1e-9) + (step / 10 ** math.floor(math.log10(step)) % 1 > 0.1))
    plain = digits <= 6 and max(abs(low), abs(high)) < 1e7
    for number in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1):
        value = number * step
        yield value, f"{value:,.{digits}f}" if plain else f"{value:.6g}"


def _doublings(low: float, high: float, wanted: int) -> Iterator[tuple[float, str]]:
    """Powers of two inside 2**low..2**high with their labels, at most about twice as many as are wanted."""
    step = max(1, math.ceil((high - low) / (2 * wanted)))
    for power in range(math.ceil(low - 1e-6), math.floor(high + 1e-6) + 1, step):
        yield power, f"{2.0**power:,.6g}"


def _flow(widths: Sequence[float], total: float) -> Iterator[tuple[int, float]]:
    """(row, x) for things of these widths laid out like words."""
    row, x = 0, 0.0
    for width in widths:
        if x and x + width > total:
            row, x = row + 1, 0.0
        yield row, x
        x += width


def _mark_rows(places: Mapping[str, float]) -> dict[str, int]:
    """name -> row, so that no two names above the plot touch; places from the left edge of the plot."""
    free: list[float] = []  # where each row is free from, left to right
    rows = {}
    for name, x in sorted(places.items(), key=lambda item: item[1]):
        wide = 12 + _LETTER * len(_short(name))
        row = next((row for row, start in enumerate(free) if x - wide >= start), len(free))
        free[row : row + 1] = [x + wide]
        rows[name] = row
    return rows


def _legend(root: ET.Element, names: Sequence[str], flow: Sequence[tuple[int, float]], dots: Collection[str]) -> None:
    for number, (name, (row, x)) in enumerate(zip(names, flow, strict=True)):
        y = 14 + _ROW * row
        look = _look(number, dash="", width="7") if name in dots else _look(number)
        place = f"M{x + 22:.1f} {y - 4}h0" if name in dots else f"M{x + 10:.1f} {y - 4}h18"
        ET.SubElement(root, "path", look | {"d": place, "fill": "none"})
        _text(root, _short(name), x + 33, y, "start")


def _look(number: int, dash: str | None = None, width: str = "2.25") -> dict[str, str]:
    """Colour and dash of a series; the class lets the page choose lighter colours on a dark ground."""
    colour = number % len(COLOURS)
    dash = DASHES[(number + number // len(COLOURS)) % len(DASHES)] if dash is None else dash
    look = {"class": f"s{colour}", "stroke": COLOURS[colour], "stroke-width": width}
    look |= {"stroke-linecap": "butt" if dash else "round", "stroke-linejoin": "round"}
    return look | ({"stroke-dasharray": dash} if dash else {})


def _line(root: ET.Element, kind: str, x1: float, y1: float, x2: float, y2: float, dash: str = "") -> None:
    ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    element = ET.SubElement(root, "line", {key: f"{value:.1f}" for key, value in ends.items()})
    element.set("class", kind)
    element.set("stroke", "#ddd" if kind == "grid" else "#555")
    if dash:
        element.set("stroke-dasharray", dash)


def _text(root: ET.Element, text: str, x: float, y: float, anchor: str) -> ET.Element:
    element = ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor})
    element.text = _clean(text)
    return element


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _clean(text: str) -> str:
    """Without the characters that XML cannot hold at all."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
