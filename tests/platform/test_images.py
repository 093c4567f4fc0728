"""Bytes to pixels: every kind of image that is accepted, and every kind that is refused."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from everline.methods.errors import ConfigError, ImageError
from everline.platform.images import decode, prepare, views
from everline.platform.pictures import shrink
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from ..conftest import flat_webp

RAMP = np.arange(12 * 20 * 3, dtype=np.uint32).reshape(12, 20, 3).astype(np.uint8)  # 12 high, 20 wide


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_come_back_to_the_bit(kind: str, options: dict[str, Any]) -> None:
    got = decode(encoded(Image.fromarray(RAMP), kind, **options))
    assert got.dtype == np.uint8 and got.flags.writeable
    assert np.array_equal(got, RAMP)


def test_jpeg_comes_back_closely() -> None:
    smooth = np.broadcast_to(np.linspace(10, 240, 64).astype(np.uint8)[:, None, None], (64, 48, 3))
    got = decode(encoded(Image.fromarray(smooth), "JPEG", quality=95))
    assert got.shape == (64, 48, 3) and np.abs(got.astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA"])
def test_modes_without_colour_depth_become_rgb(mode: str) -> None:
    grey = Image.fromarray(np.where(RAMP[..., 0] > 99, 255, 0).astype(np.uint8))
    got = decode(encoded(grey.convert(mode)))
    assert np.array_equal(got, np.repeat(np.asarray(grey)[..., None], 3, 2))


def test_alpha_is_dropped_and_colours_stay() -> None:
    alpha = np.dstack([RAMP, np.zeros(RAMP.shape[:2], np.uint8)])  # wholly transparent
    assert np.array_equal(decode(encoded(Image.fromarray(alpha))), RAMP)


def test_palette_with_transparency_keeps_its_colours() -> None:
    palette = Image.fromarray(RAMP).quantize(16)
    got = decode(encoded(palette, transparency=bytes(range(16))))
    assert np.array_equal(got, np.asarray(palette.convert("RGB")))


def test_grey_with_a_transparent_value_keeps_it() -> None:
    assert np.array_equal(decode(encoded(Image.fromarray(RAMP[..., 0]), transparency=3))[..., 1], RAMP[..., 0])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    assert np.abs(decode(encoded(ink, kind)).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    deep = np.linspace(0, 65535, 40 * 30).reshape(40, 30).astype(np.uint16)
    got = decode(encoded(Image.fromarray(deep), kind))
    assert np.array_equal(got[..., 0], np.round(deep / 257).astype(np.uint8))
    assert got.min() == 0 and got.max() == 255


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype: type) -> None:
    with pytest.raises(ImageError, match=r"pixels of type '[IF]'"):
        decode(encoded(Image.fromarray(np.ones((8, 8), dtype)), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_pictures_come_upright(kind: str, turn: int) -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # the upper left quarter is white
    moves = {  # how a camera that is held so would store it
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(upright)
    stored = stored.transpose(moves[turn]) if turn in moves else stored
    exif = Image.Exif()
    exif[0x0112] = turn
    got = decode(encoded(stored, kind, exif=exif))
    assert got.shape == upright.shape and np.abs(got.astype(int) - upright).mean() < 3


def test_damaged_exif_neither_warns_nor_refuses() -> None:
    plain = encoded(Image.fromarray(RAMP), "JPEG")
    body = b"Exif\0\0II*\0\x08\0\0\0" + b"\x05\0" + b"\x12\x01\x02\0\xff\xff\0\0\xf0\xff\0\0" * 2
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    assert np.array_equal(decode(plain[:2] + segment + plain[2:]), decode(plain))


def test_a_damaged_tiff_tag_neither_warns_nor_refuses() -> None:
    plain = encoded(Image.fromarray(RAMP), "TIFF", description="x" * 20)
    entry = struct.pack("<HHI", 0x010E, 2, 21)  # the description: text of 21 bytes
    assert plain.count(entry) == 1
    broken = plain.replace(entry, struct.pack("<HHI", 0x010E, 2, 10**6))
    assert np.array_equal(decode(broken), RAMP)


def text(kind: str, value: bytes, name: bytes = b"Comment") -> PngImagePlugin.PngInfo:
    """One chunk of text in a PNG."""
    info = PngImagePlugin.PngInfo()
    before = {"tEXt": b"\0", "zTXt": b"\0\0", "iTXt": b"\0\1\0\0\0"}[kind]
    info.add(kind.encode(), name + before + (value if kind == "tEXt" else zlib.compress(value)))
    return info


NOISE = np.random.default_rng(0).bytes(2**21)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_long_colour_profile_is_no_damage(kind: str) -> None:
    want = decode(encoded(Image.fromarray(RAMP), kind))
    assert np.array_equal(decode(encoded(Image.fromarray(RAMP), kind, icc_profile=NOISE)), want)


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
@pytest.mark.parametrize("name", [b"Comment", b"XML:com.adobe.xmp", b"Raw profile type exif"])
def test_long_text_is_no_damage(kind: str, name: bytes) -> None:
    data = encoded(Image.fromarray(RAMP), pnginfo=text(kind, b"y" * 2**22, name))
    assert np.array_equal(decode(data), RAMP)


def test_damaged_text_is_no_damage_of_the_image() -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"zTXt", b"Comment\0\7not packed so")
    info.add(b"iCCP", b"profile\0\7not packed so")
    assert np.array_equal(decode(encoded(Image.fromarray(RAMP), pnginfo=info)), RAMP)


@pytest.mark.parametrize("before", [0, 1])
def test_which_side_is_up_is_read_from_text_of_bounded_length(before: int) -> None:
    """before: whether text that takes all there is comes first."""
    turn = b'<x tiff:Orientation="6"/>'
    info = text("iTXt", b"y" * 2**22 if before else b"y", b"XML:com.adobe.xmp")
    info.add(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + turn)
    got = decode(encoded(Image.fromarray(RAMP), pnginfo=info))
    assert np.array_equal(got, RAMP if before else np.rot90(RAMP, -1))


def test_text_is_unpacked_up_to_a_bound_however_much_of_it_there_is() -> None:
    info = PngImagePlugin.PngInfo()
    for _ in range(1_900):
        info.add(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(b"y" * 2**16))
    assert np.array_equal(decode(encoded(Image.fromarray(RAMP), pnginfo=info)), RAMP)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"hello, world", b"<svg/>", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="image: "):
        decode(data)


@pytest.mark.parametrize("kind", ["GIF", "PPM", "ICO"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(ImageError, match="PNG, JPEG, BMP, TIFF, WEBP"):
        decode(encoded(Image.fromarray(RAMP), kind))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP"]), st.integers(0, 10**6), st.integers(0, 255))
def test_a_changed_byte_gives_an_image_or_an_image_error(kind: str, where: int, value: int) -> None:
    data = bytearray(encoded(Image.fromarray(RAMP), kind))
    data[where % len(data)] = value
    cause: BaseException | None = None
    try:
        assert decode(bytes(data), max_pixels=10**6).dtype == np.uint8
    except ImageError as error:
        cause = error.__cause__
    assert not isinstance(cause, Warning)  # a warning must neither leak nor turn into a refusal


@pytest.mark.parametrize("side", [12_248, 13_000, 60_000])
def test_bombs_are_refused_by_their_header(side: int) -> None:
    with pytest.raises(ImageError, match="at most 150,000,000"):
        decode(bomb(side, side))


def test_an_allowed_size_near_pillows_own_limit_is_only_truncated() -> None:
    with pytest.raises(ImageError, match="truncated"):  # not refused for its size, and no warning leaks
        decode(bomb(9_600, 9_600), max_pixels=100_000_000)


def test_limits_can_be_set() -> None:
    data = encoded(Image.fromarray(RAMP))
    assert decode(data, max_pixels=240, max_bytes=len(data)).shape == (12, 20, 3)
    with pytest.raises(ImageError, match="20 x 12 pixels; at most 239"):
        decode(data, max_pixels=239)
    with pytest.raises(ImageError, match="bytes; at most"):
        decode(data, max_bytes=len(data) - 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_several_frames_are_refused(kind: str) -> None:
    more = [Image.fromarray(255 - RAMP)]
    with pytest.raises(ImageError, match="several frames"):
        decode(encoded(Image.fromarray(RAMP), kind, save_all=True, append_images=more))


def test_the_main_picture_of_a_phone_is_taken() -> None:
    first, second = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (16, 16), "black")
    got = decode(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert got.min() > 250


def test_prepare_is_a_plain_antialiased_resize() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (96, 64, 3)).astype(np.uint8)
    got = prepare(encoded(Image.fromarray(noise)), 32)
    want = np.asarray(Image.fromarray(noise).resize((32, 32), Image.Resampling.BILINEAR))
    assert got.dtype == torch.uint8 and got.shape == (3, 32, 32) and got.is_contiguous()
    assert np.array_equal(got.permute(1, 2, 0).numpy(), want)
    assert got.float().std() < 0.6 * noise.std()  # it averages; picking single pixels would not lessen the noise


def test_prepare_keeps_the_edges() -> None:
    framed = np.zeros((100, 300, 3), np.uint8)
    framed[:, :30] = framed[:, -30:] = 255
    got = prepare(encoded(Image.fromarray(framed)), 50)
    assert got[:, :, 0].min() == 255 and got[:, :, -1].min() == 255 and got[:, 25, 25].max() == 0


def test_prepare_refuses_a_size_of_nothing() -> None:
    with pytest.raises(ConfigError, match="size"):
        prepare(encoded(Image.fromarray(RAMP)), 0)


def test_many_threads_decode_at_once() -> None:
    data = [encoded(Image.fromarray(np.roll(RAMP, n)), kind) for n, kind in enumerate(["PNG", "TIFF", "BMP"] * 30)]
    with ThreadPoolExecutor(8) as pool:
        for n, got in enumerate(pool.map(decode, data)):
            assert np.array_equal(got, np.roll(RAMP, n))


def rooms(asked: list[int]) -> Any:
    """Room for any image; says for how many pixels it was asked, and -1 when one is done."""

    @contextmanager
    def room(pixels: int) -> Iterator[None]:
        asked.append(pixels)
        yield
        asked.append(-1)

    return room


@pytest.mark.parametrize("turn", [1, 6])
def test_one_decoding_gives_all_that_is_wanted_of_an_image(turn: int) -> None:
    noise, exif, asked = np.random.default_rng(0).integers(0, 256, (96, 64, 3)).astype(np.uint8), Image.Exif(), []
    exif[0x0112] = turn
    data = encoded(Image.fromarray(noise), "JPEG", exif=exif)
    got = views(data, (32, 50), 40, room=rooms(asked))
    assert got.squares.keys() == {32, 50}
    assert all(torch.equal(square, prepare(data, size)) for size, square in got.squares.items())
    assert np.array_equal(got.picture, shrink(decode(data), 40))
    assert np.array_equal(views(data, side=96).picture, decode(data))
    assert asked == [96 * 64, -1]


@pytest.mark.parametrize(("data", "asked"), [(bomb(9_000, 9_000), [81_000_000, -1]), (bomb(60_000, 60_000), [])])
def test_room_is_asked_for_what_the_header_says_before_pixels_are_decoded(data: bytes, asked: list[int]) -> None:
    seen: list[int] = []
    with pytest.raises(ImageError):
        decode(data, room=rooms(seen))
    assert seen == asked[: len(seen)] and len(seen) >= len(asked) - 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "MPO", "BMP", "TIFF", "WEBP"])
def test_the_size_is_checked_by_the_header_in_every_format(kind: str) -> None:
    seen: list[int] = []
    with pytest.raises(ImageError, match="20 x 12 pixels; at most 239"):
        decode(encoded(Image.fromarray(RAMP), kind), max_pixels=239, room=rooms(seen))
    assert seen == []


def test_a_small_webp_of_very_many_pixels_is_refused() -> None:
    seen: list[int] = []
    assert decode(flat_webp(200)).shape == (200, 200, 3)
    with pytest.raises(ImageError, match="10000 x 10000 pixels"):
        decode(flat_webp(10_000), max_pixels=50_000_000, room=rooms(seen))
    assert seen == []


KEPT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from psutil import Process
from everline.platform.images import prepare
data = sys.stdin.buffer.read()
def one(_):
    with ThreadPoolExecutor(1) as pool:  # a new thread, and so another arena
        pool.submit(prepare, data, 64).result()
before = Process().memory_info().rss
with ThreadPoolExecutor(6) as pool:
    for _ in range(2):
        list(pool.map(one, range(6)))
print((Process().memory_info().rss - before) / 2**20)
"""


def test_threads_keep_no_memory_of_the_images_that_they_decoded() -> None:
    ran = subprocess.run([sys.executable, "-c", KEPT], input=flat_webp(5_000), capture_output=True, check=True)
    assert float(ran.stdout) < 90  # of one image: 95 MiB
