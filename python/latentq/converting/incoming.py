"""Another tool's data as a stream of samples and arrays: what each layout's `read` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.choices import Codec
from latentq.converting.foreign import ForeignAutoencoder
from latentq.format.buckets import MAX_BUCKETS
from latentq.format.options import DEFAULT_QUANTIZERS, AutoencoderOptions, Column, TextOptions
from latentq.format.overrides import RecipeOverrides
from latentq.format.recipe import Recipe
from latentq.models.text.interface import Embeddings
from latentq.quantizer import Measurement
from latentq.sources import Sample

Arrays = Mapping[str, NDArray[Any]]
"""Values (n, *shape) by the name of their column. bfloat16 is its bits in uint16."""
FloatKind = Literal["float32", "float16", "bfloat16"]

_KINDS: Mapping[str, FloatKind] = {"float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}


@dataclass
class ForeignTextEncoder:
    """The text encoder that made another tool's embeddings, described without loading it.

    Attributes:
        name: The name for the card.
        length: Tokens of every caption, padding included.
        width: The size of a token's embedding.
        pooled_width: The size of the pooled embedding; 0 if there is none.
        masked: True if there are attention masks.
        family: The name of its class, if it is known.
    """

    name: str
    length: int
    width: int
    pooled_width: int = 0
    masked: bool = False
    family: str = "unknown"

    def encode(self, captions: Sequence[str]) -> Embeddings:
        """Raises NotImplementedError: the text encoder is not loaded."""
        raise NotImplementedError(self.name)


@dataclass(frozen=True)
class Storage:
    """How latents and moments are stored; without options unchanged.

    Attributes:
        bits: Bits per value, for a quantizer that is calibrated.
        codec: The kind of the quantizer.
        bytes: The bytes of each latent, by the transform codec.
    """

    bits: int | None = None
    codec: Codec | None = None
    bytes: int | None = None

    def given(self) -> RecipeOverrides:
        """Returns the options that are given, as they override those of a recipe."""
        options: RecipeOverrides = {"bits": self.bits, "codec": self.codec, "bytes": self.bytes}
        return cast("RecipeOverrides", {name: value for name, value in options.items() if value is not None})


@dataclass(frozen=True)
class Incoming:
    """Another tool's file or folder, opened.

    Attributes:
        kind: The layout's name, for the card's `source.kind` and the recipe's name.
        columns: The columns of the dataset, each with the quantizer that stores its values unchanged.
        autoencoder: The autoencoder that made the latents.
        listing: Lists the samples, in the order of the dataset. If latents have several shapes, a sample's `id` is the
            (h, w) of its latent as `latent_size_text` writes it.
        read: Reads samples, given their numbers in the list and the samples, whose latents have one shape. Returns the
            columns that do not follow from the samples; arrays that the thread's next call may overwrite.
        size: (height, width) of all images in pixels; None if latents have several shapes.
        text: The text encoder that made the embeddings, if there are any.
        recipe: The recipe, if the layout has one of its own.
        notes: Lines for the user about what is not converted; complete once the samples are listed.
        errors: The error of each column that was quantized, on the samples that its quantizer was calibrated on.
    """

    kind: str
    columns: Mapping[str, Column]
    autoencoder: ForeignAutoencoder
    listing: Callable[[], Iterable[Sample]]
    read: Callable[[Sequence[int], Sequence[Sample]], Arrays]
    size: tuple[int, int] | None = None
    text: ForeignTextEncoder | None = None
    recipe: Recipe | None = None
    notes: list[str] = field(default_factory=list)
    errors: dict[str, Measurement] = field(default_factory=dict)

    def planned_recipe(self, latent_sizes: Iterable[tuple[int, int]], storage: Storage) -> Recipe:
        """Returns the recipe of the dataset.

        Args:
            latent_sizes: Every (h, w) of latents in the list, if they have several.
            storage: How latents and moments are stored.

        Raises:
            FormatError: There are more shapes than a dataset can have buckets.
            RecipeError: An option of `storage` is out of range, or does not apply.
        """
        recipe = self.recipe or self._recipe(sorted(set(latent_sizes)))
        if given := storage.given():
            columns = {
                name: replace(column, quantizer=DEFAULT_QUANTIZERS["latent"], encoding="")
                if column.is_latent
                else column
                for name, column in recipe.columns.items()
            }
            changed = Recipe.from_dict(replace(recipe, columns=columns).to_dict()).override(**given)
            recipe = replace(recipe, columns=changed.columns)
        return Recipe.from_dict(recipe.to_dict())  # which checks it

    def _recipe(self, latent_sizes: Sequence[tuple[int, int]]) -> Recipe:
        reduction = self.autoencoder.reduction * self.autoencoder.normalization.patchify
        if not any(column.scaled for column in self.columns.values()):
            reduction = self.autoencoder.reduction
        sizes = [(height * reduction, width * reduction) for height, width in latent_sizes]
        if len(sizes) > MAX_BUCKETS:
            raise FormatError(f"latents of {len(sizes)} shapes: a dataset has at most {MAX_BUCKETS} buckets")
        if self.size is not None:
            sizes = [self.size]
        text = TextOptions(model=self.text.name, length=self.text.length) if self.text else TextOptions()
        recipe = Recipe(
            name=self.kind, columns=dict(self.columns), autoencoder=AutoencoderOptions(self.autoencoder.name), text=text
        )
        tables = recipe.to_dict()
        for name, column in self.columns.items():
            if column.is_encoded:
                if len(sizes) == 1:
                    tables["columns"][name]["size"] = list(sizes[0])
                else:
                    del tables["columns"][name]["size"]
        if len(sizes) > 1:
            tables["buckets"] = {"sizes": [list(size) for size in sizes]}
        return Recipe.from_dict(tables)


def latent_size_text(height: int, width: int) -> str:
    """Returns the text of a latent's (h, w), for `Sample.id`."""
    return f"{height}x{width}"


def latent_size_of(sample: Sample) -> tuple[int, int]:
    """Returns the (h, w) of a sample's latent, from its `id`."""
    height, width = (sample.id or "").split("x")
    return int(height), int(width)


def float_kind(dtype: str | np.dtype[Any], where: object) -> FloatKind:
    """Returns the quantizer that stores floats of a dtype unchanged.

    Args:
        dtype: NumPy's name of the dtype, or `bfloat16`.
        where: The file, for messages.

    Raises:
        FormatError: It is another dtype.
    """
    kind = _KINDS.get(str(dtype))
    if kind is None:
        raise FormatError(f"{where}: latents must be float32, float16 or bfloat16, not {dtype}")
    return kind


def float_column(kind: FloatKind, *, scaled: bool = False, flip: bool = False) -> Column:
    """Returns a column of latents that are stored unchanged.

    Args:
        kind: Their dtype.
        scaled: True if they are in the scale that models are trained on.
        flip: True if they are of mirrored images.
    """
    return Column("latent", scaled=scaled, flip=flip, quantizer={"kind": kind})


def moments_column(kind: FloatKind, *, spread: Literal["logvar", "std"], flip: bool = False) -> Column:
    """Returns a column of moments that are stored unchanged.

    Args:
        kind: Their dtype.
        spread: The half after the means: log-variances or standard deviations.
        flip: True if they are of mirrored images.
    """
    return Column("moments", spread=spread, flip=flip, quantizer={"kind": kind})


def key_and_labels(*, texts: bool = False, captions: bool = False) -> dict[str, Column]:
    """Returns the columns of keys and labels; those without values are left out of the dataset.

    Args:
        texts: True to have names of classes.
        captions: True to have captions.
    """
    columns = {"key": Column("key", "str"), "label": Column("label", "int", optional=True)}
    if texts:
        columns["label_text"] = Column("label_text", "str", optional=True)
    if captions:
        columns["caption"] = Column("caption", "str", optional=True)
    return columns
