"""The quantizer's arithmetic in torch operations, for tensors on any device, and CPU tensors as arrays.

Every operation is one float32 operation, rounded on its own, so every device gives the results of the CPU. Divisors are
tensors, because a division by a Python number may become a multiplication by its rounded inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latentq.quantizer.results import not_finite
from latentq.quantizer.scheme import Scheme

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def to_numpy(x: torch.Tensor) -> npt.NDArray[Any]:
    """Returns the memory of a tensor as an array, bfloat16 as its bits in uint16. A CPU tensor is not copied."""
    # Each of these operations releases and reacquires the GIL, which costs more than the test.
    if x.requires_grad or x.device.type != "cpu" or x.is_neg():
        x = x.detach().cpu().resolve_neg()
    return x.view(torch.uint16).numpy() if x.dtype is torch.bfloat16 else x.numpy()


def from_numpy(array: npt.NDArray[Any], name: str, out: torch.Tensor | None) -> torch.Tensor:
    """Returns `out` if given (the array is then its memory), else a tensor that shares the array's memory.

    Args:
        array: Codes or values.
        name: `bfloat16` if the array holds its bits in uint16; any other name leaves the dtype as it is.
        out: The tensor whose memory was written to.
    """
    if out is not None:
        return out
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def out_array(out: torch.Tensor | None) -> npt.NDArray[Any] | None:
    """Returns the memory of an output tensor as an array.

    Raises:
        ValueError: It is not a CPU tensor.
    """
    if out is None:
        return None
    # `to_numpy` copies other tensors, and what is written to the copy would be lost.
    if not isinstance(out, torch.Tensor) or out.device.type != "cpu" or out.is_neg():
        raise ValueError("out must be a tensor on the CPU, as its input is")
    return to_numpy(out)


def quantize(scheme: Scheme, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Quantizes on the tensor's device; arguments, result and errors are those of `Quantizer.quantize`."""
    codes, _, bad = encode(scheme, x, out)
    if bad.any():
        sample, channel = bad.nonzero()[0].tolist()
        raise not_finite(sample, channel)
    return codes


def quantize_counted(
    scheme: Scheme, x: torch.Tensor, out: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantizes and counts on the tensor's device, without waiting for it.

    Returns:
        The codes, (C,) int64 numbers of clipped values, and (N,) bool, True for bad samples.
    """
    codes, clipped, bad = encode(scheme, x, out)
    return codes, (clipped * ~bad.any(1, keepdim=True)).sum(0), bad.any(1)


def quantize_packed(scheme: Scheme, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Quantizes and packs on the tensor's device; see `Quantizer.quantize_packed`."""
    return copied(pack(scheme, quantize(scheme, x, None)), out)


def dequantize(scheme: Scheme, codes: torch.Tensor, name: str, out: torch.Tensor | None) -> torch.Tensor:
    """Dequantizes on the tensor's device to the float type of that name; see `Quantizer.dequantize`."""
    return copied(decode(scheme, codes, _DTYPES[name]), out)


def dequantize_packed(
    scheme: Scheme, packed: torch.Tensor, shape: Sequence[int], name: str, out: torch.Tensor | None
) -> torch.Tensor:
    """Unpacks and dequantizes on the tensor's device; see `Quantizer.dequantize_packed`."""
    return copied(decode(scheme, unpack(scheme, packed, shape), _DTYPES[name], unpacked=True), out)


def encode(
    scheme: Scheme, x: torch.Tensor, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Computes codes by torch operations on the tensor's device; those of a trellis are found on the CPU instead.

    Args:
        scheme: The quantizer's parameters.
        x: (N, C, ...) floats.
        out: A tensor that receives the codes.

    Returns:
        The codes (uint8, or the float type of a float kind), (N, C) numbers of clipped values (bool if a channel is
        one value, else int64), and (N, C) bool, True if a channel of a sample holds a value without a code. The codes
        of such a sample are 0.

    Raises:
        ValueError: `x` is not (N, C, ...), or `out` does not match the codes.
        TypeError: `x` is not a tensor of floats.
    """
    if x.ndim < 2 or x.shape[1] != scheme.channels:
        raise ValueError(f"expected a tensor (N, {scheme.channels}, ...), not one of shape {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"expected floats, not {x.dtype}")
    x = x.detach()
    rest = tuple(range(2, x.ndim))
    wide = x.float()
    if scheme.kind in _DTYPES:
        codes = wide.to(_DTYPES[scheme.kind])
        finite = codes.isfinite()
        clipped = torch.zeros_like(finite)
    else:
        finite = wide.isfinite()
        clipped = outside(scheme, wide)
        codes = _codes(scheme, wide)
    bad = ~finite.all(rest) if rest else ~finite
    codes = codes.masked_fill(bad.any(1).reshape(len(x), *[1] * (x.ndim - 1)), 0)
    if out is not None:
        codes = _checked(out, codes).copy_(codes)
    return codes, clipped.sum(rest) if rest else clipped, bad


def outside(scheme: Scheme, x: torch.Tensor) -> torch.Tensor:
    """Returns True for each value of a tensor (N, C, ...) that is outside the range of its channel."""
    constants = _constants(scheme, x.device)
    return (x < _broadcast(constants.low, x)) | (x > _broadcast(constants.high, x))


def _codes(scheme: Scheme, x: torch.Tensor) -> torch.Tensor:
    """Returns uint8 codes of float32 values."""
    top, constants = 2**scheme.bits - 1, _constants(scheme, x.device)
    if scheme.kind == "codebook":
        columns = x.transpose(0, 1).reshape(scheme.channels, x.numel() // scheme.channels).contiguous()
        found = torch.searchsorted(constants.bounds, columns, out_int32=True).to(torch.uint8)
        return found.reshape(scheme.channels, x.shape[0], *x.shape[2:]).transpose(0, 1).contiguous()
    low, high, constant, inverse_step = (
        _broadcast(values, x) for values in (constants.low, constants.high, constants.constant, constants.inverse_step)
    )
    if scheme.rounding == "truncate":
        span = torch.where(constant > 0, torch.ones_like(low), high - low)
        code = (torch.minimum(torch.maximum(x, low), high) / span + -low / span) * top
        code = torch.where(constant > 0, torch.zeros_like(code), code).clamp(0, top).trunc()
    else:
        code = ((x - low) * inverse_step).clamp(0, top).round()
    return code.nan_to_num(0.0).to(torch.uint8)


def decode(scheme: Scheme, codes: torch.Tensor, dtype: torch.dtype, *, unpacked: bool = False) -> torch.Tensor:
    """Computes values by torch operations on the tensor's device.

    Args:
        scheme: The quantizer's parameters.
        codes: (N, C, ...) uint8, or the float type of a float kind.
        dtype: The dtype of the result.
        unpacked: True if the codes come from `unpack`: none has too many bits, and a check would wait for the device.

    Raises:
        ValueError: `codes` is not (N, C, ...), or a code has more than `bits` bits.
        TypeError: `codes` has another dtype.
    """
    if codes.ndim < 2 or codes.shape[1] != scheme.channels:
        raise ValueError(f"expected a tensor (N, {scheme.channels}, ...), not one of shape {tuple(codes.shape)}")
    if codes.dtype is not _code_dtype(scheme):
        raise TypeError(f"expected a tensor of {_code_dtype(scheme)}, not {codes.dtype}")
    if scheme.kind in _DTYPES:
        return codes.to(dtype)
    if not unpacked and scheme.bits < 8 and codes.numel() and int(codes.max()) >= 2**scheme.bits:
        raise ValueError(f"a code has more than {scheme.bits} bits")
    constants = _constants(scheme, codes.device)
    if scheme.kind == "trellis":
        return constants.levels.flatten()[_trellis_indices(scheme, codes)].to(dtype)
    if scheme.kind == "codebook":
        channel = torch.arange(scheme.channels, device=codes.device).reshape(-1, *[1] * (codes.ndim - 2))
        return constants.levels[channel, codes.long()].to(dtype)
    wide = codes.float()
    return ((wide + _broadcast(constants.zero, wide)) * _broadcast(constants.step, wide)).to(dtype)


def _trellis_indices(scheme: Scheme, codes: torch.Tensor) -> torch.Tensor:
    """Returns the index in the flattened levels (C, 2^(bits + 1)) of each element of whole samples (N, C, ...)."""
    elements = math.prod(codes.shape[1:])
    flat = codes.reshape(len(codes), elements)
    u = flat & 1

    def earlier(distance: int) -> torch.Tensor:
        return torch.nn.functional.pad(u, (distance, 0))[:, :elements]

    label = (u ^ earlier(1) ^ earlier(3)) << 1 | earlier(2)
    numbers = (flat >> 1).long() * 4 + label
    channel = torch.arange(scheme.channels, device=codes.device).reshape(-1, 1)
    by_channel = numbers.reshape(len(codes), scheme.channels, elements // scheme.channels)
    return (by_channel + channel * scheme.level_count).reshape(codes.shape)


def pack(scheme: Scheme, codes: torch.Tensor) -> torch.Tensor:
    """Packs codes by torch operations on the tensor's device; see `Quantizer.pack`."""
    samples, elements = codes.shape[0], math.prod(codes.shape[1:])
    if scheme.kind in _DTYPES:
        return codes.contiguous().reshape(-1).view(torch.uint8).reshape(samples, scheme.packed_bytes(elements))
    codes = codes.reshape(samples, elements)
    if scheme.bits == 8:
        return codes
    if codes.numel() and int(codes.max()) >= 2**scheme.bits:
        raise ValueError(f"a code has more than {scheme.bits} bits")
    bits = (codes.unsqueeze(-1) >> torch.arange(scheme.bits, dtype=torch.uint8, device=codes.device)) & 1
    bits = bits.reshape(samples, elements * scheme.bits)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).reshape(samples, scheme.packed_bytes(elements), 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)


def unpack(scheme: Scheme, packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Unpacks codes by torch operations on the tensor's device; see `Quantizer.unpack`."""
    shape = tuple(shape)
    elements = math.prod(shape[1:])
    if not shape or tuple(packed.shape) != (shape[0], scheme.packed_bytes(elements)):
        raise ValueError(f"{tuple(packed.shape)} packed bytes do not hold codes of shape {shape} at {scheme.bits} bits")
    if scheme.kind in _DTYPES:
        return packed.contiguous().reshape(-1).view(_DTYPES[scheme.kind]).reshape(shape)
    if scheme.bits == 8:
        return packed.reshape(shape)
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    bits = bits.reshape(shape[0], 8 * packed.shape[1])[:, : elements * scheme.bits]
    bits = bits.reshape(shape[0], elements, scheme.bits)
    weights = torch.arange(scheme.bits, dtype=torch.uint8, device=packed.device)
    return (bits << weights).sum(-1, dtype=torch.uint8).reshape(shape)


def _steps(scheme: Scheme) -> tuple[npt.NDArray[np.float32], ...]:
    """Returns four (C,) arrays, computed as in Rust: 1 if the range is a single value, zero, step and 1 / step."""
    low, high = np.array(scheme.low, np.float32), np.array(scheme.high, np.float32)
    with np.errstate(all="ignore"):
        step = (high - low) / np.float32(2**scheme.bits - 1)
        inverse = np.float32(1.0) / step
        zero = low / step
    constant = ~np.isfinite(inverse)
    step = np.where(constant, np.where(low == 0, np.float32(1.0), low), step)
    zero = np.where(constant, (low != 0).astype(np.float32), zero)
    inverse = np.where(constant, np.float32(0.0), inverse)
    return constant.astype(np.float32), zero, step, inverse


def _bounds(scheme: Scheme) -> npt.NDArray[np.float32]:
    """Returns (C, 2^bits - 1) bounds: the largest float32 values not above the middle of two adjacent levels."""
    levels = np.array(scheme.levels, np.float64)
    middle = (levels[:, :-1] + levels[:, 1:]) / 2
    bounds = middle.astype(np.float32)
    return np.where(bounds > middle, np.nextafter(bounds, np.float32(-np.inf)), bounds).astype(np.float32)


@dataclass(frozen=True)
class _Constants:
    """A scheme's parameters on one device, float32: (C,) each, (C, level_count) levels, (C, 2^bits - 1) bounds."""

    low: torch.Tensor
    high: torch.Tensor
    constant: torch.Tensor
    zero: torch.Tensor
    step: torch.Tensor
    inverse_step: torch.Tensor
    levels: torch.Tensor
    bounds: torch.Tensor


def _constants(scheme: Scheme, device: torch.device) -> _Constants:
    """Returns the scheme's parameters on a device. They are copied once: each copy may wait for the device."""
    found: _Constants | None = scheme.on_device.get(device)
    if found is None:
        table = np.array(scheme.levels, np.float32).reshape(scheme.channels, -1)
        bounds = _bounds(scheme) if scheme.kind == "codebook" else table
        arrays = (np.array(scheme.low, np.float32), np.array(scheme.high, np.float32), *_steps(scheme), table, bounds)
        found = _Constants(*(torch.from_numpy(array).to(device) for array in arrays))
        scheme.on_device[device] = found
    return found


def _broadcast(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns (C,) values, shaped to broadcast over a tensor (N, C, ...)."""
    return values.reshape(-1, *[1] * (like.ndim - 2))


def _code_dtype(scheme: Scheme) -> torch.dtype:
    """Returns the dtype of codes in memory: uint8, or the float type of a float kind."""
    return _DTYPES.get(scheme.kind, torch.uint8)


def _checked(out: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns `out`, or raises ValueError if its shape or dtype differs from that of `like`."""
    if out.shape != like.shape or out.dtype != like.dtype:
        raise ValueError(
            f"out must be {like.dtype} of shape {tuple(like.shape)}, not {out.dtype} of {tuple(out.shape)}"
        )
    return out


def copied(values: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Returns the values, copied into `out` if it is given."""
    return values if out is None else _checked(out, values).copy_(values)
