"""From the bytes that came in to pixels: checked before they are decoded, and one colour layout whatever was sent.

Accepted: PNG, JPEG, BMP, TIFF and WebP, one still image each. All come out as 8-bit RGB, turned upright:

    grey, 1-bit, palette, CMYK, YCbCr    converted to RGB (CMYK without a colour profile)
    alpha                                dropped; the colours stay as they are stored, nothing is blended
    16-bit grey or colour                scaled so that the largest value of the bits in use becomes 255: those of the
                                         setting `bits`, else those that the file states, else 16 (depth.py); of a
                                         colour whose 16 bits are all in use, the upper eight
    32-bit integer or float              refused: their range is not known, and guessing it would shift scores
    several frames (GIF-like, pages)     refused; of a phone's multi-picture JPEG the main picture is taken
"""

import hashlib
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from ..methods.errors import ConfigError, ImageError
from .decoders import DECODERS
from .depth import DEEP, ROWS, check, eight_bits, stated, used
from .image_structure import check_structure, check_tiff, without_metadata

Room = Callable[[int], AbstractContextManager[None]]  # of so many pixels, while they are decoded (decoders.py)
MAX_NAME = 200  # characters of a file's name in an id
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 150_000_000  # of any image, also of one in a log; what a line takes is a setting (max_megapixels)
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "I;16", "I;16L", "I;16B", "I;16N"}
_UPRIGHT = {  # EXIF orientation -> what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STARTS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"II+\0": ".tif",  # with 64-bit offsets
    b"II\0*": ".tif",
    b"MM*\0": ".tif",
    b"MM\0*": ".tif",
    b"MM\0+": ".tif",
    b"RIFF": ".webp",
}
_FILTERS = threading.Lock()
if "PILLOW_BLOCK_SIZE" not in os.environ:
    # An image in one piece: its memory goes back at once. Of pieces below 32 MiB glibc keeps some for each thread.
    Image.core.set_block_size(2**30)


@dataclass(frozen=True)
class Views:
    """What one decoding of an image gives."""

    squares: dict[int, Tensor]  # by size: uint8 (3, size, size), what `Detector.embed` takes (one more axis in front)
    picture: NDArray[np.uint8] | None = None  # (h, w, 3), no side above what was asked for
    bits: int = 0  # the setting that it was decoded with
    unsure: int = 0  # bits that the values of a 16-bit file need, where neither the file nor a setting said so; else 0


@dataclass(frozen=True)
class Shape:
    """What an image's header says of its sides. turn: its EXIF orientation, 1 to 8."""

    width: int  # upright
    height: int
    turn: int = 1


def decode(
    data: bytes, *, bits: int = 0, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS, room: Room = DECODERS.room
) -> NDArray[np.uint8]:
    """An encoded image -> uint8 (H, W, 3), RGB, writable. Safe to call from many threads.

    bits: those in use in a 16-bit file; 0: as the file states, 16 where it states nothing.
    Raises ImageError for what is empty, too large (in bytes, or in pixels by its header, before any is decoded),
    of another format, truncated, damaged, of several frames, or of a pixel type that is not listed above.
    """
    with _picture(data, bits, max_bytes, max_pixels, room) as (picture, _):
        return np.array(picture)


def levels(data: bytes) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """An encoded picture -> its values as they are stored, uint8 or uint16 (H, W), and its alpha where that varies.

    Upright; of several colours the largest value. For masks, whose values are labels. Raises ImageError as `decode`.
    """
    with _errors_of_ours(MAX_PIXELS):
        image = _opened(data, MAX_BYTES, MAX_PIXELS)
    with DECODERS.room(image.width * image.height), _errors_of_ours(MAX_PIXELS):
        deep, raw = _is_deep(image), _raw_mode(image)
        image = _upright(image)
        if image.mode.startswith("I;16"):
            return np.asarray(image), None
        has_alpha = image.has_transparency_data
        alpha = np.asarray(image.convert("RGBA").getchannel("A")) if has_alpha else None
        varies = alpha is not None and alpha.min() < alpha.max()
        values = _joined(data, raw, image) if deep else np.asarray(_rgb(image))
        return values.max(axis=2), alpha if varies else None


def shape_of(data: bytes) -> Shape:
    """The sides of an encoded image, upright, by its header. Raises ImageError as `decode`, but for damaged pixels."""
    with _errors_of_ours(MAX_PIXELS):
        image = _opened(data, MAX_BYTES, MAX_PIXELS)
        with _quiet():
            turn = _orientation(image)
    width, height = image.size
    lies = turn > 4 and image.format != "TIFF"  # that reader gives the upright sides
    return Shape(height, width, turn) if lies else Shape(width, height, turn)


def prepare(
    data: bytes, size: int, *, bits: int = 0, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """An encoded image -> uint8 (3, size, size), what `Detector.embed` takes (one more axis in front).

    A plain resize: nothing is cropped, the aspect is not kept; bilinear, averaging over what a pixel covers when
    it shrinks. Raises ImageError as `decode` does.
    """
    return views(data, (size,), bits=bits, max_bytes=max_bytes, max_pixels=max_pixels).squares[size]


def views(
    data: bytes,
    sizes: Iterable[int] = (),
    side: int = 0,
    *,
    bits: int = 0,
    strict: bool = False,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    room: Room = DECODERS.room,
) -> Views:
    """Decode an image once: squares as of `prepare`, and with `side` a picture that is no larger, its shape kept.

    strict: whether an image with values above what `bits` hold is refused: a new one is, while one that is in a log
    already is read as 16 bits. Raises ImageError as `decode` does, and what `room` raises.
    """
    for size in (sizes := tuple(sizes)):
        if size < 1:
            raise ConfigError(f"prepare: size must be at least 1 pixel, got {size!r}.")
    with _picture(data, bits, max_bytes, max_pixels, room, strict) as (picture, unsure):
        squares = {size: _square(picture, size) for size in sizes}
        return Views(squares, _shrunk(picture, side) if side else None, bits, unsure)


def _square(picture: Image.Image, size: int) -> Tensor:
    small = picture.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()


def _shrunk(picture: Image.Image, side: int) -> NDArray[np.uint8]:
    """As `shrink` in pictures.py, without a copy of the whole image."""
    if max(picture.size) > side:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.array(picture)


@contextmanager
def _picture(
    data: bytes, bits: int, max_bytes: int, max_pixels: int, room: Room, strict: bool = False
) -> Iterator[tuple[Image.Image, int]]:
    """The checked image as 8-bit RGB, upright, and `Views.unsure`; there is room for its pixels until the end."""
    with _errors_of_ours(max_pixels):
        image = _opened(data, max_bytes, max_pixels)
    with room(image.width * image.height):
        with _errors_of_ours(max_pixels):
            unsure = 0
            if _is_deep(image):
                image, unsure = _shallow(data, image, bits, strict)
            else:
                image = _upright(image)  # under one name, so that no copy is held longer than it has to be
            image = _rgb(image)
        yield image, unsure


def _opened(data: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    """Read the header and check it; no pixel is decoded."""
    if not data:
        raise ImageError("image: it is empty (0 bytes).")
    if len(data) > max_bytes:
        raise ImageError(f"image: {len(data):,} bytes; at most {max_bytes:,} are accepted.")
    check_structure(data)
    with _quiet():
        image = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
    _check_header(image, max_pixels)
    return image


@contextmanager
def _errors_of_ours(max_pixels: int) -> Iterator[None]:
    """Turn whatever Pillow raises into ImageError."""
    try:
        yield
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"image: too many pixels, at most {max_pixels:,} are accepted ({error}).") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"image: not readable as one of {', '.join(FORMATS)}.") from error
    except Exception as error:  # each of Pillow's readers has errors of its own for damaged files
        raise ImageError(f"image: truncated or damaged ({type(error).__name__}: {error}).") from error


def _check_header(image: Image.Image, max_pixels: int) -> None:
    """Everything that can be refused before a pixel is decoded."""
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"image: {width} x {height} pixels; at most {max_pixels:,} in all are accepted.")
    if image.mode not in MODES:
        raise ImageError(f"image: pixels of type {image.mode!r}; send 8-bit (grey, RGB, RGBA, CMYK) or 16-bit grey.")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise ImageError(f"image: a {image.format} of several frames or pages; send one still image.")


def _upright(image: Image.Image) -> Image.Image:
    """Decodes the pixels and undoes the EXIF orientation."""
    if image.format == "TIFF":  # this reader turns its images itself, reading (and warning of) tags meanwhile
        with _quiet():
            image.load()
        return image
    image.load()
    with _quiet():
        turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 (as it is) to 8. Damaged EXIF data does not make an image unfit: it is then taken as it is."""
    try:
        check_tiff(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - whatever the parser stumbles over, the pixels are sound
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)  # alpha is dropped; Pillow would try to carry it along, and warn
    return image if image.mode == "RGB" else image.convert("RGB")  # which would be a copy


def _is_deep(image: Image.Image) -> bool:
    """Whether an image, not loaded, has 16 bits a channel."""
    return image.mode.startswith("I;16") or ";16" in _raw_mode(image)


def _raw_mode(image: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words."""
    args = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) else args)


def _shallow(data: bytes, image: Image.Image, bits: int, strict: bool) -> tuple[Image.Image, int]:
    """An image of 16 bits a channel -> the same of 8, upright, and `Views.unsure`."""
    with _quiet():
        said = bits or stated(data, image)
    scaled, raw = image.format == "PNG" and not bits, _raw_mode(image)
    image = _upright(image)
    grey = image.mode.startswith("I;16")
    if grey:
        values = np.asarray(image)
        most = int(values.max())
    else:
        most = 256 * _largest(image) + 255  # Pillow reads the upper eight bits of a colour
    if bits and strict:
        check(most, bits)
    unsure = most.bit_length() if said == DEEP and not bits else 0
    if grey:
        return Image.fromarray(eight_bits(values, used(values, said, scaled))), unsure
    if said == DEEP or most >= 1 << said:
        return image, unsure
    values = _joined(data, raw, image)
    pixels = eight_bits(values, used(values, said, scaled))
    del values
    return Image.frombuffer(_colours(image.mode), image.size, pixels), unsure


def _joined(data: bytes, raw: str, upper: Image.Image) -> NDArray[np.uint16]:
    """Put the lower bits of colours to their upper eight: the file is decoded once more in the other byte order."""
    name, _, order = raw.rpartition(";16")
    if name not in ("RGB", "RGBX", "RGBA", "CMYK"):
        raise ImageError("image: of 16 bits with alpha only the upper eight are read; save it without alpha.")
    other = "L" if order == "B" or (order == "N" and sys.byteorder == "big") else "B"
    with _quiet():
        image: Any = Image.open(io.BytesIO(without_metadata(data)), formats=FORMATS)
    swapped = f"{name};16{other}"
    image.tile = [
        tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
        for tile in image.tile
    ]
    lower, colours = _upright(image), _colours(upper.mode)
    values = np.empty((upper.height, upper.width, len(colours)), np.uint16)
    for top in range(0, upper.height, ROWS):  # not all at once: of each there would be another copy
        rows = (0, top, upper.width, min(top + ROWS, upper.height))
        part = values[top : top + ROWS]
        part[:] = np.asarray(upper.crop(rows).convert(colours))
        part <<= 8
        part |= np.asarray(lower.crop(rows).convert(colours))
    return values


def _largest(image: Image.Image) -> int:
    """The largest value of any colour."""
    bands: Any = image.getextrema()  # of each band the lowest and the highest
    return int(max(high for _, high in bands[: len(_colours(image.mode))]))


def _colours(mode: str) -> str:
    """The mode without alpha."""
    return "CMYK" if mode == "CMYK" else "RGB"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Pillow's warnings to itself: of odd metadata, which is no concern here, and of sizes, checked here.

    The filters belong to the whole process: hence the lock, the short stretches, and a filter for Pillow alone,
    so that the worst that a race with another library's can do is to show or to hide one of Pillow's warnings.
    """
    with _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def image_id(name: str, data: bytes) -> str:
    """An image's identity: its file's name, if any, and the hash of its bytes."""
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{name}:{digest}" if (name := base_name(name)) else digest


def suffix_of(data: bytes) -> str:
    """The suffix of a file with these bytes, by how they begin; empty for what is none of the accepted formats."""
    return next((suffix for start, suffix in _STARTS.items() if data.startswith(start)), "")


def base_name(name: str) -> str:
    """A file's name without folders (of either kind of system) and without what cannot be printed."""
    short = PureWindowsPath(PurePosixPath(name).name).name
    return "".join(c for c in short if c.isprintable())[-MAX_NAME:]
