"""Compares resizes with Pillow, and crops with those of their authors."""

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latentq import image
from support.images import FILTERS, PLAIN, crop_with_pillow, noise, picture_of, pillow, saved, wide_profile


@pytest.mark.parametrize("filter", FILTERS)
def test_resizes_equal_pillows(filter: Any) -> None:
    pixels = noise(97, 131)
    for height, width in [(97, 131), (97, 50), (40, 131), (256, 256), (1, 1), (3, 500), (96, 130), (98, 132)]:
        expected = np.asarray(Image.fromarray(pixels).resize((width, height), FILTERS[filter]))
        np.testing.assert_array_equal(image.resize(pixels, height, width, filter=filter), expected)


# Both sides of the sizes whose memory is recycled, 128 KiB and 4 MiB.
@pytest.mark.parametrize("side", [209, 210, 1182, 1183])
def test_results_share_no_memory_while_they_are_held(side: int) -> None:
    pictures = [noise(50, 40 + index) for index in range(4)]
    expected = [np.asarray(Image.fromarray(pixels).resize((side, side), FILTERS["bicubic"])) for pixels in pictures]
    for _ in range(2):  # the second time in the memory of the first
        results = [image.resize(pixels, side, side) for pixels in pictures]
        np.testing.assert_array_equal(results, expected)
        assert all(result.flags.writeable and result.flags.c_contiguous for result in results)
        results[0][...] = 7
        np.testing.assert_array_equal(results[1:], expected[1:])


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
