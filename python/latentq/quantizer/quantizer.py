"""Floats to small integers and back: calibrated, per channel, with equal results on every device.

docs/quantizer.md specifies the arithmetic, the packed layout and the calibration methods. NumPy arrays and CPU tensors
go through the Rust kernels without copies; tensors on other devices go through torch operations with equal results.

Over 500 lines: most of them are docstrings and overloads of `Quantizer`. `Calibrator` is here too, because
`Quantizer.calibrate` uses it and it returns quantizers: two files would import each other.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args, overload

import numpy as np
import numpy.typing as npt

from latentq import _core
from latentq.choices import Method
from latentq.quantizer.arrays import (
    UINT8,
    as_array,
    as_bits,
    as_float64,
    check_threads,
    fill,
    float_array,
    native_array,
    tensors_for,
)
from latentq.quantizer.floats import FLOAT_BITS, FLOAT_DTYPES, FLOAT_MAX, float_name
from latentq.quantizer.results import Measurement, ValueCounts, not_finite
from latentq.quantizer.scheme import (
    LEVEL_KINDS,
    Kind,
    Rounding,
    Scheme,
    check_bits,
    check_channels,
    check_choices,
    check_fields,
    float32_values,
    unknown_kind,
)
from latentq.system.arrays import new_array

if TYPE_CHECKING:
    import torch

    from latentq.quantizer.floats import FloatDType

    Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Quantizer(Scheme):
    """An immutable map from floats to codes and back. Create one with a class method.

    Methods take NumPy arrays or torch tensors and return the same kind of object. C is the number of channels; a
    sample is (C, ...), usually (C, h, w).
    """

    _compiled: _core.Quantizer | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        compiled = None
        if self.kind in LEVEL_KINDS:
            make = _core.Quantizer.codebook if self.kind == "codebook" else _core.Quantizer.trellis
            compiled = make(np.array(self.levels, np.float32), self.bits)
        elif self.kind in ("uniform", "affine"):
            compiled = _core.Quantizer.affine(self.low, self.high, self.bits, self.rounding == "truncate")
        check_fields(self)
        object.__setattr__(self, "_compiled", compiled)

    @classmethod
    def uniform(
        cls, low: float, high: float, *, channels: int, bits: int = 8, rounding: Rounding = "nearest"
    ) -> Quantizer:
        """Makes a quantizer with one given range for all channels, as imagenet.int8 has.

        Args:
            low: The value of code 0; rounded to float32.
            high: The value of the last code; rounded to float32.
            channels: The number of channels.
            bits: 2 to 8.
            rounding: `nearest`, or `truncate` to reproduce the encoder of imagenet.int8 bit for bit; its codes are
                decoded at the lower edge of their step.

        Raises:
            ValueError: An argument is out of range, low > high, or one of them is not finite.
        """
        check_channels(channels)
        return cls("uniform", bits, rounding, float32_values([low]) * channels, float32_values([high]) * channels)

    @classmethod
    def affine(cls, low: Sequence[float], high: Sequence[float], *, bits: int = 8) -> Quantizer:
        """Makes a quantizer with a range for each channel.

        Args:
            low: (C,) the values of code 0; rounded to float32.
            high: (C,) the values of the last code; rounded to float32. If it equals low, every code is 0.
            bits: 2 to 8.

        Raises:
            ValueError: An argument is out of range, low > high in a channel, or a value is not finite.
        """
        return cls("affine", bits, "nearest", float32_values(low), float32_values(high))

    @classmethod
    def codebook(cls, levels: Sequence[Sequence[float]] | Array) -> Quantizer:
        """Makes a quantizer with a codebook for each channel.

        A value is coded as the nearest level; a tie goes to the lower level.

        Args:
            levels: (C, 2^bits) finite values, ascending in each channel, for 2 to 8 bits; rounded to float32.

        Raises:
            ValueError: `levels` has another shape, or does not ascend.
        """
        array = np.asarray(levels, np.float32)
        if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] not in (4, 8, 16, 32, 64, 128, 256):
            raise ValueError(f"levels must be (channels, 2^bits) for 2 to 8 bits, not of shape {array.shape}")
        return cls._of_levels("codebook", array.shape[1].bit_length() - 1, array)

    @classmethod
    def trellis(cls, levels: Sequence[Sequence[float]] | Array) -> Quantizer:
        """Makes a trellis-coded quantizer: twice as many levels as a codebook has for codes of the same bits.

        Which of the levels an element can have depends on the three codes before it in the sample, and codes are chosen
        so that the squared error of the whole sample is least. So a sample's codes are decoded together, in C order
        over all its channels: a part of them does not decode to the same values.

        Args:
            levels: (C, 2^(bits + 1)) finite values, ascending in each channel, for 2 to 8 bits; rounded to float32.

        Raises:
            ValueError: `levels` has another shape, or does not ascend.
        """
        array = np.asarray(levels, np.float32)
        if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] not in (8, 16, 32, 64, 128, 256, 512):
            raise ValueError(f"levels must be (channels, 2^(bits + 1)) for 2 to 8 bits, not of shape {array.shape}")
        return cls._of_levels("trellis", array.shape[1].bit_length() - 2, array)

    @classmethod
    def _of_levels(cls, kind: Kind, bits: int, levels: npt.NDArray[np.float32]) -> Quantizer:
        rows = tuple(tuple(row) for row in levels.tolist())
        return cls(kind, bits, "nearest", tuple(row[0] for row in rows), tuple(row[-1] for row in rows), rows)

    @classmethod
    def floating(cls, dtype: FloatDType, *, channels: int) -> Quantizer:
        """Makes a quantizer that only rounds values to a float type.

        Its codes are values of that type. NumPy has no bfloat16, so an array holds bfloat16 codes as their bits, in
        uint16.

        Args:
            dtype: `float16`, `bfloat16` or `float32`, as a name, a NumPy dtype or a torch dtype.
            channels: The number of channels.

        Raises:
            TypeError: `dtype` is another type.
            ValueError: `channels` is out of range.
        """
        check_channels(channels)
        kind = float_name(dtype)
        top = FLOAT_MAX[kind]
        return cls(kind, FLOAT_BITS[kind], "nearest", (-top,) * channels, (top,) * channels)

    @classmethod
    def calibrate(cls, latents: Array | torch.Tensor, *, bits: int = 8, method: Method = "mse") -> Quantizer:
        """Makes a quantizer whose ranges or codebooks fit given samples; see `Calibrator` for samples in batches.

        Args:
            latents: (N, C, ...) finite floats.
            bits: 2 to 8.
            method: `mse`, `minmax` or `percentile` for ranges, `lloyd-max` for codebooks, `trellis` for a trellis.

        Raises:
            NotFiniteError: A value is NaN or infinite.
            ValueError: There are no values, or an argument is out of range.
        """
        if len(latents.shape) < 2:
            raise ValueError(f"latents must be (N, C, ...), not of shape {tuple(latents.shape)}")
        calibrator = Calibrator(latents.shape[1], bits=bits, method=method)
        calibrator.update(latents)
        return calibrator.quantizer()

    @overload
    def quantize(self, x: Array, *, out: Array | None = None, threads: int = 1) -> Array: ...
    @overload
    def quantize(self, x: torch.Tensor, *, out: torch.Tensor | None = None, threads: int = 1) -> torch.Tensor: ...
    def quantize(self, x: Any, *, out: Any = None, threads: int = 1) -> Any:
        """Converts values to codes.

        Args:
            x: (N, C, ...) float32, float16, float64, or bfloat16 as its bits in uint16; or a torch tensor of a float
                type on any device. An array that is not C-contiguous and of native byte order is copied first.
            out: A C-contiguous buffer for the codes, of the shape of x.
            threads: The largest number of threads to use on the CPU.

        Returns:
            uint8 codes of the shape of x, or for float kinds values of that type; `out` if it is given.

        Raises:
            NotFiniteError: A value is NaN or infinite, or too large for a float kind. `out` then holds the codes of the
                other samples, and 0 for samples with such values.
            ValueError: `x` is not (N, C, ...), or `out` does not match it.
            TypeError: `x` is not an array or tensor of floats.
        """
        if type(x) is not np.ndarray and (tensors := tensors_for(x)):
            if x.device.type != "cpu":
                if self.kind == "trellis":
                    return tensors.copied(self.quantize(x.cpu(), threads=threads).to(x.device), out)
                return tensors.quantize(self, x, out)
            codes = self.quantize(tensors.to_numpy(x), out=tensors.out_array(out), threads=threads)
            return tensors.from_numpy(codes, self.kind, out)
        x, is_bfloat16 = float_array(x)
        if self._compiled is None:
            out, bad, _ = self._store(x, is_bfloat16, out, threads)
        else:
            if out is None:
                out = new_array(x.shape, UINT8)
            bad = self._compiled.quantize(x, is_bfloat16, out, False, check_threads(threads))
        if bad is not None:
            raise not_finite(*bad)
        return out

    @overload
    def quantize_counted(
        self, x: Array, *, out: Array | None = None, threads: int = 1
    ) -> tuple[Array, ValueCounts]: ...
    @overload
    def quantize_counted(
        self, x: torch.Tensor, *, out: torch.Tensor | None = None, threads: int = 1
    ) -> tuple[torch.Tensor, ValueCounts]: ...
    def quantize_counted(self, x: Any, *, out: Any = None, threads: int = 1) -> tuple[Any, ValueCounts]:
        """Converts values to codes, counts clipped values, and masks samples that hold a NaN or an infinity.

        Counting costs no second pass over memory. Other errors are those of `quantize`.

        Args:
            x: (N, C, ...) floats, as for `quantize`.
            out: A C-contiguous buffer for the codes, of the shape of x.
            threads: The largest number of threads to use on the CPU.

        Returns:
            The codes, which are 0 throughout a bad sample; and the counts, as NumPy arrays.
        """
        if type(x) is not np.ndarray and (tensors := tensors_for(x)):
            if x.device.type != "cpu":
                if self.kind == "trellis":
                    codes, counts = self.quantize_counted(x.cpu(), threads=threads)
                    return tensors.copied(codes.to(x.device), out), counts
                codes, clipped, bad = tensors.quantize_counted(self, x, out)
                return codes, ValueCounts(clipped.cpu().numpy(), bad.cpu().numpy())
            codes, counts = self.quantize_counted(tensors.to_numpy(x), out=tensors.out_array(out), threads=threads)
            return tensors.from_numpy(codes, self.kind, out), counts
        x, is_bfloat16 = float_array(x)
        if self._compiled is None:
            out, _, mask = self._store(x, is_bfloat16, out, threads)
            return out, ValueCounts(np.zeros(self.channels, np.int64), mask)
        if out is None:
            out = new_array(x.shape, UINT8)
        return out, ValueCounts(*self._compiled.quantize_counted(x, is_bfloat16, out, check_threads(threads)))

    def quantize_on_device(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantizes and counts as `quantize_counted` does, without waiting for the device unless this is a trellis.

        The path through a trellis is searched on the CPU.

        Args:
            x: (N, C, ...) floats on any device.

        Returns:
            The codes, (C,) int64 numbers of clipped values and (N,) bool, True for bad samples; all on x's device.
        """
        from latentq.quantizer import tensors

        if x.device.type != "cpu" and self.kind != "trellis":
            return tensors.quantize_counted(self, x, None)
        codes, counts = self.quantize_counted(x)
        clipped, bad = (tensors.from_numpy(count, "", None).to(x.device) for count in (counts.clipped, counts.bad))
        return codes, clipped, bad

    @overload
    def dequantize(
        self, codes: Array, *, dtype: FloatDType = np.float32, out: Array | None = None, threads: int = 1
    ) -> Array: ...
    @overload
    def dequantize(
        self, codes: torch.Tensor, *, dtype: FloatDType = np.float32, out: torch.Tensor | None = None, threads: int = 1
    ) -> torch.Tensor: ...
    def dequantize(self, codes: Any, *, dtype: FloatDType = np.float32, out: Any = None, threads: int = 1) -> Any:
        """Converts codes to values.

        Args:
            codes: (N, C, ...) uint8, or for float kinds values of that type. For a trellis these must be whole samples.
            dtype: `float32`, `float16` or `bfloat16`, as a name, a NumPy dtype or a torch dtype. In NumPy, bfloat16 is
                returned as its bits in uint16. Values are computed in float32 and rounded to dtype.
            out: A C-contiguous buffer for the values, of the shape of codes.
            threads: The largest number of threads to use on the CPU.

        Returns:
            Values of the shape of codes; `out` if it is given.

        Raises:
            ValueError: `codes` is not (N, C, ...), a code has more than `bits` bits, or `out` does not match.
            TypeError: `codes` has another dtype, or dtype is none of the three.
        """
        if type(codes) is not np.ndarray and (tensors := tensors_for(codes)):
            name = float_name(dtype)
            if codes.device.type != "cpu":
                return tensors.dequantize(self, codes, name, out)
            array = tensors.to_numpy(codes)
            values = self.dequantize(array, dtype=name, out=tensors.out_array(out), threads=threads)
            return tensors.from_numpy(values, name, out)
        name = float_name(dtype)
        if out is None:
            out = new_array(codes.shape, FLOAT_DTYPES[name])
        bits = as_bits(out, name)
        if self._compiled is None:
            x, is_bfloat16 = float_array(native_array(codes, FLOAT_DTYPES[self.kind]))
            _core.convert(x, is_bfloat16, bits, name == "bfloat16", check_threads(threads))
        else:
            self._compiled.dequantize(native_array(codes, UINT8), bits, name == "bfloat16", check_threads(threads))
        return out

    @overload
    def pack(self, codes: Array, *, threads: int = 1) -> Array: ...
    @overload
    def pack(self, codes: torch.Tensor, *, threads: int = 1) -> torch.Tensor: ...
    def pack(self, codes: Any, *, threads: int = 1) -> Any:
        """Packs codes into the bytes that are stored, without gaps.

        Code i of a sample is bits `i * bits` to `(i + 1) * bits - 1` of its bytes, counted from the lowest bit of the
        first byte. Each sample begins on a byte. 8-bit codes and floats (little-endian) are stored unchanged.

        Args:
            codes: (N, ...) codes from `quantize`.
            threads: The largest number of threads to use on the CPU.

        Returns:
            (N, packed_bytes) uint8.

        Raises:
            ValueError: A code has more than `bits` bits.
        """
        if type(codes) is not np.ndarray and (tensors := tensors_for(codes)):
            if codes.device.type != "cpu":
                return tensors.pack(self, codes)
            return tensors.from_numpy(self.pack(tensors.to_numpy(codes), threads=threads), "uint8", None)
        samples, elements = codes.shape[0], math.prod(codes.shape[1:])
        if self._compiled is None:
            codes = native_array(codes, FLOAT_DTYPES[self.kind])
            stored = codes.astype(codes.dtype.newbyteorder("<"), copy=False)
            return stored.reshape(samples, elements).view(np.uint8).reshape(samples, self.packed_bytes(elements))
        codes = native_array(codes, UINT8)
        if self.bits == 8:
            return codes.reshape(samples, elements)
        packed = new_array((samples, self.packed_bytes(elements)), np.uint8)
        _core.pack(codes, packed, elements, self.bits, check_threads(threads))
        return packed

    @overload
    def unpack(self, packed: Array, shape: Sequence[int], *, threads: int = 1) -> Array: ...
    @overload
    def unpack(self, packed: torch.Tensor, shape: Sequence[int], *, threads: int = 1) -> torch.Tensor: ...
    def unpack(self, packed: Any, shape: Sequence[int], *, threads: int = 1) -> Any:
        """Restores the codes that `pack` packed.

        Args:
            packed: (N, packed_bytes) uint8.
            shape: The shape (N, C, ...) of the codes.
            threads: The largest number of threads to use on the CPU.

        Returns:
            Codes of that shape.

        Raises:
            ValueError: `packed` does not hold that many codes.
        """
        if type(packed) is not np.ndarray and (tensors := tensors_for(packed)):
            if packed.device.type != "cpu":
                return tensors.unpack(self, packed, shape)
            return tensors.from_numpy(self.unpack(tensors.to_numpy(packed), shape, threads=threads), self.kind, None)
        shape = tuple(shape)
        packed = self._check_packed(packed, shape)
        if self._compiled is None:
            dtype = FLOAT_DTYPES[self.kind]
            return native_array(packed.reshape(-1).view(dtype.newbyteorder("<")), dtype).reshape(shape)
        if self.bits == 8:
            return packed.reshape(shape)
        codes = new_array(shape, np.uint8)
        _core.unpack(packed, codes, math.prod(shape[1:]), self.bits, check_threads(threads))
        return codes

    @overload
    def quantize_packed(self, x: Array, *, out: Array | None = None, threads: int = 1) -> Array: ...
    @overload
    def quantize_packed(
        self, x: torch.Tensor, *, out: torch.Tensor | None = None, threads: int = 1
    ) -> torch.Tensor: ...
    def quantize_packed(self, x: Any, *, out: Any = None, threads: int = 1) -> Any:
        """Computes `pack(quantize(x))` in one pass over memory.

        Args:
            x: (N, C, ...) floats, as for `quantize`.
            out: A C-contiguous buffer for the bytes.
            threads: The largest number of threads to use on the CPU.

        Returns:
            (N, packed_bytes) uint8; `out` if it is given.

        Raises:
            NotFiniteError: As in `quantize`; also `ValueError` and `TypeError`.
        """
        if type(x) is not np.ndarray and (tensors := tensors_for(x)):
            if x.device.type != "cpu":
                if self.kind == "trellis":
                    return tensors.copied(self.quantize_packed(x.cpu(), threads=threads).to(x.device), out)
                return tensors.quantize_packed(self, x, out)
            packed = self.quantize_packed(tensors.to_numpy(x), out=tensors.out_array(out), threads=threads)
            return tensors.from_numpy(packed, "uint8", out)
        if self._compiled is None:
            packed = self.pack(self.quantize(x, threads=threads))
            return packed if out is None else fill(out, packed)
        x, is_bfloat16 = float_array(x)
        shape = (*x.shape[:1], self.packed_bytes(math.prod(x.shape[1:])))
        if out is None:
            out = new_array(shape, UINT8)
        bad = self._compiled.quantize(x, is_bfloat16, out, True, check_threads(threads))
        if bad is not None:
            raise not_finite(*bad)
        return out

    @overload
    def dequantize_packed(
        self,
        packed: Array,
        shape: Sequence[int],
        *,
        dtype: FloatDType = np.float32,
        out: Array | None = None,
        threads: int = 1,
    ) -> Array: ...
    @overload
    def dequantize_packed(
        self,
        packed: torch.Tensor,
        shape: Sequence[int],
        *,
        dtype: FloatDType = np.float32,
        out: torch.Tensor | None = None,
        threads: int = 1,
    ) -> torch.Tensor: ...
    def dequantize_packed(
        self, packed: Any, shape: Sequence[int], *, dtype: FloatDType = np.float32, out: Any = None, threads: int = 1
    ) -> Any:
        """Computes `dequantize(unpack(packed, shape))` in one pass over memory.

        Args:
            packed: (N, packed_bytes) uint8.
            shape: The shape (N, C, ...) of the values.
            dtype: The dtype of the values, as for `dequantize`.
            out: A C-contiguous buffer for the values, of that shape.
            threads: The largest number of threads to use on the CPU.

        Returns:
            Values of that shape; `out` if it is given.

        Raises:
            ValueError: `packed` does not hold that many codes, or `out` does not match the shape.
            TypeError: `dtype` is none of the three.
        """
        if type(packed) is not np.ndarray and (tensors := tensors_for(packed)):
            name = float_name(dtype)
            if packed.device.type != "cpu":
                return tensors.dequantize_packed(self, packed, shape, name, out)
            array = tensors.to_numpy(packed)
            values = self.dequantize_packed(array, shape, dtype=name, out=tensors.out_array(out), threads=threads)
            return tensors.from_numpy(values, name, out)
        if self._compiled is None:
            return self.dequantize(self.unpack(packed, shape), dtype=dtype, out=out, threads=threads)
        name, shape = float_name(dtype), tuple(shape)
        packed = self._check_packed(packed, shape)
        if out is None:
            out = new_array(shape, FLOAT_DTYPES[name])
        self._compiled.dequantize_packed(packed, shape, as_bits(out, name), name == "bfloat16", check_threads(threads))
        return out

    def for_gather(self, is_bfloat16: bool) -> tuple[_core.Quantizer, bool]:
        """Returns the arguments for `_core.gather`: the compiled quantizer and `is_bfloat16`.

        Args:
            is_bfloat16: True if 16-bit values are bfloat16, False if they are float16.

        Raises:
            ValueError: This is a float kind.
        """
        if self._compiled is None:
            raise ValueError(f"{self.kind} values have no codes")
        return self._compiled, is_bfloat16

    def histogram(self, codes: Array | torch.Tensor) -> npt.NDArray[np.int64]:
        """Counts the codes in each channel, for `Statistics.from_histogram`; for a trellis, the levels.

        Args:
            codes: (N, C, ...) uint8.

        Returns:
            (C, level_count) int64: how often each code occurs; for a trellis, how often each level occurs.

        Raises:
            ValueError: This is a float kind, or a code has more than `bits` bits.
        """
        if self._compiled is None:
            raise ValueError(f"{self.kind} values have no histogram: use Moments")
        counts = np.zeros((self.channels, self.level_count), np.int64)
        self._compiled.histogram(native_array(as_array(codes), UINT8), counts)
        return counts

    def table(self) -> npt.NDArray[np.float32]:
        """Returns the values that `histogram` counts: (C, level_count) float32, of every code or every level."""
        if self.kind == "trellis":
            return np.array(self.levels, np.float32)
        codes = np.arange(2**self.bits, dtype=np.uint8)
        values: npt.NDArray[np.float32] = self.dequantize(np.tile(codes, (1, self.channels, 1)))[0]
        return values

    def measure(self, x: Array | torch.Tensor) -> Measurement:
        """Measures the error of quantizing x.

        Args:
            x: (N, C, ...) finite floats.

        Raises:
            NotFiniteError: A value is NaN or infinite.
        """
        values = as_array(x)
        signal = np.zeros(self.channels)
        noise = np.zeros(self.channels)
        clipped = np.zeros(self.channels, np.int64)
        largest_error = 0.0
        step = max(1, 2**20 // max(1, math.prod(values.shape[1:])))
        for start in range(0, len(values), step):
            batch = values[start : start + step]
            codes, counts = self.quantize_counted(batch)
            if counts.bad.any():
                self.quantize(batch)  # raises the error that names the sample and channel
            exact = as_float64(batch)
            error = exact - self.dequantize(codes)
            axes = (0, *range(2, error.ndim))
            signal += np.square(exact).sum(axes)
            noise += np.square(error).sum(axes)
            clipped += counts.clipped
            largest_error = max(largest_error, float(np.abs(error).max(initial=0.0)))
        count = max(1, math.prod(values.shape) // self.channels)
        return Measurement.from_sums(signal.tolist(), noise.tolist(), (clipped / count).tolist(), largest_error)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dictionary that TOML stores exactly and from which `from_dict` makes an equal quantizer."""
        if self._compiled is None:
            return {"kind": self.kind, "channels": self.channels}
        if self.kind == "codebook":
            return {"kind": "codebook", "bits": self.bits, "levels": [list(row) for row in self.levels]}
        if self.kind == "trellis":
            levels = np.array(self.levels, "<f4").tobytes()
            return {"kind": "trellis", "bits": self.bits, "levels": base64.b64encode(levels).decode()}
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
        """Makes the quantizer that `to_dict` described.

        Args:
            d: A result of `to_dict`.

        Raises:
            ValueError: An entry is missing, unknown or out of range.
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
            if kind == "trellis":
                return cls.trellis(_decoded_levels(**entries))
            if kind in FLOAT_BITS:
                return cls.floating(kind, **entries)
        except TypeError as error:
            message = str(error).removeprefix("Quantizer.").removeprefix("_decoded_levels() ")
            raise ValueError(f"a quantizer of kind {kind!r}: {message}") from None
        raise ValueError(unknown_kind(kind))

    def __reduce__(self) -> tuple[Any, ...]:
        return Quantizer.from_dict, (self.to_dict(),)

    def _check_packed(self, packed: Array, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Returns packed bytes as the kernels take them, or raises ValueError if they do not hold such codes."""
        if not shape or packed.shape != (shape[0], self.packed_bytes(math.prod(shape[1:]))):
            raise ValueError(f"{packed.shape} packed bytes do not hold codes of shape {shape} at {self.bits} bits")
        return native_array(packed, UINT8)

    def _store(
        self, x: Array, is_bfloat16: bool, out: Any, threads: int
    ) -> tuple[Any, tuple[int, int] | None, npt.NDArray[np.bool_]]:
        """Rounds values to a float kind: returns the array, the first bad (sample, channel), and (N,) bad samples.

        Args:
            x: Values (N, C, ...).
            is_bfloat16: True if `x` holds bfloat16 bits in uint16.
            out: The array to fill, of the shape of `x`; None makes one.
            threads: The number of threads.
        """
        if x.ndim < 2 or x.shape[1] != self.channels:
            raise ValueError(f"expected an array (N, {self.channels}, ...), not one of shape {x.shape}")
        if out is None:
            out = new_array(x.shape, FLOAT_DTYPES[self.kind])
        bits = as_bits(out, self.kind)
        bad, mask = _core.convert(x, is_bfloat16, bits, self.kind == "bfloat16", check_threads(threads))
        return out, bad, mask


def _decoded_levels(bits: int, levels: str) -> npt.NDArray[np.float32]:
    """Returns the levels of a trellis (C, 2^(bits + 1)) from their base64 text.

    Raises:
        ValueError: The text is not base64 of that many float32 values per channel.
    """
    if type(bits) is not int:
        raise ValueError(f"the bits of a trellis must be 2 to 8, not {bits!r}")
    check_bits(bits)
    if not isinstance(levels, str):
        raise ValueError("the levels of a trellis must be base64 text")
    try:
        data = base64.b64decode(levels, validate=True)
    except ValueError as error:
        raise ValueError(f"the levels of a trellis are not base64: {error}") from None
    channel = 4 * 2 ** (bits + 1)
    if not data or len(data) % channel:
        raise ValueError(f"the levels of a trellis have {len(data)} bytes, not {channel} for each channel")
    values = np.frombuffer(data, "<f4")
    return values.reshape(-1, 2 ** (bits + 1)).astype(np.float32)


class Calibrator:
    """Finds ranges, codebooks or the levels of a trellis for samples that come in batches.

    For ranges and codebooks it keeps a histogram for each channel, so its memory is bounded (4 MiB per channel, usually
    less than a tenth of that) for any number of samples, and neither the batches nor their order change the result. A
    trellis needs whole samples: it keeps at most 2^24 values (64 MiB), of more samples every second, fourth and so on;
    the order of the samples matters then, and how they are cut into batches does not.

    Args:
        channels: The number of channels, C.
        bits: 2 to 8.
        method: `mse`, `minmax` or `percentile` for ranges, `lloyd-max` for codebooks, `trellis` for a trellis.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(self, channels: int, *, bits: int = 8, method: Method = "mse") -> None:
        check_channels(channels)
        if method not in get_args(Method):
            raise ValueError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")
        check_bits(bits)
        self.bits = bits
        self.method: Method = method
        self._trellis = _core.TrellisCalibrator(channels)
        self._core = _core.Calibrator(channels)

    def update(self, x: Array | torch.Tensor) -> None:
        """Counts the values of a batch.

        Args:
            x: (N, C, ...) finite floats. Batches may differ in the axes after the channels.

        Raises:
            NotFiniteError: A value is NaN or infinite. No value of x is counted then.
            ValueError: `x` is not (N, C, ...).
        """
        core = self._trellis if self.method == "trellis" else self._core
        bad = core.update(*float_array(as_array(x)))
        if bad is not None:
            raise not_finite(*bad)

    def quantizer(self) -> Quantizer:
        """Returns the quantizer that fits the counted values.

        Raises:
            ValueError: No value of a channel was counted.
        """
        if self.method == "trellis":
            return Quantizer.trellis(np.reshape(self._trellis.levels(self.bits), (-1, 2 ** (self.bits + 1))))
        if self.method == "lloyd-max":
            return Quantizer.codebook(np.reshape(self._core.levels(self.bits), (-1, 2**self.bits)))
        low, high = zip(*self._core.ranges(self.bits, self.method), strict=True)
        return Quantizer.affine(low, high, bits=self.bits)

    def measure(self, quantizer: Quantizer) -> Measurement:
        """Measures the error of a quantizer on the counted values, to the 11 significant bits of the histogram.

        Args:
            quantizer: A quantizer of the same number of channels.

        Raises:
            ValueError: The quantizer is of a float kind or a trellis, or has another number of channels; or this
                calibrates a trellis.
        """
        if self.method == "trellis":
            raise ValueError("a calibrator of a trellis counts no values: use Quantizer.measure on samples")
        sums = self._core.measure(quantizer.for_gather(False)[0])
        count, clipped, signal, noise, largest_error = zip(*sums, strict=True)
        rates = [c / max(n, 1) for c, n in zip(clipped, count, strict=True)]
        return Measurement.from_sums(signal, noise, rates, max(largest_error))
