"""The command `latentq convert`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import UsageError, add_command, disk_bytes
from latentq.system.text import counted, escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "convert",
        _run,
        "convert other tools' latents to a dataset, or a dataset to their layout; codes are copied unchanged",
        "  latentq convert imagenet_3gb.pt out/       imagenet_3gb's torch file\n"
        "  latentq convert vae_mds/ out/              imagenet.int8's folder\n"
        "  latentq convert tokens.tsv out/            VQGAN's TSV of tokens\n"
        "  latentq convert out/ imagenet_3gb.pt       and back: to .pt, .tsv or imagenet.int8's folder, by DST",
    )
    parser.add_argument(
        "source", metavar="SRC", help="a dataset, or another tool's file or folder, recognized by its content"
    )
    parser.add_argument("out", metavar="DST", help="output file or folder, which must not exist yet")


def _run(options: argparse.Namespace) -> int:
    from latentq.converting.pipeline import convert

    if not Path(options.source).exists():
        raise UsageError(f"{options.source}: no such file or folder")
    samples = convert(options.source, options.out, progress=sys.stderr)
    print(escaped(f"{Path(options.out)}: {counted(samples, 'sample')}, {size_text(disk_bytes(Path(options.out)))}"))
    return 0
