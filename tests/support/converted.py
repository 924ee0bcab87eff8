"""Latents of several shapes, and what a converted dataset holds of them."""

import numpy as np

import latentq
from latentq.converting.outgoing import Outgoing

# (width, height) of images, and of their buckets.
IMAGES = [((600, 400), (96, 64)), ((512, 512), (64, 64)), ((400, 600), (64, 96)), ((1000, 999), (64, 64))] * 3


def latent(index, channels, bucket, stride=8, seed=0):
    rng = np.random.default_rng((seed, index))
    return rng.standard_normal((channels, bucket[1] // stride, bucket[0] // stride)).astype(np.float32)


def by_key(dataset, *, flip=False, content="latent"):
    """Return the stored values of a column by key, and check the dataset."""
    assert not latentq.verify(dataset)
    outgoing = Outgoing(dataset, "test")
    name, key = outgoing.need(content, flip=flip), outgoing.need("key")
    columns = outgoing.open([name, key], scale="scaled" if outgoing.column(name).scaled else "raw")
    found = {}
    for batch in columns.batches():
        found |= dict(zip(batch.values[key], batch.values[name], strict=True))
    return found


def same(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert np.array_equal(found[key], value), key


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
