"""A report: one self-contained HTML file with tables, coloured or not, curves and galleries of heatmaps.

    write_report(Report("Demo", tables=[...], curves=[...], galleries=[...]), Path("report/index.html"))

It is for screen and print, loads nothing from anywhere and needs no scripts. Everything in it from outside is escaped.
"""

import base64
import math
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ...methods.errors import ConfigError, DataError, UnknownName
from ...platform import pictures
from .curves import COLOURS, Curve, svg

Cell = str | int | float | bool | None

SIDE = 224  # pixels; larger images are shrunk
QUALITY = 80  # of JPEG
_COLOURS_DARK = ("#5cb8ee", "#ff9355", "#34c79f", "#e091d4", "#d1bf4a", "#a9d4f2")  # the same series on a dark ground
_NUMBER = re.compile(r"[-+]?[\d.,]+( ± [\d.,]+)?")  # as text
_PNG = b"\x89PNG"
_VERDICTS = ("", "pass", "reject")
_TRUTHS = ("", "ok", "defect")


@dataclass(frozen=True)
class Picture:
    """One inspected image. `image`: uint8 (H, W, 3); `map`: float (h, w), any size; `mask`: (h, w), the true defect.

    `verdict` is 'pass', 'reject' or '' (none), `truth` 'ok', 'defect' or '' (not known); what kind of defect
    it is belongs in the caption. The map is coloured on the scale of its gallery.
    """

    image: NDArray[np.uint8]
    map: NDArray[np.floating]
    caption: str
    score: float
    threshold: float | None = None
    verdict: str = ""
    truth: str = ""
    mask: NDArray | None = None  # drawn as an outline on the image

    def __post_init__(self) -> None:
        for what, value, known in (("verdict", self.verdict, _VERDICTS), ("truth", self.truth, _TRUTHS)):
            if value not in known:
                raise UnknownName.among(f"picture {self.caption!r}", what, value, filter(None, known))

    @property
    def outcome(self) -> str:
        """'correct', 'false reject', 'missed defect', or '' where verdict or truth is not known."""
        if not (self.verdict and self.truth):
            return ""
        if (self.verdict == "reject") == (self.truth == "defect"):
            return "correct"
        return "false reject" if self.verdict == "reject" else "missed defect"


@dataclass(frozen=True)
class Gallery:
    """Pictures whose maps share one colour scale, so that they can be compared. `scale`: (low, high) of it."""

    title: str
    pictures: Sequence[Picture]
    note: str = ""
    scale: tuple[float, float] | None = None  # None: from the maps, see `range`
    columns: int = 0  # pictures in a row; 0: as many as there is room for

    def range(self) -> tuple[float, float]:
        """`scale`, or: from the median of the maps of good images (of all, if none is) to the 99.9 % quantile of all.

        Half of what is normal stays bare that way, and one wild pixel does not pale the rest.
        """
        if self.scale is not None:
            return self.scale
        good = _finite([picture.map for picture in self.pictures if picture.truth == "ok"])
        every = _finite([picture.map for picture in self.pictures])
        if not every.size:
            return 0.0, 1.0
        low = float(np.median(good if good.size else every))
        return low, max(low, float(np.quantile(every, 0.999)))


@dataclass(frozen=True)
class Table:
    """`rows`: one cell for each column, the first being the row's name; None shows as a dash."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ConfigError(
                    f"table {self.title!r}: row {number} has {len(row)} cells for {len(self.columns)} columns."
                )


@dataclass(frozen=True)
class Heat:
    """A matrix of shares whose cells are coloured, and say their value: (rows, columns), 0 to 1 or NaN for none.

    The scale is 0 to 1 for all, so that heats of one page compare. Raises ConfigError for other shapes and values.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]  # without that of the rows' names
    values: Sequence[Sequence[float]]
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.values) != len(self.rows) or any(len(row) != len(self.columns) for row in self.values):
            raise ConfigError(f"heat {self.title!r}: values must be {len(self.rows)} rows of {len(self.columns)}.")
        wild = [value for row in self.values for value in row if not (math.isnan(value) or 0 <= value <= 1)]
        if wild:
            raise ConfigError(f"heat {self.title!r}: values must be shares, 0 to 1 or NaN, got {wild[0]}.")

    def table(self, head: str = "") -> Table:
        """The same without colours."""
        body = [
            [name, *(None if math.isnan(value) else f"{value:.3f}" for value in row)]
            for name, row in zip(self.rows, self.values, strict=True)
        ]
        return Table(self.title, [head, *self.columns], body, self.note)


@dataclass(frozen=True)
class Panel:
    """A picture that was made elsewhere, as PNG; of many on a page, bytes add up. Raises ConfigError for no PNG."""

    title: str
    png: bytes
    note: str = ""

    def __post_init__(self) -> None:
        if not self.png.startswith(_PNG):
            raise ConfigError(f"panel {self.title!r}: expected a PNG.")


@dataclass(frozen=True)
class Report:
    """Everything on the page: tables, heats, curves, panels, galleries. A blank line in `intro` starts a paragraph."""

    title: str
    intro: str = ""
    tables: Sequence[Table] = field(default_factory=tuple)
    curves: Sequence[Curve] = field(default_factory=tuple)
    galleries: Sequence[Gallery] = field(default_factory=tuple)
    footer: str = ""
    heats: Sequence[Heat] = field(default_factory=tuple)
    panels: Sequence[Panel] = field(default_factory=tuple)


def write_report(report: Report, path: Path | str) -> Path:
    """Write the page to `path` in one step: readers see the old page or the new, never half. Raises DataError."""
    path, page = Path(path), render(report).encode("utf-8", "replace")
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # a page to show others; temporary files are private
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise DataError(f"report: cannot write {path}: {error.strerror or error}; choose another place.") from error
    return path


def render(report: Report) -> str:
    """The page as HTML text."""
    galleries = [_gallery(gallery) for gallery in report.galleries]
    curves = [(curve, Markup(svg(curve))) for curve in report.curves]  # noqa: S704 (built as XML, escaped there)
    light, dark = list(enumerate(COLOURS)), list(enumerate(_COLOURS_DARK))
    template = _environment().get_template("report.html")
    parts = {"tables": [_table(table) for table in report.tables], "curves": curves, "galleries": galleries}
    parts["panels"] = [(panel, _uri(panel.png)) for panel in report.panels]
    return template.render(report=report, **parts, light=light, dark=dark)


def column(values: Sequence[Cell]) -> list[str]:
    """The cells of one column as text: numbers with the same decimals (4 significant digits of the largest).

    None and NaN are a dash, a bool is yes or no. Numbers too far apart for that have their own digits.
    """
    sizes = [abs(value) for value in values if isinstance(value, float) and math.isfinite(value) and value]
    if not sizes or max(sizes) > 100 * min(sizes) or not 1e-3 <= max(sizes) < 1e9:
        return [_cell(value, None) for value in values]
    most = min(4, max(0, 3 - math.floor(math.log10(max(sizes)))))
    digits = max(len(f"{size:.{most}f}".rstrip("0").partition(".")[2]) for size in sizes)
    return [_cell(value, digits) for value in values]


def _cell(value: Cell, digits: int | None) -> str:
    """One value as text, a float with `digits` decimals; None: with four significant digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if digits is None:
            return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
        return f"{value:,.{digits}f}"
    return value


def _numeric(values: Sequence[Cell]) -> bool:
    """Whether a column holds numbers (and gaps) only, and so is set to the right; `0.912 ± 0.013` is one too."""
    known = [value for value in values if value is not None]
    return bool(known) and all(
        bool(_NUMBER.fullmatch(value)) if isinstance(value, str) else not isinstance(value, bool) for value in known
    )


def _table(table: Table) -> dict:
    """What the template needs of a table: cells as text, and which columns hold numbers."""
    columns = [[row[number] for row in table.rows] for number in range(len(table.columns))]
    rows = list(zip(*(column(values) for values in columns), strict=True))
    return {"table": table, "rows": rows, "numeric": [_numeric(values) for values in columns]}


@lru_cache(maxsize=1)
def _environment() -> Environment:
    folder = Path(__file__).parent / "templates"
    loader = FileSystemLoader(folder)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.filters["cell"] = lambda value: _cell(value, None)
    return environment


def _gallery(gallery: Gallery) -> dict:
    """What the template needs of a gallery: its scale as a picture, and its pictures encoded."""
    low, high = gallery.range()
    ramp = np.linspace(low, high, 255)[None].repeat(2, axis=0)
    outcomes = [picture.outcome for picture in gallery.pictures]
    return {
        "gallery": gallery,
        "low": low,
        "high": high,
        "ramp": _uri(pictures.map_png(ramp, low, high)),
        "judged": len(outcomes) - outcomes.count(""),
        "counts": {kind: outcomes.count(kind) for kind in ("false reject", "missed defect")},
        "pictures": [_picture(picture, low, high) for picture in gallery.pictures],
    }


def _picture(picture: Picture, low: float, high: float) -> dict:
    image = pictures.shrink(picture.image, SIDE)
    covered = pictures.overlay(image, picture.map, low, high)
    if picture.mask is not None:
        image = pictures.outline(image, picture.mask)
    height, width = image.shape[:2]
    return {"it": picture, "image": _smallest(image), "overlay": _smallest(covered), "width": width, "height": height}


def _smallest(image: NDArray[np.uint8]) -> str:
    """JPEG, or PNG where that is smaller (drawings, binary images) and exact besides."""
    return _uri(min(pictures.jpeg(image, QUALITY), pictures.png(image), key=len))


def _uri(data: bytes) -> str:
    kind = "png" if data.startswith(_PNG) else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _finite(maps: Sequence[NDArray]) -> NDArray[np.float64]:
    values = np.concatenate([np.asarray(one, np.float64).ravel() for one in maps] or [np.empty(0)])
    return values[np.isfinite(values)]
