"""Whole shuffled epochs of batches of 256 to float32, by quantizer and number of bits: what each costs a reader.

All contenders of a group read samples of one shape, with labels, from files in the page cache and from the reader's own
cache. Their codes are random; a transform's samples are 1,024 different ones of noise. Four epochs warm each up.
"""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentq import LatentDataset, LatentLoader, Quantizer, Recipe, Transform, mds

BATCH = 256
SHAPES = {"f32c32": (51_200, (32, 8, 8)), "f8c4": (25_600, (4, 32, 32))}
ROUNDS = 7


def affine(channels: int, bits: int, _rng: Any) -> Quantizer:
    return Quantizer.affine([-3.0] * channels, [3.0] * channels, bits=bits)


def codebook(channels: int, bits: int, rng: Any) -> Quantizer:
    return Quantizer.codebook(np.sort(rng.normal(size=(channels, 2**bits)).astype(np.float32)))


def trellis(channels: int, bits: int, rng: Any) -> Quantizer:
    return Quantizer.trellis(np.sort(rng.normal(size=(channels, 2 ** (bits + 1))).astype(np.float32)))


KINDS = {"affine": affine, "codebook": codebook, "trellis": trellis}
CONTENDERS = [f"{kind}, {bits} bits" for bits in (8, 6, 4) for kind in KINDS] + [
    "transform, 4 bits",
    "transform, 3 bits",
]


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    parent = request.config.getoption("--folder") or tmp_path_factory.mktemp("quantizers")
    folder = parent / f"latentq-bench-{os.getpid()}-quantizers"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@functools.cache
def prepared(contender: str, shape: str, folder: Path) -> LatentLoader:
    """The contender's loader, after four epochs. Values of its first batch were checked."""
    samples, latent = SHAPES[shape]
    kind, bits = contender.split(", ")
    rng = np.random.default_rng(0)
    elements, number = int(np.prod(latent)), int(bits.removesuffix(" bits"))
    if kind == "transform":
        noise = (rng.normal(size=(1024, *latent)) * np.geomspace(2, 0.2, latent[0]).reshape(-1, 1, 1)).astype(
            np.float32
        )
        quantizer: Any = Transform.calibrate(noise, bytes=elements * number // 8)
        codes = np.resize(quantizer.encode(noise), (samples, elements * number // 8))
    else:
        quantizer = KINDS[kind](latent[0], number, rng)
        codes = rng.integers(0, 256, (samples, quantizer.packed_bytes(elements)), np.uint8)
    is_whole = number == 8  # a byte per code, stored in the shape of the latent
    encoding = f"ndarray:uint8:{','.join(map(str, latent if is_whole else codes.shape[1:]))}"
    path = folder / f"{shape}-{contender}"
    with mds.Writer(path, {"latent": encoding, "label": "int"}) as writer:
        stored = codes.reshape(samples, *latent) if is_whole else codes
        writer.write_batch({"latent": stored, "label": np.arange(samples)})
    columns = {
        "latent": {"from": "latent", "encoding": encoding, "shape": list(latent)},
        "label": {"from": "label", "encoding": "int"},
    }
    recipe = Recipe.from_dict({"name": "bench", "columns": columns})
    loader = LatentDataset(path, recipe=recipe, quantizer=quantizer).loader(BATCH, shuffle=True)
    batch = next(iter(loader))
    expected = quantizer.dequantize_packed(codes[batch["label"].numpy()], (BATCH, *latent))
    assert torch.equal(batch["latent"], torch.from_numpy(expected))
    for _ in range(4):
        run(loader)
    return loader


def run(loader: LatentLoader) -> None:
    for _batch in loader:
        pass


def one_epoch(contender: str, shape: str) -> Callable[[Path], None]:
    return lambda folder: run(prepared(contender, shape, folder))


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("shape", SHAPES)
def bench_epoch_of_quantizer(turns, folder, shape, contender):
    samples, latent = SHAPES[shape]
    turns(
        {name: one_epoch(name, shape) for name in CONTENDERS}, folder, rounds=ROUNDS, items=samples, unit="samples",
        group=f"shuffled epochs, warm, {shape} {latent}", reference="affine, 8 bits",
    )  # fmt: skip
