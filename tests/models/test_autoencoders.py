"""Autoencoders: the built-in transform against an independent one, every family against diffusers' own class."""

import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel
from huggingface_hub import errors
from PIL import Image, ImageOps

import latentq
from conftest import contents
from latentq.inspect.psnr import psnr
from latentq.models.autoencoders import Autoencoder, Posterior, Tokenizer
from latentq.models.autoencoders.taming import VQGAN
from latentq.models.decode import decode_latents
from latentq.models.match import autoencoder_for
from latentq.models.weights import weight_hash
from support.making import save_as_taming, taming_state_dict

ROOT = Path(__file__).resolve().parents[2]


def reference_dct(pixels):
    """All 8x8 DCT-II coefficients of (3, S, S) float64 planes, by matrix products."""
    k, n = np.mgrid[0:8, 0:8]
    basis = np.where(k == 0, np.sqrt(1 / 8), 0.5) * np.cos(np.pi * (2 * n + 1) * k / 16)
    colour = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    planes = np.einsum("ck,khw->chw", colour, pixels)
    blocks = planes.reshape(3, planes.shape[1] // 8, 8, planes.shape[2] // 8, 8)
    return np.einsum("ui,cyixj,vj->cuvyx", basis, blocks, basis)


def test_dct_keeps_sixteen_coefficients_of_each_block_in_zigzag_order():
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32))
    all_of_them = reference_dct(pixels)
    luma = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0), (0, 4), (1, 3)]
    kept = [(0, *uv) for uv in luma] + [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    expected = np.stack([all_of_them[index] for index in kept])
    latents = latentq.load_autoencoder("dct-f8c16").encode(torch.from_numpy(pixels[None]).float())
    np.testing.assert_allclose(latents[0].numpy(), expected, atol=1e-5)


def test_dct_decodes_what_it_keeps():
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    latents = torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(0))
    assert autoencoder.decode(latents).shape == (2, 3, 24, 40)
    torch.testing.assert_close(autoencoder.encode(autoencoder.decode(latents)), latents, atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 7, 20])
def test_dct_does_not_depend_on_the_batch_or_the_threads(batch):
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    pixels = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = autoencoder.encode(pixels)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    parts = torch.cat([autoencoder.encode(part) for part in pixels.split(batch)])
    torch.set_num_threads(before)
    assert torch.equal(whole, parts)


def test_dct_reconstructs_photographs_at_27_db(photographs):
    autoencoder = latentq.load_autoencoder("dct-f8c16")
    scores = []
    for file in sorted(photographs.rglob("*.JPEG")):
        original = np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (256, 256), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(original / np.float32(127.5) - 1).permute(2, 0, 1)[None]
        scores.append(psnr(decode_latents(autoencoder, autoencoder.encode(pixels))[0], original))
    assert len(scores) == 64
    assert np.mean(scores) >= 27


def pixels_for(size, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


@pytest.fixture(scope="session")
def families(tmp_path_factory, tiny_vae, tiny_vq, tiny_taming):
    """The folders of tiny random models: of each of diffusers' classes, and one of taming-transformers."""
    folder = tmp_path_factory.mktemp("families")
    torch.manual_seed(3)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "flux")
    AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=["ResBlock", "EfficientViTBlock"],
        decoder_block_types=["ResBlock", "EfficientViTBlock"],
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    ).save_pretrained(folder / "dc")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder / "taesd")
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        num_vq_embeddings=50,
        norm_type="spatial",
    )
    torch.nn.init.normal_(movq.quantize.embedding.weight)
    movq.save_pretrained(folder / "movq")
    return {"kl": tiny_vae, "vq": tiny_vq, "taming": tiny_taming} | {path.name: path for path in folder.iterdir()}


# Name, class, scaling factor, shift factor, shape of the latents of 32 x 32 pixels.
FAMILIES = [
    ("kl", AutoencoderKL, 0.13025, 0.0, (4, 4, 4)),
    ("flux", AutoencoderKL, 0.3611, 0.1159, (16, 16, 16)),
    ("dc", AutoencoderDC, 0.41407, 0.0, (8, 16, 16)),
    ("taesd", AutoencoderTiny, 1.0, 0.0, (4, 8, 8)),
    ("vq", VQModel, 0.18215, 0.0, (4, 8, 8)),
    ("movq", VQModel, 0.18215, 0.0, (4, 16, 16)),
]


def mode(encoded):
    """What diffusers' encode gives, whatever each class calls it."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


@pytest.mark.parametrize(("name", "kind", "scaling", "shift", "shape"), FAMILIES)
def test_a_family_computes_what_diffusers_computes_alone_and_batched(families, name, kind, scaling, shift, shape):
    ours, theirs = latentq.load_autoencoder(families[name]), kind.from_pretrained(families[name]).eval()
    pixels = pixels_for(32)
    assert isinstance(ours, Autoencoder)
    assert (ours.family, ours.scaling_factor, ours.shift_factor) == (kind.__name__, scaling, shift)
    assert (ours.pixel_range, ours.latent_shape(32)) == ((-1.0, 1.0), shape)
    with torch.no_grad():
        # Not to the bit: torch picks other kernels for weights that want a gradient.
        expected = mode(theirs.encode(pixels))
        latents = ours.encode(pixels)
        assert latents.shape == (3, *shape)
        torch.testing.assert_close(latents, expected)
        torch.testing.assert_close(torch.cat([ours.encode(one) for one in pixels.split(1)]), expected)
        decoded = theirs.decode(expected).sample
        torch.testing.assert_close(ours.decode(expected), decoded, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            torch.cat([ours.decode(one) for one in expected.split(1)]), decoded, atol=1e-4, rtol=1e-4
        )


def test_a_posterior_is_the_mean_and_the_log_variance(families):
    for name in ("kl", "flux"):
        ours, theirs = latentq.load_autoencoder(families[name]), AutoencoderKL.from_pretrained(families[name])
        assert isinstance(ours, Posterior)
        with torch.no_grad():
            distribution = theirs.encode(pixels_for(32)).latent_dist
            mean, logvar = ours.posterior(pixels_for(32))
        torch.testing.assert_close(mean, distribution.mean)
        torch.testing.assert_close(torch.exp(logvar / 2), distribution.std)
    for name in ("dc", "taesd", "vq", "taming"):
        assert not isinstance(latentq.load_autoencoder(families[name]), Posterior)


@pytest.mark.parametrize("name", ["vq", "movq", "taming"])
def test_tokens_are_the_librarys_alone_and_batched(families, name):
    ours = latentq.load_autoencoder(families[name])
    theirs = VQModel.from_pretrained(families["vq" if name == "taming" else name]).eval()
    pixels = pixels_for(32)
    assert isinstance(ours, Tokenizer)
    assert ours.codebook_size == theirs.config.num_vq_embeddings
    with torch.no_grad():
        latents = theirs.encode(pixels).latents
        expected = theirs.quantize(latents)[2][2].view(3, *ours.latent_shape(32)[1:])
        tokens = ours.tokens(pixels)
        assert tokens.dtype == torch.int64
        assert len(tokens.unique()) > 4
        assert torch.equal(tokens, expected)
        assert torch.equal(torch.cat([ours.tokens(one) for one in pixels.split(1)]), expected)
        decoded = theirs.decode(latents).sample
        torch.testing.assert_close(ours.decode_tokens(tokens), decoded, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.decode(latents), decoded, atol=1e-4, rtol=1e-4)


def test_tokens_say_where_they_are_not_finite_and_what_is_no_token(families):
    ours = latentq.load_autoencoder(families["vq"])
    assert ours.tokens(torch.full((1, 3, 16, 16), torch.nan)).unique().tolist() == [-1]
    for bad in (-1, ours.codebook_size):
        with pytest.raises(ValueError, match="tokens must be from 0 to 299"):
            ours.decode_tokens(torch.full((1, 4, 4), bad))


@pytest.mark.parametrize("name", ["kl", "flux", "dc", "taesd", "vq", "taming"])
def test_neither_processes_nor_threads_change_a_byte_of_a_dataset(families, name, pictures, tmp_path):
    options = {"autoencoder": families[name], "size": 32, "unit_size": 5, "batch_size": 4}
    options["store"] = "tokens" if name == "taming" else "sample"
    latentq.encode(pictures, tmp_path / "one", threads=1, **options)
    for rank in (2, 0, 1):
        latentq.encode(pictures, tmp_path / "three", threads=3, rank=rank, world_size=3, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_tokens_of_a_latent_that_is_not_finite_are_made_anew_or_the_sample_is_a_reject(
    families, pictures, tmp_path, monkeypatch
):
    network = latentq.load_autoencoder(families["vq"])
    encode = network.encode
    always = False

    def spoiled(pixels):
        latents = encode(pixels)
        if (len(latents) > 1 and torch.is_autocast_enabled("cpu")) or always:
            latents[-1, 2, 3, 4] = torch.inf
        return latents

    monkeypatch.setattr(network, "encode", spoiled)
    options = {"autoencoder": network, "size": 32, "store": "tokens", "batch_size": 6, "dtype": "bfloat16"}
    counts = latentq.encode(pictures, tmp_path / "half", **options).counts
    assert (counts.samples, counts.rejects, counts.redone) == (12, 0, 2)
    always = True
    counts = latentq.encode(pictures, tmp_path / "always", **options).counts
    assert (counts.samples, counts.rejects, counts.redone) == (10, 2, 2)


def test_taming_is_the_same_network_under_its_own_names(families):
    ours, theirs = latentq.load_autoencoder(families["taming"]), VQModel.from_pretrained(families["vq"]).eval()
    assert (ours.family, ours.name, ours.latent_shape(64)) == ("taming.VQModel", "tiny-taming", (4, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(pixels_for(32)), theirs.encode(pixels_for(32)).latents)
    by_path = latentq.load_autoencoder(families["taming"] / "last.ckpt", pixel_range=(0.0, 1.0))
    assert (by_path.name, by_path.pixel_range) == ("last", (0.0, 1.0))
    assert weight_hash(by_path) == weight_hash(ours)


def test_taming_has_the_tensors_of_the_real_vqgan_f16_16384():
    """The configuration that boris/vqgan_f16_16384 and the paper's vqgan_imagenet_f16_16384 share."""
    with torch.device("meta"):
        theirs = VQModel(
            down_block_types=["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=256,
            num_vq_embeddings=16384,
        )
        ours = VQGAN(
            256, 16384, ch=128, out_ch=3, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=2, attn_resolutions=[16],
            in_channels=3, resolution=256, z_channels=256,
        )  # fmt: skip
    expected = {key: value.shape for key, value in taming_state_dict(theirs).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    for key in ("encoder.down.4.attn.1.q.weight", "decoder.up.4.attn.2.proj_out.bias", "decoder.mid.attn_1.norm.weight",
                "encoder.down.2.block.0.nin_shortcut.weight", "decoder.up.1.upsample.conv.weight"):  # fmt: skip
        assert key in expected


def test_a_taming_checkpoint_must_be_whole_and_hold_no_more(tmp_path, tiny_vq):
    model = VQModel.from_pretrained(tiny_vq)
    state = taming_state_dict(model)
    lacking = {key: value for key, value in state.items() if not key.startswith("decoder.up.1.")}
    save_as_taming(model, tmp_path / "lacking", state=lacking)
    save_as_taming(model, tmp_path / "more", state=state | {"ema.decay": torch.zeros(1)})
    save_as_taming(model, tmp_path / "other", state=state | {"quant_conv.bias": torch.zeros(5)})
    for name, message in [
        ("lacking", r"are missing, decoder\.up\.1\.block\.0\.conv1\.bias first"),
        ("more", r"1 are left over, ema\.decay first"),
        ("other", r"1 have another shape, quant_conv\.bias first"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message):
            latentq.load_autoencoder(tmp_path / name)


def test_a_taming_folder_that_cannot_be_used_gives_one_line(tmp_path, tiny_vq, tiny_taming):
    model = VQModel.from_pretrained(tiny_vq)
    save_as_taming(model, tmp_path / "gumbel", target="taming.models.vqgan.GumbelVQ")
    config = yaml.safe_load((tiny_taming / "model.yaml").read_text())
    for name, change in [("narrow", {"ch": 33}), ("double", {"double_z": True}), ("zero", {"ch_mult": 0})]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
        changed = json.loads(json.dumps(config))
        changed["model"]["params"]["ddconfig"] |= change
        (tmp_path / name / "model.yaml").write_text(yaml.dump(changed))
    for name, text in [("list", "[1"), ("empty", ""), ("nothing", "model: {target: x.VQModel, params: {}}")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
        (tmp_path / name / "model.yaml").write_text(text)
    for name, data in [("text", b"no"), ("short", (tiny_taming / "last.ckpt").read_bytes()[:5000])]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").write_bytes(data)
        (tmp_path / name / "model.yaml").symlink_to(tiny_taming / "model.yaml")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "last.ckpt").touch()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.ckpt").touch()
    (tmp_path / "two" / "b.ckpt").touch()
    for name, message in [
        ("gumbel", "GumbelVQ; of taming-transformers only VQModel"),
        ("narrow", "not the configuration of a VQGAN"),
        ("double", "double_z must be false"),
        ("zero", "not the configuration of a VQGAN"),
        ("list", "not the configuration of a VQGAN"),
        ("empty", "not the configuration of a VQGAN"),
        ("nothing", "not the configuration of a VQGAN"),
        ("text", "not a checkpoint that can be read"),
        ("short", "not a checkpoint that can be read"),
        ("alone", r"needs its configuration next to it, as last\.yaml"),
        ("alone/absent.ckpt", "there is no checkpoint"),
        ("two", "2 checkpoints: name one"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message) as caught:
            latentq.load_autoencoder(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_calls_nothing(tmp_path, tiny_taming):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    (tmp_path / "model.yaml").symlink_to(tiny_taming / "model.yaml")
    torch.save({"callbacks": Harm(), "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(latentq.LatentqError):
        latentq.load_autoencoder(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_a_model_loads_from_a_subfolder_in_float32_whatever_it_was_saved_as(tiny_vae, tmp_path):
    AutoencoderKL.from_pretrained(tiny_vae).to(torch.float16).save_pretrained(tmp_path / "vae")
    autoencoder = latentq.load_autoencoder(tmp_path, subfolder="vae")
    assert autoencoder.module.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert autoencoder.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
        assert autoencoder.decode(torch.zeros(1, 4, 2, 2)).dtype == torch.float32


def test_a_recipes_subfolder_is_left_out_in_a_folder_that_has_none(tiny_vae, pictures, tmp_path):
    recipe = latentq.Recipe.load("default").override(size=32, subfolder="vae")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(tiny_vae)
    card = latentq.encode(pictures, tmp_path / "out", recipe=recipe, autoencoder=tmp_path / "pipeline")
    for recipe_now in (recipe, recipe.override(subfolder="", revision="main")):  # it goes on: the weights are the same
        assert latentq.encode(pictures, tmp_path / "out", recipe=recipe_now, autoencoder=tiny_vae) == card
    for folder in (tiny_vae, tmp_path / "pipeline"):
        assert weight_hash(autoencoder_for(card, folder)) == card.autoencoder.weights
    with pytest.raises(latentq.LatentqError, match=f"but {tiny_vae} has: say so by --subfolder ''"):
        latentq.encode(pictures, tmp_path / "other", recipe=recipe, autoencoder=tiny_vae, subfolder="unet")


def test_the_weight_hash_tells_weights_apart_and_not_their_folder(tiny_vae, tmp_path):
    model = AutoencoderKL.from_pretrained(tiny_vae)
    model.save_pretrained(tmp_path / "copy", max_shard_size="10KB")
    same = weight_hash(latentq.load_autoencoder(tmp_path / "copy"))
    assert same == weight_hash(latentq.load_autoencoder(tiny_vae))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    model.save_pretrained(tmp_path / "other")
    assert weight_hash(latentq.load_autoencoder(tmp_path / "other")) != same


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_vae, tiny_taming):
    """A hub of three repositories; `hub.fetched` tells which files were asked for."""
    repositories = {"a/kl": tmp_path / "kl", "a/pipeline": tmp_path / "pipeline", "a/vqgan": tmp_path / "vqgan"}
    AutoencoderKL.from_pretrained(tiny_vae).save_pretrained(tmp_path / "kl", max_shard_size="20KB")
    shutil.copytree(tiny_vae, tmp_path / "pipeline" / "vae")
    for extra in ("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "large.ckpt"):
        (tmp_path / "pipeline" / extra).touch()
    shutil.copytree(tiny_taming, tmp_path / "vqgan")
    said = SimpleNamespace(fetched=[])

    def names(_self, name, revision):
        if name not in repositories:
            raise errors.RepositoryNotFoundError(name, response=SimpleNamespace(headers={}, request=None))
        if revision not in (None, "v1"):
            raise errors.RevisionNotFoundError(revision, response=SimpleNamespace(headers={}, request=None))
        return [path.relative_to(repositories[name]).as_posix() for path in repositories[name].rglob("*.*")]

    def fetch(name, file, revision):
        said.fetched.append(file)
        return str(repositories[name] / file)

    monkeypatch.setattr("latentq.models.hub._reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return said


def test_of_a_repository_only_the_model_is_fetched(hub, tiny_vae, tiny_taming):
    weights = weight_hash(latentq.load_autoencoder(tiny_vae))
    sharded = latentq.load_autoencoder("a/kl", revision="v1")
    assert (sharded.name, weight_hash(sharded)) == ("a/kl", weights)
    assert len(hub.fetched) > 3
    hub.fetched.clear()
    assert weight_hash(latentq.load_autoencoder("a/pipeline", subfolder="vae")) == weights
    assert hub.fetched == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    vqgan = latentq.load_autoencoder("a/vqgan")
    assert (vqgan.name, weight_hash(vqgan)) == ("a/vqgan", weight_hash(latentq.load_autoencoder(tiny_taming)))


def test_what_a_repository_lacks_is_said_in_one_line(hub):
    for name, options, message in [
        ("a/nothing", {}, "no such repository"),
        ("a/kl", {"revision": "v2"}, "no revision 'v2'"),
        ("a/pipeline", {}, "sub-folder 'vae' has one"),
        ("a/kl", {"subfolder": "vae"}, "has no vae/config.json.*outside of that sub-folder.*--subfolder ''"),
    ]:
        with pytest.raises(latentq.LatentqError, match=f"cannot load the autoencoder '{name}': .*{message}") as caught:
            latentq.load_autoencoder(name, **options)
        assert "\n" not in str(caught.value)
        assert not hub.fetched


def test_without_the_hub_its_cache_is_enough(tiny_vae, tmp_path, monkeypatch):
    cached = tmp_path / "models--a--pipeline"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_vae, cached / "snapshots" / ("0" * 40) / "vae")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    network = latentq.load_autoencoder("a/pipeline", subfolder="vae")
    assert (network.name, weight_hash(network)) == ("a/pipeline", weight_hash(latentq.load_autoencoder(tiny_vae)))
    with pytest.raises(latentq.LatentqError, match="sub-folder 'vae' has"):
        latentq.load_autoencoder("a/pipeline")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, capfd):
    asked = []

    def head(*_, **__):
        asked.append(1)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    with pytest.raises(latentq.LatentqError, match="cannot be reached and its cache does not hold the model"):
        latentq.load_autoencoder("nobody/nothing")
    assert asked == [1]
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_loaded_gives_one_line(tiny_vae, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(tiny_vae)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text((tiny_vae / "config.json").read_text())
    for name, message in [
        ("dct", "no autoencoder 'dct'"),
        (tmp_path / "empty", r"no config\.json and no \.ckpt"),
        (tmp_path / "pipeline", "sub-folder 'vae'"),
        (tmp_path / "other", "UNet2DModel"),
        (tmp_path / "broken", "cannot load"),
        (tmp_path / "no-weights", r"there is no diffusion_pytorch_model\.safetensors and no .*\.bin$"),
        ("nobody/nothing", "cannot load the autoencoder 'nobody/nothing'"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message) as caught:
            latentq.load_autoencoder(name)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_missing_package_is_named_with_what_installs_it(tiny_taming, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(latentq.LatentqError, match=r"needs yaml: pip install 'latentq\[encode\]'"):
        latentq.load_autoencoder(tiny_taming)


def test_the_page_and_its_example_run(tiny_vae, tiny_vq, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-vae").symlink_to(tiny_vae)
    (tmp_path / "tiny-vq").symlink_to(tiny_vq)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/autoencoders.md").read_text(), re.MULTILINE | re.DOTALL)
    known = {}
    exec("".join(blocks), known)
    assert known["decoded"].shape == (2, 3, 64, 64)
    monkeypatch.setattr(sys, "argv", ["own_autoencoder.py", str(pictures), "out"])
    runpy.run_path(str(ROOT / "examples/own_autoencoder.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("12 samples of shape (3, 32, 32), weights sha256:")
    assert latentq.Card.load("out").autoencoder.family == "Pooled"


def test_weights_that_are_not_whole_are_refused(tiny_vae, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_text((tiny_vae / "config.json").read_text())
    weights = load_file(tiny_vae / "diffusion_pytorch_model.safetensors")
    del weights["encoder.conv_in.weight"]
    save_file(weights, tmp_path / "part" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(latentq.LatentqError, match=r"do not fit: 1 are missing, encoder\.conv_in\.weight first"):
        latentq.load_autoencoder(tmp_path / "part")


@pytest.mark.parametrize("size", [0, 4, 100])
def test_a_size_that_does_not_divide_is_refused(tiny_vae, size):
    for name in ("dct-f8c16", tiny_vae):
        with pytest.raises(ValueError, match="multiple of 8"):
            latentq.load_autoencoder(name).latent_shape(size)
