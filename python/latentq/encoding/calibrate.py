"""Calibrates quantizers, and publishes the card that all processes of a run share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.encoding.batches import EncodedBatch, encode_batches, retry_with_smaller_batches
from latentq.encoding.run import EncodingRun
from latentq.encoding.write import quantize_vectors
from latentq.format import empty_caption
from latentq.format.card import CARD, Card
from latentq.format.encodings import transform_bytes
from latentq.format.files import EMPTY_CAPTION, NORMALIZATION
from latentq.format.normalization import positions_bytes
from latentq.format.options import METHODS
from latentq.models.match import normalization_of
from latentq.quantizer import AnyQuantizer, Calibrator, Transform, TransformCalibrator
from latentq.run.check import check_same_work
from latentq.run.listing import RunList
from latentq.run.unit_writer import raise_if_strict
from latentq.sources import Sample
from latentq.sources.listing import reason_of
from latentq.store.local import publish_once
from latentq.system.progress import Progress
from latentq.system.text import counted


def publish_card(
    out: Path, run: EncodingRun, run_list: RunList, progress: TextIO | None, *, frozen: bool
) -> EncodingRun:
    """Publishes list and card, and returns the run with those that all processes share: the first published ones.

    A batch size that was halved to calibrate stays halved.

    Args:
        out: The dataset's folder.
        run: The run, with the planned card.
        run_list: Its list.
        progress: Stream that the progress of the calibration is printed to; None prints nothing.
        frozen: The quantizers come from another dataset, and those of a published card must equal them.

    Raises:
        LatentqError: No sample can be encoded to calibrate on.
        MismatchError: Another run began the dataset, or its source differs.
    """
    if not (out / CARD).exists():
        card = run.card
        if run.uncalibrated:
            count = min(card.recipe.calibration, card.source.samples)
            with Progress(count, "calibrate", progress, leave=False) as bar:
                bar.note(f"calibrating on {counted(count, 'image')}")
                quantizers, run = retry_with_smaller_batches(run, bar, partial(_calibrate, bar=bar))
            card = with_quantizers(card, quantizers)
        run_list.publish()
        if publish_once(out / CARD, card.to_toml()):
            return replace(run, card=card, samples=run_list.samples)
    card = Card.load(out / CARD)
    check_same_work(out, card, run.card, frozen=frozen)
    run_list.publish()
    return replace(run, card=card, samples=run_list.samples)


def publish_empty_caption(out: Path, run: EncodingRun) -> None:
    """Publishes the embedding of an empty caption, with which training drops captions, unless it is published.

    The file holds for each column of captions one sample, unpacked: (captions, tokens, width) and the like.
    """
    if run.captions is None or (out / EMPTY_CAPTION).exists():
        return
    publish_once(out / EMPTY_CAPTION, empty_caption.to_bytes(_empty_caption_columns(run)))


def publish_positions(out: Path, run: EncodingRun) -> None:
    """Publishes the mean and std of each position, if the autoencoder's normalization has them."""
    positions = getattr(run.encoder.autoencoder, "positions", None)
    if positions is not None and not (out / NORMALIZATION).exists():
        publish_once(out / NORMALIZATION, positions_bytes(positions))


def with_quantizers(card: Card, quantizers: Mapping[str, AnyQuantizer]) -> Card:
    """Returns a card with other quantizers, given by column."""

    def replaced(facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: replace(fact, quantizer=quantizers.get(name, fact.quantizer)) for name, fact in facts.items()}

    return replace(card, latents=replaced(card.latents), embeddings=replaced(card.embeddings))


def _empty_caption_columns(run: EncodingRun) -> dict[str, NDArray[Any]]:
    from latentq.encoding.captions import stacked

    assert run.captions is not None
    embedded = run.captions.wait(run.captions.start([""], run.text_quantizers), 0, run.text_quantizers)
    if embedded.bad:
        raise LatentqError("the embedding of the empty caption holds NaN or infinity")
    columns = stacked([[embedded] * run.card.recipe.text.captions])
    for name, quantizer in run.text_trellises.items():
        columns[name], _ = quantize_vectors(quantizer, columns[name], threads=run.threads)
    return {name: values[0] for name, values in columns.items()}


def _calibrate(run: EncodingRun, *, bar: Progress) -> dict[str, AnyQuantizer]:
    """Calibrates quantizers on samples spread evenly over the list.

    The card's placeholders store float32, so that the codes of a batch are the values themselves.
    """
    if not any(name in run.card.embeddings for name in run.uncalibrated):
        run = replace(run, captions=None)
    calibrators = _calibrators(run)
    total = len(run.samples)
    count = min(run.card.recipe.calibration, total)
    first_reject: tuple[Sample, str, Exception] | None = None
    encoded_samples = 0
    chosen = [step * total // count for step in range(count)]
    for encoded in _counted(encode_batches(run, [(chosen, [run.samples.sample(index) for index in chosen])]), bar):
        for position, (stage, error) in sorted(encoded.batch.rejected.items()):
            sample = encoded.batch.samples[position]
            first_reject = first_reject or (sample, stage, error)
            raise_if_strict(run.source, sample, stage, error, strict=run.strict)
        encoded_samples += len(encoded.positions)
        for name in run.uncalibrated if encoded.positions else ():
            codes = encoded.codes[name]
            # Each vector of an embedding counts as a sample.
            calibrators[name].update(codes.reshape(-1, codes.shape[-1]) if name in run.card.embeddings else codes)
    if not encoded_samples:
        reason = "there are none"
        if first_reject is not None:
            sample, stage, error = first_reject
            reason = f"{sample.key!r}: {stage}: {reason_of(error)}"
        raise LatentqError(f"none of {counted(count, 'sample')} can be encoded, the first is {reason}")
    if run.captions is not None:  # no other caption needs to resemble the empty one
        for name, values in _empty_caption_columns(run).items():
            if name in calibrators:
                calibrators[name].update(values.reshape(-1, values.shape[-1]))
    return {name: calibrator.quantizer() for name, calibrator in calibrators.items()}


def _counted(batches: Iterator[EncodedBatch], bar: Progress) -> Iterator[EncodedBatch]:
    """Yields the batches and counts their images, until an exception ends them: then the work may be done again."""
    images = 0
    try:
        for encoded in batches:
            images += len(encoded.batch.indices)
            bar.update(len(encoded.batch.indices))
            yield encoded
    except BaseException:
        bar.undo(images, ())
        raise


_TRIED = (
    16  # samples that a metric is the mean of, and that the codec is tried on; spread over those of the calibration
)


class _TransformCalibration:
    """The calibration of a column with a transform.

    Args:
        run: The run.
        name: The column.
    """

    def __init__(self, run: EncodingRun, name: str) -> None:
        self._run = run
        self._name = name
        self._options = run.card.recipe.columns[name].quantizer
        self._calibrator = TransformCalibrator(run.card.quantizers[name].channels)
        self._tried: list[NDArray[Any]] = []
        self._apart = max(1, min(run.card.recipe.calibration, run.card.source.samples) // _TRIED)
        self._seen = 0

    def update(self, latents: NDArray[Any]) -> None:
        """Adds latents (N, C, h, w), as they are stored."""
        self._calibrator.update(latents)
        chosen = latents[-self._seen % self._apart :: self._apart]
        self._tried += list(chosen[: _TRIED - len(self._tried)])
        self._seen += len(latents)

    def quantizer(self) -> Transform:
        """Returns the codec that fits them.

        Raises:
            LatentqError: None of those that are tried fits in the bytes of a sample.
        """
        metric = None
        if "metric" in self._options:
            from latentq.encoding.decoder_metric import decoder_metric
            from latentq.models.scale import ScaleChange

            encoder, column = self._run.encoder, self._run.card.recipe.columns[self._name]
            positions = getattr(encoder.autoencoder, "positions", None)
            change = ScaleChange.to_scaled(normalization_of(encoder.autoencoder), positions).inverse()
            to_raw = change if column.scaled else None
            metric = decoder_metric(encoder.autoencoder, self._tried, to_raw, encoder.device)
        sample_bytes = transform_bytes(self._options, self._run.card.latents[self._name].shape)
        rate = self._options.get("rate")
        transform = self._calibrator.transform(rate=rate, bytes=sample_bytes, metric=metric)
        tried = np.stack([latent for latent in self._tried if latent.shape == self._tried[0].shape])  # of one bucket
        faults = transform.encode_counted(tried).bad
        if len(faults) == len(tried):
            size = "" if sample_bytes is None else f" in {counted(sample_bytes, 'byte')}"
            raise LatentqError(
                f"columns.{self._name}: none of {counted(len(tried), 'calibration sample')} can be encoded{size}: "
                f"{faults[0]}"
            )
        return transform


def _calibrators(run: EncodingRun) -> dict[str, Calibrator | _TransformCalibration]:
    calibrators: dict[str, Calibrator | _TransformCalibration] = {}
    for name in run.uncalibrated:
        options = run.card.recipe.columns[name].quantizer
        if options["kind"] == "transform":
            calibrators[name] = _TransformCalibration(run, name)
            continue
        method = options.get("method", METHODS[options["kind"]][0])
        channels = run.card.quantizers[name].channels
        calibrators[name] = Calibrator(channels, bits=options.get("bits", 8), method=method)
    return calibrators
