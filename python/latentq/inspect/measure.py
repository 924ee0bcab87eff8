"""What each scheme and number of bits would cost for given latents: how a user chooses a quantiser."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from latentq._core import LatentqError
from latentq.quantizer import Method, Quantizer

__all__ = ["Row", "load", "main_table", "measure", "of_dataset", "print_table"]


BITS = (8, 6, 4)


METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse", "lloyd-max")


SAMPLES = 4096


_FLOAT16_OVERFLOW = 65520.0  # the first value that rounds to infinity


"""So many samples are taken from what has more."""


_BATCH = 8


@dataclass(frozen=True, slots=True)
class Row:
    """One scheme's cost.

    Attributes:
        scheme: "float16" (or "bfloat16"), "uniform" (one range for all channels), or a method of `Quantizer.calibrate`.
        bits: stored, per element.
        entropy: of the codes, in bits per element: what an ideal entropy coder of single codes would store. None for
            floats.
        sqnr_db: over all channels together, as in `Measurement`.
        worst_sqnr_db: of the worst channel.
        clip_rate: the share of values outside the range.
        largest_error: in the unit of the latents.
        psnr_images_db: of the pictures decoded from the codes against the images; None without images.
        psnr_decoded_db: of the same against those decoded from the floats; None without an autoencoder.
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


def load(path: str | PathLike[str]) -> npt.NDArray[Any]:
    """Latents (N, C, ...) from a .npy file; float16 ones are read as they are needed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no array of floats (N, C, ...).
    """
    try:
        latents = np.load(Path(path), mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: not a .npy file: {error}") from None
    if not isinstance(latents, np.ndarray) or latents.ndim < 2 or latents.dtype.kind != "f" or latents.itemsize > 8:
        raise ValueError(f"{path}: expected a .npy file of float latents (N, C, ...)")
    return latents


def measure(
    latents: Any,
    *,
    bits: Sequence[int] = BITS,
    methods: Sequence[Method] = METHODS,
    autoencoder: Any = None,
    images: npt.NDArray[np.uint8] | None = None,
) -> list[Row]:
    """Measures every method at every number of bits, beside float16 and one range for all channels.

    bfloat16 stands in float16's place for latents that float16 cannot hold.

    Samples of even number calibrate and those of odd number are measured, so that no scheme is flattered by having seen
    what it is tried on (a single sample does both).

    Args:
        latents: (N, C, ...) floats, or any iterable of samples (C, ...); the first 4,096 are taken.
        bits: each 2 to 8.
        methods: of `Quantizer.calibrate`.
        autoencoder: to decode with: an object with `decode` and `pixel_range`, as latentq.load_autoencoder gives.
        images: (N, 3, S, S) uint8, what the latents were encoded from.

    Raises:
        NotFiniteError: a value is NaN or infinite.
        ValueError: there are no samples, or images and latents differ in number.
    """
    x = _samples(latents)
    Quantizer.floating("float32", channels=x.shape[1]).quantize(x)  # so that an error counts the samples that are given
    calibration, tried = (x[::2], x[1::2]) if len(x) > 1 else (x, x)
    if images is not None:
        if len(images) < len(x):
            raise ValueError(f"{len(images)} images do not go with {len(x)} latents")
        images = images[: len(x)][1::2] if len(x) > 1 else images[:1]
    channels = x.shape[1]
    low, high = float(calibration.min()), float(calibration.max())
    kept = "float16" if max(-float(x.min()), float(x.max())) < _FLOAT16_OVERFLOW else "bfloat16"
    rows = [(kept, Quantizer.floating(kept, channels=channels))]
    rows += [("uniform", Quantizer.uniform(low, high, channels=channels, bits=b)) for b in bits]
    rows += [(m, Quantizer.calibrate(calibration, bits=b, method=m)) for b, m in itertools.product(bits, methods)]
    decoded = None if autoencoder is None else _decode(autoencoder, tried)
    return [_row(name, q, tried, autoencoder, decoded, images) for name, q in rows]


def print_table(rows: Sequence[Row], *, file: TextIO | None = None) -> None:
    """Writes rows as an aligned table, to standard output unless told otherwise."""
    columns = {
        "scheme": [row.scheme for row in rows],
        "bits": [str(row.bits) for row in rows],
        "entropy": [_number(row.entropy, 2) for row in rows],
        "SQNR dB": [_number(row.sqnr_db, 2) for row in rows],
        "worst": [_number(row.worst_sqnr_db, 2) for row in rows],
        "clipped %": [_number(100 * row.clip_rate, 3) for row in rows],
        "largest error": [_number(row.largest_error, 4) for row in rows],
        "PSNR images": [_number(row.psnr_images_db, 2) for row in rows],
        "PSNR decoded": [_number(row.psnr_decoded_db, 2) for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    widths = {name: max(map(len, (name, *cells))) for name, cells in shown.items()}
    lines = [list(shown), *(list(cells) for cells in zip(*shown.values(), strict=True))]
    out = file or sys.stdout
    for line in lines:
        first, *rest = zip(line, widths.values(), strict=True)
        cells = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]
        out.write("  ".join(cells).rstrip() + "\n")


def main_table(latents: Any, *, as_json: bool = False, file: TextIO | None = None, **options: Any) -> None:
    """`latentq measure`: measures and writes the table, or with `as_json` a list of objects, one for each row.

    Args:
        latents: the path of a .npy file, or what `measure` takes.
        as_json: numbers that are not finite become null.
        file: standard output unless told otherwise.
        **options: those of `measure`.
    """
    rows = measure(load(latents) if isinstance(latents, str | PathLike) else latents, **options)
    if not as_json:
        print_table(rows, file=file)
        return
    plain = [dataclasses.asdict(row) for row in rows]
    for row in plain:
        row.update({k: None for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)})
    (file or sys.stdout).write(json.dumps(plain, indent=2) + "\n")


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


def _arrays(samples: Iterable[Any]) -> Iterable[npt.NDArray[Any]]:
    for sample in samples:
        yield sample if isinstance(sample, np.ndarray) else sample.detach().cpu().float().numpy()


def _row(
    name: str,
    q: Quantizer,
    x: npt.NDArray[Any],
    autoencoder: Any,
    decoded: npt.NDArray[np.float32] | None,
    images: npt.NDArray[np.uint8] | None,
) -> Row:
    m = q.measure(x)
    codes, _ = q.quantize_counted(x)
    entropy = None if q.bits > 8 else _entropy(q.histogram(codes))
    psnr_images = psnr_decoded = None
    if decoded is not None:
        again = _decode(autoencoder, q.dequantize(codes))
        psnr_decoded = _psnr(again, decoded)
        psnr_images = None if images is None else _psnr(again, images.astype(np.float32) / 255)
    clipped = sum(m.clip_rate) / q.channels
    return Row(
        name,
        q.bits,
        entropy,
        m.overall_sqnr_db,
        min(m.sqnr_db),
        clipped,
        m.largest_error,
        psnr_images,
        psnr_decoded,
    )


def _entropy(histogram: npt.NDArray[np.int64]) -> float:
    """Of the codes of each channel, in bits, averaged over the channels."""
    share = histogram / histogram.sum(1, keepdims=True)
    logs = np.log2(share, where=share > 0, out=np.zeros_like(share))
    return abs(float((share * logs).sum(1).mean()))


def _decode(autoencoder: Any, latents: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Pictures (N, 3, S, S) in [0, 1]."""
    import torch

    low, high = autoencoder.pixel_range
    pictures = []
    for start in range(0, len(latents), _BATCH):
        batch = torch.from_numpy(latents[start : start + _BATCH].astype(np.float32))
        with torch.inference_mode():
            pixels = autoencoder.decode(batch).float().cpu()
        pictures.append(((pixels - low) / (high - low)).clamp(0, 1).numpy())
    return np.concatenate(pictures)


def _psnr(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """The mean over the pictures, for values in [0, 1]."""
    errors = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return float(np.mean([math.inf if error == 0 else -10 * math.log10(error) for error in errors]))


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def of_dataset(
    path: str | PathLike[str],
    *,
    column: str | None = None,
    source: str | PathLike[str] | None = None,
    autoencoder: str | PathLike[str] | None = None,
) -> tuple[npt.NDArray[np.float32], Any, npt.NDArray[np.uint8] | None]:
    """What `measure` takes, from a dataset: latents, autoencoder and images.

    Args:
        path: the dataset.
        column: which latent column; the first where None.
        source: what the dataset was made from. Its pictures are encoded anew; without it the latents are the stored
            ones, which have been quantised once already.
        autoencoder: where it is, if its name in the card is not enough; without a source none is loaded unless named.

    Returns:
        (N, C, h, w) unscaled latents of at most 4,096 samples spread evenly; the autoencoder or None; and the images
        (N, 3, S, S) or None.

    Raises:
        LatentqError: the dataset, the autoencoder or an original cannot be read.
    """
    from latentq.format.card import Card
    from latentq.inspect.originals import Originals
    from latentq.inspect.pictures import latent_name
    from latentq.models.match import autoencoder_for
    from latentq.reading.dataset import LatentDataset

    card = Card.load(path)
    name = latent_name(path, card, column)
    if name in card.tokens:
        raise LatentqError(f"{path}: column {name!r} holds tokens, which no quantiser is for")
    dataset = LatentDataset(path, columns=[name])
    count = min(len(dataset), SAMPLES)
    indices = [place * len(dataset) // count for place in range(count)]
    network = autoencoder_for(card, autoencoder) if source is not None or autoencoder is not None else None
    if source is None or network is None:
        return dataset.decodable(indices).numpy(), network, None
    originals = Originals(path, card, name, source, network)
    parts = [originals.encode(indices[start : start + _BATCH]) for start in range(0, count, _BATCH)]
    return np.concatenate([latents for _, latents in parts]), network, np.concatenate([images for images, _ in parts])
