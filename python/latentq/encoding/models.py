"""Loads the models of a run, on the device that it computes on."""

from __future__ import annotations

import os
from dataclasses import dataclass

from latentq.format.recipe import Recipe
from latentq.models.autoencoders import Autoencoder, load_autoencoder, subfolder_in
from latentq.models.device import check_device, default_device, device_of
from latentq.models.text import TextEncoder, load_text_encoder


@dataclass(frozen=True)
class Models:
    """The models of a run.

    Attributes:
        autoencoder: The autoencoder, on `device`.
        text_encoder: The text encoder; None if the recipe stores no embeddings.
        device: Device that the autoencoder computes on.
    """

    autoencoder: Autoencoder
    text_encoder: TextEncoder | None
    device: str

    @property
    def text_device(self) -> str:
        """Device that the text encoder computes on."""
        return str(getattr(self.text_encoder, "device", None) or device_of(self.text_encoder))

    def notes(self, recipe: Recipe) -> list[str]:
        """Returns lines for the user: on an autoencoder of an unknown class, and on faster dtypes."""
        note = getattr(self.autoencoder, "note", "")
        return [*([note] if note else ()), *self._dtype_notes(recipe)]

    def _dtype_notes(self, recipe: Recipe) -> list[str]:
        """Returns a line that names the faster dtypes if a network computes in float32 on CUDA; else nothing.

        The autoencoder without weights is fast in float32 too.
        """
        slow = []
        if recipe.autoencoder.dtype == "float32" and hasattr(self.autoencoder, "module") and _is_cuda(self.device):
            slow.append("--dtype")
        if recipe.text.dtype == "float32" and self.text_encoder is not None and _is_cuda(self.text_device):
            slow.append("--text-dtype")
        if not slow:
            return []
        return [f"float32 is IEEE float32: {' and '.join(slow)} tf32 is faster on a GPU, and bfloat16 faster still"]


def load_models(
    recipe: Recipe,
    autoencoder: str | os.PathLike[str] | Autoencoder | None,
    text_encoder: str | os.PathLike[str] | TextEncoder | None,
    *,
    device: str | None,
    keep_subfolder: bool,
) -> Models:
    """Loads the autoencoder, and the text encoder if the recipe stores embeddings.

    Args:
        recipe: The recipe.
        autoencoder: An object, or the name of another autoencoder than the recipe's.
        text_encoder: An object, or the name of another text encoder than the recipe's.
        device: Device to compute on; None for `default_device`, or for the device of an autoencoder that is an object.
        keep_subfolder: The recipe's subfolder is meant even for an autoencoder that is not the recipe's.

    Raises:
        LatentqError: A model cannot be loaded.
        ValueError: The device cannot be used.
    """
    if autoencoder is None or isinstance(autoencoder, str | os.PathLike):
        device = device or default_device()
        check_device(device)
        options = recipe.autoencoder
        name = autoencoder or options.model
        autoencoder = load_autoencoder(
            name,
            device=device,
            revision=options.revision,
            subfolder=options.subfolder if keep_subfolder else subfolder_in(name, options.subfolder),
            pixel_range=options.pixel_range,
        )
    if not recipe.texts():
        text_encoder = None
    elif text_encoder is None or isinstance(text_encoder, str | os.PathLike):
        text_encoder = load_text_encoder(
            text_encoder or recipe.text.model,
            device=device or device_of(autoencoder),
            revision=recipe.text.revision,
            subfolder=recipe.text.subfolder,
            length=recipe.text.length,
        )
    device = device or device_of(autoencoder)
    check_device(device)
    return Models(autoencoder, text_encoder, device)


def _is_cuda(device: str) -> bool:
    return device.partition(":")[0] == "cuda"
