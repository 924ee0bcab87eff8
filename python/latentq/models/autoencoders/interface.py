"""The protocols that encoding and decoding expect of an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Autoencoder(Protocol):
    """The protocol that `latentq.encode` needs; any object that has these attributes and methods will do.

    An autoencoder may also be a `Posterior` or a `Tokenizer`, and may have a `normalization`, the `Normalization` that
    scales its latents for training; without it, scaled latents are the raw ones. The built-in autoencoders also have
    `family`, the name of the class for the card, `module`, the torch module, and `to(device)`.

    Attributes:
        name: The name for the card.
        pixel_range: The pixel values of black and white, e.g. (-1.0, 1.0).
    """

    name: str
    pixel_range: tuple[float, float]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, H, W) float pixels in `pixel_range` to (B, C, h, w) float32 raw latents.

        A `Posterior` returns the mean, a `Tokenizer` the latents before they are replaced by the nearest codebook
        vectors.

        Args:
            pixels: (B, 3, H, W) float pixels in `pixel_range`.
        """
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes (B, C, h, w) raw latents to (B, 3, H, W) float pixels in `pixel_range`, perhaps beyond it.

        Args:
            latents: (B, C, h, w) raw latents.
        """
        ...

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (C, h, w) for images of size x size pixels.

        For rectangles it is called with both sides: h is that of the height, w that of the width.

        Args:
            size: The side of the images in pixels.

        Raises:
            ValueError: The autoencoder cannot encode this size.
        """
        ...


class DescribedAutoencoder(Protocol):
    """The part of an `Autoencoder` that decides a dataset's card; enough for an autoencoder that is not loaded."""

    @property
    def name(self) -> str:
        """The name for the card."""
        ...

    @property
    def pixel_range(self) -> tuple[float, float]:
        """The pixel values of black and white."""
        ...

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Returns (C, h, w) for images of size x size pixels; raises ValueError for a size that cannot be encoded."""
        ...


@runtime_checkable
class Posterior(Protocol):
    """An autoencoder whose latents are drawn from a normal distribution."""

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes (B, 3, H, W) float pixels in `pixel_range` to mean and log-variance, each (B, C, h, w) float32.

        Args:
            pixels: (B, 3, H, W) float pixels in `pixel_range`.
        """
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """An autoencoder with a codebook: each position of the latents can be stored as one integer.

    Attributes:
        codebook_size: The number of codebook vectors.
    """

    codebook_size: int

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encodes (B, 3, H, W) float pixels in `pixel_range` to (B, h, w) int64 tokens, -1 if not finite.

        Args:
            pixels: (B, 3, H, W) float pixels in `pixel_range`.
        """
        ...

    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Decodes (B, h, w) integer tokens to (B, 3, H, W) float32 pixels.

        Args:
            tokens: (B, h, w) integers from 0 to `codebook_size` - 1.

        Raises:
            ValueError: A token is not in the codebook.
        """
        ...
