"""imagenet_3gb's torch file: a list of {'id', 'latent', 'label'}, DC-AE latents as uint8 codes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.foreign import (
    KNOWN_LAYOUTS,
    ForeignAutoencoder,
    ForeignDataset,
    batches,
    column_of,
    matching_column,
    open_columns,
)
from latentq.converting.torch_writer import TorchWriter
from latentq.format.card import Card
from latentq.format.normalization import Normalization
from latentq.format.recipe import Recipe
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.sources import Sample
from latentq.system.progress import BriefProgress, Progress

RECIPE = "imagenet-3gb"
SUFFIX = ".pt"
_SHAPE = (32, 8, 8)
_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")
_AUTOENCODER = ForeignAutoencoder(
    "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "AutoencoderDC", Normalization(0.41407), (-1.0, 1.0), _SHAPE
)


def read(path: Path, progress: TextIO | None) -> ForeignDataset:
    """Opens imagenet_3gb's torch file. Nothing in it is executed, and latents stay on disk until they are requested.

    Args:
        path: The file.
        progress: The stream for progress, or None.

    Raises:
        FormatError: It is truncated or of another kind; the message names the file and the first sample that is wrong.
        OSError: It cannot be read.
    """
    try:
        file = TorchFile(path)
    except FormatError as error:
        raise FormatError(f"{error}. {KNOWN_LAYOUTS}") from None
    items = file.load()
    if not isinstance(items, list) or not items:
        problem = "no samples" if items == [] else "no list of samples"
        raise FormatError(f"{path}: holds {problem}. {KNOWN_LAYOUTS}")
    samples = []
    with BriefProgress(len(items), "read", progress, noun="sample") as bar:
        for index, item in enumerate(items):
            try:
                key, latent, label = _fields(file, item)
            except ValueError as error:
                raise FormatError(f"{path}: sample {index}: {error}") from None
            samples.append(Sample(key=str(key), bytes=None, label=label))
            items[index] = latent
            bar.update(1)

    def read_stored(indices: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([file.read(items[index]) for index in indices])

    return ForeignDataset("torch file", Recipe.load(RECIPE), _AUTOENCODER, samples, read_stored)


def _fields(file: TorchFile, item: object) -> tuple[int, TensorRecord, int]:
    """Returns a sample's id, latent and label, or raises ValueError."""
    if not isinstance(item, dict) or not {"id", "latent", "label"} <= item.keys():
        found = ", ".join(map(str, item)) if isinstance(item, dict) else _type_of(item)
        raise ValueError(f"must be a dict of id, latent and label, not {found or 'empty'}")
    latent = item["latent"]
    if not isinstance(latent, TensorRecord) or (latent.dtype, latent.shape) != ("uint8", _SHAPE):
        raise ValueError(f"its latent must be a uint8 tensor {_SHAPE}, not {_type_of(latent)}")
    integers = []
    for name in ("id", "label"):
        value = item[name]
        if not isinstance(value, TensorRecord) or value.shape != () or value.dtype not in _INTEGERS:
            raise ValueError(f"its {name} must be an integer as a tensor (), not {_type_of(value)}")
        integers.append(int(file.read(value)))
    return integers[0], latent, integers[1]


def _type_of(value: object) -> str:
    if isinstance(value, TensorRecord):
        return f"a {value.dtype} tensor {value.shape}"
    return f"of type {type(value).__name__}"


def write(dataset: Path, out: Path, progress: TextIO | None) -> int:
    """Writes imagenet_3gb's torch file from a dataset. All latents are views of one storage, ids and labels of another.

    An id is the sample's key if all keys are integers, as in a converted dataset; otherwise it is the sample's index.

    Args:
        dataset: A dataset whose codes mean the same as this layout's.
        out: The file, which must not exist.
        progress: The stream for progress, or None.

    Returns:
        The number of samples written.

    Raises:
        LatentqError: The dataset has no labels.
        MismatchError: Its codes have another meaning.
    """
    contents = ["label", "key"] if column_of(Card.load(dataset), "key") else ["label"]
    opened = open_columns(dataset, matching_column(dataset, Recipe.load(RECIPE)), RECIPE, contents)
    count = len(opened)
    ids, labels = np.empty(count, np.int64), np.empty(count, np.int64)
    keys_are_ids = "key" in contents
    with TorchWriter(out) as file:
        with file.storage("uint8", count * prod(_SHAPE)) as latents, Progress(count, "convert", progress) as bar:
            for batch in batches(range(count)):
                rows = slice(batch.start, batch.stop)
                codes, classes, *keys = opened.batch(batch).values()
                labels[rows] = classes.numpy()
                latents.write(codes.numpy().data)
                keys_are_ids = keys_are_ids and all(map(_is_integer, keys[0]))
                if keys_are_ids:
                    ids[rows] = list(map(int, keys[0]))
                bar.update(len(batch))
        with file.storage("int64", 2 * count) as integers:
            integers.write((ids if keys_are_ids else np.arange(count)).data)
            integers.write(labels.data)
        size = prod(_SHAPE)
        file.write_list(
            {"id": (1, i, ()), "latent": (0, i * size, _SHAPE), "label": (1, count + i, ())} for i in range(count)
        )
    return count


def _is_integer(key: str) -> bool:
    return key.removeprefix("-").isdecimal() and len(key) < 19 and str(int(key)) == key
