"""Quantized latents seen through a decoder, with tiny models of diffusers' own classes."""

import diffusers
import numpy as np
import pytest
import torch

import latentq
from latentq import Quantizer, Transform
from latentq.encoding.decoder_metric import decoder_metric
from latentq.inspect import measure

CLASSES = {"flux": "AutoencoderKL", "dc": "AutoencoderDC", "taesd": "AutoencoderTiny"}


@pytest.fixture(params=CLASSES)
def pair(request, families):
    """The autoencoder as latentq loads it, and the library's own model."""
    folder = families[request.param]
    model = getattr(diffusers, CLASSES[request.param]).from_pretrained(folder).eval()
    return latentq.load_autoencoder(folder), model


def latents_of(network, count=6, side=64):
    pixels = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    low, high = network.pixel_range
    with torch.no_grad():
        return network.encode((pixels + 1) / 2 * (high - low) + low).float()


def psnr(a, b):
    """Mean over images of the PSNR of two batches of images in [0, 1], rounded to bytes as they are compared."""
    a, b = ((x.clip(0, 1) * 255).double() for x in (a, b))
    return float((20 * np.log10(255) - 10 * torch.log10((a - b).square().mean((1, 2, 3)))).mean())


def test_measure_gives_the_psnr_of_the_librarys_decoder(pair):
    network, model = pair
    x = latents_of(network)
    rows = {
        (row.scheme, row.bits): row
        for row in measure.measure(x.numpy(), bits=[4], methods=["trellis"], autoencoder=network)
    }
    calibration, tried = x[::2].numpy(), x[1::2].numpy()
    transform = Transform.calibrate(calibration, bytes=calibration[0].size // 2)
    trellis = Quantizer.calibrate(calibration, bits=4, method="trellis")
    low, high = network.pixel_range

    @torch.no_grad()
    def decode(values):
        return (model.decode(torch.as_tensor(values)).sample - low) / (high - low)

    for name, values in {
        "trellis": trellis.dequantize(trellis.quantize(tried)),
        "transform": transform.decode(transform.encode(tried), tried.shape),
    }.items():
        assert rows[name, 4].psnr_decoded_db == pytest.approx(psnr(decode(values), decode(tried)), abs=0.5), name
    assert rows["transform", 4].psnr_decoded_db > 10


def test_the_metric_estimates_the_decoders_jacobian(pair):
    network, model = pair
    latent = latents_of(network, 1, 16)[0]
    channels = len(latent)
    jacobian = torch.autograd.functional.jacobian(lambda z: model.decode(z[None]).sample.flatten(), latent)
    columns = jacobian.reshape(len(jacobian), channels, -1).double()
    exact = torch.einsum("opi,oqi->pq", columns, columns).numpy() / columns.shape[2]
    estimate = decoder_metric(network, [latent.numpy()] * 100, None, torch.device("cpu"))
    assert np.allclose(estimate, estimate.T)
    assert np.linalg.eigvalsh(estimate).min() > -1e-9 * np.trace(estimate)
    assert np.linalg.norm(estimate - exact) < 0.2 * np.linalg.norm(exact)
