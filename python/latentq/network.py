"""The autoencoder at work: pixels to what a column holds, on its device, guarded against NaN and infinity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from latentq.autoencoders import Autoencoder
from latentq.noise import noise
from latentq.recipe import AutoencoderOptions, Column


class Encoder:
    """An autoencoder that computes as a recipe says.

    Args:
        network: The autoencoder, where it is to compute.
        options: The recipe's: `dtype` is that of autocast, while the weights stay as they are; and the noise's `seed`.
        device: Where the network computes.
        compiled: Whether torch compiles the network; its results may then differ in the last bit.
    """

    def __init__(
        self, network: Autoencoder, options: AutoencoderOptions, device: str, *, compiled: bool = False
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        self._options = options
        self._dtype = getattr(torch, options.dtype)
        # Convolutions are faster so on a GPU. Someone's own network may not bear it.
        module = getattr(network, "module", None)
        self._format = torch.contiguous_format
        if self.device.type == "cuda" and isinstance(module, torch.nn.Module):
            self._format = torch.channels_last
            module.to(memory_format=self._format)
        self._compile = compiled
        self._compiled: dict[str, Any] = {}

    @torch.no_grad()
    def encode(
        self, pixels: torch.Tensor, column: Column, numbers: Sequence[int], stream: int, *, exact: bool = False
    ) -> torch.Tensor:
        """What a column holds of some samples, before it is quantised.

        Args:
            pixels: (B, 3, S, S) uint8, on the device.
            column: Says what is to be made of them.
            numbers: The samples' numbers in the source, n of them, n <= B; the noise of a sample depends on nothing
                else but the recipe's seed and `stream`.
            stream: Which of the columns that the autoencoder makes this is.
            exact: Whether to compute in float32, and uncompiled, whatever the recipe says.

        Returns:
            On the device: (n, C, h, w) float32, of moments (n, 2C, h, w), of tokens (n, h, w) int64.
        """
        network: Any = self.network
        low, high = network.pixel_range
        floats = pixels.float() * ((high - low) / 255) + low
        if column.flip:
            floats = floats.flip(-1)
        floats = floats.contiguous(memory_format=self._format)
        if column.content == "tokens":
            tokens: torch.Tensor = self._run("tokens", floats, exact)
            return tokens[: len(numbers)]
        if column.content == "latent" and (column.store == "mean" or not hasattr(network, "posterior")):
            latents: torch.Tensor = self._run("encode", floats, exact)[: len(numbers)].float()
        else:
            mean, logvar = (values[: len(numbers)].float() for values in self._run("posterior", floats, exact))
            if column.content == "moments":
                return torch.cat([mean, logvar], 1)
            drawn = torch.from_numpy(noise(self._options.seed, numbers, stream, tuple(mean.shape[1:])))
            latents = mean + (logvar / 2).exp() * drawn.to(self.device)
        if column.scaled:
            latents = (latents - getattr(network, "shift_factor", 0.0)) * network.scaling_factor
        return latents

    def _run(self, method: str, floats: torch.Tensor, exact: bool) -> Any:
        """One of the network's methods, in the recipe's dtype or in float32."""
        call = getattr(self.network, method)
        if self._compile and not exact:
            if method not in self._compiled:
                self._compiled[method] = torch.compile(call)
            call = self._compiled[method]
        autocast = torch.autocast(self.device.type, self._dtype, enabled=not exact and self._dtype != torch.float32)
        # float32 is to mean float32: on CUDA convolutions would otherwise take TF32, by an algorithm chosen by timing.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False), autocast:
            return call(floats)
