"""Compares rectangles with a plain Pillow version of the rule: resize to cover, then crop."""

import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from latentq import image
from support.images import FILTERS, PLAIN, Pixels, crop_with_pillow, noise, picture_of, pillow, png, saved

CROPS = ["center", "center-round", "adm"]


def cover_with_pillow(picture: Image.Image, height: int, width: int, crop: str, filter: str) -> Pixels:
    """Resizes a picture so that it covers height x width, and crops it, as docs/image.md says."""
    while crop == "adm" and picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    exact = max(Fraction(width, picture.width), Fraction(height, picture.height))
    if crop == "center":
        wide, tall = int(picture.width * exact), int(picture.height * exact)
    else:
        scale = max(width / picture.width, height / picture.height)
        wide, tall = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize((wide, tall), FILTERS[filter])
    if crop == "adm":
        left, top = (wide - width) // 2, (tall - height) // 2
    else:
        left, top = round((wide - width) / 2), round((tall - height) / 2)
    return np.asarray(picture.crop((left, top, left + width, top + height)))


sides = st.one_of(st.integers(1, 40), st.integers(1, 260))


@settings(max_examples=1500, deadline=None)
@given(
    source=st.tuples(sides, sides),
    target=st.tuples(sides, sides),
    crop=st.sampled_from(CROPS),
    filter=st.sampled_from(sorted(FILTERS)),
    seed=st.integers(0, 2**32 - 1),
)
def test_rectangles_equal_pillows(
    source: tuple[int, int], target: tuple[int, int], crop: Any, filter: Any, seed: int
) -> None:
    pixels = np.random.default_rng(seed).choice(np.array([0, 1, 128, 254, 255], np.uint8), (*source, 3))
    picture = Image.fromarray(pixels)
    expected = cover_with_pillow(picture, *target, crop, filter)
    fitted = image.fit(pixels, target, crop=crop, filter=filter)
    np.testing.assert_array_equal(fitted, expected)
    # The window is that of the last resize, whatever the resizes before it.
    window = image.crop_window(*source, target, crop=crop)
    while crop == "adm" and picture.width >= 2 * target[1] and picture.height >= 2 * target[0]:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    whole = np.asarray(picture.resize((window.width, window.height), FILTERS[filter]))
    kept = whole[window.top : window.top + target[0], window.left : window.left + target[1]]
    np.testing.assert_array_equal(kept, fitted)


@settings(max_examples=300, deadline=None)
@given(source=st.tuples(sides, sides), side=sides, crop=st.sampled_from(CROPS), filter=st.sampled_from(sorted(FILTERS)))
def test_a_square_is_that_of_the_crops_authors(source: tuple[int, int], side: int, crop: Any, filter: Any) -> None:
    pixels = noise(*source)
    expected = crop_with_pillow(Image.fromarray(pixels), side, crop, filter)
    np.testing.assert_array_equal(image.fit(pixels, (side, side), crop=crop, filter=filter), expected)
    np.testing.assert_array_equal(image.fit(pixels, side, crop=crop, filter=filter), expected)


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "PPM"])
def test_files_are_loaded_to_rectangles(crop: Any, format: str) -> None:
    for height, width in [(50, 400), (400, 50), (131, 233), (233, 131), (480, 641)]:
        data = saved(picture_of("RGB", height, width), format)
        for target in [(17, 64), (64, 17), (100, 80), (96, 160)]:
            expected = cover_with_pillow(Image.fromarray(pillow(data)), *target, crop, "bicubic")
            np.testing.assert_array_equal(image.load(data, target, crop=crop, **PLAIN), expected)


def test_a_batch_has_several_rectangles(tmp_path: Path) -> None:
    files = [saved(picture_of("RGB", 60 + i, 90 - i, i), format) for i, format in enumerate(["JPEG", "PNG", "PPM"])]
    arrays, errors = image.load_sizes([*files, b"no image"], [(16, 24), 8, (24, 16)])
    assert [type(error) for error in errors] == [*[type(None)] * 3, image.ImageError]
    for array, size in zip(arrays, [(16, 24), (8, 8), (24, 16)], strict=True):
        assert array.shape == (4, 3, *size)
        for pixels, data in zip(array, files, strict=False):
            np.testing.assert_array_equal(pixels.transpose(1, 2, 0), image.load(data, size))
        assert not array[3].any()
    pixels, _ = image.load_batch(files, (16, 24), layout="hwc")
    np.testing.assert_array_equal(pixels.transpose(0, 3, 1, 2), arrays[0][:3])


@pytest.mark.parametrize("size", [0, (0, 5), (5, 0), (-1, 5)])
def test_a_size_without_pixels_is_refused(size: Any) -> None:
    data = saved(picture_of("RGB", 20, 20), "PNG")
    for call in (
        lambda: image.fit(noise(4, 4), size),
        lambda: image.load(data, size),
        lambda: image.load_batch([data], size),
        lambda: image.crop_window(4, 4, size),
    ):
        with pytest.raises(ValueError, match="size must be at least 1"):
            call()
    with pytest.raises(ValueError, match="height must be at least 1"):
        image.crop_window(0, 4, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_size_is_that_of_the_decoded_image(tmp_path: Path, orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"tiffinfo": {274: orientation}} if format == "TIFF" else {"exif": exif}
    data = saved(picture_of("RGB", 21, 34), format, **options)
    (tmp_path / "file").write_bytes(data)
    for item in (data, tmp_path / "file"):
        for orient in (True, False):
            assert image.upright_size(item, orient=orient) == image.decode(data, orient=orient).shape[:2]


def test_the_orientation_of_a_png_may_follow_its_pixels() -> None:
    exif = b"II*\0" + struct.pack("<LHHHLHHL", 8, 1, 274, 3, 1, 6, 0, 0)
    header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes([1, 2, 3]) for _ in range(2)))
    data = png((b"IHDR", header), (b"IDAT", rows), (b"eXIf", exif), (b"IEND", b""))
    with Image.open(io.BytesIO(data)) as picture:
        assert ImageOps.exif_transpose(picture).size == (2, 3)
    assert image.decode(data).shape == (3, 2, 3)
    assert image.upright_size(data) == (3, 2)
    assert image.info(data).orientation == 6
    assert image.upright_size(data[:-20]) == (2, 3)  # a fault after the header is for `decode` to find


def test_the_size_of_a_jpeg_is_found_behind_a_large_profile(tmp_path: Path) -> None:
    profile = np.random.default_rng(0).bytes(300_000)
    for name, options in (("small", {}), ("large", {"icc_profile": profile})):
        (tmp_path / name).write_bytes(saved(picture_of("RGB", 700, 500), "JPEG", quality=100, **options))
        assert (tmp_path / name).stat().st_size > 1 << 16
        assert image.upright_size(tmp_path / name) == (700, 500)


def test_a_file_without_a_size_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        image.upright_size(tmp_path / "none.jpg")
    for data in (b"", b"text", saved(picture_of("RGB", 20, 20), "JPEG")[:40], b"\x89PNG\r\n\x1a\n"):
        (tmp_path / "file.jpg").write_bytes(data)
        with pytest.raises(image.ImageError, match=r"file\.jpg: "):
            image.upright_size(tmp_path / "file.jpg")
        with pytest.raises(image.ImageError):
            image.upright_size(data)
