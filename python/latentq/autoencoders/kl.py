"""diffusers' `AutoencoderKL`: the VAEs of Stable Diffusion and its kin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from latentq._core import LatentqError


class KLAutoencoder:
    """An `AutoencoderKL`, whose latents are drawn from a normal posterior.

    Attributes:
        name: The hub name, or the last part of the folder's path.
        family: `AutoencoderKL`.
        module: The diffusers model.
        scaling_factor: From the model's configuration; so is `shift_factor`, 0.0 where it has none.
        pixel_range: (-1.0, 1.0).
    """

    family = "AutoencoderKL"
    pixel_range = (-1.0, 1.0)

    def __init__(self, module: AutoencoderKL, name: str) -> None:
        self.module = module.eval().requires_grad_(False)
        self.name = name
        self.scaling_factor = float(module.config.scaling_factor)
        self.shift_factor = float(module.config.shift_factor or 0.0)

    @classmethod
    def load(cls, name: str | os.PathLike[str], *, revision: str | None, subfolder: str | None) -> KLAutoencoder:
        """Loads from a folder or from the hub.

        Raises:
            LatentqError: There is no such model, or it is of another class.
        """
        options: dict[str, Any] = {"revision": revision, "subfolder": subfolder}
        folder = Path(name)
        if folder.is_dir() and not (folder / (subfolder or "") / "config.json").is_file():
            hint = ", but its sub-folder 'vae' has: name that" if (folder / "vae" / "config.json").is_file() else ""
            raise LatentqError(f"{folder / (subfolder or '')} holds no autoencoder: it has no config.json{hint}")
        try:
            kind = AutoencoderKL.load_config(name, **options).get("_class_name")
            if kind != cls.family:
                raise LatentqError(f"{name} is of class {kind}; the classes that can be loaded are: {cls.family}")
            module, info = AutoencoderKL.from_pretrained(
                name, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise LatentqError(f"cannot load the autoencoder {str(name)!r}: {reason}") from None
        # diffusers would fill them at random, and only log it.
        lacking = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
        if lacking:
            raise LatentqError(f"the weights of {name} are incomplete: {len(lacking)} are missing, {lacking[0]} first")
        return cls(module, folder.resolve().name if folder.is_dir() else str(name))

    def to(self, device: str | torch.device) -> KLAutoencoder:
        """This autoencoder, its weights moved to a device."""
        self.module.to(device)
        return self

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, size / f, size / f). Raises ValueError where size is not a multiple of f, the model's reduction."""
        reduction = 2 ** (len(self.module.config.block_out_channels) - 1)
        if size < reduction or size % reduction:
            raise ValueError(f"{self.name} encodes pictures whose side is a multiple of {reduction}, not {size}")
        return int(self.module.config.latent_channels), size // reduction, size // reduction

    @torch.no_grad()
    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) floats in [-1, 1] to mean and log-variance, each (B, C, h, w) float32."""
        distribution = self.module.encode(pixels).latent_dist
        return distribution.mean.float(), distribution.logvar.float()

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in [-1, 1] to the posterior's mean, (B, C, h, w) float32."""
        return self.posterior(pixels)[0]

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) unscaled latents to (B, 3, S, S) float32 pixels."""
        pixels: torch.Tensor = self.module.decode(latents).sample
        return pixels.float()
