"""How many bits of a 16-bit file's values are used, and the 8 bits that come of them.

Cameras of 10, 12 or 14 bits often store their values as they are in files of 16 bits. Of 65,536 levels the lowest
1,024 to 16,384 are then all there are; taken for 16 bits, the picture is nearly black. What counts, in this order:

    the setting `bits`  of a line, or of a run
    PNG                 sBIT. By its specification the values are then scaled up to 16 bits, which shows in their
                        lowest bits; some programs leave them as they are
    TIFF                BitsPerSample (12 bits, packed); SMaxSampleValue or MaxSampleValue, where they are the largest
                        value of a number of bits (1,023, 4,095, ...); OME's SignificantBits

An image whose values contradict that is read as 16 bits; where the setting is contradicted, a new image is refused.
"""

import logging
import re
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..methods.errors import ImageError
from .image_structure import chunks

log = logging.getLogger("everline.images")
BITS = (8, 10, 12, 14)  # that a camera may have
DEEP = 16
ENOUGH = 5  # 16-bit files without a word of their bits: then their upper bits are held to be unused
ROWS = 64  # of an image that are worked on at a time
_PER_SAMPLE, _DESCRIPTION, _MAX, _SMAX = 258, 270, 281, 341
_OME = re.compile(r'SignificantBits="([0-9]{1,2})"')


def stated(data: bytes, image: Image.Image) -> int:
    """Return the bits that a file says are used, 16 where it says nothing. image: opened, not loaded."""
    found = _of_png(data) if image.format == "PNG" else _of_tiff(image) if image.format == "TIFF" else DEEP
    return found if 0 < found < DEEP else DEEP


def used(values: NDArray[np.uint16], said: int, scaled: bool) -> int:
    """Return the bits of an image's values. said: by its file. scaled: whether those may stand in the upper bits."""
    if said == DEEP or int(values.max()) >= 1 << said:
        return DEEP
    return DEEP if scaled and _low_bits_empty(values, DEEP - said) else said


def check(most: int, bits: int) -> None:
    """Raise ImageError for a largest value that needs more bits than the setting says."""
    if most >= 1 << bits:
        raise ImageError(
            f"image: values up to {most:,}, but with the setting bits: {bits} none is above {(1 << bits) - 1:,}. Set "
            "the camera's bits, or leave the setting out where it stores them in the upper bits of 16."
        )


def eight_bits(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Scale values so that the largest of so many bits becomes 255, rounded."""
    out, table = np.empty(values.shape, np.uint8), _table(bits)
    for row in range(0, len(values), ROWS):  # an index takes eight bytes a pixel
        out[row : row + ROWS] = table[values[row : row + ROWS]]
    return out


class Unused:
    """Say once that the upper bits of a line's, or a run's, 16-bit files are never used. For several threads."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._lock = threading.Lock()
        self._images = self._most = 0
        self.advice = ""  # what was said; empty while there is nothing to say

    def see(self, bits: int) -> None:
        """Take in the bits that an image's values need; 0 of an image that leaves no doubt."""
        if not bits or self._images >= ENOUGH:
            return
        with self._lock:
            self._images += 1
            self._most = max(self._most, bits)
            if self._images != ENOUGH or self._most > max(BITS):
                return
            enough = min(bits for bits in BITS if bits >= self._most)
            self.advice = (
                f"16-bit images use their lower {self._most} bits only: they are nearly black, and lose contrast; if "
                f"the camera has {enough} bits, set bits: {enough}"
            )
        log.warning("%s: the first %d %s (bits: 16 keeps them as they are).", self._who, ENOUGH, self.advice)


@lru_cache(maxsize=16)
def _table(bits: int) -> NDArray[np.uint8]:
    full = (1 << bits) - 1
    return np.minimum((np.arange(1 << DEEP, dtype=np.uint32) * 255 + full // 2) // full, 255).astype(np.uint8)


def _low_bits_empty(values: NDArray[np.uint16], bits: int) -> bool:
    """Whether so many of the lowest bits are 0 or, by rounding, 1: those of dark values that were scaled up."""
    low = np.uint16((1 << bits) - 1)
    return all(int((values[row : row + ROWS] & low).max()) <= 1 for row in range(0, len(values), ROWS))


def _of_png(data: bytes) -> int:
    colour = 1
    for kind, start, end in chunks(data):
        if kind == b"IHDR":
            colour = 3 if data[start + 17 : start + 18] in (b"\2", b"\6") else 1
        elif kind == b"sBIT":
            return max(data[start + 8 : end - 4][:colour], default=DEEP)
        elif kind == b"IDAT":
            break
    return DEEP


def _of_tiff(image: Image.Image) -> int:
    tags: Any = getattr(image, "tag_v2", {})
    if (packed := int(_largest(tags.get(_PER_SAMPLE)))) < DEEP:
        return packed
    for tag in (_SMAX, _MAX):
        full = _largest(tags.get(tag))
        if full in {(1 << bits) - 1 for bits in range(1, DEEP)}:
            return int(full).bit_length()
    text = tags.get(_DESCRIPTION)
    found = _OME.search(text) if isinstance(text, str) else None
    return int(found[1]) if found else DEEP


def _largest(value: Any) -> float:
    """Return the largest of a tag's numbers; 16 bits' largest for anything else."""
    numbers = value if isinstance(value, tuple) else (value,)
    return max(numbers) if numbers and all(isinstance(one, int | float) for one in numbers) else (1 << DEEP) - 1
