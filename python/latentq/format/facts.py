"""The tables of a card: facts about source, autoencoder, text encoder and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from latentq.format.normalization import Normalization
from latentq.quantizer import AnyQuantizer, Quantizer, Statistics, quantizer_from_dict

# The types of stored tokens, and the largest codebook of each.
TOKEN_DTYPES = {"uint16": 2**16, "int32": 2**31}
# The weights of an autoencoder that was never loaded: the latents came from elsewhere.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class SourceFacts:
    """Facts of the source.

    Attributes:
        kind: `folder`, `table`, `tar`, `zip`, `mds`, `parquet` or `datasets`; for converted latents, their layout.
        samples: Number of samples that the source lists, rejects included.
        sha256: The hash of the last part of the list, which depends on all parts.
        units: Number of units, if it does not follow from samples and unit size.
        image_column: The column of images, if a user named it.
        revision: How often the dataset was updated; 0 is not in the card.
        next_label: With classes by name, the number of the next new class, after an update; 0 is not in the card.
            Numbers of classes that are gone are not used again.
    """

    kind: str
    samples: int
    sha256: str
    units: int | None = None
    image_column: str | None = None
    revision: int = 0
    next_label: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table."""
        optional = ("units", "image_column", "revision", "next_label")
        return {name: value for name, value in vars(self).items() if value or name not in optional}


@dataclass(frozen=True)
class AutoencoderFacts:
    """The autoencoder that made the latents.

    Attributes:
        name: `dct-f8c16`, a name on the Hub, or the last part of a folder's path.
        family: The class that implements it.
        weights: `sha256:...` over names, types, shapes and values of its tensors; empty if it has none; `unknown` if
            the latents were made elsewhere.
        normalization: The formula from raw latents to those that models are trained on.
        pixel_range: The pixel values of black and white.
    """

    name: str
    family: str
    weights: str
    normalization: Normalization
    pixel_range: tuple[float, float]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> AutoencoderFacts:
        """Returns the facts of the card's table."""
        low, high = data["pixel_range"]
        normalization = Normalization.from_dict(data["normalization"])
        return cls(**{**data, "pixel_range": (low, high), "normalization": normalization})

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table."""
        return {**vars(self), "pixel_range": list(self.pixel_range), "normalization": self.normalization.to_dict()}

    def same_as(self, other: AutoencoderFacts) -> bool:
        """True if both compute the same: same weights under any name, or the same name if weights are unknown."""
        if UNKNOWN in (self.weights, other.weights):
            return self == replace(other, weights=self.weights)
        return self == (replace(other, name=self.name) if self.weights else other)


@dataclass(frozen=True)
class TextFacts:
    """The text encoder that made the embeddings.

    Attributes:
        name: A name on the Hub, or the last part of a folder's path.
        family: The class that implements it.
        weights: `sha256:...` over names, types, shapes and values of its tensors; empty if it has none.
        length: Tokens of every caption, padding included.
    """

    name: str
    family: str
    weights: str
    length: int

    def same_as(self, other: TextFacts) -> bool:
        """True if both compute the same: same weights under any name."""
        return self == (replace(other, name=self.name) if self.weights else other)


@dataclass(frozen=True)
class EmbeddingFacts:
    """One column of embeddings.

    Attributes:
        shape: (captions, tokens, width) of a sample, or (captions, width) of pooled embeddings.
        quantizer: The quantizer of each token's, or of the pooled, vector; its channels are the width.
        clipped: Number of values outside the quantizer's range; None until the dataset is complete.
    """

    shape: tuple[int, ...]
    quantizer: Quantizer
    clipped: int | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EmbeddingFacts:
        """Returns the facts of the card's table."""
        return cls(tuple(data["shape"]), Quantizer.from_dict(data["quantizer"]), data.get("clipped"))

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table."""
        clipped = {} if self.clipped is None else {"clipped": self.clipped}
        return {"shape": list(self.shape), **clipped, "quantizer": self.quantizer.to_dict()}

    @property
    def rows(self) -> int:
        """Number of vectors in a sample."""
        return prod(self.shape[:-1])

    @property
    def nbytes(self) -> int:
        """Bytes of a stored sample."""
        return self.rows * self.quantizer.packed_bytes(self.shape[-1])


@dataclass(frozen=True)
class LatentFacts:
    """One column of latents or moments.

    Attributes:
        shape: (C, h, w) of a sample's latent, or (2C, h, w) of its moments, means before their spread; with buckets,
            that of the first bucket.
        quantizer: The quantizer, frozen before the first unit was encoded.
        statistics: Statistics of the values that a reader sees, per channel; None until the dataset is complete.
        clipped: Number of values outside the quantizer's range, per channel; None until the dataset is complete.
        shapes: The shape of each bucket, by its number; empty without buckets.
    """

    shape: tuple[int, ...]
    quantizer: AnyQuantizer
    statistics: Statistics | None = None
    clipped: tuple[int, ...] | None = None
    shapes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LatentFacts:
        """Returns the facts of the card's table."""
        statistics = data.get("statistics")
        shape, shapes = _shapes_from(data)
        return cls(
            shape=shape,
            shapes=shapes,
            quantizer=quantizer_from_dict(data["quantizer"]),
            statistics=None if statistics is None else Statistics(**{k: tuple(v) for k, v in statistics.items()}),
            clipped=tuple(data["clipped"]) if "clipped" in data else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table."""
        data = _shapes_table(self.shape, self.shapes)
        if self.clipped is not None:
            data["clipped"] = list(self.clipped)
        data["quantizer"] = self.quantizer.to_dict()
        if self.statistics is not None:
            data["statistics"] = {key: list(value) for key, value in asdict(self.statistics).items()}
        return data

    def for_bucket(self, bucket: int) -> LatentFacts:
        """Returns the facts of one bucket's samples; statistics stay those of all buckets.

        Args:
            bucket: The bucket's number.
        """
        return replace(self, shape=self.shapes[bucket], shapes=()) if self.shapes else self


@dataclass(frozen=True)
class TokenFacts:
    """One column of tokens.

    Attributes:
        shape: (h, w) of a sample; with buckets, that of the first bucket.
        dtype: `uint16` or `int32`.
        codebook_size: Tokens are from 0 to `codebook_size - 1`.
        shapes: The shape of each bucket, by its number; empty without buckets.
    """

    shape: tuple[int, ...]
    dtype: str
    codebook_size: int
    shapes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TokenFacts:
        """Returns the facts of the card's table."""
        shape, shapes = _shapes_from(data)
        return cls(**{**data, "shape": shape, "shapes": shapes})

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table."""
        return _shapes_table(self.shape, self.shapes) | {"dtype": self.dtype, "codebook_size": self.codebook_size}

    def for_bucket(self, bucket: int) -> TokenFacts:
        """Returns the facts of one bucket's samples.

        Args:
            bucket: The bucket's number.
        """
        return replace(self, shape=self.shapes[bucket], shapes=()) if self.shapes else self


def _shapes_from(data: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Returns the shape in a card's table, with buckets the first, and the shapes of buckets."""
    if "shapes" not in data:
        return tuple(data["shape"]), ()
    shapes = tuple(map(tuple, data["shapes"]))
    if not shapes or "shape" in data:
        raise ValueError(f"shapes {list(data['shapes'])} next to shape {data.get('shape')}")
    return shapes[0], shapes


def _shapes_table(shape: tuple[int, ...], shapes: tuple[tuple[int, ...], ...]) -> dict[str, Any]:
    """Returns the fields of a card's table that `_shapes_from` reads."""
    return {"shapes": [list(shape) for shape in shapes]} if shapes else {"shape": list(shape)}


@dataclass(frozen=True)
class SampleCounts:
    """The numbers of the source's samples that are stored and rejected.

    Attributes:
        samples: Number of stored samples.
        rejects: Number of samples in rejects.tsv.
        redone: Number of samples, of both kinds, that held NaN or infinity in the recipe's dtype and were encoded
            again in float32.
        buckets: Number of stored samples in each bucket; empty without buckets.
    """

    samples: int
    rejects: int
    redone: int = 0
    buckets: tuple[int, ...] = ()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SampleCounts:
        """Returns the counts of the card's table."""
        return cls(**{**data, "buckets": tuple(data.get("buckets", ()))})

    def to_dict(self) -> dict[str, Any]:
        """Returns the card's table."""
        table = {name: value for name, value in vars(self).items() if name != "buckets"}
        return table | ({"buckets": list(self.buckets)} if self.buckets else {})
