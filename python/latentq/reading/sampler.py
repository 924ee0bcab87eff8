"""LatentBatchSampler: the loader's order for torch's DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Protocol, TypedDict, Unpack

from torch.utils.data import Sampler

from latentq.reading.order import EpochOrder
from latentq.reading.steps import Steps
from latentq.reading.windows import WINDOW, Window, checked_shuffle
from latentq.system.ranks import distributed_ranks


class SamplerOptions(TypedDict, total=False):
    """The options of `batch_sampler`.

    Attributes:
        shuffle: True permutes the whole epoch; `window` permutes the shards, and the samples within windows of shards;
            False by default.
        window: For `shuffle="window"`: the number of shards in a window; 64 by default.
        seed: Selects the permutation; at least 0, and 0 by default.
        drop_last: True skips a bucket's last batch if it is not full on every rank; False by default.
        rank: This process's rank; None, the default, for that of torch.distributed if it is initialized, else 0.
        world_size: The number of processes; None, the default, as with `rank`.
    """

    shuffle: bool | Literal["window"]
    window: int
    seed: int
    drop_last: bool
    rank: int | None
    world_size: int | None


_DEFAULTS = SamplerOptions(shuffle=False, window=WINDOW, seed=0, drop_last=False, rank=None, world_size=None)


class _MakesOrder(Protocol):
    def __call__(self, *, shuffle: bool | Window, seed: int) -> EpochOrder: ...


class LatentBatchSampler(Steps, Sampler[list[int]]):
    """The batches of a loader as lists of indices, for torch's DataLoader. Made by `LatentDataset.batch_sampler`.

    Every sample comes exactly once in an epoch, and all ranks take the same number of steps, each of one bucket. A last
    batch with fewer samples than ranks repeats some; `drop_last` skips it.

    An iteration goes through one epoch; the next iteration goes through the next epoch.

    Args:
        order: Makes the order of samples.
        batch_size: Samples in a batch, on each rank.
        **options: See `SamplerOptions`.

    Raises:
        ValueError: An argument is out of range.
        TypeError: There is no such option.
    """

    def __init__(self, order: _MakesOrder, batch_size: int, **options: Unpack[SamplerOptions]) -> None:
        unknown = options.keys() - _DEFAULTS.keys()
        if unknown:
            raise TypeError(f"a batch sampler has no option {min(unknown)!r}: there are {', '.join(_DEFAULTS)}")
        chosen = _DEFAULTS | options
        rank, world_size = distributed_ranks(chosen["rank"], chosen["world_size"])
        super().__init__(
            order(shuffle=checked_shuffle(chosen["shuffle"], chosen["window"]), seed=chosen["seed"]),
            batch_size,
            drop_last=chosen["drop_last"],
            rank=rank,
            world_size=world_size,
        )
        self._begun = (self._epoch, self._position)

    def __iter__(self) -> Iterator[list[int]]:
        """Iterates over one epoch, from its start or from the position that `load_state_dict` has set."""
        steps = self._begin()
        epoch, self._begun = self._epoch, (self._epoch, self._position)
        for step in steps:
            self._position = step.cursor
            yield step.indices.tolist()
        self._end(epoch)

    def state_dict(self, batches: int | None = None) -> dict[str, Any]:
        """Returns a position, the same on all ranks, that JSON can hold.

        Args:
            batches: The number of batches of the current iteration that training has taken. A DataLoader with workers
                takes more from the sampler ahead of training; None for all that it has taken.

        Raises:
            ValueError: The epoch has fewer batches.
        """
        if batches is None:
            return super().state_dict()
        epoch, begun = self._begun
        total = len(self._schedule(epoch, begun.start))
        if not 0 <= batches <= total - begun.step:
            raise ValueError(f"batches must be from 0 to {total - begun.step}, not {batches}")
        return self._state(epoch, begun._replace(step=begun.step + batches))
