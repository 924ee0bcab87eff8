"""Calibrate quantizers, and publish the card that all processes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format import empty_caption as empty
from latentq.format.card import CARD, Card
from latentq.format.files import EMPTY_CAPTION
from latentq.quantizer import Calibrator, Quantizer
from latentq.run.listing import publish_listing
from latentq.run.plan import check_same
from latentq.sources import Sample
from latentq.sources.listing import reason_of
from latentq.store.local import publish_once
from latentq.system.progress import Progress

if TYPE_CHECKING:
    pass
from latentq.encoding.batches import encode_batches, halving
from latentq.encoding.job import Job, strictly


def published_card(out: Path, job: Job, bar: Progress, *, frozen: bool) -> Card:
    """The card that all processes share: whoever publishes first decides.

    The list is published with it, not before: what fails until here leaves nothing behind. `frozen` quantisers come
    from another dataset, and a card that is there must have the same.
    """
    file = out / CARD
    if not file.exists():
        card = job.card
        if job.uncalibrated:
            bar.note(f"calibrating on {min(card.recipe.calibration, card.source.samples)} images")
            quantizers = halving(job, bar, _calibrate)

            def calibrated(facts: Mapping[str, Any]) -> dict[str, Any]:
                return {
                    name: replace(one, quantizer=quantizers.get(name, one.quantizer)) for name, one in facts.items()
                }

            card = replace(card, latents=calibrated(card.latents), embeddings=calibrated(card.embeddings))
        publish_listing(out, job.listing)
        if publish_once(file, card.to_toml()):
            return card
    card = Card.load(file)
    check_same(out, card, job.card, frozen=frozen)
    publish_listing(out, job.listing)
    return card


def publish_empty_caption(out: Path, job: Job) -> None:
    """Publishes what the columns of captions hold of an empty one, unless it is there: for training without captions.

    By column, as it is stored but for packing: (captions, tokens, width) and so on.
    """
    if job.captions is None or (out / EMPTY_CAPTION).exists():
        return
    publish_once(out / EMPTY_CAPTION, empty.to_bytes(_empty_caption(job)))


def _empty_caption(job: Job) -> dict[str, NDArray[Any]]:
    from latentq.encoding.captions import stacked

    assert job.captions is not None
    embedded = job.captions.land(job.captions.launch([""], job.text_quantizers), 0, job.text_quantizers)
    if embedded.bad:
        raise LatentqError("the embedding of the empty caption holds NaN or infinity")
    columns = stacked([[embedded] * job.card.recipe.text.captions])
    return {name: values[0] for name, values in columns.items()}


def _calibrate(job: Job) -> dict[str, Quantizer]:
    """Quantisers of the columns that need it, calibrated on samples spread evenly over the source.

    Until then the card has floats in their place, so that their codes are the latents themselves.
    """
    names = job.uncalibrated
    if not any(name in job.card.embeddings for name in names):
        job = replace(job, captions=None)
    total = len(job.listing.samples)
    count = min(job.card.recipe.calibration, total)
    chosen = [place * total // count for place in range(count)]
    calibrators = {}
    for name in names:
        options = job.card.recipe.columns[name].quantizer
        method = options.get("method", "lloyd-max" if options["kind"] == "codebook" else "mse")
        channels = job.card.quantizers[name].channels
        calibrators[name] = Calibrator(channels, bits=options.get("bits", 8), method=method)
    first: tuple[Sample, str, Exception] | None = None
    seen = 0
    for encoded in encode_batches(job, [(0, chosen)]):
        for place, (stage, error) in sorted(encoded.batch.failed.items()):
            sample = job.listing.samples[encoded.batch.numbers[place]]
            first = first or (sample, stage, error)
            strictly(job, sample, stage, error)
        seen += len(encoded.places)
        for name in names if encoded.places else ():
            codes = encoded.codes[name]
            # Of embeddings, each vector is a sample of its own.
            calibrators[name].update(codes.reshape(-1, codes.shape[-1]) if name in job.card.embeddings else codes)
    if seen and job.captions is not None:  # which no other caption needs to resemble
        for name, values in _empty_caption(job).items():
            if name in calibrators:
                calibrators[name].update(values.reshape(-1, values.shape[-1]))
    if not seen:
        reason = f"{first[0].key!r}: {first[1]}: {reason_of(first[2])}" if first else "there are none"
        raise LatentqError(f"none of {count} samples can be encoded, the first is {reason}")
    return {name: calibrator.quantizer() for name, calibrator in calibrators.items()}
