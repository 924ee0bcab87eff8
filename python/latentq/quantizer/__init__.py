"""Quantizers: floats to small integers and back, calibrated, per channel, equal on every device."""

from latentq.choices import Method
from latentq.quantizer.floats import FLOAT_BITS, FLOAT_MAX
from latentq.quantizer.quantizer import Calibrator, Quantizer
from latentq.quantizer.results import DamagedSampleError, Measurement, NotFiniteError, ValueCounts
from latentq.quantizer.scheme import Kind, Rounding
from latentq.quantizer.statistics import Moments, Statistics
from latentq.quantizer.transform import (
    AnyQuantizer,
    EncodedSamples,
    Transform,
    TransformCalibrator,
    check_transform_shape,
    least_transform_bytes,
    quantizer_from_dict,
)

__all__ = [
    "FLOAT_BITS",
    "FLOAT_MAX",
    "AnyQuantizer",
    "Calibrator",
    "Counts",
    "DamagedSampleError",
    "EncodedSamples",
    "Kind",
    "Measurement",
    "Method",
    "Moments",
    "NotFiniteError",
    "Quantizer",
    "Rounding",
    "Statistics",
    "Transform",
    "TransformCalibrator",
    "ValueCounts",
    "check_transform_shape",
    "least_transform_bytes",
    "quantizer_from_dict",
]

Counts = ValueCounts  # its name in 0.1.0
