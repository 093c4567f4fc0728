"""16-bit files of cameras that have fewer bits: what counts, and when it is said that bits are not used."""

import io
import logging
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from everline.methods.errors import ImageError
from everline.platform.depth import ENOUGH, Unused
from everline.platform.images import decode, views
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

RAMP = (np.arange(40 * 30) * 4095 // 1199).reshape(40, 30).astype(np.uint16)  # all 12 bits
EIGHT = np.round(RAMP / 4095 * 255).astype(np.uint8)
SCALED = (RAMP << 4) | (RAMP >> 8)  # as PNG wants values of 12 bits: the upper bits once more below
OME = '<?xml version="1.0"?><OME><Pixels SignificantBits="12" Type="uint16"/></OME>'


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(values: NDArray[np.uint16], *sbit: int) -> bytes:
    """A PNG of 16 bits, (H, W) or (H, W, 2 to 4), which says how many are significant."""
    height, width, *rest = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[rest[0] if rest else 1]
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"sBIT", bytes(sbit))] if sbit else []
    made = [chunk(b"IHDR", head), *parts, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


def tiff(values: NDArray[np.uint16], tags: dict[int, Any] | None = None, **options: Any) -> bytes:
    """A grey TIFF of 16 bits."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in (tags or {}).items():
        directory[tag] = value
    out = io.BytesIO()
    Image.fromarray(values).save(out, "TIFF", tiffinfo=directory, **options)
    return out.getvalue()


def rgb_tiff(values: NDArray[np.uint16], order: str, largest: int) -> bytes:
    """An uncompressed TIFF of 16 bits a colour; Pillow writes none. order: < or >."""
    raw = values.astype(f"{order}u2").tobytes()
    height, width, _ = values.shape
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 0)]
    tags += [(277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(raw)), (281, 3, 1, largest)]
    head = 8 + 2 + 12 * len(tags) + 4
    places = {258: head, 273: head + 6}
    entries = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + struct.pack(
            order + ("HH" if kind == 3 and count == 1 else "I"),
            *((value, 0) if kind == 3 and count == 1 else (places.get(tag, value),)),
        )
        for tag, kind, count, value in tags
    )
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return start + entries + b"\0" * 4 + struct.pack(f"{order}HHH", 16, 16, 16) + raw


@pytest.mark.parametrize(
    "data",
    [
        png(RAMP, 12),
        tiff(RAMP, {341: 4095.0}),
        tiff(RAMP, {281: 4095}),
        tiff(RAMP, {270: OME}, compression="tiff_lzw"),
        tiff(RAMP.astype(">u2"), {281: 4095}),
        tiff(RAMP, {270: OME}),
    ],
    ids=["sBIT", "SMaxSampleValue", "MaxSampleValue", "compressed", "big-endian", "OME"],
)
def test_what_a_file_says_of_its_bits_counts(data: bytes) -> None:
    got = views(data, side=64)
    assert np.array_equal(got.picture[..., 1], EIGHT) and got.unsure == 0  # type: ignore[index]


@pytest.mark.parametrize("sbit", [8, 10, 12, 14])
def test_values_that_were_scaled_up_as_png_wants_it_stay_so_however_dark(sbit: int) -> None:
    deep = (np.arange(1 << sbit, dtype=np.uint64) * 65535 + (1 << sbit - 1)) // ((1 << sbit) - 1)
    deep = deep.astype(np.uint16)
    want = np.round(deep / 257).astype(np.uint8)
    for part in (len(deep), len(deep) // 16, 1):  # all levels, the lowest sixteenth, black
        got = decode(png(deep[:part].reshape(1, -1), sbit))
        assert np.array_equal(got[0, :, 0], want[:part])
    assert views(png(SCALED, 12), side=64).unsure == 0


def test_a_file_whose_values_contradict_what_it_says_is_read_as_16_bits() -> None:
    wide = RAMP * 16
    for data in (tiff(wide, {341: 4095.0}), tiff(wide, {281: 3000}), tiff(wide, {270: 'SignificantBits="99"'})):
        assert np.array_equal(decode(data)[..., 0], np.round(wide / 257).astype(np.uint8))


def test_a_tiff_of_12_packed_bits_has_its_contrast() -> None:
    pairs = RAMP.reshape(-1, 2).astype(np.uint32)
    raw = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
    data = tiff(RAMP)
    at = data.index(RAMP.tobytes())
    packed = data[:at] + raw.astype(np.uint8).tobytes() + data[at + RAMP.nbytes :]
    entry = struct.pack("<HHI", 258, 3, 1)
    packed = packed.replace(entry + struct.pack("<H", 16), entry + struct.pack("<H", 12))
    assert np.array_equal(decode(packed)[..., 0], EIGHT)


@pytest.mark.parametrize(("order", "bits"), [("<", 10), ("<", 14), (">", 12)])
def test_other_packed_bits_are_refused_by_name(order: str, bits: int) -> None:
    data = tiff(RAMP.astype(f"{order}u2"))
    entry = struct.pack(f"{order}HHI", 258, 3, 1)
    assert data.count(entry) == 1
    with pytest.raises(ImageError, match=f"TIFF of {bits} bits a pixel, packed; save it with 16"):
        decode(data.replace(entry + struct.pack(f"{order}H", 16), entry + struct.pack(f"{order}H", bits)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_the_setting_counts_before_the_file(bits: int, kind: str) -> None:
    values = (RAMP >> 12 - bits if bits < 12 else RAMP << bits - 12).astype(np.uint16)
    data = png(values, 9) if kind == "png" else tiff(values, {281: 511})
    want = np.round(values / (2**bits - 1) * 255).astype(np.uint8)
    assert np.array_equal(decode(data, bits=bits)[..., 2], want)


def test_a_value_above_the_setting_is_refused_not_cut_off() -> None:
    with pytest.raises(ImageError, match=r"values up to 4,095, but with the setting bits: 10 none is above 1,023"):
        views(tiff(RAMP), side=8, bits=10, strict=True)
    colours = np.stack([RAMP, RAMP // 64, RAMP // 64], 2)
    with pytest.raises(ImageError, match="values up to 4,095"):
        views(png(colours), side=8, bits=10, strict=True)


def test_in_a_log_such_an_image_is_read_as_16_bits() -> None:
    assert np.array_equal(decode(tiff(RAMP), bits=10), decode(tiff(RAMP), bits=16))
    colours = np.stack([RAMP, RAMP, RAMP], 2)
    assert np.array_equal(decode(png(colours), bits=10), decode(png(colours), bits=16))


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_read_to_their_lowest(channels: int) -> None:
    values = np.stack([RAMP, RAMP[::-1], RAMP // 3, RAMP[:, ::-1]], 2)[..., :channels]
    want = np.round(values[..., :3] / 4095 * 255).astype(np.uint8)
    assert np.array_equal(decode(png(values, *[12] * channels)), want)
    assert np.array_equal(decode(png(values), bits=12), want)
    wide = np.stack([SCALED, SCALED[::-1], SCALED // 3, SCALED], 2)[..., :channels]
    assert np.array_equal(decode(png(wide, *[12] * channels)), (wide[..., :3] >> 8).astype(np.uint8))
    assert np.array_equal(decode(png(values), bits=16), (values[..., :3] >> 8).astype(np.uint8))
    assert views(png(values), side=8).unsure == 12


@pytest.mark.parametrize("order", "<>")
def test_a_tiffs_colours_too(order: str) -> None:
    values = np.stack([RAMP, RAMP[::-1], RAMP // 3], 2)
    assert np.array_equal(decode(rgb_tiff(values, order, 4095)), np.round(values / 4095 * 255).astype(np.uint8))


def test_grey_with_alpha_is_refused_where_its_lower_bits_are_needed() -> None:
    values = np.stack([RAMP, RAMP], 2)
    assert np.array_equal(decode(png(values))[..., 0], RAMP >> 8)
    with pytest.raises(ImageError, match="save it without alpha"):
        decode(png(values), bits=12)


def test_files_of_eight_bits_mind_no_setting() -> None:
    out = io.BytesIO()
    Image.fromarray(EIGHT).save(out, "PNG")
    assert np.array_equal(decode(out.getvalue(), bits=12)[..., 0], EIGHT)


@pytest.mark.parametrize(("value", "bits"), [(255, 8), (1000, 10), (4095, 12), (16383, 14), (60_000, 16)])
def test_how_many_bits_are_in_use_is_told_where_nobody_says_so(value: int, bits: int) -> None:
    values = np.array([[0, value]], np.uint16)
    assert [views(data, side=8).unsure for data in (png(values), tiff(values))] == [bits, bits]
    assert views(png(values), side=8, bits=16).unsure == 0


def test_unused_upper_bits_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    line = Unused("line mono")
    with caplog.at_level(logging.WARNING):
        for bits in [9, 0, 11, 12, 12, 10, 12, 12, 12, 12, 12, 12, 12, 12]:
            line.see(bits)
    (said,) = caplog.messages
    assert said.startswith(f"line mono: the first {ENOUGH} 16-bit images use their lower 12 bits only")
    assert "set bits: 12" in said and line.advice in said


@pytest.mark.parametrize("bits", [15, 16])
def test_one_image_that_uses_the_upper_bits_is_enough(bits: int, caplog: pytest.LogCaptureFixture) -> None:
    line = Unused("line mono")
    for one in [12, 12, bits, *[12] * 20]:
        line.see(one)
    assert not line.advice and not caplog.messages
