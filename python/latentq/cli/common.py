"""Helpers and options shared by the commands."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentq.system.progress import size_text as _size

if TYPE_CHECKING:
    from latentq.format.card import Counts
    from latentq.run.units import UnitCard


class UsageError(Exception):
    """Arguments that cannot be right; exit code 2."""


def fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"latentq: {' '.join(message.split())}", file=sys.stderr)
    return code


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run, resumable=False)
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """What every command that reads a source asks for."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a folder of images or of MDS shards, a table of image paths, .tar, .tgz, .zip or .parquet files (also as "
        "a quoted pattern, 'cc12m/*.tar'), what datasets' save_to_disk wrote, or hf:NAME",
    )
    parser.add_argument(
        "--captions",
        metavar="WHERE",
        help="a file of them (.jsonl, .csv, .tsv, .parquet, COCO's .json, .tgz), as FILE or FILE:KEY,CAPTION; txt or "
        "json:FIELD for members of archives named as the image; or the name of their column",
    )


def add_how(parser: argparse.ArgumentParser) -> Any:
    """What every command that works unit by unit asks for."""
    how = parser.add_argument_group("how it is run (leaves no trace)")
    how.add_argument("--threads", type=int, metavar="N", help="that decode images (default: one per processor)")
    how.add_argument("--rank", type=int, metavar="N", help="which process this is (default: $RANK or 0)")
    how.add_argument("--world-size", type=int, metavar="N", help="how many there are (default: $WORLD_SIZE or 1)")
    how.add_argument("--strict", action="store_true", help="end at the first image that cannot be used")
    how.add_argument(
        "--delete-archives", action="store_true", help="delete each archive of SRC once all of its units are published"
    )
    return how


def tell_counts(named: Path, out: Path, card: UnitCard, counts: Counts | None) -> int:
    """The last line of a command that works unit by unit in `out`, for what the user `named`."""
    from latentq.run.units import units_done

    if counts is None:
        done = units_done(out, card)
        print(
            f"{out}: {done} of {card.units} units are done; {card.units - done} are other processes' and still missing"
        )
        return 0
    rejects = f", {counts.rejects} rejects (see {out / 'rejects.tsv'})" if counts.rejects else ", no rejects"
    print(f"{named}: {counts.samples} samples{rejects}, {_size(bytes_of(named))}")
    return 0


def check_source(path: str) -> None:
    from latentq.sources import exists

    if not exists(path):
        raise UsageError(f"{path}: no such file or folder")


def dataset(path: str) -> Path:
    from latentq.converting.tokens_tsv import dataset_of

    if not Path(path).is_dir():
        beside = dataset_of(Path(path))
        hint = f", but its dataset is {beside}" if beside.is_dir() else ""
        raise UsageError(f"{path}: no such folder{hint}")
    return Path(path)


def table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
