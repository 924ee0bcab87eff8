"""The calibration of one column of another tool's latents, and the error that its quantizer makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format.encodings import transform_bytes
from latentq.quantizer import AnyQuantizer, Calibrator, Measurement, TransformCalibrator
from latentq.system.text import counted

_KEPT = 1 << 22  # values that a codec of whole samples is measured on, at most


@dataclass(frozen=True)
class Calibrated:
    """A calibrated quantizer.

    Attributes:
        quantizer: The quantizer.
        size: The bits per value or the bytes per sample, as text.
        error: Its error on samples that it was calibrated on.
        samples: The number of these samples.
    """

    quantizer: AnyQuantizer
    size: str
    error: Measurement
    samples: int


class ColumnCalibration:
    """The calibration of a column.

    A codec of whole samples is measured on the first ones of the first shape, since it has no histogram of values.

    Args:
        options: The column's quantizer, as a recipe has it.
        shape: (C, h, w) of a sample; with buckets, of the first.
    """

    def __init__(self, options: Mapping[str, Any], shape: Sequence[int]) -> None:
        self._bytes = transform_bytes(options, tuple(shape)) if options["kind"] == "transform" else None
        self._calibrator: Calibrator | TransformCalibrator = (
            Calibrator(shape[0], bits=options["bits"], method=options["method"])
            if self._bytes is None
            else TransformCalibrator(shape[0])
        )
        self._measures_samples = options["kind"] in ("trellis", "transform")
        self._kept: list[NDArray[Any]] = []
        self._samples = 0

    def update(self, values: NDArray[Any]) -> None:
        """Adds samples (N, C, ...), which the caller may overwrite afterwards."""
        self._calibrator.update(values)
        if not self._measures_samples:
            self._samples += len(values)
        elif not self._kept or values.shape[1:] == self._kept[0].shape[1:]:
            room = max(1, _KEPT // prod(values.shape[1:])) - self._samples
            if room > 0:
                self._kept.append(values[:room].copy())
                self._samples += len(self._kept[-1])

    def result(self) -> Calibrated:
        """Returns the quantizer and its error.

        Raises:
            LatentqError: A transform cannot encode any of the samples in its bytes.
            ValueError: No sample has room in the bytes.
        """
        if isinstance(self._calibrator, TransformCalibrator):
            assert self._bytes is not None
            transform, samples = self._calibrator.transform(bytes=self._bytes), np.concatenate(self._kept)
            bad = transform.encode_counted(samples).bad
            if len(bad) == len(samples):
                raise LatentqError(f"none of {counted(len(bad), 'sample')} can be encoded in {self._size}: {bad[0]}")
            samples = np.delete(samples, list(bad), 0)  # the conversion names them
            return Calibrated(transform, self._size, transform.measure(samples), len(samples))
        quantizer = self._calibrator.quantizer()
        if not self._measures_samples:
            return Calibrated(quantizer, f"{quantizer.bits} bits", self._calibrator.measure(quantizer), self._samples)
        error = quantizer.measure(np.concatenate(self._kept))
        return Calibrated(quantizer, f"{quantizer.bits} bits by a trellis", error, self._samples)

    @property
    def _size(self) -> str:
        return f"{counted(self._bytes or 0, 'byte')} by a transform"
