"""The rank of this process among all that share a run."""

from __future__ import annotations

import os


def environment_ranks(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Returns (rank, world size); each one that is None comes from torchrun's RANK and WORLD_SIZE, else 0 of 1.

    Raises:
        ValueError: A variable is not a whole number, or the rank is out of range.
    """
    try:
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE must be whole numbers: {error}") from None
    return _checked(rank, world_size)


def local_world_size() -> int:
    """Returns the number of processes on this machine that share a run: torchrun's LOCAL_WORLD_SIZE, else 1.

    Raises:
        ValueError: The variable is not a whole number of at least 1.
    """
    text = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"LOCAL_WORLD_SIZE must be a whole number of at least 1, not {text!r}")
    return int(text)


def distributed_ranks(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Returns (rank, world size); if both are None, those of torch.distributed if it is initialized, else 0 of 1.

    Raises:
        ValueError: Only one of them is given, or the rank is out of range.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("rank and world_size must be given together")
    if rank is None or world_size is None:
        from torch import distributed

        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
    return _checked(rank, world_size)


def _checked(rank: int, world_size: int) -> tuple[int, int]:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size, not {rank} of {world_size}")
    return rank, world_size
