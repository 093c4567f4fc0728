"""Heatmaps of one judgement as one small picture: what the method is surest of, and what it misses.

Three rows: the good images with the highest scores, the defects with the highest and with the lowest scores; each
image stands beside its map. It is the same few tiles for a task of ten images or of ten thousand.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...methods.errors import DataError
from ...platform import pictures
from ..data.datasets import Task
from ..data.view import View
from ..protocols.judging import Judged

EACH = 2  # images in a row
SIDE = 112  # pixels of a tile
GAP, HEAD = 4, 18  # pixels between tiles, and of a row's title
GROUND, INK = 255, 40


def heatmaps(
    task: Task, judged: Judged, crop: int | None = None, each: int = EACH, side: int = SIDE, bits: int = 0
) -> bytes | None:
    """The picture as PNG; None for a method without maps, and where no image of the task was judged.

    crop, bits: as the protocol saw the images. The scale is this picture's own: from the median of the good images'
    maps in it to the 99.9 % quantile of all. Images that cannot be read again (files that are gone) are left out.
    """
    if judged.maps is None:
        return None
    files, view = _files(task), View(judged.maps.shape[1], crop, bits)
    rows = []
    for title, places in chosen(judged, each).items():
        shown = [(n, seen) for n in places if (seen := _seen(files.get(judged.names[n]), view)) is not None]
        if shown:
            rows.append((title, shown))
    if not rows:
        return None
    low, high = _scale(judged, [n for _, shown in rows for n, _ in shown])
    strips = [_strip(title, _tiles(judged, shown, low, high, side), each, side) for title, shown in rows]
    return pictures.png(np.concatenate(strips))


def chosen(judged: Judged, each: int = EACH) -> dict[str, list[int]]:
    """Places of the images to show, by title, the most telling first; no image stands in two rows."""
    order = np.argsort(judged.scores, kind="stable").tolist()
    good = [n for n in order if not judged.labels[n]]
    bad = [n for n in order if judged.labels[n]]
    highest = bad[::-1][:each]
    lowest = [n for n in bad[:each] if n not in highest]
    found = {
        "good, highest scores": good[::-1][:each],
        "defects, highest scores": highest,
        "defects, lowest scores": lowest,
    }
    return {title: places for title, places in found.items() if places}


def _files(task: Task) -> dict[str, Path]:
    """The task's images by what a judgement calls them: KIND/FILE, or the end of their path in a stream."""
    every = [*(sample.path for sample in task.test), *task.train]
    return {"/".join(path.parts[-3:]): path for path in every} | {
        f"{sample.kind}/{sample.path.name}": sample.path for sample in task.test
    }


def _seen(file: Path | None, view: View) -> NDArray[np.uint8] | None:
    """uint8 (S, S, 3), as the method saw it."""
    if file is None:
        return None
    try:
        return np.ascontiguousarray(view.picture(file).permute(1, 2, 0).numpy())
    except DataError:
        return None


def _scale(judged: Judged, places: Sequence[int]) -> tuple[float, float]:
    """See `heatmaps`; the median of all maps where none is of a good image."""
    assert judged.maps is not None
    every = judged.maps[list(places)]
    good = every[~judged.labels[list(places)]]
    every, good = every[np.isfinite(every)], good[np.isfinite(good)]
    if not every.size:
        return 0.0, 1.0
    low = float(np.median(good if good.size else every))
    return low, max(low, float(np.quantile(every, 0.999)))


def _tiles(
    judged: Judged, shown: Sequence[tuple[int, NDArray[np.uint8]]], low: float, high: float, side: int
) -> list[NDArray[np.uint8]]:
    """Each image and its map, both of at most `side` pixels."""
    assert judged.maps is not None
    pairs = ((pictures.shrink(image, side), judged.maps[n]) for n, image in shown)
    return [tile for image, found in pairs for tile in (image, pictures.overlay(image, found, low, high))]


def _strip(title: str, tiles: Sequence[NDArray[np.uint8]], each: int, side: int) -> NDArray[np.uint8]:
    """A row of tiles below its title, as wide as a full one."""
    wide = 2 * each * (side + GAP) + GAP
    strip = Image.new("RGB", (wide, HEAD + side + GAP), (GROUND,) * 3)
    ImageDraw.Draw(strip).text((GAP, 3), title, fill=(INK,) * 3, font=ImageFont.load_default())
    for n, tile in enumerate(tiles):
        strip.paste(Image.fromarray(tile), (GAP + n * (side + GAP), HEAD))
    return np.asarray(strip)
