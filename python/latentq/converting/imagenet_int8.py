"""The folder that imagenet.int8's script writes: MDS columns vae_output (raw bytes), label and label_as_text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from numpy.typing import NDArray

from latentq import mds
from latentq._core import FormatError, MismatchError
from latentq.converting.foreign import Foreign, Maker, batches, open_columns, same_codes
from latentq.format.card import CARD
from latentq.format.recipe import Recipe
from latentq.sources import Listing, Sample
from latentq.system.progress import Progress

RECIPE = "imagenet.int8"


_MAKER = Maker("stabilityai/sdxl-vae", "AutoencoderKL", 0.13025, (-1.0, 1.0), (4, 32, 32))


def read(path: Path) -> Foreign:
    """Opens such a folder. Its samples have no names: their keys are their numbers.

    Raises:
        FormatError: The shards are broken, or a label is no number.
        MismatchError: The shards have other columns.
        OSError: There is no index.json in it, or it cannot be read.
    """
    import torch

    from latentq.reading.dataset import LatentDataset

    try:
        dataset = LatentDataset(path, columns=["latent"], dtype=torch.uint8, recipe=RECIPE)
        classes = LatentDataset(path, columns=["label", "label_text"], recipe=RECIPE)
    except MismatchError as error:
        raise MismatchError(f"{path} has no {CARD}, and is no folder of imagenet.int8 either: {error}") from None
    samples: list[Sample] = []
    for numbers in batches(range(len(classes))):
        labels, names = classes.batch(numbers).values()
        for number, label, name in zip(numbers, labels.tolist(), names, strict=True):
            samples.append(Sample(str(number), None, label, name))

    def stored(numbers: Sequence[int]) -> NDArray[Any]:
        try:
            codes: NDArray[Any] = dataset.batch(numbers)["latent"].numpy()
        except ValueError as error:
            raise FormatError(str(error)) from None
        return codes

    listing = Listing(tuple(samples), ("label", "label_text"))
    return Foreign("imagenet.int8 folder", Recipe.load(RECIPE), _MAKER, listing, stored)


def write(dataset: Path, out: Path, progress: TextIO | None) -> int:
    """Writes such a folder of a dataset.

    Args:
        dataset: A dataset whose codes mean what this layout's do.
        out: The folder, not there yet.
        progress: Where progress is told.

    Returns:
        How many samples were written.

    Raises:
        LatentqError: The dataset has no labels or no names of classes, or its codes mean something else
            (`MismatchError`).
    """
    recipe = Recipe.load(RECIPE)
    opened = open_columns(dataset, same_codes(dataset, recipe), RECIPE, ["label", "label_text"])
    encodings = {name: column.encoding for name, column in recipe.columns.items()}
    with mds.Writer(out, encodings) as writer, Progress(len(opened), "convert", progress) as bar:
        for numbers in batches(range(len(opened))):
            codes, labels, names = opened.batch(numbers).values()
            columns = (codes.numpy(), list(map(str, labels.tolist())), names)
            writer.write_batch(dict(zip(recipe.columns, columns, strict=True)))
            bar.update(len(numbers))
    return len(opened)
