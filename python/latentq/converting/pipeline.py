"""Converts between latent datasets and other tools' layouts: `latentq.convert`."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TextIO, cast

from latentq._core import FormatError, LatentqError, MismatchError
from latentq.choices import Codec
from latentq.converting import imagenet_3gb, imagenet_int8, vqgan
from latentq.converting.foreign import KNOWN_LAYOUTS, ForeignDataset
from latentq.converting.incoming import Arrays, Incoming, Storage
from latentq.converting.layouts import LAYOUTS, recognized, writer
from latentq.converting.names import CODES, IMAGENET_3GB, IMAGENET_INT8, NAMES, VQGAN, WRITTEN
from latentq.converting.options import ReadOptions
from latentq.converting.outgoing import Outgoing
from latentq.converting.to_dataset import write_dataset
from latentq.converting.work import check_absent, resumable
from latentq.format.card import CARD
from latentq.format.facts import UNKNOWN
from latentq.format.options import FLOATS
from latentq.quantizer import Measurement
from latentq.run.listing import print_notes
from latentq.sources import Sample
from latentq.store.local import check_regular, read_regular
from latentq.system.progress import Progress
from latentq.system.text import counted

__all__ = ["convert", "open_foreign"]

_SLOW_TO_OPEN = 1 << 28  # bytes
_ZIP = b"PK\x03\x04"
_HEAD = 1024  # bytes of a file that are looked at


class _CodesLayout(Protocol):
    """A module that reads and writes one layout whose codes are those of a recipe."""

    def read(self, path: Path, progress: TextIO | None) -> ForeignDataset: ...

    def write(self, dataset: Path, out: Path, progress: TextIO | None) -> int: ...


_CODES = cast("dict[str, _CodesLayout]", {IMAGENET_3GB: imagenet_3gb, IMAGENET_INT8: imagenet_int8, VQGAN: vqgan})
_BY_SUFFIX = {imagenet_3gb.SUFFIX: IMAGENET_3GB, vqgan.SUFFIX: VQGAN, "": IMAGENET_INT8, ".int8": IMAGENET_INT8}


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    from_layout: str | None = None,
    to_layout: str | None = None,
    autoencoder: str | None = None,
    codebook: int | None = None,
    bits: int | None = None,
    codec: Codec | None = None,
    bytes: int | None = None,  # noqa: A002  (the name that recipes have for it)
    progress: TextIO | None = None,
) -> int:
    """Converts another tool's latents to a latent dataset, or a latent dataset to another tool's layout.

    Floats and codes are stored unchanged, unless `bits`, `codec` or `bytes` is given. A conversion that was interrupted
    continues when it is started again with the same arguments; until it is whole, it is in a hidden folder next to
    `out`.

    Args:
        source: A latent dataset, or another tool's file or folder; its content decides which.
        out: The output, which must not exist. It is published atomically.
        from_layout: The layout of the source, if its content fits several. A colon and the kind of files may follow:
            `kohya:sdxl`.
        to_layout: The layout to write from a latent dataset, with a kind of files as `from_layout`. By default the
            suffix of `out` decides: `.pt` is imagenet_3gb's torch file, `.tsv` VQGAN's tokens, and no suffix or `.int8`
            imagenet.int8's folder.
        autoencoder: The autoencoder that made the source, if it is not the layout's usual one: a name such as `sdxl`,
            or any model.
        codebook: The number of tokens in the codebook that made the source, if it is not the layout's usual one.
        bits: Bits per value, 2 to 8, for a quantizer that is calibrated; None stores latents unchanged.
        codec: `affine`, or `trellis` or `transform`, which encode whole samples, as for `latentq.encode`.
        bytes: The bytes of each latent, by the transform.
        progress: The stream for progress and notes, or None.

    Returns:
        The number of samples converted.

    Raises:
        FileExistsError: `out` exists.
        FormatError: The source is of no known layout, or violates its layout.
        MismatchError: The source fits several layouts; the dataset lacks what the layout needs, or its codes have
            another meaning; or another conversion to `out` is unfinished.
        OSError: A file cannot be read or written.
        ValueError: A name of a layout is unknown, or an option does not apply.
    """
    return converted(
        source,
        out,
        from_layout=from_layout,
        to_layout=to_layout,
        autoencoder=autoencoder,
        codebook=codebook,
        bits=bits,
        codec=codec,
        bytes=bytes,
        progress=progress,
    ).samples


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Attributes:
        samples: The number of samples.
        notes: Lines about what is not converted, and if latents are quantized the error of each column.
        errors: The error of each quantized column.
    """

    samples: int
    notes: Sequence[str] = ()
    errors: Mapping[str, Measurement] = field(default_factory=dict)


def converted(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    from_layout: str | None = None,
    to_layout: str | None = None,
    autoencoder: str | None = None,
    codebook: int | None = None,
    bits: int | None = None,
    codec: Codec | None = None,
    bytes: int | None = None,  # noqa: A002  (the name that recipes have for it)
    progress: TextIO | None = None,
) -> Converted:
    """Converts as `convert` does, with the same arguments and errors, and returns what it did."""
    source, out, storage = Path(source), Path(out), Storage(bits, codec, bytes)
    check_absent(out)
    if source.is_dir() and source.resolve() in out.resolve().parents:
        raise LatentqError(f"{out} would be in {source}, which is converted: choose a place outside of it")
    if progress is not None and source.is_file() and source.stat().st_size > _SLOW_TO_OPEN:
        progress.write(f"reading {source}\n")
    if (source / CARD).exists():
        given = {"from_layout": from_layout, "autoencoder": autoencoder, "codebook": codebook, **vars(storage)}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"{name} must be left out: it is for the conversion of another tool's latents, and {source} is a "
                    "dataset"
                )
        return _from_dataset(source, out, to_layout, progress)
    options = ReadOptions(autoencoder, codebook)
    if to_layout is not None:
        raise LatentqError(f"{source} is not a latent dataset: convert it to one first, and that to {to_layout}")
    return _to_dataset(source, out, from_layout, options, storage, progress)


def _from_dataset(source: Path, out: Path, to_layout: str | None, progress: TextIO | None) -> Converted:
    """Writes a dataset in another tool's layout."""
    name, _, variant = (_layout_of(out) if to_layout is None else to_layout).partition(":")
    if name not in (*CODES, *WRITTEN):
        known = f"{name} can only be read" if name in NAMES else f"there is no layout {name!r}"
        raise ValueError(f"to_layout: {known}: name one of {', '.join((*CODES, *WRITTEN))}")
    card = hashlib.sha256(read_regular(source / CARD)).hexdigest()
    with resumable(out, {"source": str(source.absolute()), "card": card, "layout": name, "variant": variant}) as work:
        if name in _CODES:
            work.restart()
            try:
                return Converted(_CODES[name].write(source, work.result, progress))
            except MismatchError as error:
                if to_layout is not None:
                    raise
                raise MismatchError(f"{error}; the name {out.name} chose that layout, --to chooses another") from None
        outgoing = Outgoing(source, name, variant or None)
        with Progress(outgoing.count, "convert", progress, noun="sample") as bar:
            writer(name).write(outgoing, work, bar)
        notes = outgoing.notes()
        print_notes(notes, progress)
        return Converted(outgoing.count, notes)


def _to_dataset(
    source: Path, out: Path, from_layout: str | None, options: ReadOptions, storage: Storage, progress: TextIO | None
) -> Converted:
    """Writes a dataset from another tool's data."""
    name, _, variant = (_source_layout(source) if from_layout is None else from_layout).partition(":")
    options = replace(options, variant=variant or None)
    if name not in (*CODES, *NAMES):
        raise ValueError(f"from_layout: there is no layout {name!r}: name one of {', '.join((*CODES, *NAMES))}")
    job = {"source": str(source.absolute()), "layout": name, **vars(options), **vars(storage)}
    with resumable(out, job) as work:
        if name in LAYOUTS:
            incoming = LAYOUTS[name].read(source, options)
            columns = incoming.columns.values()
            kinds = [column.quantizer["kind"] for column in columns if column.is_latent]
            for option in storage.given() if not any(kind in FLOATS for kind in kinds) else ():
                held = "codes, which are copied unchanged" if kinds else "no latents to quantize"
                raise ValueError(f"{option} must be left out: {source} holds {held}")
            if options.codebook is not None and not any(column.content == "tokens" for column in columns):
                raise ValueError(f"codebook must be left out: {source} holds no tokens")
            if incoming.autoencoder.name == UNKNOWN:
                channels = counted(incoming.autoencoder.shape[0], "channel")
                incoming.notes.append(f"no usual autoencoder of {name} has {channels}: name it by --autoencoder")
        else:
            foreign = _CODES[name].read(source, progress)
            if out.suffix in (imagenet_3gb.SUFFIX, vqgan.SUFFIX):
                raise LatentqError(
                    f"{source} is a {foreign.kind}: convert it to a latent dataset first, and that to {out}"
                )
            for option, value in (*vars(options).items(), *vars(storage).items()):
                if value is not None:
                    raise ValueError(f"{option} does not apply to a {foreign.kind}: its codes are copied unchanged")
            incoming = _incoming(foreign)
        samples = write_dataset(incoming, work.result, storage, progress)
        print_notes(incoming.notes, progress)
        return Converted(samples, incoming.notes, incoming.errors)


def open_foreign(path: str | os.PathLike[str], *, progress: TextIO | None = None) -> ForeignDataset | None:
    """Opens a file or folder whose codes are those of a recipe; returns None for a latent dataset.

    Args:
        path: The file or folder.
        progress: The stream for progress, or None.

    Raises:
        FormatError: It is of no known layout, or violates its layout.
        LatentqError: It is of another layout, which must be converted first.
        OSError: It does not exist or cannot be read.
    """
    path = Path(path)
    if (path / CARD).exists():
        return None
    name = _source_layout(path)
    if name not in _CODES:
        raise LatentqError(f"{path} is of the layout {name}: convert it to a latent dataset first (latentq convert)")
    return _CODES[name].read(path, progress)


def _source_layout(path: Path) -> str:
    """Returns the layout of a file or folder by its content. A folder of no layout is left to a reader's error.

    Raises:
        FormatError: The file is empty, no regular file or of no layout.
        MismatchError: It fits several layouts.
        OSError: It does not exist or cannot be read.
    """
    start = b""
    if not path.is_dir():
        check_regular(path)
        with path.open("rb") as file:
            start = file.read(_HEAD)
        if not start:
            raise FormatError(f"{path}: the file is empty")
    layout = recognized(path)
    if layout is not None:
        return layout.NAME
    if path.is_dir():
        return IMAGENET_INT8
    if start.startswith(_ZIP) or path.suffix == imagenet_3gb.SUFFIX:
        return IMAGENET_3GB
    if path.suffix != vqgan.SUFFIX and not _is_text(start):
        raise FormatError(f"{path}: it is of no known layout. {KNOWN_LAYOUTS}")
    return VQGAN


def _is_text(start: bytes) -> bool:
    """True if a file that begins like this may be a table."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # which allows for a character that is cut off
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def _layout_of(out: Path) -> str:
    """Returns the layout that an output's name decides. Raises ValueError if its suffix is of no layout."""
    name = _BY_SUFFIX.get(out.suffix)
    if name is None:
        raise ValueError(
            f"{out}: no layout has the suffix {out.suffix}: name a .pt (imagenet_3gb's torch file), a .tsv (VQGAN's "
            "tokens), or a folder without a suffix or with .int8 (imagenet.int8's shards), or choose by --to"
        )
    return name


def _incoming(foreign: ForeignDataset) -> Incoming:
    """Returns a dataset of codes as a stream."""
    ((name, _),) = foreign.recipe.encoded().items()

    def read(indices: Sequence[int], _: Sequence[Sample]) -> Arrays:
        return {name: foreign.read_stored(indices)}

    return Incoming(
        foreign.kind,
        foreign.recipe.columns,
        foreign.autoencoder,
        lambda: iter(foreign.samples),
        read,
        recipe=foreign.recipe,
    )
