"""Other tools' layouts: their latents become a latent dataset, and a latent dataset theirs. One file for each layout.

A layout's module has `read(path) -> Foreign` and `write(dataset, out, progress) -> samples`.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from latentq._core import FormatError, LatentqError
from latentq.converting import imagenet_3gb, imagenet_int8, vqgan
from latentq.converting.foreign import Foreign, batches
from latentq.format.card import CARD, Card
from latentq.format.options import ENCODED
from latentq.run.finish import finish
from latentq.run.listing import publish_listing
from latentq.run.unit_writer import UnitWriter, publish_unit
from latentq.run.units import LatentSums, UnitFacts, unit_names
from latentq.store.local import published_whole
from latentq.system.progress import Progress

__all__ = ["convert", "open_foreign"]


_LARGE = 1 << 28  # bytes of a file that takes long to open


_ZIP = b"PK\x03\x04"


_SUFFIXES: dict[str, Any] = {imagenet_3gb.SUFFIX: imagenet_3gb, vqgan.SUFFIX: vqgan}


def convert(source: str | os.PathLike[str], out: str | os.PathLike[str], *, progress: TextIO | None = None) -> int:
    """Converts another tool's latents to a latent dataset, or a latent dataset to another tool's layout.

    Codes are copied as they are; nothing is quantised again.

    Args:
        source: A latent dataset; or imagenet_3gb's torch file, VQGAN's TSV of tokens, or a folder as imagenet.int8's
            script writes it, told by what is in it.
        out: What is made, not there yet: of a dataset a torch file (`.pt`), a TSV (`.tsv`), or else such a folder; of
            anything else a latent dataset. It is there whole or not at all.
        progress: Where progress is told; None tells nothing.

    Returns:
        How many samples were converted.

    Raises:
        FileExistsError: There is something at `out`.
        FormatError: What the source holds breaks its layout, or has none that is known.
        MismatchError: The dataset's codes mean something else than the layout's.
        OSError: Something cannot be read or written.
    """
    source, out = Path(source), Path(out)
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", str(out.parent))
    with published_whole(out) as temporary:
        if progress is not None and source.is_file() and source.stat().st_size > _LARGE:
            progress.write(f"reading {source}\n")
        foreign = open_foreign(source)
        if foreign is None:
            samples: int = _SUFFIXES.get(out.suffix, imagenet_int8).write(source, temporary, progress)
            return samples
        if out.suffix in _SUFFIXES:
            raise LatentqError(f"{source} is a {foreign.kind}: convert it to a latent dataset first, and that to {out}")
        return _write_dataset(foreign, temporary, progress)


def open_foreign(path: str | os.PathLike[str]) -> Foreign | None:
    """Opens what another tool has written; None where it is a latent dataset. It is told by what is in it.

    Raises:
        FormatError: It is of no layout that is known, or breaks it.
        OSError: There is nothing, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return None if (path / CARD).exists() else imagenet_int8.read(path)
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if not start:
        raise FormatError(f"{path}: is empty")
    return imagenet_3gb.read(path) if start == _ZIP or path.suffix == imagenet_3gb.SUFFIX else vqgan.read(path)


def _write_dataset(foreign: Foreign, out: Path, progress: TextIO | None) -> int:
    """Makes a finished dataset of units, as `latentq.encode` does."""
    card = foreign.card
    publish_listing(out, foreign.listing)
    count, size = len(foreign.listing.samples), card.recipe.unit_size
    with Progress(count, "convert", progress) as bar:
        for place, name in enumerate(unit_names(card)):
            _write_unit(out / name, card, foreign, range(place * size, min((place + 1) * size, count)), bar)
    finish(out, card)
    return count


def _write_unit(path: Path, card: Card, foreign: Foreign, numbers: range, bar: Progress) -> None:
    facts = UnitFacts(latents={name: LatentSums.of(of.quantizer) for name, of in card.latents.items()})

    def fill(writer: UnitWriter) -> None:
        for batch in batches(numbers):
            columns: dict[str, Any] = {}
            for name, encoding in card.columns.items():
                content = card.recipe.columns[name].content
                if content in ENCODED:
                    columns[name] = foreign.stored(batch)
                else:
                    values = [getattr(foreign.listing.samples[number], content) for number in batch]
                    columns[name] = list(map(str, values)) if encoding == "str" else values
            for name, sums in facts.latents.items():
                quantizer = card.latents[name].quantizer
                clipped = np.zeros(quantizer.channels, np.int64)
                sums.add(LatentSums(clipped, quantizer.histogram(columns[name])))
            writer.write(columns, len(batch))

    publish_unit(path, card.columns, facts, bar, fill)
