"""Options of a run that are not recorded in its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TextIO, TypedDict

from latentq.system.processors import processors
from latentq.system.progress import Totals, terminal
from latentq.system.ranks import environment_ranks


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
    """

    threads: int | None
    rank: int | None
    world_size: int | None
    strict: bool
    delete_archives: bool
    progress: TextIO | Literal["auto"] | None
    totals: Totals | None


@dataclass(frozen=True)
class RunSettings:
    """`RunOptions` with every default filled in. Build one with `run_settings`."""

    threads: int
    rank: int
    world_size: int
    strict: bool
    delete_archives: bool
    progress: TextIO | None
    totals: Totals | None


def run_settings(
    *,
    threads: int | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    strict: bool = False,
    delete_archives: bool = False,
    progress: TextIO | Literal["auto"] | None = "auto",
    totals: Totals | None = None,
) -> RunSettings:
    """Fills in the defaults of `RunOptions`.

    Raises:
        ValueError: An option is out of range.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    rank, world_size = environment_ranks(rank, world_size)
    stream = terminal() if progress == "auto" else progress
    return RunSettings(threads or processors(), rank, world_size, strict, delete_archives, stream, totals)
