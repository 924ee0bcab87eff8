"""The built-in transform, compared with an independent implementation."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import latentq
from latentq.inspect.psnr import psnr
from latentq.models.decode import decode_latents


def reference_dct(pixels):
    """Compute all 8x8 DCT-II coefficients of (3, S, S) float64 planes by matrix products."""
    k, n = np.mgrid[0:8, 0:8]
    basis = np.where(k == 0, np.sqrt(1 / 8), 0.5) * np.cos(np.pi * (2 * n + 1) * k / 16)
    color = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
    planes = np.einsum("ck,khw->chw", color, pixels)
    blocks = planes.reshape(3, planes.shape[1] // 8, 8, planes.shape[2] // 8, 8)
    return np.einsum("ui,cyixj,vj->cuvyx", basis, blocks, basis)


def test_dct_keeps_sixteen_coefficients_of_each_block_in_zigzag_order():
    pixels = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32))
    coefficients = reference_dct(pixels)
    luma = [(0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (0, 3), (1, 2), (2, 1), (3, 0), (0, 4), (1, 3)]
    kept = [(0, *uv) for uv in luma] + [(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)]
    expected = np.stack([coefficients[index] for index in kept])
    latents = latentq.load_autoencoder("dct-f8c16").encode(torch.from_numpy(pixels[None]).float())
    np.testing.assert_allclose(latents[0].numpy(), expected, atol=1e-5)


def test_dct_decodes_the_coefficients_that_it_keeps():
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
