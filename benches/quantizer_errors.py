"""Print the SQNR of every quantization scheme on real latents, as tables for RESULTS.md.

    python benches/quantizer_errors.py [FOLDER]

FOLDER holds `f8c32.npy` and `f32c32.npy`, float16 arrays (images, channels, height, width); `../shared/latents` by
default. Images of even number calibrate, those of odd number are measured. Nothing is timed.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from latentq import Quantizer

LATENTS = Path(__file__).resolve().parents[2] / "shared" / "latents"


def schemes(latents: Any) -> dict[str, Quantizer]:
    """Every scheme, calibrated on these latents where it is not fixed."""
    channels = latents.shape[1]
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
    return {**fixed, **calibrated}


def table(latents: Any) -> str:
    """A row for each scheme."""
    lines = ["| scheme | SQNR, dB | worst channel | clipped, % | largest error |", "|---|---:|---:|---:|---:|"]
    for name, quantizer in schemes(latents[::2]).items():
        measured = quantizer.measure(latents[1::2])
        clipped = 100 * sum(measured.clip_rate) / latents.shape[1]
        cells = f"{measured.overall_sqnr_db:.2f} | {min(measured.sqnr_db):.2f} | {clipped:.3f}"
        lines.append(f"| {name} | {cells} | {measured.largest_error:.3f} |")
    return "\n".join(lines)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else LATENTS
    for name in ("f8c32", "f32c32"):
        latents = np.load(folder / f"{name}.npy")
        print(f"**{name}.npy** {latents.shape}\n\n{table(latents)}\n")


if __name__ == "__main__":
    main()
