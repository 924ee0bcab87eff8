"""The commands `latentq verify` and `latentq repair`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from latentq.cli.common import command, dataset


def add_verify(commands: Any) -> None:
    parser = command(
        commands,
        "verify",
        _verify,
        "check every hash, every sample and every count; exit code 1 where something is wrong",
        "  latentq verify out/",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder, or any folder of MDS shards")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def _verify(options: argparse.Namespace) -> int:
    from latentq.inspect.verify import verify

    path = dataset(options.dataset)
    findings = verify(path)
    if options.json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            offset = f", offset {finding.offset}" if finding.offset else ""
            print(f"{path / finding.file}{offset}: {finding.message}")
        print(f"{path}: {'good' if not findings else f'{len(findings)} findings'}")
    return 1 if findings else 0


def add_repair(commands: Any) -> None:
    parser = command(
        commands,
        "repair",
        _repair,
        "make an index.json from MDS shards alone, where it is lost or broken; nothing is deleted",
        "  latentq repair shards/",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder of MDS shards")


def _repair(options: argparse.Namespace) -> int:
    from latentq import mds

    path = dataset(options.folder)
    done = mds.repair(path)
    for finding in done.left_out:
        print(f"{path / finding.file}: left out: {finding.message}")
    for name in done.kept:
        print(f"{path / name}: the index that was there")
    print(f"{path}: {done.shards} shards, {done.samples} samples")
    return 1 if done.left_out else 0
