"""Normal noise that is a function of what it is for, never of when, where or in which order it is drawn."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def noise(
    seed: int, numbers: Iterable[int], stream: int, shape: tuple[int, ...], *, epoch: int = 0
) -> NDArray[np.float32]:
    """Standard normal noise, (len(numbers), *shape) float32: a function of (seed, number, stream, epoch).

    The generator is Philox (Salmon et al. 2011), keyed by seed and number and counting from stream and epoch, so that
    neither batches nor processes nor their order matter.

    Args:
        seed: Of the recipe, or of a loader.
        numbers: Of the samples.
        stream: Which of several draws for one sample.
        shape: Of one draw.
        epoch: For draws that come again in each; 0 where there is one only.
    """
    rows = [
        np.random.Generator(
            np.random.Philox(key=np.array([seed % 2**64, number], np.uint64), counter=[0, 0, epoch, stream])
        ).standard_normal(shape, np.float32)
        for number in numbers
    ]
    return np.stack(rows) if rows else np.empty((0, *shape), np.float32)
