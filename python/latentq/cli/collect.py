"""The command `latentq collect`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import UsageError, add_command, fail, local_path, print_json, progress_stream
from latentq.system.text import counted, escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands

_MAX_ARCHIVES = 1_000_000  # in one --ids A-B: more than any collection has


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "collect",
        _run,
        "download a public collection, or continue an earlier run; exit code 1 if a file failed",
        "  latentq collect cc12m cc12m/ --subset small\n"
        "  latentq collect jdb jdb/ --ids 0 1 17-20\n"
        "  latentq collect jdb jdb/ --retry-failed              the files in jdb/failed.tsv\n"
        "  latentq collect sa1b sa1b/ --links sa1b_links.tsv    the list from the dataset's page",
        resumable=True,
    )
    parser.add_argument("name", metavar="NAME", help="jdb, cc12m, diffdb, sa1b, textcaps or coco")
    parser.add_argument("folder", metavar="DIR", help="folder that the files are written to")
    selection = parser.add_mutually_exclusive_group()
    selection.add_argument(
        "--subset", choices=("all", "small"), default="all", help="small: about 1%% of the collection (default: all)"
    )
    selection.add_argument("--ids", type=_numbers, nargs="+", metavar="N", help="numbers of archives: 3, or 0-22")
    selection.add_argument("--retry-failed", action="store_true", help="only the files that failed.tsv lists")
    parser.add_argument("--links", metavar="FILE", help="for sa1b: its list of links")
    parser.add_argument("--site", metavar="URL", help="for coco: download from this address instead of COCO's own")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="parallel downloads (default: 8)")


def _numbers(text: str) -> range:
    """Parses a number, or two numbers as in 0-22."""
    first, _, last = text.partition("-")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor two as in 0-22")
    if numbers.stop - numbers.start > _MAX_ARCHIVES:
        raise argparse.ArgumentTypeError(f"{text!r} is more archives than any collection has")
    return numbers


def _run(options: argparse.Namespace) -> int:
    from latentq.collect import COLLECTIONS, FAILED, collect

    if options.name not in COLLECTIONS:
        raise UsageError(f"there is no collection {options.name!r}: name one of {', '.join(COLLECTIONS)}")
    done = collect(
        options.name,
        local_path(options.folder, "name a folder of this machine"),
        subset=options.subset,
        ids=None if options.ids is None else [number for numbers in options.ids for number in numbers],
        retry_failed=options.retry_failed,
        links=options.links,
        site=options.site,
        threads=options.threads,
        progress=progress_stream(options),
    )
    if options.json:
        failures = [{"file": failure.id, "reason": failure.reason} for failure in done.failed]
        print_json({"folder": options.folder, "files": done.files, "bytes": done.bytes, "failed": failures})
    else:
        print(escaped(f"{options.folder}: {counted(done.files, 'file')}, {size_text(done.bytes)}"))
    if not done.failed:
        return 0
    failed = Path(options.folder) / FAILED
    count, reason = counted(len(done.failed), "file"), done.failed[0].reason
    return fail(
        f"{count} failed, see {failed}; --retry-failed tries only these again; the first failed with: {reason}", 1
    )
