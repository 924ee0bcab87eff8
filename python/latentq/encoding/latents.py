"""Encodes batches of pixels to codes on the device, asynchronously; encodes samples that hold NaN or infinity again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from latentq.encoding.stages import COPY, NETWORK, QUANTIZE, Profile
from latentq.format.options import AutoencoderOptions, Column
from latentq.models.autoencoders import Autoencoder
from latentq.models.device import send, start_copy_to_host
from latentq.models.group_norm import with_fused_norms
from latentq.models.match import normalization_of
from latentq.models.noise import noise
from latentq.models.precision import computing_in
from latentq.models.scale import ScaleChange
from latentq.quantizer import Quantizer
from latentq.quantizer.tensors import to_numpy

cuda: Any = torch.cuda  # partly untyped

_Method = Literal["encode", "posterior", "tokens"]


@dataclass
class PendingLatents:
    """A batch that the device is encoding. On a GPU its tensors are valid only after `LatentEncoder.wait`.

    Attributes:
        pixels: By (H, W), (B, 3, H, W) uint8 on the device.
        positions: Positions in the batch of the n samples that are encoded.
        indices: Their indices in the list.
        encoded: By column, on the device: (n, C, h, w) float32 or (n, h, w) int64.
        codes: By column, on the host: the codes, floats or tokens that are stored.
        clipped: By column with a quantizer, (C,) int64: the number of values outside its range.
        bad: By column, (n,) bool: True if a sample holds NaN or infinity. Tokens of -1 mean the same.
        marks: Start and end of each step: seconds, or CUDA events.
        redone: Number of samples that were encoded again in float32.
    """

    pixels: Mapping[tuple[int, int], torch.Tensor]
    positions: list[int]
    indices: list[int]
    encoded: dict[str, torch.Tensor]
    codes: dict[str, torch.Tensor]
    clipped: dict[str, torch.Tensor]
    bad: dict[str, torch.Tensor]
    marks: list[Any]
    redone: int = 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns by column (n, C, h, w) codes or floats, bfloat16 as its bits in uint16, or (n, h, w) tokens."""
        return {name: to_numpy(values) for name, values in self.codes.items()}


class LatentEncoder:
    """An autoencoder that computes as a recipe says.

    Args:
        autoencoder: The autoencoder, on `device`.
        options: The recipe's options: `dtype` is that of autocast, the weights keep theirs; `seed` is the noise's.
        device: Device that the autoencoder computes on.
        compiled: Compile the autoencoder with torch.compile; its results may then differ in the last bit.
        fused_norm: Compute its group norms by `group_norm.with_fused_norms`; likewise.

    Attributes:
        autoencoder: The autoencoder.
        device: The device that it computes on.
        is_compiled: True if the autoencoder is compiled, for each shape of its input alone.

    Raises:
        ValueError: `fused_norm` is True, and the autoencoder has no group norm that can be fused.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        options: AutoencoderOptions,
        device: str,
        *,
        compiled: bool = False,
        fused_norm: bool = False,
    ) -> None:
        self.autoencoder = autoencoder
        self.device = torch.device(device)
        self._options = options
        self._gpu = self.device.type == "cuda"
        self._copies = cuda.Stream(self.device) if self._gpu else None
        # Convolutions are faster in this format on a GPU. A user's own autoencoder may not support it.
        module = getattr(autoencoder, "module", None)
        self._format = torch.contiguous_format
        if self._gpu and isinstance(module, torch.nn.Module) and not _has_video_weights(module):
            self._format = torch.channels_last
            module.to(memory_format=self._format)
        self._fast = with_fused_norms(autoencoder) if fused_norm else autoencoder
        self.is_compiled = compiled
        self._to_scaled = ScaleChange.to_scaled(normalization_of(autoencoder), getattr(autoencoder, "positions", None))
        self._compiled: dict[_Method, Any] = {}

    def host_buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Returns uninitialized uint8 memory on the host, pinned for a GPU so that copies to it are asynchronous."""
        return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=self._gpu)

    @torch.no_grad()
    def start(
        self,
        pixels: Mapping[tuple[int, int], torch.Tensor],
        columns: Mapping[str, Column],
        quantizers: Mapping[str, Quantizer],
        indices: Sequence[int],
        positions: Iterable[int],
    ) -> PendingLatents:
        """Starts to encode a batch; on a GPU it returns before the device is done.

        Args:
            pixels: By (H, W), buffers of `host_buffer`; they must not change until `wait` returns.
            columns: The columns to compute.
            quantizers: Quantizers of the columns without tokens.
            indices: Indices in the list of the batch's samples.
            positions: Positions in the batch of the samples to encode.

        Raises:
            torch.OutOfMemoryError: The device has too little memory.
        """
        positions = list(positions)
        marks = []
        with contextlib.nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            marks.append(self._mark())
            copied = {size: values.to(self.device, non_blocking=self._gpu) for size, values in pixels.items()}
            marks.append(self._mark())
        if self._copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)
            for values in copied.values():
                values.record_stream(computing)  # so that their memory is not reused before this stream is done with it
        marks.append(self._mark())
        rows = send(torch.tensor(positions, device="cpu"), self.device)  # indexing by a list would wait for the device
        encoded = {}
        for stream, (name, column) in enumerate(columns.items() if positions else ()):
            values = self.encode(copied[column.pixels], column, indices, stream)
            encoded[name] = values if len(positions) == len(indices) else values.index_select(0, rows)
        pending = PendingLatents(
            copied, positions, [indices[position] for position in positions], encoded, {}, {}, {}, marks
        )
        marks.append(self._mark())
        self._quantize(pending, quantizers)
        marks.append(self._mark())
        return pending

    @torch.no_grad()
    def wait(
        self,
        pending: PendingLatents,
        columns: Mapping[str, Column],
        quantizers: Mapping[str, Quantizer],
        profile: Profile,
        refused: Iterable[int] = (),
    ) -> list[int]:
        """Waits until a batch is encoded. Samples that hold NaN or infinity are encoded again, alone and in float32.

        Args:
            pending: The batch. Modified in-place: samples that stay bad, and `refused` ones, are removed.
            columns: The columns given to `start`.
            quantizers: The quantizers given to `start`.
            profile: Collects the device's time.
            refused: Positions of samples that must be removed for another reason.

        Returns:
            The positions of the removed samples.
        """
        if self._gpu:
            pending.marks[-1].synchronize()
        for stage, mark in ((COPY, 0), (NETWORK, 2), (QUANTIZE, 3)):
            profile.seconds[stage, "worked"] += self._between(*pending.marks[mark : mark + 2])
        refused = set(refused)
        if not self._bad_rows(pending) and not refused:
            return []
        if self._options.dtype != "float32":
            pending.redone = len(self._bad_rows(pending))
            for stream, (name, column) in enumerate(columns.items()):
                for row in pending.bad[name].nonzero().flatten().tolist():
                    position, index = pending.positions[row], pending.indices[row]
                    alone = pending.pixels[column.pixels][position : position + 1]
                    pending.encoded[name][row] = self.encode(alone, column, [index], stream, exact=True)[0]
            self._quantize(pending, quantizers)
            self._wait()
        bad = sorted(
            {*self._bad_rows(pending), *(row for row, position in enumerate(pending.positions) if position in refused)}
        )
        removed = [pending.positions[row] for row in bad]
        if bad:
            kept = [row for row in range(len(pending.positions)) if row not in bad]
            pending.positions, pending.indices = (
                [values[row] for row in kept] for values in (pending.positions, pending.indices)
            )
            pending.encoded = {name: values[kept] for name, values in pending.encoded.items()}
            self._quantize(pending, quantizers)
            self._wait()
        return removed

    @torch.no_grad()
    def encode(
        self, pixels: torch.Tensor, column: Column, indices: Sequence[int], stream: int, *, exact: bool = False
    ) -> torch.Tensor:
        """Computes one column of a batch, before quantization.

        Args:
            pixels: (B, 3, H, W) uint8, on the device.
            column: The column.
            indices: Indices in the list of the first n <= B samples; the rest of the batch is padding. A sample's
                noise depends on its index, the recipe's seed and `stream` alone.
            stream: Number of the column among those that the autoencoder computes.
            exact: Compute in float32, uncompiled and unfused, whatever the recipe and the options say.

        Returns:
            On the device: latents (n, C, h, w) float32, moments (n, 2C, h, w), or tokens (n, h, w) int64, -1 for none.
        """
        autoencoder: Any = self.autoencoder
        low, high = autoencoder.pixel_range
        floats = pixels.float() * ((high - low) / 255) + low
        if column.flip:
            floats = floats.flip(-1)
        floats = floats.contiguous(memory_format=self._format)
        if column.content == "tokens":
            tokens: torch.Tensor = self._run("tokens", floats, exact)
            return tokens[: len(indices)]
        if column.content == "latent" and (column.store == "mean" or not hasattr(autoencoder, "posterior")):
            latents: torch.Tensor = self._run("encode", floats, exact)[: len(indices)].float()
        else:
            mean, logvar = (values[: len(indices)].float() for values in self._run("posterior", floats, exact))
            if column.content == "moments":
                return torch.cat([mean, (logvar / 2).exp() if column.spread == "std" else logvar], 1)
            # Drawn on the host while the GPU computes.
            drawn = torch.from_numpy(noise(self._options.seed, indices, stream, tuple(mean.shape[1:])))
            latents = mean + (logvar / 2).exp() * send(drawn, self.device)
        if column.scaled:
            latents = self._to_scaled(latents)
        return latents

    def _run(self, method: _Method, floats: torch.Tensor, exact: bool) -> Any:
        """Calls one of the autoencoder's methods in the recipe's dtype, or in float32."""
        call = getattr(self.autoencoder if exact else self._fast, method)
        if self.is_compiled and not exact:
            if method not in self._compiled:
                self._compiled[method] = _compiled(call)
            call = self._compiled[method]
        with computing_in("float32" if exact else self._options.dtype, self.device):
            return call(floats)

    def _quantize(self, pending: PendingLatents, quantizers: Mapping[str, Quantizer]) -> None:
        for name, values in pending.encoded.items():
            if name in quantizers:
                codes, clipped, bad = quantizers[name].quantize_on_device(values)
                pending.clipped[name] = start_copy_to_host(clipped, self.device)
            else:
                codes, bad = values.to(torch.int32), (values < 0).flatten(1).any(1)
            pending.codes[name], pending.bad[name] = (
                start_copy_to_host(codes, self.device),
                start_copy_to_host(bad, self.device),
            )

    def _bad_rows(self, pending: PendingLatents) -> list[int]:
        bad = np.zeros(len(pending.positions), bool)
        for rows in pending.bad.values():
            bad |= rows.numpy()
        return list(map(int, np.flatnonzero(bad)))

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.current_stream(self.device).synchronize()

    def _mark(self) -> Any:
        """Returns the present time: seconds, or a CUDA event."""
        if not self._gpu:
            return time.perf_counter()
        event = cuda.Event(enable_timing=True, blocking=True)  # a thread that waits for it sleeps
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1000 if self._gpu else end - start)


def _has_video_weights(module: torch.nn.Module) -> bool:
    """True if a weight has five axes, as those of 3-D convolutions, which `channels_last` refuses."""
    return any(weight.ndim == 5 for weight in module.parameters())


def _compiled(call: Callable[..., Any]) -> Any:
    """Returns a method that is compiled for each shape alone, and the same way in every process where torch can."""
    import torch._inductor.config as inductor

    options: Any = {"deterministic": True} if hasattr(inductor, "deterministic") else None  # not in older torch
    return torch.compile(call, dynamic=False, options=options)
