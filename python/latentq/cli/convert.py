"""The command `latentq convert`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from latentq.cli.common import UsageError, bytes_of, command
from latentq.system.progress import size_text as _size


def add_convert(commands: Any) -> None:
    parser = command(
        commands,
        "convert",
        _convert,
        "turn other tools' latents into a dataset, or a dataset into theirs; codes are copied as they are",
        "  latentq convert imagenet_3gb.pt out/       imagenet_3gb's torch file\n"
        "  latentq convert vae_mds/ out/              imagenet.int8's folder\n"
        "  latentq convert tokens.tsv out/            VQGAN's TSV of tokens\n"
        "  latentq convert out/ imagenet_3gb.pt       and back: by the name to .pt, .tsv, or imagenet.int8's folder",
    )
    parser.add_argument(
        "source", metavar="SRC", help="a dataset, or another tool's file or folder, told by its content"
    )
    parser.add_argument("out", metavar="DST", help="what is made; there must be nothing yet")


def _convert(options: argparse.Namespace) -> int:
    from latentq.converting import convert

    if not Path(options.source).exists():
        raise UsageError(f"{options.source}: no such file or folder")
    samples = convert(options.source, options.out, progress=sys.stderr)
    out = Path(options.out)
    print(f"{out}: {samples} samples, {_size(bytes_of(out) if out.is_dir() else out.stat().st_size)}")
    return 0
