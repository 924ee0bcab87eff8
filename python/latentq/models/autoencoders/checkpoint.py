"""The tensors of a checkpoint that torch.save wrote, for networks that latentq implements itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import nn

from latentq._core import LatentqError
from latentq.format.safe_torch_file import TensorRecord, TorchFile
from latentq.models.weights import check_weights
from latentq.system.text import one_line

_PARTS = ("state_dict", "model")  # the entry of the checkpoint that holds the tensors
# Tensors that only training needs: losses, VA-VAE's foundation model, the codes that LlamaGen used lately.
_TRAINING = ("loss.", "foundation_model.", "linear_proj.", "quantize.codebook_used")


class Checkpoint:
    """The names and shapes of a checkpoint's tensors, without those that only training needs.

    Nothing that the pickle names is imported or called: objects that are not tensors (Lightning's callbacks, options)
    are dropped. Values are read when a network is filled.

    Attributes:
        path: The file.
        shapes: The shape of each tensor.

    Args:
        path: The file.

    Raises:
        LatentqError: It is no checkpoint, is broken, or holds no tensors.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise LatentqError(f"there is no checkpoint {path}")
        try:
            self._file = TorchFile(path)
            self._records = _records(self._file.load(ignore_others=True))
            # Tensors that share a storage could claim many times the file's size.
            if sum(prod(record.shape) for record in self._records.values()) > path.stat().st_size:
                raise LatentqError("its tensors have more elements than the file has bytes")
        except (OSError, LatentqError) as error:
            raise self._unreadable(error) from None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor, by name."""
        return {name: record.shape for name, record in self._records.items()}

    def rename(self, rule: Callable[[str], str]) -> None:
        """Gives the tensors other names, in-place."""
        self._records = {rule(name): record for name, record in self._records.items()}

    @contextmanager
    def building(self) -> Iterator[None]:
        """Builds a network on the meta device, inside the block, from the names and shapes of the tensors.

        Raises:
            LatentqError: They are not those of the network.
        """
        try:
            with torch.device("meta"):
                yield
        except KeyError as error:
            raise LatentqError(f"{self.path}: not an autoencoder of its kind: it has no tensor {error}") from None
        except (TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise LatentqError(f"{self.path}: not an autoencoder of its kind: {one_line(error)}") from None

    def fill(self, module: nn.Module) -> None:
        """Puts the values, as float32 on the CPU, into a network on the meta device.

        Raises:
            LatentqError: The tensors are not exactly those of the network, or cannot be read.
        """
        shapes, expected = self.shapes, module.state_dict()
        both = expected.keys() & shapes.keys()
        check_weights(
            str(self.path),
            missing=expected.keys() - both,
            mismatched=[name for name in both if shapes[name] != tuple(expected[name].shape)],
            unexpected=shapes.keys() - both,
        )
        try:
            module.load_state_dict({name: self._tensor(record) for name, record in self._records.items()}, assign=True)
        except (OSError, LatentqError) as error:
            raise self._unreadable(error) from None

    def _tensor(self, record: TensorRecord) -> torch.Tensor:
        values = self._file.read(record)
        if record.dtype == "bfloat16":
            return torch.from_numpy(values.copy()).view(torch.bfloat16).float()
        return torch.from_numpy(values.astype(np.float32))

    def _unreadable(self, error: Exception) -> LatentqError:
        reason = str(error).removeprefix(f"{self.path}: ")
        return LatentqError(f"{self.path}: not a checkpoint that can be read: {one_line(reason)}")


def _records(data: object) -> dict[str, TensorRecord]:
    """Finds the tensors in what was saved."""
    if not isinstance(data, dict):
        raise LatentqError("it holds no state_dict of tensors")
    state = next((data[part] for part in _PARTS if part in data), data)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise LatentqError("it holds no state_dict of tensors")
    tensors = {name: value for name, value in state.items() if not name.startswith(_TRAINING)}
    if not all(isinstance(value, TensorRecord) and _is_shape(value.shape) for value in tensors.values()):
        raise LatentqError("its state_dict holds something else than tensors")
    return tensors


def _is_shape(shape: tuple[object, ...]) -> bool:
    return all(type(side) is int and side >= 0 for side in shape)


def count(names: Mapping[str, object], pattern: str) -> int:
    """Counts the modules of a list: how many of `pattern` with 0, 1, ... are among the names.

    Raises:
        KeyError: Not even the first is.
    """
    found = 0
    while pattern.format(found) in names:
        found += 1
    if not found:
        raise KeyError(pattern.format(0))
    return found
