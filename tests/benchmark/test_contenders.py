"""All contenders of a group do the same work."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from latentq import ImageError
from latentq._core import image_decode_and_drop
from latentq.benchmark import codecs, device, installed, loading, pixels, quantizing, shards
from latentq.quantizer import Quantizer

# The benchmark registers the encoding of imagenet.int8 for the whole process.
pytestmark = pytest.mark.usefixtures("kept_encodings")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("title", quantizing.TITLES)
def test_quantizing_contenders_give_the_same_codes_or_values(title, threads):
    data = quantizing.arrays(threads, 3)
    expected = data.codes if "to uint8" in title else data.quantizer.dequantize(data.codes)
    for name, work in installed.quantizers(title, compiled=False).items():
        if name in quantizing.LIMITS:
            work(data)
            continue
        data.out_codes[...], data.out_x[...] = 0, 0
        given = work(data)
        if title.endswith("warm"):
            given = data.out_codes if "to uint8" in title else data.out_x
        # NumPy and torch round (x / 28 + 0.5) * 255, latentq x * (255 / 28) + 127.5: next to a tie codes differ by one.
        given, expected = np.asarray(given, float), np.asarray(expected, float)
        np.testing.assert_allclose(given, expected, atol=1 if "to uint8" in title else 1e-5)
        assert (np.abs(given - expected) > 1e-5).mean() < 1e-3


def test_dtypes_are_the_same_values():
    t = quantizing.types(3)
    for work in (*quantizing.QUANTIZE_TYPES.values(), *quantizing.DEQUANTIZE_TYPES.values()):
        work(t)
    np.testing.assert_array_equal(t.out_codes, t.codebook.quantize(t.x))
    np.testing.assert_array_equal(t.out_x, t.codebook.dequantize(t.codes))
    np.testing.assert_allclose(t.out_half, t.x, atol=0.5)
    np.testing.assert_allclose((t.out_bfloat16.astype(np.uint32) << 16).view(np.float32), t.x, atol=0.5)


def test_every_kind_encodes_and_decodes_its_latents_and_numpy_the_affine_ones():
    data = codecs.codes(16)
    for kind in codecs.KINDS:
        codecs.DECODE[f"latentq {kind}"](data)
        assert data.packed[kind].shape == (16, codecs.BYTES)
        assert np.square(data.out - data.x).mean() < 0.05 * data.x.var()
    np.testing.assert_array_equal(codecs.ENCODE["NumPy, affine"](data), data.packed["affine"])
    codecs.DECODE["latentq affine"](data)
    expected = data.out.copy()
    data.out[...] = 0
    codecs.DECODE["NumPy, affine"](data)
    np.testing.assert_array_equal(data.out, expected)


def test_pixels_of_made_pictures_are_pillow_s():
    files = pixels.files(None)
    pixels.check(files)
    assert {array.shape for array in files.arrays} == {(375, 500, 3)}
    assert min(len(data) for data in files.encoded) > 20_000  # detail, as a photograph has
    for works in (pixels.DECODE, pixels.FIT, pixels.LOAD):
        for work in works.values():
            work(files)
        assert set(works) & set(pixels.LIMITS)


def test_libjpeg_alone_reads_all_of_a_file_or_refuses_it():
    data = pixels.files(None).encoded[0]
    for size in (None, (64, 64), (90, 20)):
        image_decode_and_drop(data, size, {})
        with pytest.raises(ImageError, match="truncated"):
            image_decode_and_drop(data[:-400], size, {})
    with pytest.raises(ImageError, match="not a JPEG"):
        image_decode_and_drop(b"BM" + bytes(100), None, {})


def test_pixels_of_a_folder(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 280)).save(buffer, "JPEG")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.JPEG").write_bytes(buffer.getvalue())
    assert pixels.files(tmp_path).encoded == [buffer.getvalue()]
    with pytest.raises(FileNotFoundError, match="no JPEGs"):
        pixels.files(tmp_path / "a" / "b.JPEG")


def test_shard_writers_and_readers(tmp_path):
    data = shards.Writing(tmp_path / "out", *shards.samples(300))
    for name, work in installed.writers().items():
        work(data)
        if name != shards.BARE_WRITE:
            reader = shards.mds.Reader(data.out)
            assert len(reader) == 300
            np.testing.assert_array_equal(reader[7]["latent"], data.latents[7])
            assert reader[7]["caption"] == "a photograph of thing 7"
        data.clear()
    reading = shards.reading(tmp_path, 300, 5, 2)
    for work in installed.single_readers().values():
        work(reading)
    expected = data.latents.reshape(300, -1)[reading.batches[-1]]
    for work in shards.GATHER_WARM.values():
        reading.codes[...], reading.floats[...] = 0, 0
        work(reading)
        np.testing.assert_array_equal(reading.floats, expected)
    for work in shards.GATHER_NEW.values():
        work(reading)


def test_loaders_give_every_sample_once(tmp_path):
    loading.write_numpy(tmp_path, 600)
    works = installed.loaders(tmp_path)  # which checks them
    for work in works.values():
        work(None)
    assert {"latentq", "latentq, resident", "mosaicml-streaming", loading.BOUND} <= set(works)


def test_check_finds_a_loader_that_drops_or_changes_samples(tmp_path):
    loading.write_numpy(tmp_path, 600)
    good = list(loading.loader(tmp_path)())
    with pytest.raises(AssertionError, match="every sample once"):
        loading.check(lambda: good[:-1], tmp_path)
    with pytest.raises(AssertionError, match="not close"):
        loading.check(lambda: [(good[0][0] + 1, good[0][1]), *good[1:]], tmp_path)


def test_contenders_of_a_device_rehearsed_on_the_cpu(tmp_path):
    data = device.OnDevice(
        torch.device("cpu"),
        Quantizer.uniform(quantizing.LOW, quantizing.HIGH, channels=4),
        torch.from_numpy(quantizing.arrays(1, 3).codes),
        torch.zeros(3, 4, 32, 32),
    )
    for work in device.DEQUANTIZE.values():
        work(data)
    loading.write_numpy(tmp_path, 300)
    for work in device.epochs(tmp_path, torch.device("cpu")).values():
        work(None)
