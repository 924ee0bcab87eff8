"""Floats to small integers and back: calibrated, per channel, equal on every device.

The arithmetic, the packed layout and the methods of calibration are written down in docs/quantizer.md. NumPy arrays
and torch tensors on the CPU go through the Rust kernels; tensors on other devices through torch operations with equal
results.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from latentq import _core
from latentq._core import LatentqError

__all__ = ["Calibrator", "Counts", "Measurement", "Moments", "NotFiniteError", "Quantizer", "Statistics"]

_FLOAT_BITS = {"float16": 16, "bfloat16": 16, "float32": 32}
_FLOAT_MAX = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127"), "float32": float(np.finfo(np.float32).max)}
_FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
}
_FLOAT_NAMES: dict[Any, str] = {np.float32: "float32", np.float16: "float16", **{name: name for name in _FLOAT_BITS}}
_FLOAT32 = np.dtype(np.float32)
_UINT8 = np.dtype(np.uint8)
_CHANNELS = 1 << 16  # more than any autoencoder has; a number in a file may be any
_METHODS = ("mse", "minmax", "percentile", "lloyd-max")


class NotFiniteError(LatentqError, ValueError):
    """A NaN or an infinity where a number is needed; the message names the sample and the channel."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was seen while quantising.

    Attributes:
        clipped: (C,) int64, the values outside [low, high] in each channel, those of bad samples left out.
        bad: (N,) bool, the samples that hold a NaN or an infinity. Their codes are 0.
    """

    clipped: npt.NDArray[np.int64]
    bad: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What quantising costs.

    Attributes:
        sqnr_db: for each channel, 10 log10 of the sum of squares of the values over that of the errors. Infinite where
            there is no error.
        overall_sqnr_db: the same over all channels together.
        clip_rate: for each channel, the share of values outside [low, high].
        largest_error: the largest difference between a value and what its code gives back.
    """

    sqnr_db: tuple[float, ...]
    overall_sqnr_db: float
    clip_rate: tuple[float, ...]
    largest_error: float

    @classmethod
    def _of(
        cls, signal: Sequence[float], noise: Sequence[float], clip_rate: Sequence[float], largest: float
    ) -> Measurement:
        ratios = tuple(_decibels(s, n) for s, n in zip(signal, noise, strict=True))
        return cls(ratios, _decibels(math.fsum(signal), math.fsum(noise)), tuple(clip_rate), largest)


@dataclass(frozen=True, slots=True)
class Quantizer:
    """A frozen value: how floats become codes, and codes floats. Made by its class methods.

    Attributes:
        kind: "uniform" (one given range), "affine" (a range for each channel), "codebook", or the float type in which
            values are stored as they are: "float16", "bfloat16", "float32".
        bits: of one stored element: 2 to 8, or the float type's.
        rounding: "nearest" (halfway to even), or "truncate" for reproducing old data.
        low: for each channel the value of code 0, exact in float32; for a float type its smallest number.
        high: for each channel the value of the last code; for a float type its largest number.
        levels: for a code book, for each channel the value of every code; else empty.
    """

    kind: str
    bits: int
    rounding: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    levels: tuple[tuple[float, ...], ...] = ()
    _kernel: _core.Quantizer | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kernel = None
        if self.kind not in _FLOAT_BITS and not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {self.bits}")
        if self.kind in ("uniform", "affine"):
            if self.rounding not in ("nearest", "truncate"):
                raise ValueError(f'rounding must be "nearest" or "truncate", not {self.rounding!r}')
            kernel = _core.Quantizer.affine(self.low, self.high, self.bits, self.rounding == "truncate")
        elif self.kind == "codebook":
            kernel = _core.Quantizer.codebook(np.array(self.levels, np.float32), self.bits)
        elif self.kind not in _FLOAT_BITS:
            raise ValueError(f"there is no quantiser of kind {self.kind!r}")
        if not self._is_of_its_kind():
            raise ValueError(f"these are not the fields of a quantiser of kind {self.kind!r}: {self!r:.200}")
        object.__setattr__(self, "_kernel", kernel)

    def _is_of_its_kind(self) -> bool:
        """Whether the fields are such as the kind's class method gives."""
        _check_channels(len(self.low))
        if self.kind == "codebook":
            ends = tuple(row[0] for row in self.levels), tuple(row[-1] for row in self.levels)
            return self.rounding == "nearest" and ends == (self.low, self.high)
        if self.levels:
            return False
        if self.kind in _FLOAT_BITS:
            top = _FLOAT_MAX[self.kind]
            ends = (-top,) * len(self.low), (top,) * len(self.low)
            return (self.bits, self.rounding) == (_FLOAT_BITS[self.kind], "nearest") and ends == (self.low, self.high)
        exact = (_float32s(self.low), _float32s(self.high)) == (self.low, self.high)
        one_range = len(set(zip(self.low, self.high, strict=True))) == 1
        return exact and (one_range if self.kind == "uniform" else self.rounding == "nearest")

    @classmethod
    def uniform(cls, low: float, high: float, *, channels: int, bits: int = 8, rounding: str = "nearest") -> Quantizer:
        """A given range for all channels: the scheme of the source systems.

        Args:
            low: the value of code 0; rounded to float32.
            high: the value of the last code; rounded to float32.
            channels: how many.
            bits: 2 to 8.
            rounding: "nearest", or "truncate" to reproduce the encoder of imagenet.int8 bit for bit; its codes are
                decoded at the lower edge of their step.

        Raises:
            ValueError: an argument is out of range, low > high, or one of them is not finite.
        """
        _check_channels(channels)
        return cls("uniform", bits, rounding, _float32s([low]) * channels, _float32s([high]) * channels)

    @classmethod
    def affine(cls, low: Sequence[float], high: Sequence[float], *, bits: int = 8) -> Quantizer:
        """A range for each channel.

        Args:
            low: (C,) the values of code 0; rounded to float32.
            high: (C,) the values of the last code; rounded to float32. Where it equals low, every code is 0.
            bits: 2 to 8.

        Raises:
            ValueError: an argument is out of range, low > high somewhere, or a value is not finite.
        """
        return cls("affine", bits, "nearest", _float32s(low), _float32s(high))

    @classmethod
    def codebook(cls, levels: Sequence[Sequence[float]] | npt.NDArray[Any]) -> Quantizer:
        """A code book for each channel. A value takes the nearest level; halfway, the lower.

        Args:
            levels: (C, 2^bits) finite values, ascending in each channel, for 2 to 8 bits; rounded to float32.

        Raises:
            ValueError: the shape is another, or the levels do not ascend.
        """
        array = np.asarray(levels, np.float32)
        if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] not in (4, 8, 16, 32, 64, 128, 256):
            raise ValueError(f"levels must be (channels, 2^bits) for 2 to 8 bits, not of shape {array.shape}")
        rows = tuple(tuple(row) for row in array.tolist())
        low, high = tuple(row[0] for row in rows), tuple(row[-1] for row in rows)
        return cls("codebook", array.shape[1].bit_length() - 1, "nearest", low, high, rows)

    @classmethod
    def floating(cls, dtype: Any, *, channels: int) -> Quantizer:
        """Values stored as they are, rounded to float16, bfloat16 or float32.

        Their "codes" are an array of that type; bfloat16 has none in NumPy, so there they are its bits, as uint16.

        Args:
            dtype: "float16", "bfloat16", "float32", or the NumPy or torch dtype.
            channels: how many.
        """
        _check_channels(channels)
        kind = _float_name(dtype)
        top = _FLOAT_MAX[kind]
        return cls(kind, _FLOAT_BITS[kind], "nearest", (-top,) * channels, (top,) * channels)

    @classmethod
    def calibrate(cls, latents: Any, *, bits: int = 8, method: str = "mse") -> Quantizer:
        """A range, or a code book, for each channel, measured on samples; see `Calibrator`.

        Args:
            latents: (N, C, ...) floats: an array or a tensor.
            bits: 2 to 8.
            method: "mse", "minmax", "percentile", or "lloyd-max" for a code book.

        Raises:
            NotFiniteError: a value is NaN or infinite.
            ValueError: there are no values, or an argument is out of range.
        """
        if len(latents.shape) < 2:
            raise ValueError(f"latents must be (N, C, ...), not of shape {tuple(latents.shape)}")
        calibrator = Calibrator(latents.shape[1], bits=bits, method=method)
        calibrator.update(latents)
        return calibrator.quantizer()

    @property
    def channels(self) -> int:
        """How many channels."""
        return len(self.low)

    def quantize(self, x: Any, *, out: Any = None, threads: int = 1) -> Any:
        """The codes of x.

        Args:
            x: (N, C, ...) float32, float16, float64, or bfloat16 as its bits in uint16; or a torch tensor of a float
                type on any device. What is not C-contiguous and native is copied first.
            out: a buffer for the codes, C-contiguous and of the shape of x.
            threads: at most so many work on it.

        Returns:
            uint8 codes of the shape of x, or for the float kinds an array of that type: `out` where it was given.

        Raises:
            NotFiniteError: a value is NaN or infinite (or too large for a float kind). `out` then holds the codes of
                the other samples, and 0 for those with such values.
            ValueError: x is not (N, C, ...), or `out` does not go with it.
            TypeError: x is no float array.
        """
        if type(x) is not np.ndarray and (torch := _torch_of(x)):
            return torch.quantize(self, x, out, threads)
        x, bfloat16 = _input(x)
        if self._kernel is None:
            out, bad, _ = self._store(x, bfloat16, out, threads)
        else:
            if out is None:
                out = np.empty(x.shape, _UINT8)
            bad = self._kernel.quantize(x, bfloat16, out, False, _check_threads(threads))
        if bad is not None:
            raise _not_finite(*bad)
        return out

    def quantize_counted(self, x: Any, *, out: Any = None, threads: int = 1) -> tuple[Any, Counts]:
        """The codes of x as from `quantize`, but samples that hold a NaN or an infinity are masked, not refused.

        Counting costs no second pass.

        Returns:
            The codes, which are 0 throughout a bad sample; and the counts, as NumPy arrays.
        """
        if type(x) is not np.ndarray and (torch := _torch_of(x)):
            codes, counts = torch.quantize_counted(self, x, out, threads)
            return codes, counts
        x, bfloat16 = _input(x)
        if self._kernel is None:
            out, _, mask = self._store(x, bfloat16, out, threads)
            return out, Counts(np.zeros(self.channels, np.int64), mask)
        if out is None:
            out = np.empty(x.shape, _UINT8)
        return out, Counts(*self._kernel.quantize_counted(x, bfloat16, out, _check_threads(threads)))

    def dequantize(self, codes: Any, *, dtype: Any = np.float32, out: Any = None, threads: int = 1) -> Any:
        """The values of codes.

        Args:
            codes: (N, C, ...) uint8, or for the float kinds of that type; an array, or a torch tensor on any device.
            dtype: float32, float16 or bfloat16, by name or as a NumPy or torch dtype. In NumPy bfloat16 is given as its
                bits, in uint16. Values are computed in float32 and rounded to it.
            out: a buffer for the values, C-contiguous and of the shape of codes.
            threads: at most so many work on it.

        Raises:
            ValueError: codes are not (N, C, ...), a code has more than `bits` bits, or `out` does not go with them.
            TypeError: codes are of another type, or dtype is none of the three.
        """
        if type(codes) is not np.ndarray and (torch := _torch_of(codes)):
            return torch.dequantize(self, codes, dtype, out, threads)
        name = _float_name(dtype)
        if out is None:
            out = np.empty(codes.shape, _FLOAT_DTYPES[name])
        bits = _bits(out, name)
        if self._kernel is None:
            x, bfloat16 = _input(_native(codes, _FLOAT_DTYPES[self.kind]))
            _core.convert(x, bfloat16, bits, name == "bfloat16", _check_threads(threads))
        else:
            self._kernel.dequantize(_native(codes, _UINT8), bits, name == "bfloat16", _check_threads(threads))
        return out

    def pack(self, codes: Any, *, threads: int = 1) -> Any:
        """Codes as they are stored: (N, bytes) uint8, without gaps.

        Code i of a sample is bits i*bits to (i+1)*bits - 1 of its bytes, counted from the least significant bit of the
        first; each sample begins on a byte. 8-bit codes and floats (little-endian) are stored as they are.

        Args:
            codes: (N, ...) as `quantize` gives them.
            threads: at most so many work on it.

        Raises:
            ValueError: a code has more than `bits` bits.
        """
        if type(codes) is not np.ndarray and (torch := _torch_of(codes)):
            return torch.pack(self, codes, threads)
        samples, elements = codes.shape[0], math.prod(codes.shape[1:])
        if self._kernel is None:
            codes = _native(codes, _FLOAT_DTYPES[self.kind])
            stored = codes.astype(codes.dtype.newbyteorder("<"), copy=False)
            return stored.reshape(samples, elements).view(np.uint8).reshape(samples, self.packed_bytes(elements))
        codes = _native(codes, _UINT8)
        if self.bits == 8:
            return codes.reshape(samples, elements)
        packed = np.empty((samples, self.packed_bytes(elements)), np.uint8)
        _core.pack(codes, packed, elements, self.bits, _check_threads(threads))
        return packed

    def unpack(self, packed: Any, shape: Sequence[int], *, threads: int = 1) -> Any:
        """The codes that `pack` stored.

        Args:
            packed: (N, bytes) uint8.
            shape: of the codes of all samples (N, C, ...).
            threads: at most so many work on it.

        Raises:
            ValueError: packed does not hold that many codes.
        """
        if type(packed) is not np.ndarray and (torch := _torch_of(packed)):
            return torch.unpack(self, packed, shape, threads)
        shape = tuple(shape)
        packed = self._check_packed(packed, shape)
        if self._kernel is None:
            dtype = _FLOAT_DTYPES[self.kind]
            return _native(packed.reshape(-1).view(dtype.newbyteorder("<")), dtype).reshape(shape)
        if self.bits == 8:
            return packed.reshape(shape)
        codes = np.empty(shape, np.uint8)
        _core.unpack(packed, codes, math.prod(shape[1:]), self.bits, _check_threads(threads))
        return codes

    def quantize_packed(self, x: Any, *, out: Any = None, threads: int = 1) -> Any:
        """`pack(quantize(x))` in one pass over memory: (N, bytes) uint8.

        Args:
            x: (N, C, ...) floats, as for `quantize`.
            out: a buffer for the bytes, C-contiguous.
            threads: at most so many work on it.

        Raises:
            NotFiniteError, ValueError, TypeError: as `quantize`.
        """
        if type(x) is not np.ndarray and (torch := _torch_of(x)):
            return torch.quantize_packed(self, x, out, threads)
        if self._kernel is None:
            packed = self.pack(self.quantize(x, threads=threads))
            return packed if out is None else _filled(out, packed)
        x, bfloat16 = _input(x)
        shape = (*x.shape[:1], self.packed_bytes(math.prod(x.shape[1:])))
        if out is None:
            out = np.empty(shape, _UINT8)
        bad = self._kernel.quantize(x, bfloat16, out, True, _check_threads(threads))
        if bad is not None:
            raise _not_finite(*bad)
        return out

    def dequantize_packed(
        self, packed: Any, shape: Sequence[int], *, dtype: Any = np.float32, out: Any = None, threads: int = 1
    ) -> Any:
        """`dequantize(unpack(packed, shape))` in one pass over memory.

        Args:
            packed: (N, bytes) uint8.
            shape: of the values of all samples (N, C, ...).
            dtype: as for `dequantize`.
            out: a buffer for the values, C-contiguous and of that shape.
            threads: at most so many work on it.

        Raises:
            ValueError: packed does not hold that many codes, or `out` does not go with the shape.
        """
        if type(packed) is not np.ndarray and (torch := _torch_of(packed)):
            return torch.dequantize_packed(self, packed, shape, dtype, out, threads)
        if self._kernel is None:
            return self.dequantize(self.unpack(packed, shape), dtype=dtype, out=out, threads=threads)
        name, shape = _float_name(dtype), tuple(shape)
        packed = self._check_packed(packed, shape)
        if out is None:
            out = np.empty(shape, _FLOAT_DTYPES[name])
        self._kernel.dequantize_packed(packed, shape, _bits(out, name), name == "bfloat16", _check_threads(threads))
        return out

    def kernel(self, bfloat16: bool) -> tuple[_core.Quantizer, bool]:
        """The compiled half, and whether values of 16 bits are bfloat16's: what the core's `gather` takes.

        Raises:
            ValueError: This is a float kind.
        """
        if self._kernel is None:
            raise ValueError(f"{self.kind} values have no codes")
        return self._kernel, bfloat16

    def packed_bytes(self, elements: int) -> int:
        """The stored bytes of a sample of so many elements."""
        return (elements * self.bits + 7) // 8

    def histogram(self, codes: Any) -> npt.NDArray[np.int64]:
        """How often each code occurs in each channel: (C, 2^bits), for `Statistics.from_histogram`.

        Args:
            codes: (N, C, ...) uint8.

        Raises:
            ValueError: this is a float kind, or a code has more than `bits` bits.
        """
        if self._kernel is None:
            raise ValueError(f"{self.kind} values have no histogram: use Moments")
        if type(codes) is not np.ndarray and _torch_of(codes):
            codes = codes.cpu().numpy()
        counts = np.zeros((self.channels, 2**self.bits), np.int64)
        self._kernel.histogram(_native(codes, _UINT8), counts)
        return counts

    def table(self) -> npt.NDArray[np.float32]:
        """The value of every code in every channel: (C, 2^bits) float32."""
        codes = np.arange(2**self.bits, dtype=np.uint8)
        values = self.dequantize(np.tile(codes, (1, self.channels, 1)))
        return values[0]  # type: ignore[no-any-return]

    def measure(self, x: Any) -> Measurement:
        """What quantising x costs.

        Args:
            x: (N, C, ...) finite floats.

        Raises:
            NotFiniteError: a value is NaN or infinite.
        """
        if type(x) is not np.ndarray and (torch := _torch_of(x)):
            x = torch.to_numpy(x)
        signal = np.zeros(self.channels)
        noise = np.zeros(self.channels)
        clipped = np.zeros(self.channels, np.int64)
        largest = 0.0
        step = max(1, 2**20 // max(1, math.prod(x.shape[1:])))
        for start in range(0, len(x), step):
            batch = x[start : start + step]
            codes, counts = self.quantize_counted(batch)
            if counts.bad.any():
                self.quantize(batch)
            values = _wide(batch)
            error = values - self.dequantize(codes)
            axes = (0, *range(2, error.ndim))
            signal += np.square(values).sum(axes)
            noise += np.square(error).sum(axes)
            clipped += counts.clipped
            largest = max(largest, float(np.abs(error).max(initial=0.0)))
        count = max(1, math.prod(x.shape) // self.channels)
        return Measurement._of(signal.tolist(), noise.tolist(), (clipped / count).tolist(), largest)

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary, which survives TOML exactly: `from_dict` gives an equal quantiser."""
        if self._kernel is None:
            return {"kind": self.kind, "channels": self.channels}
        if self.kind == "codebook":
            return {"kind": "codebook", "bits": self.bits, "levels": [list(row) for row in self.levels]}
        if self.kind == "affine":
            return {"kind": "affine", "bits": self.bits, "low": list(self.low), "high": list(self.high)}
        return {
            "kind": "uniform",
            "low": self.low[0],
            "high": self.high[0],
            "bits": self.bits,
            "rounding": self.rounding,
            "channels": self.channels,
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Quantizer:
        """The quantiser that `to_dict` described.

        Raises:
            ValueError: an entry is missing, unknown or out of range.
        """
        entries = dict(d)
        kind = entries.pop("kind", None)
        try:
            if kind == "uniform":
                return cls.uniform(**entries)
            if kind == "affine":
                return cls.affine(**entries)
            if kind == "codebook":
                bits = entries.pop("bits", None)
                quantizer = cls.codebook(**entries)
                if bits not in (None, quantizer.bits):
                    raise ValueError(f"{len(quantizer.levels[0])} levels are not {bits} bits")
                return quantizer
            if kind in _FLOAT_BITS:
                return cls.floating(kind, **entries)
        except TypeError as error:
            message = str(error).removeprefix("Quantizer.")
            raise ValueError(f"a quantiser of kind {kind!r}: {message}") from None
        raise ValueError(f"there is no quantiser of kind {kind!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Quantizer.from_dict, (self.to_dict(),)

    def _check_packed(self, packed: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        if not shape or packed.shape != (shape[0], self.packed_bytes(math.prod(shape[1:]))):
            raise ValueError(f"{packed.shape} packed bytes do not hold codes of shape {shape} at {self.bits} bits")
        return _native(packed, _UINT8)

    def _store(
        self, x: npt.NDArray[Any], bfloat16: bool, out: Any, threads: int
    ) -> tuple[Any, tuple[int, int] | None, npt.NDArray[np.bool_]]:
        """Values as they are, rounded to a float kind: the array, the first bad sample and channel, all bad samples."""
        dtype = _FLOAT_DTYPES[self.kind]
        if x.ndim < 2 or x.shape[1] != self.channels:
            raise ValueError(f"expected an array (N, {self.channels}, ...), not one of shape {x.shape}")
        if out is None:
            out = np.empty(x.shape, dtype)
        bad, mask = _core.convert(x, bfloat16, _bits(out, self.kind), self.kind == "bfloat16", _check_threads(threads))
        return out, bad, mask


class Calibrator:
    """Finds ranges or code books for samples that come in batches.

    It holds a histogram for each channel, so its memory is bounded (4 MiB a channel, usually less than a tenth of that)
    however much it is fed, and neither batches nor their order change the result.
    """

    def __init__(self, channels: int, *, bits: int = 8, method: str = "mse") -> None:
        _check_channels(channels)
        if method not in _METHODS:
            raise ValueError(f"method must be one of {', '.join(_METHODS)}, not {method!r}")
        if not 2 <= bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {bits}")
        self.bits = bits
        self.method = method
        self._core = _core.Calibrator(channels)

    def update(self, x: Any) -> None:
        """Counts the values of x, (N, C, ...) floats: an array or a tensor.

        Raises:
            NotFiniteError: a value is NaN or infinite. Nothing of x is then counted.
        """
        if type(x) is not np.ndarray and (torch := _torch_of(x)):
            x = torch.to_numpy(x)
        bad = self._core.update(*_input(x))
        if bad is not None:
            raise _not_finite(*bad)

    def quantizer(self) -> Quantizer:
        """The quantiser for what was seen.

        Raises:
            ValueError: a channel has seen no value.
        """
        if self.method == "lloyd-max":
            return Quantizer.codebook(np.reshape(self._core.levels(self.bits), (-1, 2**self.bits)))
        low, high = zip(*self._core.ranges(self.bits, self.method), strict=True)
        return Quantizer.affine(low, high, bits=self.bits)

    def measure(self, quantizer: Quantizer) -> Measurement:
        """What quantising the values that were seen costs, to the 11 significant bits of the histogram.

        Raises:
            ValueError: quantizer is of a float kind, or of another number of channels.
        """
        if quantizer._kernel is None:
            raise ValueError(f"{quantizer.kind} values have no codes to measure")
        count, clipped, signal, noise, largest = zip(*self._core.measure(quantizer._kernel), strict=True)
        rates = [c / max(n, 1) for c, n in zip(clipped, count, strict=True)]
        return Measurement._of(signal, noise, rates, max(largest))


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of a column, by channel. The standard deviation is that of the population.

    Attributes:
        count: the values in each channel.
        mean: NaN in a channel without values, as are the others.
        std: in the unit of the values.
        min: the smallest.
        max: the largest.
    """

    count: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def from_histogram(cls, quantizer: Quantizer, histogram: npt.NDArray[np.int64]) -> Statistics:
        """Of the values that a reader sees, from how often each code occurs.

        Computed in rational numbers and rounded once, so it depends on the counts alone.

        Args:
            quantizer: the one that made the codes.
            histogram: (C, 2^bits) counts, as the sum of any number of `Quantizer.histogram`.
        """
        levels = quantizer.table()
        if histogram.shape != levels.shape:
            raise ValueError(f"the histogram has the shape {histogram.shape}, not {levels.shape}")
        rows = []
        for counts, values in zip(histogram.tolist(), levels.tolist(), strict=True):
            seen = [(n, Fraction(value)) for n, value in zip(counts, values, strict=True) if n]
            total = sum(n for n, _ in seen)
            if not total:
                rows.append((0, math.nan, math.nan, math.nan, math.nan))
                continue
            mean = sum((n * value for n, value in seen), Fraction()) / total
            variance = sum((n * (value - mean) ** 2 for n, value in seen), Fraction()) / total
            extremes = [float(value) for _, value in seen]
            rows.append((total, float(mean), math.sqrt(variance), min(extremes), max(extremes)))
        return cls(*zip(*rows, strict=True))


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of a float column, by channel, in float64: merged in the order of the samples, always the same.

    Attributes:
        count: the values in each channel.
        sum: of the values.
        square: the sum of their squares.
        min: the smallest; infinity where there is none.
        max: the largest; minus infinity where there is none.
    """

    count: tuple[int, ...]
    sum: tuple[float, ...]
    square: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]

    @classmethod
    def of(cls, sample: Any) -> Moments:
        """The sums of one sample (C, ...) of floats: an array (bfloat16 as its bits in uint16) or a tensor.

        Raises:
            NotFiniteError: a value is NaN or infinite, or its square is more than float64 can hold.
            ValueError: the sample has no channels.
        """
        if type(sample) is not np.ndarray and (torch := _torch_of(sample)):
            sample = torch.to_numpy(sample)
        if sample.ndim == 0 or sample.shape[0] == 0:
            raise ValueError(f"a sample must be (C, ...), not of shape {sample.shape}")
        rows = _core.moments(*_input(sample)) or [(0.0, 0.0, math.inf, -math.inf)] * sample.shape[0]
        for channel, (_, square, *_) in enumerate(rows):
            if not math.isfinite(square):
                raise NotFiniteError(f"channel {channel} holds a NaN, an infinity or a number too large")
        return cls((math.prod(sample.shape[1:]),) * sample.shape[0], *zip(*rows, strict=True))

    def merge(self, other: Moments) -> Moments:
        """The sums of both together."""
        if len(self.count) != len(other.count):
            raise ValueError(f"{len(self.count)} and {len(other.count)} channels cannot be merged")

        def add(a: Sequence[Any], b: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(x + y for x, y in zip(a, b, strict=True))

        return Moments(
            add(self.count, other.count),
            add(self.sum, other.sum),
            add(self.square, other.square),
            tuple(map(min, self.min, other.min)),
            tuple(map(max, self.max, other.max)),
        )

    def statistics(self) -> Statistics:
        """Mean, standard deviation and extremes."""
        rows = []
        for count, total, square, low, high in zip(self.count, self.sum, self.square, self.min, self.max, strict=True):
            if not count:
                rows.append((0, math.nan, math.nan, math.nan, math.nan))
                continue
            mean = Fraction(total) / count
            variance = max(Fraction(square) / count - mean**2, Fraction())
            rows.append((count, float(mean), math.sqrt(variance), low, high))
        return Statistics(*zip(*rows, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary of lists, which survives TOML exactly."""
        return {name: list(getattr(self, name)) for name in ("count", "sum", "square", "min", "max")}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Moments:
        """The sums that `to_dict` described."""
        count = tuple(int(n) for n in d["count"])
        rows = (tuple(float(x) for x in d[name]) for name in ("sum", "square", "min", "max"))
        return cls(count, *rows)


def _check_channels(channels: int) -> None:
    if not 1 <= channels <= _CHANNELS:
        raise ValueError(f"channels must be 1 to {_CHANNELS}, not {channels}")


def _check_threads(threads: int) -> int:
    """As many threads as the kernels take: more than there are chunks of work are never started."""
    if threads < 1:
        raise ValueError(f"threads must be 1 or more, not {threads}")
    return min(threads, 1 << 16)


def _float32s(values: Sequence[float]) -> tuple[float, ...]:
    with np.errstate(over="ignore"):
        return tuple(np.asarray(values, np.float64).astype(np.float32).tolist())


def _float_name(dtype: Any) -> str:
    """The name of one of the three float types, from a name, a NumPy dtype or a torch dtype."""
    name = _FLOAT_NAMES.get(dtype)
    if name is None:
        name = str(dtype).removeprefix("torch.")
        if name not in _FLOAT_BITS:
            try:
                name = np.dtype(dtype).name
            except TypeError:
                name = ""
        if name not in _FLOAT_BITS:
            raise TypeError(f"dtype must be float32, float16 or bfloat16, not {dtype}")
    return name


def _native(array: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array itself if it is C-contiguous, aligned and native, else a copy that is. Its type must be dtype."""
    # The first two comparisons are the common case, and cheap beside a call on one latent.
    if array.dtype is dtype and array.flags.carray:
        return array  # type: ignore[no-any-return]
    if array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"expected an array of {dtype}, not {array.dtype}")
    return np.require(array, dtype, ["C", "A"])


def _input(x: Any) -> tuple[npt.NDArray[Any], bool]:
    """A float array as the kernels take it, and whether its 16 bits are bfloat16's."""
    if type(x) is np.ndarray and x.dtype is _FLOAT32:
        return _native(x, _FLOAT32), False
    if not isinstance(x, np.ndarray):
        raise TypeError(f"expected an array or a tensor, not {type(x).__name__}")
    native = x.dtype.newbyteorder("=")
    if native not in (np.float16, np.float32, np.float64, np.uint16):
        raise TypeError(f"expected floats (or bfloat16 bits in uint16), not {x.dtype}")
    x = _native(x, native)
    return x.view(np.uint16) if native == np.float16 else x, native == np.uint16


def _bits(out: Any, name: str) -> Any:
    """An output of that float type as the kernels take it: float16 as uint16."""
    dtype = _FLOAT_DTYPES[name]
    given = getattr(out, "dtype", None)
    if given is not dtype and given != dtype:
        raise ValueError(f"out must be an array of {dtype}")
    return out.view(np.uint16) if name == "float16" else out


def _wide(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Float values, bfloat16's bits among them, as float64."""
    if x.dtype.newbyteorder("=") == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


def _filled(out: Any, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not isinstance(out, np.ndarray) or out.shape != values.shape or out.dtype != values.dtype:
        raise ValueError(f"out must be an array of {values.dtype} of shape {values.shape}")
    out[...] = values
    return out


def _not_finite(sample: int, channel: int) -> NotFiniteError:
    return NotFiniteError(f"sample {sample}, channel {channel} holds a NaN, an infinity or a number too large")


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf


def _torch_of(x: Any) -> ModuleType | None:
    """The module for torch tensors if x is one. torch is imported only by whoever has a tensor."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(x, torch.Tensor):
        return None
    from latentq import quantizer_torch

    return quantizer_torch
