"""The command `latentq decode`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import (
    UsageError,
    add_command,
    add_url_options,
    check_output,
    check_source,
    opened_dataset,
    original_source,
    print_json,
    progress_stream,
)
from latentq.system.text import counted, escaped

if TYPE_CHECKING:
    from latentq.cli.common import Commands
    from latentq.inspect.pictures import Picture


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "decode",
        _run,
        "decode stored latents to images",
        "  latentq decode out/ --index 5 -o 5.png\n"
        "  latentq decode out/ --index 0 1 2 3 --source photos/ -o sheet.png   next to their originals, with PSNR\n"
        "  latentq decode imagenet_3gb.pt --index 5                            or imagenet.int8's, or VQGAN's .tsv",
    )
    parser.add_argument(
        "dataset",
        metavar="SRC",
        help="a dataset's folder or URL, or data of imagenet_3gb, imagenet.int8 or VQGAN; convert other tools' first",
    )
    parser.add_argument(
        "--index", type=int, nargs="+", metavar="I", help="samples to decode (default: 8, evenly spread)"
    )
    parser.add_argument(
        "-o", "--output", default="decoded.png", metavar="FILE", help="output image (default: decoded.png)"
    )
    parser.add_argument(
        "--source",
        metavar="SRC",
        help="the dataset's source; shows original, JPEG, decoded from floats, decoded as stored",
    )
    parser.add_argument("--column", help="latent column (default: the first)")
    parser.add_argument("--autoencoder", metavar="NAME", help="the autoencoder, if the card's name does not find it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default: cpu)")
    add_url_options(parser)


def _run(options: argparse.Namespace) -> int:
    from latentq.store.cache import is_remote

    remote = is_remote(options.dataset)
    if not remote and not Path(options.dataset).exists():
        raise UsageError(f"{options.dataset}: no such file or folder")
    if options.source is not None:
        check_source(options.source)
    form = _image_format(options.output)
    output = check_output(options.output)
    from latentq.inspect.pictures import sheet, spread
    from latentq.store.local import replace_file

    if remote:
        with opened_dataset(options, options.dataset) as dataset:
            chosen = options.index or spread(dataset.samples() or 0)
            dataset.need_samples(chosen)
            if options.source is not None:
                dataset.need_others()
            rows = _pictures(options, dataset.folder)
    else:
        rows = _pictures(options, Path(options.dataset))
    if len(rows) == len(rows[0]) == 1:
        from PIL import Image

        picture = Image.fromarray(rows[0][0].pixels)
    else:
        picture = sheet(rows)
    file = io.BytesIO()
    picture.save(file, form)
    replace_file(output, file.getvalue())
    if options.json:
        print_json({"output": options.output, "samples": len(rows), "psnr": [row[-1].psnr for row in rows]})
        return 0
    scores = [row[-1].psnr for row in rows if row[-1].psnr is not None]
    mean = f", mean PSNR as stored {sum(scores) / len(scores):.2f} dB" if scores else ""
    print(escaped(f"{options.output}: {counted(len(rows), 'sample')}{mean}"))
    return 0


def _pictures(options: argparse.Namespace, path: Path) -> list[list[Picture]]:
    """Decodes the samples that the options name, of a dataset in a folder or another tool's file."""
    from latentq.inspect.pictures import pictures

    try:
        return pictures(
            path,
            options.index,
            column=options.column,
            source=original_source(options, path),
            autoencoder=options.autoencoder,
            device=options.device,
            progress=progress_stream(options),
        )
    except IndexError as error:
        raise UsageError(f"--{error}") from None


def _image_format(output: str) -> str:
    """Returns Pillow's name of the format that a file's suffix names. Raises UsageError if Pillow cannot write it."""
    from PIL import Image

    form = Image.registered_extensions().get(Path(output).suffix.lower())
    if form not in Image.SAVE:
        raise UsageError(f"-o {output}: unknown image format; name a file such as decoded.png")
    return form
