"""Options of a run that are not recorded in its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO, TypedDict

from latentq.system.processors import processors
from latentq.system.progress import Totals, terminal
from latentq.system.ranks import environment_ranks

if TYPE_CHECKING:
    from latentq.run.queue import UnitQueue


@dataclass(frozen=True)
class RayOptions:
    """A run on a Ray cluster, whose workers take units from a queue.

    Attributes:
        address: The cluster: what `ray.init` takes. None for that of `RAY_ADDRESS`, or the one that runs on this
            machine; if there is none, one is started here for the time of the run.
        workers: Number of workers. Those that do not fit start when the cluster grows. By default as many as fit now.
        gpus_per_worker: GPUs of each worker; by default 1 if the work needs them and the cluster has any, else 0.
        cpus_per_worker: Processors of each worker, and its threads that decode; by default a GPU's share of its
            machine's processors, or 1 without GPUs.

    Raises:
        ValueError: A number is out of range.
    """

    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("gpus_per_worker", 0), ("cpus_per_worker", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name} must be at least {least}, not {value}")


class RunOptions(TypedDict, total=False):
    """The options of every run that works unit by unit.

    Attributes:
        threads: Threads that decode images; by default one for each processor of this process's share.
        rank: Index of this process among `world_size`; by default as its launcher says (torchrun, accelerate,
            srun, mpirun), or 0.
        world_size: Processes that share the work; by default as the launcher says, or 1.
        strict: End the run at the first sample that is rejected for another reason than its size.
        delete_archives: Delete each archive of the source once all of its units are published.
        progress: Stream that progress is printed to; None prints nothing. By default stderr if it is a
            terminal.
        totals: Filled in with the number of images that the run handled, and their time.
        ray: Run on a Ray cluster; `rank` and `world_size` are then not used.
    """

    threads: int | None
    rank: int | None
    world_size: int | None
    strict: bool
    delete_archives: bool
    progress: TextIO | Literal["auto"] | None
    totals: Totals | None
    ray: RayOptions | None


@dataclass(frozen=True)
class RunSettings:
    """`RunOptions` with every default filled in. Build one with `run_settings`.

    Attributes:
        threads: Threads that decode images; 0 with `ray` for the processors of each worker.
        queue: Gives this process its units, if it is a worker of a cluster.
    """

    threads: int
    rank: int
    world_size: int
    strict: bool
    delete_archives: bool
    progress: TextIO | None
    totals: Totals | None
    ray: RayOptions | None
    queue: UnitQueue | None


def run_settings(
    *,
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    strict: bool = False,
    delete_archives: bool = False,
    progress: TextIO | Literal["auto"] | None = "auto",
    totals: Totals | None = None,
    ray: RayOptions | None = None,
) -> RunSettings:
    """Fills in the defaults of `RunOptions`.

    Raises:
        ValueError: An option is out of range.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    rank, world_size = environment_ranks(rank, world_size)
    if ray is not None:
        if world_size > 1:
            raise ValueError(
                f"world_size must be 1 with ray, which gives out the units: this is process {rank} of {world_size}"
            )
        threads = threads or 0
    stream = terminal() if progress == "auto" else progress
    if threads is None:
        threads = processors()
    return RunSettings(threads, rank, world_size, strict, delete_archives, stream, totals, ray, None)
