"""musubi-tuner's cached latents: `STEM_0832x1216_qi.safetensors` for each image, in buckets.

From kohya-ss/musubi-tuner, commit 30c658c: dataset/cache_io.py, architectures.py and bucket.py, and *_cache_latents.py.
The numbers in a name are the width and height of the image. A file holds `latents_1x152x104_bfloat16` (frames, height
and width of the latent; FLUX.2's key has no frames), perhaps control images, and metadata. Most latents are in the
scale that models are trained on; those of some architectures are raw, and `scale_shift_latents` of the trainer
normalizes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError, MismatchError
from latentq.converting.incoming import (
    Arrays,
    Incoming,
    float_column,
    float_kind,
    latent_size_of,
    latent_size_text,
)
from latentq.converting.known import KNOWN, autoencoder_of
from latentq.converting.mar import safe_path
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import FileNames, Outgoing
from latentq.converting.safetensors_file import SafetensorsFile, SafetensorsWriter
from latentq.converting.tree import walk
from latentq.converting.work import Work
from latentq.format.options import CONDITIONING_ENCODING, Column
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "musubi"
TITLE = "musubi-tuner's STEM_WIDTHxHEIGHT_ARCH.safetensors"
_STEP = 4096  # samples between records of what is done
_FILE = re.compile(r"(?P<stem>.+)_(?P<width>\d{4,})x(?P<height>\d{4,})_(?P<arch>[a-z0-9]+)\.safetensors")
_KEY = re.compile(r"latents_(?:(?P<frames>\d+)x)?(?P<height>\d+)x(?P<width>\d+)_(?P<dtype>float32|float16|bfloat16)")
_VERSION = "1.0.1"


class _Architecture(NamedTuple):
    """An architecture's files.

    Attributes:
        name: The name in the files' metadata.
        autoencoder: Its autoencoder, by its name in `known.KNOWN`.
        axes: The axes of a latent: `CFHW` or `CHW`.
        framed: True if the key has the number of frames.
        scaled: True if latents are in the scale that models are trained on, False if they are raw.
    """

    name: str
    autoencoder: str
    axes: str = "CFHW"
    framed: bool = True
    scaled: bool = True


_UNNORMALIZED = {
    "flux2": "the normalization of FLUX.2 is in its checkpoint: the card has none, and latents are as trained on",
    "ideogram4": "the normalization of Ideogram 4 is in its trainer: the card has none, and latents are before it",
}
_ARCHITECTURES = {
    "qi": _Architecture("qwen_image", "qwen-image"),
    "qie": _Architecture("qwen_image", "qwen-image"),
    "qil": _Architecture("qwen_image", "qwen-image"),
    "kr2": _Architecture("krea2", "qwen-image"),
    "wan": _Architecture("wan", "wan"),
    "fk": _Architecture("flux_kontext", "flux", "CHW"),
    "zi": _Architecture("z_image", "flux", "CHW", scaled=False),
    "f2d": _Architecture("flux_2_dev", "flux2", "CHW", framed=False),
    "f2k4b": _Architecture("flux_2_klein_4b", "flux2", "CHW", framed=False),
    "f2k9b": _Architecture("flux_2_klein_9b", "flux2", "CHW", framed=False),
    "i4": _Architecture("ideogram4", "ideogram4", "CHW", scaled=False),
    "hv": _Architecture("hunyuan_video", "hunyuan-video", scaled=False),
    "fp": _Architecture("framepack", "hunyuan-video"),
    "k5": _Architecture("kandinsky5", "hunyuan-video"),
    "hv15": _Architecture("hunyuan_video_1_5", "hunyuan-video-1.5", scaled=False),
}
"""By the end of a file's name. The metadata of all three of Qwen-Image have one name."""


def recognizes(path: Path) -> bool:
    """True if a folder has a safetensors file that is called as musubi-tuner's are."""
    if not path.is_dir():
        return False
    return any(match["arch"] in _ARCHITECTURES for match in map(_FILE.fullmatch, walk(path, ".safetensors")) if match)


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is the path of its file without sizes, architecture and suffix.

    Args:
        path: The folder.
        options: The options; `variant` is the architecture, if the folder has files of several.

    Raises:
        FormatError: A file is broken, holds several frames, or is not like the first; the message names it.
        MismatchError: There are files of several architectures.
        OSError: A file cannot be read.
        ValueError: There is no such variant.
    """
    variant = options.variant or _only_architecture(path)
    if variant not in _ARCHITECTURES:
        raise ValueError(
            f"from_layout: musubi has no architecture {variant!r}: name one of {', '.join(_ARCHITECTURES)}"
        )
    architecture = _ARCHITECTURES[variant]
    first = next(_files(path, variant), None)
    if first is None:
        raise FormatError(f"{path}: it has no {variant} files")
    _, shape, dtype = _latent(path / first, SafetensorsFile(path / first), architecture)
    channels = shape[0]
    kind = float_kind(dtype, path / first)
    columns = {
        "latent": float_column(kind, scaled=architecture.scaled),
        "key": Column("key", "str"),
        "original_size": Column("original_size", CONDITIONING_ENCODING),
    }
    autoencoder = autoencoder_of(architecture.autoencoder, options.autoencoder, channels)
    notes = []
    if (note := _UNNORMALIZED.get(architecture.autoencoder)) is not None:
        notes.append(note)
    incoming = Incoming(
        NAME,
        columns,
        autoencoder,
        lambda: _listed(path, variant, architecture, channels, dtype, incoming.notes),
        lambda _, samples: _read(path, samples, architecture, channels, dtype),
        notes=notes,
    )
    return incoming


def _files(path: Path, variant: str) -> Iterator[str]:
    matches = filter(None, map(_FILE.fullmatch, walk(path, ".safetensors")))
    return (match[0] for match in matches if match["arch"] == variant)


def _only_architecture(path: Path) -> str:
    matches = filter(None, map(_FILE.fullmatch, walk(path, ".safetensors")))
    found = {match["arch"] for match in matches} & _ARCHITECTURES.keys()
    if len(found) > 1:
        choices = " or ".join(f"--from musubi:{variant}" for variant in sorted(found))
        raise MismatchError(f"{path} has files of several architectures: choose by {choices}")
    if not found:
        raise FormatError(f"{path}: it has no files STEM_WIDTHxHEIGHT_ARCH.safetensors")
    return found.pop()


def _latent(path: Path, file: SafetensorsFile, architecture: _Architecture) -> tuple[str, tuple[int, int, int], str]:
    """Returns the key, (C, h, w) and dtype of the latent of a file."""
    matches = [match for match in map(_KEY.fullmatch, file.names) if match]
    if len(matches) != 1:
        raise FormatError(
            f"{path}: it has {len(matches)} tensors latents_FxHxW_DTYPE, not one: {', '.join(file.names)}"
        )
    match = matches[0]
    dtype, shape = file.describe(match[0])
    sides = int(match["height"]), int(match["width"])
    if int(match["frames"] or 1) != 1:
        raise FormatError(f"{path}: a latent of {match['frames']} frames is a video's, and a dataset holds images")
    axes = architecture.axes if len(shape) == 4 else "CHW"
    flat = tuple(side for axis, side in zip(axes, shape, strict=False) if axis != "F")
    if (
        len(axes) != len(shape)
        or flat[1:] != sides
        or len(shape) - len(flat) != axes.count("F")
        or dtype != match["dtype"]
    ):
        raise FormatError(f"{path}: {match[0]} is {dtype} {shape}")
    return match[0], (flat[0], *sides), dtype


def _listed(
    path: Path, variant: str, architecture: _Architecture, channels: int, dtype: str, notes: list[str]
) -> Iterator[Sample]:
    others = 0
    for name in _files(path, variant):
        match = _FILE.fullmatch(name)
        assert match is not None
        file = SafetensorsFile(path / name)
        _, shape, found = _latent(path / name, file, architecture)
        if shape[0] != channels or found != dtype:
            raise FormatError(f"{path / name}: {found} of {shape[0]} channels, others {dtype} of {channels}")
        others += len(file.names) > 1
        yield Sample(match["stem"], None, id=latent_size_text(*shape[1:]), archive=name)
    if others:
        notes.append(f"{others} files have further tensors (control images and the like), which are not converted")


def _read(path: Path, samples: Sequence[Sample], architecture: _Architecture, channels: int, dtype: str) -> Arrays:
    height, width = latent_size_of(samples[0])
    latents = np.empty((len(samples), channels, height, width), np.uint16 if dtype == "bfloat16" else dtype)
    sizes = np.empty((len(samples), 2), np.int32)
    for row, sample in enumerate(samples):
        name = sample.archive or ""
        file = SafetensorsFile(path / name)
        key, shape, found = _latent(path / name, file, architecture)
        if shape != latents.shape[1:] or found != dtype:
            raise FormatError(f"{path / name}: {found} {shape}, listed as {dtype} {latents.shape[1:]}")
        latents[row] = file.array(key).reshape(shape)
        match = _FILE.fullmatch(name)
        assert match is not None
        sizes[row] = int(match["height"]), int(match["width"])
    return {"latent": latents, "original_size": sizes}


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder of safetensors files, called by the names of images without folders and suffixes.

    bfloat16 and float16 stay, and anything else is written as float32. musubi-tuner needs its own caches of text next
    to them.

    Args:
        outgoing: A dataset with latents, keys and original sizes.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, two keys differ in their folder or suffix alone, or the architecture
            does not follow from the autoencoder or has other latents.
        OSError: A file cannot be written.
    """
    variant = outgoing.variant or _architecture_for(outgoing)
    if variant not in _ARCHITECTURES:
        raise MismatchError(f"musubi has no architecture {variant!r}: name one of {', '.join(_ARCHITECTURES)}")
    architecture = _ARCHITECTURES[variant]
    if not architecture.scaled and outgoing.card.autoencoder.normalization.patchify > 1:
        raise MismatchError(
            f"{outgoing.path}: {variant} caches raw latents, and no patches are made of raw ones of "
            f"{outgoing.card.autoencoder.name}"
        )
    latent, key, size = outgoing.need("latent"), outgoing.need("key"), outgoing.need("original_size")
    kind = outgoing.facts(latent).quantizer.kind
    dtype = kind if kind in ("bfloat16", "float16") else "float32"
    columns = outgoing.open([latent, key, size], scale="scaled" if architecture.scaled else "raw")
    names = FileNames(outgoing, flat=True)
    work.result.mkdir(exist_ok=True)
    start = recorded = work.done
    bar.skip(start)
    for batch in outgoing.open([key, size]).batches(stop=start):  # which an earlier run has written
        for row in range(len(batch)):
            names.of(batch.values[key][row], _end(batch.values[size][row], variant))
    for batch in columns.batches(start):
        latents = _as_dtype(batch.values[latent], dtype)
        _, channels, height, width = latents.shape
        sides = f"{'1x' * architecture.framed}{height}x{width}"
        shape = tuple({"C": channels, "F": 1, "H": height, "W": width}[axis] for axis in architecture.axes)
        for row in range(len(batch)):
            image_height, image_width = map(int, batch.values[size][row])
            metadata = {
                "architecture": architecture.name,
                "width": str(image_width),
                "height": str(image_height),
                "format_version": _VERSION,
            }
            name = names.of(batch.values[key][row], _end(batch.values[size][row], variant))
            file = safe_path(work.result, name, outgoing)
            tensor = f"latents_{sides}_{dtype}"
            with SafetensorsWriter(file, {tensor: (dtype, shape)}, metadata) as writer:
                writer.write(tensor, 0, latents[row].reshape(shape))
        bar.update(len(batch))
        recorded = work.record_every(_STEP, batch.first + len(batch), recorded)


def _end(size: NDArray[np.int32], variant: str) -> str:
    """Returns what follows the stem in a file's name, by the (height, width) of the image."""
    height, width = map(int, size)
    return f"_{width:04d}x{height:04d}_{variant}.safetensors"


def _as_dtype(latents: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Returns float32 values rounded to the nearest of a dtype; bfloat16 as its bits."""
    if dtype == "bfloat16":
        bits = latents.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return latents.astype(dtype, copy=False)


def _architecture_for(outgoing: Outgoing) -> str:
    name = outgoing.card.autoencoder.name
    found = [arch for arch, described in _ARCHITECTURES.items() if KNOWN[described.autoencoder].name == name]
    if name in (KNOWN["qwen-image"].name, KNOWN["wan"].name):
        return found[0]
    choices = found or list(_ARCHITECTURES)
    raise MismatchError(
        f"{outgoing.path} was made by {name}: name the architecture, --to musubi:ARCH with one of {', '.join(choices)}"
    )
