"""The transform codec: latents in half the bytes of a codebook at the same error, or in exactly as many as are given.

docs/codec.md specifies the bytes and the arithmetic. NumPy arrays and CPU tensors go through the Rust kernels; for
tensors on other devices the entropy coder runs on the CPU and the inverse transform on the device, with equal results.
"""

from __future__ import annotations

import base64
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from latentq import _core
from latentq._core import LatentqError
from latentq.quantizer.arrays import UINT8, as_array, as_bits, as_float64, check_threads, float_array, tensors_for
from latentq.quantizer.floats import FLOAT_DTYPES, float_name
from latentq.quantizer.quantizer import Quantizer
from latentq.quantizer.results import Measurement, damaged_sample, not_finite
from latentq.system.arrays import new_array

if TYPE_CHECKING:
    import torch

    from latentq.quantizer.floats import FloatDType

    Array = npt.NDArray[Any]

Stored: TypeAlias = "npt.NDArray[np.uint8] | Sequence[bytes] | torch.Tensor"
"""Encoded samples: (N, sample_bytes) uint8 if the number of bytes is fixed, else any N byte strings."""

_SIDE = 8
_STATES = 16  # bytes of the states of the entropy coder
_FLOAT32, _UINT16 = np.dtype("<f4"), np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class EncodedSamples:
    """Samples encoded by `Transform.encode_counted`.

    Attributes:
        data: uint8, the bytes of all samples, one after the other.
        lengths: (N,) int64, the bytes of each sample. A bad sample has none, or zeros if the number is fixed.
        bad: Maps the index of each sample that cannot be encoded to the reason.
        not_finite: Maps the index of each sample with a NaN or an infinity to the first such channel.
    """

    data: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.int64]
    bad: Mapping[int, str]
    not_finite: Mapping[int, int]

    def rows(self) -> list[bytes]:
        """Returns the bytes of each sample."""
        ends = np.cumsum(self.lengths)
        data = self.data.tobytes()
        return [data[end - n : end] for end, n in zip(ends.tolist(), self.lengths.tolist(), strict=True)]


@dataclass(frozen=True, slots=True)
class Transform:
    """An immutable codec of latents (N, C, h, w). Create one with `calibrate`, `TransformCalibrator` or `from_dict`.

    A basis over channels and a DCT of 8 x 8 tiles leave coefficients that a trellis quantizes to integers and an
    entropy coder stores. With `sample_bytes`, every sample has that many bytes and a step of its own; without, every
    sample has the same step and as many bytes as it needs. Samples should have at least 256 elements, of any h and w.

    Attributes:
        step: The step of the coefficients.
        mean: (C,) float32 little-endian: the mean of each channel.
        basis: (C, C) float32: a latent is `basis @ coefficients + mean`.
        inverse: (C, C) float32: the inverse of the basis.
        base: (C, 8, 8) uint8, 0 to 50: a table of frequencies for each band.
        frequency: (18, 128) uint16: frequencies of integers; each row adds up to 4096.
        sample_bytes: The bytes of every sample; None if they vary.
    """

    step: float
    mean: bytes = field(repr=False)
    basis: bytes = field(repr=False)
    inverse: bytes = field(repr=False)
    base: bytes = field(repr=False)
    frequency: bytes = field(repr=False)
    sample_bytes: int | None = None
    # The parameters as tensors, by device.
    on_device: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    _compiled: _core.Transform = field(init=False, repr=False, compare=False)

    kind: ClassVar[Literal["transform"]] = "transform"

    def __post_init__(self) -> None:
        if self.sample_bytes is not None and (type(self.sample_bytes) is not int or not 1 <= self.sample_bytes < 2**31):
            raise ValueError(f"bytes must be a positive number of bytes per sample, not {self.sample_bytes!r}")
        arrays = (_values(self.mean), _values(self.basis), _values(self.inverse))
        frequency = np.frombuffer(self.frequency, _UINT16).astype(np.uint16)
        compiled = _core.Transform(self.step, *arrays, np.frombuffer(self.base, np.uint8), frequency)
        object.__setattr__(self, "_compiled", compiled)

    @classmethod
    def calibrate(
        cls,
        latents: Array | torch.Tensor,
        *,
        rate: float | None = None,
        bytes: int | None = None,  # noqa: A002  (the name that recipes and cards have for it)
        metric: Array | None = None,
        power: float = 0.5,
    ) -> Transform:
        """Makes a codec that fits given samples; see `TransformCalibrator` for samples in batches.

        Args:
            latents: (N, C, h, w) finite floats, at least some hundred samples.
            rate: Bits per element that samples like these need, for a constant step; or
            bytes: the bytes of every sample, for a constant number.
            metric: (C, C) float64, symmetric: how much errors of the channels count together, as the mean of J^T J of a
                decoder. None weighs all alike, for the least squared error.
            power: The power that the metric is taken to: 1 follows it, 0 ignores it.

        Raises:
            NotFiniteError: A value is NaN or infinite.
            ValueError: There are no samples, or an argument is out of range.
        """
        if len(latents.shape) != 4:
            raise ValueError(f"latents must be (N, C, h, w), not of shape {tuple(latents.shape)}")
        calibrator = TransformCalibrator(latents.shape[1])
        calibrator.update(latents)
        return calibrator.transform(rate=rate, bytes=bytes, metric=metric, power=power)

    @property
    def channels(self) -> int:
        """The number of channels, C."""
        return len(self.mean) // 4

    @property
    def low(self) -> tuple[float, ...]:
        """Empty: values have no range."""
        return ()

    def packed_bytes(self, _elements: int) -> int:
        """Returns the stored size in bytes of one sample; 0 if it varies."""
        return self.sample_bytes or 0

    def encode(self, x: Array | torch.Tensor, *, threads: int = 1) -> npt.NDArray[np.uint8] | list[bytes]:
        """Encodes samples.

        Args:
            x: (N, C, h, w) float32, float16, float64, or bfloat16 as its bits in uint16; or a torch tensor of a float
                type on any device, which is encoded on the CPU.
            threads: The largest number of threads to use.

        Returns:
            (N, sample_bytes) uint8, or a list of N byte strings if their length varies.

        Raises:
            NotFiniteError: A value is NaN or infinite.
            LatentqError: A sample does not fit in its bytes, or a value is too far from those of the calibration.
            ValueError: `x` is not (N, C, h, w).
        """
        encoded = self.encode_counted(x, threads=threads)
        for sample, channel in encoded.not_finite.items():
            raise not_finite(sample, channel)
        for sample, reason in encoded.bad.items():
            raise LatentqError(f"sample {sample} cannot be encoded by the transform: {reason}")
        if self.sample_bytes is None:
            return encoded.rows()
        return encoded.data.reshape(len(encoded.lengths), self.sample_bytes)

    def encode_counted(self, x: Array | torch.Tensor, *, threads: int = 1) -> EncodedSamples:
        """Encodes samples, and names those that cannot be encoded instead of raising; see `encode`."""
        array, is_bfloat16 = float_array(as_array(x))
        data, lengths, bad = self._compiled.encode(array, is_bfloat16, self.sample_bytes, check_threads(threads))
        reasons = {sample: reason for sample, _, reason in bad}
        not_finite_channels = {sample: channel for sample, channel, _ in bad if channel is not None}
        return EncodedSamples(data, lengths, reasons, not_finite_channels)

    def decode(
        self,
        stored: Stored,
        shape: Sequence[int],
        *,
        dtype: FloatDType = np.float32,
        out: Any = None,
        threads: int = 1,
    ) -> Any:
        """Decodes samples.

        Args:
            stored: (N, sample_bytes) uint8, an array or a tensor; or N byte strings.
            shape: (N, C, h, w), or (C, h, w) of a sample.
            dtype: `float32`, `float16` or `bfloat16`, as a name, a NumPy dtype or a torch dtype. In NumPy, bfloat16 is
                returned as its bits in uint16. Values are computed in float32 and rounded to dtype.
            out: A C-contiguous buffer for the values.
            threads: The largest number of threads to use.

        Returns:
            (N, C, h, w) values: a tensor on the device of `stored` if that is a tensor, else an array; `out` if given.

        Raises:
            DamagedSampleError: The bytes of a sample are damaged.
            ValueError: The shape or `out` does not match.
        """
        if tensors := tensors_for(stored):
            name, tensor = float_name(dtype), cast("torch.Tensor", stored)
            if tensor.device.type != "cpu":
                values = self.decode_tensor(tensor, shape, dtype=dtype, threads=threads)
                return tensors.copied(values, out)
            array = tensors.to_numpy(tensor)
            decoded = self.decode(array, shape, dtype=name, out=tensors.out_array(out), threads=threads)
            return tensors.from_numpy(decoded, name, out)
        name = float_name(dtype)
        data, lengths = _joined(stored)
        full = self._full_shape(len(lengths), shape)
        if out is None:
            out = new_array(full, FLOAT_DTYPES[name])
        elif getattr(out, "shape", None) != full:
            raise ValueError(f"out must be an array of {FLOAT_DTYPES[name]} of shape {full}")
        bits = as_bits(out, name)
        bad = self._compiled.decode(data, lengths, bits, name == "bfloat16", check_threads(threads))
        for sample, _, reason in bad:
            raise damaged_sample(sample, reason)
        return out

    def decode_tensor(
        self,
        stored: Stored,
        shape: Sequence[int],
        *,
        device: str | torch.device | None = None,
        dtype: FloatDType = np.float32,
        threads: int = 1,
    ) -> torch.Tensor:
        """Decodes samples to a tensor on a device: the entropy coder on the CPU, the inverse transform on the device.

        Two bytes per element go to the device. The values are those of `decode`, bit for bit.

        Args:
            stored: (N, sample_bytes) uint8, an array or a tensor; or N byte strings.
            shape: (N, C, h, w), or (C, h, w) of a sample.
            device: The device of the result; None for that of `stored`, or the CPU.
            dtype: As for `decode`.
            threads: The largest number of threads to use on the CPU.

        Raises:
            DamagedSampleError: The bytes of a sample are damaged.
            ValueError: The shape does not match.
        """
        from latentq.quantizer import transform_tensors

        if device is None and tensors_for(stored):
            device = cast("torch.Tensor", stored).device
        numbers, steps = self.numbers(stored, shape, threads=threads)
        on_device = (transform_tensors.sent(values, device or "cpu") for values in (numbers, steps))
        return self.from_numbers(*on_device, dtype=dtype)

    def from_numbers(
        self, numbers: torch.Tensor, steps: torch.Tensor, *, dtype: FloatDType = np.float32
    ) -> torch.Tensor:
        """Returns the values of the integers that `numbers` returned, on their device: the inverse transform.

        Args:
            numbers: (N, C, h, w) int16 or int32.
            steps: (N,) float32, on the same device.
            dtype: As for `decode`.
        """
        from latentq.quantizer import transform_tensors

        device = str(numbers.device)
        tables = self.on_device.get(device)
        if tables is None:
            tables = transform_tensors.Tables.of(self.mean, self.basis, numbers.device)
            self.on_device[device] = tables
        return transform_tensors.inverse(tables, numbers, steps, float_name(dtype))

    def numbers(
        self, stored: Stored, shape: Sequence[int], *, threads: int = 1
    ) -> tuple[Array, npt.NDArray[np.float32]]:
        """Decodes samples to integers in steps, before the inverse transform.

        Args:
            stored: As for `decode`; a tensor is copied to the CPU.
            shape: (N, C, h, w), or (C, h, w) of a sample.
            threads: The largest number of threads to use.

        Returns:
            (N, C, h, w) int16 integers, or int32 if 16 bits are not enough for one; and the (N,) float32 steps.

        Raises:
            DamagedSampleError: The bytes of a sample are damaged.
            ValueError: The shape does not match.
        """
        data, lengths = _joined(as_array(stored))
        full = self._full_shape(len(lengths), shape)
        steps = np.empty(len(lengths), np.float32)
        for dtype in (np.int16, np.int32):
            out: Any = np.empty(full, dtype)
            bad = self._compiled.decode_numbers(data, lengths, out, steps, check_threads(threads))
            if not bad:
                break
        for sample, _, reason in bad:
            raise damaged_sample(sample, reason)
        return out, steps

    def damaged(self, stored: Stored, shape: Sequence[int], *, threads: int = 1) -> dict[int, str]:
        """Returns the reason for each sample that cannot be decoded, by index; see `decode`."""
        data, lengths = _joined(as_array(stored))
        out = np.empty(self._full_shape(len(lengths), shape), np.float32)
        bad = self._compiled.decode(data, lengths, out, False, check_threads(threads))
        return {sample: reason for sample, _, reason in bad}

    def quantize_packed(self, x: Array | torch.Tensor, *, threads: int = 1) -> npt.NDArray[np.uint8] | list[bytes]:
        """Encodes samples: the name that `Quantizer` has for `encode`."""
        return self.encode(x, threads=threads)

    def dequantize_packed(
        self,
        packed: Any,
        shape: Sequence[int],
        *,
        dtype: FloatDType = np.float32,
        out: Any = None,
        threads: int = 1,
    ) -> Any:
        """Decodes samples: the name that `Quantizer` has for `decode`."""
        return self.decode(packed, shape, dtype=dtype, out=out, threads=threads)

    def for_gather(self, is_bfloat16: bool) -> tuple[_core.Transform, bool]:
        """Returns the arguments for `_core.gather`: the compiled codec and `is_bfloat16`.

        Args:
            is_bfloat16: True if 16-bit values are bfloat16, False if they are float16.
        """
        return self._compiled, is_bfloat16

    def changed(self, shift: Array, factor: Array) -> Transform:
        """Returns a codec that decodes the same bytes to `(value - shift) * factor`, up to rounding.

        Args:
            shift: (C,) floats.
            factor: (C,) floats other than 0.
        """
        basis, inverse = (
            _values(matrix).reshape(self.channels, -1).astype(np.float64) for matrix in (self.basis, self.inverse)
        )
        mean = (_values(self.mean) - np.asarray(shift, np.float64)) * factor
        tables = (mean, basis * np.asarray(factor)[:, None], inverse / np.asarray(factor)[None])
        mean_bytes, basis_bytes, inverse_bytes = (table.astype(_FLOAT32).tobytes() for table in tables)
        return Transform(
            self.step, mean_bytes, basis_bytes, inverse_bytes, self.base, self.frequency, self.sample_bytes
        )

    def measure(self, x: Array | torch.Tensor, *, threads: int = 1) -> Measurement:
        """Measures the error of encoding x. Nothing is clipped.

        Args:
            x: (N, C, h, w) finite floats.
            threads: The largest number of threads to use.

        Raises:
            NotFiniteError: A value is NaN or infinite.
            LatentqError: A sample cannot be encoded.
        """
        values = as_array(x)
        signal, noise, largest_error = np.zeros(self.channels), np.zeros(self.channels), 0.0
        step = max(1, 2**20 // max(1, math.prod(values.shape[1:])))
        for start in range(0, len(values), step):
            batch = values[start : start + step]
            exact = as_float64(batch)
            error = exact - self.decode(self.encode(batch, threads=threads), batch.shape, threads=threads)
            signal += np.square(exact).sum((0, 2, 3))
            noise += np.square(error).sum((0, 2, 3))
            largest_error = max(largest_error, float(np.abs(error).max(initial=0.0)))
        return Measurement.from_sums(signal.tolist(), noise.tolist(), [0.0] * self.channels, largest_error)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary that TOML stores exactly and from which `from_dict` makes an equal codec."""
        data: dict[str, Any] = {"kind": "transform", "step": self.step}
        if self.sample_bytes is not None:
            data["bytes"] = self.sample_bytes
        tables = {name: getattr(self, name) for name in ("mean", "basis", "inverse", "base", "frequency")}
        return data | {name: base64.b64encode(table).decode() for name, table in tables.items()}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Transform:
        """Makes the codec that `to_dict` described.

        Args:
            d: A result of `to_dict`.

        Raises:
            ValueError: An entry is missing, unknown or out of range.
        """
        entries = dict(d)
        if entries.pop("kind", None) != "transform":
            raise ValueError(f"a transform, not a quantizer of kind {d.get('kind')!r}")
        sample_bytes = entries.pop("bytes", None)
        names = ("step", "mean", "basis", "inverse", "base", "frequency")
        if entries.keys() != set(names):
            raise ValueError(f"a transform has {', '.join(names)}, not {', '.join(map(str, entries))}")
        if type(entries["step"]) not in (int, float):
            raise ValueError(f"the step of a transform must be a number, not {entries['step']!r}")
        mean, basis, inverse, base, frequency = (_decoded(name, entries[name]) for name in names[1:])
        return cls(float(np.float32(entries["step"])), mean, basis, inverse, base, frequency, sample_bytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Transform.from_dict, (self.to_dict(),)

    def _full_shape(self, samples: int, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns (N, C, h, w), or raises ValueError if the shape is not one of N encoded samples."""
        full = tuple(shape) if len(shape) == 4 else (samples, *shape)
        if len(full) != 4 or full[0] != samples or full[1] != self.channels:
            raise ValueError(f"{samples} encoded samples of {self.channels} channels are not of shape {tuple(shape)}")
        if not 0 < math.prod(full[1:]) < 2**31:  # before anything is allocated for them
            raise ValueError(f"a sample of shape {full[1:]} is empty or too large for a transform")
        return full


def check_transform_shape(shape: Sequence[int]) -> None:
    """Checks that a transform makes sense for samples of a shape.

    Args:
        shape: (C, h, w).

    Raises:
        ValueError: A sample has less than 256 elements, or more than 128 channels, or the shape is another one.
    """
    if len(shape) != 3:
        raise ValueError(f"a transform is for samples (C, h, w), not {tuple(shape)}")
    _core.check_transform_shape(*shape)


def least_transform_bytes(shape: Sequence[int]) -> int:
    """Returns the bytes of a sample without its words, escapes and low bits: fewer hold no sample of this shape.

    Args:
        shape: (C, h, w).
    """
    return 1 + math.prod(-(-size // _SIDE) for size in shape[1:]) + _STATES


AnyQuantizer: TypeAlias = Quantizer | Transform
"""A quantizer or codec, which turns the values of a column into stored bytes and back."""


def quantizer_from_dict(d: Mapping[str, Any]) -> AnyQuantizer:
    """Makes the quantizer or codec that `to_dict` described.

    Raises:
        ValueError: An entry is missing, unknown or out of range.
    """
    return Transform.from_dict(d) if d.get("kind") == "transform" else Quantizer.from_dict(d)


class TransformCalibrator:
    """Finds the tables of a transform for samples that come in batches.

    It keeps at most 2^24 values (64 MiB), of more samples every second, fourth and so on. The order of the samples
    matters, and how they are cut into batches does not. Samples may have any h and w.

    Args:
        channels: The number of channels, C, at most 128.

    Raises:
        ValueError: `channels` is out of range.
    """

    def __init__(self, channels: int) -> None:
        self._core = _core.TransformCalibrator(channels)
        self._shape: tuple[int, ...] = ()  # of the first sample

    def update(self, x: Array | torch.Tensor) -> None:
        """Adds a batch of samples.

        Args:
            x: (N, C, h, w) finite floats.

        Raises:
            NotFiniteError: A value is NaN or infinite. No sample is added then.
            ValueError: `x` is not (N, C, h, w).
        """
        array, is_bfloat16 = float_array(as_array(x))
        bad = self._core.update(array, is_bfloat16)
        if bad is not None:
            raise not_finite(*bad)
        self._shape = self._shape or tuple(array.shape[1:])

    def transform(
        self,
        *,
        rate: float | None = None,
        bytes: int | None = None,  # noqa: A002  (the name that recipes and cards have for it)
        metric: Array | None = None,
        power: float = 0.5,
    ) -> Transform:
        """Returns the codec that fits the samples.

        Args:
            rate: Bits per element, as for `Transform.calibrate`; or
            bytes: the bytes of every sample.
            metric: As for `Transform.calibrate`.
            power: Likewise.

        Raises:
            ValueError: There are no samples, or an argument is out of range.
        """
        if (rate is None) == (bytes is None):
            raise ValueError("give either rate=, for a constant step, or bytes=, for a constant number of bytes")
        if bytes is not None:
            bytes = operator.index(bytes)  # noqa: A001  (the name that recipes have for it)
        if bytes is not None and self._shape:
            least = least_transform_bytes(self._shape)
            if bytes < least:
                raise ValueError(f"{bytes} bytes hold no sample of shape {self._shape}, which takes {least} or more")
        if rate is None:
            rate = self._rate_of(int(bytes or 0))
        weights = None if metric is None else (np.ascontiguousarray(metric, np.float64), float(power))
        step, mean, basis, inverse, base, frequency = self._core.tables(float(rate), weights)
        floats = [values.astype(_FLOAT32).tobytes() for values in (mean, basis, inverse)]
        integers = [base.tobytes(), frequency.astype(_UINT16).tobytes()]
        return Transform(step, floats[0], floats[1], floats[2], integers[0], integers[1], bytes)

    def _rate_of(self, sample_bytes: int) -> float:
        """Returns the bits per element that a number of bytes leaves, without those before the words of a sample."""
        if not self._shape:
            raise ValueError("there are no samples to calibrate with")
        # Half of the bytes of the states are used for low bits.
        rate = 8 * (sample_bytes - least_transform_bytes(self._shape) + _STATES // 2) / math.prod(self._shape)
        return float(min(max(rate, 0.25), 16.0))


def _values(table: bytes) -> npt.NDArray[np.float32]:
    """Returns little-endian float32 values in native order."""
    return np.frombuffer(table, _FLOAT32).astype(np.float32)


def _decoded(name: str, text: Any) -> bytes:
    """Returns the bytes of a table from its base64 text, or raises ValueError."""
    if not isinstance(text, str):
        raise ValueError(f"{name} of a transform must be base64 text")
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"{name} of a transform is not base64: {error}") from None
    if name != "base" and len(data) % (2 if name == "frequency" else 4):
        raise ValueError(f"{name} of a transform has {len(data)} bytes, which are not whole numbers")
    return data


def _joined(stored: Any) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Returns the bytes of all samples, one after the other, and the length of each."""
    if isinstance(stored, np.ndarray):
        if stored.ndim != 2 or stored.dtype != UINT8:
            raise ValueError(f"encoded samples are (N, bytes) of uint8, not {stored.shape} of {stored.dtype}")
        data = np.ascontiguousarray(stored).reshape(-1)
        return data, np.full(len(stored), stored.shape[1], np.int64)
    if isinstance(stored, (bytes, bytearray, memoryview)):
        raise ValueError("encoded samples are a sequence of byte strings, not a single one: [data] decodes one sample")
    lengths = np.fromiter(map(len, stored), np.int64, len(stored))
    return np.frombuffer(b"".join(stored), UINT8), lengths
