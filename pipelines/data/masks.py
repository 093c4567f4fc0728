"""Masks: where a defect is, as a picture of the same size as its image, seen upright.

0 is good. One other value, whichever it is and of however many bits, is the defect; of several values (soft edges,
JPEG) those above half of the largest that there may be. What could be meant in two ways is refused.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...methods.errors import DataError, ImageError
from ...platform.images import levels, shape_of
from .datasets import HALF, Sample

log = logging.getLogger("everline.data")
Bools = NDArray[np.bool_]


def read_mask(path: Path, size: int, above: int = HALF, image: Path | None = None) -> Bools:
    """A mask as bool (size, size), after nearest-neighbour resizing. image: whose it is, which it has to fit.

    above: 0 where all that is not 0 is a defect. Raises DataError for a mask that cannot be read, does not fit or is
    not clear.
    """
    where = _read(path, above, image)
    return np.asarray(Image.fromarray(where.astype(np.uint8)).resize((size, size), Image.Resampling.NEAREST)) > 0


def check_masks(name: str, samples: Sequence[Sample]) -> None:
    """Read all masks of a task, before they are needed, and warn of those that are empty. Raises DataError."""
    masked = [sample for sample in samples if sample.defect and sample.masks]
    empty = [
        sample for sample in masked if not any(_read(mask, sample.above, sample.path).any() for mask in sample.masks)
    ]
    if not empty:
        return
    if len(empty) == len(masked):
        log.warning("%s: the masks of all %d defects are empty: pixel figures are left out.", name, len(masked))
        return
    log.warning(
        "%s: the masks of %d of %d defects are empty, first that of %s/%s: what is found there is a false alarm.",
        *(name, len(empty), len(masked), empty[0].kind, empty[0].path.name),
    )


def _read(path: Path, above: int, image: Path | None) -> Bools:
    """A mask as bool (H, W)."""
    try:
        data = path.read_bytes()
        values, alpha = levels(data)
    except (OSError, ImageError) as error:
        raise DataError(f"{path}: the mask cannot be read: {error}") from error
    where = _defect(path, values, above)
    if alpha is not None and not np.array_equal(where, alpha > HALF):
        raise DataError(
            f"{path}: its colours and its transparency say two things of where the defect is; save the mask in black "
            "and white, without transparency."
        )
    if image is not None:
        _check_fit(path, data, image)
    return where


def _defect(path: Path, values: NDArray[Any], above: int) -> Bools:
    if above == 0:
        return np.asarray(values > 0)
    most, full = int(values.max()), int(np.iinfo(values.dtype).max)
    if bool(((values == 0) | (values == most)).all()):
        return np.asarray(values > 0)
    if most <= full // 2:
        raise DataError(
            f"{path}: several values, of which the largest is {most:,}; a mask is 0 (good) and one other value "
            f"(defect), or grey with the defect above {full // 2:,}."
        )
    return np.asarray(values > full // 2)


def _check_fit(path: Path, mask: bytes, image: Path) -> None:
    """Raise DataError for a mask of another size than the upright image's, or drawn on nobody knows which side up."""
    try:
        own, theirs = shape_of(mask), shape_of(image.read_bytes())
    except (OSError, ImageError) as error:
        raise DataError(f"{image}: {error}") from error
    turned = f", upright (EXIF orientation {theirs.turn})" if theirs.turn > 1 else ""
    if (own.width, own.height) != (theirs.width, theirs.height):
        raise DataError(
            f"{path}: {own.width} x {own.height} pixels, but its image {image} has {theirs.width} x {theirs.height}"
            f"{turned}; a mask has the size of the image as it is seen."
        )
    same_sides = theirs.turn < 5 or theirs.width == theirs.height
    if theirs.turn > 1 and own.turn == 1 and same_sides:
        raise DataError(
            f"{path}: its image {image} is turned by EXIF orientation {theirs.turn}, and their size does not tell "
            "whether the mask was drawn before or after; save the image upright, without the orientation, or the mask "
            "with the same."
        )
