"""The command `latentq measure`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from latentq._core import LatentqError
from latentq.cli.common import UsageError, check_source, command
from latentq.models.autoencoders import load_autoencoder


def add_measure(commands: Any) -> None:
    parser = command(
        commands,
        "measure",
        _measure,
        "what each scheme and number of bits would cost for given latents: half of them calibrate, half are measured",
        "  latentq measure latents.npy\n"
        "  latentq measure out/ --source photos/     encoded anew in float32, and against the pictures too (PSNR)",
    )
    parser.add_argument("latents", metavar="FILE_OR_DATASET", help="a .npy file (N, C, h, w), or a dataset's folder")
    parser.add_argument("--source", metavar="SRC", help="for a dataset: what it was made from")
    parser.add_argument("--autoencoder", metavar="NAME", help="to decode with; for a dataset, where it is")
    parser.add_argument("--bits", type=int, nargs="+", metavar="2..8", help="bits of each number (default: 8 6 4)")
    parser.add_argument("--column", help="for a dataset: which latent column (default: the first)")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")


def _measure(options: argparse.Namespace) -> int:
    from latentq.format.card import CARD
    from latentq.inspect import measure

    path = Path(options.latents)
    if not path.exists():
        raise UsageError(f"{path}: no such file or dataset")
    wanted = {"bits": options.bits} if options.bits else {}
    for bits in options.bits or ():
        if not 2 <= bits <= 8:
            raise UsageError(f"--bits must be from 2 to 8, not {bits}")
    if path.is_file():
        if options.source is not None or options.column is not None:
            raise UsageError("--source and --column go with a dataset, whose card says how its pictures were cut")
        network = load_autoencoder(options.autoencoder) if options.autoencoder else None
        measure.main_table(path, as_json=options.json, autoencoder=network, **wanted)
        return 0
    if not (path / CARD).exists():
        raise LatentqError(f"{path} has no card ({CARD}): it is no dataset")
    if options.source is not None:
        check_source(options.source)
    if options.source is None:
        print("latentq: without --source these are the stored latents, quantised once already", file=sys.stderr)
    latents, network, images = measure.of_dataset(
        path, column=options.column, source=options.source, autoencoder=options.autoencoder
    )
    measure.main_table(latents, as_json=options.json, autoencoder=network, images=images, **wanted)
    return 0
