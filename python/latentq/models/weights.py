"""Weights of networks: quiet loading, checks and hashes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

from latentq._core import LatentqError
from latentq.system.text import counted, one_line


def weight_hash(network: object) -> str:
    """Hashes a network's weights, independently of the files they were loaded from.

    Args:
        network: A torch module, or an object whose `module` is one.

    Returns:
        `sha256:...` over the names, dtypes, shapes and values of the tensors in its `state_dict`; empty for an object
        without one.
    """
    module: Any = getattr(network, "module", network)
    if not hasattr(module, "state_dict"):
        return ""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(dtype=torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def check_weights(
    name: str, *, missing: Collection[str], mismatched: Collection[str], unexpected: Collection[str]
) -> None:
    """Refuses weights that do not fit their network exactly.

    Args:
        name: The model's name, for the message.
        missing: The network's tensors that the file lacks.
        mismatched: The tensors that have another shape in the file.
        unexpected: The file's tensors that the network lacks.

    Raises:
        LatentqError: Any of the three is not empty; the message has their number and the first name.
    """
    for keys, problem in (
        (missing, "missing"),
        (mismatched, "of another shape"),
        (unexpected, "left over"),
    ):
        if keys:
            raise LatentqError(
                f"the weights of {name} do not fit: {counted(len(keys), 'tensor')} {problem}, {min(keys)} first"
            )


def load_failure(error: Exception) -> str:
    """Returns on one line why a library cannot load a model, without torch's advice to unpickle the file unsafely."""
    text = one_line(error)
    return "its weights hold objects other than tensors, which are not loaded" if "weights_only" in text else text


@contextlib.contextmanager
def quiet(logging: ModuleType) -> Iterator[None]:
    """Silences the hints and progress bars of diffusers or transformers while a model is loaded: errors are raised.

    Args:
        logging: `diffusers.utils.logging` or `transformers.utils.logging`.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
