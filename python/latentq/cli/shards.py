"""The command `latentq shards`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import add_command, add_run_options, add_source, check_source, print_result, progress_stream

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "shards",
        _run,
        "convert a source to MDS shards of filtered, downscaled JPEGs and captions, or continue an earlier run",
        "  latentq shards 'cc12m/*.tar' cc12m-mds/\n"
        "  latentq shards 'diffdb/*/*.zip' diffdb-mds/ --collection diffdb --captions metadata-large.parquet",
        resumable=True,
    )
    add_source(parser)
    parser.add_argument("out", metavar="OUT", help="folder of the shards")
    stored = parser.add_argument_group("what is stored")
    stored.add_argument(
        "--collection", metavar="NAME", help="columns and limits of jdb, cc12m, diffdb, sa1b, textcaps or coco"
    )
    stored.add_argument(
        "--min-size",
        type=int,
        default=256,
        metavar="PIXELS",
        help="reject images with a side below this (default: 256)",
    )
    stored.add_argument(
        "--max-size", type=int, default=512, metavar="PIXELS", help="downscale the short side to this (default: 512)"
    )
    stored.add_argument(
        "--quality",
        type=int,
        default=95,
        metavar="1..100",
        help="quality of JPEGs that are encoded again (default: 95)",
    )
    stored.add_argument("--unit-size", type=int, default=4096, metavar="N", help="samples per unit (default: 4096)")
    add_run_options(parser)


def _run(options: argparse.Namespace) -> int:
    from latentq.sharding.pipeline import shards
    from latentq.system.progress import Totals

    if not options.delete_archives:  # archives may be deleted already
        check_source(options.source)
    totals = Totals()
    card = shards(
        options.source,
        options.out,
        collection=options.collection,
        captions=options.captions,
        image_column=options.image_column,
        min_size=options.min_size,
        max_size=options.max_size,
        quality=options.quality,
        unit_size=options.unit_size,
        threads=options.threads,
        rank=options.rank,
        world_size=options.world_size,
        strict=options.strict,
        delete_archives=options.delete_archives,
        progress=progress_stream(options),
        totals=totals,
    )
    return print_result(Path(options.out), Path(options.out), card, card.counts, totals)
