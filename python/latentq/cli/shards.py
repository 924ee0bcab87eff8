"""The command `latentq shards`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import (
    add_command,
    add_ray_options,
    add_run_options,
    add_source,
    add_storage_options,
    check_source,
    dry_run_dict,
    dry_run_rows,
    print_json,
    print_result,
    print_rows,
    progress_stream,
    ray_options,
    storage_options,
)

if TYPE_CHECKING:
    from latentq.cli.common import Commands
    from latentq.run.mirror import Mirror
    from latentq.run.options import RayOptions
    from latentq.sharding.request import ShardsRequest
    from latentq.system.progress import Totals


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "shards",
        _run,
        "convert a source to MDS shards of filtered, downscaled JPEGs and captions, or continue an earlier run",
        "  latentq shards 'cc12m/*.tar' cc12m-mds/\n"
        "  latentq shards 'diffdb/*/*.zip' diffdb-mds/ --collection diffdb --captions metadata-large.parquet\n"
        "  latentq shards 'cc12m/*.tar' cc12m-mds/ --dry-run     what it would do, its size and its time",
        resumable=True,
    )
    add_source(parser)
    parser.add_argument("out", metavar="OUT", help="folder or URL of the shards")
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
    how = add_run_options(parser)
    add_storage_options(how)
    add_ray_options(how, gpus=False)


def _run(options: argparse.Namespace) -> int:
    from latentq.format.files import SHARDS
    from latentq.run.mirror import mirrored
    from latentq.sharding.pipeline import shards_request
    from latentq.system.progress import Totals

    ray = ray_options(options)
    if not options.delete_archives and ray is None:  # archives may be deleted already; workers find what is missing
        check_source(options.source)
    totals = Totals()
    inputs = (options.source, options.captions)
    with mirrored(options.out, storage_options(options), SHARDS, inputs=inputs) as (folder, mirror):
        request = _request(options, folder, mirror, totals, ray)
        if options.dry_run:
            return _dry_run(request, options)
        card = shards_request(request, mirror)
        return print_result(
            options.out, request.out, card, card.counts, totals, mirror,
            as_json=options.json, summary=progress_stream(options),
        )  # fmt: skip


def _request(
    options: argparse.Namespace, folder: Path, mirror: Mirror | None, totals: Totals, ray: RayOptions | None
) -> ShardsRequest:
    from latentq.run.options import run_settings
    from latentq.sharding.request import ShardsRequest

    return ShardsRequest(
        options.source,
        folder,
        run_settings(
            threads=options.threads,
            rank=options.rank,
            world_size=options.world_size,
            strict=options.strict,
            delete_archives=options.delete_archives,
            progress=progress_stream(options),
            totals=totals,
            ray=ray,
        ),
        collection=options.collection,
        captions=options.captions,
        image_column=options.image_column,
        min_size=options.min_size,
        max_size=options.max_size,
        quality=options.quality,
        unit_size=options.unit_size,
        storage_options=storage_options(options),
        url=None if mirror is None else mirror.store.url,
    )


def _dry_run(request: ShardsRequest, options: argparse.Namespace) -> int:
    from latentq.sharding.dry_run import dry_run

    found = dry_run(request)
    if options.json:
        print_json(dry_run_dict(options.out, found.plan))
        return 0
    columns = ((f"column {name}", encoding) for name, encoding in found.card.columns.items())
    print_rows([*dry_run_rows(found.card, found.card.unit_size, found.plan), *columns])
    return 0
