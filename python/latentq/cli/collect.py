"""The command `latentq collect`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from latentq.cli.common import command, fail
from latentq.collect import COLLECTIONS, FAILED, Subset, collect
from latentq.system.progress import size_text as _size

_MOST_ARCHIVES = 1_000_000  # of one --ids A-B: more than any collection has


def add_collect(commands: Any) -> None:
    parser = command(
        commands,
        "collect",
        _collect,
        "fetch a public collection, or go on where an earlier run stopped; exit code 1 where a file failed",
        "  latentq collect cc12m cc12m/ --subset small\n"
        "  latentq collect jdb jdb/ --ids 0 1 17-20\n"
        "  latentq collect jdb jdb/ --retry-failed              those of jdb/failed.tsv\n"
        "  latentq collect sa1b sa1b/ --links sa1b_links.tsv    the list that the data set's page gives",
    )
    parser.set_defaults(resumable=True)
    parser.add_argument("name", metavar="NAME", choices=sorted(COLLECTIONS), help=", ".join(COLLECTIONS))
    parser.add_argument("folder", metavar="DIR", help="where the files go")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--subset", choices=get_args(Subset), default="all", help="small: about 1%% (default all)")
    which.add_argument("--ids", type=_numbers, nargs="+", metavar="N", help="the numbers of archives: 3, or 0-22")
    which.add_argument("--retry-failed", action="store_true", help="just those that failed.tsv lists")
    parser.add_argument("--links", metavar="FILE", help="for sa1b: its list of links")
    parser.add_argument("--site", metavar="URL", help="for coco: another address than its own")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="files fetched at once (default 8)")


def _numbers(text: str) -> range:
    """One number, or from one to another."""
    first, _, last = text.partition("-")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor two as in 0-22")
    if numbers.stop - numbers.start > _MOST_ARCHIVES:
        raise argparse.ArgumentTypeError(f"{text!r} are more archives than any collection has")
    return numbers


def _collect(options: argparse.Namespace) -> int:
    done = collect(
        options.name,
        options.folder,
        subset=options.subset,
        ids=None if options.ids is None else [number for some in options.ids for number in some],
        retry_failed=options.retry_failed,
        links=options.links,
        site=options.site,
        threads=options.threads,
        progress=sys.stderr,
    )
    print(f"{options.folder}: {done.files} files, {_size(done.bytes)}")
    if not done.failed:
        return 0
    count = "1 file" if len(done.failed) == 1 else f"{len(done.failed)} files"
    listed = Path(options.folder) / FAILED
    return fail(f"{count} failed, see {listed}: --retry-failed takes just those; {done.failed[0].reason}", 1)
