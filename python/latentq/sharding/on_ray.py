"""`latentq.shards` on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from latentq.format.files import SHARDS
from latentq.run.finish import Completion
from latentq.run.mirror import Mirror, mirrored
from latentq.run.queue import UnitQueue
from latentq.run.ray_units import Place, make_units, worker_settings
from latentq.run.share import PlannedUnits, Share
from latentq.run.units import sample_list
from latentq.sharding.card import ShardsCard
from latentq.sharding.request import ShardsRequest


def shards_on_ray(
    request: ShardsRequest, mirror: Mirror | None, convert: Callable[[ShardsRequest, Mirror | None], ShardsCard]
) -> ShardsCard:
    """Has the workers of a cluster make the units of a request, and finishes the shards here.

    Args:
        request: The request.
        mirror: The object store, if the shards are on one.
        convert: Does the part of one process in a request.

    Raises:
        LatentqError: See `make_units`.
        Exception: That of a worker.
    """
    out, settings = request.out, request.settings
    sent = replace(request, settings=replace(settings, progress=None, totals=None, ray=None))
    work = ShardsWork(convert, sent, Place.of(out, mirror))
    card: ShardsCard = make_units(work, settings, out, mirror, label="shards", gpus=False).card
    return Share(out, sample_list(out, card), [], None, mirror).finish(card, SHARDS, Completion, settings.progress)


@dataclass(frozen=True)
class ShardsWork:
    """The part of a worker in a request: see `Work`.

    Attributes:
        convert: Does the part of one process in a request.
        request: The request, without what only the process that began the run has.
        place: Where the shards are.
    """

    convert: Callable[[ShardsRequest, Mirror | None], ShardsCard]
    request: ShardsRequest
    place: Place

    def __call__(self, queue: UnitQueue, plan: PlannedUnits[ShardsCard] | None) -> None:
        """Makes the units that the queue gives."""
        settings = worker_settings(self.request.settings, queue, plan)
        with mirrored(self.place.path, self.place.options, SHARDS) as (folder, mirror):
            self.place.check(folder, plan)
            self.convert(replace(self.request, out=folder, settings=settings), mirror)
