"""Nothing on the hot paths of a GPU waits for it: no synchronizing copy, and no look at a value. Needs no GPU.

`support/fake_gpu.py` says how that is found. Two copies that wait are not on these paths: constants, which are copied
once for each quantizer and device, and the filling of a resident dataset, before its first batch.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers

import latentq
from latentq import Quantizer, Recipe
from latentq.autoencoders import Normalization
from latentq.encoding.captions import CaptionEncoder
from latentq.encoding.latents import LatentEncoder
from latentq.format.facts import EmbeddingFacts, LatentFacts
from latentq.format.options import TextOptions
from latentq.models.autoencoders.dct import DctAutoencoder
from latentq.models.autoencoders.taming import VQGAN, TamingAutoencoder
from latentq.models.text import Embeddings
from latentq.models.text.clip import ClipText
from latentq.models.text.open_clip import OpenClipText
from latentq.models.text.t5 import T5Text
from latentq.reading.columns import EmbeddingColumn, LatentColumn
from support.fake_gpu import fake_gpu, synchronizations  # noqa: F401  (a fixture)

pytestmark = pytest.mark.usefixtures("fake_gpu")

LEVELS = np.sort(np.random.default_rng(0).normal(0, 2, (4, 256)), axis=1)
QUANTIZERS = {
    "uniform": Quantizer.uniform(-5, 6, channels=4),
    "uniform of 2 bits": Quantizer.uniform(-5, 6, channels=4, bits=2),
    "truncating": Quantizer.uniform(-14, 14, channels=4, rounding="truncate"),
    "truncating of 5 bits": Quantizer.uniform(-14, 14, channels=4, rounding="truncate", bits=5),
    "affine": Quantizer.affine([-4.0, -3.0, 0.7, 0.0], [5.0, 3.0, 0.7, 0.0]),
    "affine of 6 bits": Quantizer.affine([-4.0] * 4, [5.0] * 4, bits=6),
    "codebook": Quantizer.codebook(LEVELS),
    "codebook of 4 bits": Quantizer.codebook(LEVELS[:, ::16]),
    "float16": Quantizer.floating("float16", channels=4),
    "bfloat16": Quantizer.floating("bfloat16", channels=4),
    "float32": Quantizer.floating("float32", channels=4),
}


class Network:
    """A user's own autoencoder with a posterior, in a few operations."""

    name = family = "network"
    normalization, pixel_range = Normalization(0.5, (0.1,)), (-1.0, 1.0)

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
            pixels = {(32, 32): encoder.host_buffer((8, 3, 32, 32))}
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


@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
@pytest.mark.parametrize("store", ["mean", "sample"])
def test_columns_of_two_sizes_and_both_orientations_do_not_wait(quantizer, store):
    def prepare():
        column = {"from": "latent", "store": store, "scaled": True}
        columns = {
            f"{size} {flip}": column | {"size": size, "flip": flip} for size in (32, 64) for flip in (False, True)
        }
        recipe = Recipe.from_dict({"name": "test", "columns": columns})
        encoder = LatentEncoder(Network(), recipe.autoencoder, "cuda")
        columns = recipe.encoded()
        pixels = {(size, size): encoder.host_buffer((8, 3, size, size)) for size in (32, 64)}
        return lambda: encoder.start(pixels, columns, dict.fromkeys(columns, quantizer), list(range(8)), [0, 2, 7])

    assert synchronizations(prepare) == []


STORES = [
    ("kl", "mean"), ("kl", "sample"), ("kl", "moments"), ("flux", "sample"), ("flux", "moments"), ("dc", "sample"),
    ("taesd", "sample"), ("vq", "sample"), ("vq", "tokens"), ("movq", "sample"), ("movq", "tokens"),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("family", "store"), STORES)
@pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast says it
def test_every_family_of_diffusers_does_not_wait(families, family, store, dtype):
    loaded = latentq.load_autoencoder(families[family])

    def network():
        with torch.device("cuda"):
            module = type(loaded.module).from_config(loaded.module.config)
        return type(loaded)(module, family)

    channels = 2 * loaded.channels if store == "moments" else loaded.channels
    quantizer = None if store == "tokens" else Quantizer.uniform(-5, 6, channels=channels)
    assert synchronizations(encoding(network, quantizer, store=store, dtype=dtype)) == []


class Video(Network):
    """A network of 3-D convolutions, whose weights have no channels_last format."""

    def __init__(self):
        self.module = torch.nn.Conv3d(3, 4, (1, 8, 8), (1, 8, 8), device="cuda").requires_grad_(False)

    def posterior(self, pixels):
        mean = self.module(pixels.unsqueeze(2)).squeeze(2)
        return mean, mean


def test_a_video_autoencoder_does_not_wait():
    assert synchronizations(encoding(Video, QUANTIZERS["affine"], store="sample", scaled=True)) == []


def test_built_in_transform_does_not_wait():
    quantizer = Quantizer.uniform(-5, 6, channels=16)
    assert synchronizations(encoding(DctAutoencoder, quantizer, store="sample")) == []


@pytest.mark.parametrize("store", ["tokens", "mean"])
def test_taming_autoencoder_does_not_wait(store):
    def network():
        with torch.device("cuda"):
            module = VQGAN(
                4, 64, ch=32, out_ch=3, ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[16], in_channels=3,
                resolution=32, z_channels=4,
            )  # fmt: skip
        return TamingAutoencoder(module, "vqgan", channels=4, reduction=2)

    quantizer = None if store == "tokens" else QUANTIZERS["affine"]
    assert synchronizations(encoding(network, quantizer, store=store)) == []


def decoding(column):
    def prepare():
        raw = torch.empty((16, column.nbytes), dtype=torch.uint8, device="cuda")
        return lambda: column.decode(raw, torch.bfloat16)

    return prepare


def latents(quantizer, *, moments=False, scale="scaled"):
    card = SimpleNamespace(autoencoder=SimpleNamespace(normalization=Normalization(0.13, (0.1,))))
    facts = LatentFacts(shape=(quantizer.channels, 8, 8), quantizer=quantizer)
    return LatentColumn("latent", facts, moments, False, quantizer).in_scale("dataset", card, scale)


@pytest.mark.parametrize("scale", ["raw", "scaled"])
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_decoding_latents_of_a_batch_does_not_wait(quantizer, scale):
    assert synchronizations(decoding(latents(quantizer, scale=scale))) == []


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scale", ["raw", "scaled"])
def test_decoding_moments_does_not_wait(scale, bits):
    column = latents(Quantizer.uniform(-5, 6, channels=8, bits=bits), moments=True, scale=scale)
    assert synchronizations(decoding(column)) == []


@pytest.mark.parametrize("bits", [8, 4])
def test_decoding_embeddings_does_not_wait(bits):
    facts = EmbeddingFacts((1, 7, 64), Quantizer.uniform(-5, 6, channels=64, bits=bits))
    assert synchronizations(decoding(EmbeddingColumn("embedding", facts))) == []


def embedding(text_encoder, quantizer, dtype="float32"):
    def prepare():
        made = text_encoder()
        contents = [
            "caption_embedding",
            *(["attention_mask"] * made.masked),
            *(["pooled_embedding"] * bool(made.pooled_width)),
        ]
        columns = {name: SimpleNamespace(content=name) for name in contents}
        encoder = CaptionEncoder(made, TextOptions(dtype=dtype), "cuda", columns)
        quantizers = dict.fromkeys({"caption_embedding", "pooled_embedding"} & columns.keys(), quantizer)
        return lambda: encoder.start(["a"] * 4, quantizers)

    return prepare


class Text:
    name, length, width, pooled_width, masked = "text", 7, 64, 64, True

    def encode(self, captions):
        values = torch.empty((len(captions), 7, 64), device="cuda")
        return Embeddings(values, torch.ones((len(captions), 7), dtype=torch.uint8, device="cuda"), values[:, 0])


@pytest.mark.parametrize(
    "quantizer",
    [
        Quantizer.uniform(-5, 6, channels=64),
        Quantizer.affine([-4.0] * 64, [5.0] * 64, bits=4),
        Quantizer.codebook(np.sort(np.random.default_rng(0).normal(0, 2, (64, 16)), axis=1)),
        *(Quantizer.floating(kind, channels=64) for kind in ("float16", "bfloat16", "float32")),
    ],
    ids=lambda quantizer: quantizer.kind,
)
def test_embedding_captions_does_not_wait(quantizer):
    assert synchronizations(embedding(Text, quantizer)) == []


def tokenizer(captions, **_):
    ids = torch.zeros((len(captions), 7), dtype=torch.long)
    return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


tokenizer.model_max_length = 7


def clip(kind="CLIPTextModel"):
    config = transformers.CLIPTextConfig(
        vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=7, projection_dim=64,
    )  # fmt: skip
    with torch.device("cuda"):
        return ClipText(getattr(transformers, kind)(config), tokenizer, "clip", length=7)


def clip_with_projection():
    return clip("CLIPTextModelWithProjection")


def t5():
    config = transformers.T5Config(vocab_size=100, d_model=64, d_kv=8, d_ff=64, num_layers=1, num_heads=2)
    with torch.device("cuda"):
        return T5Text(transformers.T5EncoderModel(config), tokenizer, "t5", length=7)


def open_clip_tower():
    import open_clip

    text = {"context_length": 7, "vocab_size": 100, "width": 64, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    with torch.device("cuda"):
        model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)

    def tokens(captions, context_length):
        return torch.zeros((len(captions), context_length), dtype=torch.long)

    return OpenClipText(model, tokens, "open_clip", length=7, longest=7, pooled=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("text_encoder", [clip, clip_with_projection, t5, open_clip_tower])
@pytest.mark.filterwarnings("ignore:CUDA is not available")  # autocast says it
def test_tokens_of_captions_are_sent_without_waiting(text_encoder, dtype):
    found = synchronizations(embedding(text_encoder, Quantizer.uniform(-5, 6, channels=64), dtype))
    assert [place for place in found if "elsewhere" not in place and "transformers" not in place] == []


def test_the_lint_sees_what_waits():
    def prepare():
        on_device = torch.empty((4,), device="cuda")
        pageable, pinned = torch.zeros(4), torch.zeros(4, pin_memory=True)
        return lambda: (
            on_device.cpu(),
            pageable.to("cuda"),
            pageable.to("cuda", non_blocking=True),
            pageable.copy_(on_device, non_blocking=True),
            pinned.to("cuda", non_blocking=True),
            pinned.copy_(on_device, non_blocking=True),
        )

    assert synchronizations(prepare) == [
        "aten::_to_copy at elsewhere",
        "aten::_to_copy at elsewhere",
        "aten::_to_copy of pageable memory at elsewhere",
        "aten::copy_ of pageable memory at elsewhere",
    ]


def test_the_lint_sees_a_look_at_a_value():
    def prepare():
        on_device = torch.ones((4,), device="cuda")
        looks = iter([lambda: None, lambda: on_device[on_device > 0]])  # only the second run counts
        return lambda: next(looks)()

    found = synchronizations(prepare)
    assert [place for place in found if "nonzero" in place] == found != []
