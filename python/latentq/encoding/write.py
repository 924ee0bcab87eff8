"""Encode units and publish them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq import image, mds
from latentq.encoding.stages import NETWORK, WRITE, behind
from latentq.format.card import EmbeddingFacts
from latentq.format.files import HASHES, UNIT
from latentq.format.recipe import FLOATS, TEXT
from latentq.quantizer import Moments, Quantizer
from latentq.run.archives import SpentArchives
from latentq.run.units import LatentSums, Reject, UnitFacts, unit_done, unit_names
from latentq.sources.listing import captions_of, reason_of
from latentq.system.progress import Progress

if TYPE_CHECKING:
    pass
from latentq.encoding.batches import Encoded, encode_batches, halving
from latentq.encoding.job import Job, own_file, strictly

# From latents to units.


def encode_units(
    out: Path, job: Job, share: dict[int, range], bar: Progress, spent: SpentArchives | None = None
) -> None:
    """Encodes and publishes every unit of this process that is not there yet."""
    names = unit_names(job.card)
    done = {number for number in share if unit_done(out, names[number])}
    bar.skip(sum(len(share[number]) for number in done))

    def encode_rest(job: Job) -> None:
        todo = {n: numbers for n, numbers in share.items() if n not in done}

        def write(batches: Iterator[Encoded]) -> None:
            for number in todo:
                _write_unit(out / names[number], job, batches, bar)
                done.add(number)
                if spent is not None:
                    spent.delete(number)

        with (
            behind(write, 2, job.profile, WRITE, NETWORK) as hand_over,
            contextlib.closing(encode_batches(job, todo.items())) as batches,
        ):
            for encoded in batches:
                hand_over(encoded)

    halving(job, bar, encode_rest)


def _write_unit(path: Path, job: Job, batches: Iterator[Encoded], bar: Progress) -> None:
    """Takes one unit's batches and publishes it. One that another process publishes meanwhile counts as done."""
    facts = UnitFacts(latents={name: LatentSums.of(quantizer) for name, quantizer in job.quantizers.items()})
    drained = False
    try:
        with mds.Writer(path, dict(job.card.columns), hashes=HASHES) as writer:
            for encoded in batches:
                _write_batch(writer, facts, job, encoded, bar)
                if encoded.batch.last:
                    drained = True
                    break
            writer.add_file(UNIT, facts.to_toml())
    except (FileExistsError, FileNotFoundError):
        # Another process was faster: it may also have removed our temporary at its finish.
        if not unit_done(path.parent, path.name):
            raise
        while not drained:
            drained = next(batches).batch.last
    except BaseException:
        bar.update(-facts.samples - len(facts.rejects), -len(facts.rejects))  # it is not done, and may be done anew
        raise


def _write_batch(writer: mds.Writer, facts: UnitFacts, job: Job, encoded: Encoded, bar: Progress) -> None:
    samples = [job.listing.samples[number] for number in encoded.batch.numbers]
    failed = encoded.batch.failed
    for place, (stage, error) in sorted(failed.items()):
        path = own_file(job, samples[place])
        strictly(job, samples[place], stage, error)
        facts.rejects.append(Reject(samples[place].text, stage, reason_of(error, path)))
        if stage != "size":
            bar.note(f"rejected: {samples[place].text}: {stage}: {facts.rejects[-1].error}")
    facts.redone += encoded.redone
    if encoded.places:
        columns: dict[str, Any] = {}
        for name, encoding in job.card.columns.items():
            content = job.card.recipe.columns[name].content
            if name in job.quantizers:
                sums, columns[name] = _stored(job.quantizers[name], encoded.codes[name], encoded.clipped[name])
                facts.latents[name].add(sums)
            elif name in job.card.tokens:
                columns[name] = encoded.codes[name].astype(job.card.tokens[name].dtype)
            elif name in job.card.embeddings:
                facts.clipped[name] = facts.clipped.get(name, 0) + int(encoded.clipped[name].sum())
                columns[name] = _packed(job.card.embeddings[name], encoded.codes[name])
            elif content in TEXT:
                columns[name] = encoded.codes[name]
            elif content == "image":
                files = [encoded.batch.images[place] for place in encoded.places]
                columns[name] = list(map(_as_jpeg, files)) if encoding == "jpeg" else files
            elif content == "captions":
                count = job.card.recipe.text.captions
                columns[name] = [captions_of(samples[place], count) for place in encoded.places]
            else:
                texts = [getattr(samples[place], content) for place in encoded.places]
                columns[name] = [str(text) for text in texts] if encoding == "str" else texts
            if encoding == "bytes" and content != "image":
                columns[name] = [value.tobytes() for value in columns[name]]
        writer.write_batch(columns)
        facts.samples += len(encoded.places)
    bar.update(len(samples), len(failed))


def _as_jpeg(data: bytes) -> bytes:
    """A picture's file where it is a JPEG; otherwise one of quality 95."""
    from latentq.format.jpeg import to_jpeg

    if image.info(data).format == "JPEG":
        return data
    return to_jpeg(data, min_size=1, max_size=1 << 30, quality=95).data


def _packed(facts: EmbeddingFacts, codes: NDArray[Any]) -> NDArray[Any]:
    """Embeddings (n, ...) as they are stored: below 8 bits each vector packed, (n, bytes)."""
    if facts.quantizer.bits >= 8:
        return codes
    packed: NDArray[Any] = facts.quantizer.pack(codes.reshape(-1, codes.shape[-1]))
    return packed.reshape(len(codes), -1)


def _stored(quantizer: Quantizer, codes: NDArray[Any], clipped: NDArray[np.int64]) -> tuple[LatentSums, NDArray[Any]]:
    """What a unit records of a batch of one column, and the values as they are stored."""
    if quantizer.kind not in FLOATS:
        stored = quantizer.pack(codes) if quantizer.bits < 8 else codes
        return LatentSums(clipped, quantizer.histogram(codes)), stored
    return LatentSums(clipped, moments=[Moments.of(sample) for sample in quantizer.dequantize(codes)]), codes
