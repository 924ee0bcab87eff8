"""The command `latentq measure`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentq._core import LatentqError
from latentq.cli.common import (
    UsageError,
    add_command,
    add_url_options,
    check_source,
    opened_dataset,
    original_source,
    print_json,
    progress_stream,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latentq.cli.common import Commands
    from latentq.models.autoencoders import Autoencoder
    from latentq.run.opened import OpenedDataset


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "measure",
        _run,
        "compare the error of quantization schemes on given latents: half of them calibrate, half are measured",
        "  latentq measure latents.npy\n"
        "  latentq measure out/ --source photos/     encoded again in float32, and compared with the images (PSNR)",
    )
    parser.add_argument(
        "latents", metavar="FILE_OR_DATASET", help="a .npy file (N, C, h, w), or a dataset's folder or URL"
    )
    parser.add_argument("--source", metavar="SRC", help="for a dataset: its source")
    parser.add_argument("--autoencoder", metavar="NAME", help="autoencoder to decode with (default: the card's)")
    parser.add_argument("--bits", type=int, nargs="+", metavar="2..8", help="bits of each value (default: 8 6 4)")
    parser.add_argument("--column", help="for a dataset: latent column (default: the first)")
    add_url_options(parser)


def _run(options: argparse.Namespace) -> int:
    from latentq.store.cache import is_remote

    path = Path(options.latents)
    if not is_remote(options.latents) and not path.exists():
        raise UsageError(f"{path}: no such file or dataset")
    for bits in options.bits or ():
        if not 2 <= bits <= 8:
            raise UsageError(f"--bits must be from 2 to 8, not {bits}")
    if path.is_file():
        if options.source is not None or options.column is not None:
            raise UsageError("--source and --column need a dataset, whose card says how its images were cropped")
        from latentq.inspect.measure import load
        from latentq.models.autoencoders import load_autoencoder

        network = load_autoencoder(options.autoencoder) if options.autoencoder else None
        return _measure(options, load(path), network, None)
    with opened_dataset(options, options.latents) as dataset:
        return _measure_dataset(options, dataset)


def _measure_dataset(options: argparse.Namespace, dataset: OpenedDataset) -> int:
    """Measures the latents of a dataset. Returns the exit code."""
    from latentq.format.card import CARD, Card

    path = dataset.folder
    if not (path / CARD).exists():
        raise LatentqError(f"{path} has no card ({CARD}): it is not a dataset")
    if options.source is not None:
        check_source(options.source)
    from latentq.format.options import FLOATS
    from latentq.inspect.measure import of_dataset
    from latentq.inspect.pictures import latent_name

    card = Card.load(path)
    name = latent_name(path, card, options.column)
    if options.source is None and not options.quiet and card.recipe.columns[name].quantizer["kind"] not in FLOATS:
        print("latentq: without --source these are the stored latents, already quantized once", file=sys.stderr)
    if card.recipe.columns[name].content == "moments" and not options.quiet:
        print(
            f"latentq: column {name!r} holds moments, which no transform can store; these are their means",
            file=sys.stderr,
        )
    dataset.need_all()
    latents, network, images = of_dataset(
        path,
        column=options.column,
        source=original_source(options, path),
        autoencoder=options.autoencoder,
        progress=progress_stream(options),
    )
    return _measure(options, latents, network, images)


def _measure(
    options: argparse.Namespace,
    latents: NDArray[Any],
    network: Autoencoder | None,
    images: NDArray[np.uint8] | None,
) -> int:
    """Measures latents and prints the rows. Returns the exit code."""
    from latentq.inspect.measure import BITS, measure, print_table

    if len(latents) == 1 and not options.quiet:
        print(
            "latentq: there is one sample: schemes are measured on what they were calibrated on, and their errors on "
            "other samples will be larger",
            file=sys.stderr,
        )
    bits = options.bits or BITS
    rows = measure(latents, bits=bits, autoencoder=network, images=images, progress=progress_stream(options))
    if options.json:
        print_json([asdict(row) for row in rows])
    else:
        print_table(rows)
    return 0
