"""Quantizers: floats to small integers and back, calibrated, per channel, equal on every device."""

from latentq.quantizer.floats import FLOAT_BITS, FLOAT_MAX, Counts, NotFiniteError
from latentq.quantizer.quantizer import Calibrator, Measurement, Quantizer
from latentq.quantizer.statistics import Moments, Statistics

__all__ = [
    "FLOAT_BITS",
    "FLOAT_MAX",
    "Calibrator",
    "Counts",
    "Measurement",
    "Moments",
    "NotFiniteError",
    "Quantizer",
    "Statistics",
]
