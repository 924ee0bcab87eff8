"""The autoencoders that other tools' latents come from, described without loading them."""

from __future__ import annotations

from dataclasses import replace

from latentq.converting.foreign import ForeignAutoencoder
from latentq.format.normalization import Normalization

_QWEN_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632,
              -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
_QWEN_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382,
             1.1253, 2.8251, 1.9160)  # fmt: skip


def _kl(name: str, channels: int, factor: float, shift: float = 0.0) -> ForeignAutoencoder:
    normalization = Normalization(factor, (shift,))
    return ForeignAutoencoder(name, "AutoencoderKL", normalization, (-1.0, 1.0), (channels, 0, 0), reduction=8)


KNOWN = {
    "sd": _kl("stabilityai/sd-vae-ft-mse", 4, 0.18215),
    "sdxl": _kl("stabilityai/sdxl-vae", 4, 0.13025),
    "sd3": _kl("stabilityai/stable-diffusion-3-medium-diffusers", 16, 1.5305, 0.0609),
    "flux": _kl("black-forest-labs/FLUX.1-schnell", 16, 0.3611, 0.1159),
    "hunyuan-video": ForeignAutoencoder(
        "hunyuanvideo-community/HunyuanVideo", "AutoencoderKLHunyuanVideo", Normalization(0.476986), (-1.0, 1.0),
        (16, 0, 0), reduction=8,
    ),
    "hunyuan-video-1.5": ForeignAutoencoder(
        "hunyuanvideo-community/HunyuanVideo-1.5", "AutoencoderKLHunyuanVideo15", Normalization(1.03682), (-1.0, 1.0),
        (32, 0, 0), reduction=16,
    ),
    "flux2": ForeignAutoencoder(
        "black-forest-labs/FLUX.2-dev", "AutoencoderKLFlux2", Normalization(), (-1.0, 1.0), (128, 0, 0), reduction=16
    ),
    "ideogram4": ForeignAutoencoder(
        "Comfy-Org/Ideogram-4", "AutoencoderKLFlux2", Normalization(), (-1.0, 1.0), (128, 0, 0), reduction=16
    ),
    "qwen-image": ForeignAutoencoder(
        "Qwen/Qwen-Image", "AutoencoderKLQwenImage", Normalization(1.0, _QWEN_MEAN, _QWEN_STD), (-1.0, 1.0), (16, 0, 0),
        reduction=8,
    ),
    "wan": ForeignAutoencoder(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "AutoencoderKLWan", Normalization(1.0, _QWEN_MEAN, _QWEN_STD), (-1.0, 1.0),
        (16, 0, 0), reduction=8,
    ),
    "dc-ae": ForeignAutoencoder(
        "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "AutoencoderDC", Normalization(0.41407), (-1.0, 1.0), (32, 0, 0),
        reduction=32,
    ),
    "va-vae": ForeignAutoencoder(
        "hustvl/vavae-imagenet256-f16d32-dinov2", "ldm.AutoencoderKL", Normalization(), (-1.0, 1.0), (32, 0, 0),
        reduction=16,
    ),
    "e2e-invae": ForeignAutoencoder(
        "REPA-E/e2e-invae", "AutoencoderKL", Normalization(), (-1.0, 1.0), (32, 0, 0), reduction=16
    ),
    "e2e-sdvae": ForeignAutoencoder(
        "REPA-E/e2e-sdvae", "AutoencoderKL", Normalization(), (-1.0, 1.0), (4, 0, 0), reduction=8
    ),
    "mar": ForeignAutoencoder(
        "mar-vae-kl16", "ldm.AutoencoderKL", Normalization(0.2325), (-1.0, 1.0), (16, 0, 0), reduction=16
    ),
    "hunyuan-image": ForeignAutoencoder(
        "hunyuanvideo-community/HunyuanImage-2.1-Diffusers", "AutoencoderKLHunyuanImage", Normalization(0.75289),
        (-1.0, 1.0), (64, 0, 0), reduction=32,
    ),
}  # fmt: skip
"""Autoencoders by the names that `--autoencoder` takes."""


def autoencoder_of(
    default: str,
    given: str | None,
    channels: int,
    *,
    normalization: Normalization | None = None,
    pixel_range: tuple[float, float] | None = None,
    reduction: int | None = None,
) -> ForeignAutoencoder:
    """Returns the autoencoder of a layout, or the one that the user names.

    If the files have other channels than the layout's own, it is `unknown`, and nothing is known of a normalization.

    Args:
        default: The layout's own, by its name in `KNOWN`.
        given: A name in `KNOWN`, or of any model; None for the layout's own.
        channels: The number of channels of raw latents that the files have.
        normalization: The layout's normalization, if it has one of its own, whatever the autoencoder.
        pixel_range: The pixel values of black and white, if the layout has its own.
        reduction: Pixels per position of a latent, if the files tell.

    Raises:
        ValueError: The known autoencoder that the user names has another number of channels.
    """
    found = KNOWN.get(given or default)
    if found is None:
        found = replace(KNOWN[default], name=given or default, family="unknown")
    if channels != found.shape[0]:
        if given in KNOWN:
            raise ValueError(
                f"autoencoder must have {channels} channels, as the latents do: {given} has {found.shape[0]}"
            )
        # another autoencoder than the tool's usual one
        found = replace(found, name=given or "unknown", family="unknown", normalization=Normalization())
    found = replace(found, shape=(channels, 0, 0))
    if normalization is not None:
        found = replace(found, normalization=normalization)
    if pixel_range is not None:
        found = replace(found, pixel_range=pixel_range)
    return found if reduction is None else replace(found, reduction=reduction)
