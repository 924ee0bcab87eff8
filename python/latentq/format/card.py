"""The card, `latents.toml`: what a dataset says of itself."""

from __future__ import annotations

import errno
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from latentq._core import FormatError, LatentqError, RecipeError
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer, Statistics

if TYPE_CHECKING:
    pass

CARD = "latents.toml"


FORMAT = 1


TOKEN_DTYPES = {"uint16": 2**16, "int32": 2**31}


"""The types of stored tokens, and the largest code book of each."""


UNKNOWN = "unknown"


"""The weights of an autoencoder that was never loaded: the latents came from elsewhere."""


_HEADER = "# A latent dataset made by latentq. `latentq info` shows this card; latentq.Card.load reads it.\n"


@dataclass(frozen=True)
class SourceFacts:
    """Where the samples came from.

    Attributes:
        kind: `folder`, `table`, `tar`, `zip`, `mds`, `parquet` or `datasets`; of what was converted, what it was.
        samples: How many samples the source lists, rejects included.
        sha256: The hash of samples.tsv.
        units: How many units it is cut into, where that does not follow from samples and unit size.
    """

    kind: str
    samples: int
    sha256: str
    units: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As TOML has it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class AutoencoderFacts:
    """Which network made the latents.

    Attributes:
        name: `dct-f8c16`, a hub name, or the last part of a folder's path.
        family: The class that implements it.
        weights: `sha256:...` over names, types, shapes and values of its tensors; empty where it has none; `unknown`
            where the latents were made elsewhere.
        scaling_factor: What its latents are multiplied by for training, so that they have about unit variance.
        pixel_range: The pixel values that stand for black and white.
        shift_factor: What is subtracted before that.
    """

    name: str
    family: str
    weights: str
    scaling_factor: float
    pixel_range: tuple[float, float]
    shift_factor: float = 0.0

    def same_as(self, other: AutoencoderFacts) -> bool:
        """Whether both compute the same: a copy of the weights under another name does; unknown ones go by the name."""
        if UNKNOWN in (self.weights, other.weights):
            return self == replace(other, weights=self.weights)
        return self == (replace(other, name=self.name) if self.weights else other)


@dataclass(frozen=True)
class TextFacts:
    """Which text encoder made the embeddings.

    Attributes:
        name: A hub name, or the last part of a folder's path.
        family: The class that implements it.
        weights: As of `AutoencoderFacts`.
        length: The tokens of every caption, padding included.
    """

    name: str
    family: str
    weights: str
    length: int

    def same_as(self, other: TextFacts) -> bool:
        """Whether both compute the same: a copy of the weights under another name does."""
        return self == (replace(other, name=self.name) if self.weights else other)


@dataclass(frozen=True)
class EmbeddingFacts:
    """One column of embeddings.

    Attributes:
        shape: (captions, tokens, width) of a sample; of pooled embeddings (captions, width).
        quantizer: Of each token's, or of the pooled, vector; its channels are the width.
        clipped: How many values were outside the quantiser's range; None until the dataset is complete.
    """

    shape: tuple[int, ...]
    quantizer: Quantizer
    clipped: int | None = None

    @property
    def rows(self) -> int:
        """How many vectors a sample has."""
        return prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """The bytes of a stored sample."""
        return self.rows * self.quantizer.packed_bytes(self.shape[-1])


@dataclass(frozen=True)
class LatentFacts:
    """One column of latents or moments.

    Attributes:
        shape: (C, h, w) of what is stored of a sample; of moments (2C, h, w), means before log-variances.
        quantizer: Frozen before the first unit was encoded.
        statistics: Of the values that a reader sees, per channel; None until the dataset is complete.
        clipped: How many values were outside the quantiser's range, per channel; None until it is complete.
    """

    shape: tuple[int, ...]
    quantizer: Quantizer
    statistics: Statistics | None = None
    clipped: tuple[int, ...] | None = None


@dataclass(frozen=True)
class TokenFacts:
    """One column of tokens.

    Attributes:
        shape: (h, w) of a sample.
        dtype: `uint16` or `int32`.
        codebook_size: Tokens are from 0 to this less one.
    """

    shape: tuple[int, ...]
    dtype: str
    codebook_size: int


@dataclass(frozen=True)
class Counts:
    """What became of the source's samples.

    Attributes:
        samples: How many are stored.
        rejects: How many are in rejects.tsv.
        redone: How many of either held NaN or infinity in the recipe's dtype and were encoded again in float32.
    """

    samples: int
    rejects: int
    redone: int = 0


@dataclass(frozen=True)
class Card:
    """What a dataset says of itself.

    Attributes:
        source: Where the samples came from.
        recipe: All that decided the numbers.
        autoencoder: Which network made the latents.
        columns: The MDS encoding of every column, by name.
        latents: The columns of latents and moments, by name.
        tokens: The columns of tokens, by name.
        text: Which text encoder made the embeddings; None where there are none.
        embeddings: The columns of caption and pooled embeddings, by name.
        counts: What became of the samples; None until the dataset is complete.
        versions: Of latentq and the libraries that computed, when the card was published.
    """

    source: SourceFacts
    recipe: Recipe
    autoencoder: AutoencoderFacts
    columns: Mapping[str, str]
    latents: Mapping[str, LatentFacts]
    counts: Counts | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, TokenFacts] = field(default_factory=dict)
    text: TextFacts | None = None
    embeddings: Mapping[str, EmbeddingFacts] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every unit was there when the card was written."""
        return self.counts is not None

    @property
    def units(self) -> int:
        """How many units the source is cut into."""
        return self.source.units or -(-self.source.samples // self.recipe.unit_size)

    @property
    def quantizers(self) -> dict[str, Quantizer]:
        """Of all columns that have one, by name."""
        return {
            **{name: latent.quantizer for name, latent in self.latents.items()},
            **{name: embedding.quantizer for name, embedding in self.embeddings.items()},
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Card:
        """The card of a dataset's folder, or the card at a path.

        Raises:
            FileNotFoundError: There is none.
            FormatError: It cannot be understood; the message names the file and the field.
        """
        path = Path(path)
        file = path / CARD if path.is_dir() else path
        try:
            return cls.from_dict(tomllib.loads(file.read_bytes().decode()))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FormatError(f"{file}: not a card: {error}") from None
        except (FormatError, RecipeError) as error:
            raise FormatError(f"{file}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Card:
        """The card that TOML's tables spell.

        Raises:
            FormatError: A field is missing or has the wrong type.
            RecipeError: The recipe in it is not valid.
        """
        if data.get("format") != FORMAT:
            raise FormatError(f"a card of format {data.get('format')!r}; this latentq reads format {FORMAT}")
        try:
            return _checked(
                cls(
                    source=SourceFacts(**data["source"]),
                    recipe=Recipe.from_dict(data["recipe"]),
                    autoencoder=_autoencoder(data["autoencoder"]),
                    columns=dict(data["columns"]),
                    latents={name: _latent(facts) for name, facts in data.get("latents", {}).items()},
                    tokens={name: _tokens(facts) for name, facts in data.get("tokens", {}).items()},
                    text=TextFacts(**data["text"]) if "text" in data else None,
                    embeddings={name: _embedding(facts) for name, facts in data.get("embeddings", {}).items()},
                    counts=Counts(**data["counts"]) if data["complete"] else None,
                    versions=dict(data["versions"]),
                )
            )
        except KeyError as error:
            raise FormatError(f"the card has no field {error.args[0]!r}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"the card has a field that cannot be understood: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The tables that `from_dict` reads."""
        data: dict[str, Any] = {"format": FORMAT, "complete": self.complete}
        if self.counts is not None:
            data["counts"] = vars(self.counts).copy()
        data["source"] = self.source.to_dict()
        data["recipe"] = self.recipe.to_dict()
        data["autoencoder"] = {**vars(self.autoencoder), "pixel_range": list(self.autoencoder.pixel_range)}
        data["columns"] = dict(self.columns)
        if self.latents:
            data["latents"] = {name: _latent_to_dict(facts) for name, facts in self.latents.items()}
        if self.tokens:
            data["tokens"] = {name: {**vars(facts), "shape": list(facts.shape)} for name, facts in self.tokens.items()}
        if self.text is not None:
            data["text"] = vars(self.text).copy()
        if self.embeddings:
            data["embeddings"] = {name: _embedding_to_dict(facts) for name, facts in self.embeddings.items()}
        data["versions"] = dict(self.versions)
        return data

    def to_toml(self) -> bytes:
        """The bytes of `latents.toml`: a pure function of the card."""
        return (_HEADER + tomli_w.dumps(self.to_dict())).encode()


_MOST = 2**53  # samples, or numbers in a latent: beyond it a count is no count


def _checked(card: Card) -> Card:
    """The card, its counts and lengths sound. Raises FormatError naming the field."""

    def count(value: Any, where: str) -> None:
        if type(value) is not int or not 0 <= value <= _MOST:
            raise FormatError(f"{where} must be a count, not {value!r}")

    count(card.source.samples, "source.samples")
    if card.source.units is not None:
        count(card.source.units, "source.units")
        if card.source.units > card.source.samples:
            raise FormatError(f"source.units: {card.source.units} of them for {card.source.samples} samples")
    if card.counts is not None:
        count(card.counts.samples, "counts.samples")
        count(card.counts.rejects, "counts.rejects")
        count(card.counts.redone, "counts.redone")
    for name, encoding in card.columns.items():
        if not isinstance(encoding, str) or name not in card.recipe.columns:
            raise FormatError(f"columns.{name} is no encoding of a column of the recipe")
    if card.latents.keys() != card.recipe.latents().keys():
        raise FormatError(f"latents has {list(card.latents)}, the recipe {list(card.recipe.latents())}")
    if card.tokens.keys() != card.recipe.tokens().keys():
        raise FormatError(f"tokens has {list(card.tokens)}, the recipe {list(card.recipe.tokens())}")
    for name, tokens in card.tokens.items():
        if len(tokens.shape) != 2 or not all(type(side) is int and 0 < side <= 2**20 for side in tokens.shape):
            raise FormatError(f"tokens.{name}.shape must be (h, w), not {tokens.shape}")
        if tokens.dtype not in TOKEN_DTYPES:
            raise FormatError(f"tokens.{name}.dtype must be one of {', '.join(TOKEN_DTYPES)}, not {tokens.dtype!r}")
        if type(tokens.codebook_size) is not int or not 0 < tokens.codebook_size <= TOKEN_DTYPES[tokens.dtype]:
            raise FormatError(f"tokens.{name}: a code book of {tokens.codebook_size!r} does not fit {tokens.dtype}")
    if card.embeddings.keys() != card.recipe.embeddings().keys():
        raise FormatError(f"embeddings has {list(card.embeddings)}, the recipe {list(card.recipe.embeddings())}")
    if card.text is None and card.recipe.texts():
        raise FormatError(f"the card has no field 'text', and a column {next(iter(card.recipe.texts()))!r}")
    if card.text is not None and not (type(card.text.length) is int and 0 < card.text.length <= 2**20):
        raise FormatError(f"text.length must be a number of tokens, not {card.text.length!r}")
    for name, embedding in card.embeddings.items():
        axes = 2 if card.recipe.columns[name].content == "pooled_embedding" else 3
        sides = embedding.shape
        if len(sides) != axes or not all(type(side) is int and 0 < side <= 2**20 for side in sides):
            raise FormatError(f"embeddings.{name}.shape must have {axes} sides, not {sides}")
        count(prod(sides), f"embeddings.{name}.shape")
        if embedding.quantizer.channels != sides[-1]:
            raise FormatError(f"embeddings.{name}: a quantiser of {embedding.quantizer.channels} channels for {sides}")
        if embedding.clipped is not None:
            count(embedding.clipped, f"embeddings.{name}.clipped")
    for name, latent in card.latents.items():
        if len(latent.shape) != 3 or not all(type(side) is int and 0 < side <= 2**20 for side in latent.shape):
            raise FormatError(f"latents.{name}.shape must be (C, h, w), not {latent.shape}")
        per_channel = {"clipped": latent.clipped, **(asdict(latent.statistics) if latent.statistics else {})}
        for what, values in per_channel.items():
            if values is not None and len(values) != latent.shape[0]:
                raise FormatError(f"latents.{name}: {len(values)} of {what} for {latent.shape[0]} channels")
            for value in values or ():
                if what in ("clipped", "count"):
                    count(value, f"latents.{name}.{what}")
                elif type(value) not in (int, float):
                    raise FormatError(f"latents.{name}.{what} must hold numbers, not {value!r}")
        if card.recipe.columns[name].content == "moments" and latent.shape[0] % 2:
            raise FormatError(f"latents.{name}.shape must have as many means as log-variances, not {latent.shape}")
        if latent.quantizer.channels != latent.shape[0]:
            raise FormatError(f"latents.{name}: a quantiser of {latent.quantizer.channels} channels for {latent.shape}")
    return card


def _autoencoder(data: Mapping[str, Any]) -> AutoencoderFacts:
    low, high = data["pixel_range"]
    return AutoencoderFacts(**{**data, "pixel_range": (low, high)})


def _latent(data: Mapping[str, Any]) -> LatentFacts:
    return LatentFacts(
        shape=tuple(data["shape"]),
        quantizer=Quantizer.from_dict(data["quantizer"]),
        statistics=Statistics(**{key: tuple(value) for key, value in data["statistics"].items()})
        if "statistics" in data
        else None,
        clipped=tuple(data["clipped"]) if "clipped" in data else None,
    )


def _tokens(data: Mapping[str, Any]) -> TokenFacts:
    return TokenFacts(**{**data, "shape": tuple(data["shape"])})


def _embedding(data: Mapping[str, Any]) -> EmbeddingFacts:
    return EmbeddingFacts(tuple(data["shape"]), Quantizer.from_dict(data["quantizer"]), data.get("clipped"))


def _embedding_to_dict(facts: EmbeddingFacts) -> dict[str, Any]:
    clipped = {} if facts.clipped is None else {"clipped": facts.clipped}
    return {"shape": list(facts.shape), **clipped, "quantizer": facts.quantizer.to_dict()}


def _latent_to_dict(facts: LatentFacts) -> dict[str, Any]:
    data: dict[str, Any] = {"shape": list(facts.shape)}
    if facts.clipped is not None:
        data["clipped"] = list(facts.clipped)
    data["quantizer"] = facts.quantizer.to_dict()
    if facts.statistics is not None:
        data["statistics"] = {key: list(value) for key, value in asdict(facts.statistics).items()}
    return data


def open_card(path: Path) -> Card | None:
    """The card of a dataset that is finished, or None where a folder of shards has none.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        LatentqError: The dataset is not finished, or the folder holds none.
        FormatError: The card cannot be understood.
    """
    if not path.is_dir():
        code = errno.ENOTDIR if path.exists() else errno.ENOENT
        raise OSError(code, os.strerror(code), str(path))
    card = Card.load(path) if (path / CARD).exists() else None
    indexed = (path / "index.json").exists()
    if card is not None and not (card.complete and indexed):
        done = sum(1 for entry in path.iterdir() if entry.name.isdigit() and (entry / "index.json").is_file())
        hint = "; latentq encode must finish it" if done == card.units else ""
        raise LatentqError(f"{path} is not finished: {done} of {card.units} units{hint}")
    if not indexed:
        raise LatentqError(f"{path} holds no dataset: it has neither {CARD} nor index.json")
    return card
