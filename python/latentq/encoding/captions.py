"""Embeds the captions of a unit, each distinct caption once."""

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

from latentq.format.options import FLOATS, Column, TextOptions
from latentq.models.device import start_copy_to_host
from latentq.models.precision import computing_in
from latentq.models.text import Embeddings, TextEncoder
from latentq.quantizer import Quantizer
from latentq.quantizer.tensors import outside, to_numpy
from latentq.sources import Sample
from latentq.sources.listing import cycled_captions

cuda: Any = torch.cuda  # partly untyped

CACHE_BYTES = 1 << 27
"""Limit of the embeddings that are cached because their captions come again in the unit."""


class CaptionEncoder:
    """A text encoder that computes as a recipe says.

    Args:
        text_encoder: The text encoder, on `device`.
        options: The recipe's options: `dtype` is that of autocast, while the weights keep theirs.
        device: Device that the text encoder computes on.
        columns: The recipe's columns that the text encoder makes.
    """

    def __init__(
        self, text_encoder: TextEncoder, options: TextOptions, device: str, columns: Mapping[str, Column]
    ) -> None:
        self.text_encoder = text_encoder
        self.options = options
        self.columns = columns
        self._device = torch.device(device)
        self._gpu = self._device.type == "cuda"

    @torch.no_grad()
    def start(
        self, captions: Sequence[str], quantizers: Mapping[str, Quantizer], *, exact: bool = False
    ) -> PendingCaptions:
        """Starts to embed captions; on a GPU it returns before the device is done.

        Args:
            captions: B captions. The last bit of an embedding may depend on B.
            quantizers: Quantizers of the columns of embeddings.
            exact: Compute in float32, whatever the recipe says.
        """
        with computing_in("float32" if exact else self.options.dtype, self._device):
            embeddings = self.text_encoder.encode(captions)
        stored, clipped = {}, {}
        bad = torch.zeros(len(captions), dtype=torch.bool, device=self._device)
        for name, column in self.columns.items():
            values = _content(embeddings, column)
            if name not in quantizers:
                stored[name] = start_copy_to_host(values, self._device)
                continue
            quantizer = quantizers[name]
            rows = values.float().reshape(-1, values.shape[-1])
            codes, _, bad_rows = quantizer.quantize_on_device(rows)
            bad |= bad_rows.reshape(len(captions), -1).any(1)
            if quantizer.kind not in FLOATS:
                clipped[name] = start_copy_to_host(
                    outside(quantizer, rows).reshape(len(captions), -1).sum(1), self._device
                )
            stored[name] = start_copy_to_host(codes.reshape(values.shape), self._device)
        event: Any = cuda.Event(blocking=True) if self._gpu else None
        pending = PendingCaptions(list(captions), stored, clipped, start_copy_to_host(bad, self._device), event)
        if event is not None:
            event.record(torch.cuda.current_stream(self._device))
        return pending

    def wait(self, pending: PendingCaptions, position: int, quantizers: Mapping[str, Quantizer]) -> Embedded:
        """Waits for one caption's embedding. If it is not finite, the caption is embedded again in float32.

        Args:
            pending: The batch of captions, as `start` returned it.
            position: The caption's index in the batch.
            quantizers: Quantizers of the columns, by name, to quantize a caption that is embedded again.
        """
        if pending.event is not None:
            pending.event.synchronize()
        redone = bool(pending.bad[position]) and self.options.dtype != "float32"
        if redone:
            pending, position = self.start([pending.captions[position]], quantizers, exact=True), 0
            if pending.event is not None:
                pending.event.synchronize()
        return Embedded(
            {name: to_numpy(values[position]).copy() for name, values in pending.stored.items()},
            {name: int(values[position]) for name, values in pending.clipped.items()},
            bool(pending.bad[position]),
            redone,
        )


def _content(embeddings: Embeddings, column: Column) -> torch.Tensor:
    """Returns the tensor that a column stores."""
    values = {
        "caption_embedding": embeddings.embedding,
        "attention_mask": embeddings.mask,
        "pooled_embedding": embeddings.pooled,
    }[column.content]
    assert values is not None
    return values


@dataclass
class PendingCaptions:
    """Captions that the device is embedding. On a GPU the tensors are valid only after `event`.

    Attributes:
        captions: B captions.
        stored: By column, on the host: (B, L, D), (B, L) or (B, P), as it is stored.
        clipped: By column whose quantizer has a range: (B,), the number of values outside the range.
        bad: (B,) bool: True if a value is NaN or infinite.
        event: CUDA event after which the tensors are valid; None on the CPU.
    """

    captions: list[str]
    stored: dict[str, torch.Tensor]
    clipped: dict[str, torch.Tensor]
    bad: torch.Tensor
    event: Any


@dataclass(frozen=True)
class Embedded:
    """The stored values of one caption.

    Attributes:
        stored: By column: (L, D), (L,) or (P,); floats, bfloat16 as its bits in uint16, or codes.
        clipped: By column whose quantizer has a range: the number of values outside the range.
        bad: True if a value is NaN or infinite.
        redone: True if a value was NaN or infinite in the recipe's dtype, and the caption was embedded in float32.
    """

    stored: dict[str, NDArray[Any]]
    clipped: dict[str, int]
    bad: bool
    redone: bool


class QueuedCaption:
    """One caption of a pending batch; keeps its embedding once that is known."""

    def __init__(self, pending: PendingCaptions, position: int) -> None:
        self._pending: PendingCaptions | None = pending
        self._position = position
        self._embedded: Embedded | None = None

    def wait(self, encoder: CaptionEncoder, quantizers: Mapping[str, Quantizer]) -> Embedded:
        """Waits for the embedding."""
        if self._embedded is None:
            assert self._pending is not None
            self._embedded = encoder.wait(self._pending, self._position, quantizers)
            self._pending = None  # frees the memory of the whole batch
        return self._embedded


class UnitCaptions:
    """Embeds the captions of one unit, in batches of one size, in the order of their first use.

    A caption that comes again is cached. The cache is limited to `CACHE_BYTES`: the least recently used captions are
    evicted, and embedded again when they come. All this is a function of the captions, their order and the batch size,
    so that a run that is started again writes the same bytes.

    Args:
        encoder: The text encoder.
        quantizers: Quantizers of the columns of embeddings.
        samples: The unit's samples.
        length: Captions per batch; the last batch is padded with empty captions.
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
        self._cache: dict[str, QueuedCaption] = {}
        self._cache_size = 2 * length

    def start(self, samples: Iterable[Sample]) -> list[list[QueuedCaption]]:
        """Starts to embed the captions of the unit's next samples.

        Returns:
            For each sample its captions; none if the sample cannot be used.
        """
        return [[self._caption(text) for text in self._texts(sample)] for sample in samples]

    def wait(self, captions: list[QueuedCaption]) -> list[Embedded]:
        """Waits for the embeddings of one sample's captions."""
        return [caption.wait(self._encoder, self._quantizers) for caption in captions]

    def _texts(self, sample: Sample) -> list[str]:
        return [] if sample.fault else cycled_captions(sample, self._encoder.options.captions)

    def _caption(self, text: str) -> QueuedCaption:
        caption = self._cache.pop(text, None) or self._embed(text)
        self._uses[text] -= 1
        if self._uses[text]:
            self._cache[text] = caption  # now the most recently used
        while len(self._cache) > self._cache_size:
            del self._cache[next(iter(self._cache))]
        return caption

    def _embed(self, text: str) -> QueuedCaption:
        """Starts a batch: this caption and the next ones that no batch holds yet."""
        self._todo.pop(text, None)
        chosen = [text, *islice(self._todo, self._length - 1)]
        for other in chosen[1:]:
            del self._todo[other]
        filled = [*chosen, *[""] * (self._length - len(chosen))]
        pending = self._encoder.start(filled, self._quantizers)
        size = sum(prod(values.shape[1:]) * values.itemsize for values in pending.stored.values())
        self._cache_size = max(2 * self._length, CACHE_BYTES // max(size, 1))
        caption, *others = (QueuedCaption(pending, position) for position in range(len(chosen)))
        self._cache |= zip(chosen[1:], others, strict=True)
        return caption


def stacked(embedded: Sequence[Sequence[Embedded]]) -> dict[str, NDArray[Any]]:
    """Returns by column (n, captions, ...): the stored values of n samples, each a sequence of captions."""
    names = embedded[0][0].stored if embedded else ()
    return {
        name: np.stack([np.stack([caption.stored[name] for caption in captions]) for captions in embedded])
        for name in names
    }
