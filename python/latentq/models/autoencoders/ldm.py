"""KL autoencoders of latent-diffusion, without a configuration: VA-VAE (LightningDiT) and MAR's KL-16.

They have the encoder and decoder of taming-transformers. The names and shapes of the tensors tell which layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from latentq._core import LatentqError
from latentq.format.normalization import Normalization
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.models.autoencoders.base import Network
from latentq.models.autoencoders.checkpoint import Checkpoint
from latentq.models.autoencoders.taming import Decoder, Encoder, TamingAutoencoder, encoder_and_decoder
from latentq.system.text import one_line

STATISTICS = "latents_stats.pt"  # LightningDiT's mean and std of each channel, next to the checkpoint
_MAR_FACTOR = 0.2325
_LOGVAR = (-30.0, 20.0)  # the limits of log-variances


class LdmAutoencoder(Network):
    """An `ldm.models.autoencoder.AutoencoderKL`.

    Its checkpoint does not say how latents are scaled. With `latents_stats.pt` next to it they are scaled by these
    statistics, as LightningDiT does. Without that file MAR's KL-16 has the factor of MAR's code, and any other
    checkpoint none; `note` says which.
    """

    family = "ldm.AutoencoderKL"

    @staticmethod
    def recognizes(shapes: Mapping[str, object]) -> bool:
        """True if tensors of these names are of this family."""
        quantized = any(name.startswith("quantize.") for name in shapes)
        return TamingAutoencoder.recognizes(shapes) and not quantized

    @classmethod
    def load(cls, checkpoint: Checkpoint, name: str) -> LdmAutoencoder:
        """Loads a checkpoint onto the CPU, in float32.

        Args:
            checkpoint: The tensors.
            name: The autoencoder's name for the card.

        Raises:
            LatentqError: The tensors are not those of such an autoencoder, or its statistics are broken.
        """
        with checkpoint.building():
            module = _Module(checkpoint.shapes)
        checkpoint.fill(module)
        channels = module.post_quant_conv.in_channels
        network = cls(module, name, channels=channels, reduction=2 ** (len(module.encoder.down) - 1))
        statistics = checkpoint.path.with_name(STATISTICS)
        if statistics.exists():
            network.normalization = _normalization(statistics, channels)
        elif channels == 16 and module.is_mars:
            network.normalization = Normalization(_MAR_FACTOR)
            network.note = f"{checkpoint.path} has the layers of MAR's KL-16: scaled latents are z * {_MAR_FACTOR}"
        else:
            network.note = f"there is no {STATISTICS} next to {checkpoint.path}: scaled latents are as raw latents"
        return network

    @torch.no_grad()
    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to mean and log-variance, each (B, C, h, w) float32."""
        moments = self.module.quant_conv(self.module.encoder(pixels.float())).float()
        mean, logvar = moments.chunk(2, 1)
        return mean, logvar.clamp(*_LOGVAR)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, S, S) float pixels in [-1, 1] to the posterior's mean, (B, C, h, w) float32."""
        return self.posterior(pixels)[0]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes (B, C, h, w) raw latents to (B, 3, S, S) float32 pixels."""
        pixels: torch.Tensor = self.module.decoder(self.module.post_quant_conv(latents.float()))
        return pixels.float()


class _Module(nn.Module):
    """The layers that tensors of these names and shapes belong to."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.encoder: Encoder
        self.decoder: Decoder
        self.encoder, self.decoder = encoder_and_decoder(shapes)
        width, channels = shapes["encoder.conv_out.weight"][0], shapes["post_quant_conv.weight"][1]
        self.quant_conv = nn.Conv2d(width, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, shapes["decoder.conv_in.weight"][1], 1)

    @property
    def is_mars(self) -> bool:
        """True if there is attention in the last level of the encoder, but in none of the decoder, as only MAR has."""
        return bool(self.encoder.down[-1].attn) and not any(level.attn for level in self.decoder.up)


def _normalization(path: Path, channels: int) -> Normalization:
    """Reads the mean and std of each channel: float tensors (1, C, 1, 1)."""
    try:
        file = TorchFile(path)
        statistics = file.load()
        tensors = [statistics[name] for name in ("mean", "std")]
        if not all(isinstance(tensor, TensorRecord) and tensor.shape == (1, channels, 1, 1) for tensor in tensors):
            raise ValueError(f"mean and std must be tensors of shape (1, {channels}, 1, 1)")
        mean, std = (tuple(file.read(tensor).astype("f8").reshape(-1).tolist()) for tensor in tensors)
        return Normalization(mean=mean, std=std)
    except (OSError, LatentqError, KeyError, TypeError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise LatentqError(f"{path}: not the statistics of latents: {one_line(reason)}") from None
