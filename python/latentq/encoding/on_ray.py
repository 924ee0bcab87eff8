"""`latentq.encode` on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from latentq.encoding.request import EncodeRequest, ResolvedRequest
from latentq.encoding.update import finish_updated
from latentq.format.card import CARD, Card
from latentq.run.finish import CardCompletion
from latentq.run.mirror import mirrored
from latentq.run.queue import UnitQueue
from latentq.run.ray_units import Place, make_units, worker_settings
from latentq.run.share import PlannedUnits, Share
from latentq.run.units import sample_list


def encode_on_ray(resolved: ResolvedRequest, encode: Callable[[EncodeRequest], Card]) -> Card:
    """Has the workers of a cluster encode the units of a request, and finishes the dataset here.

    Args:
        resolved: The request.
        encode: Does the part of one process in a request.

    Raises:
        LatentqError: See `make_units`.
        Exception: That of a worker.
    """
    request = resolved.request
    out, settings, mirror = request.out, request.settings, request.mirror
    sent = replace(request, settings=replace(settings, progress=None, totals=None, ray=None), mirror=None)
    work = EncodeWork(encode, sent, Place.of(request.named, mirror))
    card: Card = make_units(work, settings, out, mirror, label="encode", gpus=settings.device != "cpu").card
    samples = sample_list(out, card)
    if resolved.updated is None:
        return Share(out, samples, [], None, mirror).finish(card, CARD, CardCompletion, settings.progress)
    if card.source.revision == resolved.updated.source.revision:  # nothing changed
        return resolved.updated
    return finish_updated(request, resolved.updated, card, samples)


@dataclass(frozen=True)
class EncodeWork:
    """The part of a worker in a request: see `Work`.

    Attributes:
        encode: Does the part of one process in a request.
        request: The request, without what only the process that began the run has.
        place: Where the dataset is.
    """

    encode: Callable[[EncodeRequest], Card]
    request: EncodeRequest
    place: Place

    def __call__(self, queue: UnitQueue, plan: PlannedUnits[Card] | None) -> None:
        """Encodes the units that the queue gives."""
        settings = worker_settings(self.request.settings, queue, plan)
        if not queue.gpus:
            settings = replace(settings, device=settings.device or "cpu")
        with mirrored(self.place.path, self.place.options) as (folder, mirror):
            request = replace(self.request, named=folder, mirror=mirror, settings=settings)
            self.place.check(request.out, plan)
            self.encode(request)
