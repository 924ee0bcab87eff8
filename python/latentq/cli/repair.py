"""The command `latentq repair`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latentq._core import LatentqError
from latentq.cli.common import add_command, dataset_folder, print_json, progress_stream
from latentq.system.text import counted, escaped

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "repair",
        _run,
        "rebuild a lost or broken index.json from the MDS shards; deletes nothing",
        "  latentq repair shards/",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder of MDS shards")
    parser.add_argument(
        "--allow-fewer-samples",
        action="store_true",
        help="replace an index even if the shards in the folder hold fewer samples than it lists",
    )


def _run(options: argparse.Namespace) -> int:
    from latentq import mds
    from latentq.format.card import CARD
    from latentq.format.files import SHARDS

    path = dataset_folder(options.folder)
    for inner in sorted(card.parent for name in (CARD, SHARDS) for card in path.glob(f"*/{name}")):
        raise LatentqError(f"{inner} is a dataset of its own: repair it, and not {path}")
    done = mds.repair(
        path,
        folders=_unit_names(path),
        allow_fewer_samples=options.allow_fewer_samples,
        progress=progress_stream(options),
    )
    if options.json:
        skipped = [{"file": finding.file, "message": finding.message} for finding in done.skipped]
        facts = {"folder": str(path), "shards": done.shards, "samples": done.samples}
        print_json({**facts, "skipped": skipped, "previous_indexes": list(done.kept)})
        return 1 if done.skipped else 0
    for finding in done.skipped:
        print(escaped(f"{path / finding.file}: skipped: {finding.message}"))
    for name in done.kept:
        print(escaped(f"{path / name}: the previous index"))
    print(escaped(f"{path}: {counted(done.shards, 'shard')}, {counted(done.samples, 'sample')}"))
    return 1 if done.skipped else 0


def _unit_names(path: Path) -> list[str] | None:
    """Returns the names of a dataset's units; None if the folder has no card."""
    from latentq.format.card import CARD, Card
    from latentq.format.files import SHARDS
    from latentq.run.units import unit_names
    from latentq.sharding.card import ShardsCard

    if (path / CARD).exists():
        return list(unit_names(path, Card.load(path)))
    return list(unit_names(path, ShardsCard.load(path))) if (path / SHARDS).exists() else None
