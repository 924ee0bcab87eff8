"""Measures the size and error of each quantization scheme and number of bits on latents, to choose a quantizer."""

from __future__ import annotations

import itertools
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import numpy.typing as npt

from latentq._core import LatentqError
from latentq.format.options import FLOATS
from latentq.inspect.psnr import psnr
from latentq.quantizer import AnyQuantizer, Method, Quantizer, Transform, check_transform_shape
from latentq.quantizer.floats import half_name
from latentq.system.progress import BriefProgress, Progress
from latentq.system.text import counted

if TYPE_CHECKING:
    from latentq.models.autoencoders import Autoencoder
    from latentq.sources import Source

__all__ = ["SchemeCost", "load", "measure", "of_dataset", "print_table"]

BITS = (8, 6, 4)
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "lloyd-max", "trellis")
DEFAULT_METHOD: Method = "mse"  # docs/quantizer.md says why it is not lloyd-max
SAMPLES = 4096  # used at most
ENCODED = 512  # encoded again at most, evenly spread over the dataset
DECODED = 64  # decoded at most, evenly spread over the samples that are measured
_BATCH = 16  # images encoded or decoded at once


@dataclass(frozen=True, slots=True)
class SchemeCost:
    """The cost of one scheme at one number of bits.

    Attributes:
        scheme: "float16" (or "bfloat16"), "uniform" (one range for all channels), or a method of `Quantizer.calibrate`.
        bits: The stored bits per element. A transform has just as many bytes as codes of these bits.
        entropy: The entropy of the codes in bits per element, which an ideal entropy coder of single codes would store;
            None for floats, and for a transform, which has an entropy coder.
        sqnr_db: The signal-to-quantization-noise ratio over all channels, as in `Measurement`.
        worst_sqnr_db: The signal-to-quantization-noise ratio of the worst channel.
        clip_rate: The share of values outside the range.
        largest_error: The largest absolute error, in the unit of the latents.
        psnr_images_db: The mean PSNR of the images decoded from the codes against the originals; None without
            originals.
        psnr_decoded_db: The mean PSNR of the images decoded from the codes against those decoded from the floats; None
            without an autoencoder.
        refused: The number of samples that the scheme cannot encode, which a run would reject. No row counts them.
    """

    scheme: str
    bits: int
    entropy: float | None
    sqnr_db: float
    worst_sqnr_db: float
    clip_rate: float
    largest_error: float
    psnr_images_db: float | None = None
    psnr_decoded_db: float | None = None
    refused: int = 0


def load(path: str | PathLike[str]) -> npt.NDArray[Any]:
    """Opens latents (N, C, ...) in a .npy file, memory-mapped.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file does not contain an array of floats (N, C, ...).
    """
    try:
        latents = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a .npy file: {error}") from None
    if not isinstance(latents, np.ndarray) or latents.ndim < 2 or latents.dtype.kind != "f" or latents.itemsize > 8:
        raise ValueError(f"{path}: expected a .npy file of float latents (N, C, ...)")
    return latents


def measure(
    latents: npt.ArrayLike | Iterable[Any],
    *,
    bits: Sequence[int] = BITS,
    methods: Sequence[Method] = METHODS,
    autoencoder: Autoencoder | None = None,
    images: npt.NDArray[np.uint8] | None = None,
    progress: TextIO | None = None,
) -> list[SchemeCost]:
    """Measures every method at every number of bits, and for comparison float16 and one range for all channels.

    bfloat16 replaces float16 if a latent overflows float16.

    Samples with an even index are used for calibration and those with an odd index for measuring, so that no scheme is
    tested on its calibration data (a single sample serves for both). At most 64 of the measured samples are decoded.
    Samples that a transform cannot encode, since they are far from those of the calibration, are measured in no row. A
    transform that can encode none of them has no row, and a warning says so.

    Args:
        latents: (N, C, ...) floats, or any iterable of samples (C, ...); the first 4,096 are used.
        bits: The numbers of bits to try, each from 2 to 8.
        methods: Methods of `Quantizer.calibrate`.
        autoencoder: The autoencoder to decode with: any object with `decode` and `pixel_range`.
        images: (N, 3, H, W) uint8, the images that the latents were encoded from.
        progress: The stream for progress, or None.

    Raises:
        NotFiniteError: A value is NaN or infinite.
        LatentqError: Transforms can encode some of the samples each, but none of them all.
        ValueError: There are no samples, or images and latents differ in number.
    """
    x = _samples(latents)
    # Checks all samples at once, so that an error names the index of the given sample.
    Quantizer.floating("float32", channels=x.shape[1]).quantize(x)
    calibration, tried = (x[::2], x[1::2]) if len(x) > 1 else (x, x)
    if images is not None:
        if len(images) < len(x):
            found = f"{counted(len(images), 'image')} for {counted(len(x), 'latent')}"
            raise ValueError(f"expected one image per latent, not {found}")
        images = images[: len(x)][1::2] if len(x) > 1 else images[:1]
    channels = x.shape[1]
    low, high = float(calibration.min()), float(calibration.max())
    half = half_name(max(-float(x.min()), float(x.max())))
    schemes: list[tuple[str, AnyQuantizer]] = [(half, Quantizer.floating(half, channels=channels))]
    schemes += [("uniform", Quantizer.uniform(low, high, channels=channels, bits=b)) for b in bits]
    schemes += [(m, Quantizer.calibrate(calibration, bits=b, method=m)) for b, m in itertools.product(bits, methods)]
    if _is_for_transform(x.shape):
        sizes = [math.ceil(math.prod(x.shape[1:]) * b / 8) for b in bits]  # as codes of these bits
        schemes += [("transform", Transform.calibrate(calibration, bytes=size)) for size in sizes]
    refused = [_refused(quantizer, tried) for _, quantizer in schemes]
    for (name, quantizer), bad in zip(schemes, refused, strict=True):
        if len(bad) == len(tried):
            size = counted(quantizer.packed_bytes(0), "byte")
            warnings.warn(f"no row for a {name} of {size}: it can encode none of the samples", stacklevel=2)
    able = [len(bad) < len(tried) for bad in refused]
    schemes, refused = list(itertools.compress(schemes, able)), list(itertools.compress(refused, able))
    kept = sorted(set(range(len(tried))).difference(*refused))
    if 0 < len(kept) < len(tried):
        tried, images = tried[kept], None if images is None else images[kept]
    count = 0 if autoencoder is None else min(DECODED, len(tried))
    chosen = [position * len(tried) // count for position in range(count)]
    with BriefProgress(len(schemes) * (1 + count), "measure", progress, noun="step") as bar:
        rows = []
        for (name, quantizer), bad in zip(schemes, refused, strict=True):
            rows.append(replace(_cost(name, quantizer, tried), refused=len(bad)))
            bar.update(1)
        if autoencoder is not None:
            originals = None if images is None else images[chosen]
            psnrs = _psnrs(autoencoder, [quantizer for _, quantizer in schemes], tried[chosen], originals, bar)
            rows = [
                replace(row, psnr_decoded_db=decoded, psnr_images_db=None if images is None else original)
                for row, (decoded, original) in zip(rows, psnrs, strict=True)
            ]
    return rows


def _refused(quantizer: AnyQuantizer, x: npt.NDArray[Any]) -> Sequence[int]:
    """Returns the indices of the samples that a transform cannot encode."""
    return list(quantizer.encode_counted(x).bad) if isinstance(quantizer, Transform) else []


def _is_for_transform(shape: tuple[int, ...]) -> bool:
    """True if a transform can encode samples of an array of this shape (N, C, ...)."""
    try:
        check_transform_shape(shape[1:])
    except ValueError:
        return False
    return True


def print_table(rows: Sequence[SchemeCost], *, file: TextIO | None = None) -> None:
    """Writes rows as an aligned table, to standard output by default.

    The last column marks the default method, and the scheme with the highest SQNR at each number of bits; and tells how
    many samples a scheme refuses.
    """
    columns = {
        "scheme": [row.scheme for row in rows],
        "bits": [str(row.bits) for row in rows],
        "entropy": [_cell(row.entropy, 2) for row in rows],
        "SQNR dB": [_cell(row.sqnr_db, 2) for row in rows],
        "worst": [_cell(row.worst_sqnr_db, 2) for row in rows],
        "clipped %": [_cell(100 * row.clip_rate, 3) for row in rows],
        "largest error": [_cell(row.largest_error, 4) for row in rows],
        "PSNR images": [_cell(row.psnr_images_db, 2) for row in rows],
        "PSNR decoded": [_cell(row.psnr_decoded_db, 2) for row in rows],
        "note": [_note(row, rows) for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    widths = {name: max(map(len, (name, *cells))) for name, cells in shown.items()}
    lines = [list(shown), *(list(cells) for cells in zip(*shown.values(), strict=True))]
    out = file or sys.stdout
    for line in lines:
        first, *rest = zip(line, widths.values(), strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        out.write("  ".join(cells).rstrip() + "\n")


def _note(row: SchemeCost, rows: Sequence[SchemeCost]) -> str:
    if row.scheme in FLOATS:
        return ""
    least_error = row.sqnr_db == max(other.sqnr_db for other in rows if other.bits == row.bits)
    notes = ["default"] * (row.scheme == DEFAULT_METHOD) + ["least error"] * least_error
    return ", ".join(notes + [f"refuses {counted(row.refused, 'sample')}"] * (row.refused > 0))


def _samples(latents: Any) -> npt.NDArray[Any]:
    if hasattr(latents, "shape"):
        x = latents[:SAMPLES]
        if not isinstance(x, np.ndarray):
            x = x.detach().cpu().float().numpy()
    else:
        taken: Iterable[Any] = itertools.islice(_arrays(latents), SAMPLES)
        x = np.stack(list(taken) or [np.empty((0,))])
    if x.ndim < 2 or not x.size:
        raise ValueError(f"there are no latents (N, C, ...) to measure: the shape is {x.shape}")
    return np.ascontiguousarray(x)


def _arrays(samples: Iterable[Any]) -> Iterator[npt.NDArray[Any]]:
    for sample in samples:
        yield sample if isinstance(sample, np.ndarray) else sample.detach().cpu().float().numpy()


def _cost(name: str, quantizer: AnyQuantizer, x: npt.NDArray[Any]) -> SchemeCost:
    """Measures a scheme on latents, without decoding.

    Args:
        name: The scheme's name.
        quantizer: The quantizer of the scheme.
        x: Latents (N, C, ...).
    """
    measured = quantizer.measure(x)
    if isinstance(quantizer, Transform):
        bits, entropy = 8 * quantizer.packed_bytes(0) // math.prod(x.shape[1:]), None
    else:
        bits, entropy = quantizer.bits, None if quantizer.bits > 8 else _entropy(quantizer.quantize(x))
    return SchemeCost(
        name,
        bits,
        entropy,
        measured.overall_sqnr_db,
        min(measured.sqnr_db),
        sum(measured.clip_rate) / quantizer.channels,
        measured.largest_error,
    )


def _psnrs(
    autoencoder: Autoencoder,
    quantizers: Sequence[AnyQuantizer],
    x: npt.NDArray[Any],
    images: npt.NDArray[np.uint8] | None,
    bar: Progress,
) -> list[tuple[float, float]]:
    """Returns for each quantizer the mean PSNR of decoded codes against decoded floats, and against the images.

    The PSNR against the images is NaN if there are none. Works batch by batch, so that memory does not grow with the
    number of samples.

    Args:
        autoencoder: Decodes the latents.
        quantizers: Quantizers of the schemes.
        x: Raw latents (N, C, h, w).
        images: Originals (N, 3, H, W) uint8.
        bar: Counts the latents that are decoded, once for each quantizer.
    """
    scores: list[list[tuple[float, float]]] = [[] for _ in quantizers]
    for start in range(0, len(x), _BATCH):
        batch = x[start : start + _BATCH]
        targets = _decode(autoencoder, batch)
        originals = None if images is None else images[start : start + _BATCH].astype(np.float32) / 255
        for quantizer, pairs in zip(quantizers, scores, strict=True):
            stored: Any = quantizer.quantize_packed(batch)
            values = quantizer.dequantize_packed(stored, batch.shape)
            decoded = _decode(autoencoder, values)
            for index, image in enumerate(decoded):
                original = math.nan if originals is None else psnr(image, originals[index], peak=1.0)
                pairs.append((psnr(image, targets[index], peak=1.0), original))
            bar.update(len(batch))
    return [(float(np.mean([d for d, _ in pairs])), float(np.mean([i for _, i in pairs]))) for pairs in scores]


def _entropy(codes: npt.NDArray[np.uint8]) -> float:
    """Returns the entropy of each channel's codes (N, C, ...) in bits, averaged over the channels."""
    counts = np.stack([np.bincount(channel.ravel(), minlength=256) for channel in codes.swapaxes(0, 1)])
    share = counts / counts.sum(1, keepdims=True)
    logs = np.log2(share, where=share > 0, out=np.zeros_like(share))
    return abs(float((share * logs).sum(1).mean()))


def _decode(autoencoder: Autoencoder, latents: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Decodes a batch of latents to images (n, 3, H, W) in [0, 1]."""
    import torch

    low, high = autoencoder.pixel_range
    with torch.inference_mode():
        pixels = autoencoder.decode(torch.from_numpy(latents.astype(np.float32))).float().cpu()
    images: npt.NDArray[np.float32] = ((pixels - low) / (high - low)).clamp(0, 1).numpy()
    return images


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def of_dataset(
    path: str | PathLike[str],
    *,
    column: str | None = None,
    source: str | PathLike[str] | Source | None = None,
    autoencoder: str | PathLike[str] | None = None,
    progress: TextIO | None = None,
) -> tuple[npt.NDArray[np.float32], Autoencoder | None, npt.NDArray[np.uint8] | None]:
    """Reads the inputs of `measure` from a dataset.

    Args:
        path: The dataset.
        column: The latent column; the first by default.
        source: The source of the dataset. Its images are encoded again. Without a source, the stored latents are used,
            which have already been quantized once.
        autoencoder: The autoencoder's name or folder, if the name in the card does not find it. Without a source, an
            autoencoder is loaded only if this is given.
        progress: The stream for progress, or None.

    Returns:
        (N, C, h, w) raw latents of evenly spread samples, at most 4,096, or 512 with a source, with buckets of the
        bucket of most samples; the autoencoder or None; and the images (N, 3, H, W) or None.

    Raises:
        LatentqError: The dataset, the autoencoder or an original cannot be read.
    """
    from latentq.format.card import Card
    from latentq.inspect.originals import Originals
    from latentq.inspect.pictures import latent_name
    from latentq.models.match import autoencoder_for
    from latentq.reading.dataset import LatentDataset

    card = Card.load(path)
    name = latent_name(path, card, column)
    if name in card.tokens:
        raise LatentqError(f"{path}: column {name!r} holds tokens, which are not quantized")
    dataset = LatentDataset(path, columns=[name])
    members = dataset.table.counts
    count = min(int(members.max()), SAMPLES if source is None else ENCODED)
    spread = np.arange(count) * members.max() // count
    indices = dataset.table.indices(int(members.argmax()), spread).tolist()
    network = autoencoder_for(card, autoencoder) if source is not None or autoencoder is not None else None
    if source is None or network is None:
        return dataset.decodable(indices).numpy(), network, None
    originals = Originals(path, card, name, source, network)
    parts = []
    with BriefProgress(count, "encode", progress) as bar:
        for start in range(0, count, _BATCH):
            parts.append(originals.encode(indices[start : start + _BATCH]))
            bar.update(len(parts[-1][0]))
    return np.concatenate([latents for _, latents in parts]), network, np.concatenate([images for images, _ in parts])
