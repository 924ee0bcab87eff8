"""The command `latentq report`."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import (
    UsageError,
    add_command,
    add_url_options,
    check_output,
    check_source,
    dataset_folder,
    no_dataset,
    opened_dataset,
    original_source,
    print_json,
    progress_stream,
)
from latentq.system.text import escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands
    from latentq.run.opened import OpenedDataset


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "report",
        _run,
        "write a page with a dataset's pictures, distributions, errors, counts and sizes",
        "  latentq report out/ -o report.html\n"
        "  latentq report out/ --source photos/                  next to the originals, with measured errors\n"
        "  latentq report out-8bit/ --compare out-4bit/          two datasets next to each other\n"
        "  latentq report imagenet.int8/ --recipe imagenet.int8  a folder of shards without a card",
    )
    parser.add_argument(
        "dataset", metavar="DATASET", help="a dataset's folder or URL, or with --recipe a folder of MDS shards"
    )
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--source", metavar="SRC", help="the dataset's source, to show originals and to measure errors")
    parser.add_argument("--compare", metavar="OTHER", help="another dataset, to show next to this one")
    parser.add_argument("--recipe", metavar="NAME", help="for a folder without a card: the recipe that made it")
    parser.add_argument("--column", help="latent column to decode (default: the first)")
    parser.add_argument("--autoencoder", metavar="NAME", help="the autoencoder, if the card's name does not find it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="samples to show (default: 12)")
    add_url_options(parser)


def _run(options: argparse.Namespace) -> int:
    if options.samples < 1:
        raise UsageError(f"--samples must be at least 1, not {options.samples}")
    from latentq.store.cache import is_remote

    named = [path for path in (options.dataset, options.compare) if path is not None]
    carded = [not is_remote(path) and _has_card(path, options.recipe) for path in named]
    if options.recipe is not None and all(carded):
        raise UsageError(f"--recipe {options.recipe}: {' and '.join(named)} {_HAS[len(named)]}")
    if options.source is not None:
        check_source(options.source)
    output = check_output(options.output)
    from latentq.inspect.report.write import report

    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(_opened(options, path)) for path in named]
        report(
            opened[0],
            output,
            source=original_source(options, opened[0].folder),
            compare=opened[1] if options.compare is not None else None,
            recipe=options.recipe,
            column=options.column,
            autoencoder=options.autoencoder,
            device=options.device,
            samples=options.samples,
            progress=progress_stream(options),
        )
    size = output.stat().st_size
    if options.json:
        print_json({"output": options.output, "bytes": size})
    else:
        print(escaped(f"{options.output}: {size_text(size)}"))
    return 0


@contextlib.contextmanager
def _opened(options: argparse.Namespace, path: str) -> Iterator[OpenedDataset]:
    """Opens a dataset in a folder, or at a URL, from which everything is downloaded."""
    from latentq.run.opened import OpenedDataset
    from latentq.store.cache import is_remote

    if is_remote(path):
        with opened_dataset(options, path) as dataset:
            dataset.need_all()
            yield dataset
    else:
        yield OpenedDataset(path, Path(path), None, None)


_HAS = {1: "has a card, which says how it was made", 2: "have cards, which say how they were made"}


def _has_card(path: str, recipe: str | None) -> bool:
    """Returns whether a folder has a card. Raises an error if it is neither a dataset nor, with a recipe, shards."""
    from latentq.format.card import CARD
    from latentq.format.files import INDEX
    from latentq.format.recipe import Recipe

    if Path(path).is_file():
        raise UsageError(
            f"{path} is a file, not a dataset's folder: latentq convert makes datasets of other tools' files"
        )
    folder = dataset_folder(path)
    if (folder / CARD).exists():
        return True
    if not (folder / INDEX).exists():
        raise no_dataset(folder)
    if recipe is None:
        raise UsageError(f"{path} has no card: --recipe names what made it ({', '.join(Recipe.names())}, or a file)")
    return False
