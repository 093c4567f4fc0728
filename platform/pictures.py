"""Anomaly maps as pictures: one colour scale, overlays on the image, PNG and JPEG bytes. Pure functions on arrays."""

from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..methods.errors import ConfigError

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]

LEVELS = 255  # rows 0..254 of the colour table are the ramp,
NO_VALUE = 255  # and the last row marks NaN: a cyan that the ramp never comes near
_NO_VALUE_COLOUR = (0, 229, 255)


@lru_cache(maxsize=1)
def colours() -> Pixels:
    """uint8 (256, 3) sRGB: violet through red to light yellow, lightness rising evenly; last row: no value.

    The ramp is a path through OKLab (Ottosson 2020) with linear lightness, so equal steps of anomaly look equal, also
    to colour-blind eyes and in a grey print. It starts at a violet that still shows on a black image. Chroma is cut
    back where sRGB cannot show it. The array is read-only.
    """
    t = np.linspace(0.0, 1.0, LEVELS)
    lightness, hue = 0.38 + 0.57 * t, np.deg2rad(290.0 + 175.0 * t)
    low, high = np.zeros(LEVELS), 0.14 + 0.08 * np.sin(np.pi * t)
    wanted = high.copy()
    for _ in range(20):  # bisection for the largest chroma inside sRGB, all rows at once
        middle = (low + high) / 2
        rgb = _linear_rgb(lightness, middle, hue)
        inside = ((rgb >= 0) & (rgb <= 1)).all(axis=1)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    rgb = np.clip(_linear_rgb(lightness, np.minimum(low, wanted), hue), 0, 1)
    srgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    table = np.vstack([np.rint(srgb * 255), [_NO_VALUE_COLOUR]]).astype(np.uint8)
    table.flags.writeable = False
    return table


def levels(anomaly: Floats, low: float, high: float) -> Pixels:
    """Float (h, w) -> uint8 (h, w) rows of `colours()`: `low` and below 0, `high` and above 254, NaN 255.

    With low == high, everything above it is 254 and the rest 0. Raises ConfigError for a range that is none.
    """
    _check_range(low, high)
    values = _map(anomaly, "levels").astype(np.float64)
    # The clip comes first: it takes infinities too, and keeps NaN.
    scaled = (np.clip(values, low, high) - low) / (high - low) if high > low else np.where(values > high, 1.0, 0.0)
    return np.where(np.isnan(values), NO_VALUE, np.rint(np.nan_to_num(scaled) * (LEVELS - 1))).astype(np.uint8)


def overlay(image: Pixels, anomaly: Floats, low: float, high: float, strength: float = 0.75) -> Pixels:
    """The image in grey under the map in colour: uint8 (H, W, 3) and float (h, w) -> uint8 (H, W, 3).

    The map is stretched to the image (bilinear). At `low` the image shows alone; at `high` the colour covers
    `strength` (0..1) of it. Grey, so that no colour of the product can be taken for one of the map; NaN is cyan.
    """
    image = _image(image, "overlay")
    if not 0 <= strength <= 1:
        raise ConfigError(f"overlay: strength must be between 0 and 1, not {strength!r}.")
    _check_range(low, high)
    above = np.nextafter(np.float32(high), np.float32(np.inf))  # keeps "above high" where low == high
    known = np.clip(_map(anomaly, "overlay"), np.float32(low), above)  # infinities would spread as NaN
    index = levels(stretch(known, image.shape[:2]), low, high)
    grey = image @ np.array([0.299, 0.587, 0.114])
    cover = np.append(np.linspace(0.0, 1.0, LEVELS) ** 0.8 * strength, 1.0)[index][..., None]  # NaN: all cover
    return np.rint(grey[..., None] * (1 - cover) + colours()[index] * cover).astype(np.uint8)


def stretch(anomaly: Floats, shape: tuple[int, ...]) -> Floats:
    """Float (h, w) -> float32 (H, W) = `shape`, bilinear; averaged where it shrinks. NaN spreads to neighbours."""
    anomaly = _map(anomaly, "stretch")
    if anomaly.shape == tuple(shape):
        return anomaly
    return np.asarray(Image.fromarray(anomaly).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def shrink(image: Pixels, side: int) -> Pixels:
    """uint8 (H, W, 3) with no side above `side` pixels, the shape kept; smaller images come back as they are."""
    image = _image(image, "shrink")
    if side < 1:
        raise ConfigError(f"shrink: side must be at least 1 pixel, not {side!r}.")
    if max(image.shape[:2]) <= side:
        return image
    small = Image.fromarray(image)
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small)


def outline(image: Pixels, mask: NDArray) -> Pixels:
    """uint8 (H, W, 3) with the edge of `mask` (h, w; non-zero is inside) drawn on it: white between black."""
    image = _image(image, "outline").copy()
    if mask.ndim != 2 or not mask.size:
        raise ConfigError(f"outline: the mask must be (h, w), not {mask.shape}.")
    inside = Image.fromarray(mask.astype(bool)).resize(image.shape[1::-1], Image.Resampling.NEAREST)
    rim = _grown(np.asarray(inside)) & ~np.asarray(inside)
    image[_grown(rim)] = 0  # a dark border keeps the white line in sight on bright parts
    image[rim] = 255
    return image


def png(pixels: Pixels) -> bytes:
    """uint8 (H, W, 3) or (H, W) as PNG, lossless."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or pixels.shape[2:] == (3,)) or not pixels.size:
        raise ConfigError(f"png: wants uint8 (H, W, 3) or (H, W), not {pixels.dtype} {pixels.shape}.")
    return _encoded(Image.fromarray(pixels), "PNG", optimize=True)


def jpeg(image: Pixels, quality: int = 80) -> bytes:
    """uint8 (H, W, 3) as JPEG."""
    return _encoded(Image.fromarray(_image(image, "jpeg")), "JPEG", quality=quality, optimize=True)


def map_png(anomaly: Floats, low: float, high: float) -> bytes:
    """Float (h, w) as a palette PNG of the same size, in the colours of `colours()` between `low` and `high`."""
    picture = Image.fromarray(levels(anomaly, low, high))
    picture.putpalette(colours().tobytes())  # one byte a pixel: a third of the RGB size
    return _encoded(picture, "PNG", optimize=True)


def _encoded(picture: Image.Image, form: str, **options: int) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask and its four neighbours."""
    wide = np.pad(mask, 1)
    return wide[1:-1, 1:-1] | wide[2:, 1:-1] | wide[:-2, 1:-1] | wide[1:-1, 2:] | wide[1:-1, :-2]


def _check_range(low: float, high: float) -> None:
    most = float(np.finfo(np.float32).max)
    if not -most < low <= high < most:
        raise ConfigError(f"anomaly colours: low and high must be finite with low <= high, not {low!r} and {high!r}.")


def _image(image: Pixels, who: str) -> Pixels:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ConfigError(f"{who}: the image must be uint8 (H, W, 3), not {image.dtype} {image.shape}.")
    return np.ascontiguousarray(image)


def _map(anomaly: Floats, who: str) -> Floats:
    if anomaly.ndim != 2 or not anomaly.size or not np.issubdtype(anomaly.dtype, np.floating):
        raise ConfigError(f"{who}: the map must be float (h, w), not {anomaly.dtype} {anomaly.shape}.")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes an infinity, and that has a colour
        return np.ascontiguousarray(anomaly, np.float32)


def _linear_rgb(lightness: NDArray, chroma: NDArray, hue: NDArray) -> NDArray:
    """OKLab in polar form (n,) each -> linear sRGB (n, 3), possibly out of 0..1."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return (lab @ to_lms.T) ** 3 @ to_rgb.T
