"""The facts that all steps of one encoding run share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Self

from latentq._core import RecipeError
from latentq.encoding.models import Models
from latentq.encoding.options import EncodeSettings
from latentq.encoding.stages import Profile
from latentq.format.card import Card
from latentq.quantizer import AnyQuantizer, Quantizer, Transform
from latentq.run.sample_list import SampleList
from latentq.sources import Source
from latentq.system.memory import available_bytes

if TYPE_CHECKING:
    from latentq.encoding.captions import CaptionEncoder
    from latentq.encoding.latents import LatentEncoder


@dataclass(frozen=True)
class EncodingRun:
    """One encoding run.

    Attributes:
        source: The source.
        samples: Its list.
        encoder: The autoencoder, which computes as the recipe says.
        captions: The text encoder; None if the recipe stores no embeddings.
        card: The card, as planned or as published.
        uncalibrated: Columns whose quantizers in `card` are placeholders until they are calibrated.
        batch_sizes: The largest number of images per batch, with buckets of each bucket; `batch_length` is the number
            of rows without buckets.
        threads: Threads that decode images.
        strict: End the run at the first reject.
        profile: Collects the time of each stage.
        folder: An existing folder for temporary files.
    """

    source: Source
    samples: SampleList
    encoder: LatentEncoder
    captions: CaptionEncoder | None
    card: Card
    uncalibrated: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    threads: int
    strict: bool
    profile: Profile
    folder: Path

    @classmethod
    def planned(
        cls,
        source: Source,
        samples: SampleList,
        card: Card,
        uncalibrated: tuple[str, ...],
        models: Models,
        settings: EncodeSettings,
        out: Path,
    ) -> Self:
        """Returns the run of a planned card.

        Args:
            source: The source, opened.
            samples: Its list.
            card: The card, without counts and statistics.
            uncalibrated: The columns whose quantizers must be calibrated.
            models: The models, loaded.
            settings: How the run is done.
            out: The dataset's folder.
        """
        from latentq.encoding.latents import LatentEncoder

        recipe = card.recipe
        encoder = LatentEncoder(
            models.autoencoder,
            recipe.autoencoder,
            models.device,
            compiled=settings.compiled,
            fused_norm=settings.fused_norm,
        )
        captions = None
        if recipe.texts() and models.text_encoder is not None:
            from latentq.encoding.captions import CaptionEncoder

            captions = CaptionEncoder(models.text_encoder, recipe.text, models.text_device, recipe.texts())
        buckets = range(len(recipe.bucket_sizes())) or [None]
        sizes = [[column.pixels for column in recipe.sized(bucket).values()] for bucket in buckets]
        most = max(1, min(recipe.unit_size, len(samples)))
        batch_sizes = tuple(min(settings.batch_size or default_batch_size(pixels), most) for pixels in sizes)
        _check_memory(sizes, batch_sizes)
        folder = next(path for path in (out, *out.absolute().parents) if path.is_dir())
        return cls(
            source, samples, encoder, captions, card, uncalibrated, batch_sizes, settings.threads, settings.strict,
            settings.profile, folder,
        )  # fmt: skip

    def busy_text(self) -> Callable[[], str]:
        """Returns a function whose result names the share of the time since now in which the device worked."""
        return self.profile.busy_text(self.encoder.device.type)

    @property
    def batch_size(self) -> int:
        """The largest number of images per batch, of any bucket."""
        return max(self.batch_sizes)

    @property
    def batch_length(self) -> int:
        """Rows of every batch of a run without buckets: short batches are padded.

        A compiled network is compiled for one shape alone, and the last bit of a network's result may depend on the
        shape of its input. A full unit is cut into batches of almost the same number of images.
        """
        unit = min(self.card.recipe.unit_size, len(self.samples))
        return ceil(unit / ceil(unit / self.batch_size))

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """The quantizers that the device applies to latents and moments, by column.

        Values of a column with a trellis or a transform stay float32: the writer encodes them on the CPU, while the
        network computes the next batches.
        """
        return {name: _on_device(facts.quantizer) for name, facts in self.card.latents.items()}

    @property
    def trellises(self) -> dict[str, Quantizer]:
        """The quantizers of latents and moments that the writer applies, by column."""
        return {
            name: facts.quantizer
            for name, facts in self.card.latents.items()
            if isinstance(facts.quantizer, Quantizer) and facts.quantizer.kind == "trellis"
        }

    @property
    def transforms(self) -> dict[str, Transform]:
        """The codecs of the columns that the writer encodes, by column."""
        return {
            name: facts.quantizer for name, facts in self.card.latents.items() if isinstance(facts.quantizer, Transform)
        }

    @property
    def text_quantizers(self) -> dict[str, Quantizer]:
        """The quantizers that the device applies to embeddings, by column: with a trellis, float32 as for latents."""
        return {name: _on_device(facts.quantizer) for name, facts in self.card.embeddings.items()}

    @property
    def text_trellises(self) -> dict[str, Quantizer]:
        """The quantizers of embeddings that the writer applies, by column."""
        return {
            name: facts.quantizer for name, facts in self.card.embeddings.items() if facts.quantizer.kind == "trellis"
        }


def _on_device(quantizer: AnyQuantizer) -> Quantizer:
    """Returns the quantizer that the device applies: the values themselves if the writer encodes them on the CPU."""
    if isinstance(quantizer, Transform) or quantizer.kind == "trellis":
        return Quantizer.floating("float32", channels=quantizer.channels)
    return quantizer


def _check_memory(sizes: Sequence[Sequence[tuple[int, int]]], batch_sizes: Sequence[int]) -> None:
    """Raises RecipeError if the pixels of a batch, as bytes and as float32, are more than the memory that is free.

    The system would end the process for it, without a message.
    """
    available = available_bytes()
    for pixels, length in zip(sizes, batch_sizes, strict=True):
        needed = 3 * (1 + 4) * length * sum(height * width for height, width in pixels)
        if available is not None and needed > available:
            height, width = max(pixels, key=lambda size: size[0] * size[1])
            raise RecipeError(
                f"the pixels of a batch ({length} x {height} x {width}) take {needed / 1e9:.1f} GB, but only "
                f"{available / 1e9:.1f} GB of memory is available: use a smaller size or batch size"
            )


def default_batch_size(sizes: Iterable[tuple[int, int]]) -> int:
    """Returns the default number of images per batch: 64 up to 256 x 256 pixels, and no more pixels than that above.

    Layers of 128 channels at full resolution, as SDXL's, reach 2^31 elements with 64 images of 512 x 512 pixels, which
    convolutions do not support.

    Args:
        sizes: Each height and width that an image is encoded at.
    """
    largest = max((height * width for height, width in sizes), default=1)
    return max(1, min(64, 64 * 256**2 // largest))
