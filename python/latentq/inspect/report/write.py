"""Writes a report on a dataset, or on two next to each other, as one HTML page that needs no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentq.format.recipe import Recipe
from latentq.inspect.report.gather import Gatherer
from latentq.inspect.report.spread import spread
from latentq.run.opened import OpenedDataset
from latentq.store.local import replace_file
from latentq.system.extras import needed_for

if TYPE_CHECKING:
    from latentq.sources import Source

__all__ = ["report"]

SAMPLES = 12
"""The number of samples that are shown by default."""


def report(
    path: str | os.PathLike[str] | OpenedDataset,
    out: str | os.PathLike[str] = "report.html",
    *,
    source: str | os.PathLike[str] | Source | None = None,
    compare: str | os.PathLike[str] | OpenedDataset | None = None,
    recipe: str | os.PathLike[str] | Recipe | None = None,
    column: str | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    samples: int = SAMPLES,
    progress: TextIO | None = None,
) -> None:
    """Writes a report on a dataset: one HTML page with pictures, distributions, errors, counts and sizes.

    The page loads nothing. It has samples next to their originals, a histogram of each channel with the quantizer's
    range, SQNR, PSNR and clip rate of each channel, the samples of largest error, buckets, classes, lengths of
    captions, rejects by reason, the size in several forms, the normalization and the code that loads the dataset.

    Args:
        path: The dataset's folder, or a dataset that was opened, all of whose files are there.
        out: The page to write; an existing file is replaced.
        source: The dataset's source. Originals are shown, and at most 64 images are encoded again to measure errors.
            Without a source, errors are estimated from the widths of the quantizer's steps.
        compare: Another dataset, to show next to this one. Samples are matched by their keys.
        recipe: For a folder without a card: the recipe that made it, its name or its file.
        column: The column of latents, moments or tokens to decode; the first by default.
        autoencoder: The autoencoder's name or folder, if its name in the card is not enough.
        device: The device to compute on.
        samples: The number of samples to show.
        progress: The stream for progress, or None.

    Raises:
        LatentqError: A dataset, the autoencoder that was named, or an original cannot be read; or jinja2 or pygal,
            the packages of the extra `report`, are missing.
        OSError: A file cannot be read or written.
        ValueError: `samples` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}")
    with needed_for("latentq.report"):
        import jinja2  # noqa: F401
        import pygal  # noqa: F401
    from latentq.inspect.report.page import render

    options: Any = {"source": source, "autoencoder": autoencoder, "device": device, "progress": progress}
    first = Gatherer(_opened(path), recipe=recipe, column=column, **options)
    shown = spread(samples, first.facts.samples)
    datasets = [first.gather(shown.tolist())]
    if compare is not None:
        other = Gatherer(_opened(compare), recipe=recipe, needs_source=False, **options)
        keys = first.keys(shown)
        matched = other.find([keys[index] for index in shown.tolist()]) if keys else []
        datasets.append(other.gather(matched or spread(samples, other.facts.samples).tolist()))
    replace_file(Path(out), render(datasets).encode())


def _opened(dataset: str | os.PathLike[str] | OpenedDataset) -> OpenedDataset:
    if isinstance(dataset, OpenedDataset):
        return dataset
    return OpenedDataset(os.fspath(dataset), Path(dataset), None, None)
