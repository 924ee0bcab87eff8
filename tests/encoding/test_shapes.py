"""All batches of a run have one shape per size, so that a network is compiled once and resumed runs are the same."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import latentq
from conftest import contents, paint
from latentq import Recipe, mds
from latentq.encoding.latents import LatentEncoder
from latentq.format.options import AutoencoderOptions


class Recorder:
    """The mean of blocks of pixels. Records the shape of every batch."""

    name = family = "blocks"
    pixel_range = (0.0, 1.0)

    def __init__(self):
        self.shapes = []

    def latent_shape(self, size):
        return (3, size // 8, size // 8)

    def encode(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=8)


class Greedy(Recorder):
    """Runs out of memory for more than two images."""

    def encode(self, pixels):
        latents = super().encode(pixels)
        if len(pixels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return latents


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """23 files, of which two are no images."""
    folder = tmp_path_factory.mktemp("photos") / "pictures"
    for index in range(23):
        paint(folder / f"{index:02}.png", index, (60, 50))
    for index in (4, 20):
        (folder / f"{index:02}.png").write_bytes((folder / f"{index:02}.png").read_bytes()[:60])
    return folder


def recipe(**options):
    """Calibrates on 7 samples, in two sizes; the units are of 9, 9 and 5 samples."""
    data = Recipe.load("default").to_dict()
    latent = data["columns"]["latent"] | {"quantizer": {"kind": "affine"}}
    data["columns"] |= {"latent": latent | {"size": 32}, "large": latent | {"size": 64, "flip": True}}
    return Recipe.from_dict(data).override(unit_size=9, calibration=7, **options)


def test_every_batch_of_a_run_has_the_same_shape(photos, tmp_path):
    network = Recorder()
    card = latentq.encode(photos, tmp_path / "out", recipe=recipe(), autoencoder=network, batch_size=4)
    assert (card.counts.samples, card.counts.rejects) == (21, 2)
    assert set(network.shapes) == {(3, 3, 32, 32), (3, 3, 64, 64)}  # three batches to a unit of nine
    shutil.rmtree(tmp_path / "out" / "00002")
    resumed = Recorder()
    before = contents(tmp_path / "out")
    latentq.encode(photos, tmp_path / "out", recipe=recipe(), autoencoder=resumed, batch_size=4)
    assert set(resumed.shapes) == set(network.shapes)
    assert contents(tmp_path / "out").items() > before.items()


def test_a_halved_run_has_one_shape_from_then_on(photos, tmp_path):
    network = Greedy()
    latentq.encode(photos, tmp_path / "out", recipe=recipe(), autoencoder=network, batch_size=9)
    assert [length for length, *_ in network.shapes[:2]] == [9, 3]  # 4 at most: three batches of three
    assert set(network.shapes[2:]) == {(2, 3, 32, 32), (2, 3, 64, 64)}


def test_a_run_compiles_one_static_graph_per_size(photos, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append([tuple(value.shape) for value in inputs if isinstance(value, torch.Tensor)])
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, *, dynamic, **_: compile_with(function, backend=backend, dynamic=dynamic)
    )
    torch._dynamo.reset()
    network = Recorder()
    network.encode = lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)
    latentq.encode(photos, tmp_path / "out", recipe=recipe(), autoencoder=network, batch_size=4, compiled=True)
    assert sorted(graphs) == [[(3, 3, 32, 32)], [(3, 3, 64, 64)]]


RUN = """
import sys
import torch
import latentq

backend, photos, out = sys.argv[1:]
torch.set_num_threads(1)
if backend != "inductor":
    compile_with = torch.compile
    torch.compile = lambda function, *, dynamic, options: compile_with(function, backend=backend, dynamic=dynamic)

class Network:
    name = family = "small"
    pixel_range = (0.0, 1.0)
    latent_shape = staticmethod(lambda size: (3, size // 8, size // 8))
    encode = staticmethod(lambda pixels: torch.nn.functional.silu(torch.nn.functional.avg_pool2d(pixels, 8)))
    decode = staticmethod(lambda latents: latents)

data = latentq.Recipe.load("default").to_dict()
data["columns"]["latent"] |= {"quantizer": {"kind": "float32"}, "size": 32, "store": "mean"}
recipe = latentq.Recipe.from_dict(data).override(unit_size=9)
latentq.encode(photos, out, recipe=recipe, autoencoder=Network(), batch_size=4, device="cpu", compiled=True)
"""


@pytest.mark.long
def test_a_compiled_run_that_is_resumed_in_a_new_process_writes_the_same_bytes(photos, tmp_path):
    backend = "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"
    out = tmp_path / "out"

    def run(cache):
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / cache)}
        subprocess.run([sys.executable, "-c", RUN, backend, photos, out], env=environment, check=True)
        return contents(out)

    undisturbed = run("first")
    for unit in ("00000", "00002"):
        shutil.rmtree(out / unit)
    assert run("second") == undisturbed


def test_padding_does_not_change_the_results_of_the_other_rows(photos, tiny_vae):
    network = latentq.load_autoencoder(tiny_vae)
    encoder = LatentEncoder(network, AutoencoderOptions(dtype="float32"), "cpu")
    column = recipe(store="mean").encoded()["latent"]
    files = [file for file in sorted(photos.iterdir()) if file.name not in ("04.png", "20.png")][:8]
    pixels = torch.from_numpy(latentq.image.load_batch(files, 32)[0])
    full = encoder.encode(pixels, column, range(8), 0)
    for padding in (0, 255):
        padded = pixels.clone()
        padded[5:] = padding
        assert torch.equal(encoder.encode(padded, column, range(5), 0), full[:5])


def test_padded_and_unpadded_runs_write_the_same_values(photos, tmp_path):
    stored = []
    for batch_size in (9, 4, 1):
        out = tmp_path / str(batch_size)
        latentq.encode(photos, out, recipe=recipe(), autoencoder=Recorder(), batch_size=batch_size)
        stored.append([mds.Reader(out).gather(range(21), name) for name in ("latent", "large")])
    for others in stored[1:]:
        for first, other in zip(stored[0], others, strict=True):
            np.testing.assert_array_equal(first, other)
