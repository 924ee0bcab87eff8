"""Ranks, and the share of units that each process takes."""

from __future__ import annotations

import os
from collections.abc import Sequence


def ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """The process's place among all, given or as torchrun's environment has it."""
    try:
        rank = int(os.environ.get("RANK", "0")) if rank is None else rank
        world_size = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE must be whole numbers: {error}") from None
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be from 0 to world_size - 1, not {rank} of {world_size}")
    return rank, world_size


def share_of(units: Sequence[range], rank: int, world_size: int) -> dict[int, range]:
    """The units of one process, by number, and the numbers of their samples."""
    return {number: units[number] for number in range(rank, len(units), world_size)}
