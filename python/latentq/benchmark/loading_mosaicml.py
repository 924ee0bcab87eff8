"""mosaicml-streaming's part in `loading.py`, decoding as the page of imagenet.int8 does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from streaming import StreamingDataset
from streaming.base.format.mds.encodings import Encoding, _encodings
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from latentq.benchmark.loading import BATCH, SHAPE, Epoch, write_mds


class uint8(Encoding):  # type: ignore[misc]  # noqa: N801  (the name on the page of imagenet.int8)
    """The encoding on the page of imagenet.int8."""

    def encode(self, obj: Any) -> bytes:
        """Returns the bytes of codes."""
        return bytes(obj.tobytes())

    def decode(self, data: bytes) -> Any:
        """Returns the values of codes."""
        x = np.frombuffer(data, np.uint8).astype(np.float32)
        return (x / 255.0 - 0.5) * 24.0


def mosaicml(folder: Path, workers: int) -> Epoch:
    """Returns epochs of a StreamingDataset.

    Args:
        folder: A folder of codes and labels.
        workers: Processes of the DataLoader.
    """
    path = write_mds(folder, "mds-raw", "raw:uint8")
    _encodings["uint8"] = uint8
    clean_stale_shared_memory()
    source = StreamingDataset(local=str(path), shuffle=True, shuffle_algo="naive", batch_size=BATCH)
    batches = DataLoader(source, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0)
    return lambda: ((b["latent"].view(-1, *SHAPE), b["label"]) for b in batches)
