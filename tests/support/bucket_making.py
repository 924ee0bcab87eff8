"""Make small latent datasets with buckets of aspect ratios, without the pipeline."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentq import mds
from latentq.format.card import CARD, Card
from latentq.format.facts import AutoencoderFacts, LatentFacts, SampleCounts, SourceFacts, TokenFacts
from latentq.format.normalization import Normalization
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer, Statistics

SHAPES = ((3, 1, 9), (3, 2, 6), (3, 4, 4), (3, 6, 2))  # the second and the last have the same number of bytes
UNITS = ((0, 5, 9, 0), (0, 4, 1, 7), (0, 0, 12, 3))  # samples of each bucket in each unit
FACTOR = 8  # pixels to a side of a latent


@dataclass(frozen=True)
class Buckets:
    """A dataset with buckets and its samples: float64 values, computed here, tokens and labels, by index."""

    path: Path
    card: Card
    buckets: np.ndarray
    values: list[np.ndarray]
    codes: list[np.ndarray]
    tokens: list[np.ndarray]
    labels: np.ndarray

    def __len__(self):
        return len(self.buckets)

    def of(self, bucket):
        """Return the indices of a bucket's samples."""
        return np.flatnonzero(self.buckets == bucket)


def make_buckets(
    path, shapes=SHAPES, units=UNITS, *, bits=8, kind="affine", moments=False, tokens=False, size_limit=600, seed=0,
    low=-3.0, weights="sha256:1", merged=True,
):  # fmt: skip
    """Write a finished dataset with the columns latent (or moments), key, label, caption and original_size.

    Args:
        path: The dataset's folder.
        shapes: The shape of each bucket's latents.
        units: For each unit, the number of samples in each bucket; one unit is the folder itself if not `merged`.
        bits: The bits of a code.
        kind: The quantizer's kind: `affine`, `codebook` or `float16`.
        moments: True for moments: the channels are means and log-variances then.
        tokens: True for a column of tokens too, of the same height and width.
        size_limit: The size of a shard.
        seed: Seeds the values.
        low: The lower end of the quantizer's first range.
        weights: The autoencoder's weights.
        merged: True to write a subfolder for each unit.
    """
    rng = np.random.default_rng(seed)
    path, channels = Path(path), shapes[0][0]
    lows, highs = low - np.arange(channels), 2.5 + np.arange(channels)
    if kind == "float16":
        quantizer = Quantizer.floating(kind, channels=channels)
    elif kind == "codebook":
        levels = np.sort(rng.normal(size=(channels, 1 << bits)), axis=1).astype(np.float32)
        quantizer = Quantizer.codebook(levels)
    else:
        quantizer = Quantizer.affine(lows.tolist(), highs.tolist(), bits=bits)
    column = "moments" if moments else "latent"

    def columns_of(shape):
        sides = ",".join(map(str, shape)) if bits == 8 else quantizer.packed_bytes(int(np.prod(shape)))
        columns = {column: f"ndarray:{'float16' if kind == 'float16' else 'uint8'}:{sides}"}
        columns |= {"key": "str", "label": "int", "caption": "str", "original_size": "ndarray:int32:2"}
        return columns | ({"tokens": f"ndarray:uint16:{shape[1]},{shape[2]}"} if tokens else {})

    made = Buckets(path, None, [], [], [], [], [])
    for number, counts in enumerate(units):
        folder = path / f"{number:05}" if merged else path
        folder.parent.mkdir(parents=True, exist_ok=True)
        with mds.Writer(folder, columns_of(shapes[0]), size_limit=size_limit, sync=False) as writer:
            for bucket, (shape, count) in enumerate(zip(shapes, counts, strict=True)):
                writer.begin_group(f"{bucket:03}", columns_of(shape))
                for _ in range(count):
                    if kind == "float16":
                        codes = rng.normal(size=shape).astype(np.float16)
                        values = codes.astype(np.float64)
                    else:
                        codes = rng.integers(0, 1 << bits, shape, np.uint8)
                        steps = ((highs - lows) / ((1 << bits) - 1))[:, None, None]
                        values = lows[:, None, None] + codes * steps
                        if kind == "codebook":
                            values = levels[np.arange(channels)[:, None, None], codes].astype(np.float64)
                    label, index = int(rng.integers(1000)), len(made.labels)
                    sample = {
                        column: codes if bits == 8 else quantizer.pack(codes[None])[0],
                        "key": f"{index:06d}.png",
                        "label": label,
                        "caption": f"picture {index}",
                        "original_size": np.array([shape[1] * FACTOR + index, shape[2] * FACTOR], np.int32),
                    }
                    made.tokens.append(rng.integers(0, 100, shape[1:], np.uint16))
                    writer.write(sample | ({"tokens": made.tokens[-1]} if tokens else {}))
                    for values_of, value in (
                        (made.buckets, bucket), (made.values, values), (made.codes, codes), (made.labels, label)
                    ):  # fmt: skip
                        values_of.append(value)
            if not merged:
                card = _card(columns_of(shapes[0]), column, shapes, units, quantizer, made, weights)
                writer.add_file(CARD, card.to_toml())
    if merged:
        card = _card(columns_of(shapes[0]), column, shapes, units, quantizer, made, weights)
        mds.merge(path)
        (path / CARD).write_bytes(card.to_toml())
    return Buckets(path, card, np.array(made.buckets), made.values, made.codes, made.tokens, np.array(made.labels))


def _card(columns, column, shapes, units, quantizer, made, weights):
    recipe = {
        "name": "test",
        "columns": {column: {"from": column}}
        | {name: {"from": name, "encoding": columns[name]} for name in ("key", "label", "caption", "original_size")}
        | ({"tokens": {"from": "tokens"}} if "tokens" in columns else {}),
        "buckets": {"sizes": [[height * FACTOR, width * FACTOR] for _, height, width in shapes]},
    }
    flat = [np.concatenate([values[c].ravel() for values in made.values]) for c in range(shapes[0][0])]
    stats = Statistics(*zip(*((len(v), v.mean(), v.std(), v.min(), v.max()) for v in flat), strict=True))
    return Card(
        source=SourceFacts(kind="folder", samples=len(made.labels), sha256="0" * 64),
        recipe=Recipe.from_dict(recipe),
        autoencoder=AutoencoderFacts("toy", "Toy", weights, Normalization(0.25), (-1.0, 1.0)),
        columns=columns,
        latents={column: LatentFacts(shapes[0], quantizer, stats, (0,) * shapes[0][0], tuple(shapes))},
        tokens={"tokens": TokenFacts(shapes[0][1:], "uint16", 100, tuple(shape[1:] for shape in shapes))}
        if "tokens" in columns
        else {},
        counts=SampleCounts(len(made.labels), 0, buckets=tuple(np.sum(units, 0).tolist())),
        versions={},
    )
