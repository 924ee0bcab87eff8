"""Two datasets of the same bytes for `bench_loader.py`: all latents (4, 64, 64), or in buckets of aspect ratios."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentq import Card, LatentDataset, Recipe, mds
from latentq.benchmark.loading import HIGH, LOW, QUANTIZER
from latentq.format.card import CARD
from latentq.format.facts import AutoencoderFacts, LatentFacts, SampleCounts, SourceFacts
from latentq.format.normalization import Normalization

UNIT = 4096
FACTOR = 8
BATCH = 64
SHAPE = (4, 64, 64)  # of images of 512 x 512
BUCKETS = Recipe.from_dict(
    {
        "name": "bench",
        "columns": {"latent": {"from": "latent"}, "label": {"from": "label", "encoding": "int"}},
        "buckets": {"set": "nemo", "area": (FACTOR * SHAPE[1]) ** 2, "multiple": FACTOR},
    }
)
SHAPES = [(SHAPE[0], height // FACTOR, width // FACTOR) for height, width in BUCKETS.bucket_sizes()]


def write_square(path: Path, nbytes: int) -> None:
    """Write latents of one shape, in units."""
    _write(path, nbytes, None)


def write_buckets(path: Path, nbytes: int) -> None:
    """Write the same number of bytes in buckets, each with the same number of samples."""
    _write(path, nbytes, BUCKETS)


def _write(path: Path, nbytes: int, recipe: Recipe | None) -> None:
    shapes = [SHAPE] if recipe is None else SHAPES
    samples = nbytes // int(np.mean([np.prod(shape) for shape in shapes]))
    rng = np.random.default_rng(0)
    counts, label = np.zeros(len(shapes), int), 0
    for number, start in enumerate(range(0, samples, UNIT)):
        in_unit = np.full(len(shapes), min(UNIT, samples - start) // len(shapes))
        in_unit[: min(UNIT, samples - start) % len(shapes)] += 1
        path.mkdir(parents=True, exist_ok=True)
        with mds.Writer(path / f"{number:05}", _columns(shapes[0]), sync=False) as writer:
            for bucket, (shape, count) in enumerate(zip(shapes, in_unit.tolist(), strict=True)):
                if recipe is not None:
                    writer.begin_group(f"{bucket:03}", _columns(shape))
                codes = rng.integers(0, 256, (count, *shape), np.uint8)
                writer.write_batch({"latent": codes, "label": np.arange(label, label + count)})
                label += count
        counts += in_unit
    mds.merge(path)
    if recipe is not None:
        card = Card(
            SourceFacts("folder", samples, "0" * 64),
            recipe,
            AutoencoderFacts("none", "None", "", Normalization(), (-1.0, 1.0)),
            _columns(shapes[0]),
            {"latent": LatentFacts(shapes[0], QUANTIZER, shapes=tuple(shapes))},
            SampleCounts(samples, 0, buckets=tuple(counts.tolist())),
        )
        (path / CARD).write_bytes(card.to_toml())


def _columns(shape: tuple[int, ...]) -> dict[str, str]:
    return {"latent": f"ndarray:uint8:{','.join(map(str, shape))}", "label": "int"}


def loader_of(path: Path, *, resident: bool, dtype: torch.dtype = torch.float32) -> Callable[[], Iterable[Any]]:
    """A loader of a dataset, checked: every sample comes once, with its values."""
    given: dict[str, Any] = {} if (path / CARD).exists() else {"quantizer": QUANTIZER}
    dataset = LatentDataset(path, dtype=dtype, **given)
    source = dataset.to_device("cpu") if resident else dataset
    loader = source.loader(BATCH, shuffle=True)
    seen: list[int] = []
    reader = mds.Reader(path)
    for batch in loader:
        index = int(batch["label"][0])
        expected = torch.from_numpy(reader[index]["latent"] * ((HIGH - LOW) / 255) + LOW)
        torch.testing.assert_close(batch["latent"][0].double(), expected, atol=0.05, rtol=0)
        seen += batch["label"].tolist()
    assert sorted(seen) == list(range(len(dataset)))
    return lambda: loader
