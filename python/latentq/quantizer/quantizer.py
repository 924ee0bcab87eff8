"""Floats to small integers and back: calibrated, per channel, equal on every device.

The arithmetic, the packed layout and the methods of calibration are written down in docs/quantizer.md. NumPy arrays
and torch tensors on the CPU go through the Rust kernels; tensors on other devices through torch operations with equal
results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from latentq import _core
from latentq.quantizer.arrays import as_bits, as_float64, fill, float_array, native_array, torch_of
from latentq.quantizer.floats import FLOAT_BITS, FLOAT_DTYPES, FLOAT_MAX, Counts, float_name, not_finite

_UINT8 = np.dtype(np.uint8)


_CHANNELS = 1 << 16  # more than any autoencoder has; a number in a file may be any


_METHODS = ("mse", "minmax", "percentile", "lloyd-max")


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
        if self.kind not in FLOAT_BITS and not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, not {self.bits}")
        if self.kind in ("uniform", "affine"):
            if self.rounding not in ("nearest", "truncate"):
                raise ValueError(f'rounding must be "nearest" or "truncate", not {self.rounding!r}')
            kernel = _core.Quantizer.affine(self.low, self.high, self.bits, self.rounding == "truncate")
        elif self.kind == "codebook":
            kernel = _core.Quantizer.codebook(np.array(self.levels, np.float32), self.bits)
        elif self.kind not in FLOAT_BITS:
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
        if self.kind in FLOAT_BITS:
            top = FLOAT_MAX[self.kind]
            ends = (-top,) * len(self.low), (top,) * len(self.low)
            return (self.bits, self.rounding) == (FLOAT_BITS[self.kind], "nearest") and ends == (self.low, self.high)
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
        kind = float_name(dtype)
        top = FLOAT_MAX[kind]
        return cls(kind, FLOAT_BITS[kind], "nearest", (-top,) * channels, (top,) * channels)

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
        if type(x) is not np.ndarray and (torch := torch_of(x)):
            return torch.quantize(self, x, out, threads)
        x, bfloat16 = float_array(x)
        if self._kernel is None:
            out, bad, _ = self._store(x, bfloat16, out, threads)
        else:
            if out is None:
                out = np.empty(x.shape, _UINT8)
            bad = self._kernel.quantize(x, bfloat16, out, False, _check_threads(threads))
        if bad is not None:
            raise not_finite(*bad)
        return out

    def quantize_counted(self, x: Any, *, out: Any = None, threads: int = 1) -> tuple[Any, Counts]:
        """The codes of x as from `quantize`, but samples that hold a NaN or an infinity are masked, not refused.

        Counting costs no second pass.

        Returns:
            The codes, which are 0 throughout a bad sample; and the counts, as NumPy arrays.
        """
        if type(x) is not np.ndarray and (torch := torch_of(x)):
            codes, counts = torch.quantize_counted(self, x, out, threads)
            return codes, counts
        x, bfloat16 = float_array(x)
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
        if type(codes) is not np.ndarray and (torch := torch_of(codes)):
            return torch.dequantize(self, codes, dtype, out, threads)
        name = float_name(dtype)
        if out is None:
            out = np.empty(codes.shape, FLOAT_DTYPES[name])
        bits = as_bits(out, name)
        if self._kernel is None:
            x, bfloat16 = float_array(native_array(codes, FLOAT_DTYPES[self.kind]))
            _core.convert(x, bfloat16, bits, name == "bfloat16", _check_threads(threads))
        else:
            self._kernel.dequantize(native_array(codes, _UINT8), bits, name == "bfloat16", _check_threads(threads))
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
        if type(codes) is not np.ndarray and (torch := torch_of(codes)):
            return torch.pack(self, codes, threads)
        samples, elements = codes.shape[0], math.prod(codes.shape[1:])
        if self._kernel is None:
            codes = native_array(codes, FLOAT_DTYPES[self.kind])
            stored = codes.astype(codes.dtype.newbyteorder("<"), copy=False)
            return stored.reshape(samples, elements).view(np.uint8).reshape(samples, self.packed_bytes(elements))
        codes = native_array(codes, _UINT8)
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
        if type(packed) is not np.ndarray and (torch := torch_of(packed)):
            return torch.unpack(self, packed, shape, threads)
        shape = tuple(shape)
        packed = self._check_packed(packed, shape)
        if self._kernel is None:
            dtype = FLOAT_DTYPES[self.kind]
            return native_array(packed.reshape(-1).view(dtype.newbyteorder("<")), dtype).reshape(shape)
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
        if type(x) is not np.ndarray and (torch := torch_of(x)):
            return torch.quantize_packed(self, x, out, threads)
        if self._kernel is None:
            packed = self.pack(self.quantize(x, threads=threads))
            return packed if out is None else fill(out, packed)
        x, bfloat16 = float_array(x)
        shape = (*x.shape[:1], self.packed_bytes(math.prod(x.shape[1:])))
        if out is None:
            out = np.empty(shape, _UINT8)
        bad = self._kernel.quantize(x, bfloat16, out, True, _check_threads(threads))
        if bad is not None:
            raise not_finite(*bad)
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
        if type(packed) is not np.ndarray and (torch := torch_of(packed)):
            return torch.dequantize_packed(self, packed, shape, dtype, out, threads)
        if self._kernel is None:
            return self.dequantize(self.unpack(packed, shape), dtype=dtype, out=out, threads=threads)
        name, shape = float_name(dtype), tuple(shape)
        packed = self._check_packed(packed, shape)
        if out is None:
            out = np.empty(shape, FLOAT_DTYPES[name])
        self._kernel.dequantize_packed(packed, shape, as_bits(out, name), name == "bfloat16", _check_threads(threads))
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
        if type(codes) is not np.ndarray and torch_of(codes):
            codes = codes.cpu().numpy()
        counts = np.zeros((self.channels, 2**self.bits), np.int64)
        self._kernel.histogram(native_array(codes, _UINT8), counts)
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
        if type(x) is not np.ndarray and (torch := torch_of(x)):
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
            values = as_float64(batch)
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
            if kind in FLOAT_BITS:
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
        return native_array(packed, _UINT8)

    def _store(
        self, x: npt.NDArray[Any], bfloat16: bool, out: Any, threads: int
    ) -> tuple[Any, tuple[int, int] | None, npt.NDArray[np.bool_]]:
        """Values as they are, rounded to a float kind: the array, the first bad sample and channel, all bad samples."""
        dtype = FLOAT_DTYPES[self.kind]
        if x.ndim < 2 or x.shape[1] != self.channels:
            raise ValueError(f"expected an array (N, {self.channels}, ...), not one of shape {x.shape}")
        if out is None:
            out = np.empty(x.shape, dtype)
        bad, mask = _core.convert(
            x, bfloat16, as_bits(out, self.kind), self.kind == "bfloat16", _check_threads(threads)
        )
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
        if type(x) is not np.ndarray and (torch := torch_of(x)):
            x = torch.to_numpy(x)
        bad = self._core.update(*float_array(x))
        if bad is not None:
            raise not_finite(*bad)

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


def _decibels(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal else -math.inf
