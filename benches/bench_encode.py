"""Encoding into 14 buckets of aspect ratios, with encoding to squares of as many pixels.

A small `AutoencoderKL` computes on the CPU, so that everything else has a large share. Durations are CPU times of the
process, so that other work on the machine does not count, and those of buckets are scaled to the pixels of the squares:
buckets are up to 2% smaller. Both have batches of as many images.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from latentq.benchmark.turns import Measured

IMAGES = 112
SIDE = 256
BATCH = 4
# Both orientations of sides that are multiples of 16, at most 256 x 256 pixels, and a panorama.
SIZES = [
    (144, 448), (160, 400), (176, 368), (192, 336), (208, 304), (224, 288), (240, 272), (256, 256), (272, 240),
    (288, 224), (304, 208), (336, 192), (368, 176), (400, 160),
]  # fmt: skip
ROUNDS = 5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """112 JPEGs of about 500 x 375 pixels and of every aspect ratio of the buckets, and a small network."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("encode") / "photographs"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for index in range(IMAGES):
        height, width = (round(side * 1.6) for side in SIZES[index % len(SIZES)])
        coarse = Image.fromarray(numbers.integers(0, 256, (12, 16, 3), np.uint8)).resize((width, height))
        fine = numbers.normal(0, 12, (height, width, 3))
        Image.fromarray(np.clip(np.asarray(coarse) + fine, 0, 255).astype(np.uint8)).save(folder / f"{index:04}.jpg")
    torch.manual_seed(0)
    blocks = 4
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8, 16, 16, 16), norm_num_groups=4, latent_channels=4,
    )  # fmt: skip
    network.save_pretrained(folder.parent / "network")
    return folder, latentq.load_autoencoder(folder.parent / "network")


def encode(work: tuple[Path, Any], pixels: float, **options: Any) -> Measured:
    """Encodes the photographs, and returns the CPU time for as many pixels as the squares have."""
    folder, network = work
    out = folder.parent / "out"
    start = time.process_time()
    card = latentq.encode(folder, out, autoencoder=network, calibration=14, batch_size=BATCH, **options)
    seconds = time.process_time() - start
    shutil.rmtree(out)
    counts = card.counts.buckets if card.counts is not None else ()
    encoded = sum(
        count * height * width for count, (height, width) in zip(counts, card.recipe.bucket_sizes(), strict=True)
    )
    return Measured(seconds * pixels / (encoded or pixels))


SQUARES = IMAGES * SIDE * SIDE
ENCODE: dict[str, Callable[[tuple[Path, Any]], Measured]] = {
    "squares": lambda work: encode(work, SQUARES, size=SIDE),
    "14 buckets": lambda work: encode(work, SQUARES, buckets=SIZES),
}


@pytest.mark.parametrize("contender", ENCODE)
def bench_encode(turns, work, contender):
    group = f"encoding {IMAGES} photographs, a small AutoencoderKL, CPU time"
    turns(ENCODE, work, group=group, reference="squares", rounds=ROUNDS, items=IMAGES, unit="images")
