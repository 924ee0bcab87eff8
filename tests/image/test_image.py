"""Compares `latentq.image` with Pillow, whose pixels it must equal bit for bit."""

import functools
import io
import itertools
import multiprocessing
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

from latentq import ImageError, image

Pixels = NDArray[np.uint8]
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "hamming": Image.Resampling.HAMMING,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
PLAIN: dict[str, Any] = {"orient": False, "alpha": "drop", "icc": "ignore"}


@functools.cache
def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Returns a smooth picture with added noise, which uses every coefficient of every codec."""
    rng = np.random.default_rng(seed)
    y, x, c = np.mgrid[:height, :width, :channels]
    waves = 127 + 80 * np.sin(x / 7 + c) * np.cos(y / 5 - c)
    pixels = np.clip(waves + rng.normal(0, 25, (height, width, channels)), 0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pillow(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def picture_of(mode: str, height: int, width: int, seed: int = 0) -> Image.Image:
    channels = {"1": 1, "L": 1, "I;16": 1, "I": 1, "F": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3)
    pixels = noise(height, width, channels, seed)
    if mode in ("P", "PA"):
        return Image.fromarray(pixels).quantize(37).convert(mode)
    if mode in ("I;16", "I", "F"):  # with values that do not fit into 8 bits
        wide = (pixels[..., 0] - np.float32(20.3)) * 1.3
        return Image.fromarray(
            wide.clip(0 if mode == "I;16" else None).astype({"I;16": "u2", "I": "i4", "F": "f4"}[mode])
        )
    if mode in ("LAB", "YCbCr"):
        return Image.frombytes(mode, (width, height), pixels.tobytes())
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode)


def crop_with_pillow(picture: Image.Image, size: int, crop: str, filter: str) -> Pixels:
    """Crops with the code of the crop's authors."""
    width, height = picture.size
    short = min(width, height)
    if crop == "center":  # torchvision's Resize and CenterCrop
        wide, tall = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
        picture = picture.resize((wide, tall), FILTERS[filter])
        top, left = round((tall - size) / 2.0), round((wide - size) / 2.0)
    elif crop == "center-round":  # VQGAN
        scale = size / short
        wide, tall = round(width * scale), round(height * scale)
        picture = picture.resize((wide, tall), FILTERS[filter])
        top, left = round((tall - size) / 2.0), round((wide - size) / 2.0)
    else:  # ADM, guided_diffusion.image_datasets.center_crop_arr
        while min(*picture.size) >= 2 * size:
            picture = picture.resize((picture.size[0] // 2, picture.size[1] // 2), Image.Resampling.BOX)
        scale = size / min(*picture.size)
        wide, tall = round(picture.size[0] * scale), round(picture.size[1] * scale)
        picture = picture.resize((wide, tall), FILTERS[filter])
        top, left = (tall - size) // 2, (wide - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


# Decoding


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
    ("compression", "flags"), [("tiff_ccitt", 0), ("group3", 0), ("group3", 1), ("group3", 4), ("group4", 0)]
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


def test_unsupported_tiffs_are_refused_by_name() -> None:
    for compression, number in (("lzma", 34925), ("tiff_raw_16", 32771)):
        data = saved(picture_of("1", 20, 30), "TIFF", compression=compression)
        with pytest.raises(ImageError, match=f"TIFF: compression {number} is not supported"):
            image.decode(data)


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


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """Returns a PNG with the given chunks."""
    body = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


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


# Policies


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied_as_pillow_applies_it(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(picture_of("RGB", 21, 34), format, exif=exif)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(image.decode(data), expected)
    np.testing.assert_array_equal(image.decode(data, orient=False), pillow(data))
    assert image.info(data).orientation == orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_always_applied(orientation: int) -> None:
    data = saved(picture_of("RGB", 21, 34), "TIFF", tiffinfo={274: orientation})
    for orient in (True, False):
        np.testing.assert_array_equal(image.decode(data, orient=orient), pillow(data))
    assert (image.info(data).height, image.info(data).width) == pillow(data).shape[:2]


def test_orientation_is_read_from_xmp_if_exif_has_none() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for format in ("JPEG", "WEBP"):
        assert image.info(saved(picture_of("RGB", 4, 6), format, xmp=xmp)).orientation == 6
    # In a TIFF the orientation is part of the format, and the TIFF tag has precedence over XMP.
    for tags, shape in (({700: xmp}, (6, 4, 3)), ({700: xmp, 274: 3}, (4, 6, 3))):
        data = saved(picture_of("RGB", 4, 6), "TIFF", tiffinfo=tags)
        pixels = image.decode(data, **PLAIN)
        assert pixels.shape == shape
        np.testing.assert_array_equal(pixels, pillow(data))


@pytest.mark.parametrize(("alpha", "ground"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_alpha_is_composited_over_the_background_as_paste_does(alpha: Any, ground: int, mode: str, format: str) -> None:
    if (mode, format) == ("LA", "WEBP"):
        mode = "RGBA"
    data = saved(picture_of(mode, 40, 50), format)
    with Image.open(io.BytesIO(data)) as picture:
        whole = picture.convert("RGBA")
    expected = Image.new("RGB", whole.size, (ground,) * 3)
    expected.paste(whole, mask=whole.getchannel("A"))
    np.testing.assert_array_equal(image.decode(data, alpha=alpha), np.asarray(expected))


def test_transparent_colors_become_the_background() -> None:
    for mode, transparent in (("P", 3), ("P", bytes(range(37))), ("L", 127), ("RGB", (127, 130, 90))):
        picture = picture_of(mode, 30, 40)
        if mode == "RGB":
            picture.putpixel((3, 4), (127, 130, 90))
        data = saved(picture, "PNG", transparency=transparent)
        with Image.open(io.BytesIO(data)) as opened:
            whole = opened.convert("RGBA")
        expected = Image.new("RGB", whole.size, "white")
        expected.paste(whole, mask=whole.getchannel("A"))
        np.testing.assert_array_equal(image.decode(data), np.asarray(expected))
        np.testing.assert_array_equal(image.decode(data, alpha="drop"), pillow(data))


def wide_profile() -> bytes:
    """Returns the profile of sRGB with red and green swapped, whose effect is large."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_profiles_are_converted_as_little_cms_does_in_pillow() -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        data = saved(picture_of("RGB", 30, 40), format, icc_profile=wide_profile())
        with Image.open(io.BytesIO(data)) as picture:
            source = ImageCms.ImageCmsProfile(io.BytesIO(picture.info["icc_profile"]))
            converted = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        difference = np.abs(image.decode(data).astype(int) - np.asarray(converted))
        assert difference.max() <= 2
        np.testing.assert_array_equal(image.decode(data, icc="ignore"), pillow(data))
        assert np.abs(image.decode(data).astype(int) - pillow(data)).max() > 20


def test_an_srgb_profile_and_an_unreadable_one_change_nothing() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile at all"):
        data = saved(picture_of("RGB", 30, 40), "JPEG", icc_profile=profile)
        np.testing.assert_array_equal(image.decode(data), pillow(data))


@pytest.mark.parametrize("side", [20, 60, 61, 119, 120, 480, 1000])
def test_min_side_equals_pillows_draft(side: int) -> None:
    data = saved(picture_of("RGB", 480, 643), "JPEG")
    with Image.open(io.BytesIO(data)) as picture:
        picture.draft("RGB", (side, side))
        expected = np.asarray(picture)
    pixels = image.decode(data, min_side=side)
    np.testing.assert_array_equal(pixels, expected)
    assert min(pixels.shape[:2]) >= min(side, 480)


def test_info_reads_the_header() -> None:
    data = saved(picture_of("RGBA", 21, 34), "PNG")
    assert image.info(data) == image.ImageInfo("PNG", 34, 21, 4, 1)
    assert image.info(saved(picture_of("L", 21, 34), "JPEG")) == image.ImageInfo("JPEG", 34, 21, 1, 1)
    assert image.info(saved(picture_of("RGB", 21, 34), "WEBP")) == image.ImageInfo("WEBP", 34, 21, 3, 1)


# Resizing and cropping


@pytest.mark.parametrize("filter", FILTERS)
def test_resizes_equal_pillows(filter: Any) -> None:
    pixels = noise(97, 131)
    for height, width in [(97, 131), (97, 50), (40, 131), (256, 256), (1, 1), (3, 500), (96, 130), (98, 132)]:
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), FILTERS[filter]))
        np.testing.assert_array_equal(image.resize(pixels, height, width, filter=filter), expected)


# 20,000 examples were run once.
@settings(max_examples=int(os.environ.get("LATENTQ_RESIZES", "5000")), deadline=None)
@given(
    source=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    target=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    filter=st.sampled_from(sorted(FILTERS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_random_resizes_equal_pillows(source: tuple[int, int], target: tuple[int, int], filter: Any, seed: int) -> None:
    # Extreme values, which overshoot in both directions.
    pixels = np.random.default_rng(seed).choice(np.array([0, 1, 128, 254, 255], np.uint8), (*source, 3))
    expected = np.asarray(Image.fromarray(pixels).resize(target[::-1], FILTERS[filter]))
    np.testing.assert_array_equal(image.resize(pixels, *target, filter=filter), expected)


@pytest.mark.parametrize("crop", ["center", "center-round", "adm"])
@pytest.mark.parametrize("filter", FILTERS)
def test_crops_equal_those_of_their_authors(crop: Any, filter: Any) -> None:
    for height, width in [(64, 64), (65, 64), (333, 500), (500, 333), (667, 1000), (63, 40), (1, 3), (700, 1201)]:
        pixels = noise(height, width)
        for size in (64, 65):
            expected = crop_with_pillow(Image.fromarray(pixels), size, crop, filter)
            np.testing.assert_array_equal(image.fit(pixels, size, crop=crop, filter=filter), expected)


@pytest.mark.parametrize("crop", ["center", "center-round", "adm"])
@pytest.mark.parametrize("filter", FILTERS)
def test_crops_of_photographs_equal_those_of_their_authors(photographs: Path, crop: Any, filter: Any) -> None:
    # Every eighth photograph; with LATENTQ_ALL=1 all of them, which was run once.
    for path in sorted(photographs.rglob("*.JPEG"))[:: 1 if os.environ.get("LATENTQ_ALL") else 8]:
        with Image.open(path) as picture:
            whole = picture.convert("RGB")
        for size in (64, 256, 512):
            expected = crop_with_pillow(whole, size, crop, filter)
            np.testing.assert_array_equal(image.load(path, size, crop=crop, filter=filter, **PLAIN), expected)


@pytest.mark.parametrize("sampling", [444, 422, 420, 440, 411])
@pytest.mark.parametrize("options", [{}, {cv2.IMWRITE_JPEG_PROGRESSIVE: 1}, {cv2.IMWRITE_JPEG_RST_INTERVAL: 2}])
def test_discarded_parts_do_not_change_the_crop(sampling: int, options: dict[int, int]) -> None:
    options = {**options, cv2.IMWRITE_JPEG_SAMPLING_FACTOR: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")}
    flat = [value for pair in options.items() for value in pair]
    for height, width in [(50, 400), (400, 50), (131, 233), (233, 131), (63, 64), (90, 1000), (1000, 90), (480, 641)]:
        data = cv2.imencode(".jpg", noise(height, width, seed=height), flat)[1].tobytes()
        whole = Image.fromarray(pillow(data))
        for crop in ("center", "adm"):
            for size in (17, 64, 100):
                expected = crop_with_pillow(whole, size, crop, "bicubic")
                pixels = image.load(data, size, crop=crop, **PLAIN)  # type: ignore[arg-type]
                np.testing.assert_array_equal(pixels, expected)
        for side in (20, 60):
            expected = image.fit(image.decode(data, min_side=side, **PLAIN), 20)
            np.testing.assert_array_equal(image.load(data, 20, min_side=side, **PLAIN), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_load_equals_decode_and_fit(mode: str) -> None:
    profile = wide_profile() if mode == "RGB" else None
    for format in ("JPEG", "PNG", "WEBP"):
        if (mode, format) not in (("CMYK", "PNG"), ("CMYK", "WEBP")):
            data = saved(picture_of(mode, 120, 250), format, icc_profile=profile)
            np.testing.assert_array_equal(image.load(data, 32), image.fit(image.decode(data), 32))


# Batches


@pytest.fixture
def mixed(tmp_path: Path) -> list[bytes | str | Path]:
    """Returns good and bad items, as bytes and as paths."""
    good = [saved(picture_of("RGB", 50 + i, 70 - i, i), format) for i, format in enumerate(["JPEG", "PNG", "WEBP"])]
    (tmp_path / "good.dat").write_bytes(good[0])
    (tmp_path / "cut.jpg").write_bytes(good[0][:600])
    (tmp_path / "empty.jpg").write_bytes(b"")
    return [good[0], tmp_path / "cut.jpg", good[1], tmp_path / "none.jpg", str(tmp_path / "good.dat"), b"text", good[2]]


def test_a_bad_item_gets_zeros_and_its_error(mixed: list[bytes | str | Path], tmp_path: Path) -> None:
    for threads in (1, 2, 5):
        for layout in ("chw", "hwc"):
            out, errors = image.load_batch(mixed, 32, threads=threads, layout=layout)  # type: ignore[arg-type]
            assert out.shape == ((7, 3, 32, 32) if layout == "chw" else (7, 32, 32, 3))
            assert [type(error) for error in errors] == [
                *(type(None), ImageError, type(None), FileNotFoundError, type(None), ImageError, type(None))
            ]
            assert str(tmp_path / "cut.jpg") in str(errors[1])
            assert isinstance(errors[3], FileNotFoundError)
            assert errors[3].filename == str(tmp_path / "none.jpg")
            for item, pixels, error in zip(mixed, out, errors, strict=True):
                expected = np.zeros((32, 32, 3), np.uint8) if error else image.load(item, 32)
                np.testing.assert_array_equal(pixels, expected.transpose(2, 0, 1) if layout == "chw" else expected)


def test_a_batch_is_written_to_out(mixed: list[bytes | str | Path]) -> None:
    whole = np.full((9, 3, 32, 32), 7, np.uint8)
    out, _ = image.load_batch(mixed, 32, out=whole[1:8])
    assert np.shares_memory(out, whole)
    np.testing.assert_array_equal(out, image.load_batch(mixed, 32)[0])
    assert (whole[[0, 8]] == 7).all()
    for wrong in (np.empty((7, 32, 32, 3), np.uint8), np.empty((7, 3, 32, 32), np.int8), whole[1:8, :, :, ::-1]):
        with pytest.raises(ValueError, match="out must be"):
            image.load_batch(mixed, 32, out=wrong)


def test_an_empty_batch_is_empty() -> None:
    out, errors = image.load_batch([], 32)
    assert out.shape == (0, 3, 32, 32)
    assert errors == []


def load_small(data: bytes) -> Pixels:
    return image.load_batch([data, data], 24, threads=2)[0]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_images_load_in_processes_of_every_start_method(method: str) -> None:
    data = saved(picture_of("RGB", 50, 60), "JPEG")
    expected = load_small(data)  # So that a fork finds a library that was used before.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        for pixels in pool.map(load_small, [data] * 4):
            np.testing.assert_array_equal(pixels, expected)


def test_the_documented_data_loader_runs(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "image.md").read_text()
    (example,) = [block.split("```")[0] for block in text.split("```python\n")[1:] if "import DataLoader" in block]
    (tmp_path / "example.py").write_text(example)
    (tmp_path / "photographs").mkdir()
    for index in range(20):
        picture_of("RGB", 300 + index, 280, index).save(tmp_path / "photographs" / f"{index}.jpg")
    result = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [
        "(8, 3, 256, 256) torch.uint8",
        "(8, 3, 256, 256) torch.uint8",
        "(4, 3, 256, 256) torch.uint8",
    ]


def test_python_threads_can_load_at_the_same_time(mixed: list[bytes | str | Path]) -> None:
    expected = image.load_batch(mixed, 32)[0]
    results: list[Pixels] = []
    threads = [
        threading.Thread(target=lambda: results.append(image.load_batch(mixed, 32, threads=2)[0])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        np.testing.assert_array_equal(result, expected)


# Refused input


def test_files_that_cannot_be_read_are_os_errors(tmp_path: Path) -> None:
    for function in (image.decode, image.info, lambda path: image.load(path, 8)):
        with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
            function(tmp_path / "none.jpg")
        with pytest.raises(IsADirectoryError):
            function(tmp_path)


def test_a_file_that_is_not_an_image_is_an_image_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("not an image")
    with pytest.raises(ImageError, match=r"text\.jpg: not an image"):
        image.decode(path)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match=r"text\.jpg: the file is empty"):
        image.decode(os.fspath(path))


def test_the_pixel_limit_is_checked_on_the_header() -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        data = saved(picture_of("RGB", 20, 30), format)
        assert image.decode(data, max_pixels=600).shape == (20, 30, 3)
        with pytest.raises(ImageError, match="30 x 20 pixels are over the limit of 599"):
            image.decode(data, max_pixels=599)


def test_a_giant_size_in_a_header_is_refused_at_once() -> None:
    data = png((b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)), (b"IDAT", b"\0" * 20))
    start = time.process_time()
    with pytest.raises(ImageError, match="60000 x 60000 pixels are over the limit"):
        image.decode(data)
    assert time.process_time() - start < 0.01


def test_arguments_out_of_range_are_value_errors() -> None:
    pixels = noise(4, 5)
    data = saved(picture_of("RGB", 4, 5), "PNG")
    calls: list[Any] = [
        lambda: image.resize(pixels, 0, 5),
        lambda: image.resize(pixels, 5, 5, filter="nearest"),  # type: ignore[arg-type]
        lambda: image.resize(pixels[..., :2], 5, 5),
        lambda: image.resize(pixels.astype(np.float32), 5, 5),  # type: ignore[arg-type]
        lambda: image.fit(pixels, 0),
        lambda: image.fit(pixels, 4, crop="left"),  # type: ignore[arg-type]
        lambda: image.decode(data, alpha="red"),  # type: ignore[arg-type]
        lambda: image.decode(data, icc="yes"),  # type: ignore[arg-type]
        lambda: image.load_batch([data], 0),
        lambda: image.load_batch([data], 4, threads=0),
        lambda: image.load_batch([data], 4, layout="nchw"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(ValueError):
            call()
    with pytest.raises(TypeError):
        image.decode(5)  # type: ignore[arg-type]


# Corruption: latentq refuses what Pillow refuses, and gives its pixels for what it accepts


def judged_by_pillow(data: bytes) -> Pixels | None:
    try:
        return pillow(data)
    except Exception:
        return None


def assert_judged_as_by_pillow(data: bytes) -> None:
    expected = judged_by_pillow(data)
    try:
        pixels = image.decode(data, **PLAIN)
    except ImageError:
        assert expected is None, "refused what Pillow accepts"
    else:
        assert expected is not None, "accepted what Pillow refuses"
        np.testing.assert_array_equal(pixels, expected)


def with_checksums(data: bytes) -> bytes:
    """Returns a PNG whose complete chunks have correct checksums."""
    fixed, at = bytearray(data), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4])
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def small_files() -> dict[str, bytes]:
    picture = picture_of("RGB", 23, 29)
    return {
        "jpeg": saved(picture, "JPEG", quality=60),
        "progressive": saved(picture, "JPEG", quality=60, progressive=True),
        "png": saved(picture.resize((9, 11)), "PNG"),
        "png-repaired": saved(picture.resize((9, 11)).quantize(9), "PNG", transparency=b"\0\1\2", exif=b"Exif\0\0MM"),
        "webp": saved(picture, "WEBP", quality=60),
        "webp-lossless": saved(picture.resize((9, 11)), "WEBP", lossless=True),
        "gif": saved(picture.resize((9, 11)), "GIF"),
        "bmp": saved(picture.resize((9, 11)).quantize(9), "BMP"),
    }


@pytest.mark.filterwarnings("ignore")
def test_a_png_without_its_palette_is_refused_or_decoded_as_by_pillow() -> None:
    header = (b"IHDR", struct.pack(">IIBBBBB", 9, 7, 8, 3, 0, 0, 0))
    for alphas in (None, b"", b"\0", b"\xff\0\xff", b"\xff", b"\0\0", b"\0\x80"):
        for palette in ([], [(b"PLTE", b"")], [(b"PLTE", b"\1\2\3")]):
            transparency = [] if alphas is None else [(b"tRNS", alphas)]
            assert_judged_as_by_pillow(
                png(header, *palette, *transparency, (b"IDAT", zlib.compress(bytes(70))), (b"IEND", b""))
            )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", small_files())
def test_every_prefix_is_refused_or_decoded_as_by_pillow(name: str) -> None:
    data = small_files()[name]
    for length in range(len(data)):
        assert_judged_as_by_pillow(data[:length])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, *({"compression": name} for name in ("tiff_lzw", "zstd", "jpeg"))])
def test_a_truncated_tiff_is_refused_or_complete(options: dict[str, str]) -> None:
    data = saved(picture_of("RGB", 9, 11), "TIFF", **options)
    assert_every_prefix_of_a_tiff_is_refused_or_decoded_as_by_pillow(data)


@pytest.mark.filterwarnings("ignore")
def test_a_fax_with_a_truncated_directory_is_refused() -> None:
    data = saved(picture_of("1", 9, 11), "TIFF", compression="group3", tiffinfo={292: 1})
    assert_every_prefix_of_a_tiff_is_refused_or_decoded_as_by_pillow(data)


def assert_every_prefix_of_a_tiff_is_refused_or_decoded_as_by_pillow(data: bytes) -> None:
    for length in range(len(data)):
        if judged_by_pillow(data[:length]) is None:
            with pytest.raises(ImageError):
                image.decode(data[:length])
        else:
            np.testing.assert_array_equal(image.decode(data[:length], **PLAIN), pillow(data))


@pytest.mark.parametrize("size", [(20, 300), (300, 20), (64, 64)])
def test_a_truncated_jpeg_is_refused_for_every_crop(size: tuple[int, int]) -> None:
    data = saved(picture_of("RGB", *size), "JPEG")
    for length in range(len(data) - 200, len(data)):
        if judged_by_pillow(data[:length]) is None:
            with pytest.raises(ImageError):
                image.load(data[:length], 10)
        else:
            np.testing.assert_array_equal(image.load(data[:length], 10), image.load(data, 10))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", small_files())
def test_random_corruptions_are_refused_or_decoded_as_by_pillow(name: str) -> None:
    data = small_files()[name]
    rng = np.random.default_rng(int(os.environ.get("LATENTQ_SEED", "0")))
    # 100,000 of each were run once, with other seeds; see docs/image.md.
    for _ in range(int(os.environ.get("LATENTQ_CORRUPTIONS", "500"))):
        corrupt = bytearray(data)
        # Repaired checksums make any size valid; another test covers giant sizes.
        first = 24 if name == "png-repaired" else 0
        for position in rng.integers(first, len(data), rng.integers(1, 4)):
            corrupt[position] = rng.integers(0, 256)
        repaired = with_checksums(bytes(corrupt)) if name == "png-repaired" else bytes(corrupt)
        assert_judged_as_by_pillow(repaired)


@pytest.mark.parametrize("items", ["photos", b"photos", Path("photos")])
def test_a_single_path_is_refused_as_a_batch(items):
    with pytest.raises(TypeError, match="sequence of paths"):
        image.load_batch(items, 8)


NO_ROOM = """
import io, resource
import numpy as np
from PIL import Image
from latentq import ImageError, image
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
gray = np.zeros((2, 2, 3), np.uint8)
file = io.BytesIO()
Image.new("L", (13000, 13000)).save(file, "PNG")
for work in (
    lambda: image.resize(gray, 20_000, 30_000),
    lambda: image.fit(gray, 40_000),
    lambda: image.resize(gray, 1, 2**31),
    lambda: image.decode(file.getvalue()),
):
    try:
        work()
    except ImageError as error:
        assert "no memory" in str(error), error
    else:
        raise AssertionError("nothing was refused")
"""


def test_short_memory_is_an_error_and_does_not_end_the_process():
    subprocess.run([sys.executable, "-c", NO_ROOM], check=True)


def test_a_result_too_large_for_any_memory_is_refused():
    with pytest.raises(ValueError, match="too many"):
        image.resize(np.zeros((2, 2, 3), np.uint8), 10**6, 10**7)


@pytest.mark.parametrize("number", [0, -1])
def test_sizes_and_limits_below_one_are_refused_by_name(number):
    gray = np.zeros((2, 2, 3), np.uint8)
    file = saved(Image.fromarray(gray), "PNG")
    for name, work in {
        "height": lambda: image.resize(gray, number, 1),
        "width": lambda: image.resize(gray, 1, number),
        "size": lambda: image.fit(gray, number),
        "min_side": lambda: image.load(file, 8, min_side=number),
        "max_pixels": lambda: image.decode(file, max_pixels=number),
        "threads": lambda: image.load_batch([file], 8, threads=number),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not {number}"):
            work()
