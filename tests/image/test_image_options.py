"""Compares orientation, alpha, color profiles and reduced decoding with Pillow."""

import io
import itertools
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from latentq import image
from support.images import PLAIN, Pixels, picture_of, pillow, saved, wide_profile


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


TYPED_VALUES = {
    "byte": (1, b"\6"),
    "text": (2, b"6\0"),
    "short": (3, struct.pack("<H", 6)),
    "long": (4, struct.pack("<I", 6)),
    "fraction": (5, struct.pack("<II", 12, 2)),
    "fraction that is not whole": (5, struct.pack("<II", 13, 2)),
    "fraction of zero": (5, struct.pack("<II", 6, 0)),
    "signed byte": (6, b"\6"),
    "undefined": (7, b"\6"),
    "signed short": (8, struct.pack("<h", 6)),
    "negative": (8, struct.pack("<h", -6)),
    "signed long": (9, struct.pack("<i", 6)),
    "signed fraction": (10, struct.pack("<ii", -6, -1)),
    "float": (11, struct.pack("<f", 6)),
    "float that is not whole": (11, struct.pack("<f", 6.25)),
    "double": (12, struct.pack("<d", 6)),
    "directory": (13, struct.pack("<I", 6)),
    "64 bits": (16, struct.pack("<Q", 6)),
    "two shorts": (3, struct.pack("<HH", 6, 3)),
    "three shorts": (3, struct.pack("<HHH", 8, 3, 1)),
    "unknown type": (99, b"\6"),
}
TYPE_SIZES = {2: 1, 3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}


@pytest.mark.filterwarnings("ignore:Metadata Warning")
@pytest.mark.parametrize("with_xmp", [False, True])
@pytest.mark.parametrize("name", TYPED_VALUES)
def test_an_orientation_of_any_type_is_applied_as_pillow_applies_it(name: str, with_xmp: bool) -> None:
    kind, value = TYPED_VALUES[name]
    entry = struct.pack("<HHI", 274, kind, len(value) // TYPE_SIZES.get(kind, 1))
    entry += value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + (value if len(value) > 4 else b"")
    options = {"xmp": b'<x tiff:Orientation="3"/>'} if with_xmp else {}
    data = saved(picture_of("RGB", 21, 34), "JPEG", exif=exif, **options)
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    np.testing.assert_array_equal(image.decode(data), expected)


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


def test_pixels_do_not_depend_on_the_profiles_that_a_thread_has_seen() -> None:
    names = [b"rXYZ", b"gXYZ", b"bXYZ"]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    places = [srgb.index(name) for name in names]
    profiles = []
    for order in itertools.permutations(names):
        profile = bytearray(srgb)
        for place, name in zip(places, order, strict=True):
            profile[place : place + 4] = name
        profiles.append(bytes(profile))
    profiles.append(b"no profile at all")
    items = [
        saved(picture_of(mode, 30, 40), "PNG", icc_profile=profile) for profile in profiles for mode in ("RGB", "RGBA")
    ]
    large = profiles[1] + bytes(2 << 20)  # too large to be kept
    items.append(saved(picture_of("RGB", 30, 40), "JPEG", icc_profile=large))
    expected = [alone(data) for data in items]
    assert len({pixels.tobytes() for pixels in expected}) == 2 * 6 + 1
    random = np.random.default_rng(0)
    for place in random.integers(0, len(items), 200):
        np.testing.assert_array_equal(image.decode(items[place]), expected[place])


def alone(data: bytes) -> Pixels:
    """Decodes an image in a thread that has decoded nothing before."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(image.decode, data).result()
