"""kohya sd-scripts' cached latents: `STEM_0512x0768_sdxl.npz` next to each image, in buckets.

From kohya-ss/sd-scripts, commit 48d368f: library/strategy_base.py, strategy_*.py and train_util.py. The numbers in a
name are the width and height of the image. A file holds float32 `latents`, (width, height) as `original_size`,
`crop_ltrb`, and perhaps `latents_flipped` and `alpha_mask`; except for SD and SDXL each key ends with the height and
width of the latent, `latents_64x96`, and a file may hold several resolutions.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentq._core import FormatError, MismatchError
from latentq.converting.incoming import Arrays, Incoming, float_column, float_kind, latent_size_of, latent_size_text
from latentq.converting.known import KNOWN, autoencoder_of
from latentq.converting.mar import safe_path
from latentq.converting.npy_file import any_of, load_npz, npz_bytes, npz_shapes
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import FileNames, Outgoing, OutgoingBatch
from latentq.converting.tree import walk
from latentq.converting.work import Work
from latentq.format.options import CONDITIONING_ENCODING, Column
from latentq.sources import Sample
from latentq.system.progress import Progress

NAME = "kohya"
TITLE = "kohya sd-scripts' STEM_WIDTHxHEIGHT_sdxl.npz"
_LOOKED_AT = 64  # files, to recognize a folder
_STEP = 16_384  # samples between records of what is done
_FILE = re.compile(r"(?P<stem>.+)_(?P<width>\d{4,})x(?P<height>\d{4,})_(?P<kind>sd|sdxl|sd3|flux|lumina|hi|anima)\.npz")
_KEY = re.compile(r"latents(?:_(\d+)x(\d+))?")


class _Kind(NamedTuple):
    """The files of one architecture.

    Attributes:
        autoencoder: Its autoencoder, by its name in `known.KNOWN`.
        scaled: True if latents are in the scale that models are trained on.
        suffixed: True if the keys end with the size of the latent.
    """

    autoencoder: str
    scaled: bool
    suffixed: bool


_KINDS = {
    "sd": _Kind("sd", scaled=False, suffixed=False),
    "sdxl": _Kind("sdxl", scaled=False, suffixed=False),
    "sd3": _Kind("sd3", scaled=False, suffixed=True),
    "flux": _Kind("flux", scaled=True, suffixed=True),
    "lumina": _Kind("flux", scaled=True, suffixed=True),
    "hi": _Kind("hunyuan-image", scaled=False, suffixed=True),
    "anima": _Kind("qwen-image", scaled=True, suffixed=True),
    "old": _Kind("sd", scaled=False, suffixed=False),
}
"""By the end of a file's name; `old` is STEM.npz, of SD or SDXL."""


def recognizes(path: Path) -> bool:
    """True if a folder has .npz files whose names end as sd-scripts' do, or that hold `latents` and `crop_ltrb`."""
    if not path.is_dir():
        return False
    for name in islice(walk(path, ".npz"), _LOOKED_AT):
        if _FILE.fullmatch(name):
            return True
        if not name.endswith(("_te.npz", "_te_outputs.npz")):
            return {"latents", "crop_ltrb"} <= set(_names(path / name))
    return False


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError):
        return []


def read(path: Path, options: ReadOptions) -> Incoming:
    """Opens a folder. The key of a sample is the path of its image without suffix.

    If a file holds several resolutions, each is a sample, and `#` and the height and width of the latent follow.

    Args:
        path: The folder.
        options: The options; `variant` is the architecture, if the folder has files of several.

    Raises:
        FormatError: A file is broken or not like the first; the message names it.
        MismatchError: There are files of several architectures.
        OSError: A file cannot be read.
        ValueError: There is no such variant.
    """
    variant = options.variant or _only_kind(path)
    if variant not in _KINDS:
        raise ValueError(f"from_layout: kohya has no kind {variant!r}: name one of {', '.join(_KINDS)}")
    kind = _KINDS[variant]
    first = next(_files(path, variant), None)
    if first is None:
        raise FormatError(f"{path}: it has no {variant} files")
    shapes = npz_shapes(path / first, _is_array)
    found = next((match for match in map(_KEY.fullmatch, shapes) if match), None)
    if found is None:
        raise FormatError(f"{path / first}: it has no array 'latents'")
    dtype, shape = shapes[found[0]]
    flipped = f"latents_flipped{found[0].removeprefix('latents')}" in shapes
    channels = _flat(path / first, shape)[0]
    autoencoder = autoencoder_of(kind.autoencoder, options.autoencoder, channels)
    float32 = float_kind(dtype, path / first)
    columns = {"latent": float_column(float32, scaled=kind.scaled)}
    if flipped:
        columns["latent_flip"] = float_column(float32, scaled=kind.scaled, flip=True)
    columns |= {"key": Column("key", "str"), "original_size": Column("original_size", CONDITIONING_ENCODING)}
    incoming = Incoming(
        NAME,
        columns,
        autoencoder,
        lambda: _listed(path, variant, channels, dtype, flipped, incoming.notes),
        lambda _, samples: _read(path, samples, channels, dtype, flipped),
    )
    return incoming


def _is_array(name: str) -> bool:
    return name.startswith(("latents", "alpha_mask"))


def _kind_of(name: str) -> str | None:
    """Returns the architecture of a file by its name; None if it holds no latents."""
    match = _FILE.fullmatch(name)
    if match:
        return match["kind"]
    return None if name.endswith(("_te.npz", "_te_outputs.npz")) else "old"


def _files(path: Path, variant: str) -> Iterator[str]:
    return (name for name in walk(path, ".npz") if _kind_of(name) == variant)


def _only_kind(path: Path) -> str:
    kinds = {kind for name in walk(path, ".npz") if (kind := _kind_of(name))}
    if len(kinds) > 1:
        choices = " or ".join(f"--from kohya:{kind}" for kind in sorted(kinds))
        raise MismatchError(f"{path} has files of several architectures: choose by {choices}")
    if not kinds:
        raise FormatError(f"{path}: it has no .npz files of latents")
    return kinds.pop()


def _flat(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns (C, h, w) of a latent, which may have an axis of one frame."""
    if len(shape) == 4 and shape[1] == 1:
        shape = (shape[0], *shape[2:])
    if len(shape) != 3:
        raise FormatError(f"{path}: latents must be (C, h, w), not {shape}")
    return shape[0], shape[1], shape[2]


def _listed(path: Path, variant: str, channels: int, dtype: Any, flipped: bool, notes: list[str]) -> Iterator[Sample]:
    masks = 0
    for name in _files(path, variant):
        shapes = npz_shapes(path / name, _is_array)
        keys = [key for key in shapes if _KEY.fullmatch(key)]
        if not keys:
            raise FormatError(f"{path / name}: it has no array 'latents'")
        masks += any(key.startswith("alpha_mask") for key in shapes)
        match = _FILE.fullmatch(name)
        stem = match["stem"] if match else name.removesuffix(".npz")
        sizes = set()
        for key in keys:
            found, shape = shapes[key]
            _, height, width = flat = _flat(path / name, shape)
            if found != dtype or flat[0] != channels:
                raise FormatError(f"{path / name}: {key} is {found} {shape}, others {dtype} of {channels} channels")
            mirrored = f"latents_flipped{key.removeprefix('latents')}"
            if (mirrored in shapes) != flipped:
                raise FormatError(f"{path / name}: it has {'no ' if flipped else ''}{mirrored}, unlike the first file")
            if (height, width) in sizes:
                raise FormatError(f"{path / name}: it has two latents of {height} x {width}")
            sizes.add((height, width))
            size = latent_size_text(height, width)
            yield Sample(f"{stem}#{size}" if len(keys) > 1 else stem, None, id=size, archive=name)
    if masks:
        notes.append(f"alpha_mask of {masks} files is not converted")


def _read(path: Path, samples: Sequence[Sample], channels: int, dtype: Any, flipped: bool) -> Arrays:
    height, width = latent_size_of(samples[0])
    latents = np.empty((len(samples), channels, height, width), dtype)
    mirrored = np.empty_like(latents) if flipped else None
    sizes = np.empty((len(samples), 2), np.int32)
    for row, sample in enumerate(samples):
        file = path / (sample.archive or "")
        arrays, end = _of_size(file, height, width)
        for name, rows in (("latents", latents), ("latents_flipped", mirrored)):
            if rows is not None:
                array = arrays.get(f"{name}{end}")
                if array is None or array.dtype != dtype or array.size != rows[row].size:
                    have = "missing" if array is None else f"{array.dtype} {array.shape}"
                    raise FormatError(f"{file}: {name}{end} is {have}, others {dtype} {rows.shape[1:]}")
                rows[row] = array.reshape(rows.shape[1:])
        size = arrays.get(f"original_size{end}")
        if size is None or size.dtype.kind not in "iu" or size.shape != (2,) or not (size > 0).all():
            raise FormatError(f"{file}: original_size{end} must be a width and a height, not {size}")
        sizes[row] = size[::-1]
    values = {"latent": latents, "original_size": sizes}
    return values if mirrored is None else values | {"latent_flip": mirrored}


def _of_size(path: Path, height: int, width: int) -> tuple[Mapping[str, NDArray[Any]], str]:
    """Returns the arrays of a file of one resolution, and the end of their keys."""
    end = f"_{height}x{width}"
    names = ("latents", "latents_flipped", "original_size")
    arrays = load_npz(path, any_of([name + tail for name in names for tail in ("", end)]))
    return arrays, end if f"latents{end}" in arrays else ""


def write(outgoing: Outgoing, work: Work, bar: Progress) -> None:
    """Writes a folder of .npz files, called by keys without suffixes of images, and the sizes of these.

    `crop_ltrb` is computed as sd-scripts does, from the bucket and the image's size.

    Args:
        outgoing: A dataset with latents, keys and original sizes.
        work: Where to write.
        bar: Counts samples.

    Raises:
        MismatchError: The dataset lacks a column, two keys differ in their suffix alone, or the autoencoder is none of
            sd-scripts' and no kind is named.
        OSError: A file cannot be written.
    """
    variant = outgoing.variant or _kind_for(outgoing)
    if variant not in _KINDS or variant == "old":
        raise MismatchError(f"kohya has no kind {variant!r} to write: name one of {', '.join(list(_KINDS)[:-1])}")
    kind = _KINDS[variant]
    latent, key, size = outgoing.need("latent"), outgoing.need("key"), outgoing.need("original_size")
    flip = outgoing.find("latent", flip=True)
    columns = outgoing.open([latent, key, size, *([flip] if flip else [])], scale="scaled" if kind.scaled else "raw")
    facts = outgoing.facts(latent)
    shapes = zip(outgoing.sizes, facts.shapes or (facts.shape,), strict=True)
    sizes = {pixels: latent_size_text(*shape[1:]) for pixels, shape in shapes}
    names = FileNames(outgoing)

    def place(batch: OutgoingBatch, row: int) -> tuple[Path, bool]:
        """Returns the file of a sample, and whether it may hold other resolutions."""
        height, width = map(int, batch.values[size][row])
        stem = batch.values[key][row].removesuffix(f"#{sizes[batch.size]}")
        resolution = stem != batch.values[key][row]
        if resolution and not kind.suffixed:
            raise MismatchError(f"{outgoing.path} has several resolutions of {stem!r}, and {variant} holds one")
        name = names.of(stem, f"_{width:04d}x{height:04d}_{variant}.npz")
        return safe_path(work.result, name, outgoing), resolution

    work.result.mkdir(exist_ok=True)
    start = recorded = work.done
    bar.skip(start)
    for batch in outgoing.open([key, size]).batches(0, start):  # so that names of the earlier run are known
        for row in range(len(batch)):
            place(batch, row)
    for batch in columns.batches(start):
        for row in range(len(batch)):
            latents = batch.values[latent][row]
            end = f"_{latents.shape[1]}x{latents.shape[2]}" if kind.suffixed else ""
            height, width = map(int, batch.values[size][row])
            arrays = {
                f"latents{end}": latents,
                f"original_size{end}": np.array((width, height)),
                f"crop_ltrb{end}": np.array(_crop_ltrb(batch.size[::-1], (width, height))),
            }
            if flip:
                arrays[f"latents_flipped{end}"] = batch.values[flip][row]
            file, resolution = place(batch, row)
            file.parent.mkdir(parents=True, exist_ok=True)
            others = _others(file) if resolution else None
            if others:
                work.replace(file, npz_bytes({**others, **arrays}))
            else:
                file.write_bytes(npz_bytes(arrays))
        bar.update(len(batch))
        recorded = work.record_every(_STEP, batch.first + len(batch), recorded)


def _others(path: Path) -> Mapping[str, NDArray[Any]]:
    """Returns the arrays of other resolutions that a file has.

    A file that an earlier run had half written has none: what a record counts is only ever replaced as a whole.
    """
    if not path.exists():
        return {}
    try:
        return load_npz(path, lambda _: True)
    except FormatError:
        return {}


def _kind_for(outgoing: Outgoing) -> str:
    """Returns the architecture of a dataset's autoencoder."""
    name = outgoing.card.autoencoder.name
    for variant, kind in _KINDS.items():
        if KNOWN[kind.autoencoder].name == name and variant != "old":
            return variant
    raise MismatchError(
        f"{outgoing.path} was made by {name}, which is none of sd-scripts': name the kind of files, --to kohya:KIND "
        f"with one of {', '.join(list(_KINDS)[:-1])}"
    )


def _crop_ltrb(bucket: tuple[int, int], image: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns the part of a bucket that the image covers, as `get_crop_ltrb` of sd-scripts. Sizes are (w, h)."""
    image_ratio = image[0] / image[1]
    resized_width: float
    resized_height: float
    if bucket[0] / bucket[1] > image_ratio:
        resized_width, resized_height = bucket[1] * image_ratio, bucket[1]
    else:
        resized_width, resized_height = bucket[0], bucket[0] / image_ratio
    left, top = (bucket[0] - resized_width) // 2, (bucket[1] - resized_height) // 2
    return left, top, left + resized_width, top + resized_height
