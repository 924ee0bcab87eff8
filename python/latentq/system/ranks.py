"""The rank of this process among all that share a run."""

from __future__ import annotations

import os
import re
from typing import NamedTuple


class _Launcher(NamedTuple):
    """The environment variables in which a launcher tells each of its processes its place.

    Attributes:
        rank: The number of the process.
        world_size: The number of processes.
        local_rank: The number of the process on its machine.
        local_world_size: The number of processes on its machine.
    """

    rank: str
    world_size: str
    local_rank: str
    local_world_size: str


_LAUNCHERS = (
    _Launcher("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun and accelerate
    # mpirun, before srun: in a SLURM job it starts a daemon on each machine by srun, whose variables are inherited.
    _Launcher(
        "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    ),
    # srun. SLURM_NTASKS is not used: a batch script has it too, with SLURM_PROCID 0, although it is one process.
    _Launcher("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def environment_ranks(rank: int | None = None, world_size: int | None = None) -> tuple[int, int]:
    """Returns (rank, world size); each one that is None comes from the launcher of this process, else 0 of 1.

    Launchers are torchrun and accelerate (RANK, WORLD_SIZE), Open MPI's mpirun (OMPI_COMM_WORLD_RANK,
    OMPI_COMM_WORLD_SIZE) and srun (SLURM_PROCID, SLURM_STEP_NUM_TASKS), in this order.

    Raises:
        ValueError: A variable is not a whole number, or the rank is out of range.
    """
    launcher = _launcher()
    rank = _number(launcher.rank, least=0) if rank is None else rank
    world_size = _number(launcher.world_size, least=1) if world_size is None else world_size
    return _checked(rank, world_size)


def local_rank() -> int:
    """Returns the number of this process on its machine as its launcher gave it, else 0.

    Raises:
        ValueError: The variable is not a whole number.
    """
    return _number(_launcher().local_rank, least=0)


def local_world_size() -> int:
    """Returns the number of processes on this machine that share a run as their launcher gave it, else 1.

    srun gives the numbers of all machines, such as `4(x2),3`: if they differ, the first and largest is taken.

    Raises:
        ValueError: The variable is not a whole number of at least 1.
    """
    return _number(_launcher().local_world_size, least=1)


def _launcher() -> _Launcher:
    """Returns the launcher whose variable for the number of processes is set; torchrun if none is."""
    return next((launcher for launcher in _LAUNCHERS if launcher.world_size in os.environ), _LAUNCHERS[0])


def _number(name: str, *, least: int) -> int:
    """Returns the number in a variable, or the least one if it is not set."""
    text = os.environ.get(name, str(least))
    digits = re.split(r"[(,]", text)[0] if name.startswith("SLURM_") else text
    if not digits.isdecimal() or int(digits) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, not {text!r}")
    return int(digits)


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
