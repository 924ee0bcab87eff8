"""Autoencoders: the built-in transform against an independent one, diffusers' KL against diffusers."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps

import latentq
from latentq.autoencoders import weight_hash
from latentq.decode import decode_latents, psnr


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


def test_kl_computes_what_diffusers_computes(tiny_vae):
    ours = latentq.load_autoencoder(tiny_vae)
    theirs = AutoencoderKL.from_pretrained(tiny_vae)
    pixels = torch.rand(3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        distribution = theirs.encode(pixels).latent_dist
        mean, logvar = ours.posterior(pixels)
        # Not to the bit: torch picks other kernels for weights that want a gradient.
        torch.testing.assert_close(mean, distribution.mean)
        torch.testing.assert_close(logvar, distribution.logvar)
        torch.testing.assert_close(ours.encode(pixels), distribution.mode())
        torch.testing.assert_close(ours.decode(mean), theirs.decode(mean).sample)
    assert (ours.name, ours.scaling_factor, ours.latent_shape(256)) == ("tiny-vae", 0.13025, (4, 32, 32))


def test_kl_loads_from_a_subfolder(tiny_vae, tmp_path):
    (tmp_path / "vae").symlink_to(tiny_vae)
    autoencoder = latentq.load_autoencoder(tmp_path, subfolder="vae")
    assert autoencoder.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 2, 2)


def test_the_weight_hash_tells_weights_apart_and_not_their_folder(tiny_vae, tmp_path):
    model = AutoencoderKL.from_pretrained(tiny_vae)
    model.save_pretrained(tmp_path / "copy", max_shard_size="10KB")
    same = weight_hash(latentq.load_autoencoder(tmp_path / "copy"))
    assert same == weight_hash(latentq.load_autoencoder(tiny_vae))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    model.save_pretrained(tmp_path / "other")
    assert weight_hash(latentq.load_autoencoder(tmp_path / "other")) != same


def test_what_cannot_be_loaded_gives_one_line(tiny_vae, tmp_path, monkeypatch):
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
        (tmp_path / "empty", "no config.json"),
        (tmp_path / "pipeline", "sub-folder 'vae'"),
        (tmp_path / "other", "UNet2DModel"),
        (tmp_path / "broken", "cannot load"),
        (tmp_path / "no-weights", "cannot load"),
        ("nobody/nothing", "cannot load the autoencoder 'nobody/nothing'"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message) as caught:
            latentq.load_autoencoder(name)
        assert "\n" not in str(caught.value)


def test_weights_that_are_not_whole_are_refused(tiny_vae, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_text((tiny_vae / "config.json").read_text())
    weights = load_file(tiny_vae / "diffusion_pytorch_model.safetensors")
    del weights["encoder.conv_in.weight"]
    save_file(weights, tmp_path / "part" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(latentq.LatentqError, match=r"incomplete: 1 are missing, encoder\.conv_in\.weight first"):
        latentq.load_autoencoder(tmp_path / "part")


@pytest.mark.parametrize("size", [0, 4, 100])
def test_a_size_that_does_not_divide_is_refused(tiny_vae, size):
    for name in ("dct-f8c16", tiny_vae):
        with pytest.raises(ValueError, match="multiple of 8"):
            latentq.load_autoencoder(name).latent_shape(size)
