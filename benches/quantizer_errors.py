"""Print the size and the SQNR of every quantization scheme on real latents, and of rivals, as tables for RESULTS.md.

    python benches/quantizer_errors.py [FOLDER]

FOLDER holds `f8c32.npy` and `f32c32.npy`, float16 arrays (images, channels, height, width); `../shared/latents` by
default. Images of even number calibrate, those of odd number are measured. Nothing is timed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from quantizer_rivals import Rival, block_ranges, zstd_of_codes

from latentq import Quantizer, Transform

LATENTS = Path(__file__).resolve().parents[2] / "shared" / "latents"


STEP_RATES = {"f8c32": 4.77, "f32c32": 4.95}  # that give the constant step of 31.6 dB, a code book's at 6.1 bits


def schemes(latents: Any, step_rate: float) -> dict[str, Quantizer | Transform]:
    """Every scheme, calibrated on these latents where it is not fixed."""
    channels, elements = latents.shape[1], latents[0].size
    low, high = float(latents.min()), float(latents.max())
    fixed = {
        "imagenet.int8, +-14, truncating": Quantizer.uniform(-14, 14, channels=channels, rounding="truncate"),
        "imagenet.int8, range of these": Quantizer.uniform(low, high, channels=channels, rounding="truncate"),
        "imagenet_3gb, +-6.5": Quantizer.uniform(-6.5, 6.5, channels=channels),
        "imagenet_3gb, range of these": Quantizer.uniform(low, high, channels=channels),
    }
    calibrated = {
        f"{method}, {bits} bits": Quantizer.calibrate(latents, bits=bits, method=method)
        for bits in (8, 6, 5, 4, 3, 2)
        for method in ("minmax", "percentile", "mse", "lloyd-max", "trellis")
    }
    transforms = {
        f"transform, {elements * bits // 8:,} bytes": Transform.calibrate(latents, bytes=elements * bits // 8)
        for bits in (8, 6, 5, 4, 3, 2)
    }
    step = {"transform, constant step": Transform.calibrate(latents, rate=step_rate)}
    return {**fixed, **calibrated, **transforms, **step}


def rivals(calibration: Any, measured: Any) -> Iterator[tuple[str, Rival]]:
    """Yields the name and result of each rival on the measured latents. The block codec fits itself to each sample."""
    affine = Quantizer.calibrate(calibration)
    for level in (3, 19):
        yield f"zstd -{level} of the codes of mse, 8 bits", zstd_of_codes(affine, measured, level)
    for bits in (8, 6, 5, 4, 3, 2):
        yield f"vaezip, lbrq_{bits}bit", block_ranges(measured, bits)
    yield "vaezip, Lloyd, 4 bits, blocks of 4 x 4", block_ranges(measured, 4, side=4)


def table(latents: Any, step_rate: float = 4.0) -> str:
    """A row for each scheme and rival."""
    calibration, measured = latents[::2], latents[1::2]
    lines = [
        "| scheme | bits | SQNR, dB | worst channel | clipped, % | largest error |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, quantizer in schemes(calibration, step_rate).items():
        bits = 8 * sum(map(len, quantizer.quantize_packed(measured))) / measured.size
        result = quantizer.measure(measured)
        clipped = 100 * sum(result.clip_rate) / measured.shape[1]
        cells = f"{bits:.2f} | {result.overall_sqnr_db:.2f} | {min(result.sqnr_db):.2f} | {clipped:.3f}"
        lines.append(f"| {name} | {cells} | {result.largest_error:.3f} |")
    for name, (values, bits) in rivals(calibration, measured):
        signal = np.square(measured, dtype=np.float64)
        error = measured.astype(np.float64) - values
        overall = decibels(signal.sum(), np.square(error).sum())
        worst = decibels(signal.sum((0, 2, 3)), np.square(error).sum((0, 2, 3))).min()
        lines.append(f"| {name} | {bits:.2f} | {overall:.2f} | {worst:.2f} | | {np.abs(error).max():.3f} |")
    return "\n".join(lines)


def decibels(signal: Any, noise: Any) -> Any:
    return 10 * np.log10(signal / noise)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else LATENTS
    for name in ("f8c32", "f32c32"):
        latents = np.load(folder / f"{name}.npy")
        print(f"**{name}.npy** {latents.shape}\n\n{table(latents, STEP_RATES[name])}\n")


if __name__ == "__main__":
    main()
