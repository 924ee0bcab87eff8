"""The tables of a recipe as frozen data: image, autoencoder, text encoder and columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from latentq.choices import Alpha, Crop, Filter, Icc, Method, PixelOptions, Size, height_width

Dtype = Literal["float32", "tf32", "float16", "bfloat16"]
Store = Literal["sample", "mean"]
Spread = Literal["logvar", "std"]
Content = Literal[
    "latent", "moments", "tokens", "caption_embedding", "attention_mask", "pooled_embedding", "key", "label",
    "label_text", "caption", "captions", "image", "original_size", "crop_top_left", "bucket",
]  # fmt: skip

# Contents that the autoencoder computes, and contents that the text encoder computes.
ENCODED = ("latent", "moments", "tokens")
TEXT = ("caption_embedding", "attention_mask", "pooled_embedding")
# Contents that models are conditioned on, each two numbers: see `Column`.
CONDITIONING = ("original_size", "crop_top_left", "bucket")
CONDITIONING_ENCODING = "ndarray:int32:2"
# Kinds of quantizer that store floats as they are.
MAX_UNIT = 65536
"""The largest number of samples in a unit: a part of the list holds whole units."""
FLOATS = ("float16", "bfloat16", "float32")

# The fields that a column of each content may have in addition to `from`, `encoding` and `optional`.
COLUMN_FIELDS: Mapping[str, set[str]] = {
    "latent": {"size", "store", "scaled", "flip", "shape", "quantizer"},
    "moments": {"size", "flip", "spread", "shape", "quantizer"},
    "tokens": {"size", "flip", "shape"},
    "caption_embedding": {"shape", "quantizer"},
    "pooled_embedding": {"shape", "quantizer"},
    "attention_mask": {"shape"},
}

_AFFINE = {"kind": "affine", "bits": 8, "method": "mse"}
DEFAULT_QUANTIZERS: Mapping[str, dict[str, Any]] = {
    "latent": _AFFINE,
    "moments": _AFFINE,
    "caption_embedding": {"kind": "float16"},
    "pooled_embedding": {"kind": "float16"},
}
# The methods of the kinds that are calibrated, the default first.
METHODS: Mapping[str, tuple[Method, ...]] = {
    "affine": ("mse", "minmax", "percentile"),
    "codebook": ("lloyd-max",),
    "trellis": ("trellis",),
}
CALIBRATED = (*METHODS, "transform")
"""The kinds that are calibrated."""
TRANSFORM_SIZES = ("bytes", "bits", "rate")
"""The fields of a transform that say how large samples are: a recipe has one of them."""
QUANTIZER_FIELDS: Mapping[str, set[str]] = {
    "uniform": {"kind", "low", "high", "bits", "rounding"},
    "affine": {"kind", "bits", "method"},
    "codebook": {"kind", "bits", "method"},
    "trellis": {"kind", "bits", "method"},
    "transform": {"kind", *TRANSFORM_SIZES, "metric"},
    **{kind: {"kind"} for kind in FLOATS},
}


@dataclass(frozen=True)
class ImageOptions:
    """The options that turn an image file into pixels.

    Attributes:
        crop: `center`, `center-round` or `adm`.
        filter: Pillow's resampling filter: `box`, `bilinear`, `hamming`, `bicubic` or `lanczos`.
        orient: True if the EXIF orientation is applied.
        alpha: Background of transparent pixels: `white`, `black`, or `drop`, which ignores the alpha channel.
        icc: `srgb` converts by an embedded color profile; `ignore` takes the numbers as they are.
        min_size: Pixels that both sides of an image must have; a smaller image is rejected. 0 accepts every image.
        min_side: Inexact: decodes large JPEGs at 1/2, 1/4 or 1/8 of their size while the short side stays at least
            this many pixels; 0 decodes them at full size.
    """

    crop: Crop = "center"
    filter: Filter = "bicubic"
    orient: bool = True
    alpha: Alpha = "white"
    icc: Icc = "srgb"
    min_size: int = 0
    min_side: int = 0

    def options(self) -> PixelOptions:
        """Returns the keyword arguments of `latentq.image.load` and `load_batch`."""
        return {
            "crop": self.crop,
            "filter": self.filter,
            "orient": self.orient,
            "alpha": self.alpha,
            "icc": self.icc,
            "min_side": self.min_side or None,
        }


@dataclass(frozen=True)
class AutoencoderOptions:
    """The autoencoder, and how it computes.

    Attributes:
        model: `dct-f8c16`, a name on the Hub, or a folder.
        revision: The Hub's branch, tag or commit; empty for the default.
        subfolder: The model's folder inside its repository or folder.
        pixel_range: The pixel values of black and white; empty for the model's own. For checkpoints that were trained
            on another range than their family, which their files do not tell.
        dtype: The type it computes in: `float32` (IEEE), `tf32`, `float16` or `bfloat16`.
        seed: The noise of sample s is a function of (seed, s).
    """

    model: str = "dct-f8c16"
    revision: str = ""
    subfolder: str = ""
    pixel_range: tuple[float, ...] = ()
    dtype: Dtype = "float32"
    seed: int = 0


@dataclass(frozen=True)
class TextOptions:
    """The text encoder, and its input.

    Attributes:
        model: A name on the Hub or a folder; `openclip:NAME` for open_clip's. Empty if no column needs a text encoder.
        revision: The Hub's branch, tag or commit; empty for the default.
        subfolder: The text encoder to take from a pipeline of several; empty for `text_encoder`.
        dtype: The type it computes in: `float32` (IEEE), `tf32`, `float16` or `bfloat16`.
        length: Tokens that a caption is padded or cut to; 0 for as many as the model takes.
        captions: Captions embedded per image: the first ones, cycling if there are fewer.
    """

    model: str = ""
    revision: str = ""
    subfolder: str = ""
    dtype: Dtype = "float32"
    length: int = 0
    captions: int = 1


@dataclass(frozen=True)
class Column:
    """One column of the shards.

    Attributes:
        content: The content (`from` in TOML): `latent`; `moments`, the posterior's mean and log-variance, from which
            a reader draws latents; `tokens`, the indices of a codebook; `caption_embedding`, the text encoder's last
            hidden state at every position; `attention_mask` and `pooled_embedding`, its other outputs; `key`, `label`,
            `label_text` or `caption`; `captions`, the list of captions that are embedded; `image`, the image file;
            `original_size`, the (height, width) of the upright image; `crop_top_left`, the (top, left) of the part that
            is encoded in the resized image; `bucket`, the (height, width) that is encoded.
        encoding: The MDS encoding. For the output of an encoder, empty means the encoding that follows from its shape
            and quantizer; `bytes` stores the same bytes without shape and type. For images, `jpeg` converts other
            formats to JPEG of quality 95, and `bytes` stores the file as it is.
        optional: True if the column is omitted when the source does not have it; otherwise its absence is an error.
        size: The side of the square that is encoded, in pixels, or (height, width); 0 if the recipe has buckets. This
            and the next three fields are for what the autoencoder computes.
        store: Latents: `sample` draws from the posterior if there is one; `mean` is its mean.
        scaled: Latents: True if they are stored in the scale that models are trained on (`autoencoder.normalization`).
        flip: True if the mirrored image is encoded.
        spread: Moments: the half after the means holds log-variances (`logvar`) or standard deviations (`std`), as
            some other tools store.
        shape: (C, h, w) of latents, (2C, h, w) of moments, (h, w) of tokens, (captions, tokens, width) of embeddings,
            (captions, tokens) of masks, (captions, width) of pooled embeddings; needed if neither the encoding nor a
            card gives it.
        quantizer: Latents, moments and embeddings: `kind` (`uniform`, `affine`, `codebook`, `trellis`, `float16`,
            `bfloat16`, `float32`; for latents also `transform`) with its options. An embedding's channels are its last
            axis.
    """

    content: Content
    encoding: str = ""
    optional: bool = False
    size: Size = 256
    store: Store = "sample"
    scaled: bool = False
    flip: bool = False
    spread: Spread = "logvar"
    shape: tuple[int, ...] = ()
    quantizer: Mapping[str, Any] = field(default_factory=lambda: dict(_AFFINE))

    @property
    def pixels(self) -> tuple[int, int]:
        """The height and width that are encoded."""
        return height_width(self.size)

    @property
    def is_encoded(self) -> bool:
        """True if the autoencoder computes this column."""
        return self.content in ENCODED

    @property
    def is_latent(self) -> bool:
        """True if the column holds latents, or the moments that latents are drawn from."""
        return self.content in ("latent", "moments")

    @property
    def is_embedding(self) -> bool:
        """True if the column holds embeddings, which a quantizer stores."""
        return self.content in ("caption_embedding", "pooled_embedding")
