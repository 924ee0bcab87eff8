"""Flax checkpoints of VQGANs: `flax_model.msgpack` and `config.json`, as vqgan-jax saves them."""

import os
import sys

import numpy as np
import pytest
import torch
from diffusers import VQModel

import latentq
from latentq.models.weights import weight_hash
from support.flax_making import flax_tree, save_as_flax
from support.making import taming_state_dict

PIXELS = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
# Some of the arrays of flax-community/vqgan_f16_16384, by the rules of vqgan-jax's modules.
REAL = {
    "encoder/conv_in/kernel": (3, 3, 3, 128),
    "encoder/down_0/downsample/conv/kernel": (3, 3, 128, 128),
    "encoder/down_2/block_0/nin_shortcut/kernel": (1, 1, 128, 256),
    "encoder/down_4/attn_1/q/kernel": (1, 1, 512, 512),
    "encoder/mid/block_1/norm1/scale": (512,),
    "encoder/mid/attn_1/norm/bias": (512,),
    "encoder/conv_out/kernel": (3, 3, 512, 256),
    "decoder/up_4/attn_2/proj_out/bias": (512,),
    "decoder/up_1/upsample/conv/kernel": (3, 3, 128, 128),
    "quantize/embedding/embedding": (16384, 256),
    "quant_conv/kernel": (1, 1, 256, 256),
    "post_quant_conv/bias": (256,),
}


@pytest.fixture(scope="module")
def model(tiny_vq):
    return VQModel.from_pretrained(tiny_vq).eval()


@pytest.fixture
def tree(model):
    return flax_tree(taming_state_dict(model))


@pytest.mark.parametrize("largest_chunk", [2**30, 1000])
def test_the_same_weights_give_the_same_tokens_as_a_taming_checkpoint(model, tiny_taming, tmp_path, largest_chunk):
    save_as_flax(model, tmp_path / "vqgan", largest_chunk=largest_chunk)
    flax, taming = latentq.load_autoencoder(tmp_path / "vqgan"), latentq.load_autoencoder(tiny_taming)
    assert (flax.name, flax.family, flax.latent_shape(64)) == ("vqgan", "taming.VQModel", (4, 16, 16))
    assert weight_hash(flax) == weight_hash(taming)
    tokens = flax.tokens(PIXELS)
    assert len(tokens.unique()) > 4
    assert torch.equal(tokens, taming.tokens(PIXELS))
    with torch.no_grad():
        latents = model.encode(PIXELS).latents
        assert torch.equal(tokens.flatten(), model.quantize(latents)[2][2])
    assert torch.equal(flax.decode_tokens(tokens), taming.decode_tokens(tokens))


def test_half_precision_loads_as_float32(tmp_path, model):
    state = taming_state_dict(model)
    for name, dtype in (("half", torch.float16), ("bfloat", torch.bfloat16), ("double", torch.float64)):
        tree = flax_tree({key: value.to(dtype).to(torch.float64) for key, value in state.items()})
        save_as_flax(model, tmp_path / name, tree=_cast(tree, dtype))
        loaded = latentq.load_autoencoder(tmp_path / name).module.state_dict()
        assert all(torch.equal(loaded[key], value.to(dtype).float()) for key, value in state.items())


def _cast(tree, dtype):
    if isinstance(tree, dict):
        return {name: _cast(value, dtype) for name, value in tree.items()}
    tensor = torch.from_numpy(np.array(tree)).to(dtype)
    return tensor if dtype == torch.bfloat16 else tensor.numpy()


def test_a_network_of_the_real_size_has_the_real_arrays(tmp_path, model, monkeypatch):
    config = {
        "ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [16], "resolution": 256,
        "z_channels": 256, "embed_dim": 256, "n_embed": 16384,
    }  # fmt: skip
    save_as_flax(model, tmp_path / "real", config=config)
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in REAL.items()}
    monkeypatch.setattr("latentq.models.autoencoders.flax_vqgan.read_arrays", lambda _: arrays)

    def check(_, *, missing, mismatched, unexpected):
        assert (mismatched, unexpected) == ([], set())
        raise latentq.LatentqError(f"only {len(missing)} others are missing")

    monkeypatch.setattr("latentq.models.autoencoders.flax_vqgan.check_weights", check)
    with pytest.raises(latentq.LatentqError, match="others are missing"):
        latentq.load_autoencoder(tmp_path / "real")


def test_the_page_names_its_checkpoint_by_its_name_on_the_hub(model, tiny_taming, pictures, tmp_path, monkeypatch):
    name = "flax-community/vqgan_f16_16384"
    save_as_flax(model, tmp_path / "repository")
    for other in ("README.md", ".gitattributes", "events.out.tfevents", "tf_model.h5"):
        (tmp_path / "repository" / other).touch()
    fetched = []

    def fetch(_name, file, revision):
        fetched.append(file)
        return str(tmp_path / "repository" / file)

    monkeypatch.setattr("latentq.models.hub._reachable", lambda: True)
    files = sorted(path.name for path in (tmp_path / "repository").iterdir())
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    options = {"recipe": "vqgan-f16-16384", "size": 64}
    card = latentq.encode(pictures, tmp_path / "out", autoencoder=name, **options)
    assert fetched == ["config.json", "flax_model.msgpack"]
    assert (card.autoencoder.name, card.autoencoder.pixel_range) == (name, (0.0, 1.0))
    assert card.autoencoder.same_as(
        latentq.encode(pictures, tmp_path / "taming", autoencoder=tiny_taming, **options).autoencoder
    )
    rows = [[sample["tokens"] for sample in latentq.LatentDataset(tmp_path / out)] for out in ("out", "taming")]
    assert torch.equal(*map(torch.stack, rows))


def removed(tree):
    del tree["decoder"]["up_1"]["block_0"]["conv1"]["bias"]


def added(tree):
    tree["ema"] = {"decay": np.zeros(1, np.float32)}


def wrapped(tree):
    inner = dict(tree)
    tree.clear()
    tree["params"] = inner


def reshaped(tree):
    tree["quant_conv"]["bias"] = np.zeros(5, np.float32)


def transposed(tree):
    kernel = tree["encoder"]["conv_in"]["kernel"]
    tree["encoder"]["conv_in"]["kernel"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def scalar(tree):
    tree["quant_conv"]["bias"] = np.float32(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (removed, "1 tensor missing, decoder/up_1/block_0/conv1/bias first"),
        (added, "1 tensor left over, ema/decay first"),
        (wrapped, "tensors missing, decoder/conv_in/bias first"),
        (reshaped, "1 tensor of another shape, quant_conv/bias first"),
        (transposed, "1 tensor of another shape, encoder/conv_in/kernel first"),
        (scalar, "1 tensor of another shape, quant_conv/bias first"),
    ],
)
def test_the_arrays_must_be_exactly_the_networks(tmp_path, model, tree, change, message):
    change(tree)
    save_as_flax(model, tmp_path / "vqgan", tree=tree)
    with pytest.raises(latentq.LatentqError, match=message) as caught:
        latentq.load_autoencoder(tmp_path / "vqgan")
    assert str(caught.value).startswith(f"the weights of {tmp_path / 'vqgan' / 'flax_model.msgpack'} do not fit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ch": 33}, "not the configuration of a VQGAN"),
        ({"ch": 10**12}, "ch must be an integer from 1"),
        ({"ch_mult": [1] * 3000}, "ch_mult must be a list of at most 16"),
        ({"n_embed": "300"}, "n_embed must be an integer"),
        ({"n_embed": 301}, "1 tensor of another shape, quantize/embedding/embedding first"),
        ({"double_z": True}, "double_z must be false"),
        ({"give_pre_end": True}, "give_pre_end must be false"),
        ({"resamp_with_conv": False}, "resamp_with_conv must be true"),
        ({"attn_resolutions": []}, "tensors left over, decoder/up_2/attn_0/k/bias first"),
    ],
)
def test_a_configuration_of_another_network_is_refused(tmp_path, model, change, message):
    save_as_flax(model, tmp_path / "vqgan", config=change)
    with pytest.raises(latentq.LatentqError, match=message) as caught:
        latentq.load_autoencoder(tmp_path / "vqgan")
    assert str(tmp_path / "vqgan") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not the configuration of a VQGAN"),
        ("[]", "it is not an object"),
        ("[" * 100_000, "not the configuration of a VQGAN"),
        ("{}", "not the configuration of a VQGAN"),
        (" " * (1 << 20) + "{}", "more than 1048576 bytes"),
        ('{"embed_dim": ' + "9" * 5000 + "}", "not the configuration of a VQGAN"),
        ('{"ch_mult": {}}', "not the configuration of a VQGAN"),
    ],
)
def test_a_broken_configuration_is_one_short_error_line(tmp_path, model, text, reason):
    save_as_flax(model, tmp_path / "vqgan")
    (tmp_path / "vqgan" / "config.json").write_text(text)
    with pytest.raises(latentq.LatentqError, match=reason) as caught:
        latentq.load_autoencoder(tmp_path / "vqgan")
    assert str(caught.value).startswith(str(tmp_path / "vqgan" / "config.json"))
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_broken_weights_are_one_error_line(tmp_path, model):
    save_as_flax(model, tmp_path / "vqgan")
    weights = tmp_path / "vqgan" / "flax_model.msgpack"
    whole = weights.read_bytes()
    for name, data, reason in [
        ("short", whole[:-1], "truncated"),
        ("empty", b"", "truncated"),
        ("pickle", b"\x80\x02csome_module\nharm\n.", "not a file of flax"),
    ]:
        weights.write_bytes(data)
        with pytest.raises(latentq.FormatError, match=reason) as caught:
            latentq.load_autoencoder(tmp_path / "vqgan")
        assert str(weights) in str(caught.value), name
    weights.unlink()
    os.mkfifo(weights)
    with pytest.raises(latentq.FormatError, match="not a regular file"):
        latentq.load_autoencoder(tmp_path / "vqgan")


def test_weights_of_diffusers_next_to_those_of_flax_are_preferred(tiny_vae, tmp_path):
    for file in tiny_vae.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "flax_model.msgpack").touch()
    assert latentq.load_autoencoder(tmp_path).family == "AutoencoderKL"


def test_a_missing_package_is_named_with_its_install_command(tmp_path, model, monkeypatch):
    save_as_flax(model, tmp_path / "vqgan")
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(latentq.LatentqError, match=r"needs msgpack, which is not installed: pip install 'msgpack>=1'"):
        latentq.load_autoencoder(tmp_path / "vqgan")
