"""imagenet_3gb's torch file: a list of {'id', 'latent', 'label'}, DC-AE latents as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.converting.foreign import Foreign, Maker, batches, column_of, open_columns, same_codes
from latentq.converting.torch_file import Tensor, TorchFile, TorchWriter
from latentq.format.card import Card
from latentq.format.recipe import Recipe
from latentq.sources import Listing, Sample
from latentq.system.progress import Progress

RECIPE = "imagenet-3gb"


SUFFIX = ".pt"


_SHAPE = (32, 8, 8)


_MAKER = Maker("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "AutoencoderDC", 0.41407, (-1.0, 1.0), _SHAPE)


def read(path: Path) -> Foreign:
    """Opens such a file. Nothing in it is executed, and latents stay on the disk until they are asked for.

    Raises:
        FormatError: It is cut short or something else; the message names the file and the first sample that is wrong.
        OSError: It cannot be read.
    """
    file = TorchFile(path)
    items = file.load()
    if not isinstance(items, list) or not items:
        raise FormatError(f"{path}: holds {'no samples' if items == [] else 'no list of samples'}")
    samples = []
    for number, item in enumerate(items):
        try:
            key, latent, label = _fields(file, item)
        except ValueError as error:
            raise FormatError(f"{path}: sample {number}: {error}") from None
        samples.append(Sample(key=str(key), bytes=None, label=label))
        items[number] = latent

    def stored(numbers: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([file.read(items[number]) for number in numbers])

    return Foreign("torch file", Recipe.load(RECIPE), _MAKER, Listing(tuple(samples), ("label",)), stored)


def _fields(file: TorchFile, item: Any) -> tuple[int, Tensor, int]:
    """A sample's id, latent and label. Raises ValueError."""
    if not isinstance(item, dict) or not {"id", "latent", "label"} <= item.keys():
        held = ", ".join(map(str, item)) if isinstance(item, dict) else _told(item)
        raise ValueError(f"must be a dict of id, latent and label, not {held or 'empty'}")
    latent = item["latent"]
    if not isinstance(latent, Tensor) or (latent.dtype, latent.shape) != ("uint8", _SHAPE):
        raise ValueError(f"its latent must be a uint8 tensor {_SHAPE}, not {_told(latent)}")
    numbers = []
    for name in ("id", "label"):
        value = item[name]
        if not isinstance(value, Tensor) or value.shape != () or np.dtype(value.dtype).kind not in "iu":
            raise ValueError(f"its {name} must be a whole number as a tensor (), not {_told(value)}")
        numbers.append(int(file.read(value)))
    return numbers[0], latent, numbers[1]


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {value.shape}"
    return f"of type {type(value).__name__}"


def write(dataset: Path, out: Path, progress: TextIO | None) -> int:
    """Writes such a file of a dataset, as it reads it. All latents are views of one storage, ids and labels of another.

    An id is the sample's key where all keys are whole numbers, as in a dataset that was converted, else its number.

    Args:
        dataset: A dataset whose codes mean what this layout's do.
        out: The file, not there yet.
        progress: Where progress is told.

    Returns:
        How many samples were written.

    Raises:
        LatentqError: The dataset has no labels, or its codes mean something else (`MismatchError`).
    """
    contents = ["label", "key"] if column_of(Card.load(dataset), "key") else ["label"]
    opened = open_columns(dataset, same_codes(dataset, Recipe.load(RECIPE)), RECIPE, contents)
    count = len(opened)
    ids, labels = np.empty(count, np.int64), np.empty(count, np.int64)
    whole = "key" in contents
    with TorchWriter(out) as file:
        with file.storage("uint8", count * prod(_SHAPE)) as latents, Progress(count, "convert", progress) as bar:
            for numbers in batches(range(count)):
                here = slice(numbers.start, numbers.stop)
                codes, classes, *keys = opened.batch(numbers).values()
                labels[here] = classes.numpy()
                latents.write(codes.numpy().data)
                whole = whole and all(map(_is_whole, keys[0]))
                if whole:
                    ids[here] = list(map(int, keys[0]))
                bar.update(len(numbers))
        with file.storage("int64", 2 * count) as wholes:
            wholes.write((ids if whole else np.arange(count)).data)
            wholes.write(labels.data)
        size = prod(_SHAPE)
        file.write_list(
            {"id": (1, i, ()), "latent": (0, i * size, _SHAPE), "label": (1, count + i, ())} for i in range(count)
        )
    return count


def _is_whole(key: str) -> bool:
    return key.removeprefix("-").isdecimal() and len(key) < 19 and str(int(key)) == key
