"""The command `latentq decode`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from latentq.cli.common import UsageError, check_source, command


def add_decode(commands: Any) -> None:
    parser = command(
        commands,
        "decode",
        _decode,
        "turn stored latents back into pictures",
        "  latentq decode out/ --index 5 -o 5.png\n"
        "  latentq decode out/ --index 0 1 2 3 --source photos/ -o sheet.png   beside their originals, with PSNR\n"
        "  latentq decode imagenet_3gb.pt --index 5         so are the files that latentq convert reads",
    )
    parser.add_argument("dataset", metavar="SRC", help="a dataset's folder, or a file or folder that convert reads")
    parser.add_argument("--index", type=int, nargs="+", metavar="I", help="which samples (default: 8, evenly spread)")
    parser.add_argument(
        "-o", "--output", default="decoded.png", metavar="FILE", help="the picture (default decoded.png)"
    )
    parser.add_argument("--source", metavar="SRC", help="what it was made from: original, from float, as stored")
    parser.add_argument("--column", help="which latent column (default: the first)")
    parser.add_argument("--autoencoder", metavar="NAME", help="where it is, if the card's name does not say it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")


def _decode(options: argparse.Namespace) -> int:
    from latentq.inspect.pictures import pictures, sheet

    if not Path(options.dataset).exists():
        raise UsageError(f"{options.dataset}: no such file or folder")
    if options.source is not None:
        check_source(options.source)
    try:
        rows = pictures(
            options.dataset,
            options.index,
            column=options.column,
            source=options.source,
            autoencoder=options.autoencoder,
            device=options.device,
        )
    except IndexError as error:
        raise UsageError(f"--{error}") from None
    if len(rows) == len(rows[0]) == 1:
        from PIL import Image

        picture = Image.fromarray(rows[0][0].pixels)
    else:
        picture = sheet(rows)
    try:
        picture.save(options.output)
    except ValueError:
        raise UsageError(f"-o {options.output}: name a picture by its extension, e.g. .png") from None
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(options.output)) from None
    scores = [row[-1].psnr for row in rows if row[-1].psnr is not None]
    mean = f", mean PSNR as stored {sum(scores) / len(scores):.2f} dB" if scores else ""
    print(f"{options.output}: {len(rows)} samples{mean}")
    return 0
