"""The card, `latents.toml`: the description that a dataset carries with it."""

from __future__ import annotations

import errno
import hashlib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import tomli_w

from latentq._core import FormatError, LatentqError, RecipeError
from latentq.format.facts import (
    TOKEN_DTYPES,
    AutoencoderFacts,
    EmbeddingFacts,
    LatentFacts,
    SampleCounts,
    SourceFacts,
    TextFacts,
    TokenFacts,
)
from latentq.format.recipe import Recipe
from latentq.quantizer import AnyQuantizer, Transform
from latentq.store.local import read_regular
from latentq.system.text import counted

CARD = "latents.toml"
NEXT_CARD = "latents.next.toml"
"""The card of an update that is being finished. Its first line has the hash of the index that it belongs to."""
FORMAT = 2
_NEXT_LINE = "# index.json: sha256 "
_HEADER = "# A latent dataset made by latentq. `latentq info` shows this card; latentq.Card.load reads it.\n"
_MAX_COUNT = 2**53  # samples, or numbers in a latent: larger counts are damage
_MAX_SIDE = 2**20


@dataclass(frozen=True, repr=False)
class Card:
    """The description of a dataset.

    Attributes:
        source: Where the samples came from.
        recipe: Everything that decided the numbers.
        autoencoder: The autoencoder that made the latents.
        columns: The MDS encoding of every column, by name; with buckets, that of the first bucket.
        latents: The columns of latents and moments, by name.
        tokens: The columns of tokens, by name.
        text: The text encoder that made the embeddings; None if there are no embeddings.
        embeddings: The columns of caption and pooled embeddings, by name.
        counts: Numbers of samples and rejects; None until the dataset is complete.
        versions: Versions of latentq and the libraries that computed, when the card was published.
    """

    source: SourceFacts
    recipe: Recipe
    autoencoder: AutoencoderFacts
    columns: Mapping[str, str]
    latents: Mapping[str, LatentFacts]
    counts: SampleCounts | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    tokens: Mapping[str, TokenFacts] = field(default_factory=dict)
    text: TextFacts | None = None
    embeddings: Mapping[str, EmbeddingFacts] = field(default_factory=dict)

    def __repr__(self) -> str:
        counts = self.counts and f"{counted(self.counts.samples, 'sample')}, {counted(self.counts.rejects, 'reject')}"
        return f"<Card: recipe {self.recipe.name}, autoencoder {self.autoencoder.name}, {counts or 'not complete'}>"

    @property
    def complete(self) -> bool:
        """True if every unit was published when the card was written."""
        return self.counts is not None

    @property
    def units(self) -> int:
        """Number of units that the source is cut into."""
        return self.source.units or -(-self.source.samples // self.recipe.unit_size)

    @property
    def quantizers(self) -> dict[str, AnyQuantizer]:
        """The quantizers of all columns that have one, by column name."""
        return {
            **{name: latent.quantizer for name, latent in self.latents.items()},
            **{name: embedding.quantizer for name, embedding in self.embeddings.items()},
        }

    @property
    def buckets(self) -> int:
        """Number of buckets; 0 without buckets."""
        described: list[LatentFacts | TokenFacts] = [*self.latents.values(), *self.tokens.values()]
        return len(described[0].shapes) if described else 0

    def for_bucket(self, bucket: int) -> Card:
        """Returns the card of one bucket's samples: shapes and encodings are its own; counts stay those of the whole.

        Args:
            bucket: The bucket's number.
        """
        latents = {name: facts.for_bucket(bucket) for name, facts in self.latents.items()}
        tokens = {name: facts.for_bucket(bucket) for name, facts in self.tokens.items()}
        columns = dict(self.columns)
        for name, latent in latents.items():
            nbytes = latent.quantizer.packed_bytes(prod(latent.shape))
            columns[name] = _reshaped(columns[name], self.latents[name].shape, latent.shape, nbytes)
        for name, facts in tokens.items():
            columns[name] = _reshaped(columns[name], self.tokens[name].shape, facts.shape)
        return replace(self, latents=latents, tokens=tokens, columns=columns)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Card:
        """Loads the card of a dataset's folder, or the card at a path.

        Args:
            path: The folder of the dataset, or the path of the card.

        Raises:
            FileNotFoundError: There is no card.
            FormatError: It cannot be understood; the message names the file and the field.
        """
        path = Path(path)
        file = path / CARD if path.is_dir() else path
        data = (next_card(path) if path.is_dir() else None) or read_regular(file)
        try:
            return cls.from_dict(tomllib.loads(data.decode()))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise FormatError(f"{file}: not a card: {error}") from None
        except (FormatError, RecipeError) as error:
            raise FormatError(f"{file}: {error}") from None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Card:
        """Returns the card of TOML's tables.

        Args:
            data: The tables of `latents.toml`.

        Raises:
            FormatError: A field is missing or has the wrong type.
            RecipeError: Its recipe is not valid.
        """
        if data.get("format") != FORMAT:
            hint = ": encode the images again" if data.get("format") == 1 else ""
            raise FormatError(f"a card of format {data.get('format')!r}; this latentq reads format {FORMAT}{hint}")
        try:
            card = cls(
                source=SourceFacts(**data["source"]),
                recipe=Recipe.from_dict(data["recipe"]),
                autoencoder=AutoencoderFacts.from_dict(data["autoencoder"]),
                columns=dict(data["columns"]),
                latents={name: LatentFacts.from_dict(facts) for name, facts in data.get("latents", {}).items()},
                tokens={name: TokenFacts.from_dict(facts) for name, facts in data.get("tokens", {}).items()},
                text=TextFacts(**data["text"]) if "text" in data else None,
                embeddings={
                    name: EmbeddingFacts.from_dict(facts) for name, facts in data.get("embeddings", {}).items()
                },
                counts=SampleCounts.from_dict(data["counts"]) if data["complete"] else None,
                versions=dict(data["versions"]),
            )
            _check_counts(card)
            _check_columns(card)
            _check_text(card)
            for name, tokens in card.tokens.items():
                _check_tokens(name, tokens)
            for name, embedding in card.embeddings.items():
                _check_embedding(card, name, embedding)
            for name, latent in card.latents.items():
                _check_latent(card, name, latent)
            _check_buckets(card)
        except KeyError as error:
            raise FormatError(f"the card has no field {error.args[0]!r}") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FormatError(f"the card has a field that cannot be understood: {error}") from None
        return card

    def to_dict(self) -> dict[str, Any]:
        """Returns the tables that `from_dict` reads."""
        data: dict[str, Any] = {"format": FORMAT, "complete": self.complete}
        if self.counts is not None:
            data["counts"] = self.counts.to_dict()
        data["source"] = self.source.to_dict()
        data["recipe"] = self.recipe.to_dict()
        data["autoencoder"] = self.autoencoder.to_dict()
        data["columns"] = dict(self.columns)
        if self.latents:
            data["latents"] = {name: latent.to_dict() for name, latent in self.latents.items()}
        if self.tokens:
            data["tokens"] = {name: tokens.to_dict() for name, tokens in self.tokens.items()}
        if self.text is not None:
            data["text"] = vars(self.text).copy()
        if self.embeddings:
            data["embeddings"] = {name: embedding.to_dict() for name, embedding in self.embeddings.items()}
        data["versions"] = dict(self.versions)
        return data

    def to_toml(self) -> bytes:
        """Returns the bytes of `latents.toml`: a pure function of the card."""
        return (_HEADER + tomli_w.dumps(self.to_dict())).encode()


def next_card_bytes(card: Card, index_sha256: str) -> bytes:
    """Returns the bytes of `NEXT_CARD`.

    Args:
        card: The completed card.
        index_sha256: SHA-256 of the index that it belongs to, in hexadecimal.
    """
    return f"{_NEXT_LINE}{index_sha256}\n".encode() + card.to_toml()


def next_card(path: Path) -> bytes | None:
    """Returns the card of an update whose index is published and whose card is not yet; None if there is none.

    A process that was killed between the two leaves such a dataset, which is the updated one.

    Args:
        path: The dataset.
    """
    file = path / NEXT_CARD
    if not file.exists() or not (path / "index.json").exists():
        return None
    try:
        line, _, data = read_regular(file).partition(b"\n")
        with (path / "index.json").open("rb") as index:
            current = hashlib.file_digest(index, "sha256").hexdigest()
    except FileNotFoundError:  # another process completed the update since
        return None
    return data if line.decode("utf-8", "replace") == f"{_NEXT_LINE}{current}" else None


def open_card(path: Path) -> Card | None:
    """Loads the card of a finished dataset; returns None if a folder of shards has none.

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
        raise LatentqError(f"{path} is not finished: {done} of {counted(card.units, 'unit')}{hint}")
    if not indexed:
        raise LatentqError(f"{path} holds no dataset: it has neither {CARD} nor index.json")
    return card


def _check_count(value: Any, where: str) -> None:
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:
        raise FormatError(f"{where} must be a count, not {value!r}")


def _is_shape(shape: tuple[int, ...], axes: int) -> bool:
    return len(shape) == axes and all(type(side) is int and 0 < side <= _MAX_SIDE for side in shape)


def _check_counts(card: Card) -> None:
    _check_count(card.source.samples, "source.samples")
    if card.source.units is not None:
        _check_count(card.source.units, "source.units")
        if card.source.units > card.source.samples and not card.source.revision:  # an update may leave empty units
            samples = counted(card.source.samples, "sample")
            raise FormatError(f"source.units is {card.source.units}, more than {samples}")
    _check_count(card.source.revision, "source.revision")
    _check_count(card.source.next_label, "source.next_label")
    if card.counts is not None:
        for name, value in vars(card.counts).items():
            for count in value if name == "buckets" else (value,):
                _check_count(count, f"counts.{name}")


def _check_columns(card: Card) -> None:
    """Checks that the card and its recipe have the same columns."""
    for name, encoding in card.columns.items():
        if not isinstance(encoding, str) or name not in card.recipe.columns:
            raise FormatError(f"columns.{name} is no encoding of a column of the recipe")
    for table, described, columns in (
        ("latents", card.latents, card.recipe.latents()),
        ("tokens", card.tokens, card.recipe.tokens()),
        ("embeddings", card.embeddings, card.recipe.embeddings()),
    ):
        if described.keys() != columns.keys():
            raise FormatError(f"{table} has {list(described)}, the recipe {list(columns)}")


def _check_text(card: Card) -> None:
    if card.text is None:
        if card.recipe.texts():
            raise FormatError(f"the card has no field 'text', and a column {next(iter(card.recipe.texts()))!r}")
    elif type(card.text.length) is not int or not 0 < card.text.length <= _MAX_SIDE:
        raise FormatError(f"text.length must be a number of tokens, not {card.text.length!r}")


def _check_tokens(name: str, tokens: TokenFacts) -> None:
    for shape in tokens.shapes or (tokens.shape,):
        if not _is_shape(shape, 2):
            raise FormatError(f"tokens.{name}.shape must be (h, w), not {shape}")
    if tokens.dtype not in TOKEN_DTYPES:
        raise FormatError(f"tokens.{name}.dtype must be one of {', '.join(TOKEN_DTYPES)}, not {tokens.dtype!r}")
    if type(tokens.codebook_size) is not int or not 0 < tokens.codebook_size <= TOKEN_DTYPES[tokens.dtype]:
        raise FormatError(f"tokens.{name}: a codebook of {tokens.codebook_size!r} does not fit {tokens.dtype}")


def _check_embedding(card: Card, name: str, embedding: EmbeddingFacts) -> None:
    axes = 2 if card.recipe.columns[name].content == "pooled_embedding" else 3
    shape = embedding.shape
    if not _is_shape(shape, axes):
        raise FormatError(f"embeddings.{name}.shape must have {counted(axes, 'side')}, not {shape}")
    _check_count(prod(shape), f"embeddings.{name}.shape")
    if embedding.quantizer.channels != shape[-1]:
        channels = counted(embedding.quantizer.channels, "channel")
        raise FormatError(f"embeddings.{name}: a quantizer of {channels} for {shape}")
    if embedding.clipped is not None:
        _check_count(embedding.clipped, f"embeddings.{name}.clipped")


def _check_buckets(card: Card) -> None:
    """Checks that columns and counts have the same number of buckets."""
    counts = {f"latents.{name}.shapes": len(latent.shapes) for name, latent in card.latents.items()}
    counts |= {f"tokens.{name}.shapes": len(tokens.shapes) for name, tokens in card.tokens.items()}
    if card.counts is not None:
        counts["counts.buckets"] = len(card.counts.buckets)
        if card.counts.buckets and sum(card.counts.buckets) != card.counts.samples:
            samples = counted(card.counts.samples, "sample")
            raise FormatError(f"counts.buckets hold {sum(card.counts.buckets)} of {samples}")
    if card.recipe.buckets is not None:
        counts["recipe.buckets"] = len(card.recipe.bucket_sizes())
    for name, count in counts.items():
        if count != card.buckets:
            raise FormatError(f"{name} has {counted(count, 'bucket')}, other columns {card.buckets}")


def _reshaped(encoding: str, first: tuple[int, ...], shape: tuple[int, ...], packed_bytes: int = 0) -> str:
    """Returns a column's encoding in another bucket: arrays have its shape, and packed codes its number of bytes.

    Args:
        encoding: The encoding in the first bucket.
        first: The shape of a sample there.
        shape: The shape of a sample in the other bucket.
        packed_bytes: The bytes of such a sample as packed codes.
    """
    if not encoding.startswith("ndarray:") or encoding.count(":") != 2:
        return encoding
    kind, dtype, sides = encoding.split(":")
    sides = ",".join(map(str, shape)) if sides == ",".join(map(str, first)) else str(packed_bytes)
    return f"{kind}:{dtype}:{sides}"


def _check_latent(card: Card, name: str, latent: LatentFacts) -> None:
    for shape in latent.shapes or (latent.shape,):
        if not _is_shape(shape, 3):
            raise FormatError(f"latents.{name}.shape must be (C, h, w), not {shape}")
        if shape[0] != latent.shape[0]:
            raise FormatError(f"latents.{name}.shapes have {latent.shape[0]} and {counted(shape[0], 'channel')}")
    per_channel = {"clipped": latent.clipped, **(asdict(latent.statistics) if latent.statistics else {})}
    for key, values in per_channel.items():
        if values is not None and len(values) != latent.shape[0]:
            channels = counted(latent.shape[0], "channel")
            raise FormatError(f"latents.{name}.{key} has {counted(len(values), 'value')} for {channels}")
        for value in values or ():
            if key in ("clipped", "count"):
                _check_count(value, f"latents.{name}.{key}")
            elif type(value) not in (int, float):
                raise FormatError(f"latents.{name}.{key} must hold numbers, not {value!r}")
    if card.recipe.columns[name].content == "moments" and latent.shape[0] % 2:
        raise FormatError(f"latents.{name}.shape must have as many means as spreads, not {latent.shape}")
    normalization, column = card.autoencoder.normalization, card.recipe.columns[name]
    per_latent = latent.shape[0] // (2 if column.content == "moments" else 1)
    normalization.check_channels(per_latent // normalization.patchify**2 if column.scaled else per_latent)
    if latent.quantizer.channels != latent.shape[0]:
        channels = counted(latent.quantizer.channels, "channel")
        raise FormatError(f"latents.{name}: a quantizer of {channels} for {latent.shape}")
    if isinstance(latent.quantizer, Transform) and column.content != "latent":
        raise FormatError(f"latents.{name}: a transform for {column.content}")
