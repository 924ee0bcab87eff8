"""The command `latentq bench`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from latentq.cli.common import UsageError, add_command, print_json, progress_stream

if TYPE_CHECKING:
    from latentq.benchmark.group import Result
    from latentq.benchmark.machine import Machine
    from latentq.cli.common import Commands

_SIGTERM = 128 + signal.SIGTERM  # the exit code that a shell reports for a command ended by SIGTERM


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "bench",
        _run,
        "measure speed on this machine, next to installed rivals and the machine's own limits",
        "  latentq bench\n"
        "  latentq bench --quick                   fewer rounds, without torch.compile\n"
        "  latentq bench epochs --folder /data     the groups with this word, on the file system of /data\n"
        "  LATENTQ_ISA=avx2 latentq bench          as on a processor without AVX-512",
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="measure only groups whose title has one of the words")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and no torch.compile")
    parser.add_argument("--images", metavar="FOLDER", help="JPEGs to decode (default: pictures made of noise)")
    parser.add_argument("--folder", metavar="FOLDER", help="where to write files (default: the temporary folder)")


def _run(options: argparse.Namespace) -> int:
    for name in ("images", "folder"):
        path = getattr(options, name)
        if path is not None and not Path(path).is_dir():
            raise UsageError(f"--{name}: {path}: no such folder")
    from latentq.benchmark import pixels
    from latentq.benchmark.group import measure
    from latentq.benchmark.machine import machine
    from latentq.benchmark.run import Plan, groups, skipped
    from latentq.system.progress import Progress

    images = Path(options.images) if options.images is not None else None
    if images is not None:
        pixels.files(images)  # here, since half of the groups are measured before the first that needs them
    with _ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="latentq-bench-", dir=options.folder) as folder:
        plan = Plan(Path(folder), images, quick=options.quick)
        prepared = list(groups(plan))
        titles = [title for title, _ in prepared]
        unknown = [word for word in options.words if not any(_matches(title, [word]) for title in titles)]
        if unknown:
            raise UsageError(f"no group has the word {' or '.join(unknown)}: {'; '.join(titles)}")
        chosen = [(title, prepare) for title, prepare in prepared if _matches(title, options.words)]
        facts, notes = machine(), skipped(plan)
        if not options.json:
            _print_machine(facts)
        results = []
        with Progress(len(chosen), "bench", progress_stream(options), noun="group") as bar:
            for _, prepare in bar.counted(chosen):
                results.append(measure(prepare()))
                if not options.json:
                    _print_group(results[-1])
                    sys.stdout.flush()
    if options.json:
        measured = [asdict(result) for result in results]
        print_json({"date": f"{date.today()}", "machine": asdict(facts), "groups": measured, "notes": notes})
    else:
        for note in notes:
            print(f"\n{note}")
    return 0


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Turns SIGTERM into the end of the program, so that the temporary folder is removed as after Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may choose handlers
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not end the removal
        sys.exit(_SIGTERM)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _matches(title: str, words: list[str]) -> bool:
    return not words or any(word.lower() in title.lower() for word in words)


def _print_machine(facts: Machine) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in facts.packages.items())
    print(f"latentq {facts.latentq} on {facts.processor}, {facts.isa}, {facts.cores} cores, load {facts.load}")
    print(f"{facts.system}, Python {facts.python}, {versions}")


def _print_group(result: Result) -> None:
    """Prints a table: median time, rate, and how many times as fast latentq is."""
    from latentq.benchmark.turns import RATES, SECONDS, in_units

    unit = f"{result.unit}/s"
    names = [f"{row.name} (limit)" if row.limit else row.name for row in result.rows]
    width = max(map(len, names))
    print(f"\n{result.title}\n  {'':<{width}} {'median':>9} {unit:>14}  latentq is")
    for name, row in zip(names, result.rows, strict=True):
        ratio = "" if row.latentq_is is None else f"{row.latentq_is:.2f} times as fast"
        seconds, rate = in_units(row.seconds, SECONDS), in_units(row.rate, RATES)
        print(f"  {name:<{width}} {seconds:>9} {rate:>14}  {ratio}".rstrip())
