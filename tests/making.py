"""Small latent datasets for tests, made without the pipeline."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentq import mds
from latentq.card import CARD, AutoencoderFacts, Card, Counts, LatentFacts, SourceFacts
from latentq.quantizer import Quantizer, Statistics
from latentq.recipe import Recipe

SCALING_FACTOR = 0.25


@dataclass(frozen=True)
class Made:
    """What a dataset was made from: `values` are the float64 values of its codes, computed here and not by latentq."""

    path: Path
    codes: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    card: Card

    @property
    def keys(self):
        return [f"{i:06d}.png" for i in range(len(self.codes))]


def make_dataset(
    path,
    count=40,
    *,
    shape=(3, 4, 5),
    bits=8,
    kind="affine",
    low=-3.0,
    scaled=False,
    weights="sha256:1",
    label_encoding="int",
    size_limit=1 << 26,
    latents=("latent",),
    seed=0,
):
    """A finished dataset with columns latent, key, label and caption."""
    rng = np.random.default_rng(seed)
    channels = shape[0]
    if kind in ("float32", "float16", "bfloat16"):
        quantizer = Quantizer.floating(kind, channels=channels)
        values = rng.normal(size=(count, *shape)).astype(np.float16)
        codes = {
            "float32": values.astype(np.float32),
            "float16": values,
            "bfloat16": (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        }[kind]
        if kind == "bfloat16":
            values = (codes.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float64)
        encoding = f"ndarray:{codes.dtype}:{','.join(map(str, shape))}"
    else:
        codes = rng.integers(0, 1 << bits, size=(count, *shape), dtype=np.uint8)
        lows = low - np.arange(channels)
        highs = 2.5 + np.arange(channels)
        codes[:, lows == highs] = 0
        if kind == "affine":
            quantizer = Quantizer.affine(lows.tolist(), highs.tolist(), bits=bits)
            steps = (highs - lows) / ((1 << bits) - 1)
            values = lows[:, None, None] + codes * steps[:, None, None]
        else:
            levels = np.sort(rng.normal(size=(channels, 1 << bits)), axis=1).astype(np.float32)
            quantizer = Quantizer.codebook(levels)
            values = levels[np.arange(channels)[:, None, None], codes].astype(np.float64)
        stored = ",".join(map(str, shape)) if bits == 8 else quantizer.packed_bytes(int(np.prod(shape)))
        encoding = f"ndarray:uint8:{stored}"
    labels = rng.integers(0, 1000, size=count)
    columns = dict.fromkeys(latents, encoding) | {"key": "str", "label": label_encoding, "caption": "str"}
    made = Made(Path(path), codes, values, labels, _card(columns, latents, shape, quantizer, values, scaled, weights))
    rows = codes if bits == 8 else quantizer.pack(codes)
    with mds.Writer(made.path, columns, size_limit=size_limit) as writer:
        for i in range(count):
            label = int(labels[i]) if label_encoding == "int" else str(labels[i])
            sample = {"key": made.keys[i], "label": label, "caption": f"picture {i}"}
            writer.write(sample | dict.fromkeys(latents, rows[i]))
        writer.add_file(CARD, made.card.to_toml())
    return made


def _card(columns, latents, shape, quantizer, values, scaled, weights):
    recipe = {
        "name": "test",
        "columns": {name: {"from": "latent", "scaled": scaled} for name in latents}
        | {name: {"from": name, "encoding": columns[name]} for name in ("key", "label", "caption")},
    }
    axes = (0, 2, 3)
    count = [values[:, 0].size] * shape[0]
    stats = Statistics(*map(tuple, (count, *(f(values, axes).tolist() for f in (np.mean, np.std, np.min, np.max)))))
    return Card(
        source=SourceFacts(kind="folder", samples=len(values), sha256="0" * 64),
        recipe=Recipe.from_dict(recipe),
        autoencoder=AutoencoderFacts("toy", "Toy", weights, SCALING_FACTOR, (-1.0, 1.0)),
        columns=columns,
        latents={name: LatentFacts(shape, quantizer, stats, (0,) * shape[0]) for name in latents},
        counts=Counts(samples=len(values), rejects=0),
        versions={},
    )
