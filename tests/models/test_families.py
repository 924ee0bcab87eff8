"""Every family of autoencoders, compared with diffusers' own class."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

import latentq
from conftest import contents
from latentq.models.autoencoders import Autoencoder, Normalization, Posterior, Tokenizer, loading

ROOT = Path(__file__).resolve().parents[2]
# Name, class, scaling factor, shift factor, shape of the latents of 32 x 32 pixels.
FAMILIES = [
    ("kl", AutoencoderKL, 0.13025, 0.0, (4, 4, 4)),
    ("flux", AutoencoderKL, 0.3611, 0.1159, (16, 16, 16)),
    ("dc", AutoencoderDC, 0.41407, 0.0, (8, 16, 16)),
    ("taesd", AutoencoderTiny, 1.0, 0.0, (4, 8, 8)),
    ("vq", VQModel, 0.18215, 0.0, (4, 8, 8)),
    ("movq", VQModel, 0.18215, 0.0, (4, 16, 16)),
]


def pixels_for(size, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def mode(encoded):
    """Return the latents of diffusers' `encode`, which each class names differently."""
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mode()
    return encoded.latent if hasattr(encoded, "latent") else encoded.latents


@pytest.mark.parametrize(("name", "kind", "scaling", "shift", "shape"), FAMILIES)
def test_a_family_computes_what_diffusers_computes_alone_and_batched(families, name, kind, scaling, shift, shape):
    ours, theirs = latentq.load_autoencoder(families[name]), kind.from_pretrained(families[name]).eval()
    pixels = pixels_for(32)
    assert isinstance(ours, Autoencoder)
    assert (ours.family, ours.normalization) == (kind.__name__, Normalization(scaling, (shift,)))
    assert (ours.pixel_range, ours.latent_shape(32)) == ((-1.0, 1.0), shape)
    with torch.no_grad():
        # Not bit for bit: torch picks other kernels for weights that require gradients.
        expected = mode(theirs.encode(pixels))
        latents = ours.encode(pixels)
        assert latents.shape == (3, *shape)
        torch.testing.assert_close(latents, expected)
        torch.testing.assert_close(torch.cat([ours.encode(image) for image in pixels.split(1)]), expected)
        decoded = theirs.decode(expected).sample
        torch.testing.assert_close(ours.decode(expected), decoded, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            torch.cat([ours.decode(image) for image in expected.split(1)]), decoded, atol=1e-4, rtol=1e-4
        )


def test_a_posterior_is_mean_and_log_variance(families):
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
def test_tokens_equal_the_librarys_alone_and_batched(families, name):
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
        assert torch.equal(torch.cat([ours.tokens(image) for image in pixels.split(1)]), expected)
        decoded = theirs.decode(latents).sample
        torch.testing.assert_close(ours.decode_tokens(tokens), decoded, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.decode(latents), decoded, atol=1e-4, rtol=1e-4)


def test_tokens_are_minus_one_if_not_finite_and_other_values_are_refused(families):
    ours = latentq.load_autoencoder(families["vq"])
    assert ours.tokens(torch.full((1, 3, 16, 16), torch.nan)).unique().tolist() == [-1]
    for bad in (-1, ours.codebook_size):
        with pytest.raises(ValueError, match="tokens must be from 0 to 299"):
            ours.decode_tokens(torch.full((1, 4, 4), bad))


@pytest.mark.parametrize("name", ["kl", "flux", "dc", "taesd", "vq", "taming"])
def test_processes_and_threads_do_not_change_a_byte_of_a_dataset(families, name, pictures, tmp_path):
    options = {"autoencoder": families[name], "size": 32, "unit_size": 5, "batch_size": 4}
    options["store"] = "tokens" if name == "taming" else "sample"
    latentq.encode(pictures, tmp_path / "one", threads=1, **options)
    for rank in (2, 0, 1):
        latentq.encode(pictures, tmp_path / "three", threads=3, rank=rank, world_size=3, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")


def test_a_token_that_is_not_finite_is_encoded_again_or_rejects_the_sample(families, pictures, tmp_path, monkeypatch):
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


@pytest.mark.parametrize("size", [0, 4, 100])
def test_a_size_that_does_not_divide_is_refused(tiny_vae, size):
    for name in ("dct-f8c16", tiny_vae):
        with pytest.raises(ValueError, match="multiple of 8"):
            latentq.load_autoencoder(name).latent_shape(size)


def test_the_table_of_the_page_has_every_family_and_every_recipe():
    rows = [line.split("|") for line in (ROOT / "docs/autoencoders.md").read_text().splitlines() if line[:3] == "| `"]
    families, recipes = ({name for row in rows for name in re.findall(r"`([^`]+)`", row[at])} for at in (1, -2))
    checkpoints = (loading.LdmAutoencoder, loading.LlamaGenAutoencoder, loading.MaskGitAutoencoder)
    known = {*loading.FAMILIES, *(family.family for family in (*checkpoints, loading.TamingAutoencoder))}
    assert families == {*known, "dct-f8c16"}
    assert recipes == set(latentq.Recipe.names())


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
