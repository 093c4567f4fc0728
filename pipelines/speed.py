"""`everline speed`: how long the exact metrics take on large masks, beside scikit-learn on the same pixels."""

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..methods.errors import DataError
from ..methods.metrics import EIGHT, Ranks, region_weights
from .console import show_table

SEED = 0


@click.command()
@click.option("--images", type=click.IntRange(1, 10_000), default=100, show_default=True)
@click.option("--side", type=click.IntRange(16, 8192), default=1024, show_default=True, help="Of an image, in pixels.")
@click.option(
    "--regions", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Defect regions in an image."
)
def speed(images: int, side: int, regions: int) -> None:
    """Time the pixel metrics on made-up maps and masks; the ratio is to scikit-learn's time for the same figure.

    AUPRO has no counterpart there: its baseline is the labelling of the masks' regions alone.
    """
    maps, masks = made_up(images, side, regions)
    rows = [(name, ours, base, ours / base) for name, ours, base in timed(maps, masks)]
    title = f"pixel metrics, {images} images of {side} x {side}, {regions} regions each (seconds)"
    show_table(title, ["figure", "everline", "baseline", "ratio"], rows)


def made_up(images: int, side: int, regions: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Heavy-tailed maps (N, S, S), and masks of small squares at random places, where maps are a little higher."""
    rng = np.random.default_rng(SEED)
    masks = np.zeros((images, side, side), bool)
    edge = max(1, side // 100)
    for mask in masks:
        for row, col in rng.integers(0, side - edge, (regions, 2)):
            mask[row : row + edge, col : col + edge] = True
    maps = rng.standard_normal(masks.shape, np.float32)
    return np.exp(maps + masks, out=maps), masks


def timed(maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> list[tuple[str, float, float]]:
    """(figure, our seconds, the baseline's) for each; ours share one sort. Raises DataError where figures differ."""
    from scipy.ndimage import label
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, scores = masks.ravel(), maps.ravel()
    sort, ranks = _clock(lambda: Ranks.of(maps, masks))
    auroc, mine = _clock(lambda: ranks.auroc)
    base, theirs = _clock(lambda: roc_auc_score(truth, scores))
    _agree("AUROC", mine, theirs)
    precision, mine = _clock(lambda: ranks.average_precision)
    base_precision, theirs = _clock(lambda: average_precision_score(truth, scores))
    _agree("AP", mine, theirs)
    overlap, _ = _clock(lambda: ranks.overlap(region_weights(masks), 0.3))
    regions, _ = _clock(lambda: [label(mask, structure=EIGHT) for mask in masks])
    return [
        ("pixel AUROC, with the sort", sort + auroc, base),
        ("pixel AP, with the sort", sort + precision, base_precision),
        ("AUPRO, with the sort", sort + overlap, regions),
        ("all of them", sort + auroc + precision + overlap, base + base_precision + regions),
    ]


def _clock(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def _agree(name: str, mine: float, theirs: float) -> None:
    if abs(mine - theirs) > 1e-6:
        raise DataError(f"{name}: {mine} here, {theirs} in scikit-learn; a time of a wrong figure says nothing.")
