"""The command `latentq prune`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from latentq.cli.common import UsageError, add_command, dataset_folder, disk_bytes, print_json
from latentq.system.text import counted, escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands

_SHOWN = 10


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "prune",
        _run,
        "remove the units and lists that an update left behind, after asking",
        "  latentq prune out/\n  latentq prune out/ --yes",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder, which no process reads or writes")
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def _run(options: argparse.Namespace) -> int:
    from latentq.format.card import CARD, Card
    from latentq.run.finish import resume_update
    from latentq.run.prune import remove, stale_entries

    path = dataset_folder(options.dataset)
    if not (path / CARD).exists():
        raise UsageError(f"{path} is no latent dataset: it has no {CARD}")
    resume_update(path)
    entries = stale_entries(path, Card.load(path))
    if options.json:
        if entries and not options.yes:
            raise UsageError(f"{path}: {counted(len(entries), 'item')} would be removed: --json needs --yes")
        facts = {"dataset": str(path), "removed": list(map(str, entries)), "bytes": sum(map(disk_bytes, entries))}
        remove(entries)
        print_json(facts)
        return 0
    if not entries:
        print(escaped(f"{path}: nothing to remove"))
        return 0
    for entry in entries[:_SHOWN]:
        print(escaped(str(entry)))
    if len(entries) > _SHOWN:
        print(f"and {len(entries) - _SHOWN} more")
    found = f"{counted(len(entries), 'item')} of {size_text(sum(map(disk_bytes, entries)))}"
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{path}: {found} would be removed: --yes removes without asking")
        if input(f"Remove {found}? [y/N] ").strip().lower() not in ("y", "yes"):
            print("nothing is removed")
            return 1
    remove(entries)
    print(escaped(f"{path}: {found} removed"))
    return 0
