"""Formats that the core does not decode, through Pillow: the same options, limits and errors as every other format."""

import io

import numpy as np
import pytest
from PIL import Image

from latentq import ImageError, encode, image
from latentq.sources import open_source

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
LOSSLESS = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG2000": {},
    "ICO": {"sizes": [(36, 24)], "bitmap_format": "bmp"},
    "PPM": {},
    "TGA": {},
    "QOI": {},
}


def encoded(form, picture=None, **options):
    file = io.BytesIO()
    (Image.fromarray(PIXELS) if picture is None else picture).save(file, form, **options)
    return file.getvalue() + (bytes(8) + b"TRUEVISION-XFILE.\0" if form == "TGA" else b"")


def right(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("form", LOSSLESS)
def test_formats_of_pillow_have_pillows_pixels(tmp_path, form):
    data = encoded(form, **LOSSLESS[form])
    path = tmp_path / "an image"
    path.write_bytes(data)
    expected = right(data)
    for item in (data, path):
        assert np.array_equal(image.decode(item, alpha="drop"), expected)  # Pillow gives an ICO an alpha channel
        assert image.info(item).format == form
        assert (image.info(item).width, image.info(item).height, image.info(item).orientation) == (36, 24, 1)
        assert np.array_equal(image.load(item, 16, alpha="drop"), image.fit(expected, 16))
    batch, errors = image.load_batch([data, encoded("PNG"), b"no image", path], 16, layout="hwc", alpha="drop")
    assert [type(error) for error in errors] == [type(None), type(None), ImageError, type(None)]
    assert np.array_equal(batch[0], image.fit(expected, 16))
    assert np.array_equal(batch[1], image.fit(PIXELS, 16))
    assert np.array_equal(batch[3], batch[0])
    assert not batch[2].any()


def test_sizes_and_layouts_of_a_batch_are_those_of_other_formats():
    data = encoded("PPM")
    arrays, errors = image.load_sizes([data, data], [8, 16])
    assert errors == [None, None]
    for size, array in zip((8, 16), arrays, strict=True):
        assert np.array_equal(array[1], image.fit(PIXELS, size).transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded("AVIF", exif=exif.tobytes(), **LOSSLESS["AVIF"])
    jpeg = encoded("JPEG", exif=exif.tobytes())
    assert image.info(data).orientation == orientation
    assert image.decode(data).shape == image.decode(jpeg).shape
    assert np.array_equal(image.decode(data, orient=False), right(data))
    png = encoded("PNG", Image.fromarray(right(data)), exif=exif.tobytes())
    assert np.array_equal(image.decode(data), image.decode(png))


@pytest.mark.parametrize("alpha", ["white", "black", "drop"])
@pytest.mark.parametrize("form", ["AVIF", "TGA", "QOI"])
def test_alpha_is_that_of_other_formats(form, alpha):
    rgba = np.dstack([PIXELS, np.random.default_rng(1).integers(0, 256, PIXELS.shape[:2], np.uint8)])
    data = encoded(form, Image.fromarray(rgba), **LOSSLESS[form])
    png = encoded("PNG", Image.open(io.BytesIO(data)).convert("RGBA"))
    assert np.array_equal(image.decode(data, alpha=alpha), image.decode(png, alpha=alpha))
    assert image.info(data).channels == 4


def test_a_color_profile_is_that_of_other_formats():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")  # red is green
    data = encoded("AVIF", icc_profile=swapped, **LOSSLESS["AVIF"])
    png = encoded("PNG", Image.fromarray(right(data)), icc_profile=swapped)
    assert np.array_equal(image.decode(data), image.decode(png))
    assert not np.array_equal(image.decode(data), image.decode(data, icc="ignore"))


def test_the_pixel_limit_is_checked_before_anything_is_decoded(monkeypatch):
    data = encoded("PPM")
    monkeypatch.setattr("latentq.image_fallback._plain", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"^36 x 24 pixels are over the limit of 863$"):
        image.decode(data, max_pixels=863)


def test_broken_images_are_typed_errors(tmp_path):
    for form in LOSSLESS:
        data = encoded(form, **LOSSLESS[form])
        for length in (0, 5, len(data) // 2):
            path = tmp_path / "broken"
            path.write_bytes(data[:length])
            with pytest.raises(ImageError, match=str(path)):
                image.decode(path)


@pytest.mark.parametrize(
    ("head", "package"),
    [(b"\0\0\0\x18ftypheic" + bytes(16), "pillow-heif"), (b"\xff\x0a" + bytes(30), "pillow-jxl-plugin")],
)
def test_an_image_whose_plugin_is_missing_names_it(head, package):
    with pytest.raises(ImageError, match=f"not an image of a known format .*needs the package {package}$"):
        image.decode(head)


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x01\0\x02" + bytes(200), b"%PDF-1.4\n"])
def test_only_formats_of_pictures_reach_pillow(data):
    with pytest.raises(ImageError, match=r"not an image of a known format \(JPEG, PNG, WebP, GIF, BMP, TIFF\)$"):
        image.decode(data)


def test_without_pillow_the_error_is_the_cores(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImageError, match=r"not an image of a known format \(JPEG, PNG, WebP, GIF, BMP, TIFF\)$"):
        image.decode(encoded_ppm())


def encoded_ppm():
    return b"P6\n36 24\n255\n" + PIXELS.tobytes()


def test_every_file_of_a_folder_is_encoded_or_rejected_with_its_reason(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    jpeg = encoded("JPEG")
    for name, data in {
        "a.jpg": jpeg,
        "b.avif": encoded("AVIF"),
        "c.jpg?w=1": jpeg,
        "d": encoded("JPEG2000"),
        "e.heic": b"\0\0\0\x18ftypheic" + bytes(16),
        "f.jxl": b"\xff\x0a" + bytes(30),
        "g.apng": encoded("PNG"),
        "h.txt": b"other",
    }.items():
        (source / name).write_bytes(data)
    assert len(open_source(source).listing().samples) == 7
    card = encode(source, tmp_path / "out", size=16)
    assert (card.counts.samples, card.counts.rejects) == (5, 2)
    rejects = [line.split("\t") for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    assert [(key, stage) for key, stage, _ in rejects] == [("e.heic", "decode"), ("f.jxl", "decode")]
    assert "pillow-heif" in rejects[0][2]
