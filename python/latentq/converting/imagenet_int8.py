"""The folder that imagenet.int8's script writes: MDS columns vae_output (raw bytes), label and label_as_text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from numpy.typing import NDArray

from latentq import mds
from latentq._core import FormatError, MismatchError
from latentq.converting.foreign import (
    KNOWN_LAYOUTS,
    ForeignAutoencoder,
    ForeignDataset,
    batches,
    matching_column,
    open_columns,
)
from latentq.format.card import CARD
from latentq.format.files import INDEX
from latentq.format.normalization import Normalization
from latentq.format.recipe import Recipe
from latentq.sources import Sample
from latentq.system.progress import BriefProgress, Progress
from latentq.system.text import one_line

RECIPE = "imagenet.int8"
_AUTOENCODER = ForeignAutoencoder(
    "stabilityai/sdxl-vae", "AutoencoderKL", Normalization(0.13025), (-1.0, 1.0), (4, 32, 32)
)


def read(path: Path, progress: TextIO | None) -> ForeignDataset:
    """Opens imagenet.int8's folder. Its samples have no names: their keys are their indices.

    Args:
        path: The folder.
        progress: The stream for progress, or None.

    Raises:
        FormatError: The shards are broken, or a label is not a number.
        MismatchError: There are no shards, or they have other columns.
        OSError: A file cannot be read.
    """
    import torch

    from latentq.reading.dataset import LatentDataset

    if not (path / INDEX).exists():
        raise MismatchError(f"{path} holds no dataset: it has neither {CARD} nor {INDEX}. {KNOWN_LAYOUTS}")
    try:
        dataset = LatentDataset(path, columns=["latent"], dtype=torch.uint8, recipe=RECIPE)
        classes = LatentDataset(path, columns=["label", "label_text"], recipe=RECIPE)
    except MismatchError as error:
        problem = f"{path} has no {CARD}, and is no folder of imagenet.int8 either"
        raise MismatchError(f"{problem}: {one_line(error)}. {KNOWN_LAYOUTS}") from None
    samples: list[Sample] = []
    with BriefProgress(len(classes), "read", progress, noun="sample") as bar:
        for batch in batches(range(len(classes))):
            labels, names = classes.batch(batch).values()
            for index, label, name in zip(batch, labels.tolist(), names, strict=True):
                samples.append(Sample(str(index), None, label, name))
            bar.update(len(batch))

    def read_stored(indices: Sequence[int]) -> NDArray[Any]:
        try:
            codes: NDArray[Any] = dataset.batch(indices)["latent"].numpy()
        except ValueError as error:
            raise FormatError(str(error)) from None
        return codes

    return ForeignDataset("imagenet.int8 folder", Recipe.load(RECIPE), _AUTOENCODER, samples, read_stored)


def write(dataset: Path, out: Path, progress: TextIO | None) -> int:
    """Writes imagenet.int8's folder from a dataset.

    Args:
        dataset: A dataset whose codes mean the same as this layout's.
        out: The folder, which must not exist.
        progress: The stream for progress, or None.

    Returns:
        The number of samples written.

    Raises:
        LatentqError: The dataset has no labels or no class names.
        MismatchError: Its codes have another meaning.
    """
    recipe = Recipe.load(RECIPE)
    opened = open_columns(dataset, matching_column(dataset, recipe), RECIPE, ["label", "label_text"])
    encodings = {name: column.encoding for name, column in recipe.columns.items()}
    with mds.Writer(out, encodings) as writer, Progress(len(opened), "convert", progress) as bar:
        for batch in batches(range(len(opened))):
            codes, labels, names = opened.batch(batch).values()
            columns = (codes.numpy(), list(map(str, labels.tolist())), names)
            writer.write_batch(dict(zip(recipe.columns, columns, strict=True)))
            bar.update(len(batch))
    return len(opened)
