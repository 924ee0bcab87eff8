"""Runs stages: within a budget of time, each on its own, so that one that fails, hangs or dies costs no other."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.results import Results, markdown

PATIENCE = 3  # a stage hangs if it takes this many times its seconds; a rehearsal may run on a busy machine
DRY_PATIENCE = 20
GRACE = 20.0  # seconds that a process of its own has to end by itself after that
INTERRUPTED = 130  # exit code


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Attributes:
        name: Its name, for `--stage`.
        seconds: The seconds that it is expected to take.
        must: True if it comes before the stages that may be skipped.
        work: Does it.
        apart: True if it may break the process (illegal access, out of memory, debug modes), and so gets its own. In a
            rehearsal nothing of that can happen, and a process that imports torch takes seconds.
    """

    name: str
    seconds: float
    must: bool
    work: Callable[[Run], None]
    apart: bool = False


class HangError(BaseException):
    """A stage took too long. Not an `Exception`, so that no part of a stage takes it for its own failure."""


class Run:
    """The stages' view of a run.

    Attributes:
        results: What was found so far.
        stage: The name of the stage that runs.
        dry: True for a rehearsal in miniature, on the CPU.
        device: `cuda` or `cpu`.
        folder: An empty folder of this stage.
    """

    def __init__(self, results: Results, stage: str, folder: Path, *, dry: bool) -> None:
        self.results = results
        self.stage = stage
        self.dry = dry
        self.device = "cpu" if dry else "cuda"
        self.folder = folder

    def size(self, full: int, least: int = 1) -> int:
        """Returns a size: a hundredth of it in a rehearsal, but at least `least`."""
        return max(full // 100, least) if self.dry else full

    def patience(self, seconds: float) -> float:
        """Returns the seconds after which something that should take `seconds` hangs."""
        return patience(seconds, dry=self.dry)

    def check(
        self, name: str, ok: object, got: object, wanted: object, note: str = "", *, card_only: bool = False
    ) -> None:
        """Records a check.

        Args:
            name: What is checked.
            ok: True if it holds.
            got: What was found.
            wanted: What should have been found.
            note: What helps to understand a failure.
            card_only: The check means nothing without a card, so a rehearsal does not judge it.
        """
        judged = None if card_only and self.dry else bool(ok)
        self.results.add("checks", stage=self.stage, name=name, ok=judged, got=got, wanted=wanted, note=note)

    def not_run(self, name: str, reason: str) -> None:
        """Records a check or measurement that is impossible here."""
        self.results.add("checks", stage=self.stage, name=name, ok=None, got="not run", wanted="", note=reason)

    @contextlib.contextmanager
    def attempt(self, name: str, *, passes: bool = False) -> Iterator[None]:
        """Runs a part of a stage. An exception is a failed check of that name, and the stage goes on.

        Args:
            name: The name of the check.
            passes: Record a passed check if there is no exception.
        """
        try:
            yield
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            note = f"at {Path(where.filename).name}:{where.lineno}"
            self.check(name, False, f"{type(error).__name__}: {error}"[:300], "no exception", note)
        else:
            if passes:
                self.check(name, True, "no exception", "no exception")

    def number(self, name: str, value: float, unit: str, spread: Sequence[float] = ()) -> None:
        """Records a number, with the values that it is the median of."""
        low, high = (min(spread), max(spread)) if spread else (None, None)
        self.results.add(
            "numbers", stage=self.stage, name=name, value=value, unit=unit, min=low, max=high, n=len(spread) or 1
        )

    def earlier(self, stage: str, name: str) -> float | None:
        """Returns a number of an earlier stage, or None if that stage did not run."""
        return self.results.value(stage, name)


def patience(seconds: float, *, dry: bool) -> float:
    """Returns the seconds after which something that should take `seconds` hangs."""
    return seconds * (DRY_PATIENCE if dry else PATIENCE)


def main(
    stages: Sequence[Stage], arguments: Sequence[str] | None = None, *, ready: Callable[[bool], str] | None = None
) -> int:
    """Runs the stages that the command line asks for.

    Args:
        stages: All stages, in the order of the run.
        arguments: The command line; by default the process's.
        ready: Says why the stages cannot run, given `--dry`; empty if they can.

    Returns:
        The exit code: 0 if the script ran through, whatever the checks say; 2 if it cannot run.
    """
    options = _options(stages, arguments)
    reason = ready(options.dry) if ready is not None else ""
    if reason:
        print(reason, file=sys.stderr)
        return 2
    results = Results(options.json)
    chosen = [stage for stage in stages if options.stage in (None, stage.name)]
    if options.stage is None:
        results.set_env(date=f"{dt.datetime.now():%Y-%m-%d %H:%M}", dry=options.dry, budget=options.budget)
    try:
        run_stages(chosen, results, budget=options.budget, dry=options.dry, alone=options.stage is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        text = markdown(results.data)
        options.json.with_suffix(".md").write_text(text)
        if options.stage is None or not options.quiet:
            print(text)
    return 0


def run_stages(stages: Sequence[Stage], results: Results, *, budget: float, dry: bool, alone: bool = False) -> None:
    """Runs stages in order, those that must run first, and skips what the budget's rest is too short for.

    Args:
        stages: The stages.
        results: Filled in.
        budget: Seconds for all of them.
        dry: Rehearse on the CPU.
        alone: This process is a stage's own.
    """
    begun = time.monotonic()
    for stage in sorted(stages, key=lambda stage: not stage.must):
        left = budget - (time.monotonic() - begun)
        if stage.seconds > left:
            results.skip(stage.name, f"skipped: it takes {stage.seconds:g} s, and {left:.0f} s of the budget are left")
            continue
        print(f"{stage.name} ...", file=sys.stderr, flush=True)
        results.begin(stage.name)
        start = time.monotonic()
        try:
            apart = stage.apart and not alone and not dry
            error = _run_apart(stage, results) if apart else _run(stage, results, dry=dry)
        except KeyboardInterrupt:
            results.end(time.monotonic() - start, "KeyboardInterrupt")
            raise
        results.end(time.monotonic() - start, error)


def _run(stage: Stage, results: Results, *, dry: bool) -> str | None:
    """Runs a stage in this process; returns its error."""
    with tempfile.TemporaryDirectory(prefix=f"gpu-{stage.name}-", ignore_cleanup_errors=True) as folder:
        try:
            with _watchdog(patience(stage.seconds, dry=dry)):
                stage.work(Run(results, stage.name, Path(folder), dry=dry))
        except KeyboardInterrupt:
            raise
        except BaseException:
            return traceback.format_exc(limit=-12)
    return None


@contextlib.contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    """After a number of seconds, prints where every thread is, and raises `HangError` as soon as Python runs again."""

    def alarm(*_: object) -> None:
        raise HangError(f"it hangs: more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, alarm)
    faulthandler.dump_traceback_later(seconds, exit=False)
    # Later than the dump, which shows the place. Again and again, in case the exception is swallowed.
    signal.setitimer(signal.ITIMER_REAL, seconds + 0.5, 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


def _run_apart(stage: Stage, results: Results) -> str | None:
    """Runs a stage in a process of its own, takes over what it found, and returns its error."""
    limit = patience(stage.seconds, dry=False) + GRACE
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "stage.json", Path(folder) / "log"
        command = [sys.executable, sys.argv[0], "--stage", stage.name, "--json", str(file), "--quiet"]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with contextlib.suppress(ProcessLookupError):  # its own children as well
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = json.loads(file.read_text()) if file.exists() else {}
        words = log.read_text(errors="replace").strip()[-3000:]
    for kind in ("checks", "numbers"):
        results.data[kind] += found.get(kind, [])
    results.data["env"].update(found.get("env", {}))
    for ended in found.get("stages", []):
        if code == 0:
            error: str | None = ended["error"]
            return error if error is None or "it hangs" not in error else f"{words}\n{error}"
    end = f"killed after {limit:g} s" if code is None else _exit_text(code)
    return f"{words}\nits process was {end}" if words else f"its process was {end}"


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _options(stages: Sequence[Stage], arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(prog="gpu.py", description="Checks and measures latentq on one CUDA card.")
    parser.add_argument("--dry", action="store_true", help="rehearse every stage on the CPU, in miniature")
    parser.add_argument("--budget", type=float, default=560.0, metavar="S", help="seconds for all stages (%(default)g)")
    parser.add_argument(
        "--json", type=Path, default=Path("target/gpu/result.json"), metavar="FILE",
        help="file to write results to; the tables go next to it, as .md (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--stage", choices=[stage.name for stage in stages], metavar="NAME", help="run one stage only")
    parser.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)  # of a stage in a process of its own
    return parser.parse_args(arguments)
