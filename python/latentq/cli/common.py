"""Helpers and options shared by the commands."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentq._core import LatentqError
from latentq.system.text import counted, duration_text, escaped, one_line, size_text

if TYPE_CHECKING:
    from latentq.format.facts import SampleCounts
    from latentq.run.dry_run import DryRun
    from latentq.run.mirror import Mirror
    from latentq.run.opened import OpenedDataset
    from latentq.run.options import RayOptions
    from latentq.run.units import UnitCard
    from latentq.sources import Source
    from latentq.system.progress import Totals

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class UsageError(Exception):
    """Wrong arguments; exit code 2."""


def fail(message: str, code: int) -> int:
    """Prints an error on one line to stderr and returns the exit code."""
    with contextlib.suppress(OSError):
        print(f"latentq: {one_line(message)}", file=sys.stderr)
    return code


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    examples: str,
    *,
    resumable: bool = False,
) -> argparse.ArgumentParser:
    """Adds a command and returns its parser.

    Args:
        commands: The sub-parsers of the program.
        name: The command's name.
        run: Runs the command and returns its exit code.
        summary: One sentence for the list of commands and the top of the command's help.
        examples: Lines for the end of the command's help, each indented by two spaces.
        resumable: True if the same command, run again after an interruption, continues its work.
    """
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quiet", action="store_true", help="no progress: print only the result, warnings and errors")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run, resumable=resumable)
    return parser


def add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the options of every command that reads a source."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a folder of images or of MDS shards, a table of image paths, .tar, .tgz, .zip or .parquet files (also as "
        "a quoted pattern, 'cc12m/*.tar'), a folder that datasets' save_to_disk wrote, or hf:NAME; all but the last "
        "two also at a URL of s3://, gs://, az:// or hf://datasets/OWNER/NAME/...",
    )
    parser.add_argument(
        "--captions",
        metavar="WHERE",
        help="a file of captions (.jsonl, .csv, .tsv, .parquet, COCO's .json, .tgz), as FILE or FILE:KEY,CAPTION; txt "
        "or json:FIELD for files in a folder or archive that are named like the image; or the name of a column",
    )
    parser.add_argument(
        "--image-column",
        metavar="NAME",
        help="the column of images, or in a tar the field of WebDataset (default: a usual name, such as image)",
    )


def add_run_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the options of every command that works unit by unit, and returns their group."""
    group = parser.add_argument_group("how to run (does not change the result)")
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads that decode images (default: this process's share of the processors)",
    )
    group.add_argument("--rank", type=int, metavar="N", help="number of this process (default: the launcher's, or 0)")
    group.add_argument(
        "--world-size", type=int, metavar="N", help="number of processes (default: the launcher's, or 1)"
    )
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing, try one batch, and print what would be done: units that are there and that are missing, "
        "bytes, time",
    )
    group.add_argument("--strict", action="store_true", help="stop at the first image that cannot be used")
    group.add_argument(
        "--delete-archives", action="store_true", help="delete each archive of SRC once all of its units are published"
    )
    return group


def add_ray_options(group: argparse._ArgumentGroup | argparse.ArgumentParser, *, gpus: bool) -> None:
    """Adds the options of commands that run on a Ray cluster.

    Args:
        group: The group of the options.
        gpus: True if the work uses GPUs.
    """
    group.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="run on workers of a Ray cluster (default: that of RAY_ADDRESS or of this machine, else one is started)",
    )
    group.add_argument("--workers", type=int, metavar="N", help="with --ray: workers (default: as many as fit)")
    if gpus:
        group.add_argument(
            "--gpus-per-worker",
            type=float,
            metavar="N",
            help="with --ray: GPUs of a worker (default: 1 if there are any)",
        )
    group.add_argument(
        "--cpus-per-worker",
        type=int,
        metavar="N",
        help="with --ray: processors of a worker, and its threads"
        + (" (default: a GPU's share of its machine's, or 1)" if gpus else " (default: 1)"),
    )


def ray_options(options: argparse.Namespace) -> RayOptions | None:
    """Returns the options of a run on Ray; None without --ray.

    Raises:
        UsageError: Options of workers are given without --ray, or options that say how this process works with it.
    """
    from latentq.run.options import RayOptions

    numbers = {name: getattr(options, name, None) for name in ("workers", "gpus_per_worker", "cpus_per_worker")}
    if options.ray is None:
        for name, value in numbers.items():
            if value is not None:
                raise UsageError(f"--{name.replace('_', '-')} needs --ray")
        return None
    for name in ("dry_run", "profile"):
        if getattr(options, name, False):
            raise UsageError(f"--{name.replace('_', '-')} is about this process alone: leave --ray out")
    return RayOptions(options.ray or None, **numbers)


def add_storage_options(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Adds the option for object stores."""
    group.add_argument(
        "--storage-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for URLs (s3://, gs://, az://): endpoint, region, allow_http=true and so on, as obstore names them; "
        "repeatable (default: from the environment, such as AWS_ENDPOINT_URL)",
    )


def add_url_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of commands that read a dataset in a folder or at a URL."""
    parser.add_argument(
        "--cache", metavar="FOLDER", help="for a URL: folder to keep what is downloaded (default: a temporary one)"
    )
    add_storage_options(parser)


def original_source(options: argparse.Namespace, folder: Path) -> str | Source | None:
    """Returns the source in `--source`, opened with the storage options if there are any.

    Args:
        options: The options of a command that compares a dataset with its source.
        folder: The dataset.

    Raises:
        LatentqError: The dataset has no card, or the source is of no kind that can be read.
        OSError: The source cannot be read.
    """
    from latentq.store.files import is_stored

    stored = storage_options(options)
    if not stored or not is_stored(options.source):
        source: str | None = options.source
        return source
    from latentq.format.card import Card
    from latentq.sources import open_source

    return open_source(options.source, image_column=Card.load(folder).source.image_column, storage_options=stored)


@contextlib.contextmanager
def opened_dataset(options: argparse.Namespace, path: str) -> Iterator[OpenedDataset]:
    """Opens a dataset in a folder or at a URL, with the options of `add_url_options`.

    Raises:
        UsageError: There is no such folder.
    """
    from latentq.run.opened import opened
    from latentq.store.cache import is_remote

    stored = storage_options(options)
    if not is_remote(path):
        path = str(dataset_folder(path))
        if is_remote(getattr(options, "source", None)):
            stored = {}  # which are the source's
    stream = progress_stream(options)
    with opened(path, cache=options.cache, options=stored, progress=stream) as dataset:
        yield dataset


def storage_options(options: argparse.Namespace) -> dict[str, str]:
    """Returns the options for object stores.

    Raises:
        UsageError: One is not KEY=VALUE.
    """
    pairs = [option.partition("=") for option in options.storage_option]
    for key, equals, value in pairs:
        if not key or not equals:
            raise UsageError(f"--storage-option must be KEY=VALUE, not {key}{equals}{value}")
    return {key: value for key, _, value in pairs}


def progress_stream(options: argparse.Namespace) -> TextIO | None:
    """Returns the stream for progress and notes: stderr, or None with --quiet."""
    return None if options.quiet else sys.stderr


def print_json(result: object) -> None:
    """Prints a result for programs, as JSON. Numbers that are not finite become null."""
    print(json.dumps(_finite(result)))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def print_result(
    named: Path | str,
    out: Path,
    card: UnitCard,
    counts: SampleCounts | None,
    totals: Totals,
    mirror: Mirror | None = None,
    *,
    as_json: bool = False,
    summary: TextIO | None = None,
    stages: Mapping[str, float] | None = None,
) -> int:
    """Prints the result of a command that works unit by unit, and returns its exit code.

    Args:
        named: The output as the user named it.
        out: The folder of the units; for a URL its local folder.
        card: The card of the output.
        counts: The number of samples and rejects; None if units of other processes are missing.
        totals: The number of images that this run handled, and their time.
        mirror: The object store that the output is on, if it is on one.
        as_json: Print JSON for programs.
        summary: Stream for rejects by stage and for the time of each stage; None prints neither.
        stages: The seconds that each stage worked.
    """
    from latentq.format.files import REJECTS
    from latentq.run.finish import rejects_by_stage
    from latentq.run.units import units_done

    where: Path | str = out if mirror is None else named
    done = card.units if counts else units_done(out, card)
    size = 0 if counts is None else disk_bytes(Path(named)) if mirror is None else mirror.stored_bytes()
    rejected = rejects_by_stage(out) if counts and (out / REJECTS).exists() else {}
    worked = {stage: seconds for stage, seconds in (stages or {}).items() if seconds > 0}
    if as_json:
        totals_of_dataset = {"samples": counts.samples, "rejects": counts.rejects, "bytes": size} if counts else {}
        print_json(
            {
                "dataset": str(named), "complete": counts is not None, "units": card.units, "units_done": done,
                **totals_of_dataset, "rejects_by_stage": rejected,
                "images": totals.images, "seconds": totals.seconds, "stage_seconds": worked,
            }
        )  # fmt: skip
        return 0
    if summary is not None:
        _print_summary(summary, counts, size, rejected, worked, totals)
    if counts is None:
        result = f"{done} of {counted(card.units, 'unit')} done; other processes have the remaining {card.units - done}"
    else:
        rejects = f"{counted(counts.rejects, 'reject')} (see {where}/rejects.tsv)" if counts.rejects else "no rejects"
        result = f"{counted(counts.samples, 'sample')}, {rejects}, {size_text(size)}"
    if totals.images:
        rate = totals.images / max(totals.seconds, 1e-9)
        result += f"; {counted(totals.images, 'image')} in {duration_text(totals.seconds)}, {rate:.1f} images/s"
    print(escaped(f"{named if counts else where}: {result}"))
    return 0


def _print_summary(
    stream: TextIO,
    counts: SampleCounts | None,
    size: int,
    rejected: Mapping[str, int],
    worked: Mapping[str, float],
    totals: Totals,
) -> None:
    """Prints what the last line has no room for: rejects by stage, bytes a sample, and where the time went."""
    rows = []
    if rejected:
        rows.append(("rejects", ", ".join(f"{stage} {count}" for stage, count in rejected.items())))
    if counts is not None and counts.samples:
        rows.append(("a sample", size_text(round(size / counts.samples))))
    if worked and totals.images:
        shares = sorted(worked.items(), key=lambda entry: -entry[1])
        text = "; ".join(f"{stage} {seconds:.1f} s" for stage, seconds in shares)
        rows.append(("time", f"{text} (stages overlap)"))
    with contextlib.suppress(OSError):  # a closed stream must not end the command
        for name, value in rows:
            print(escaped(f"{name}: {value}"), file=stream)


def dry_run_dict(named: Path | str, plan: DryRun) -> dict[str, object]:
    """Returns the facts of a run that was not done, for `print_json`."""
    return {
        "dataset": str(named),
        "dry_run": True,
        **asdict(plan.counts),
        "own_units": plan.own_units,
        "own_samples": plan.own_samples,
        "bytes": plan.bytes,
        "seconds": plan.seconds,
        "tried": None if plan.trial is None else asdict(plan.trial) | {"rate": plan.trial.rate},
        "changes": None if plan.changes is None else str(plan.changes),
    }


def dry_run_rows(card: UnitCard, unit_size: int, plan: DryRun) -> list[tuple[str, str]]:
    """Returns rows for `print_rows` about a run that was not done.

    Args:
        card: The card of the run.
        unit_size: The largest number of samples in a unit.
        plan: What the run would do.
    """
    counts, trial = plan.counts, plan.trial
    done = counts.units - counts.missing_units
    there = f"{done} there" + (f", the first missing is {counts.first_missing}" if counts.missing_units else "")
    to_do = "no unit"
    if counts.missing_units:
        to_do = f"{counted(counts.missing_units, 'unit')}, {counted(counts.missing_samples, 'image')}"
    if plan.own_units != counts.missing_units:
        own = f"{counted(plan.own_units, 'unit')}, {counted(plan.own_samples, 'image')}"
        to_do += f"; of this process: {own}"
    rows = [
        ("dry run", "nothing is written"),
        ("images", f"{counts.samples} in the source ({card.source.kind})"),
        *([("update", str(plan.changes))] if plan.changes is not None else []),
        ("units", f"{counts.units}, each of up to {counted(unit_size, 'sample')}; {there}"),
        ("to do", to_do),
        ("bytes", "unknown: nothing is left to try" if plan.bytes is None else f"about {size_text(plan.bytes)}"),
    ]
    if trial is not None:
        first = f", the first: {trial.first_reject}" if trial.first_reject else ""
        rejects = f"{counted(trial.rejects, 'reject')}{first}" if trial.rejects else "no rejects"
        extra = f", with {counted(plan.extra_samples, 'image')} to calibrate on" if plan.extra_samples else ""
        rows += [
            ("tried", f"{counted(trial.samples, 'image')}, {rejects}, {trial.rate:.1f} images/s"),
            ("time", f"about {duration_text(plan.seconds)}{extra}"),
        ]
    return rows


def check_source(path: str) -> None:
    """Raises UsageError if a source does not exist."""
    from latentq.sources import exists

    if not exists(path):
        raise UsageError(f"{path}: no such file or folder")


def local_path(path: str, advice: str = "download it first") -> Path:
    """Returns a path on this machine.

    Args:
        path: The path, as the user named it.
        advice: What to do if it is a URL.

    Raises:
        UsageError: It is a URL.
    """
    from latentq.store.cache import is_remote

    if is_remote(path):
        raise UsageError(f"{path}: this command works on files of this machine, not at a URL: {advice}")
    return Path(path)


def check_output(path: str) -> Path:
    """Returns the path of a file to write. Checked before long work, whose result would be lost.

    Raises:
        UsageError: It is a URL; its folder is missing, or it is a folder, device or FIFO, which a rename would replace.
    """
    output = local_path(path, "name a file of this machine")
    if not output.parent.is_dir():
        raise UsageError(f"-o {path}: there is no folder {output.parent}")
    if output.is_dir():
        raise UsageError(f"-o {path} is a folder: name a file in it")
    if output.exists() and not output.is_file():
        raise UsageError(f"-o {path} is not a regular file")
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"-o {path}: no permission to write in {output.parent}")
    return output


def dataset_folder(path: str) -> Path:
    """Returns the folder of a dataset on this machine. Raises UsageError if there is none."""
    folder = local_path(path)
    if folder.is_dir():
        return folder
    from latentq.converting.tokens_tsv import dataset_of
    from latentq.format.card import CARD
    from latentq.format.files import INDEX

    problem = f"{path} is a file, not a dataset's folder" if folder.is_file() else f"{path}: no such folder"
    dataset = folder.parent if folder.is_file() and folder.name in (CARD, INDEX) else dataset_of(folder)
    raise UsageError(f"{problem}; its dataset is {dataset}" if dataset.is_dir() else problem)


def no_dataset(folder: Path) -> LatentqError:
    """Returns the error that a folder holds neither a dataset nor shards."""
    from latentq.format.card import CARD
    from latentq.format.files import INDEX

    return LatentqError(
        f"{folder} is neither a dataset nor a folder of MDS shards: it has no {CARD} and no {INDEX} (latentq "
        "convert makes a dataset of other tools' latents)"
    )


def print_rows(rows: Sequence[tuple[str, str]]) -> None:
    """Prints names and values in two aligned columns, control characters escaped."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(escaped(f"{name:<{width}}  {value}"))


def disk_bytes(path: Path, progress: TextIO | None = None) -> int:
    """Returns the size of a file, or of all files below a folder, in bytes.

    Args:
        path: The file or folder.
        progress: Stream to print to if it takes long, as for a dataset of many units; None prints nothing.
    """
    from latentq.store.local import bytes_below
    from latentq.system.progress import BriefProgress

    if path.is_file():
        return path.stat().st_size
    with BriefProgress(None, "add up", progress, noun="item") as bar:
        return bytes_below(path, bar)
