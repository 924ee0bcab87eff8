"""Triton kernels of a group norm followed by SiLU: float32 statistics, three launches, no atomics.

Every kernel sees a sample as positions x channels, by strides, and so serves both memory formats. The order of each sum
follows from the shape alone: the results are the same to the bit in every run, and do not depend on the batch.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator,misc"
from __future__ import annotations

import torch
import triton
import triton.language as tl

_ELEMENTS = 4096  # of a tile, which a program holds in registers
_TILES = 16  # the most tiles that a program of `_block_moments` reduces
_LANES = 128  # the most channels of a tile in channels_last
_OPTIONS = {"enable_fp_fusion": False}  # of compilation; versions of Triton differ in the default


def group_norm_silu(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, *, channels_last: bool
) -> torch.Tensor:
    """Computes silu(group_norm(x)) in float32, rounded once, to the dtype of x.

    Args:
        x: (B, C, h, w) float32, float16 or bfloat16, dense in channels_last or contiguous.
        weight: (C,) floats.
        bias: (C,) floats.
        groups: The number of groups, a divisor of C.
        eps: The value that is added to the variance.
        channels_last: The memory format of x.

    Returns:
        A tensor of the shape, dtype and memory format of x.
    """
    samples, channels, height, width = x.shape
    positions, group = height * width, channels // groups
    lanes = min(triton.next_power_of_2(channels), _LANES) if channels_last else 1
    rows = min(_ELEMENTS // lanes, triton.next_power_of_2(positions))
    strides = (channels * positions, 1, channels) if channels_last else (channels * positions, positions, 1)
    tiles = triton.cdiv(positions, rows)
    per_block = min(_TILES, triton.next_power_of_2(tiles))
    blocks = triton.cdiv(tiles, per_block)
    group_lanes = triton.next_power_of_2(group)
    across = triton.cdiv(channels, lanes)

    y = torch.empty_like(x)
    means, squares = torch.empty((2, samples, blocks, channels), dtype=torch.float32, device=x.device)
    centers, scales = torch.empty((2, samples, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _block_moments[(samples * blocks, across)](
            x,
            means,
            squares,
            channels,
            positions,
            blocks,
            *strides,
            tiles=per_block,
            rows=rows,
            lanes=lanes,
            **_OPTIONS,
        )
        _group_scales[(samples, groups)](
            means, squares, weight, centers, scales, channels, positions, blocks, group, eps,
            block=per_block * rows, rows=max(1, 1024 // group_lanes), lanes=group_lanes, **_OPTIONS,
        )  # fmt: skip
        _normalize[(samples * tiles, across)](
            x,
            y,
            centers,
            scales,
            bias,
            channels,
            positions,
            tiles,
            *strides,
            rows=rows,
            lanes=lanes,
            **_OPTIONS,
        )
    return y


@triton.jit
def _block_moments(
    x, means, squares, channels, positions, blocks, sample_stride, channel_stride, position_stride,
    tiles: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Stores the mean and the sum of squared deviations of each channel over one block of positions.

    Args:
        x: The input, of shape (N, channels, positions), with the strides below in elements.
        means: Means, (N, blocks, channels) float32.
        squares: Sums of squared deviations from the mean, (N, blocks, channels) float32.
        channels: The number of channels.
        positions: The number of pixels of a channel.
        blocks: The number of blocks of positions; a block has `tiles * rows` of them, the last perhaps fewer.
        sample_stride: Stride of the samples.
        channel_stride: Stride of the channels.
        position_stride: Stride of the positions.
        tiles: Tiles per block.
        rows: Positions per tile.
        lanes: Channels per program.
    """
    sample = tl.program_id(0) // blocks
    start = (tl.program_id(0) % blocks) * (tiles * rows)
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)
    known = channel < channels
    pointers = x + sample.to(tl.int64) * sample_stride + start.to(tl.int64) * position_stride
    pointers += channel.to(tl.int64) * channel_stride
    # Sums of squares cancel if the mean is large: so of deviations from the block's first value.
    first = tl.load(pointers, mask=known, other=0.0).to(tl.float32)
    total = tl.zeros([rows, lanes], tl.float32)
    square = tl.zeros([rows, lanes], tl.float32)
    for tile in range(tiles):
        row = tile * rows + tl.arange(0, rows)
        inside = (start + row < positions)[:, None] & known[None, :]
        values = tl.load(pointers[None, :] + row[:, None] * position_stride, mask=inside, other=0.0).to(tl.float32)
        deviation = tl.where(inside, values - first[None, :], 0.0)
        total += deviation
        square += deviation * deviation
    count = tl.minimum(positions - start, tiles * rows).to(tl.float32)
    sums = tl.sum(total, 0)
    target = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(means + target, first + sums / count, mask=known)
    tl.store(squares + target, tl.sum(square, 0) - sums * (sums / count), mask=known)


@triton.jit
def _group_scales(
    means, squares, weight, centers, scales, channels, positions, blocks, group, eps,
    block: tl.constexpr, rows: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Combines the moments of one group: its mean, and each channel's weight over the standard deviation.

    Args:
        means: Means of blocks, (N, blocks, channels) float32.
        squares: Sums of squared deviations of blocks, (N, blocks, channels) float32.
        weight: The norm's weight, (channels,).
        centers: Means of the groups, for each channel: (N, channels) float32.
        scales: Weights over standard deviations, (N, channels) float32.
        channels: The number of channels.
        positions: The number of pixels of a channel.
        blocks: The number of blocks of positions.
        group: Channels per group.
        eps: Added to the variance.
        block: Positions per block.
        rows: Blocks that are combined at once.
        lanes: A power of two, at least `group`.
    """
    sample = tl.program_id(0)
    lane = tl.arange(0, lanes)
    known = lane < group
    channel = tl.program_id(1) * group + lane
    offset = sample.to(tl.int64) * blocks * channels
    size = positions.to(tl.float32) * group
    first = tl.load(means + offset + tl.program_id(1) * group)
    total = tl.zeros([rows, lanes], tl.float32)
    for start in range(0, blocks, rows):
        row = start + tl.arange(0, rows)
        inside = (row < blocks)[:, None] & known[None, :]
        count = tl.minimum(positions - row * block, block).to(tl.float32)[:, None]
        place = offset + row[:, None] * channels + channel[None, :]
        mean = tl.load(means + place, mask=inside, other=0.0)
        total += tl.where(inside, count * (mean - first), 0.0)
    center = first + tl.sum(tl.sum(total, 1), 0) / size
    square = tl.zeros([rows, lanes], tl.float32)
    for start in range(0, blocks, rows):
        row = start + tl.arange(0, rows)
        inside = (row < blocks)[:, None] & known[None, :]
        count = tl.minimum(positions - row * block, block).to(tl.float32)[:, None]
        place = offset + row[:, None] * channels + channel[None, :]
        deviation = tl.load(means + place, mask=inside, other=0.0) - center
        own = tl.load(squares + place, mask=inside, other=0.0)
        square += tl.where(inside, own + count * deviation * deviation, 0.0)
    variance = tl.sum(tl.sum(square, 1), 0) / size
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    target = sample * channels + channel
    tl.store(centers + target, tl.zeros([lanes], tl.float32) + center, mask=known)
    tl.store(scales + target, scale, mask=known)


@triton.jit
def _normalize(
    x, y, centers, scales, bias, channels, positions, tiles, sample_stride, channel_stride, position_stride,
    rows: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Stores silu((x - center) * scale + bias) of one tile.

    Args:
        x: The input, of shape (N, channels, positions), with the strides below in elements.
        y: The output, of the input's shape and strides.
        centers: (N, channels) float32.
        scales: (N, channels) float32.
        bias: The norm's bias, (channels,).
        channels: The number of channels.
        positions: The number of pixels of a channel.
        tiles: Tiles per sample.
        sample_stride: Stride of the samples.
        channel_stride: Stride of the channels.
        position_stride: Stride of the positions.
        rows: Positions per tile.
        lanes: Channels per program.
    """
    sample = tl.program_id(0) // tiles
    start = (tl.program_id(0) % tiles) * rows
    channel = tl.program_id(1) * lanes + tl.arange(0, lanes)
    known = channel < channels
    row = tl.arange(0, rows)
    inside = (start + row < positions)[:, None] & known[None, :]
    offset = sample.to(tl.int64) * sample_stride + start.to(tl.int64) * position_stride
    offsets = (offset + channel.to(tl.int64) * channel_stride)[None, :] + row[:, None] * position_stride
    center = tl.load(centers + sample * channels + channel, mask=known, other=0.0)
    scale = tl.load(scales + sample * channels + channel, mask=known, other=0.0)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    values = tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32)
    normal = (values - center[None, :]) * scale[None, :] + shift[None, :]
    tl.store(y + offsets, (normal / (1.0 + tl.exp(-normal))).to(y.dtype.element_ty), mask=inside)
