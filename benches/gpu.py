"""Checks and measures the CUDA path of latentq on one card, in about nine minutes and unattended.

    python benches/gpu.py [--dry] [--budget S] [--json FILE] [--stage NAME]

The results are in FILE, which is rewritten at every step, and as tables next to it and on the screen. `--dry` rehearses
every stage on the CPU, in miniature. benches/README.md says what each stage is for and how to read the tables. Needs
torch, NumPy and the compiled module of latentq; what else is missing is replaced or reported.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "python"))  # if latentq is not installed

if "--dry" in sys.argv:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: sizes are so small that threads would only wait for each other

from gpu import standins  # noqa: F401  (before latentq, whose packages it stands in for)
from gpu.harness import main


def ready(dry: bool) -> str:
    """Says why the stages cannot run here; empty if they can."""
    import torch

    if not dry and not torch.cuda.is_available():
        return "gpu.py: there is no CUDA device, so nothing is measured; --dry rehearses the stages on the CPU"
    return ""


if __name__ == "__main__":
    from gpu.stages import STAGES

    sys.exit(main(STAGES, ready=ready))
