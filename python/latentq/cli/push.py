"""The command `latentq push`."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from latentq.cli.common import UsageError, add_command, check_source, dataset_folder, print_json, progress_stream
from latentq.system.text import counted, duration_text, escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "push",
        _run,
        "upload a finished dataset to the Hugging Face Hub, with a page written from its card",
        "  latentq push out/ hf:me/photos-sdxl --license cc-by-4.0\n"
        "  latentq push out/ hf:me/photos-sdxl --private --source photos/     the page shows the originals too",
        resumable=True,
    )
    parser.add_argument("dataset", metavar="OUT", help="a dataset's folder")
    parser.add_argument("to", metavar="hf:OWNER/NAME", help="the dataset repository; it is made if it does not exist")
    parser.add_argument("--license", metavar="NAME", help="the license on the page, such as cc-by-4.0")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch; it is made if it does not exist")
    parser.add_argument("--no-pictures", action="store_true", help="show no decoded samples on the page")
    parser.add_argument("--source", metavar="SRC", help="the dataset's source, to show the originals too")
    parser.add_argument("--autoencoder", metavar="NAME", help="the autoencoder, if the card's name does not find it")


def _run(options: argparse.Namespace) -> int:
    from latentq.publishing.push import extent, push, repository_of

    repository_of(options.to)
    if options.no_pictures and (options.source or options.autoencoder):
        raise UsageError("--source and --autoencoder are for pictures, and exclude --no-pictures")
    if options.source is not None:
        check_source(options.source)
    folder, start = dataset_folder(options.dataset), time.monotonic()
    url = push(
        folder,
        options.to,
        license=options.license,
        private=options.private,
        revision=options.revision,
        pictures=not options.no_pictures,
        source=options.source,
        autoencoder=options.autoencoder,
        progress=progress_stream(options),
    )
    seconds, (files, size) = time.monotonic() - start, extent(folder)
    if options.json:
        print_json({"dataset": options.dataset, "url": url, "files": files, "bytes": size, "seconds": seconds})
        return 0
    pushed = f"pushed {counted(files, 'file')}, {size_text(size)}, in {duration_text(seconds)}"
    print(escaped(f"{options.dataset}: {pushed}; read it with latentq.LatentDataset({url!r}, cache=...)"))
    return 0
