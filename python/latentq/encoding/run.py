"""The facts that all steps of one encoding run share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from latentq.encoding.models import Models
from latentq.encoding.options import EncodeSettings
from latentq.encoding.stages import Profile
from latentq.format.card import Card
from latentq.quantizer import Quantizer
from latentq.sources import Listing, Source

if TYPE_CHECKING:
    from latentq.encoding.captions import CaptionEncoder
    from latentq.encoding.latents import LatentEncoder


@dataclass(frozen=True)
class EncodingRun:
    """One encoding run.

    Attributes:
        source: The source.
        listing: Its list.
        encoder: The autoencoder, which computes as the recipe says.
        captions: The text encoder; None if the recipe stores no embeddings.
        card: The card, as planned or as published.
        uncalibrated: Columns whose quantizers in `card` are placeholders until they are calibrated.
        batch_size: Images per batch.
        threads: Threads that decode images.
        strict: End the run at the first reject.
        profile: Collects the time of each stage.
    """

    source: Source
    listing: Listing
    encoder: LatentEncoder
    captions: CaptionEncoder | None
    card: Card
    uncalibrated: tuple[str, ...]
    batch_size: int
    threads: int
    strict: bool
    profile: Profile

    @classmethod
    def planned(
        cls,
        source: Source,
        listing: Listing,
        card: Card,
        uncalibrated: tuple[str, ...],
        models: Models,
        settings: EncodeSettings,
    ) -> Self:
        """Returns the run of a planned card."""
        from latentq.encoding.latents import LatentEncoder

        recipe = card.recipe
        encoder = LatentEncoder(models.autoencoder, recipe.autoencoder, models.device, compiled=settings.compiled)
        captions = None
        if recipe.texts() and models.text_encoder is not None:
            from latentq.encoding.captions import CaptionEncoder

            captions = CaptionEncoder(models.text_encoder, recipe.text, models.text_device, recipe.texts())
        batch_size = min(settings.batch_size, recipe.unit_size, max(1, len(listing.samples)))
        return cls(
            source, listing, encoder, captions, card, uncalibrated, batch_size, settings.threads, settings.strict,
            settings.profile,
        )  # fmt: skip

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers of the columns of latents and moments, by column."""
        return {name: facts.quantizer for name, facts in self.card.latents.items()}

    @property
    def text_quantizers(self) -> dict[str, Quantizer]:
        """The quantizers of the columns of embeddings, by column."""
        return {name: facts.quantizer for name, facts in self.card.embeddings.items()}
