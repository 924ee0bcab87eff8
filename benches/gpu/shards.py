"""Latent datasets of random codes, written without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from latentq import Card, Quantizer, Recipe, mds
from latentq.format.card import CARD
from latentq.format.facts import AutoencoderFacts, LatentFacts, SampleCounts, SourceFacts, TokenFacts
from latentq.format.normalization import Normalization

SHAPE = (4, 32, 32)
KINDS = ("affine8", "affine4", "codebook8", "float16", "moments", "tokens")


def make(path: Path, kind: str, count: int) -> Path:
    """Writes a finished dataset of random latents, moments or tokens, with labels.

    Args:
        path: Its folder.
        kind: One of `KINDS`.
        count: The number of samples.
    """
    random = np.random.default_rng(0)
    content = kind if kind in ("moments", "tokens") else "latent"
    shape = (2 * SHAPE[0], *SHAPE[1:]) if kind == "moments" else SHAPE
    latents, tokens = {}, {}
    if kind == "tokens":
        shape = SHAPE[1:]
        codes: Any = random.integers(0, 16384, (count, *shape), np.uint16)
        tokens[content], encoding = TokenFacts(shape, "uint16", 16384), f"ndarray:uint16:{_text(shape)}"
    else:
        quantizer = _quantizer(kind, shape[0])
        latents[content] = LatentFacts(shape, quantizer, clipped=(0,) * shape[0])
        if kind == "float16":
            normal = random.standard_normal((min(count, 4096), *shape), np.float32).astype(np.float16)
            codes = np.resize(normal, (count, *shape))
            encoding = f"ndarray:float16:{_text(shape)}"
        else:
            codes = random.integers(0, 2**quantizer.bits, (count, *shape), np.uint8)
            codes = quantizer.pack(codes) if quantizer.bits < 8 else codes
            encoding = f"ndarray:uint8:{_text(codes.shape[1:])}"
    columns = {content: encoding, "label": "int"}
    recipe = {"name": "gpu", "columns": {content: {"from": content}, "label": {"from": "label", "encoding": "int"}}}
    card = Card(
        source=SourceFacts("folder", count, "0" * 64),
        recipe=Recipe.from_dict(recipe),
        autoencoder=AutoencoderFacts("random", "Random", "sha256:1", Normalization(0.13025), (-1.0, 1.0)),
        columns=columns,
        latents=latents,
        tokens=tokens,
        counts=SampleCounts(count, 0),
    )
    with mds.Writer(path, columns) as writer:
        writer.write_batch({content: codes, "label": random.integers(0, 1000, count)})
        writer.add_file(CARD, card.to_toml())
    return path


def _quantizer(kind: str, channels: int) -> Quantizer:
    if kind == "float16":
        return Quantizer.floating("float16", channels=channels)
    if kind == "codebook8":
        return Quantizer.codebook(np.sort(np.random.default_rng(1).normal(0, 2, (channels, 256)), axis=1))
    low, high = [-5.0 - channel for channel in range(channels)], [5.0 + channel / 2 for channel in range(channels)]
    return Quantizer.affine(low, high, bits=4 if kind == "affine4" else 8)


def _text(shape: tuple[int, ...]) -> str:
    return ",".join(map(str, shape))
