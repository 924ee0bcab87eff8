"""SimpleTuner's cached latents: a `.pt` for each image, scaled, perhaps compressed by gzip, in buckets. Read only.

From bghira/SimpleTuner, helpers/caching/vae.py and helpers/data_backend/base.py. A file is a tensor (C, h, w), or a
dict with one as `latents`, in the scale that models are trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from latentq._core import FormatError
from latentq.converting.incoming import Arrays, Incoming, float_column, float_kind, latent_size_of, latent_size_text
from latentq.converting.known import autoencoder_of
from latentq.converting.options import ReadOptions
from latentq.converting.torch_tensors import array_dtype, open_torch, record_of
from latentq.converting.tree import walk
from latentq.format.options import Column
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.sources import Sample

NAME = "simpletuner"
TITLE = "SimpleTuner's .pt of scaled latents, one for each image"
_LOOKED_AT = 4  # files, to recognize a folder
_SUFFIX = ".pt"


def recognizes(path: Path) -> bool:
    """True if a folder has .pt files that hold a latent."""
    if not path.is_dir():
        return False
    for name in islice(walk(path, _SUFFIX), _LOOKED_AT):
        try:
            _latent(path / name)
        except (FormatError, OSError):
            continue
        return True
    return False


def _latent(path: Path) -> tuple[TorchFile, TensorRecord, tuple[int, int, int]]:
    """Returns a file, its latent, and the latent's (C, h, w)."""
    file = open_torch(path)
    loaded = file.load()
    value = loaded.get("latents") if isinstance(loaded, dict) else loaded
    record = record_of(value, path)
    shape = record.shape
    while len(shape) > 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) == 4 and shape[1] == 1:  # one frame
        shape = (shape[0], *shape[2:])
    if len(shape) != 3:
        raise FormatError(f"{path}: a latent must be (C, h, w), not {record.shape}")
    return file, record, (shape[0], shape[1], shape[2])


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is the path of its file without `.pt`.

    Args:
        path: The folder.
        options: The options; `autoencoder` should be named, since the files do not tell it.

    Raises:
        FormatError: A file is broken, holds other objects, or is not like the first; the message names it.
        OSError: A file cannot be read.
    """
    first = next(walk(path, _SUFFIX), None)
    if first is None:
        raise FormatError(f"{path}: it has no {_SUFFIX} files")
    _, record, (channels, _, _) = _latent(path / first)
    kind = float_kind(record.dtype, path / first)
    usual = "flux" if channels == 16 else "sdxl"
    autoencoder = autoencoder_of(usual, options.autoencoder, channels)
    notes = [] if options.autoencoder else [f"the files do not tell the autoencoder: {autoencoder.name} is assumed"]

    def listing() -> Iterator[Sample]:
        for name in walk(path, _SUFFIX):
            _, found, shape = _latent(path / name)
            if shape[0] != channels or found.dtype != record.dtype:
                raise FormatError(f"{path / name}: {found.dtype} of {shape[0]} channels, others {kind} of {channels}")
            yield Sample(name.removesuffix(_SUFFIX), None, id=latent_size_text(*shape[1:]))

    def rows(_: Sequence[int], samples: Sequence[Sample]) -> Arrays:
        size = latent_size_of(samples[0])
        latents = np.empty((len(samples), channels, *size), array_dtype(record.dtype))
        for row, sample in enumerate(samples):
            where = path / f"{sample.key}{_SUFFIX}"
            file, found, shape = _latent(where)
            if shape != latents.shape[1:] or found.dtype != record.dtype:
                raise FormatError(f"{where}: {found.dtype} {shape}, listed as {kind} {latents.shape[1:]}")
            latents[row] = file.read(found).reshape(shape)
        return {"latent": latents}

    columns = {"latent": float_column(kind, scaled=True), "key": Column("key", "str")}
    return Incoming(NAME, columns, autoencoder, listing, rows, notes=notes)
