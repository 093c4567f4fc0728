"""Check how an image file is built, before a decoder reads it: some small files cost far more than their pixels.

Measured with the decoders in use, on files within all other limits: a TIFF of 100 x 100 pixels in one tile of
16,000 x 16,000 took 770 MB, one with 4 million strips more than 100 s, a progressive JPEG 0.05 s for each 75 bytes
of a further scan. The bounds here are far above what cameras and image programs write.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from ..methods.errors import ImageError

MAX_SCANS = 100  # of a JPEG; a progressive one has about 10
MAX_PIECES = 2_000  # segments of a JPEG, and chunks of a PNG other than its pixels
MAX_PIXEL_CHUNKS = 100_000  # of a PNG; libpng writes 8 KiB in each
MAX_TEXT = 2**20  # bytes of a PNG's texts, unpacked, that are looked at; Pillow refuses a file with a longer one
MAX_VALUES = 2**16  # of a TIFF's tag, so also strips or tiles
MAX_TAGS = 1_000
SMALL_TILE = 2**22  # pixels; a larger tile has at most twice the pixels of its image
MAX_RUN_LENGTH_PIXELS = 8_000_000  # of a BMP in run-length encoding, which is decoded slowly
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG, but those within the pixels of a scan
_TURNS = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # of a PNG's texts: those that may say which side is up
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PLAIN = (1, 2, 6, 7)  # types of a TIFF's values that are read as bytes
_WHOLE = {3: 2, 4: 4, 16: 8}  # types of whole numbers: their bytes
_WIDTH, _HEIGHT, _BITS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 322, 323


def check_structure(data: bytes) -> None:
    """Raise ImageError for a file that is built to cost much; what is damaged is left to the decoder."""
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        _check_png(data)
    elif data.startswith((b"II", b"MM")):
        check_tiff(data)
    elif data.startswith(b"BM"):
        _check_bmp(data)


def check_tiff(data: bytes) -> None:
    """Check the tags of a TIFF's first page, or of EXIF data. Raise ImageError."""
    sides = dict.fromkeys((_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT), 0)
    for tag in _tags(data):
        if tag.kind not in _PLAIN and tag.count > MAX_VALUES:
            raise ImageError(
                f"image: a TIFF whose tag {tag.number} has {tag.count:,} values, more than {MAX_VALUES:,}."
            )
        if tag.number == _BITS and 8 < tag.value < 16 and not (tag.value == 12 and data.startswith(b"II")):
            raise ImageError(f"image: a TIFF of {tag.value} bits a pixel, packed; save it with 16.")
        if tag.number in sides:
            sides[tag.number] = max(sides[tag.number], tag.value)
    tile = sides[_TILE_WIDTH] * sides[_TILE_HEIGHT]
    if tile > max(SMALL_TILE, 2 * sides[_WIDTH] * sides[_HEIGHT]):
        raise ImageError(f"image: a TIFF whose tiles of {tile:,} pixels are far larger than the image.")


@dataclass(frozen=True)
class _Tag:
    number: int
    kind: int
    count: int
    value: int  # of a single whole number; 0 for anything else


def _tags(data: bytes) -> Iterator[_Tag]:
    """Yield the tags of the first page; none where the header is damaged."""
    order = "<" if data[:2] == b"II" else ">"
    big = len(data) > 3 and b"\x2b" in data[2:4]  # with 64-bit offsets
    where, count_of, entry, field = (8, "Q", "HHQ8s", 20) if big else (4, "H", "HHI4s", 12)
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, where)
        (count,) = struct.unpack_from(order + count_of, data, start)
        if count > MAX_TAGS:
            raise ImageError(f"image: a TIFF with {count:,} tags, more than {MAX_TAGS:,}.")
        first = start + struct.calcsize(order + count_of)
        for at in range(first, first + count * field, field):
            number, kind, values, raw = struct.unpack_from(order + entry, data, at)
            yield _Tag(number, kind, values, _whole(order, kind, values, raw))
    except (struct.error, OverflowError):
        return


def _whole(order: str, kind: int, values: int, raw: bytes) -> int:
    size = _WHOLE.get(kind)
    if size is None or values != 1 or size > len(raw):
        return 0
    return int.from_bytes(raw[:size], "little" if order == "<" else "big")


def chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of a PNG's chunks up to its last; one that is cut off ends behind the file."""
    at = 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at, at + 12 + length
        if kind == b"IEND":
            return
        at += 12 + length


def _check_png(data: bytes) -> None:
    pixels, others = 0, 0
    for kind, _, _ in chunks(data):
        pixels, others = (pixels + 1, others) if kind == b"IDAT" else (pixels, others + 1)
        if pixels > MAX_PIXEL_CHUNKS or others > MAX_PIECES:
            raise ImageError(
                f"image: a PNG of more than {MAX_PIXEL_CHUNKS:,} chunks of pixels, or {MAX_PIECES:,} others; "
                "save it again with another program."
            )


def without_metadata(data: bytes) -> bytes:
    """Return a PNG without its colour profile and texts, which are not needed and may be damaged or very long.

    Texts that may say which side is up stay, as long as all of them take at most `MAX_TEXT`. Other files, and whatever
    stands behind a chunk that is cut off, are returned as they are.
    """
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept, behind, room = [], 0, MAX_TEXT  # behind: the end of what was looked at last, and left out
    for kind, start, end in chunks(data):
        needed = kind != b"iCCP" or end > len(data)
        if kind in _TEXTS and end <= len(data):
            size = _text_size(kind, data[start + 8 : end - 4], room)
            needed, room = 0 < size <= room, room - size
        if not needed:
            kept.append(data[behind:start])
            behind = end
    return b"".join([*kept, data[behind:]]) if kept else data


def _text_size(kind: bytes, body: bytes, most: int) -> int:
    """Return the unpacked bytes of a text that may say which side is up, `most` + 1 if more; 0 for any other text."""
    name, _, rest = body.partition(b"\0")
    if name not in _TURNS or most < 0:
        return 0
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] == b"\0"):
        return min(len(body), most + 1)
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    try:
        return max(1, len(zlib.decompressobj().decompress(packed, most + 1)))
    except zlib.error:
        return 0


def _check_jpeg(data: bytes) -> None:
    """Walk over the first picture's segments; what follows its end (previews, films) is never read."""
    at, pieces, scans = 2, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        kind, at = data[found.end() - 1], found.end()
        if kind == 0xD9:
            return
        pieces, scans = pieces + 1, scans + (kind == 0xDA)
        if pieces > MAX_PIECES or scans > MAX_SCANS:
            raise ImageError(
                f"image: a JPEG of more than {MAX_SCANS} scans or {MAX_PIECES:,} segments; save it as a baseline JPEG."
            )
        at += 0 if kind in (0x01, 0xD8) else int.from_bytes(data[at : at + 2], "big")  # those two have no length


def _check_bmp(data: bytes) -> None:
    if len(data) < 34 or data[14:18] == b"\x0c\0\0\0":  # the oldest kind has no compression
        return
    width, height, _, _, compression = struct.unpack_from("<iiHHI", data, 18)
    if compression in (1, 2) and abs(width * height) > MAX_RUN_LENGTH_PIXELS:
        raise ImageError(
            f"image: a BMP of {width} x {abs(height)} pixels in run-length encoding, which may have "
            f"{MAX_RUN_LENGTH_PIXELS:,}; save it without compression."
        )
