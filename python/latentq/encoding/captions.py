"""The text encoder at work: the captions of a unit to what its columns store, each caption once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from latentq.format.recipe import FLOATS, Column, TextOptions
from latentq.models.text import Embeddings, TextEncoder
from latentq.quantizer import Quantizer
from latentq.quantizer.tensors import to_numpy
from latentq.sources import Sample
from latentq.sources.listing import captions_of

cuda: Any = torch.cuda  # half of it has no types


KEPT = 1 << 27


"""Bytes of embeddings that are kept because their captions come again in the unit."""


class CaptionEncoder:
    """A text encoder that computes as a recipe says.

    Args:
        network: The text encoder, where it is to compute.
        options: The recipe's: `dtype` is that of autocast, while the weights stay as they are.
        device: Where the network computes.
        columns: The recipe's columns that it makes.
    """

    def __init__(self, network: TextEncoder, options: TextOptions, device: str, columns: Mapping[str, Column]) -> None:
        self.network = network
        self.options = options
        self.columns = columns
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, options.dtype)
        self._gpu = self._device.type == "cuda"

    @torch.no_grad()
    def launch(self, captions: Sequence[str], quantizers: Mapping[str, Quantizer], *, exact: bool = False) -> _Flight:
        """Begins to embed captions; on a GPU it returns before anything is done.

        Args:
            captions: B of them. What is made of one may depend, in the last bit, on B.
            quantizers: Of the columns of embeddings.
            exact: Whether to compute in float32 whatever the recipe says.
        """
        with torch.autocast(self._device.type, self._dtype, enabled=not exact and self._dtype != torch.float32):
            made = self.network.encode(captions)
        stored, clipped = {}, {}
        bad = torch.zeros(len(captions), dtype=torch.bool, device=self._device)
        for name, column in self.columns.items():
            values = _of(made, column)
            if name not in quantizers:
                stored[name] = self._fetched(values)
                continue
            quantizer = quantizers[name]
            rows = values.float().reshape(-1, values.shape[-1])
            codes, _, bad_rows = quantizer.quantize_on_device(rows)
            bad |= bad_rows.reshape(len(captions), -1).any(1)
            if quantizer.kind not in FLOATS:
                low, high = (torch.tensor(side, device=self._device) for side in (quantizer.low, quantizer.high))
                outside = ((rows < low) | (rows > high)).sum(1)
                clipped[name] = self._fetched(outside.reshape(len(captions), -1).sum(1))
            stored[name] = self._fetched(codes.reshape(values.shape))
        event: Any = cuda.Event() if self._gpu else None
        flight = _Flight(list(captions), stored, clipped, self._fetched(bad), event)
        if event is not None:
            event.record(torch.cuda.current_stream(self._device))
        return flight

    def land(self, flight: _Flight, place: int, quantizers: Mapping[str, Quantizer]) -> Embedded:
        """What is stored of one caption, waited for; it is embedded again in float32 where it is not finite."""
        if flight.event is not None:
            flight.event.synchronize()
        redone = bool(flight.bad[place]) and self._dtype != torch.float32
        if redone:
            flight, place = self.launch([flight.captions[place]], quantizers, exact=True), 0
            if flight.event is not None:
                flight.event.synchronize()
        return Embedded(
            {name: to_numpy(values[place]).copy() for name, values in flight.stored.items()},
            {name: int(values[place]) for name, values in flight.clipped.items()},
            bool(flight.bad[place]),
            redone,
        )

    def _fetched(self, values: torch.Tensor) -> torch.Tensor:
        """On the host, once the device has come so far."""
        if not self._gpu:
            return values.cpu()
        return torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)


def _of(made: Embeddings, column: Column) -> torch.Tensor:
    values = {
        "caption_embedding": made.embedding, "attention_mask": made.mask, "pooled_embedding": made.pooled,
    }[column.content]  # fmt: skip
    assert values is not None
    return values


@dataclass
class _Flight:
    """Captions on their way through the device. On a GPU nothing here may be looked at before `event` has come.

    Attributes:
        captions: B of them.
        stored: By column, on the host: (B, L, D), (B, L) or (B, P), as it is stored.
        clipped: By column whose quantiser has a range: (B,), how many values were outside of it.
        bad: (B,) bool: whether a value is NaN or infinite.
        event: When all is there; None where it is.
    """

    captions: list[str]
    stored: dict[str, torch.Tensor]
    clipped: dict[str, torch.Tensor]
    bad: torch.Tensor
    event: Any


@dataclass(frozen=True)
class Embedded:
    """What is stored of one caption.

    Attributes:
        stored: By column: (L, D), (L,) or (P,); floats as they are, bfloat16 as its bits in uint16, or codes.
        clipped: By column whose quantiser has a range: how many values were outside of it.
        bad: Whether a value is NaN or infinite.
        redone: Whether it was so in the recipe's dtype, and is now float32's.
    """

    stored: dict[str, NDArray[Any]]
    clipped: dict[str, int]
    bad: bool
    redone: bool


class _Row:
    """One caption in a flight, or landed."""

    def __init__(self, flight: _Flight, place: int) -> None:
        self._flight: _Flight | None = flight
        self._place = place
        self._embedded: Embedded | None = None

    def landed(self, encoder: CaptionEncoder, quantizers: Mapping[str, Quantizer]) -> Embedded:
        if self._embedded is None:
            assert self._flight is not None
            self._embedded = encoder.land(self._flight, self._place, quantizers)
            self._flight = None  # whose memory is that of all its captions
        return self._embedded


class UnitCaptions:
    """The captions of one unit, embedded in batches of one size, in the order in which they first come.

    A caption is embedded once, and kept while it comes again: up to `KEPT` bytes, beyond which those that were used
    longest ago are embedded anew. All of that is a function of the captions, their order and the batch's size, and so
    a run that is started again gives the same bytes.

    Args:
        encoder: The text encoder.
        quantizers: Of the columns of embeddings.
        samples: The unit's.
        length: How many captions are embedded at once; fewer are filled up with empty ones.
    """

    def __init__(
        self, encoder: CaptionEncoder, quantizers: Mapping[str, Quantizer], samples: Iterable[Sample], length: int
    ) -> None:
        self._encoder = encoder
        self._quantizers = quantizers
        self._length = length
        texts = [text for sample in samples for text in self._texts(sample)]
        self._uses = Counter(texts)
        self._todo = dict.fromkeys(texts)
        self._kept: dict[str, _Row] = {}
        self._most = 2 * length

    def launch(self, samples: Iterable[Sample]) -> list[list[_Row]]:
        """Sees to it that the captions of the unit's next samples are being embedded.

        Returns:
            For each sample one row a caption; none where the sample cannot be used.
        """
        return [[self._row(text) for text in self._texts(sample)] for sample in samples]

    def land(self, rows: list[_Row]) -> list[Embedded]:
        """What is stored of a sample's captions, waited for."""
        return [row.landed(self._encoder, self._quantizers) for row in rows]

    def _texts(self, sample: Sample) -> list[str]:
        return [] if sample.fault else captions_of(sample, self._encoder.options.captions)

    def _row(self, text: str) -> _Row:
        row = self._kept.pop(text, None) or self._embed(text)
        self._uses[text] -= 1
        if self._uses[text]:
            self._kept[text] = row  # the last to be forgotten
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return row

    def _embed(self, text: str) -> _Row:
        self._todo.pop(text, None)
        chosen = [text, *islice(self._todo, self._length - 1)]
        for other in chosen[1:]:
            del self._todo[other]
        filled = [*chosen, *[""] * (self._length - len(chosen))]
        flight = self._encoder.launch(filled, self._quantizers)
        size = sum(prod(values.shape[1:]) * values.itemsize for values in flight.stored.values())
        self._most = max(2 * self._length, KEPT // max(size, 1))
        row, *others = (_Row(flight, place) for place in range(len(chosen)))
        self._kept |= zip(chosen[1:], others, strict=True)
        return row


def stacked(embedded: Sequence[Sequence[Embedded]]) -> dict[str, NDArray[Any]]:
    """By column, what samples store: (n, captions, ...), of n samples and their captions."""
    names = embedded[0][0].stored if embedded else ()
    return {name: np.stack([np.stack([one.stored[name] for one in of]) for of in embedded]) for name in names}
