"""The command `latentq shards`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from latentq.cli.common import add_how, add_source, check_source, command, tell_counts


def add_shards(commands: Any) -> None:
    parser = command(
        commands,
        "shards",
        _shards,
        "convert a source into MDS shards of JPEGs and captions, filtered and shrunk, or go on where a run stopped",
        "  latentq shards 'cc12m/*.tar' cc12m-mds/\n"
        "  latentq shards 'diffdb/*/*.zip' diffdb-mds/ --collection diffdb --captions metadata-large.parquet",
    )
    parser.set_defaults(resumable=True)
    add_source(parser)
    parser.add_argument("out", metavar="OUT", help="the folder of the shards")
    what = parser.add_argument_group("what is stored")
    what.add_argument(
        "--collection", metavar="NAME", help="columns and limits of jdb, cc12m, diffdb, sa1b, textcaps, coco"
    )
    what.add_argument("--min-size", type=int, default=256, metavar="PIXELS", help="of both sides (default 256)")
    what.add_argument("--max-size", type=int, default=512, metavar="PIXELS", help="of the short side (default 512)")
    what.add_argument("--quality", type=int, default=95, metavar="1..100", help="of JPEGs made anew (default 95)")
    what.add_argument("--unit-size", type=int, default=4096, metavar="N", help="samples in a unit (default 4096)")
    add_how(parser)


def _shards(options: argparse.Namespace) -> int:
    from latentq.sharding.pipeline import shards

    if not options.delete_archives:  # otherwise they may be gone
        check_source(options.source)
    card = shards(
        options.source,
        options.out,
        collection=options.collection,
        captions=options.captions,
        min_size=options.min_size,
        max_size=options.max_size,
        quality=options.quality,
        unit_size=options.unit_size,
        threads=options.threads,
        rank=options.rank,
        world_size=options.world_size,
        strict=options.strict,
        delete_archives=options.delete_archives,
        progress=sys.stderr,
    )
    return tell_counts(Path(options.out), Path(options.out), card, card.counts)
