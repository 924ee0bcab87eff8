"""imagenet_3gb's torch file: a list of {'id', 'latent', 'label'}, DC-AE latents as bytes."""

from __future__ import annotations

import gc
import pickle
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError
from latentq.card import Card
from latentq.convert.common import Foreign, Maker, batches, column_of, open_columns, same_codes
from latentq.progress import Progress
from latentq.recipe import Recipe
from latentq.sources import Listing, Sample

RECIPE = "imagenet-3gb"
SUFFIX = ".pt"
_SHAPE = (32, 8, 8)
_MAKER = Maker("mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers", "AutoencoderDC", 0.41407, (-1.0, 1.0), _SHAPE)


def read(path: Path) -> Foreign:
    """Opens such a file, memory-mapped; nothing in it is executed.

    Raises:
        FormatError: It is cut short or something else; the message names the file and the first sample that is wrong.
        OSError: It cannot be read.
    """
    items = _load(path)
    if not isinstance(items, list):
        raise FormatError(f"{path}: holds a {type(items).__name__}, not a list of samples")
    samples = []
    for number, item in enumerate(items):
        try:
            key, latent, label = _fields(item)
        except ValueError as error:
            raise FormatError(f"{path}: sample {number}: {error}") from None
        samples.append(Sample(key=str(key), bytes=None, label=label))
        items[number] = latent  # the rest of a sample takes as much memory as its latent
    gc.collect()

    def stored(numbers: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([items[number].numpy() for number in numbers])

    return Foreign("torch file", Recipe.load(RECIPE), _MAKER, Listing(tuple(samples), ("label",)), stored)


def _load(path: Path) -> Any:
    import torch

    with path.open("rb"):  # torch's own message for a file that cannot be read is another
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise FormatError(f"{path}: holds objects that are no tensors, and is not loaded") from None
    except (RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise FormatError(f"{path}: not a torch file, or cut short: {reason}") from None


def _fields(item: Any) -> tuple[int, Any, int]:
    """A sample's id, latent and label. Raises ValueError."""
    import torch

    if not isinstance(item, dict) or not {"id", "latent", "label"} <= item.keys():
        held = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
        raise ValueError(f"must be a dict of id, latent and label, not {held}")
    latent = item["latent"]
    if not isinstance(latent, torch.Tensor) or latent.dtype != torch.uint8 or latent.shape != _SHAPE:
        raise ValueError(f"its latent must be a uint8 tensor {_SHAPE}, not {_told(latent)}")
    numbers = []
    for name in ("id", "label"):
        value = item[name]
        if not isinstance(value, torch.Tensor) or value.ndim or not _whole(value.dtype):
            raise ValueError(f"its {name} must be a whole number as a tensor (), not {_told(value)}")
        numbers.append(int(value))
    return numbers[0], latent, numbers[1]


def _whole(dtype: Any) -> bool:
    import torch

    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is None:
        return type(value).__name__
    return f"a {str(value.dtype).removeprefix('torch.')} tensor {tuple(shape)}"


def write(dataset: Path, out: Path, progress: TextIO | None) -> int:
    """Writes such a file of a dataset. Its latents share one storage and are views of it, as ids and labels are.

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
    import torch

    contents = ["label", "key"] if column_of(Card.load(dataset), "key") else ["label"]
    opened = open_columns(dataset, same_codes(dataset, Recipe.load(RECIPE)), RECIPE, contents)
    count = len(opened)
    labels, ids = torch.empty(count, dtype=torch.int64), torch.arange(count)
    whole = "key" in contents
    # The latents go through a file, since torch.save wants all of them at once: mapped, they need no memory.
    raw = out.with_name(f"{out.name}.raw")
    try:
        with raw.open("xb") as file, Progress(count, "convert", progress) as bar:
            for numbers in batches(range(count)):
                here = slice(numbers.start, numbers.stop)
                codes, labels[here], *keys = opened.batch(numbers).values()
                codes.numpy().tofile(file)
                whole = whole and all(map(_is_whole, keys[0]))
                if whole:
                    ids[here] = torch.tensor(list(map(int, keys[0])))
                bar.update(len(numbers))
        ids = ids if whole else torch.arange(count)
        latents = torch.from_file(str(raw), size=count * prod(_SHAPE), dtype=torch.uint8).view(count, *_SHAPE)
        columns = zip(ids.unbind(), latents.unbind(), labels.unbind(), strict=True)
        torch.save([{"id": key, "latent": latent, "label": label} for key, latent, label in columns], out)
    finally:
        raw.unlink(missing_ok=True)
    return count


def _is_whole(key: str) -> bool:
    return key.removeprefix("-").isdecimal() and len(key) < 19 and str(int(key)) == key
