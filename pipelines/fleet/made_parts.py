"""Parts that were never photographed, drawn well enough to be shown: four products, with defects that one can see."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from ...platform.pictures import jpeg

SIDE = 320  # pixels
Floats = NDArray[np.floating]
ROWS, COLS = np.mgrid[:SIDE, :SIDE] / SIDE


def part(product: str, number: int, defect: bool = False, warmer: float = 0.0) -> bytes:
    """A part as JPEG, 320 pixels square; every number is another one. warmer: levels more red, and less blue."""
    rng = np.random.default_rng([list(PRODUCTS).index(product), number, defect])
    picture = PRODUCTS[product](rng, defect)
    picture = picture + rng.normal(0, 1.5, picture.shape) + np.array([warmer, 0, -warmer])
    return jpeg(picture.clip(0, 255).astype(np.uint8), quality=92)


def _caps(rng: np.random.Generator, defect: bool) -> Floats:
    """A turned metal cap on a belt; a scratch."""
    y, x = ROWS - 0.5 + rng.normal(0, 0.006), COLS - 0.5 + rng.normal(0, 0.006)
    out, angle = np.hypot(y, x), np.arctan2(y, x)
    shine = 0.5 + 0.5 * np.cos(2 * (angle - 0.7 + rng.normal(0, 0.03)))
    turned = gaussian_filter(rng.normal(0, 1, 400), 0.7)[(out * 399).astype(int).clip(0, 399)]
    metal = 130 + 75 * shine**2 + 6 * turned
    metal += 45 * _near(out, 0.375, 0.012) - 55 * _near(out, 0.345, 0.008) - 45 * _near(out, 0.17, 0.008)
    if defect:
        towards = rng.uniform(0, 2 * np.pi)
        start = np.array([np.sin(towards), np.cos(towards)]) * rng.uniform(0.2, 0.26)
        cut = _line(_walk(rng, start, towards + rng.uniform(1.6, 4.6), steps=7, step=0.03, turn=0.3), y, x)
        metal += 90 * _near(cut, 0.007, 0.003) - 130 * _near(cut, 0, 0.006)
    belt = 42 + 5 * np.sin(2 * np.pi * 26 * COLS)
    return _over(belt[..., None] * _tint(1, 1.02, 1.06), metal[..., None] * _tint(1, 0.99, 0.96), _inside(0.4 - out))


def _tiles(rng: np.random.Generator, defect: bool) -> Floats:
    """A glazed tile; a crack."""
    y, x = ROWS - 0.5 + rng.normal(0, 0.005), COLS - 0.5 + rng.normal(0, 0.005)
    edge = 0.4 - _rounded(y, x, 0.06)
    glaze = 196 + 2 * _clouds(rng, 24) + 26 * _near(edge, 0.03, 0.012) - 40 * (edge < 0.012) - 30 * (y + x)
    glaze = glaze - 60 * _near(np.maximum(abs(y), abs(x)) + 0.25 * abs(abs(y) - abs(x)), 0.27, 0.006)
    if defect:
        crack = _line(_walk(rng, rng.uniform(-0.22, 0.22, 2), rng.uniform(0, 2 * np.pi), 8, 0.035, 0.6), y, x)
        glaze -= 120 * _near(crack, 0, 0.0045)
    return _over(
        np.full_like(glaze, 70)[..., None] * _tint(1, 1, 1), glaze[..., None] * _tint(0.93, 1.0, 1.03), _inside(edge)
    )


def _cloth(rng: np.random.Generator, defect: bool) -> Floats:
    """A woven cloth; a stain."""
    phase, wave = rng.uniform(0, 2 * np.pi, 2), _clouds(rng, 8) * 0.002
    warp = np.sin(2 * np.pi * 30 * (COLS + wave) + phase[0])
    weft = np.sin(2 * np.pi * 30 * (ROWS + wave) + phase[1])
    threads = 0.2 * (_clouds(rng, SIDE // 12, SIDE) + _clouds(rng, SIDE, SIDE // 12))
    cloth = 128 + 26 * np.maximum(warp, weft) - 12 * warp * weft + 16 * threads
    if defect:
        middle = rng.uniform(0.25, 0.75, 2)
        away = np.hypot(ROWS - middle[0], (COLS - middle[1]) * rng.uniform(0.6, 1.0))
        away += _clouds(rng, 16) * 0.008
        cloth *= 1 - 0.55 * _inside(rng.uniform(0.05, 0.08) - away, 0.01)
    return cloth[..., None] * _tint(0.80, 0.98, 1.18)


def _boards(rng: np.random.Generator, defect: bool) -> Floats:
    """A circuit board with rows of pads; one that is burnt."""
    y, x = ROWS + rng.normal(0, 0.004), COLS + rng.normal(0, 0.004)
    rows, cols = np.linspace(0.16, 0.84, 5), np.linspace(0.14, 0.86, 7)
    down, right = _least(y, rows), _least(x, cols)
    traces = _near(right, 0, 0.006) * (abs(y - 0.5) < 0.36)
    board = (62 + 1.5 * _clouds(rng, 20) + 26 * traces)[..., None] * _tint(0.45, 1.35, 0.75)
    out = np.hypot(down, right)
    pads = 188 + 4 * _clouds(rng, 10) + 45 * _near(out, 0.03, 0.008) - 130 * _inside(0.012 - out)
    board = _over(board, pads[..., None] * _tint(1, 0.83, 0.5), _inside(0.036 - out))
    if defect:
        away = np.hypot(y - rng.choice(rows), x - rng.choice(cols)) + _clouds(rng, 30) * 0.006
        board = _over(board, np.full_like(board, 28), 0.9 * _inside(0.05 - away, 0.012))
    return board


PRODUCTS: dict[str, Callable[[np.random.Generator, bool], Floats]] = {
    "boards": _boards,
    "caps": _caps,
    "cloth": _cloth,
    "tiles": _tiles,
}


def _clouds(rng: np.random.Generator, rows: int, cols: int = 0) -> Floats:
    """Smooth noise of so many cells, deviation about 1."""
    cells = Image.fromarray(rng.normal(0, 1.3, (rows, cols or rows)).astype(np.float32))
    return np.asarray(cells.resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def _tint(*colour: float) -> Floats:
    """What turns a grey picture, (H, W) or (H, W, 1), into one of that colour; red, green, blue."""
    return np.array(colour)


def _over(ground: Floats, part: Floats, where: Floats) -> Floats:
    return ground * (1 - where[..., None]) + part * where[..., None]


def _inside(depth: Floats, soft: float = 0.003) -> Floats:
    """0..1: how far within, with a soft edge."""
    return (depth / soft + 0.5).clip(0, 1)


def _near(value: Floats, at: float, width: float) -> Floats:
    return np.exp(-(((value - at) / width) ** 2))


def _least(value: Floats, places: Floats) -> Floats:
    """How far from the nearest of them."""
    return np.minimum.reduce([abs(value - place) for place in places])


def _rounded(y: Floats, x: Floats, radius: float) -> Floats:
    """How far out a pixel lies in a square with round corners."""
    side = 0.4 - radius
    dy, dx = (abs(y) - side).clip(0), (abs(x) - side).clip(0)
    return np.where((dy > 0) & (dx > 0), side + np.hypot(dy, dx), np.maximum(abs(y), abs(x)))


def _walk(rng: np.random.Generator, start: Floats, angle: float, steps: int, step: float, turn: float) -> list[Floats]:
    points = [start]
    for _ in range(steps):
        angle += rng.normal(0, turn)
        points.append(points[-1] + step * np.array([np.sin(angle), np.cos(angle)]))
    return points


def _line(points: list[Floats], y: Floats, x: Floats) -> Floats:
    """How far each pixel is from a line through the points."""
    found = np.full_like(y, np.inf)
    for a, b in pairwise(points):
        d = b - a
        along = (((y - a[0]) * d[0] + (x - a[1]) * d[1]) / (d @ d)).clip(0, 1)
        found = np.minimum(found, np.hypot(y - a[0] - along * d[0], x - a[1] - along * d[1]))
    return found
