"""Flax checkpoints of VQGANs, as vqgan-jax saves them: `flax_model.msgpack` with its `config.json`.

They are conversions of taming-transformers' checkpoints: the same network, with names and shapes of Flax.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from latentq._core import FormatError, LatentqError
from latentq.format.flax_file import read_arrays
from latentq.models.autoencoders.taming import LARGEST_CONFIG, TamingAutoencoder, build
from latentq.models.hub import CONFIG
from latentq.models.weights import check_weights
from latentq.store.local import check_regular
from latentq.system.text import one_line

WEIGHTS = "flax_model.msgpack"


def load_flax(folder: Path, name: str) -> TamingAutoencoder:
    """Loads a checkpoint onto the CPU, in float32.

    Args:
        folder: The folder of the two files.
        name: The autoencoder's name for the card.

    Raises:
        LatentqError: A file is broken or of another kind, or the weights do not fit the network exactly.
        ModuleNotFoundError: msgpack is not installed.
    """
    config = _config(folder / CONFIG)
    module = build({**config, "ddconfig": config}, folder / CONFIG)
    try:
        arrays = read_arrays(folder / WEIGHTS)
    except OSError as error:
        raise LatentqError(f"{folder / WEIGHTS}: cannot be read: {one_line(error)}") from None
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    names = {key: _flax_name(key, shape) for key, shape in expected.items()}
    shapes = {names[key]: _flax_shape(shape) for key, shape in expected.items()}
    both = shapes.keys() & arrays.keys()
    check_weights(
        str(folder / WEIGHTS),
        missing=shapes.keys() - both,
        mismatched=[key for key in both if arrays[key].shape != shapes[key]],
        unexpected=arrays.keys() - both,
    )
    module.load_state_dict({key: _tensor(arrays.pop(flax)) for key, flax in names.items()}, assign=True)
    return TamingAutoencoder.of(module, name)


def _config(path: Path) -> dict[str, object]:
    check_regular(path)
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_CONFIG + 1)
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"it has more than {LARGEST_CONFIG} bytes")
        config = json.loads(text)
        if not isinstance(config, dict):
            raise TypeError("it is not an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{path}: not the configuration of a VQGAN: {one_line(error)}") from None
    return config


def _flax_name(key: str, shape: tuple[int, ...]) -> str:
    """Returns a tensor's path in Flax's tree: `down.0.conv.weight` becomes `down_0/conv/kernel`."""
    *modules, parameter = re.sub(r"\.(\d+)", r"_\1", key).split(".")
    if parameter == "weight":
        parameter = {4: "kernel", 2: "embedding", 1: "scale"}[len(shape)]
    return "/".join([*modules, parameter])


def _flax_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns a tensor's shape in Flax: a kernel (O, I, H, W) is (H, W, I, O) there."""
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape


def _tensor(array: NDArray[np.generic]) -> torch.Tensor:
    """Makes a float32 tensor in torch's order of axes."""
    values = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return torch.from_numpy(np.array(values, np.float32, order="C"))
