"""Both encoders compute float32 as IEEE whatever the process set, and TF32 where a recipe asks for it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import latentq
from conftest import paint
from latentq.cli.main import main
from latentq.encoding import latents
from latentq.encoding.captions import CaptionEncoder
from latentq.encoding.latents import LatentEncoder
from latentq.encoding.models import Models, load_models
from latentq.format.options import AutoencoderOptions, TextOptions
from latentq.models.decode import decode_latents
from latentq.models.device import default_device, device_of, start_copy_to_host
from latentq.models.text import Embeddings


@pytest.fixture(autouse=True)
def products_in_tf32():
    """The process has asked for TF32 before."""
    old = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(old)


class Blocks:
    name = family = "blocks"
    pixel_range = (0.0, 1.0)

    def __init__(self):
        self.seen = set()

    def latent_shape(self, size):
        return (3, size // 8, size // 8)

    def encode(self, pixels):
        self.seen.add(torch.get_float32_matmul_precision())
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=8)


@pytest.mark.parametrize(("dtype", "inside"), [("float32", "highest"), ("bfloat16", "highest"), ("tf32", "high")])
def test_latents_are_computed_in_the_precision_that_the_recipe_names(tmp_path, dtype, inside):
    network = Blocks()
    encoder = LatentEncoder(network, AutoencoderOptions(dtype=dtype), "cpu")
    column = SimpleNamespace(content="latent", store="mean", flip=False, scaled=False)
    encoder.encode(torch.zeros((2, 3, 32, 32), dtype=torch.uint8), column, [0, 1], 0)
    assert network.seen == {inside}


@pytest.mark.parametrize(("dtype", "inside"), [("float32", "highest"), ("tf32", "high")])
def test_captions_are_embedded_in_the_precision_that_the_recipe_names(dtype, inside):
    seen = set()

    def encode(captions):
        seen.add(torch.get_float32_matmul_precision())
        return Embeddings(torch.zeros((len(captions), 7, 4)))

    CaptionEncoder(SimpleNamespace(encode=encode), TextOptions(dtype=dtype), "cpu", {}).start(["a"], {})
    assert seen == {inside}


def test_tf32_is_a_choice_that_the_card_records_and_on_the_cpu_it_is_float32(tmp_path):
    for index in range(3):
        paint(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    cards = {
        dtype: latentq.encode(tmp_path / "photos", tmp_path / dtype, autoencoder=Blocks(), size=32, dtype=dtype)
        for dtype in ("float32", "tf32")
    }
    assert {dtype: card.recipe.autoencoder.dtype for dtype, card in cards.items()} == {
        "float32": "float32",
        "tf32": "tf32",
    }
    shards = [(tmp_path / dtype / "00000" / "shard.00000.mds").read_bytes() for dtype in cards]
    assert shards[0] == shards[1]


def test_an_autoencoder_is_where_its_torch_module_is():
    module = torch.nn.Linear(2, 2, device="meta")
    assert device_of(SimpleNamespace(module=module)) == device_of(module) == "meta"
    assert device_of(Blocks()) == "cpu"


def test_devices_other_than_cuda_take_blocking_copies_from_pageable_memory(monkeypatch):
    """Without CUDA's events nothing else waits before values are read. `meta` stands for MPS and XPU."""
    copies, to = [], torch.Tensor.to

    def copied(tensor, *arguments, **options):
        copies.append(options.get("non_blocking", False))
        return to(tensor, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "to", copied)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda *_: pytest.fail("pinned"))
    assert start_copy_to_host(torch.ones(3), torch.device("mps")).tolist() == [1, 1, 1]
    monkeypatch.setattr(latents, "start_copy_to_host", lambda values, _: values)  # nothing can be copied from `meta`
    encoder = LatentEncoder(Blocks(), AutoencoderOptions(), "meta")
    column = SimpleNamespace(content="latent", store="mean", pixels=(32, 32), flip=False, scaled=False)
    quantizer = latentq.Quantizer.uniform(-1, 2, channels=3)
    pixels = {(32, 32): encoder.host_buffer((2, 3, 32, 32))}
    pending = encoder.start(pixels, {"latent": column}, {"latent": quantizer}, [0, 1], [1])
    assert pending.encoded["latent"].device.type == "meta"
    assert len(copies) > 2
    assert not any(copies)


def test_ranks_beyond_the_visible_gpus_share_them_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert default_device() == "cuda:1"


def test_latents_to_decode_go_to_the_device_of_the_autoencoder():
    seen = []

    def decode(latents):
        seen.append(str(latents.device))
        return torch.zeros((1, 3, 8, 8))

    network = SimpleNamespace(
        name="elsewhere", pixel_range=(0.0, 1.0), module=torch.nn.Linear(2, 2, device="meta"), decode=decode
    )
    decode_latents(network, torch.zeros((1, 4, 1, 1)))
    assert seen == ["meta"]


@pytest.mark.parametrize(
    ("device", "dtype", "text_dtype", "options"),
    [
        ("cuda:0", "float32", "bfloat16", "--dtype"),
        ("cuda", "bfloat16", "float32", "--text-dtype"),
        ("cuda", "float32", "float32", "--dtype and --text-dtype"),
        ("cuda", "tf32", "bfloat16", None),
        ("cpu", "float32", "float32", None),
    ],
)
def test_a_run_in_float32_on_cuda_is_told_which_dtype_is_faster(device, dtype, text_dtype, options):
    network = SimpleNamespace(module=torch.nn.Linear(2, 2))
    recipe = replace(latentq.Recipe.load("default").override(dtype=dtype), text=TextOptions(dtype=text_dtype))
    notes = Models(network, SimpleNamespace(device=device), device).notes(recipe)
    expected = f"float32 is IEEE float32: {options} tf32 is faster on a GPU, and bfloat16 faster still"
    assert notes == ([expected] if options else [])


def test_the_built_in_transform_needs_no_other_dtype():
    recipe = latentq.Recipe.load("default")
    assert Models(latentq.load_autoencoder("dct-f8c16"), None, "cuda").notes(recipe) == []


def test_the_faster_dtype_is_printed_once_by_the_run_that_may_still_choose_it(tmp_path, monkeypatch, capsys):
    paint(tmp_path / "photos" / "a.png", 0, (40, 40))
    monkeypatch.setattr(Models, "notes", lambda _, recipe: [f"{recipe.autoencoder.dtype} is slow"])
    command = ["encode", str(tmp_path / "photos"), str(tmp_path / "out"), "--size", "32", "--device", "cpu"]
    assert main(command) == 0
    assert capsys.readouterr().err.count("float32 is slow\n") == 1
    assert main(command) == 0
    assert "is slow" not in capsys.readouterr().err
    assert main([*command[:2], str(tmp_path / "quiet"), *command[3:], "--quiet"]) == 0
    assert "is slow" not in capsys.readouterr().err


class Elsewhere(Blocks):
    """Weights on `meta`, which stands for a GPU: records where its inputs are, and gives zeros on the CPU."""

    def __init__(self):
        self.module = torch.nn.Linear(2, 2, device="meta")
        self.devices = []

    def encode(self, pixels):
        self.devices.append(("encode", pixels.device.type))
        return torch.zeros(len(pixels), *self.latent_shape(pixels.shape[-1]))

    def decode(self, latents):
        self.devices.append(("decode", latents.device.type))
        return torch.zeros(len(latents), 3, 32, 32)


def test_a_run_computes_on_the_device_of_an_autoencoder_that_is_given_without_one():
    models = load_models(latentq.Recipe.load("default"), Elsewhere(), None, device=None, keep_subfolder=False)
    assert models.device == "meta"


def test_a_dataset_sends_latents_to_the_autoencoder_that_it_is_given(tmp_path):
    paint(tmp_path / "photos" / "a.png", 0, (40, 40))
    latentq.encode(tmp_path / "photos", tmp_path / "out", autoencoder=Blocks(), size=32)
    network = Elsewhere()
    latentq.LatentDataset(tmp_path / "out").decode(0, autoencoder=network)
    assert network.devices == [("decode", "meta")]


def test_decode_with_originals_sends_pixels_and_latents_to_its_device(tmp_path, monkeypatch):
    paint(tmp_path / "photos" / "a.png", 0, (40, 40))
    latentq.encode(tmp_path / "photos", tmp_path / "out", autoencoder=Blocks(), size=32)
    network = Elsewhere()
    monkeypatch.setattr("latentq.inspect.pictures.autoencoder_for", lambda *_, **__: network)
    command = ["decode", str(tmp_path / "out"), "--source", str(tmp_path / "photos"), "--device", "meta"]
    assert main([*command, "-o", str(tmp_path / "sheet.png")]) == 0
    # Decoded from float32, from float16 and from what is stored.
    assert network.devices == [("encode", "meta"), *[("decode", "meta")] * 3]
