"""The command `latentq convert`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from latentq.choices import Codec
from latentq.cli.common import UsageError, add_command, disk_bytes, local_path, print_json, progress_stream
from latentq.converting.names import CODES, NAMES, WRITTEN
from latentq.system.text import counted, duration_text, escaped, size_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "convert",
        _run,
        "convert other tools' latents to a dataset, or a dataset to their layout, unchanged",
        "  latentq convert cache/ out/                      any layout below, recognized by its content\n"
        "  latentq convert vae-sd/ out/ --from repa         a folder that fits two layouts\n"
        "  latentq convert shards/ out/ --bits 8            quantized; the error is told\n"
        "  latentq convert shards/ out/ --bytes 1024        encoded by the transform, 1,024 bytes a latent\n"
        "  latentq convert out/ shards/ --to lightningdit   and back\n"
        "  latentq convert out/ imagenet_3gb.pt             to .pt, .tsv or imagenet.int8's folder, by DST\n\n"
        f"layouts, both ways: {', '.join((*CODES, *WRITTEN))}\n"
        f"layouts that are read: {', '.join(name for name in NAMES if name not in WRITTEN) or 'the same'}",
        resumable=True,
    )
    parser.add_argument(
        "source", metavar="SRC", help="a dataset, or another tool's file or folder, recognized by its content"
    )
    parser.add_argument("out", metavar="DST", help="output file or folder, which must not exist yet")
    parser.add_argument(
        "--from", dest="from_layout", metavar="LAYOUT", help="the layout of SRC, if its content fits several"
    )
    parser.add_argument(
        "--to", dest="to_layout", metavar="LAYOUT", help="the layout to write from a dataset; by default DST decides"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="NAME",
        help="the autoencoder that made SRC, if not the layout's usual one: sd, sdxl, sd3, flux, dc-ae, va-vae, ... or "
        "any model's name, for the card",
    )
    parser.add_argument(
        "--codebook", type=int, metavar="N", help="tokens in the codebook that made SRC, if not the layout's usual one"
    )
    parser.add_argument(
        "--bits", type=int, metavar="N", help="quantize latents to 2 to 8 bits; by default they are copied unchanged"
    )
    parser.add_argument(
        "--codec",
        choices=get_args(Codec),
        help="encode each value (affine), or whole latents: trellis for --bits, transform for --bytes",
    )
    parser.add_argument("--bytes", type=int, metavar="N", help="bytes of each latent, by the transform codec")


def _run(options: argparse.Namespace) -> int:
    from latentq.converting.pipeline import converted

    local_path(options.out, "name a path of this machine, and copy the result")
    if not local_path(options.source).exists():
        raise UsageError(f"{options.source}: no such file or folder")
    start = time.monotonic()
    result = converted(
        options.source,
        options.out,
        from_layout=options.from_layout,
        to_layout=options.to_layout,
        autoencoder=options.autoencoder,
        codebook=options.codebook,
        bits=options.bits,
        codec=options.codec,
        bytes=options.bytes,
        progress=progress_stream(options),
    )
    seconds = time.monotonic() - start
    size = disk_bytes(Path(options.out))
    if options.json:
        errors = {
            name: {
                "sqnr_db": error.overall_sqnr_db,
                "largest_error": error.largest_error,
                "clip_rate": sum(error.clip_rate) / len(error.clip_rate),
            }
            for name, error in result.errors.items()
        }
        facts = {"output": options.out, "samples": result.samples, "bytes": size, "seconds": seconds}
        print_json({**facts, "errors": errors, "notes": list(result.notes)})
    else:
        held = f"{counted(result.samples, 'sample')}, {size_text(size)}"
        pace = f"in {duration_text(seconds)}, {result.samples / max(seconds, 1e-9):.1f} samples/s"
        print(escaped(f"{Path(options.out)}: {held}; {pace}"))
    return 0
