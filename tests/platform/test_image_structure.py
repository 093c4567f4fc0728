"""Files that are small, and whose pixels are few, but whose structure would keep a decoder busy or fill the memory."""

import io
import struct
import zlib

import pytest
from everline.methods.errors import ImageError
from everline.platform.image_structure import (
    MAX_PIECES,
    MAX_PIXEL_CHUNKS,
    MAX_RUN_LENGTH_PIXELS,
    MAX_SCANS,
    MAX_VALUES,
)
from everline.platform.images import decode
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image


def tiff(order: str, *tags: tuple[int, int, int, int | bytes], big: bool = False) -> bytes:
    """A TIFF with these tags (number, type, count, value or values)."""
    offset, entry, head, empty = ("Q", "HHQ", 16, 8) if big else ("I", "HHI", 8, 4)
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else mark + struct.pack(f"{order}HI", 42, 8)
    counted = struct.pack(order + ("Q" if big else "H"), len(tags))
    free = head + len(counted) + len(tags) * (struct.calcsize(order + entry) + empty) + empty
    entries, values = b"", b""
    for number, kind, count, value in tags:
        if isinstance(value, bytes):
            place, values = struct.pack(order + offset, free + len(values)), values + value
        else:
            place = struct.pack(order + {3: "H", 4: "I", 16: "Q"}[kind], value).ljust(empty, b"\0")
        entries += struct.pack(order + entry, number, kind, count) + place
    return start + counted + entries + b"\0" * empty + values


def tiled(side: int, kind: int, order: str = "<", big: bool = False) -> bytes:
    """A TIFF of 100 x 100 pixels in one tile of side x side."""
    raw = zlib.compress(b"\0" * 10_000)
    grey = [(256, 4, 1, 100), (257, 4, 1, 100), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tile = [(322, kind, 1, side), (323, kind, 1, side), (324, 4, 1, 8), (325, 4, 1, len(raw))]
    return tiff(order, *grey, *tile, big=big)


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True), (">", True)])
@pytest.mark.parametrize("kind", [3, 4])
def test_a_tiff_with_tiles_far_larger_than_itself_is_refused(kind: int, order: str, big: bool) -> None:
    with pytest.raises(ImageError, match="tiles of 900,000,000 pixels"):
        decode(tiled(30_000, kind, order, big))


def test_a_small_tiff_in_one_usual_tile_is_decoded() -> None:
    out, grey = io.BytesIO(), Image.new("L", (100, 100), 77)
    grey.save(out, "TIFF", compression="tiff_adobe_deflate", tiffinfo={322: 256, 323: 256})
    assert (decode(out.getvalue()) == 77).all()


@pytest.mark.parametrize("number", [258, 273, 279, 324])
def test_a_tiff_with_millions_of_values_in_a_tag_is_refused(number: int) -> None:
    many = MAX_VALUES + 1
    strips = (number, 4, many, struct.pack("<I", 8) * many)
    with pytest.raises(ImageError, match=f"tag {number} has 65,537 values"):
        decode(tiff("<", (256, 4, 1, 100), (257, 4, 1, 100), strips))


def test_exif_data_with_millions_of_values_is_not_read() -> None:
    out, exif = io.BytesIO(), tiff("<", (0x0112, 3, MAX_VALUES + 1, struct.pack("<H", 3) * (MAX_VALUES + 1)))
    Image.new("RGB", (4, 2)).save(out, "PNG", exif=exif)
    assert decode(out.getvalue()).shape == (2, 4, 3)


def png(*more: bytes, pixels: int = 1) -> bytes:
    """A grey PNG of 10 x 10 with more chunks, and its pixels in so many."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 0, 0, 0, 0))
    extra = b"".join(chunk(b"teSt", body) for body in more)
    return (
        head + extra + chunk(b"IDAT", zlib.compress(b"\0" * 110)) + chunk(b"IDAT", b"") * pixels + chunk(b"IEND", b"")
    )


def test_a_png_of_very_many_chunks_is_refused() -> None:
    assert decode(png(*[b""] * 100, pixels=100)).shape == (10, 10, 3)
    for bomb in (png(*[b""] * MAX_PIECES), png(pixels=MAX_PIXEL_CHUNKS)):
        with pytest.raises(ImageError, match="chunks"):
            decode(bomb)


def test_a_huge_chunk_beside_the_pixels_costs_no_more_than_its_bytes() -> None:
    assert decode(png(b"\0" * 2**24)).shape == (10, 10, 3)


def progressive() -> tuple[bytes, bytes]:
    """A progressive JPEG up to its end, and the last of its scans."""
    out = io.BytesIO()
    Image.linear_gradient("L").save(out, "JPEG", progressive=True)
    whole = out.getvalue().removesuffix(b"\xff\xd9")
    return whole, whole[whole.rindex(b"\xff\xda") :]


def test_a_jpeg_of_very_many_scans_or_segments_is_refused() -> None:
    whole, scan = progressive()
    assert decode(whole + scan * 20 + b"\xff\xd9").shape == (256, 256, 3)
    comments = whole[:2] + b"\xff\xfe\0\2" * (MAX_PIECES + 1) + whole[2:] + b"\xff\xd9"
    for bomb in (whole + scan * MAX_SCANS + b"\xff\xd9", comments):
        with pytest.raises(ImageError, match="scans"):
            decode(bomb)


def test_what_follows_a_jpeg_is_not_counted() -> None:
    """As phones append films to their pictures."""
    whole, scan = progressive()
    assert decode(whole + b"\xff\xd9" + scan * (MAX_SCANS + 1)).shape == (256, 256, 3)


def bmp(width: int, height: int) -> bytes:
    """A BMP in run-length encoding of one pixel in each row."""
    body = b"\1\0\0\0" * height + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + head + b"\0" * 1024 + body


def test_a_large_bmp_in_run_length_encoding_is_refused() -> None:
    assert decode(bmp(64, 48)).shape == (48, 64, 3)
    with pytest.raises(ImageError, match="run-length"):
        decode(bmp(MAX_RUN_LENGTH_PIXELS // 100 + 1, 100))


@given(
    st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"]), st.binary()
)
def test_any_bytes_after_a_signature_are_an_image_or_refused(start: bytes, rest: bytes) -> None:
    with pytest.raises(ImageError):
        decode(start + rest)
