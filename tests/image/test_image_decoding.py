"""Compares decoded images of every format with Pillow."""

import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentq import ImageError, image
from support.images import PLAIN, noise, picture_of, pillow, png, saved

SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (7, 8), (8, 8), (15, 17), (16, 16), (33, 31), (64, 129), (240, 321)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:4:0", "4:1:1"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_decode_to_the_pixels_of_pillow(size: tuple[int, int], subsampling: str, progressive: bool) -> None:
    for quality in (5, 75, 100):
        # OpenCV writes the samplings that Pillow cannot.
        sampling = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{subsampling.replace(':', '')}")
        options = {
            cv2.IMWRITE_JPEG_QUALITY: quality,
            cv2.IMWRITE_JPEG_PROGRESSIVE: int(progressive),
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR: sampling,
        }
        data = cv2.imencode(".jpg", noise(*size), [value for pair in options.items() for value in pair])[1].tobytes()
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_jpegs_decode_to_the_pixels_of_pillow(size: tuple[int, int], mode: str) -> None:
    for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}, {"restart_marker_rows": 1}):
        data = saved(picture_of(mode, *size), "JPEG", **options)
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


@pytest.mark.parametrize("size", SIZES)
def test_ycck_and_rgb_jpegs_decode_to_the_pixels_of_pillow(size: tuple[int, int]) -> None:
    ycck = bytearray(saved(picture_of("CMYK", *size), "JPEG"))
    ycck[ycck.index(b"Adobe") + 11] = 2  # Adobe's transform: the same numbers, read as YCCK.
    for data in (bytes(ycck), saved(picture_of("RGB", *size), "JPEG", keep_rgb=True)):
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pngs_decode_to_the_pixels_of_pillow(size: tuple[int, int], mode: str) -> None:
    data = saved(picture_of(mode, *size), "PNG")
    np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 30}, {"quality": 95, "method": 0}])
def test_webps_decode_to_the_pixels_of_pillow(size: tuple[int, int], mode: str, options: dict[str, Any]) -> None:
    data = saved(picture_of(mode, *size), "WEBP", **options)
    np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_gifs_and_bmps_decode_to_the_pixels_of_pillow(size: tuple[int, int], mode: str) -> None:
    picture = picture_of(mode, *size)
    files = [saved(picture, "BMP"), saved(picture, "GIF"), saved(picture, "GIF", interlace=0)]
    if mode in ("L", "P"):
        files.append(saved(picture, "GIF", transparency=5))
    for data in files:
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


TIFF_MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", TIFF_MODES)
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd"])
def test_tiffs_decode_to_the_pixels_of_pillow(mode: str, compression: str | None) -> None:
    # Pillow needs 50 ms for each conversion from LAB.
    for size in [(33, 31)] if mode == "LAB" else SIZES:
        picture = picture_of(mode, *size)
        variants: list[dict[str, Any]] = [{}, {"strip_size": 100}]
        if size in ((2, 3), (33, 31)):
            variants += [{"tiffinfo": {274: 6}}, {"big_tiff": True}]
            # Pillow does not write predictors for bits, floats or uncompressed data.
            if mode not in ("1", "F") and compression not in (None, "packbits"):
                variants.append({"tiffinfo": {317: 2}})
        for options in variants:
            data = saved(picture, "TIFF", compression=compression, **options)
            expected = pillow(data)
            np.testing.assert_array_equal(image.decode(data, **PLAIN), expected)
            np.testing.assert_array_equal(image.decode(data, alpha="drop", icc="ignore"), expected)


@pytest.mark.parametrize(
    ("compression", "flags"),
    [("tiff_ccitt", 0), ("group3", 0), ("group3", 1), ("group3", 4), ("group3", 5), ("group4", 0)],
)
def test_faxes_in_tiffs_decode_to_the_written_pixels(compression: str, flags: int) -> None:
    # Not compared with Pillow, because libtiff loses the last run of the smallest tiff_ccitt files.
    for size in [*SIZES, (50, 5000)]:
        for picture in (picture_of("1", *size), picture_of("L", *size).point(lambda level: 255 * (level > 150), "1")):
            expected = np.asarray(picture.convert("RGB"))
            for options in ({"tiffinfo": {292: flags}}, {"strip_size": 100}, {"tiffinfo": {266: 2, 292: flags}}):
                data = saved(picture, "TIFF", compression=compression, **options)
                np.testing.assert_array_equal(image.decode(data, **PLAIN), expected)
                if compression != "tiff_ccitt":
                    np.testing.assert_array_equal(pillow(data), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_jpegs_in_tiffs_decode_to_the_pixels_of_pillow(mode: str) -> None:
    for size in [(33, 31)] if mode == "LAB" else SIZES:
        for options in ({}, {"strip_size": size[1] * 4 * 16}, {"quality": 30}):
            data = saved(picture_of(mode, *size), "TIFF", compression="jpeg", **options)
            np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


def test_sixteen_bits_become_eight_as_in_pillow() -> None:
    gray = (np.arange(24 * 31, dtype=np.uint16).reshape(24, 31) * 88).byteswap().view(">u2").astype(np.uint16)
    color = np.random.default_rng(0).integers(0, 1 << 16, (24, 31, 4)).astype(np.uint16)
    picture = Image.fromarray(gray)
    files = [saved(picture, "PNG"), *(saved(picture, "TIFF", compression=c) for c in (None, "tiff_lzw"))]
    for channels in (3, 4):
        files += [cv2.imencode(extension, color[..., :channels])[1].tobytes() for extension in (".png", ".tiff")]
    for data in files:
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


def bmp(bits: int, compression: int, size: tuple[int, int], pixels: bytes, masks: tuple[int, ...] = ()) -> bytes:
    """Returns a BMP of a kind that Pillow does not write."""
    header = struct.pack("<IiiHHIIiiII", 40 if len(masks) < 4 else 56, *size, 1, bits, compression, 0, 0, 0, 0, 0)
    header += struct.pack(f"<{len(masks)}I", *masks)
    palette = bytes(range(256)) * 4 if bits <= 8 else b""
    palette = palette[: 4 << bits] if bits <= 8 else b""
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + len(header) + len(palette)) + header + palette + pixels


def test_bmps_of_every_kind_decode_to_the_pixels_of_pillow() -> None:
    noise_bytes = np.random.default_rng(0).bytes(4 * 16 * 9)
    layouts = [
        *((bits, 0, ()) for bits in (1, 4, 8, 16, 24, 32)),
        (16, 3, (0xF800, 0x7E0, 0x1F)),
        (16, 3, (0x7C00, 0x3E0, 0x1F)),
        (24, 3, (0xFF0000, 0xFF00, 0xFF)),
        (32, 3, (0xFF0000, 0xFF00, 0xFF)),
        (32, 3, (0xFF000000, 0xFF0000, 0xFF00, 0x0)),
        (32, 3, (0xFF000000, 0xFF00, 0xFF, 0x0)),
        (32, 3, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
        (32, 3, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
        (32, 3, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
        (32, 3, (0xFF000000, 0xFF00, 0xFF, 0xFF0000)),
    ]
    for bits, compression, masks in layouts:
        for size in ((16, 9), (13, 9), (13, -9), (1, 1)):
            data = bmp(bits, compression, size, noise_bytes, masks)
            np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))
    # Runs: encoded, literal of odd and even length, a step, the end of a line and of the image.
    runs = bytes([3, 7, 0, 3, 1, 2, 3, 0, 0, 4, 9, 8, 7, 6, 0, 0, 5, 200, 0, 2, 3, 1, 4, 66, 0, 0] + [13, 90, 0, 0] * 9)
    for bits, compression in ((8, 1), (4, 2)):
        data = bmp(bits, compression, (13, 9), runs)
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


@pytest.mark.parametrize("colors", [1, 2])
@pytest.mark.parametrize(("bits", "compression"), [(8, 1), (4, 2)])
def test_runs_of_a_black_and_white_palette_become_0_and_255(bits: int, compression: int, colors: int) -> None:
    palette = bytes(4) + b"\xff\xff\xff\0"
    runs = bytes([4, 0x11, 0, 0, 2, 0, 2, 0x10, 0, 0, 4, 0x03, 0, 1])
    start = 54 + 4 * colors
    header = struct.pack("<IHHIIiiHHIIiiII", 0, 0, 0, start, 40, 4, 3, 1, bits, compression, 0, 0, 0, colors, 0)
    data = b"BM" + header + palette[: 4 * colors] + runs
    pixels = image.decode(data, **PLAIN)
    np.testing.assert_array_equal(pixels, pillow(data))
    assert pixels[2, :, 0].tolist() == [255] * 4


def with_tag(data: bytes, tag: int, value: int | None) -> bytes:
    """Returns a little-endian TIFF with the number of a tag changed, or with the tag made an unknown one."""
    start = struct.unpack_from("<I", data, 4)[0]
    changed = bytearray(data)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == tag:
            assert struct.unpack_from("<I", data, entry + 4)[0] == 1
            if value is None:
                changed[entry : entry + 2] = struct.pack("<H", 65000)
            else:
                changed[entry + 8 : entry + 12] = struct.pack("<I", value)
    return bytes(changed)


COMPRESSIONS = ["tiff_ccitt", "group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "jpeg", None]


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("count", [0, None])
def test_a_single_strip_without_its_length_is_read_to_the_end(compression: str | None, count: int | None) -> None:
    picture = picture_of("L" if compression == "jpeg" else "1", 40, 64)
    whole = saved(picture, "TIFF", compression=compression)
    data = with_tag(whole, 279, count)
    assert data != whole
    np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))
    np.testing.assert_array_equal(image.decode(data, **PLAIN), image.decode(whole, **PLAIN))


def float_tiff(values: NDArray[np.float32], compression: int, predictor: int, rows: int) -> bytes:
    """Returns a TIFF of floats in strips of `rows` rows, stored with predictor 3 if that is the number given."""
    height, width = values.shape
    strips = []
    for top in range(0, height, rows):
        stored = b""
        for row in values[top : top + rows]:
            sorted_bytes = row.astype(">f4").view(np.uint8).reshape(width, 4).T.ravel()
            differences = np.diff(sorted_bytes, prepend=np.uint8(0))
            stored += (differences if predictor == 3 else row.astype("<f4").view(np.uint8)).tobytes()
        strips.append(zlib.compress(stored) if compression == 8 else stored)
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [32]), (259, 3, [compression]), (262, 3, [1])]
    tags += [(273, 4, [0] * len(strips)), (277, 3, [1]), (278, 4, [rows]), (279, 4, [len(strip) for strip in strips])]
    tags += [(317, 3, [predictor]), (339, 3, [3])]
    lists = 8 + 2 + 12 * len(tags) + 4
    first = lists + 2 * 4 * len(strips)
    offsets = [first + sum(map(len, strips[:number])) for number in range(len(strips))]
    tags[5] = (273, 4, offsets)
    entries, outside = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            entries += struct.pack("<HHII", tag, kind, len(numbers), lists + len(outside))
            outside += packed
        else:
            entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(tags))
        + entries
        + bytes(4)
        + outside.ljust(first - lists, b"\0")
        + (b"".join(strips))
    )


@pytest.mark.parametrize("rows", [31, 7])
@pytest.mark.parametrize("width", [1, 2, 33])
def test_the_predictor_of_floats_is_reversed(width: int, rows: int) -> None:
    values = (noise(31, width)[..., 0] - np.float32(20.3)) * np.float32(1.3)
    data = float_tiff(values, 8, 3, rows)
    pixels = image.decode(data, **PLAIN)
    np.testing.assert_array_equal(pixels, pillow(data))
    np.testing.assert_array_equal(pixels[..., 0], values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("predictor", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("compression", [1, 8])
def test_predictors_are_read_or_refused_as_by_pillow(compression: int, predictor: int) -> None:
    data = float_tiff((noise(5, 9)[..., 0] - np.float32(20.3)), compression, predictor if compression == 8 else 1, 5)
    data = with_tag(data, 317, predictor)
    try:
        expected = pillow(data)
    except (OSError, ValueError):
        with pytest.raises(ImageError, match="predictor"):
            image.decode(data)
    else:
        np.testing.assert_array_equal(image.decode(data, **PLAIN), expected)


def test_the_first_frame_of_an_animation_is_decoded() -> None:
    frames = [picture_of("RGBA", 20, 30, seed) for seed in range(3)]
    for format in ("WEBP", "PNG", "GIF", "TIFF"):
        data = saved(frames[0], format, save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(image.decode(data, **PLAIN), pillow(data))


def test_photographs_decode_to_the_pixels_of_pillow(photographs: Path) -> None:
    for path in sorted(photographs.rglob("*.JPEG")):
        with Image.open(path) as picture:
            np.testing.assert_array_equal(image.decode(path, **PLAIN), np.asarray(picture.convert("RGB")))


def test_decoded_arrays_are_writable_and_contiguous() -> None:
    pixels = image.decode(saved(picture_of("RGB", 5, 7), "PNG"))
    assert pixels.shape == (5, 7, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("size", SIZES)
def test_pngs_of_every_depth_and_interlaced_decode_to_the_pixels_of_pillow(size: tuple[int, int]) -> None:
    height, width = size
    random = np.random.default_rng(0)
    for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items():
        for depth, interlaced in itertools.product(depths, (0, 1)):
            bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
            passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
            rows = b""
            for x, y, across, down in passes if interlaced else [(0, 0, 1, 1)]:
                columns = -(-(width - x) // across)
                for _ in range(y, height, down) if columns > 0 else ():
                    rows += bytes([random.integers(0, 5)]) + random.bytes(-(-columns * bits // 8))
            header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced)
            palette = [(b"PLTE", random.bytes(3 * min(1 << depth, 200)))] if color == 3 else []
            for level in (0, 9):
                chunks = [(b"IHDR", header), *palette, (b"IDAT", zlib.compress(rows, level)), (b"IEND", b"")]
                np.testing.assert_array_equal(image.decode(png(*chunks), **PLAIN), pillow(png(*chunks)))
