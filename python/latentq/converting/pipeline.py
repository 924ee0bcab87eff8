"""Converts between latent datasets and other tools' layouts: `latentq.convert`."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Protocol, TextIO, cast

import numpy as np

from latentq._core import FormatError, LatentqError
from latentq.converting import imagenet_3gb, imagenet_int8, vqgan
from latentq.converting.foreign import ForeignDataset, batches
from latentq.format.card import CARD, Card
from latentq.format.files import LIST
from latentq.format.options import ENCODED
from latentq.quantizer import Quantizer
from latentq.run.finish import finish
from latentq.run.listing import source_facts
from latentq.run.sample_list import SampleList, UnitEntry, cut_into_units, list_parts, write_list
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import LatentSums, UnitFacts, card_hash
from latentq.store.local import check_regular, make_folder, published_whole
from latentq.system.progress import Progress

__all__ = ["convert", "open_foreign"]

_SLOW_TO_OPEN = 1 << 28  # bytes
_ZIP = b"PK\x03\x04"


class _ForeignLayout(Protocol):
    """A module that reads and writes one layout."""

    def read(self, path: Path, progress: TextIO | None) -> ForeignDataset: ...

    def write(self, dataset: Path, out: Path, progress: TextIO | None) -> int: ...


_BY_SUFFIX = cast(
    "dict[str, _ForeignLayout]",
    {imagenet_3gb.SUFFIX: imagenet_3gb, vqgan.SUFFIX: vqgan, "": imagenet_int8, ".int8": imagenet_int8},
)


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str], *, progress: TextIO | None = None) -> int:
    """Converts another tool's latents to a latent dataset, or a latent dataset to another tool's layout.

    Codes are copied unchanged; nothing is quantized again.

    Args:
        source: A latent dataset, imagenet_3gb's torch file, VQGAN's TSV of tokens, or a folder as imagenet.int8's
            script writes it; its content decides which.
        out: The output, which must not exist. A latent dataset becomes a torch file (`.pt`), a TSV (`.tsv`) or, with
            no suffix or `.int8`, imagenet.int8's folder; anything else becomes a latent dataset. It is published
            atomically.
        progress: The stream for progress, or None.

    Returns:
        The number of samples converted.

    Raises:
        FileExistsError: `out` exists.
        FormatError: The source is of no known layout, or violates its layout.
        MismatchError: The dataset's codes have another meaning than the layout's.
        OSError: A file cannot be read or written.
        ValueError: The source is a latent dataset, and no layout has the suffix of `out`.
    """
    source, out = Path(source), Path(out)
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", str(out.parent))
    with published_whole(out) as temporary:
        if progress is not None and source.is_file() and source.stat().st_size > _SLOW_TO_OPEN:
            progress.write(f"reading {source}\n")
        foreign = open_foreign(source, progress=progress)
        if foreign is None:
            return _layout_of(out).write(source, temporary, progress)
        if out.suffix in (imagenet_3gb.SUFFIX, vqgan.SUFFIX):
            raise LatentqError(f"{source} is a {foreign.kind}: convert it to a latent dataset first, and that to {out}")
        return _write_dataset(foreign, temporary, progress)


def open_foreign(path: str | os.PathLike[str], *, progress: TextIO | None = None) -> ForeignDataset | None:
    """Opens another tool's file or folder, recognized by its content; returns None for a latent dataset.

    Args:
        path: The file or folder.
        progress: The stream for progress, or None.

    Raises:
        FormatError: It is of no known layout, or violates its layout.
        OSError: It does not exist or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return None if (path / CARD).exists() else imagenet_int8.read(path, progress)
    check_regular(path)
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if not start:
        raise FormatError(f"{path}: the file is empty")
    is_torch_file = start == _ZIP or path.suffix == imagenet_3gb.SUFFIX
    return cast("_ForeignLayout", imagenet_3gb if is_torch_file else vqgan).read(path, progress)


def _layout_of(out: Path) -> _ForeignLayout:
    """Returns the layout that an output's name decides. Raises ValueError if its suffix is of no layout."""
    layout = _BY_SUFFIX.get(out.suffix)
    if layout is None:
        raise ValueError(
            f"{out}: no layout has the suffix {out.suffix}: name a .pt (imagenet_3gb's torch file), a .tsv (VQGAN's "
            "tokens), or a folder without a suffix or with .int8 (imagenet.int8's shards)"
        )
    return layout


def _write_dataset(foreign: ForeignDataset, out: Path, progress: TextIO | None) -> int:
    """Writes a finished dataset, unit by unit, as `latentq.encode` does."""
    size = foreign.recipe.unit_size
    make_folder(out)
    write_list(out / LIST, list_parts((unit, 0) for unit in cut_into_units(foreign.samples, size)))
    samples = SampleList(out / LIST)
    card = foreign.planned_card(source_facts(foreign.kind, samples, size))
    with Progress(len(foreign), "convert", progress) as bar:
        for unit in samples.units():
            _write_converted_unit(out, card, foreign, samples, unit, bar)
    finish(out, card, progress)
    return len(foreign)


def _write_converted_unit(
    out: Path, card: Card, foreign: ForeignDataset, samples: SampleList, unit: UnitEntry, bar: Progress
) -> None:
    sums = {name: LatentSums.empty(latent.quantizer) for name, latent in card.latents.items()}
    facts = UnitFacts(card=card_hash(card.to_toml()), listing=samples.unit_sha256(unit), latents=sums)

    def fill(writer: UnitWriter) -> None:
        for batch in batches(unit.indices):
            columns = _columns(card, foreign, batch)
            for name, total in facts.latents.items():
                quantizer = card.latents[name].quantizer
                assert isinstance(quantizer, Quantizer)  # a layout's quantizer is uniform
                clipped = np.zeros(quantizer.channels, np.int64)
                total.add(LatentSums(clipped, quantizer.histogram(columns[name])))
            writer.write(columns, len(batch))

    publish_unit(out / unit.name, card.columns, facts, bar, fill)


def _columns(card: Card, foreign: ForeignDataset, batch: range) -> dict[str, Any]:
    """Reads the stored values of a batch, by column."""
    columns: dict[str, Any] = {}
    for name, encoding in card.columns.items():
        content = card.recipe.columns[name].content
        if content in ENCODED:
            columns[name] = foreign.read_stored(batch)
        else:
            values = [getattr(foreign.samples[index], content) for index in batch]
            columns[name] = list(map(str, values)) if encoding == "str" else values
    return columns
