"""The race: latentq against other tools, each in an environment of its own, in turns on the same data.

    python benches/rivals.py [--rounds N] [--only WORD ...] [--images FOLDER] [--folder FOLDER]
    python benches/rivals.py --write-readme     # put the table of the last run into README.md

Environments are made by uv in `target/rivals`, about 5 GB; what cannot be installed is said. Every contender is a
process that is told when to start (`race/worker.py`) and answers with its seconds. A round has one turn of each. Races:

- `warm`: whole shuffled epochs of batches of 256 latents (4, 32, 32) from codes to float32 tensors, with labels. Each
  contender's values are checked first, then four epochs warm it up.
- `cold`: the same, from opening on, after the files have left the page cache (`posix_fadvise`).
- `first batch`: opening, and one shuffled batch.
- `write`: writing the same codes, so that the files are on the disk (fsync).
- `pixels`: JPEGs to crops of 256 x 256 pixels, one thread, with whether the pixels are Pillow's.

The result is `target/rivals/rivals.json`, with the date and versions of each race, which `--only` keeps. If the
processor has AVX-512, latentq runs a second time with AVX2 only.
"""

import argparse
import json
import os
import platform
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from race import writers

import latentq
from latentq.benchmark import pixels
from latentq.benchmark.loading import write_mds, write_numpy
from latentq.benchmark.machine import processor
from latentq.benchmark.turns import CORES, RATES, in_units, speed_ratio

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "target" / "rivals"
RESULT = TARGET / "rivals.json"
README, START, END = ROOT / "README.md", "<!-- rivals -->", "<!-- /rivals -->"
SAMPLES = 25_600
ANSWER = 240  # seconds in which a worker must have answered
IMAGES = 32
FILLED = 1 << 30  # bytes, more than any contender reads or writes
# A package is listed before those that it is measured with.
ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "ours": (),  # the environment that runs this script
    "mosaicml-streaming": ("mosaicml-streaming>=0.13", "torch"),  # else uv takes 0.10 with the newest NumPy
    "streaming-community": ("streaming-community", "torch"),
    "neprr-streaming": ("neprr-streaming[writer]", "torch"),
    "zephon": ("zephon[streaming]", "torch"),
    "litdata": ("litdata", "torch"),
    "webdataset": ("webdataset", "torch"),
    "datasets": ("datasets", "torch"),
    "turboloader": ("turboloader", "torch"),
    "SPDL": ("spdl", "torch"),  # its decoder loads FFmpeg's shared libraries, which Debian's `ffmpeg` has
    "Pillow": ("pillow",),
    "pillow-rs": ("pillow-rs",),
    "torchvision": ("torchvision",),
    "torchcodec": ("torchcodec", "torchvision"),
    "OpenCV": ("opencv-python-headless",),
}


@dataclass(frozen=True)
class Entry:
    """A contender of a race: its name in the worker's table, and its environment."""

    name: str
    environment: str = "ours"
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        return self.name.startswith("latentq")


def ours() -> list[Entry]:
    """latentq with the processor's best instruction set and, if that is more than AVX2, with AVX2."""
    capped = [Entry("latentq (AVX2)", variables={"LATENTQ_ISA": "avx2"})] if latentq.isa() == "avx512" else []
    return [Entry("latentq"), *capped]


LOADERS = (
    Entry("NumPy memmap"),
    Entry("mosaicml-streaming, 0 workers", "mosaicml-streaming"),
    Entry("mosaicml-streaming, 2 workers", "mosaicml-streaming"),
    Entry("streaming-community, 0 workers", "streaming-community"),
    Entry("streaming-community, 2 workers", "streaming-community"),
    Entry("neprr-streaming, native batches", "neprr-streaming"),
    Entry("zephon", "zephon"),
    Entry("litdata, 2 workers", "litdata"),
    Entry("webdataset, 2 workers", "webdataset"),
    Entry("Hugging Face datasets", "datasets"),
    Entry("turboloader", "turboloader"),
    Entry("SPDL, 2 threads", "SPDL"),
)
BOUNDS = (Entry("plain reads, 1 thread"), Entry("plain reads, 8 threads"))


@dataclass(frozen=True)
class Race:
    """Work of the workers, and the unit of what one turn handles."""

    kind: str
    entries: tuple[Entry, ...]
    items: int
    unit: str
    rounds: int
    cold: bool = False
    reopen: bool = False


def races(samples: int, images: int) -> dict[str, Race]:
    loaders = (*ours(), *LOADERS)
    written = ("mosaicml-streaming", "streaming-community", "neprr-streaming", "webdataset", "litdata")
    writing = (Entry("latentq"), Entry("bare write"), *(Entry(name, name) for name in written))
    writing = (*writing, Entry("Hugging Face datasets", "datasets"))
    decoders = ("Pillow", "pillow-rs", "torchvision", "torchcodec", "SPDL", "turboloader")
    pictures = (*ours(), *(Entry(name, name) for name in decoders), Entry("OpenCV (area)", "OpenCV"))
    return {
        "warm": Race("load", (*loaders, *BOUNDS), samples, "samples", 5),
        "cold": Race("load", (*loaders, *BOUNDS), samples, "samples", 3, cold=True, reopen=True),
        "first batch": Race("first batch", loaders, 1, "openings", 5, reopen=True),
        "write": Race("write", writing, samples, "samples", 5, reopen=True),
        "pixels": Race("pixels", pictures, images, "images", 7),
    }


class RivalError(Exception):
    """A contender cannot take part; the message says why."""


class Worker:
    """A contender's process."""

    def __init__(self, entry: Entry, kind: str, python: str, folder: Path, log: Path) -> None:
        command = [python, str(Path(__file__).with_name("race") / "worker.py"), kind, entry.name, str(folder)]
        environment = {**os.environ, **entry.variables, "PYTHONWARNINGS": "ignore"}
        if entry.environment != "ours":
            environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("a"), text=True, env=environment
        )

    def tell(self, command: str) -> dict[str, Any]:
        """Have the worker do one thing, and wait for its answer.

        Raises:
            RivalError: It could not.
        """
        try:
            self._process.stdin.write(f"{command}\n")
            self._process.stdin.flush()
        except OSError:
            raise RivalError(f"its process ended with code {self._process.wait()}") from None
        waiting = select.poll()
        waiting.register(self._process.stdout, select.POLLIN)
        if not waiting.poll(1000 * ANSWER):
            self._process.kill()
            raise RivalError(f"it did not answer within {ANSWER} s")
        line = self._process.stdout.readline()
        if not line:
            raise RivalError(f"its process ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RivalError(answer["error"])
        return answer

    def end(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def environment(name: str) -> tuple[str, dict[str, str]]:
    """Make an environment, unless it is there; its Python, and the versions of its packages.

    Raises:
        RivalError: A package cannot be installed.
    """
    packages = ENVIRONMENTS[name]
    if not packages:
        return sys.executable, {package: version(package) for package in ("numpy", "torch")}
    folder = TARGET / name
    python = str(folder / "bin" / "python")
    if not (folder / ".made").exists():
        print(f"installing {', '.join(packages)}", flush=True)
        subprocess.run(["uv", "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        install = ["uv", "pip", "install", "--quiet", "--python", python, "numpy", *packages]
        run = subprocess.run(install, capture_output=True, text=True)
        if run.returncode:
            raise RivalError(f"not installed: {' '.join(run.stderr.split())[:200]}")
        (folder / ".made").touch()
    names = [re.match(r"[\w.-]+", package)[0] for package in packages]
    script = (
        "import sys, json, importlib.metadata as m; print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    found = subprocess.run([python, "-c", script, "numpy", *names], check=True, capture_output=True, text=True).stdout
    return python, json.loads(found)


def write_data(folder: Path, samples: int, images: Path | None) -> int:
    """Write the codes in every layout, and JPEGs with Pillow's crops of them; the number of JPEGs."""
    write_numpy(folder, samples)
    write_mds(folder, "mds", "ndarray:uint8:4,32,32")
    codes, labels = np.load(folder / "codes.npy"), np.load(folder / "labels.npy")
    writers.tars(folder / "tar", codes, labels)
    (folder / "jpegs").mkdir()
    files = pixels.files(images, IMAGES)
    for number, data in enumerate(files.encoded):
        (folder / "jpegs" / f"{number:03}.jpg").write_bytes(data)
    np.save(folder / "crops.npy", np.stack([pixels.pillow_load(data) for data in files.encoded]))
    return len(files.encoded)


def write_layout(folder: Path, environment_name: str, pythons: dict[str, str]) -> None:
    """Have a rival write the layout that only it can write."""
    layouts = {"litdata": ("litdata", "litdata"), "datasets": ("arrow", "hf_datasets")}
    if environment_name not in layouts:
        return
    name, function = layouts[environment_name]
    script = (
        "import sys, numpy as np; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from race import writers\n"
        "folder = Path(sys.argv[2])\n"
        f"writers.{function}(folder / '{name}', np.load(folder / 'codes.npy'), np.load(folder / 'labels.npy'))"
    )
    command = [pythons[environment_name], "-c", script, str(Path(__file__).parent), str(folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise RivalError(f"its layout could not be written: {run.stderr.strip().splitlines()[-1]}")


def evict(folder: Path) -> None:
    """Drop all files of a folder from the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)  # only clean pages can be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def fill_memory() -> None:
    """Write to free memory: a virtual machine's host takes it back, and who needs it next would pay for that."""
    np.full(FILLED, 1, np.uint8)


def run(
    race: Race, folder: Path, pythons: dict[str, str], failed: dict[str, str], rounds: int | None
) -> dict[str, Any]:
    """One race; durations and notes by contender."""
    workers: dict[str, Worker] = {}
    notes: dict[str, str] = {}
    durations: dict[str, list[float]] = {}

    def attempt(name: str, *commands: str) -> dict[str, Any]:
        try:
            return [workers[name].tell(command) for command in commands][-1]
        except RivalError as error:
            notes[name] = str(error)
            workers.pop(name).end()
            durations.pop(name, None)
            return {}

    for entry in race.entries:
        if entry.environment not in pythons:
            notes[entry.name] = failed[entry.environment]
            continue
        workers[entry.name] = Worker(entry, race.kind, pythons[entry.environment], folder, TARGET / "workers.log")
        answer = attempt(entry.name, "prepare")
        if race.reopen and entry.name in workers:
            attempt(entry.name, "close")
        if entry.name in workers:
            durations[entry.name] = []
            notes.update({entry.name: answer["note"]} if "note" in answer else {})
        print(f"  {entry.name}: {notes.get(entry.name, 'ready')}", flush=True)
    for number in range(1 + (rounds or race.rounds)):
        for name in list(workers):
            if race.cold:
                evict(folder)
            if race.reopen:
                fill_memory()
            if (answer := attempt(name, "run")) and number:  # the first round is not counted
                durations[name].append(answer["seconds"])
            if race.reopen and name in workers:  # else its mappings would keep files in memory
                attempt(name, "close")
    for worker in workers.values():
        worker.end()
    return {"unit": race.unit, "items": race.items, "seconds": durations, "notes": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="timed rounds (default: each race's own)")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"latents of 4 KiB (default: {SAMPLES:,})")
    parser.add_argument("--only", nargs="+", metavar="RACE", help="only these races; the others stay as they were")
    parser.add_argument("--images", type=Path, help="folder of JPEGs (default: pictures made of noise)")
    parser.add_argument("--folder", type=Path, help="where the data is written (default: the temporary folder)")
    parser.add_argument("--write-readme", action="store_true", help="only put the table of the last run into README.md")
    options = parser.parse_args()
    if options.write_readme:
        write_readme(json.loads(RESULT.read_text()))
        return
    TARGET.mkdir(parents=True, exist_ok=True)
    pythons, versions, failed = {}, {}, {}
    for name in ENVIRONMENTS:
        try:
            pythons[name], versions[name] = environment(name)
        except RivalError as error:
            failed[name] = str(error)
            print(f"{name}: {error}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="latentq-rivals-", dir=options.folder))
    try:
        images = write_data(folder, options.samples, options.images)
        for name in list(pythons):
            try:
                write_layout(folder, name, pythons)
            except RivalError as error:
                failed[name] = str(error)
                del pythons[name]
        facts = {
            "date": f"{date.today()}",
            "processor": processor(),
            "isa": latentq.isa(),
            "cores": CORES,
            "load": os.getloadavg()[0],
            "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
            "latentq": latentq.__version__,
            "images": "photographs" if options.images else "noise",
            "versions": versions,
        }
        result = json.loads(RESULT.read_text()) if options.only and RESULT.exists() else {"races": {}}
        for name, race in races(options.samples, images).items():
            if options.only is None or name in options.only:
                print(name, flush=True)
                result["races"][name] = {"run": facts, **run(race, folder, pythons, failed, options.rounds)}
                RESULT.write_text(json.dumps(result, indent=1))
    finally:
        shutil.rmtree(folder)
    print(table(result))


HEADS = {"warm": "warm", "cold": "cold", "first batch": "open", "write": "write", "pixels": "JPEG to crop"}


def table(result: dict[str, Any]) -> str:
    """The races side by side: rates, and in parentheses how many times as fast latentq is."""
    names = list(
        dict.fromkeys(name for race in result["races"].values() for name in (*race["seconds"], *race["notes"]))
    )
    shown = [name for name in HEADS if name in result["races"]]
    lines = [["", *(HEADS[name] for name in shown)], ["---", *("---:" for _ in shown)]]
    for name in names:
        cells = [cell(result["races"][race], name) for race in shown]
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(race: dict[str, Any], name: str) -> str:
    """The rate of one contender, and how many times as fast latentq is."""
    seconds = race["seconds"].get(name)
    if not seconds:
        return "failed" if name in race["notes"] else ""
    median = statistics.median(seconds)
    text = (
        in_units(median, ((1.0, "s"), (1e-3, "ms")))
        if race["items"] == 1
        else f"{in_units(race['items'] / median, RATES)}/s"
    )
    ratio = speed_ratio(seconds, race["seconds"]["latentq"])
    exact = " \\*" if race["notes"].get(name) == "pixels are Pillow's" else ""
    return f"{text}{exact}" if name == "latentq" else f"{text}{exact} ({ratio:.1f} x)"


def facts_of_runs(result: dict[str, Any]) -> list[str]:
    """When, where and with which versions the races were run: one text, or one for each run if there were several."""
    races: dict[str, list[str]] = {}
    for name, head in HEADS.items():
        if name in result["races"]:
            races.setdefault(run_text(result["races"][name]["run"]), []).append(head)
    return list(races) if len(races) == 1 else [f"{', '.join(heads)}: {text}" for text, heads in races.items()]


def run_text(run: dict[str, Any]) -> str:
    """When, where and with which versions a race was run."""
    versions: dict[str, set[str]] = {}
    for found in run["versions"].values():
        for name, number in found.items():
            versions.setdefault(name, set()).add(number)
    told = ", ".join(f"{name} {' and '.join(sorted(versions[name]))}" for name in sorted(versions, key=str.lower))
    return (
        f"{run['date']}, {run['processor']} ({run['isa']}), {run['cores']} cores, load {run['load']:.1f} at the start, "
        f"{run['system']}; {told}."
    )


def write_readme(result: dict[str, Any]) -> None:
    """Replace what is between the comments in README.md."""
    missing = {
        name: note
        for race in result["races"].values()
        for name, note in race["notes"].items()
        if name not in race["seconds"]
    }
    lines = [
        table(result),
        "",
        *facts_of_runs(result),
        "\\* the pixels are Pillow's to the bit.",
        *(f"{name} failed: {note}." for name, note in missing.items()),
    ]
    text = README.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    if not after:
        raise SystemExit(f"README.md needs the comments {START} and {END}")
    README.write_text(f"{before}{START}\n" + "\n".join(lines) + f"\n{END}{after}")


if __name__ == "__main__":
    main()
