"""micro_diffusion's MDS folder of scaled latents at 256 and 512, captions and their embeddings. Read only.

From SonyResearch/micro_diffusion, micro_diffusion/datasets/prepare/*/precompute.py and latents_loader.py. Columns:
`caption` (str), and as bytes of float16 `caption_latents` (77, 1024), `latents_256` (4, 32, 32), `latents_512`
(4, 64, 64), samples of SDXL's posterior times 0.13025.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq import mds
from latentq._core import FormatError, MismatchError
from latentq.converting.incoming import Arrays, ForeignTextEncoder, Incoming
from latentq.converting.known import autoencoder_of
from latentq.converting.options import ReadOptions
from latentq.format.files import INDEX
from latentq.format.options import Column
from latentq.format.recipe import Recipe
from latentq.sources import Sample

NAME = "micro-diffusion"
TITLE = "micro_diffusion's MDS folder (caption, caption_latents, latents_256, latents_512)"
_LISTED = 1024  # captions that are read at once
_SIZES = {"latents_256": 256, "latents_512": 512}


def recognizes(path: Path) -> bool:
    """True if a folder is an MDS with latents and embeddings as micro_diffusion names them."""
    if not path.is_dir() or not (path / INDEX).is_file():
        return False
    try:
        (first, *_) = json.loads((path / INDEX).read_bytes())["shards"]
        names = set(first["column_names"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    return bool(names & _SIZES.keys()) and any(name.endswith("_latents") for name in names)


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is its index.

    Args:
        path: The folder.
        options: The options.

    Raises:
        FormatError: A shard is broken, or a value has another size; the message names it.
        MismatchError: A column is missing.
        OSError: A file cannot be read.
    """
    reader = mds.Reader(path)
    if not len(reader):
        raise FormatError(f"{path}: it has no samples")
    caption = next((name for name in reader.columns if f"{name}_latents" in reader.columns), None)
    if caption is None:
        raise MismatchError(f"{path}: no column NAME has its NAME_latents; there are {', '.join(reader.columns)}")
    recipe = Recipe.load(NAME)
    embedding = recipe.columns["caption_latents"]
    sources = {name: name for name in _SIZES if name in reader.columns} | {"caption_latents": f"{caption}_latents"}
    columns = {name: column for name, column in recipe.columns.items() if name in sources or name == "caption"}
    columns["key"] = Column("key", "str")
    _, length, width = embedding.shape
    notes = [f"{name} is not converted" for name in reader.columns if name not in (caption, *sources.values())]

    def listing() -> Iterator[Sample]:
        for start in range(0, len(reader), _LISTED):
            indices = range(start, min(start + _LISTED, len(reader)))
            for index, text in zip(indices, reader.gather(indices, caption), strict=True):
                yield Sample(str(index), None, caption=text)

    def rows(indices: Sequence[int], _: Sequence[Sample]) -> Arrays:
        return {
            name: _floats(path, source, reader.gather(indices, source), indices, columns[name].shape)
            for name, source in sources.items()
        }

    return Incoming(
        NAME,
        columns,
        autoencoder_of("sdxl", options.autoencoder, 4),
        listing,
        rows,
        text=ForeignTextEncoder(recipe.text.model, length, width),
        recipe=Recipe.from_dict(recipe.to_dict() | {"columns": _tables(recipe, columns)}),
        notes=notes,
    )


def _tables(recipe: Recipe, columns: dict[str, Column]) -> dict[str, Any]:
    """Returns the tables of a recipe's columns, with the key's."""
    tables: dict[str, Any] = recipe.to_dict()["columns"]
    chosen = {name: table for name, table in tables.items() if name in columns}
    return chosen | {"key": {"from": "key", "encoding": "str"}}


def _floats(
    path: Path, column: str, values: Sequence[Any], indices: Sequence[int], shape: tuple[int, ...]
) -> NDArray[np.float16]:
    arrays = np.empty((len(values), *shape), np.float16)
    for row, (index, value) in enumerate(zip(indices, values, strict=True)):
        if len(value) != 2 * prod(shape):
            raise FormatError(
                f"{path}: sample {index}: {column} has {len(value)} bytes, and {shape} float16 needs {2 * prod(shape)}"
            )
        arrays[row] = np.frombuffer(value, "<f2").reshape(shape)
    return arrays
