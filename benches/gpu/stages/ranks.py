"""Processes and devices: which device a rank takes, which contexts a process opens, and commands with `--device`."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gpu import standins
from gpu.harness import Run
from gpu.networks import ChunkedPosterior, kl, tiny
from gpu.pictures import Repeated, encode, paint, recipe
from latentq.run.options import run_settings
from latentq.system.processors import processors

LIMIT = 15.0  # seconds of a command


def work(run: Run) -> None:
    """Runs commands and checks this fresh process."""
    pictures = run.folder / "pictures"
    files = [paint(pictures / f"{i:02}", i, (80, 70)) for i in range(8)]
    started = _start_command(run, pictures)
    with run.attempt("contexts"):
        _contexts(run, files)
    with run.attempt("threads of one rank of 8"):
        _threads(run)
    with run.attempt("a network on the device, given without device="):
        out = run.folder / "object"
        encode(run, Repeated(files, 8), out, tiny(run), recipe(64), device=None)
        run.check("a network on the device, given without device=", (out / "latents.toml").exists(), "runs", "runs")
    with run.attempt("LOCAL_RANK=1 on one card"):
        _finish(run, "LOCAL_RANK=1 on one card", started)
    with run.attempt("decode on the device"):
        _decode(run, pictures)  # of what the command above has made, if it can be loaded again
    with run.attempt("two cards"):
        _two_cards(run)


def _start_command(run: Run, pictures: Path) -> Any:
    """Starts `latentq encode` as the second rank of a machine with one card, without saying which device."""
    arguments = ["encode", pictures, run.folder / "by command", "--size", "64", *_on(run)]
    environment = standins.environment() | {"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "" if run.dry else "0"}
    return _start(standins.command("latentq", *arguments), environment)


def _on(run: Run) -> list[str]:
    return ["--device", "cpu"] if run.dry else []


def _start(command: Sequence[str], environment: dict[str, str]) -> Any:
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _finish(run: Run, name: str, process: Any) -> None:
    """Waits for a command and checks that it succeeded."""
    try:
        words, _ = process.communicate(timeout=run.patience(LIMIT))
    finally:
        process.kill()
    last = (words.strip().splitlines() or [""])[-1]
    run.check(name, process.returncode == 0, f"exit code {process.returncode}: {last}"[:200], "exit code 0")


def _contexts(run: Run, files: list[Path]) -> None:
    """Encodes in this process and checks that only its own device has a context, and that no thread is left."""
    before = threading.active_count()
    encode(run, Repeated(files, 8), run.folder / "contexts", tiny(run), recipe(64), batch_size=4)
    run.check("threads are ended", threading.active_count() == before, threading.active_count(), before)
    if run.dry:
        run.not_run("contexts", "there is no card")
        return
    last = torch.cuda.device_count() - 1
    if last:  # the devices before the last one must stay without a context, apart from this process's first
        encode(
            run,
            Repeated(files, 8),
            run.folder / "last",
            kl((32, 64), 1, f"cuda:{last}"),
            recipe(64),
            device=f"cuda:{last}",
        )
    has_context: Any = getattr(torch._C, "_cuda_hasPrimaryContext", None)
    if has_context is None:
        run.not_run("contexts", "this torch does not tell them")
        return
    found = [number for number in range(last + 1) if has_context(number)]
    run.check("contexts", found == sorted({0, last}), found, sorted({0, last}))


def _threads(run: Run) -> None:
    """Checks that 8 processes of one machine share its processors."""
    before = os.environ.get("LOCAL_WORLD_SIZE")
    os.environ["LOCAL_WORLD_SIZE"] = "8"
    try:
        threads = run_settings(progress=None).threads
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]
        if before is not None:
            os.environ["LOCAL_WORLD_SIZE"] = before
    wanted = max(1, processors() // 8)
    run.check("threads of one rank of 8", threads == wanted, threads, wanted)


def _decode(run: Run, pictures: Path) -> None:
    """Encodes and decodes by commands, with a network that has weights if diffusers can save one."""
    network: Any = kl((32, 64), 1, "cpu")
    chosen: list[Any] = []
    if not isinstance(network, ChunkedPosterior):
        network.module.save_pretrained(run.folder / "network")
        chosen = ["--autoencoder", run.folder / "network"]
    if not standins.has("PIL"):
        run.not_run("decode on the device", "Pillow is missing")
        return
    out = run.folder / "by command"
    device = ["--device", run.device]
    if chosen:
        out = run.folder / "to decode"
        command = standins.command("latentq", "encode", pictures, out, "--size", "64", *chosen, *device)
        _finish(run, "encode, network with weights", _start(command, standins.environment()))
    sheet = run.folder / "sheet.png"
    shown = standins.command("latentq", "decode", out, "--source", pictures, *chosen, *device, "-o", sheet)
    _finish(run, "decode on the device", _start(shown, standins.environment()))


def _two_cards(run: Run) -> None:
    """Checks that each of two ranks uses its own card only."""
    if run.dry or torch.cuda.device_count() < 2:
        run.not_run("each rank on its own card", f"needs two cards, and there are {0 if run.dry else 1}")
        return
    body = (
        "import os, torch, latentq; from pathlib import Path; rank = int(os.environ['LOCAL_RANK']); "
        f"latentq.encode({str(run.folder / 'pictures')!r}, {str(run.folder / 'two')!r}, size=64, progress=None); "
        "print([i for i in range(2) if torch._C._cuda_hasPrimaryContext(i)] == [rank])"
    )
    import sys

    for rank in range(2):
        environment = standins.environment() | {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2"}
        process = _start([sys.executable, "-c", f"import standins; {body}"], environment)
        words, _ = process.communicate(timeout=run.patience(LIMIT))
        run.check(f"rank {rank} on its own card", words.strip().endswith("True"), words.strip()[-200:], "True")
