"""Drift at a fixed level: what a lamp, a sensor, a lens or a colour balance does to every image of a line alike.

LeMO (section 4.2.2) names brightness and Gaussian noise without giving their levels; the levels here are ours. Each
kind is a pure function of the 8-bit pixels, the level and, for noise, a seed. It is applied to the picture at the
size that the backbone sees, so that a level means the same for a folder of large and one of small images (noise on
a large picture would be averaged away when it shrinks).
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from ...methods.errors import ConfigError, UnknownName
from ...platform.names import nfc

Pixels = NDArray[np.uint8]  # (3, H, W), RGB


def brightness(pixels: Pixels, level: float, seed: int) -> Pixels:
    """Adds `level` (units of 0..255) to every channel; what leaves the range is cut off."""
    return _rounded(pixels + np.float32(level))


def noise(pixels: Pixels, level: float, seed: int) -> Pixels:
    """Adds independent Gaussian noise of deviation `level` (units of 0..255) to every pixel and channel."""
    drawn = np.random.default_rng(seed).standard_normal(pixels.shape, np.float32)
    return _rounded(pixels + np.float32(level) * drawn)


def blur(pixels: Pixels, level: float, seed: int) -> Pixels:
    """Gaussian blur of deviation `level` (pixels of the resized picture), edges mirrored."""
    return _rounded(gaussian_filter(pixels.astype(np.float32), (0, level, level), mode="reflect"))


def cast(pixels: Pixels, level: float, seed: int) -> Pixels:
    """A colour cast: adds `level` (units of 0..255) to red and takes it from blue."""
    return _rounded(pixels + np.array([level, 0, -level], np.float32)[:, None, None])


@dataclass(frozen=True)
class Kind:
    """A kind of drift: its function, the level used by default, and which levels are allowed."""

    apply: Callable[[Pixels, float, int], Pixels]
    level: float
    low: float
    high: float
    unit: str


GREY = "units of 0..255"
KINDS = {
    "brightness": Kind(brightness, 50.0, -255.0, 255.0, GREY),
    "noise": Kind(noise, 25.0, 0.0, 255.0, GREY),
    "blur": Kind(blur, 2.0, 0.0, 64.0, "pixels"),
    "cast": Kind(cast, 30.0, -255.0, 255.0, GREY),
}


@dataclass(frozen=True)
class Drift:
    """One kind of drift at one level. Raises UnknownName, and ConfigError for a level out of range."""

    kind: str
    level: float

    def __post_init__(self) -> None:
        kind = KINDS.get(self.kind)
        if kind is None:
            raise UnknownName.among("drift", "kind", self.kind, KINDS)
        if not kind.low <= self.level <= kind.high:  # false for NaN too
            allowed = f"[{kind.low:g}, {kind.high:g}] {kind.unit}"
            raise ConfigError(f"drift: {self.kind} must be in {allowed}, got {self.level:g}.")

    @classmethod
    def parse(cls, text: str) -> "Drift":
        """`noise` (at its default level) or `noise=40`."""
        name, equals, value = text.partition("=")
        if not equals:
            return cls(name, KINDS[name].level if name in KINDS else math.nan)
        try:
            return cls(name, float(value))
        except ValueError as error:
            raise ConfigError(f"drift: the level of {name} must be a number, got {value!r}.") from error

    def __call__(self, pixels: Pixels, path: Path) -> Pixels:
        """uint8 (3, H, W) -> the same, drifted; the input stays as it is. The file's name seeds its noise.

        The same file has the same noise for every method, seed of a run and place of the data's folder.
        """
        key = nfc("/".join((*path.parts[-4:], self.kind))).encode("utf-8", "surrogateescape")
        seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
        return KINDS[self.kind].apply(pixels, self.level, seed)


DRIFTS = tuple(Drift(name, kind.level) for name, kind in KINDS.items())


def _rounded(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
