"""Facts about the machine that measurements were taken on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from latentq import __version__, isa
from latentq.benchmark.turns import CORES

RIVALS = ("numpy", "torch", "pillow", "mosaicml-streaming")


@dataclass(frozen=True)
class Machine:
    """Processor, instruction set and cores that are used, load, system and versions."""

    latentq: str
    processor: str
    isa: str
    cores: int
    load: float
    system: str
    python: str
    packages: dict[str, str]


def machine() -> Machine:
    """Returns the facts about this machine."""
    system = f"{platform.system()} {platform.release()}"
    load = round(os.getloadavg()[0], 1)
    return Machine(__version__, processor(), isa(), CORES, load, system, platform.python_version(), versions(RIVALS))


def processor() -> str:
    """Returns the processor's name, or its architecture where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Returns the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
