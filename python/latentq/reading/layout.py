"""The meaning of a dataset's columns: names, shapes, quantizers and scales, resolved once from its card or recipe."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from latentq._core import FormatError, MismatchError, RecipeError
from latentq.format.card import CARD, Card
from latentq.format.facts import TOKEN_DTYPES, UNKNOWN, EmbeddingFacts, LatentFacts, TokenFacts
from latentq.format.options import CONDITIONING, FLOATS, TEXT, Column
from latentq.format.recipe import Recipe
from latentq.quantizer import AnyQuantizer, DamagedSampleError, Quantizer, Transform
from latentq.reading.buffers import Allocate
from latentq.reading.columns import EmbeddingColumn, EncodedColumn, LatentColumn, MaskColumn, Scale, TokenColumn
from latentq.reading.samples import Batch, ColumnDict, Indices
from latentq.system.text import counted

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
_INTEGERS = ("int", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
_SHOWN = 32  # channels whose ranges a message lists


class _Trait(NamedTuple):
    """A property that all datasets of a mixture must share.

    Attributes:
        name: Its name in messages.
        value: The value compared.
        text: The value in messages.
    """

    name: str
    value: Any
    text: str


@dataclass(frozen=True)
class Layout:
    """The columns of a dataset's samples and their meaning.

    Attributes:
        path: The dataset, for messages.
        card: Its card, or None if it has none.
        recipe: The recipe that made it.
        shard_names: Maps sample keys to shard column names, in the order of a sample.
        encoded: Maps sample keys to the columns that hold latents, moments, tokens, embeddings or attention masks.
        dtype: The dtype of decoded latents.
        scale: The scale of decoded latents.
    """

    path: Path
    card: Card | None
    recipe: Recipe
    shard_names: Mapping[str, str]
    encoded: Mapping[str, EncodedColumn]
    dtype: torch.dtype
    scale: Scale

    @property
    def latents(self) -> dict[str, LatentColumn]:
        """Maps sample keys to the columns that give latents."""
        return {name: column for name, column in self.encoded.items() if isinstance(column, LatentColumn)}

    @property
    def is_plain(self) -> bool:
        """True if decoding is dequantizing in every encoded column."""
        return all(column.is_plain for column in self.encoded.values())

    @property
    def has_fixed_bytes(self) -> bool:
        """True if every sample has the same number of bytes in each encoded column."""
        return all(column.nbytes for column in self.encoded.values())

    @property
    def on_host(self) -> dict[str, LatentColumn]:
        """Maps sample keys to the columns whose decoding begins on the CPU, whatever the device."""
        return {name: column for name, column in self.latents.items() if column.is_on_host}

    @property
    def pictures(self) -> dict[str, LatentColumn | TokenColumn]:
        """Maps sample keys to the columns that an autoencoder decodes."""
        return {name: column for name, column in self.encoded.items() if isinstance(column, LatentColumn | TokenColumn)}

    @property
    def texts(self) -> dict[str, EmbeddingColumn | MaskColumn]:
        """Maps sample keys to the columns that a text encoder made."""
        return {
            name: column for name, column in self.encoded.items() if isinstance(column, EmbeddingColumn | MaskColumn)
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """The sample keys of the columns that hold labels."""
        return self._with_content("label")

    @property
    def conditioning(self) -> tuple[str, ...]:
        """The sample keys of the columns that models are conditioned on, each two int32."""
        return self._with_content(*CONDITIONING)

    def _with_content(self, *contents: str) -> tuple[str, ...]:
        columns = self.recipe.columns
        return tuple(
            name
            for name, shard_name in self.shard_names.items()
            if shard_name in columns and columns[shard_name].content in contents
        )

    def decode_batch(self, batch: Batch, *, allocate: Allocate) -> Batch:
        """Decodes the columns of a batch that are still uint8 (N, bytes), on their own device.

        Moments are drawn with the noise in `batch[noise_key(name)]`, if it is there.

        Args:
            batch: A batch from `LatentDataset.read`.
            allocate: Allocates the results on the CPU.
        """
        noise_keys = {noise_key(name) for name in batch}
        decoded = ColumnDict()
        for name, value in batch.items():
            if name in self.encoded and value.ndim == 2:  # otherwise the gatherer has decoded it
                decoded[name] = self._decoded(name, value, batch.get(noise_key(name)), allocate)
            elif name not in noise_keys:
                decoded[name] = value
        return decoded

    def _decoded(self, name: str, stored: torch.Tensor, noise: torch.Tensor | None, allocate: Allocate) -> torch.Tensor:
        column = self.encoded[name]
        dtype = column.decoded_dtype(self.dtype)
        out = allocate((len(stored), *column.shape), dtype) if stored.device.type == "cpu" else None
        with self.naming(name):
            return column.decode(stored, dtype, out=out, noise=noise)

    @contextmanager
    def naming(self, name: str, indices: Indices | None = None) -> Iterator[None]:
        """Adds the dataset, a column and a sample's index to errors of damaged samples.

        Args:
            name: The column.
            indices: The indices of the samples that are decoded together; None if they are not known.
        """
        try:
            yield
        except FormatError as error:
            if indices is not None and isinstance(error, DamagedSampleError):
                message = f"sample {indices[error.sample]}, column {name}: cannot be decoded: {error.reason}"
            else:
                message = f"column {name}: {error}"
            raise FormatError(f"{self.path}: {message}: latentq verify says where it is") from None

    @classmethod
    def resolve(
        cls,
        path: Path,
        shard_columns: Mapping[str, str],
        *,
        card: Card | None,
        columns: Sequence[str] | None,
        dtype: torch.dtype,
        scale: Scale,
        recipe: str | os.PathLike[str] | Recipe | None,
        quantizer: Quantizer | None,
    ) -> Layout:
        """Resolves the layout of a dataset.

        Args:
            path: The dataset, for messages.
            shard_columns: Maps the names of the shards' columns to their MDS encodings.
            card: The dataset's card, or None if it has none.
            columns: See `LatentDataset`, as for all that follow.
            dtype: The dtype of latents.
            scale: The scale of latents.
            recipe: The recipe of a dataset without a card.
            quantizer: The quantizer of a dataset without a card.

        Raises:
            FormatError: The card lacks a column.
            MismatchError: Recipe and shards disagree.
            RecipeError: Neither card nor recipe says enough.
            LatentqError: The scale needs a card.
            ValueError: An argument is out of range.
        """
        if scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, not {scale!r}")
        if dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, _DTYPES))}, not {dtype!r}")
        known = _recipe_of(path, shard_columns, card, recipe, quantizer)
        names = _sample_names(known, shard_columns)
        if card is None and recipe is None:  # no recipe says which columns to skip
            names = _with_all_columns(names, shard_columns)
        selected = _selected(names, columns)
        encoded: dict[str, EncodedColumn] = {}
        for name, shard_name in selected.items():
            column = known.columns.get(shard_name)
            if column is None:
                continue
            if column.content == "tokens":
                encoded[name] = TokenColumn(
                    shard_name, card.tokens[shard_name] if card else _token_facts(path, shard_name, column)
                )
            elif column.content in TEXT:
                encoded[name] = _text_column(path, card, known, shard_name)
            elif column.is_latent:
                encoded[name] = _latent_column(path, card, shard_name, column, quantizer).in_scale(path, card, scale)
        if dtype == torch.uint8:
            for encoded_column in encoded.values():
                _check_codes(path, encoded_column)
        return cls(path, card, known, selected, encoded, dtype, scale)

    @classmethod
    def of_buckets(
        cls,
        path: Path,
        shard_columns: Mapping[str, str],
        *,
        card: Card | None,
        columns: Sequence[str] | None,
        dtype: torch.dtype,
        scale: Scale,
        recipe: str | os.PathLike[str] | Recipe | None,
        quantizer: Quantizer | None,
    ) -> tuple[Layout, ...]:
        """Resolves the layout of each bucket of a dataset, by its number; one without buckets. See `resolve`."""
        cards = [card] if card is None or not card.buckets else map(card.for_bucket, range(card.buckets))
        return tuple(
            cls.resolve(
                path,
                shard_columns,
                card=described,
                columns=columns,
                dtype=dtype,
                scale=scale,
                recipe=recipe,
                quantizer=quantizer,
            )
            for described in cards
        )

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The names and shapes of the columns that an autoencoder decodes: what samples of a batch must share."""
        return tuple(sorted((name, column.shape) for name, column in self.pictures.items()))

    def with_shapes_of(self, other: Layout) -> Layout:
        """Returns this layout for the shapes of another one that agrees with it otherwise."""
        encoded = dict(self.encoded)
        for name, column in self.pictures.items():
            theirs = other.encoded[name]
            assert isinstance(theirs, LatentColumn | TokenColumn)
            encoded[name] = column.with_shape(theirs.facts.shape)
        return replace(self, encoded=encoded)

    def check_agreement(self, other: Layout, *, shapes: bool = True) -> None:
        """Checks that another dataset's samples can be mixed with this one's.

        Args:
            other: The other dataset's layout.
            shapes: True if latents and tokens must have the same shape; the samples of buckets need not.

        Raises:
            MismatchError: They differ; the message names both sides.
        """
        for mine, theirs in zip(self._traits(shapes), other._traits(shapes), strict=False):
            if mine.value != theirs.value:
                hint = ": encode one with --like the other" if mine.name.startswith("quantizer of") else ""
                raise MismatchError(
                    f"{other.path} has {mine.name} {theirs.text}, and {self.path} has {mine.text}{hint}"
                )

    def _traits(self, shapes: bool) -> list[_Trait]:
        """Returns the traits of this dataset: the columns first, so that later traits compare the same names.

        Args:
            shapes: True to include the shapes of latents and tokens.
        """
        names = sorted(self.shard_names)
        traits = [_Trait("columns", names, ", ".join(names)), self._autoencoder_trait()]
        if self.texts:
            traits.append(self._text_encoder_trait())
        for name, text_column in sorted(self.texts.items()):
            traits.append(_Trait(f"shape of {name!r}", text_column.shape, str(text_column.shape)))
            if isinstance(text_column, EmbeddingColumn):
                text_quantizer = text_column.facts.quantizer
                traits.append(_Trait(f"quantizer of {name!r}", text_quantizer, _describe(text_quantizer)))
        for name, column in sorted(self.latents.items()):
            quantizer = column.facts.quantizer
            traits += [
                _Trait(f"shape of {name!r}", column.shape, str(column.shape))
                if shapes
                else _channels_trait(name, column),
                _Trait(f"quantizer of {name!r}", quantizer, _describe(quantizer)),
                _Trait(f"stored scale of {name!r}", column.scaled, "scaled" if column.scaled else "raw"),
                _Trait(f"moments in {name!r}", (column.moments, column.stores_std), _moments_text(column)),
            ]
        for name, tokens in sorted(self.encoded.items()):
            if isinstance(tokens, TokenColumn):
                facts = tokens.facts if shapes else replace(tokens.facts, shape=())
                text = ", ".join(map(str, (facts.codebook_size, *((facts.shape,) if shapes else (facts.dtype,)))))
                traits.append(_Trait(f"tokens of {name!r}", facts, text))
        return [*traits, _Trait("scale", self.scale, self.scale), _Trait("dtype", self.dtype, str(self.dtype))]

    def _autoencoder_trait(self) -> _Trait:
        """Returns the autoencoder's weights and scaling if a card names them, else its name in the recipe."""
        if self.card is None:
            return _Trait("autoencoder", self.recipe.autoencoder.model, self.recipe.autoencoder.model)
        network = self.card.autoencoder
        identity = network.name if network.weights in ("", UNKNOWN) else network.weights
        text = f"{network.name} (weights {network.weights or 'none'}, scaled by {network.normalization.formula})"
        return _Trait("autoencoder", (identity, network.normalization), text)

    def _text_encoder_trait(self) -> _Trait:
        """Returns the text encoder's weights if a card names them, else its name."""
        facts = None if self.card is None else self.card.text
        model, weights = (self.recipe.text.model, "") if facts is None else (facts.name, facts.weights)
        return _Trait("text encoder", weights or model, f"{model} (weights {weights or 'unknown'})")


def noise_key(name: str) -> str:
    """Returns the key of a moments column's noise in a batch that is not decoded yet."""
    return f"noise of {name}"


def _channels_trait(name: str, column: LatentColumn) -> _Trait:
    return _Trait(f"channels of {name!r}", column.shape[0], str(column.shape[0]))


def _moments_text(column: LatentColumn) -> str:
    if not column.moments:
        return "false"
    return "mean and standard deviation" if column.stores_std else "mean and log-variance"


def _describe(quantizer: AnyQuantizer) -> str:
    if isinstance(quantizer, Transform):
        size = "" if quantizer.sample_bytes is None else f" to {counted(quantizer.sample_bytes, 'byte')}"
        return f"transform{size}, step {quantizer.step:g}"
    sides = list(zip(quantizer.low, quantizer.high, strict=True))
    ranges = ", ".join(f"{low:g} to {high:g}" for low, high in sides[:_SHOWN])
    return f"{quantizer.bits}-bit {quantizer.kind} ({ranges}{', ...' if len(sides) > _SHOWN else ''})"


def _recipe_of(
    path: Path,
    shard_columns: Mapping[str, str],
    card: Card | None,
    recipe: str | os.PathLike[str] | Recipe | None,
    quantizer: Quantizer | None,
) -> Recipe:
    """Returns the card's recipe; without a card the given recipe, or else one that follows from the quantizer.

    Args:
        path: The dataset, for messages.
        shard_columns: The MDS encodings of the shards' columns, by name.
        card: The dataset's card.
        recipe: A recipe, its name, or the path of its TOML file.
        quantizer: The quantizer of the latents.
    """
    if card is not None:
        if recipe is not None or quantizer is not None:
            raise ValueError(f"{path} has a card: recipe and quantizer are for a folder without one")
        return card.recipe
    if recipe is not None:
        return recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if quantizer is not None:
        return _plain_recipe(path, shard_columns, quantizer)
    known = ", ".join(Recipe.names())
    raise RecipeError(
        f"{path} has no {CARD}: say what made it, recipe=NAME or a file (known: {known}), or "
        "quantizer=Quantizer.uniform(...) if its latents are columns ndarray:uint8:C,h,w"
    )


def _plain_recipe(path: Path, shard_columns: Mapping[str, str], quantizer: Quantizer) -> Recipe:
    """Returns the recipe of a folder without one: latents are the uint8 (C, h, w) columns that the quantizer fits."""
    shape = f"{quantizer.channels},[0-9]+,[0-9]+"
    columns = {
        name: Column("latent", encoding)
        for name, encoding in shard_columns.items()
        if re.fullmatch(f"ndarray:uint8:{shape}", encoding)
    }
    if not columns:
        found = ", ".join(f"{name} {encoding}" for name, encoding in shard_columns.items()) or "none"
        raise RecipeError(
            f"{path} has no {CARD}, and no column ndarray:uint8:{quantizer.channels},h,w that the quantizer fits, but "
            f"{found}: a recipe says what its columns hold"
        )
    if shard_columns.get("label") in _INTEGERS:
        columns["label"] = Column("label", shard_columns["label"])
    return Recipe("without a card", columns)


def _sample_names(recipe: Recipe, shard_columns: Mapping[str, str]) -> dict[str, str]:
    """Maps shard column names to sample keys: a column's content, unless several columns have the same content."""
    present = {name: column for name, column in recipe.columns.items() if name in shard_columns}
    for name, column in recipe.columns.items():
        if name not in shard_columns and not column.optional:
            found = ", ".join(shard_columns) or "none"
            raise MismatchError(f"recipe {recipe.name} has a column {name!r}, and the shards have {found}")
    # Latents are drawn from moments, so a sample calls both `latent`.
    contents = {name: "latent" if column.content == "moments" else column.content for name, column in present.items()}
    count = Counter(contents.values())
    return {name: content if count[content] == 1 else name for name, content in contents.items()}


def _with_all_columns(names: Mapping[str, str], shard_columns: Mapping[str, str]) -> dict[str, str]:
    """Adds the shard columns that are not in `names` under their own names. If one is taken, all keep their own."""
    others = shard_columns.keys() - names.keys()
    if others & set(names.values()):
        return {shard_name: shard_name for shard_name in shard_columns}
    return {shard_name: names.get(shard_name, shard_name) for shard_name in shard_columns}


def _selected(names: Mapping[str, str], wanted: Sequence[str] | None) -> dict[str, str]:
    """Maps the sample keys that are wanted to shard column names; `names` is the inverse, for all columns."""
    shard_names = {name: shard_name for shard_name, name in names.items()}
    if wanted is None:
        return shard_names
    if isinstance(wanted, str):
        raise TypeError(f"columns must be a list of names, not the string {wanted!r}")
    if not wanted:
        raise ValueError(f"columns must name at least one of {', '.join(shard_names)}")
    selected = {}
    for name in wanted:
        sample_key = name if name in shard_names else names.get(name)
        if sample_key is None:
            raise ValueError(f"there is no column {name!r}: there are {', '.join(shard_names)}")
        selected[sample_key] = shard_names[sample_key]
    return selected


def _check_codes(path: Path, column: EncodedColumn) -> None:
    """Refuses dtype=torch.uint8 for a column without codes, or in a scale that is no other reading of its codes."""
    if isinstance(column, LatentColumn) and (
        column.is_float or column.moments or isinstance(column.facts.quantizer, Transform)
    ):
        kind = "moments" if column.moments else column.facts.quantizer.kind
        raise ValueError(f"{path}: column {column.shard_name!r} is stored as {kind} and its latents have no codes")
    if isinstance(column, LatentColumn) and column.change is not None:
        raise ValueError(f"{path}: column {column.shard_name!r} has codes of another scale: leave out scale=...")
    if isinstance(column, EmbeddingColumn) and column.facts.quantizer.kind in FLOATS:
        raise ValueError(
            f"{path}: column {column.shard_name!r} is stored as {column.facts.quantizer.kind} and has no codes"
        )


def _latent_column(
    path: Path, card: Card | None, name: str, column: Column, quantizer: Quantizer | None
) -> LatentColumn:
    """Returns a column of latents or moments, in the scale it is stored in.

    Args:
        path: The dataset, for messages.
        card: The dataset's card.
        name: The column's name in the shards.
        column: The column of the recipe.
        quantizer: The quantizer that the user gave, for a folder without a card.
    """
    if card is not None and name not in card.latents:
        raise FormatError(f"{path}: the card does not describe the latents in column {name!r}")
    facts = card.latents[name] if card is not None else _latent_facts(path, name, column, quantizer)
    if facts.quantizer.channels != facts.shape[0]:
        channels = counted(facts.shape[0], "channel")
        raise MismatchError(f"{path}: column {name!r} has {channels}, and its quantizer {facts.quantizer.channels}")
    return LatentColumn(
        name,
        facts,
        column.content == "moments",
        column.scaled,
        facts.quantizer,
        stores_std=column.content == "moments" and column.spread == "std",
    )


def _shape_of(path: Path, name: str, column: Column) -> tuple[int, ...]:
    """Returns the shape of a column without a card: the recipe's, or its encoding's."""
    parts = column.encoding.split(":")
    shape = column.shape or (tuple(map(int, parts[2].split(","))) if len(parts) == 3 else ())
    if not shape:
        raise RecipeError(f"{path}: there is no card, and the recipe does not say the shape of column {name!r}")
    return shape


def _latent_facts(path: Path, name: str, column: Column, quantizer: Quantizer | None) -> LatentFacts:
    """Returns shape and quantizer of a latent column without a card."""
    shape = _shape_of(path, name, column)
    return LatentFacts(shape=shape, quantizer=quantizer or _recipe_quantizer(path, name, column, shape[0]))


def _recipe_quantizer(path: Path, name: str, column: Column, channels: int) -> Quantizer:
    """Returns the quantizer that a recipe alone defines, without calibration.

    Args:
        path: The dataset, for messages.
        name: The column's name in the shards.
        column: The column of the recipe.
        channels: The number of channels.
    """
    kind = column.quantizer["kind"]
    if kind in FLOATS:
        return Quantizer.floating(kind, channels=channels)
    if kind == "uniform":
        options = {key: value for key, value in column.quantizer.items() if key != "kind"}
        return Quantizer.uniform(channels=channels, **options)
    raise RecipeError(f"{path}: there is no card with the range of column {name!r}: give a quantizer")


def _text_column(path: Path, card: Card | None, recipe: Recipe, name: str) -> EmbeddingColumn | MaskColumn:
    """Returns a column of embeddings or masks, from the card or else from the recipe."""
    column = recipe.columns[name]
    if card is not None and card.text is not None:
        if column.content == "attention_mask":
            return MaskColumn(name, (recipe.text.captions, card.text.length))
        return EmbeddingColumn(name, card.embeddings[name])
    shape = _shape_of(path, name, column)
    if column.content == "attention_mask":
        return MaskColumn(name, shape)
    return EmbeddingColumn(name, EmbeddingFacts(shape, _recipe_quantizer(path, name, column, shape[-1])))


def _token_facts(path: Path, name: str, column: Column) -> TokenFacts:
    """Returns shape and dtype of a token column without a card, from the recipe's encoding or shape."""
    parts = column.encoding.split(":")
    dtype = parts[1] if parts[0] == "ndarray" and len(parts) > 1 else "uint16"
    shape = _shape_of(path, name, column)
    if dtype not in TOKEN_DTYPES or len(shape) != 2:
        raise RecipeError(
            f"{path}: column {name!r} holds tokens, which are (h, w) of {' or '.join(TOKEN_DTYPES)}, and the recipe "
            f"says {dtype} of shape {shape}"
        )
    return TokenFacts(shape, dtype, TOKEN_DTYPES[dtype])
