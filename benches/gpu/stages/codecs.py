"""The codecs decode on the device as on the CPU, to the bit, and the device does not wait for their encoders."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from gpu.harness import Run
from gpu.measure import in_turns, rates, wait
from gpu.pictures import Repeated
from gpu.stages.codes import Device, bits, differences
from gpu.stages.loop import Loop
from latentq import LatentDataset, Quantizer, Transform
from latentq.encoding.stages import Profile
from latentq.system.processors import processors

SHAPES = ((32, 8, 8), (4, 32, 32), (16, 5, 36))  # tiles of 8 and of the rest
FLOATS = ("float32", "float16", "bfloat16")
QUANTIZERS: dict[str, dict[str, Any]] = {
    "trellis, 4 bits": {"kind": "trellis", "bits": 4},
    "trellis, 8 bits": {"kind": "trellis", "bits": 8},
    "transform, 4 bits": {"kind": "transform", "bits": 4},
}
WITHOUT = "affine, 8 bits"
_DEVICE = ("copy", "network", "quantize")  # stages of a profile by the device's clock


def work(run: Run) -> None:
    """Decodes, encodes and reads."""
    device = Device(run)
    for shape in SHAPES:
        for width in range(2, 9):
            with run.attempt(f"trellis, {width} bits, {shape}"):
                _trellis(run, device, width, shape)
        with run.attempt(f"transform, {shape}"):
            _transform(run, shape)
    with run.attempt("rates of decoding"):
        _decoding(run)
    loop = Loop(run)
    loop.encode("warm", Repeated(loop.files, run.size(256, 4)))  # compiles
    found: dict[str, float] = {}
    for name, quantizer in {WITHOUT: {"kind": "affine", "bits": 8}, **QUANTIZERS}.items():
        with run.attempt(f"encode, {name}"):
            found[name] = _encode(loop, name, quantizer)
    for name in QUANTIZERS:
        if name in found and WITHOUT in found:
            part = found[name] / found[WITHOUT]
            run.check(f"encode, {name} / {WITHOUT}", part >= 0.95, part, ">= 0.95", card_only=True)
        with run.attempt(f"read, {name}"):
            _read(run, name)


def _normal(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Returns values (N, C, h, w) with channels of different deviations."""
    scale = np.geomspace(2, 0.2, shape[0]).reshape(-1, 1, 1)
    return (np.random.default_rng(4).standard_normal((count, *shape)) * scale).astype(np.float32)


def _trellis_of(width: int, channels: int) -> Quantizer:
    levels = np.random.default_rng(5).normal(0, 2, (channels, 2 << width)).astype(np.float32)
    return Quantizer.trellis(np.sort(levels, axis=1))


def _trellis(run: Run, device: Device, width: int, shape: tuple[int, ...]) -> None:
    """Checks that any packed codes have the same values, and codes of one byte as well."""
    quantizer, count = _trellis_of(width, shape[0]), run.size(4096, 16)
    room = quantizer.packed_bytes(int(np.prod(shape)))
    packed = torch.from_numpy(np.random.default_rng(width).integers(0, 256, (count, room), np.uint8))
    codes = quantizer.unpack(packed, (count, *shape))
    expected = quantizer.dequantize_packed(packed, (count, *shape), threads=processors())
    found = device.call(quantizer, "dequantize_packed", packed, (count, *shape))
    wrong, first = differences([bits(expected)], [found], bits(codes))
    for dtype in FLOATS:
        mine = bits(quantizer.dequantize(codes, dtype=dtype, threads=processors()))
        different, where = differences([mine], [device.dequantize(quantizer, codes, dtype)], bits(codes))
        wrong, first = wrong + different, first or where
    run.check(f"trellis, {width} bits, {shape}", wrong == 0, wrong, 0, first)


def _transform(run: Run, shape: tuple[int, ...]) -> None:
    """Checks that samples of both rate controls have the same values."""
    latents = _normal(run.size(1024, 24), shape)
    budget = latents[0].size // 2
    for name, options in {"bytes": {"bytes": budget}, "rate": {"rate": 3.0}}.items():
        codec = Transform.calibrate(latents, **options)
        stored = codec.encode(latents, threads=processors())
        for dtype in FLOATS:
            mine = codec.decode(stored, shape, dtype=dtype, threads=processors())
            found = codec.decode_tensor(stored, shape, device=run.device, dtype=dtype, threads=processors())
            wrong, first = differences([bits(mine)], [bits(found)], bits(mine))
            run.check(f"transform, {name}, {shape} to {dtype}", wrong == 0, wrong, 0, first)


def _decoding(run: Run) -> None:
    """Measures samples per second of batches: on the device, and of a transform with the entropy decoding before."""
    shape, count = SHAPES[0], run.size(1024, 16)
    works: dict[str, Any] = {}
    for width in (4, 8):
        quantizer = _trellis_of(width, shape[0])
        room = quantizer.packed_bytes(int(np.prod(shape)))
        packed = torch.randint(0, 256, (count, room), dtype=torch.uint8, device=run.device)
        works[f"decode trellis, {width} bits"] = lambda q=quantizer, p=packed: q.dequantize_packed(p, (count, *shape))
    latents = _normal(count, shape)
    codec = Transform.calibrate(latents, bytes=1024)
    stored = codec.encode(latents, threads=processors())
    numbers = codec.numbers(stored, shape, threads=processors())
    works["decode transform, 1,024 bytes"] = lambda: codec.decode_tensor(
        stored, shape, device=run.device, threads=processors()
    )
    works["entropy decoding of it, on the CPU"] = lambda: codec.numbers(stored, shape, threads=processors())
    seconds = in_turns(run, works)
    assert len(numbers[0]) == count
    for name, times in seconds.items():
        rates(run, name, times, count, "samples/s")


def _encode(loop: Loop, name: str, quantizer: dict[str, Any]) -> float:
    """Encodes by the network on the device and the codec on CPU threads; returns the images per second."""
    run, profile = loop.run, Profile()
    start = time.perf_counter()
    source = Repeated(loop.files, run.size(4096, 8))
    rate = loop.encode(name, source, quantizer=quantizer, profile=profile)
    wall = time.perf_counter() - start
    run.number(f"encode, {name}", rate, "img/s")
    worked = sum(profile.seconds.get((stage, "worked"), 0.0) for stage in _DEVICE)
    run.number(f"encode, {name}: the device waits", 100 * max(0.0, 1 - worked / wall), "%")
    for stage in ("codec", "write"):
        run.number(f"encode, {name}: {stage}", 100 * profile.seconds.get((stage, "worked"), 0.0) / wall, "%")
    run.number(f"encode, {name}: batches wait to be written", 100 * _blocked(profile) / wall, "%")
    return rate


def _blocked(profile: Profile) -> float:
    return profile.seconds.get(("network", "blocked"), 0.0) + profile.seconds.get(("quantize", "blocked"), 0.0)


def _read(run: Run, name: str) -> None:
    """Checks that loaders on the device and resident datasets give the CPU's batches, and measures them."""
    dataset = LatentDataset(run.folder / name, columns=["latent"])
    batch = run.size(256, 4)
    loaders = {
        "CPU": dataset.loader(batch, shuffle=True),
        "loader": dataset.loader(batch, shuffle=True, device=run.device),
        "resident": dataset.to_device(run.device).loader(batch, shuffle=True),
    }
    different = dict.fromkeys(loaders, 0)
    for batches in zip(*loaders.values(), strict=True):
        expected = bits(batches[0]["latent"])
        for other, given in zip(loaders, batches, strict=True):
            different[other] += int(np.count_nonzero(expected != bits(given["latent"])))
    for other, wrong in different.items():
        if other != "CPU":
            run.check(f"read, {name}, {other}", wrong == 0, wrong, 0)
    for other, loader in loaders.items():
        times = []
        for _ in range(1 if run.dry else 5):
            start = time.perf_counter()
            for _batch in loader:
                pass
            wait(run)
            times.append(time.perf_counter() - start)
        values = [len(dataset) / seconds for seconds in times]
        run.number(f"read, {name}, {other}", statistics.median(values), "samples/s", values)
