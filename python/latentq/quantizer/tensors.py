"""The quantiser on torch tensors: on the CPU through the Rust kernels without copies, elsewhere by torch operations.

Every operation is a float32 operation of its own, rounded on its own, so a device gives what the CPU gives. Divisors
are tensors, because a division by a number may become a multiplication by its rounded inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latentq.quantizer.floats import Counts, float_name, not_finite
from latentq.quantizer.quantizer import Quantizer

_CODE_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def to_numpy(x: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor's memory as an array: without a copy on the CPU, bfloat16 as its bits in uint16."""
    if (
        x.requires_grad or x.device.type != "cpu" or x.is_neg()
    ):  # each of these operations would let go of the interpreter
        x = x.detach().cpu().resolve_neg()
    return x.view(torch.uint16).numpy() if x.dtype is torch.bfloat16 else x.numpy()


def _to_torch(array: npt.NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype is torch.bfloat16 else tensor


def quantize(q: Quantizer, x: torch.Tensor, out: torch.Tensor | None, threads: int) -> torch.Tensor:
    """As `Quantizer.quantize`."""
    if x.device.type == "cpu":
        codes = q.quantize(to_numpy(x), out=_out_array(out), threads=threads)
        return _to_torch(codes, _code_dtype(q)) if out is None else out
    codes, _, bad = encode(q, x, out)
    if bad.any():
        sample, channel = bad.nonzero()[0].tolist()
        raise not_finite(sample, channel)
    return codes


def quantize_counted(
    q: Quantizer, x: torch.Tensor, out: torch.Tensor | None, threads: int
) -> tuple[torch.Tensor, Counts]:
    """As `Quantizer.quantize_counted`."""
    if x.device.type == "cpu":
        codes, counts = q.quantize_counted(to_numpy(x), out=_out_array(out), threads=threads)
        return _to_torch(codes, _code_dtype(q)) if out is None else out, counts
    codes, clipped, bad = quantize_there(q, x, out)
    return codes, Counts(clipped.cpu().numpy(), bad.cpu().numpy())


def quantize_there(
    q: Quantizer, x: torch.Tensor, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `Quantizer.quantize_counted`, without waiting for the device: codes, (C,) clipped and (N,) bad, all on it."""
    if x.device.type == "cpu":
        codes, counts = quantize_counted(q, x, out, 1)
        return codes, torch.from_numpy(counts.clipped), torch.from_numpy(counts.bad)
    codes, clipped, bad = encode(q, x, out)
    return codes, (clipped * ~bad.any(1, keepdim=True)).sum(0), bad.any(1)


def dequantize(q: Quantizer, codes: torch.Tensor, dtype: Any, out: torch.Tensor | None, threads: int) -> torch.Tensor:
    """As `Quantizer.dequantize`."""
    name = float_name(dtype)
    if codes.device.type == "cpu":
        values = q.dequantize(to_numpy(codes), dtype=name, out=_out_array(out), threads=threads)
        return _to_torch(values, _CODE_DTYPES[name]) if out is None else out
    values = decode(q, codes, _CODE_DTYPES[name])
    return values if out is None else _checked(out, values).copy_(values)


def pack(q: Quantizer, codes: torch.Tensor, threads: int) -> torch.Tensor:
    """As `Quantizer.pack`."""
    if codes.device.type == "cpu":
        return torch.from_numpy(q.pack(to_numpy(codes), threads=threads))
    return pack_bits(q, codes)


def unpack(q: Quantizer, packed: torch.Tensor, shape: Sequence[int], threads: int) -> torch.Tensor:
    """As `Quantizer.unpack`."""
    if packed.device.type == "cpu":
        return _to_torch(q.unpack(to_numpy(packed), shape, threads=threads), _code_dtype(q))
    return unpack_bits(q, packed, shape)


def quantize_packed(q: Quantizer, x: torch.Tensor, out: torch.Tensor | None, threads: int) -> torch.Tensor:
    """As `Quantizer.quantize_packed`."""
    if x.device.type == "cpu":
        packed = q.quantize_packed(to_numpy(x), out=_out_array(out), threads=threads)
        return torch.from_numpy(packed) if out is None else out
    packed = pack_bits(q, quantize(q, x, None, threads))
    return packed if out is None else _checked(out, packed).copy_(packed)


def dequantize_packed(
    q: Quantizer, packed: torch.Tensor, shape: Sequence[int], dtype: Any, out: torch.Tensor | None, threads: int
) -> torch.Tensor:
    """As `Quantizer.dequantize_packed`."""
    if packed.device.type == "cpu":
        name = float_name(dtype)
        values = q.dequantize_packed(to_numpy(packed), shape, dtype=name, out=_out_array(out), threads=threads)
        return _to_torch(values, _CODE_DTYPES[name]) if out is None else out
    return dequantize(q, unpack_bits(q, packed, shape), dtype, out, threads)


def encode(
    q: Quantizer, x: torch.Tensor, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes by torch operations on the tensor's device, (N, C) counts of clipped values, (N, C) whether one is bad."""
    if x.ndim < 2 or x.shape[1] != q.channels:
        raise ValueError(f"expected a tensor (N, {q.channels}, ...), not one of shape {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"expected floats, not {x.dtype}")
    x = x.detach()
    rest = tuple(range(2, x.ndim))
    wide = x.float()
    low, high = (_channels(values, wide) for values in (q.low, q.high))
    if q.kind in _CODE_DTYPES:
        codes = wide.to(_CODE_DTYPES[q.kind])
        finite = codes.isfinite()
        clipped = torch.zeros_like(finite)
    else:
        finite = wide.isfinite()
        clipped = (wide < low) | (wide > high)
        codes = _codes(q, wide, low, high)
    bad = ~finite.all(rest) if rest else ~finite
    codes = codes.masked_fill(bad.any(1).reshape(len(x), *[1] * (x.ndim - 1)), 0)
    if out is not None:
        codes = _checked(out, codes).copy_(codes)
    return codes, clipped.sum(rest) if rest else clipped.long(), bad


def _codes(q: Quantizer, x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    top = 2**q.bits - 1
    if q.kind == "codebook":
        columns = x.transpose(0, 1).reshape(q.channels, x.numel() // q.channels).contiguous()
        found = torch.searchsorted(_bounds(q, x.device), columns).to(torch.uint8)
        return found.reshape(q.channels, x.shape[0], *x.shape[2:]).transpose(0, 1).contiguous()
    constant, _, _, inverse_step = (_channels(values, x) for values in _steps(q))
    if q.rounding == "truncate":
        span = torch.where(constant > 0, torch.ones_like(low), high - low)
        code = (torch.minimum(torch.maximum(x, low), high) / span + -low / span) * top
        code = torch.where(constant > 0, torch.zeros_like(code), code).clamp(0, top).trunc()
    else:
        code = ((x - low) * inverse_step).clamp(0, top).round()
    return code.nan_to_num(0.0).to(torch.uint8)


def decode(q: Quantizer, codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values by torch operations on the tensor's device."""
    if codes.ndim < 2 or codes.shape[1] != q.channels:
        raise ValueError(f"expected a tensor (N, {q.channels}, ...), not one of shape {tuple(codes.shape)}")
    if codes.dtype is not _code_dtype(q):
        raise TypeError(f"expected a tensor of {_code_dtype(q)}, not {codes.dtype}")
    if q.kind in _CODE_DTYPES:
        return codes.to(dtype)
    if q.bits < 8 and codes.numel() and int(codes.max()) >= 2**q.bits:
        raise ValueError(f"a code has more than {q.bits} bits")
    if q.kind == "codebook":
        table = torch.tensor(q.levels, dtype=torch.float32, device=codes.device)
        channel = torch.arange(q.channels, device=codes.device).reshape(-1, *[1] * (codes.ndim - 2))
        return table[channel, codes.long()].to(dtype)
    wide = codes.float()
    _, zero, step, _ = (_channels(values, wide) for values in _steps(q))
    return ((wide + zero) * step).to(dtype)


def pack_bits(q: Quantizer, codes: torch.Tensor) -> torch.Tensor:
    """Packs by torch operations on the tensor's device."""
    samples, elements = codes.shape[0], math.prod(codes.shape[1:])
    if q.kind in _CODE_DTYPES:
        return codes.contiguous().reshape(-1).view(torch.uint8).reshape(samples, q.packed_bytes(elements))
    codes = codes.reshape(samples, elements)
    if q.bits == 8:
        return codes
    if codes.numel() and int(codes.max()) >= 2**q.bits:
        raise ValueError(f"a code has more than {q.bits} bits")
    bits = (codes.unsqueeze(-1) >> torch.arange(q.bits, dtype=torch.uint8, device=codes.device)) & 1
    bits = bits.reshape(samples, elements * q.bits)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[1] % 8)).reshape(samples, q.packed_bytes(elements), 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=codes.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(q: Quantizer, packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Unpacks by torch operations on the tensor's device."""
    shape = tuple(shape)
    elements = math.prod(shape[1:])
    if not shape or tuple(packed.shape) != (shape[0], q.packed_bytes(elements)):
        raise ValueError(f"{tuple(packed.shape)} packed bytes do not hold codes of shape {shape} at {q.bits} bits")
    if q.kind in _CODE_DTYPES:
        return packed.contiguous().reshape(-1).view(_CODE_DTYPES[q.kind]).reshape(shape)
    if q.bits == 8:
        return packed.reshape(shape)
    bits = (packed.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    bits = bits.reshape(shape[0], 8 * packed.shape[1])[:, : elements * q.bits].reshape(shape[0], elements, q.bits)
    weights = torch.arange(q.bits, dtype=torch.uint8, device=packed.device)
    return (bits << weights).sum(-1, dtype=torch.uint8).reshape(shape)


def _steps(q: Quantizer) -> tuple[npt.NDArray[np.float32], ...]:
    """For each channel: whether it has one value only, zero, step, inverse step; as the Rust core computes them."""
    low, high = np.array(q.low, np.float32), np.array(q.high, np.float32)
    with np.errstate(all="ignore"):
        step = (high - low) / np.float32(2**q.bits - 1)
        inverse = np.float32(1.0) / step
        zero = low / step
    constant = ~np.isfinite(inverse)
    step = np.where(constant, np.where(low == 0, np.float32(1.0), low), step)
    zero = np.where(constant, (low != 0).astype(np.float32), zero)
    inverse = np.where(constant, np.float32(0.0), inverse)
    return constant.astype(np.float32), zero, step, inverse


def _bounds(q: Quantizer, device: torch.device) -> torch.Tensor:
    """(C, 2^bits - 1): the largest float32 not above the middle of two levels."""
    levels = np.array(q.levels, np.float64)
    middle = (levels[:, :-1] + levels[:, 1:]) / 2
    bounds = middle.astype(np.float32)
    bounds = np.where(bounds > middle, np.nextafter(bounds, np.float32(-np.inf)), bounds)
    return torch.from_numpy(bounds.astype(np.float32)).to(device, non_blocking=True)


def _channels(values: Any, like: torch.Tensor) -> torch.Tensor:
    """One value for each channel, shaped to be broadcast over (N, C, ...)."""
    # Without non_blocking torch would wait for all that the device has to do before.
    tensor = torch.from_numpy(np.asarray(values, np.float32).copy()).to(like.device, non_blocking=True)
    return tensor.reshape(-1, *[1] * (like.ndim - 2))


def _code_dtype(q: Quantizer) -> torch.dtype:
    return _CODE_DTYPES.get(q.kind, torch.uint8)


def _out_array(out: torch.Tensor | None) -> npt.NDArray[Any] | None:
    if out is None:
        return None
    # Of another tensor `to_numpy` gives a copy, and what is written to that is lost.
    if not isinstance(out, torch.Tensor) or out.device.type != "cpu" or out.is_neg():
        raise ValueError("out must be a tensor on the CPU, as its input is")
    return to_numpy(out)


def _checked(out: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if out.shape != like.shape or out.dtype != like.dtype:
        raise ValueError(
            f"out must be {like.dtype} of shape {tuple(like.shape)}, not {out.dtype} of {tuple(out.shape)}"
        )
    return out
