"""Time and memory of everything about a dataset that grows with its number of samples, up to 10^9.

    python benches/processes/scale.py [--folder DIR] [--rows 10000000] [--files 1000000] [--units 244141]

Prints a table. A table of 10^7 rows, and folders and archives of 10^6 empty files, are listed as `latentq encode` lists
them, a rank of 64 starts on the list of the table, and an update is planned. The dataset of 10^9 samples is 244,141
units of 4,096: its list has true headers and holes for most of its lines, and its units are links to one unit of random
latents. Finding the units that are done, finishing, opening and reading are the real thing.

Each step runs in a process of its own. Its memory is the peak above that of a process that only imports, without the
page cache, which has all files. The script takes about twelve minutes on two cores, and 3 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

UNIT = 4096
CLASSES = 1000
TABLE_FILES = 10_000
REFERENCE = 1_000_000  # rows that are only looked up
RANK, RANKS = 63, 64
BATCH = 256
NEW = 1000  # rows that an update finds new, and rows that it finds changed
KEPT: list[object] = []  # whose end is not timed


# The steps. Each yields once before the work that is timed, and returns the number of things that it handled.


def imports(_folder: Path) -> Iterator[int]:
    yield 0
    return 1


def imports_torch(_folder: Path) -> Iterator[int]:
    import torch

    yield 0
    return torch.get_num_threads()


def stat_rows(folder: Path) -> Iterator[int]:
    """A bound for tables: the call that asks for the size of a file."""
    names = [f"{folder}/{number:07}.jpg" for number in range(TABLE_FILES)]
    yield 0
    for number in range(REFERENCE):
        os.stat(names[number % TABLE_FILES])  # noqa: PTH116  (as the listing does)
    return REFERENCE


def find(folder: Path) -> Iterator[int]:
    """A bound for folders: find asks for the size of each file."""
    yield 0
    found = subprocess.run(["find", folder, "-type", "f", "-printf", "%s\n"], stdout=subprocess.PIPE, check=True)
    return found.stdout.count(b"\n")


def list_samples(source: Path) -> Iterator[int]:
    out = source.with_name(f"{source.name}.out")
    yield 0
    with list_source(open_source(source, exclude=out), out, UNIT, compare=True) as listed:
        listed.publish()
        return len(listed.samples)


def list_captioned(source: Path) -> Iterator[int]:
    """Lists a table with captions from a file of their own."""
    out, captions = source.with_name(f"{source.name}.out"), source.with_name("captions.jsonl")
    yield 0
    with list_source(open_source(source, exclude=out, captions=str(captions)), out, UNIT, compare=True) as listed:
        listed.publish()
        return len(listed.samples)


def plan_update(source: Path) -> Iterator[int]:
    """Lists a table again that has gained rows, compares the lists and writes the new one."""
    out = source.with_name(f"{source.name}.out")
    card = SimpleNamespace(source=source_facts("table", SampleList(out / LIST), UNIT))
    yield 0
    with UpdatePlan(open_source(source, exclude=out), out, card, UNIT) as plan:
        listed, _ = plan.listed()
        assert (plan.changes.added, plan.changes.changed) == (NEW, NEW)
        return len(listed.samples)


def start_rank(out: Path, source: Path) -> int:
    listed = list_source(open_source(source), out, UNIT, compare=False).samples
    source_facts("table", listed, UNIT)
    share = Share.for_process(
        out, open_source(source), listed, run_settings(rank=RANK, world_size=RANKS, progress=None)
    )
    first = share.pending(Progress(share.samples, "", None))[:1]
    deque((listed.samples(unit) for unit in first), maxlen=0)
    return len(share.units)


def start_rank_on_table(source: Path) -> Iterator[int]:
    yield 0
    return start_rank(source.with_name(f"{source.name}.out"), source)


def start_rank_on_dataset(folder: Path) -> Iterator[int]:
    source = folder.with_name("small.tsv")
    yield 0
    return start_rank(folder, source)


def find_done(folder: Path) -> Iterator[int]:
    card = Card.load(folder)
    yield 0
    return units_done(folder, card)


def finish_all(folder: Path) -> Iterator[int]:
    card = Card.load(folder)
    yield 0
    finish(folder, card)
    return card.units


def open_index(folder: Path) -> Iterator[int]:
    yield 0
    KEPT.append(reader := mds.Reader(folder))
    return len(reader) // UNIT


def open_dataset(folder: Path) -> Iterator[int]:
    import torch  # noqa: F401  (its import is not a part of opening)

    yield 0
    KEPT.append(dataset := latentq.LatentDataset(folder))
    return len(dataset) // UNIT


def first_batch(folder: Path) -> Iterator[int]:
    KEPT.append(dataset := latentq.LatentDataset(folder))
    yield 0
    batch = next(iter(dataset.loader(BATCH, shuffle=True)))
    assert len(batch["label"]) == BATCH
    return BATCH


def make_dataset(folder: Path, units: int) -> None:
    """Makes a dataset of `units` units, all but its finish."""
    pictures, small = folder.with_name("pictures"), folder.with_name("small")
    (pictures / "n00000000").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(pictures / "n00000000" / "0.png")
    encoded = latentq.encode(pictures, small, size=32, progress=None)
    quantizer = Quantizer.uniform(-4, 4, channels=4)
    card = replace(
        encoded,
        columns=encoded.columns | {"latent": "ndarray:uint8:4,32,32"},
        latents={"latent": LatentFacts((4, 32, 32), quantizer)},
        counts=None,
    )
    codes = np.random.default_rng(0).integers(0, 256, (UNIT, 4, 32, 32), np.uint8)
    samples = [
        Sample(f"n{n % CLASSES:08}/{n:09}.jpg", 100_000 + n, n % CLASSES, f"class {n % CLASSES}") for n in range(UNIT)
    ]
    sums = LatentSums(np.zeros(4, np.int64), quantizer.histogram(codes))
    facts = UnitFacts(card_hash(card.to_toml()), "0" * 64, latents={"latent": sums})
    columns = {
        "latent": codes,
        "key": [sample.key for sample in samples],
        "label": np.array([sample.label for sample in samples]),
        "label_text": [sample.label_text for sample in samples],
    }
    publish_unit(
        folder.with_name("unit"), card.columns, facts, Progress(UNIT, "", None), lambda unit: unit.write(columns, UNIT)
    )
    folder.mkdir()
    (folder / LIST).mkdir()
    make_list(folder / LIST, samples, units)
    listed = SampleList(folder / LIST)
    (folder / CARD).write_bytes(replace(card, source=source_facts("folder", listed, UNIT)).to_toml())
    for name in (unit.name for unit in listed.units()):
        (folder / name).symlink_to("../unit")


def make_list(folder: Path, samples: list[Sample], units: int) -> None:
    """Makes a list of `units` units of the same samples; only the first parts and the last have lines."""
    per_part = MAX_PART // UNIT
    (part,) = list_parts((samples, 0) for _ in range(per_part))
    header, columns, body = part.split(b"\n", 2)
    facts = json.loads(header.removeprefix(b"# "))
    for number, first in enumerate(range(0, units, per_part)):
        count = min(per_part, units - first)
        end = (first + count) * UNIT
        values = facts | {
            "first_unit": first, "first_sample": first * UNIT, "units": facts["units"][:count], "usable": end,
            "known": dict.fromkeys(facts["known"], end), "previous": "0" * 64 if first else "",
        }  # fmt: skip
        lines = len(body) // per_part * count
        with (folder / f"{number:05}.tsv").open("wb") as file:
            file.write(b"# " + json.dumps(values).encode() + b"\n" + columns + b"\n")
            if first <= RANK or count < per_part:
                file.write(body[:lines])
            else:
                file.truncate(file.tell() + lines)


def step(name: str, *arguments: str) -> None:
    """Runs one step. Prints the number of its things, wall and CPU seconds, and peak memory in bytes."""
    work = globals()[name](*map(Path, arguments))
    next(work)
    start, cpu = time.perf_counter(), cpu_seconds()
    try:
        next(work)
    except StopIteration as stop:
        print(json.dumps([stop.value, time.perf_counter() - start, cpu_seconds() - cpu, peak_bytes()]))


def cpu_seconds() -> float:
    times = os.times()
    return sum(times[:4])


def peak_bytes() -> int:
    """Peak memory of this process. (`ru_maxrss` also counts that of the parent, until the program began.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


# The table of results


def in_child(*arguments: object) -> list[float]:
    command = [sys.executable, __file__, "--step", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else []


def row(title: str, base: float, *arguments: object) -> None:
    count, seconds, cpu, peak = in_child(*arguments)
    each = f"{seconds / max(count, 1) * 1e6:,.2f} us"
    memory = f"{(peak - base) / 1e6:,.0f} MB"
    print(f"| {title} | {count:,} | {seconds:.2f} s | {cpu:.2f} s | {each} | {memory} |", flush=True)


def make_table(path: Path, rows: int) -> None:
    files = path.with_name("table-files")
    if not files.is_dir():
        files.mkdir()
        for number in range(TABLE_FILES):
            (files / f"{number:07}.jpg").touch()
    with path.open("w") as file:
        file.write("path\n")
        file.writelines(f"{files.name}/{number % TABLE_FILES:07}.jpg\n" for number in range(rows))


def make_labeled_table(path: Path, rows: int) -> None:
    files = path.with_name("table-files")
    with path.open("w") as file:
        file.write("path\tlabel\tcaption\n")
        file.writelines(
            f"{files.name}/{n % TABLE_FILES:07}.jpg\tn{n % CLASSES:08}\ta photograph of thing {n}\n"
            for n in range(rows)
        )


def change_labeled_table(path: Path) -> None:
    """Changes the captions of the first rows, and adds rows."""
    header, *rows = path.read_text().splitlines(keepends=True)
    changed = [row.replace("photograph", "picture") for row in rows[:NEW]]
    added = [row.replace(".jpg", ".png") for row in rows[:NEW]]
    path.write_text("".join([header, *changed, *rows[NEW:], *added]))


def make_captions(path: Path, rows: int) -> None:
    with path.open("w") as file:
        file.writelines(
            f'{{"key": "{number:09}", "caption": "a photograph of thing {number}"}}\n' for number in range(rows)
        )


def make_flat_folder(folder: Path, files: int) -> None:
    folder.mkdir()
    for number in range(files):
        (folder / f"{number:09}.jpg").touch()


def make_tar(path: Path, members: int) -> None:
    """Makes a tar of empty images, each with its label."""
    with path.open("wb") as file:
        for number in range(members // 2):
            image, label = tarfile.TarInfo(f"{number:09}.jpg"), tarfile.TarInfo(f"{number:09}.cls")
            label.size = 1
            file.write(image.tobuf() + label.tobuf() + b"7".ljust(512, b"\0"))
        file.write(bytes(1024))


def make_zip(path: Path, members: int) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(members):
            file.writestr(zipfile.ZipInfo(f"n{number % CLASSES:08}/{number:09}.jpg"), b"")


def make_files(folder: Path, files: int) -> None:
    per_class = -(-files // CLASSES)
    for first in range(0, files, per_class):
        subfolder = folder / f"n{first:08}"
        subfolder.mkdir(parents=True)
        for number in range(first, min(first + per_class, files)):
            (subfolder / f"{number:09}.jpg").touch()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="where files are made (default: the temporary folder)")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--units", type=int, default=244_141)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="latentq-scale-", dir=options.folder) as temporary:
        folder = Path(temporary)
        base = in_child("imports", folder)[3]
        print("| step | number | wall | CPU | each | memory |\n| --- | ---: | ---: | ---: | ---: | ---: |")
        make_table(folder / "small.tsv", options.rows // 10)
        make_table(folder / "table.tsv", options.rows)
        make_labeled_table(folder / "labeled.tsv", options.rows // 10)
        row("bound: os.stat, calls", base, "stat_rows", folder / "table-files")
        row("list a table, samples", base, "list_samples", folder / "small.tsv")
        row("list a table, samples", base, "list_samples", folder / "table.tsv")
        row("list a table with labels and captions, samples", base, "list_samples", folder / "labeled.tsv")
        row(
            f"start rank {RANK} of {RANKS} on the list of 10^7, its units",
            base,
            "start_rank_on_table",
            folder / "table.tsv",
        )
        change_labeled_table(folder / "labeled.tsv")
        row(
            f"plan an update of that table, {NEW} rows new and {NEW} changed, samples",
            base,
            "plan_update",
            folder / "labeled.tsv",
        )
        for name in ("small.tsv.out", "table.tsv.out", "table.tsv", "labeled.tsv.out", "labeled.tsv"):
            subprocess.run(["rm", "-r", folder / name], check=True)
        make_files(folder / "files", options.files)
        row("bound: find -printf %s, files", base, "find", folder / "files")
        row("list a folder, samples", base, "list_samples", folder / "files")
        subprocess.run(["rm", "-r", folder / "files", folder / "files.out"], check=True)
        make_flat_folder(folder / "flat", options.files)
        row("list a folder without subfolders, samples", base, "list_samples", folder / "flat")
        make_captions(folder / "captions.jsonl", options.files)
        subprocess.run(["rm", "-r", folder / "flat.out"], check=True)
        row("the same with a file of captions, samples", base, "list_captioned", folder / "flat")
        subprocess.run(["rm", "-r", folder / "flat", folder / "flat.out"], check=True)
        make_tar(folder / "one.tar", options.files)
        row("list one tar of that many members, half of them labels, samples", base, "list_samples", folder / "one.tar")
        make_zip(folder / "one.zip", options.files)
        row("list one zip, samples", base, "list_samples", folder / "one.zip")
        subprocess.run(["rm", "-r", *folder.glob("one.*")], check=True)
        dataset = folder / "dataset"
        in_child("make_dataset", dataset, options.units)
        row(f"start rank {RANK} of {RANKS} on the list of 10^9, its units", base, "start_rank_on_dataset", dataset)
        row("find the units that are done, units", base, "find_done", dataset)
        row("finish, units", base, "finish_all", dataset)
        row("mds.Reader, units", base, "open_index", dataset)
        with_torch = in_child("imports_torch", folder)[3]
        row("LatentDataset, units", with_torch, "open_dataset", dataset)
        row("its first shuffled batch, samples", with_torch, "first_batch", dataset)
        shutil.rmtree(dataset)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        from dataclasses import replace

        import numpy as np
        from PIL import Image

        import latentq
        from latentq import Card, Quantizer, mds
        from latentq.format.card import CARD
        from latentq.format.facts import LatentFacts
        from latentq.format.files import LIST
        from latentq.run.finish import finish
        from latentq.run.listing import list_source, source_facts
        from latentq.run.options import run_settings
        from latentq.run.sample_list import MAX_PART, SampleList, list_parts
        from latentq.run.share import Share
        from latentq.run.unit_writer import publish_unit
        from latentq.run.units import LatentSums, UnitFacts, card_hash, units_done
        from latentq.run.update import UpdatePlan
        from latentq.sources import Sample, open_source
        from latentq.system.progress import Progress

        if sys.argv[2] == "make_dataset":
            make_dataset(Path(sys.argv[3]), int(sys.argv[4]))
        else:
            step(*sys.argv[2:])
    else:
        main()
