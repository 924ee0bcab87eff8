"""Normal noise as a function of the sample, independent of when, where and in which order it is drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def noise(
    seed: int, numbers: Iterable[int], stream: int, shape: tuple[int, ...], *, epoch: int = 0
) -> NDArray[np.float32]:
    """Draws standard normal noise as a function of (seed, number, stream, epoch).

    The generator is Philox (Salmon et al. 2011), keyed by seed and number, with stream and epoch as its counter, so
    that batches, processes and their order do not matter.

    Args:
        seed: The seed of the recipe or the loader.
        numbers: The samples' numbers.
        stream: Distinguishes several draws for one sample.
        shape: The shape of one draw.
        epoch: The epoch for draws that differ in each epoch; 0 for a single draw.

    Returns:
        (len(numbers), *shape) float32.
    """
    rows = [
        np.random.Generator(
            np.random.Philox(key=np.array([seed % 2**64, number], np.uint64), counter=[0, 0, epoch, stream])
        ).standard_normal(shape, np.float32)
        for number in numbers
    ]
    return np.stack(rows) if rows else np.empty((0, *shape), np.float32)
