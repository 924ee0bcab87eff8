"""Writing 25,600 codes with labels, so that all files are on the disk (fsync) at the end, by each writer."""

import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

COLUMNS = {"latent": "ndarray:uint8:4,32,32", "label": "int"}
BATCH = 256


def sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder, folder.parent]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def latentq(out: Path, codes: Any, labels: Any) -> None:
    from latentq import mds

    with mds.Writer(out, COLUMNS) as writer:
        for start in range(0, len(codes), BATCH):
            part = slice(start, start + BATCH)
            writer.write_batch({"latent": codes[part], "label": labels[part]})


def bare(out: Path, codes: Any, labels: Any) -> None:
    out.mkdir()
    with (out / "codes").open("wb") as file:
        file.write(codes)
        file.write(labels)


def neprr(out: Path, codes: Any, labels: Any) -> None:
    """neprr-streaming writes arrays of one dimension only: the same bytes."""
    streaming(out, codes.reshape(len(codes), -1), labels)


def streaming(out: Path, codes: Any, labels: Any) -> None:
    """mosaicml-streaming and streaming-community; neprr-streaming by `neprr`."""
    from streaming import MDSWriter

    try:
        import streaming.base.format.base.writer as module
    except ImportError:  # neprr-streaming
        module = None
    if module is not None and hasattr(module, "sleep"):
        # In the rival's favor: it sleeps for a second at a time while its threads finish.
        module.sleep = lambda _seconds: time.sleep(1e-4)
    columns = {**COLUMNS, "latent": f"ndarray:uint8:{','.join(map(str, codes.shape[1:]))}"}
    with MDSWriter(out=str(out), columns=columns) as writer:
        for latent, label in zip(codes, labels.tolist(), strict=True):
            writer.write({"latent": latent, "label": label})


def litdata_item(index: int, codes: str) -> tuple[bytes, int]:
    return np.load(codes, mmap_mode="r")[index].tobytes(), index


def webdataset(out: Path, codes: Any, labels: Any) -> None:
    import webdataset as wds

    out.mkdir()
    with wds.ShardWriter(str(out / "%06d.tar"), maxcount=2560, verbose=0) as writer:
        for index, latent in enumerate(codes):
            writer.write({"__key__": f"{index:08d}", "bin": latent.tobytes(), "cls": index})


def tars(out: Path, codes: Any, labels: Any) -> None:
    """Tars for the race of loaders, by the standard library."""
    out.mkdir()
    for start in range(0, len(codes), 2560):
        with tarfile.open(out / f"{start:08d}.tar", "w") as tar:
            for index in range(start, min(start + 2560, len(codes))):
                for suffix, data in (("bin", codes[index].tobytes()), ("cls", str(labels[index]).encode())):
                    entry = tarfile.TarInfo(f"{index:08d}.{suffix}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))


def hf_datasets(out: Path, codes: Any, labels: Any) -> None:
    import datasets

    datasets.disable_progress_bars()
    rows = {"latent": [row.tobytes() for row in codes], "label": labels.tolist()}
    datasets.Dataset.from_dict(rows).save_to_disk(str(out))


def litdata(out: Path, codes: Any, labels: Any) -> None:
    import functools

    from litdata import optimize

    optimize(
        functools.partial(litdata_item, codes=str(out.parent / "codes.npy")),
        inputs=list(range(len(codes))),
        output_dir=str(out),
        chunk_bytes="64MB",
        num_workers=1,
    )


SYNCED = ("latentq",)  # writers that return when their files and folders are on the disk
MAKERS: dict[str, Callable[[Path, Any, Any], None]] = {
    "latentq": latentq,
    "bare write": bare,
    "mosaicml-streaming": streaming,
    "streaming-community": streaming,
    "neprr-streaming": neprr,
    "webdataset": webdataset,
    "Hugging Face datasets": hf_datasets,
    "litdata": litdata,
}


class Contender:
    """A writer. What it wrote is counted when it is prepared, and removed by `close`."""

    def __init__(self, make: Callable[[Path, Any, Any], None], folder: Path, name: str) -> None:
        self._make, self._name = make, name
        self._out = folder / f"written-{os.getpid()}"
        self._codes, self._labels = np.load(folder / "codes.npy"), np.load(folder / "labels.npy")

    def prepare(self) -> None:
        self.run()
        index = self._out / "index.json"
        if index.exists() and "webdataset" not in self._name and "litdata" not in self._name:
            samples = sum(shard["samples"] for shard in json.loads(index.read_text())["shards"])
            assert samples == len(self._codes), f"{samples} of {len(self._codes)} samples were written"
        size = sum(path.stat().st_size for path in self._out.rglob("*") if path.is_file())
        assert size >= self._codes.nbytes
        self.close()

    def close(self) -> None:
        shutil.rmtree(self._out, ignore_errors=True)
        os.sync()  # or the next contender would pay for freeing these blocks, and for what was written elsewhere

    def run(self) -> None:
        self._make(self._out, self._codes, self._labels)
        if self._name not in SYNCED:
            sync(self._out)


def contender(_kind: str, name: str, folder: Path) -> Contender:
    return Contender(MAKERS[name.partition(" (")[0]], folder, name)
