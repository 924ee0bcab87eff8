"""Nothing on the hot paths of a GPU waits for it: no synchronizing copy, and no look at a value. Needs no GPU.

Under FakeTensorMode tensors claim to be on `cuda`. A dispatch mode reports every copy between host and device that
torch would wait for (one that is not `non_blocking`) and every operation whose result depends on values on the device.
A constant may be copied once: each path runs twice, and only the second run counts.
"""

import contextlib
import traceback
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.utils._device
from diffusers import AutoencoderKL
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from latentq import Quantizer, Recipe
from latentq.encoding.captions import CaptionEncoder
from latentq.encoding.latents import LatentEncoder
from latentq.format.facts import EmbeddingFacts, LatentFacts
from latentq.format.options import TextOptions
from latentq.models.text import Embeddings
from latentq.reading.columns import EmbeddingColumn, LatentColumn

LEVELS = np.sort(np.random.default_rng(0).normal(0, 2, (4, 256)), axis=1)
QUANTIZERS = {
    "uniform": Quantizer.uniform(-5, 6, channels=4),
    "truncating": Quantizer.uniform(-14, 14, channels=4, rounding="truncate"),
    "affine of 6 bits": Quantizer.affine([-4.0] * 4, [5.0] * 4, bits=6),
    "codebook": Quantizer.codebook(LEVELS),
    "codebook of 4 bits": Quantizer.codebook(LEVELS[:, ::16]),
    "float16": Quantizer.floating("float16", channels=4),
    "bfloat16": Quantizer.floating("bfloat16", channels=4),
}


class Synchronizations(TorchDispatchMode):
    """Collects what would wait for the device, each with the line of latentq that asked for it."""

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.name()
        if name in self.READS and args[0].device.type == "cuda":
            self.found.append(f"{name} at {line()}")
        result = func(*args, **kwargs)
        waits = False
        if name == "aten::_to_copy":
            waits = crosses(args[0], result) and not kwargs.get("non_blocking")
        elif name == "aten::copy_":
            waits = crosses(args[0], args[1]) and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        if waits:
            self.found.append(f"{name} at {line()}")
        return result


def crosses(a, b):
    return a.device.type != b.device.type


def line():
    frames = [f for f in traceback.extract_stack() if "/latentq/" in f.filename]
    return f"{frames[-1].filename.rpartition('/latentq/')[2]}:{frames[-1].lineno}" if frames else "elsewhere"


def unpinned(make):
    def unpinned_make(*args, pin_memory=False, **options):
        return make(*args, **options)

    return unpinned_make


@pytest.fixture(autouse=True)
def gpu(monkeypatch):
    """Streams, events and pinned memory as far as the code under test asks for them."""
    stream = SimpleNamespace(
        device=torch.device("cuda", 0), wait_stream=lambda _: None, synchronize=lambda: pytest.fail("synchronize")
    )
    event = SimpleNamespace(record=lambda *_: None, synchronize=lambda: None, elapsed_time=lambda _: 0.0)
    monkeypatch.setattr(torch.cuda, "Stream", lambda *_, **__: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_, **__: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: event)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    torch.utils._device._device_constructors()  # cached: it must hold the functions that are replaced below
    for name in ("empty", "zeros"):
        monkeypatch.setattr(torch, name, unpinned(getattr(torch, name)))
    move = torch.nn.Module.to
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda module, *a, **k: module if "memory_format" in k else move(module, *a, **k)
    )


def synchronizations(prepare):
    """Lists what waits for the device in the second run of the work that `prepare` returns."""
    recorder = Synchronizations()
    with FakeTensorMode(allow_non_fake_inputs=True):
        work = prepare()
        work()
        with recorder:
            try:
                work()
            except (DataDependentOutputException, DynamicOutputShapeException) as error:
                recorder.found.append(f"{error} at {line()}")
    return recorder.found


class Network:
    """A user's own autoencoder with a posterior, in a few operations."""

    name = family = "network"
    scaling_factor, shift_factor, pixel_range = 0.5, 0.1, (-1.0, 1.0)

    def posterior(self, pixels):
        mean = torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 2, 1, 1)[:, :4]
        return mean, mean

    def encode(self, pixels):
        return self.posterior(pixels)[0]

    def latent_shape(self, size):
        return 4, size // 8, size // 8


def encoding(network, quantizer, positions=range(8), **options):
    """Prepares the encoding of one batch of 8 images of 32 pixels, of which `positions` are good."""

    def prepare():
        recipe = Recipe.load("default").override(size=32, **options)
        encoder = LatentEncoder(network(), recipe.autoencoder, "cuda")
        columns = recipe.encoded()
        quantizers = {name: quantizer for name in columns if quantizer is not None}

        def work():
            pixels = {32: encoder.host_buffer((8, 3, 32, 32))}
            encoder.start(pixels, columns, quantizers, list(range(8)), positions)

        return work

    return prepare


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("positions", [range(8), [0, 1, 2, 4, 5, 6, 7]], ids=["all good", "one rejected"])
def test_encoding_a_batch_does_not_wait(quantizer, positions):
    assert synchronizations(encoding(Network, quantizer, positions, store="mean")) == []


def test_drawing_from_the_posterior_does_not_wait():
    assert synchronizations(encoding(Network, QUANTIZERS["uniform"], store="sample", scaled=True)) == []


def test_moments_do_not_wait():
    quantizer = Quantizer.uniform(-5, 6, channels=8)
    assert synchronizations(encoding(Network, quantizer, store="moments")) == []


def test_diffusers_autoencoder_does_not_wait():
    from latentq.models.autoencoders.kl import KLAutoencoder

    def network():
        with torch.device("cuda"):
            module = AutoencoderKL(
                down_block_types=["DownEncoderBlock2D"] * 2,
                up_block_types=["UpDecoderBlock2D"] * 2,
                block_out_channels=(32, 32),
                layers_per_block=1,
                norm_num_groups=8,
            )
        return KLAutoencoder(module, "kl")

    assert synchronizations(encoding(network, QUANTIZERS["uniform"], store="sample", dtype="bfloat16")) == []


def test_tokens_do_not_wait():
    from latentq.models.autoencoders.taming import VQGAN, TamingAutoencoder

    def network():
        with torch.device("cuda"):
            module = VQGAN(
                4, 64, ch=32, out_ch=3, ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[16], in_channels=3,
                resolution=32, z_channels=4,
            )  # fmt: skip
        return TamingAutoencoder(module, "vqgan", channels=4, reduction=2)

    assert synchronizations(encoding(network, None, store="tokens")) == []


def decoding(column):
    def prepare():
        raw = torch.empty((16, column.nbytes), dtype=torch.uint8, device="cuda")
        return lambda: column.decode(raw, torch.bfloat16)

    return prepare


def latents(quantizer, *, moments=False, scale="scaled"):
    card = SimpleNamespace(autoencoder=SimpleNamespace(scaling_factor=0.13, shift_factor=0.1))
    facts = LatentFacts(shape=(quantizer.channels, 8, 8), quantizer=quantizer)
    return LatentColumn("latent", facts, moments, False, quantizer).in_scale("dataset", card, scale)


@pytest.mark.parametrize("scale", ["raw", "scaled"])
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_decoding_latents_of_a_batch_does_not_wait(quantizer, scale):
    assert synchronizations(decoding(latents(quantizer, scale=scale))) == []


@pytest.mark.parametrize("scale", ["raw", "scaled"])
def test_decoding_moments_does_not_wait(scale):
    column = latents(Quantizer.uniform(-5, 6, channels=8), moments=True, scale=scale)
    assert synchronizations(decoding(column)) == []


@pytest.mark.parametrize("bits", [8, 4])
def test_decoding_embeddings_does_not_wait(bits):
    facts = EmbeddingFacts((1, 7, 64), Quantizer.uniform(-5, 6, channels=64, bits=bits))
    assert synchronizations(decoding(EmbeddingColumn("embedding", facts))) == []


def embedding(text_encoder, quantizer):
    columns = {name: SimpleNamespace(content=name) for name in ("caption_embedding", "attention_mask")}

    def prepare():
        encoder = CaptionEncoder(text_encoder(), TextOptions(), "cuda", columns)
        return lambda: encoder.start(["a"] * 4, {"caption_embedding": quantizer})

    return prepare


class Text:
    name, length, width, pooled_width, masked = "text", 7, 64, 64, True

    def encode(self, captions):
        values = torch.empty((len(captions), 7, 64), device="cuda")
        return Embeddings(values, torch.ones((len(captions), 7), dtype=torch.uint8, device="cuda"), values[:, 0])


@pytest.mark.parametrize(
    "quantizer", [Quantizer.uniform(-5, 6, channels=64), Quantizer.floating("float16", channels=64)]
)
def test_embedding_captions_does_not_wait(quantizer):
    assert synchronizations(embedding(Text, quantizer)) == []


def tokenizer(captions, **_):
    import transformers

    ids = torch.zeros((len(captions), 7), dtype=torch.long)
    return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


tokenizer.model_max_length = 7


def clip():
    import transformers

    from latentq.models.text.clip import ClipText

    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=7,
    )  # fmt: skip
    with torch.device("cuda"):
        return ClipText(transformers.CLIPTextModel(config), tokenizer, "clip", length=7)


def t5():
    import transformers

    from latentq.models.text.t5 import T5Text

    config = transformers.T5Config(vocab_size=100, d_model=64, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    with torch.device("cuda"):
        return T5Text(transformers.T5EncoderModel(config), tokenizer, "t5", length=7)


@pytest.mark.parametrize("text_encoder", [clip, t5])
def test_tokens_of_captions_are_sent_without_waiting(text_encoder):
    found = synchronizations(embedding(text_encoder, Quantizer.uniform(-5, 6, channels=64)))
    assert [place for place in found if "elsewhere" not in place and "transformers" not in place] == []


def test_the_lint_sees_what_waits():
    def prepare():
        on_device = torch.empty((4,), device="cuda")
        return lambda: (on_device.cpu(), torch.zeros(4).to("cuda"))

    assert len(synchronizations(prepare)) == 2
