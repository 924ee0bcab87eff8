"""Formats that the core does not decode, through Pillow: the same options, limits and errors as every other format."""

import io
import struct
import sys
import types
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

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
    "DIB": {},
}


def encoded(form, picture=None, **options):
    file = io.BytesIO()
    (Image.fromarray(PIXELS) if picture is None else picture).save(file, form, **options)
    return file.getvalue()


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


def test_a_plugin_that_is_installed_reads_its_format(monkeypatch):
    class Heif(ImageFile.ImageFile):
        """A stand-in for pillow-heif: after the head come width, height and raw pixels."""

        format = "HEIF"

        def _open(self):
            width, height = struct.unpack("<2H", self.fp.read(16)[12:])
            if width == 0:
                raise SyntaxError("broken")
            self._mode, self._size = "RGB", (width, height)
            self.tile = [ImageFile._Tile("raw", (0, 0, width, height), 16, ("RGB", 0, 1))]

    module = types.ModuleType("pillow_heif")
    module.register_heif_opener = lambda: Image.register_open("HEIF", Heif, lambda head: head[4:12] == b"ftypheic")
    Image.init()
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(sys.modules, "pillow_heif", module)
    head = b"\0\0\0\x18ftypheic"
    data = head + struct.pack("<2H", 36, 24) + PIXELS.tobytes()
    assert np.array_equal(image.decode(data), PIXELS)
    assert image.info(data).format == "HEIF"
    with pytest.raises(ImageError, match=r"pillow-heif cannot read this HEIC$"):
        image.decode(head + bytes(100))


@pytest.mark.parametrize("data", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x01\0\x02" + bytes(200), b"%PDF-1.4\n"])
def test_only_formats_of_pictures_reach_pillow(data):
    with pytest.raises(ImageError, match=r"not an image of a known format \(JPEG, PNG, WebP, GIF, BMP, TIFF\)$"):
        image.decode(data)


def tga(kind=2, bits=24, colors=0, text=b"", flags=0x20, size=(36, 24), map_bits=24):
    """Returns a TGA without the footer, which only version 2.0 has, and the pixels that were put into it."""
    rng = np.random.default_rng(1)
    has_map = int(kind in (1, 9))
    header = struct.pack(
        "<3B2HB4H2B", len(text), has_map, kind, 0, colors, map_bits * has_map, 0, 0, *size, bits, flags
    )
    values = rng.integers(0, colors or 256, size[0] * size[1] * bits // 8, np.uint8).tobytes()
    step = bits // 8
    if kind > 8:  # each pixel is a run of one
        values = b"".join(b"\x80" + values[at : at + step] for at in range(0, len(values), step))
    return header + text + rng.bytes(map_bits // 8 * colors) + values


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 32},
        {"kind": 3, "bits": 8},
        {"kind": 1, "bits": 8, "colors": 7},
        {"kind": 10, "text": b"made by hand"},
    ],
    ids=["color", "alpha", "gray", "palette", "runs"],
)
def test_tgas_need_no_footer(options):
    data = tga(**options)
    assert np.array_equal(image.decode(data, alpha="drop"), right(data))
    assert image.info(data).format == "TGA"


def test_the_alpha_of_a_palette_is_used():
    data = tga(kind=1, bits=8, colors=50, map_bits=32)
    colors = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    assert len(np.unique(colors[..., 3])) > 2
    as_png = encoded("PNG", Image.fromarray(colors))
    assert np.array_equal(image.decode(data), image.decode(as_png))
    assert image.info(data).channels == 4


@pytest.mark.parametrize(
    "data",
    [
        tga()[:-1],
        tga(kind=4),
        tga(bits=24, size=(36, 0)),
        tga(flags=0x60),
        b"\0\0\2\0\1\0\x20\x20" + bytes(4000),  # a cursor
    ],
)
def test_other_files_are_no_tgas(data):
    with pytest.raises(ImageError, match="not an image of a known format"):
        image.decode(data)


def tiff(pixels, size, bits=(8,), *, compression=1, color=1, more=(), order="<"):
    """Returns a TIFF of one strip; `more` are tags with lists of shorts."""
    tags = {256: size[:1], 257: size[1:], 258: bits, 259: [compression], 262: [color], 277: [len(bits)], 278: size[1:]}
    tags |= dict(more)
    entries, values = b"", b""
    start = 8
    count = len(tags) + 2
    end = start + 2 + 12 * count + 4
    for tag, numbers in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(packed) > 4:
            values, packed = values + packed, struct.pack(f"{order}I", end + len(values))
        entries += struct.pack(f"{order}HHI4s", tag, 3, len(numbers), packed)
    for tag, number in ((273, end + len(values)), (279, len(pixels))):
        entries += struct.pack(f"{order}HHII", tag, 4, 1, number)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(f"{order}IH", start, count) + entries + bytes(4) + values + pixels


def old_lzw(values):
    """Compresses fewer than 250 bytes as the first versions of libtiff did: codes of 9 bits, lowest bits first."""
    codes = [256, *values, 257]
    return sum(code << 9 * at for at, code in enumerate(codes)).to_bytes(9 * len(codes) // 8 + 1, "little")


NOISE = np.random.default_rng(2).bytes(4000)
RARE_TIFFS = {
    "12 bits": tiff(NOISE, (30, 20), (12,)),
    "12 bits, on its side": tiff(NOISE, (30, 20), (12,), more={274: [6]}.items()),
    "two extra channels": tiff(NOISE, (30, 20), (8,) * 5, color=2, more={338: [0, 0]}.items()),
    "old LZW": tiff(old_lzw(NOISE[:240]), (20, 12), compression=5),
    "LZMA": encoded("TIFF", compression="lzma"),
    "cut fax": tiff(
        encoded("TIFF", Image.fromarray(PIXELS).convert("1"), compression="group4")[8:40], (36, 24), (1,), compression=4
    ),
}


@pytest.mark.parametrize("kind", RARE_TIFFS)
def test_tiffs_that_the_core_does_not_read_have_pillows_pixels(kind, monkeypatch):
    data = RARE_TIFFS[kind]
    expected = right(data)
    for orient in (False, True):  # Pillow turns every TIFF
        assert np.array_equal(image.decode(data, orient=orient, alpha="drop"), expected)
    found = image.info(data)
    assert (found.format, found.height, found.width, found.orientation) == ("TIFF", *expected.shape[:2], 1)
    batch, errors = image.load_batch([data], 8, layout="hwc")
    assert errors == [None]
    assert np.array_equal(batch[0], image.fit(expected, 8))
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImageError, match=r"^TIFF: .* not supported$"):
        image.decode(data)


def test_tiffs_that_pillow_scrambles_do_not_reach_it():
    floats = zlib.compress(np.linspace(0, 255, 600, dtype=">f4").tobytes())
    big_endian = tiff(floats, (30, 20), (32,), compression=8, more={339: [3]}.items(), order=">")
    planes = tiff(NOISE, (10, 10), (16,) * 5, color=2, more={284: [2], 338: [0, 0]}.items())
    fax = encoded("TIFF", Image.fromarray(PIXELS).convert("1"), compression="tiff_raw_16")
    kinds = ((big_endian, "the sample format"), (planes, "this combination of channels"), (fax, "word-aligned fax"))
    for data, what in kinds:
        assert right(data) is not None
        with pytest.raises(ImageError, match=f"^TIFF: {what} is refused$"):
            image.decode(data)


def test_the_values_of_old_lzw_are_those_that_were_compressed():
    expected = np.frombuffer(NOISE[:240], np.uint8).reshape(12, 20)
    assert np.array_equal(image.decode(RARE_TIFFS["old LZW"])[..., 0], expected)


def test_tiles_may_be_listed_with_the_tags_of_strips():
    pixels = np.arange(32 * 32, dtype=np.uint32).reshape(32, 32).astype(np.uint8)
    tiles = [zlib.compress(pixels[y : y + 16, x : x + 16].tobytes()) for y in (0, 16) for x in (0, 16)]
    length = max(map(len, tiles))
    data = bytearray(tiff(b"".join(tile.ljust(length, b"\0") for tile in tiles), (32, 32), compression=8,
                          more={322: [16], 323: [16]}.items()))  # fmt: skip
    offset = len(data) - 4 * length
    lists = struct.pack("<8I", *(offset + length * at for at in range(4)), *[length] * 4)
    for tag, at in ((273, 0), (279, 16)):
        entry = data.index(struct.pack("<HHI", tag, 4, 1))
        data[entry + 4 : entry + 12] = struct.pack("<II", 4, len(data) + at)
    data += lists
    assert np.array_equal(image.decode(bytes(data))[..., 0], pixels)


def test_the_reason_stays_if_pillow_fails_too(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(zlib.compress(NOISE[:600]), (30, 20), compression=8, more={317: [4]}.items()))
    with pytest.raises(ImageError, match=r"a\.tif: TIFF: the predictor is not supported; Pillow cannot decode it: "):
        image.decode(path)


def test_a_broken_tiff_is_not_tried_again(monkeypatch):
    monkeypatch.setattr("latentq.image_fallback._plain", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=r"^TIFF: the image data are broken or truncated$"):
        image.decode(tiff(zlib.compress(NOISE[:600])[:100], (30, 20), compression=8))


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
    assert len(list(open_source(source).listing().samples)) == 7
    card = encode(source, tmp_path / "out", size=16)
    assert (card.counts.samples, card.counts.rejects) == (5, 2)
    rejects = [line.split("\t") for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    assert [(key, stage) for key, stage, _ in rejects] == [("e.heic", "decode"), ("f.jxl", "decode")]
    assert "pillow-heif" in rejects[0][2]
