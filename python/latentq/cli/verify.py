"""The command `latentq verify`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from latentq.cli.common import add_command, dataset_folder
from latentq.system.text import escaped

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "verify",
        _run,
        "check every hash, every sample and every count; exit code 1 if something is wrong",
        "  latentq verify out/",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder, or any folder of MDS shards")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def _run(options: argparse.Namespace) -> int:
    from latentq.inspect.verify import verify

    path = dataset_folder(options.dataset)
    findings = verify(path)
    if options.json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            offset = f", offset {finding.offset}" if finding.offset else ""
            print(escaped(f"{path / finding.file}{offset}: {finding.message}"))
        print(escaped(f"{path}: {'good' if not findings else f'{len(findings)} findings'}"))
    return 1 if findings else 0
