"""What encoding needs of an autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch


@runtime_checkable
class Autoencoder(Protocol):
    """What `latentq.encode` needs of a network; any object with these will do.

    Some have more: a `Posterior` or a `Tokenizer` is one of these too; `shift_factor` (0.0 where it is absent) is taken
    from latents before they are scaled: (z - shift_factor) * scaling_factor. Ours also have `family`, the class for the
    card, `module`, the torch module, and `to(device)`.

    Attributes:
        name: What the card calls it.
        scaling_factor: What its latents are multiplied by for training, so that they have about unit variance.
        pixel_range: The pixel values that stand for black and white, e.g. (-1.0, 1.0).
    """

    name: str
    scaling_factor: float
    pixel_range: tuple[float, float]

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, C, h, w) float32 latents, unscaled.

        Of a `Posterior` they are the mean, of a `Tokenizer` what is then quantised to the nearest codes.
        """
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) latents, unscaled, to (B, 3, S, S) floats, in `pixel_range` but for what overshoots it."""
        ...

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """(C, h, w) for pictures of size x size pixels. Raises ValueError for a size that it cannot encode."""
        ...


@runtime_checkable
class Posterior(Protocol):
    """An autoencoder whose latents are drawn from a normal distribution."""

    def posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) floats in `pixel_range` to mean and logarithm of the variance, each (B, C, h, w) float32."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """An autoencoder with a code book: each place of the latents can be stored as one number.

    Attributes:
        codebook_size: How many codes there are.
    """

    codebook_size: int

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) floats in `pixel_range` to (B, h, w) int64; -1 where the latent is NaN or infinite."""
        ...

    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, h, w) whole numbers to (B, 3, S, S) float32 pixels. Raises ValueError for a token that is not a code."""
        ...
