"""Encodes in a process of its own, as one of several ranks or after another process: `python child.py SPEC`.

SPEC is JSON: `files`, `count`, `out`, `device`, `size`, and options of the recipe and of `latentq.encode`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpu import standins
from gpu.harness import Run


def start(
    run: Run, files: Sequence[Path], count: int, out: Path, size: int, recipe: dict[str, Any], **options: Any
) -> Any:
    """Starts a process that encodes with the tiny network; returns it."""
    spec = {
        "files": list(map(str, files)), "count": count, "out": str(out), "device": run.device, "size": size,
        "recipe": recipe, "options": options,
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__)), json.dumps(spec)]
    return subprocess.Popen(
        command, env=standins.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(run: Run, process: Any) -> None:
    """Waits for a process.

    Raises:
        RuntimeError: It failed.
    """
    try:
        _, words = process.communicate(timeout=run.patience(30))
    finally:
        process.kill()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {words.strip()[-300:]}")


def _main() -> None:
    from types import SimpleNamespace

    from gpu.networks import tiny
    from gpu.pictures import Repeated, compiling, encode, recipe

    spec = json.loads(sys.argv[1])
    run: Any = SimpleNamespace(device=spec["device"], dry=spec["device"] == "cpu")
    source = Repeated(list(map(Path, spec["files"])), spec["count"])
    with compiling(run):
        encode(run, source, Path(spec["out"]), tiny(run), recipe(spec["size"], **spec["recipe"]), **spec["options"])


if __name__ == "__main__":
    _main()
