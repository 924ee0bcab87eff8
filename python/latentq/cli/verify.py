"""The command `latentq verify`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import (
    UsageError,
    add_command,
    add_ray_options,
    add_url_options,
    check_source,
    no_dataset,
    opened_dataset,
    progress_stream,
    ray_options,
)
from latentq.system.text import counted, escaped

if TYPE_CHECKING:
    from latentq.cli.common import Commands
    from latentq.mds import Finding


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "verify",
        _run,
        "check every hash, every sample and every count; exit code 1 if something is wrong",
        "  latentq verify out/\n"
        "  latentq verify out/ --decode 64 --source photos/     also decode 64 samples, compare with the images",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder or URL, or any folder of MDS shards")
    parser.add_argument(
        "--decode", type=int, metavar="N", help="also decode N evenly spread samples, and report PSNR and clip rate"
    )
    parser.add_argument("--source", metavar="SRC", help="with --decode: the dataset's source, to compute the PSNR")
    parser.add_argument("--autoencoder", metavar="NAME", help="with --decode: autoencoder (default: the card's)")
    parser.add_argument("--device", default="cpu", help="with --decode: cpu, cuda, cuda:1 (default: cpu)")
    add_url_options(parser)
    add_ray_options(parser, gpus=False)


def _run(options: argparse.Namespace) -> int:
    from latentq.inspect.verify import verify_opened

    ray = ray_options(options)

    if options.decode is not None and options.decode < 1:
        raise UsageError(f"--decode must be at least 1, not {options.decode}")
    if options.source is not None:
        if options.decode is None:
            raise UsageError("--source needs --decode N")
        check_source(options.source)
    with opened_dataset(options, options.dataset) as dataset:
        path = dataset.folder
        try:
            findings = verify_opened(dataset, progress=progress_stream(options), ray=ray)
        except FileNotFoundError:
            raise no_dataset(path) from None
        if options.decode is not None and not findings:
            dataset.need_all()
            findings = _decode(path, options)
    if options.json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            offset = f", offset {finding.offset}" if finding.offset else ""
            print(escaped(f"{dataset.name}/{finding.file}{offset}: {finding.message}"))
        print(escaped(f"{dataset.name}: {'good' if not findings else counted(len(findings), 'finding')}"))
    return 1 if findings else 0


def _decode(path: Path, options: argparse.Namespace) -> list[Finding]:
    """Decodes samples, prints their quality to stderr, and returns what is wrong with them."""
    from latentq.inspect.quality import sample_quality
    from latentq.mds import Finding

    quality = sample_quality(
        path,
        options.decode,
        source=options.source,
        autoencoder=options.autoencoder,
        device=options.device,
        progress=progress_stream(options),
    )
    parts = [f"{counted(quality.decoded, 'sample')} decoded"]
    if quality.psnr is None:
        parts.append("no PSNR without --source")
    else:
        lowest = f"lowest {quality.lowest_psnr:.2f} dB of sample {quality.lowest}"
        parts.append(f"mean PSNR {quality.psnr:.2f} dB, {lowest}")
    if quality.clip_rate is not None:
        parts.append(f"{100 * quality.clip_rate:.4f} % of all values clipped")
    print(escaped(f"{path}: {'; '.join(parts)}"), file=sys.stderr)
    return [Finding(".", 0, f"sample {index} holds values that are not finite") for index in quality.bad]
