"""The autoencoder at work: pixels to codes on its device, with nobody waiting, guarded against NaN and infinity."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq.encoding.stages import COPY, NETWORK, QUANTISE, Profile
from latentq.format.recipe import AutoencoderOptions, Column
from latentq.models.autoencoders import Autoencoder
from latentq.models.noise import noise
from latentq.quantizer import Quantizer
from latentq.quantizer.tensors import to_numpy

cuda: Any = torch.cuda  # half of it has no types


@dataclass
class Flight:
    """A batch on its way through the device. On a GPU nothing here may be looked at before it has landed.

    Attributes:
        pixels: By size, (B, 3, S, S) uint8 on the device.
        places: The places in the batch of the samples that are encoded, n of them.
        numbers: Their numbers in the source.
        encoded: By column, on the device: (n, C, h, w) float32 or (n, h, w) int64.
        codes: By column, on the host: what is stored of them.
        clipped: By column with a quantiser: (C,) int64.
        bad: By column: (n,) bool, whether a sample holds NaN or infinity, or tokens of -1, which say the same.
        marks: When each step began and ended.
        redone: How many samples were encoded again in float32.
    """

    pixels: Mapping[int, torch.Tensor]
    places: list[int]
    numbers: list[int]
    encoded: dict[str, torch.Tensor]
    codes: dict[str, torch.Tensor]
    clipped: dict[str, torch.Tensor]
    bad: dict[str, torch.Tensor]
    marks: list[Any]
    redone: int = 0

    def arrays(self) -> dict[str, NDArray[Any]]:
        """By column, (n, C, h, w) codes or floats, bfloat16 as its bits in uint16, or (n, h, w) tokens."""
        return {name: to_numpy(values) for name, values in self.codes.items()}


class Encoder:
    """An autoencoder that computes as a recipe says.

    Args:
        network: The autoencoder, where it is to compute.
        options: The recipe's: `dtype` is that of autocast, while the weights stay as they are; and the noise's `seed`.
        device: Where the network computes.
        compiled: Whether torch compiles the network; its results may then differ in the last bit.
    """

    def __init__(
        self, network: Autoencoder, options: AutoencoderOptions, device: str, *, compiled: bool = False
    ) -> None:
        self.network = network
        self.device = torch.device(device)
        self._options = options
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._gpu = self.device.type == "cuda"
        self._copies = cuda.Stream(self.device) if self._gpu else None
        # Convolutions are faster so on a GPU. Someone's own network may not bear it.
        module = getattr(network, "module", None)
        self._format = torch.contiguous_format
        if self._gpu and isinstance(module, torch.nn.Module):
            self._format = torch.channels_last
            module.to(memory_format=self._format)
        self._is_compiled = compiled
        self._compiled: dict[str, Any] = {}

    def host(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Zeros, uint8, from which a copy to the device keeps nobody waiting."""
        return torch.zeros(shape, dtype=torch.uint8, pin_memory=self._gpu)

    @torch.no_grad()
    def launch(
        self,
        pixels: Mapping[int, torch.Tensor],
        columns: Mapping[str, Column],
        quantizers: Mapping[str, Quantizer],
        numbers: Sequence[int],
        places: Iterable[int],
    ) -> Flight:
        """Begins to encode a batch; on a GPU it returns before anything is done.

        Args:
            pixels: By size, of `host`; to be left as they are until the flight has landed.
            columns: What is to be made of them.
            quantizers: Of those columns that hold no tokens.
            numbers: The numbers in the source of the batch's samples.
            places: Those of the samples that are to be encoded.

        Raises:
            torch.OutOfMemoryError: The device's memory is not enough.
        """
        places = list(places)
        marks = []
        with contextlib.nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            marks.append(self._mark())
            there = {size: values.to(self.device, non_blocking=True) for size, values in pixels.items()}
            marks.append(self._mark())
        if self._copies is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(self._copies)
            for values in there.values():
                values.record_stream(computing)  # their memory is not used again before this stream has used them
        marks.append(self._mark())
        encoded = {}
        for stream, (name, column) in enumerate(columns.items() if places else ()):
            values = self.encode(there[column.size], column, numbers, stream)
            encoded[name] = values if len(places) == len(numbers) else values[places]
        flight = Flight(there, places, [numbers[place] for place in places], encoded, {}, {}, {}, marks)
        marks.append(self._mark())
        self._quantise(flight, quantizers)
        marks.append(self._mark())
        return flight

    @torch.no_grad()
    def land(
        self,
        flight: Flight,
        columns: Mapping[str, Column],
        quantizers: Mapping[str, Quantizer],
        profile: Profile,
        refused: Iterable[int] = (),
    ) -> list[int]:
        """Waits until a batch is encoded. Samples that hold NaN or infinity are encoded again, alone and in float32.

        Args:
            flight: Is as if those that stay bad had not been in it.
            columns: As at its launch, and so are the quantisers.
            quantizers: See there.
            profile: Is added to.
            refused: Places of samples that are bad for another reason.

        Returns:
            The places of those that stay bad, `refused` among them.
        """
        if self._gpu:
            flight.marks[-1].synchronize()
        for stage, mark in ((COPY, 0), (NETWORK, 2), (QUANTISE, 3)):
            profile.seconds[stage, "worked"] += self._between(*flight.marks[mark : mark + 2])
        refused = set(refused)
        if not self._bad_rows(flight) and not refused:
            return []
        if self._dtype != torch.float32:
            flight.redone = len(self._bad_rows(flight))
            for stream, (name, column) in enumerate(columns.items()):
                for row in flight.bad[name].nonzero().flatten().tolist():
                    place, number = flight.places[row], flight.numbers[row]
                    alone = flight.pixels[column.size][place : place + 1]
                    flight.encoded[name][row] = self.encode(alone, column, [number], stream, exact=True)[0]
            self._quantise(flight, quantizers)
            self._wait()
        bad = sorted({*self._bad_rows(flight), *(row for row, place in enumerate(flight.places) if place in refused)})
        lost = [flight.places[row] for row in bad]
        if bad:
            kept = [row for row in range(len(flight.places)) if row not in bad]
            flight.places, flight.numbers = ([of[row] for row in kept] for of in (flight.places, flight.numbers))
            flight.encoded = {name: values[kept] for name, values in flight.encoded.items()}
            self._quantise(flight, quantizers)
            self._wait()
        return lost

    @torch.no_grad()
    def encode(
        self, pixels: torch.Tensor, column: Column, numbers: Sequence[int], stream: int, *, exact: bool = False
    ) -> torch.Tensor:
        """What a column holds of some samples, before it is quantised.

        Args:
            pixels: (B, 3, S, S) uint8, on the device.
            column: Says what is to be made of them.
            numbers: The samples' numbers in the source, n of them, n <= B; the noise of a sample depends on nothing
                else but the recipe's seed and `stream`.
            stream: Which of the columns that the autoencoder makes this is.
            exact: Whether to compute in float32, and uncompiled, whatever the recipe says.

        Returns:
            On the device: (n, C, h, w) float32, of moments (n, 2C, h, w), of tokens (n, h, w) int64, -1 for no token.
        """
        network: Any = self.network
        low, high = network.pixel_range
        floats = pixels.float() * ((high - low) / 255) + low
        if column.flip:
            floats = floats.flip(-1)
        floats = floats.contiguous(memory_format=self._format)
        if column.content == "tokens":
            tokens: torch.Tensor = self._run("tokens", floats, exact)
            return tokens[: len(numbers)]
        if column.content == "latent" and (column.store == "mean" or not hasattr(network, "posterior")):
            latents: torch.Tensor = self._run("encode", floats, exact)[: len(numbers)].float()
        else:
            mean, logvar = (values[: len(numbers)].float() for values in self._run("posterior", floats, exact))
            if column.content == "moments":
                return torch.cat([mean, logvar], 1)
            # Drawn on the host, while a GPU is at work.
            drawn = torch.from_numpy(noise(self._options.seed, numbers, stream, tuple(mean.shape[1:])))
            latents = mean + (logvar / 2).exp() * self._sent(drawn)
        if column.scaled:
            latents = (latents - getattr(network, "shift_factor", 0.0)) * network.scaling_factor
        return latents

    def _run(self, method: str, floats: torch.Tensor, exact: bool) -> Any:
        """One of the network's methods, in the recipe's dtype or in float32."""
        call = getattr(self.network, method)
        if self._is_compiled and not exact:
            if method not in self._compiled:
                self._compiled[method] = torch.compile(call)
            call = self._compiled[method]
        autocast = torch.autocast(self.device.type, self._dtype, enabled=not exact and self._dtype != torch.float32)
        # float32 is to mean float32: on CUDA convolutions would otherwise take TF32, by an algorithm chosen by timing.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False), autocast:
            return call(floats)

    def _quantise(self, flight: Flight, quantizers: Mapping[str, Quantizer]) -> None:
        for name, values in flight.encoded.items():
            if name in quantizers:
                codes, clipped, bad = quantizers[name].quantize_on_device(values)
                flight.clipped[name] = self._fetched(clipped)
            else:
                codes, bad = values.to(torch.int32), (values < 0).flatten(1).any(1)
            flight.codes[name], flight.bad[name] = self._fetched(codes), self._fetched(bad)

    def _bad_rows(self, flight: Flight) -> list[int]:
        bad = np.zeros(len(flight.places), bool)
        for rows in flight.bad.values():
            bad |= rows.numpy()
        return list(map(int, np.flatnonzero(bad)))

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        """On the device, without waiting for what it is at."""
        return values.pin_memory().to(self.device, non_blocking=True) if self._gpu else values.to(self.device)

    def _fetched(self, values: torch.Tensor) -> torch.Tensor:
        """On the host, once the device has come so far."""
        if not self._gpu:
            return values.cpu()
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)

    def _wait(self) -> None:
        if self._gpu:
            torch.cuda.current_stream(self.device).synchronize()

    def _mark(self) -> Any:
        """Now, by the device's clock."""
        if not self._gpu:
            return time.perf_counter()
        event = cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end) / 1000 if self._gpu else end - start)
