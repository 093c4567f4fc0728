"""How good anomaly scores are: exact figures, over every threshold that the scores themselves offer.

Nothing is clamped, scaled or binned, and ties are handled exactly: pixels (or images) of equal score pass a
threshold together. A figure that the data cannot give (no defects, nothing normal, no masks) is NaN.

Only the normal scores are sorted in full, once. Each figure then needs, for each defective pixel, just how many
normal ones lie above it and how many level with it: the curves are straight lines between those points.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from .errors import ConfigError

FPR_LIMIT = 0.3  # where the per-region-overlap curve ends, as MVTec AD (Bergmann et al. 2021) has it
EIGHT = np.ones((3, 3), bool)  # pixels that touch at a corner are one region

Bools = NDArray[np.bool_]


def evaluate(
    scores: NDArray, labels: Bools, maps: NDArray | None = None, masks: Bools | None = None
) -> dict[str, float]:
    """All figures of one test set, each in [0, 1] or NaN.

    scores: (N,), higher is worse. labels: bool (N,), True for a defect. maps: (N, H, W). masks: bool (N, H, W).
    Keys: image_auroc, image_ap, image_f1, pixel_auroc, pixel_ap, aupro, pixel_f1; the pixel figures are NaN
    without maps or masks. Raises ConfigError for shapes that differ, and scores that are not finite.
    """
    image = Ranks.of(scores, labels)
    out = {"image_auroc": image.auroc, "image_ap": image.average_precision, "image_f1": image.best_f1}
    if maps is None or masks is None:
        return out | dict.fromkeys(("pixel_auroc", "pixel_ap", "aupro", "pixel_f1"), math.nan)
    if len(maps) != len(scores):
        raise ConfigError(f"metrics: {len(maps)} maps for {len(scores)} scores; every image needs one of each.")
    pixel = Ranks.of(maps, masks)
    overlap = pixel.overlap(region_weights(masks), FPR_LIMIT)
    return out | {
        "pixel_auroc": pixel.auroc,
        "pixel_ap": pixel.average_precision,
        "aupro": overlap,
        "pixel_f1": pixel.best_f1,
    }


def auroc(scores: NDArray, labels: Bools) -> float:
    """Chance that a defect scores above a normal, ties counting half. Any shape; both the same."""
    return Ranks.of(scores, labels).auroc


image_auroc = pixel_auroc = auroc  # the same figure, of images or of pixels


def average_precision(scores: NDArray, labels: Bools) -> float:
    """Precision summed over the steps of recall, without interpolation. Any shape; both the same."""
    return Ranks.of(scores, labels).average_precision


def best_f1(scores: NDArray, labels: Bools) -> float:
    """The best F1 that any threshold gives (chosen on the test set, so an upper bound). Any shape; both the same."""
    return Ranks.of(scores, labels).best_f1


def aupro(maps: NDArray, masks: Bools, limit: float = FPR_LIMIT) -> float:
    """Mean overlap of the defect regions over the false-positive rate, up to `limit`, divided by `limit`.

    maps, masks: (N, H, W). A region is a set of mask pixels connected through edges or corners; each weighs the
    same, whatever its area. The curve is integrated exactly and cut at `limit`, in (0, 1], by interpolation.
    """
    if not 0 < limit <= 1:
        raise ConfigError(f"aupro: limit must be in (0, 1], got {limit!r}.")
    return Ranks.of(maps, masks).overlap(region_weights(masks), limit)


def region_weights(masks: Bools) -> NDArray[np.float64]:
    """For each mask pixel, in C order, 1 / (regions x area of its region); they sum to 1. masks: (N, H, W)."""
    if masks.ndim != 3:
        raise ConfigError(f"metrics: masks must be (N, H, W), got {masks.shape}.")
    found, regions = [np.zeros(0, np.int64)], 0
    for mask in masks:
        if mask.any():
            numbered, count = label(mask, structure=EIGHT)
            found.append(numbered[mask].astype(np.int64) + (regions - 1))
            regions += count
    owner = np.concatenate(found)
    return 1.0 / (regions * np.bincount(owner)[owner]) if regions else np.zeros(0)


@dataclass(frozen=True)
class Ranks:
    """Where the P defective scores stand among the N normal ones. All arrays (P,), by ascending score.

    `above`, `at_least`: how many normal scores are above it, and not below it. `hits`: how many defective scores
    are not below it. `order`: its position among the defective in the input.
    """

    normals: int
    above: NDArray[np.int64]
    at_least: NDArray[np.int64]
    hits: NDArray[np.int64]
    order: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray, labels: Bools) -> "Ranks":
        """scores: real numbers, labels: bool (True is a defect), of one shape. Raises ConfigError."""
        scores, labels = _checked(scores, labels)
        normal, defect = scores[~labels], scores[labels]
        normal.sort()
        order = np.argsort(defect, kind="stable")
        defect = defect[order]  # sorted, the searches below run through memory in one direction
        return cls(
            normals=len(normal),
            above=len(normal) - np.searchsorted(normal, defect, "right"),
            at_least=len(normal) - np.searchsorted(normal, defect, "left"),
            hits=len(defect) - np.searchsorted(defect, defect, "left"),
            order=order,
        )

    @cached_property
    def possible(self) -> bool:
        """Whether there are both defects and normals; without either, no figure means anything."""
        return bool(self.normals and len(self.hits))

    @property
    def auroc(self) -> float:
        """Area under the ROC curve (Mann-Whitney U); whole numbers until the one division."""
        if not self.possible:
            return math.nan
        lost = int(self.above.sum()) + int(self.at_least.sum())  # twice the pairs in the wrong order
        pairs = 2 * self.normals * len(self.hits)
        return (pairs - lost) / pairs

    @property
    def average_precision(self) -> float:
        """Mean, over the defective, of the precision at the threshold that just takes it in."""
        return float((self.hits / (self.hits + self.at_least)).mean()) if self.possible else math.nan

    @property
    def best_f1(self) -> float:
        """The best threshold is one of the defective scores: anything between adds only false alarms."""
        if not self.possible:
            return math.nan
        return float((2 * self.hits / (self.hits + self.at_least + len(self.hits))).max())

    def overlap(self, weights: NDArray[np.float64], limit: float) -> float:
        """Area, up to the false-positive rate `limit`, under the curve of the summed weights of what is found.

        A defective pixel enters between `above` and `at_least` false alarms, in a straight line where normals tie
        with it; from there it counts to the end. So the area is one sum over pixels. weights: as in the input.
        """
        if not self.possible:
            return math.nan
        end = limit * self.normals
        width = np.maximum(self.at_least - self.above, 1)
        ramp = np.clip(end - self.above, 0, width)  # the part of its own line that lies left of the end
        tied = self.at_least > self.above
        area = np.where(tied, ramp**2 / (2 * width), 0.0) + np.maximum(end - self.at_least, 0)
        return float(np.dot(weights[self.order], area) / end)


def _checked(scores: NDArray, labels: Bools) -> tuple[NDArray, Bools]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if labels.dtype != np.bool_:
        raise ConfigError(f"metrics: labels and masks must be bool (True is a defect), got {labels.dtype}.")
    if scores.shape != labels.shape:
        raise ConfigError(f"metrics: scores {scores.shape} and labels {labels.shape} must have the same shape.")
    if not np.issubdtype(scores.dtype, np.floating) and not np.issubdtype(scores.dtype, np.integer):
        raise ConfigError(f"metrics: scores must be real numbers, got {scores.dtype}.")
    if not np.isfinite(scores).all():
        raise ConfigError("metrics: the scores hold NaN or infinity; every image and pixel needs a finite score.")
    return scores, labels
