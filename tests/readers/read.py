"""Read datasets with whatever `streaming` is installed, and compare every sample with what was written.

`python tests/readers/read.py FOLDER` prints one JSON object: for each dataset in FOLDER "yes", "as Python numbers" or
the first difference or error. It needs only NumPy and the reader itself, so it runs in an environment without latentq.
"""

import contextlib
import json
import sys
import warnings
from decimal import Decimal
from pathlib import Path

import numpy as np

EXPECTED = "expected.json"


def facts(value):
    """Return a value as JSON that tells any two values apart: type, dtype, shape and bytes."""
    if isinstance(value, np.ndarray):
        return ["array", value.dtype.name, list(value.shape), np.ascontiguousarray(value).tobytes().hex()]
    if isinstance(value, np.generic):
        return ["scalar", value.dtype.name, value.tobytes().hex()]
    if isinstance(value, bytes | bytearray):
        return ["bytes", value.hex()]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, list):
        return ["list", [facts(item) for item in value]]
    if isinstance(value, dict):
        return ["dict", {name: facts(item) for name, item in sorted(value.items())}]
    if hasattr(value, "tobytes"):  # a Pillow image
        return ["image", value.mode, list(value.size), value.tobytes().hex()]
    return [type(value).__name__, repr(value)]


def as_numbers(known):
    """Replace NumPy scalars in facts by the Python numbers that equal them."""
    if isinstance(known, dict):
        return {name: as_numbers(item) for name, item in known.items()}
    if isinstance(known, list) and known[:1] == ["scalar"]:
        return facts(np.frombuffer(bytes.fromhex(known[2]), known[1])[0].item())
    return [as_numbers(item) for item in known] if isinstance(known, list) else known


def arrays(sample):
    """Return the facts of a sample's arrays alone."""
    return json.dumps(facts({name: value for name, value in sample.items() if isinstance(value, np.ndarray)}))


def samples_of(folder, local):
    """Return every sample of a dataset by index, after comparing them with an epoch and with a loader's batches.

    The folder is the remote; the reader copies its shards and checks their hashes.
    """
    from streaming import StreamingDataLoader, StreamingDataset

    with contextlib.suppress(ImportError):  # neprr-streaming has no shared memory to clean
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
    shard = json.loads((folder / "index.json").read_text())["shards"][0]
    hashes = [*(shard["zip_data"] or shard["raw_data"])["hashes"], None]
    options = {"batch_size": 1, "validate_hash": hashes[0], "shuffle": True}
    dataset = StreamingDataset(remote=str(folder), local=str(local), **options)
    samples = [dataset[i] for i in range(len(dataset))]
    by_index = [facts(sample) for sample in samples]
    by_epoch = [facts(sample) for sample in dataset]
    if sorted(map(json.dumps, by_epoch)) != sorted(map(json.dumps, by_index)):
        raise AssertionError("an epoch has other samples than the index")
    if (folder / "latents.toml").exists():
        batches = [
            arrays({name: v[0].numpy() for name, v in batch.items() if hasattr(v, "numpy") and v.ndim > 1})
            for batch in StreamingDataLoader(dataset, batch_size=1)
        ]
        if sorted(batches) != sorted(map(arrays, samples)):
            raise AssertionError("batches have other arrays than samples")
    return by_index


def outcome(folder, local):
    """Return "yes" for samples as written, "as Python numbers" if types of scalars differ, or what is wrong."""
    expected = json.loads((folder / EXPECTED).read_text())
    try:
        found = samples_of(folder, local)
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
    if found == expected:
        return "yes"
    if found == as_numbers(expected):
        return "as Python numbers"
    if len(found) != len(expected):
        return f"{len(found)} samples, not {len(expected)}"
    pairs = zip(found, expected, strict=True)
    number, pair = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
    return "sample {}: {:.150}, not {:.150}".format(number, *map(json.dumps, pair))


def main(datasets):
    """Read every dataset in a folder."""
    warnings.simplefilter("ignore")
    folders = sorted(folder for folder in datasets.iterdir() if (folder / EXPECTED).exists())
    caches = datasets / f"cache-{Path(sys.prefix).name}"
    return {folder.name: outcome(folder, caches / folder.name) for folder in folders}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
