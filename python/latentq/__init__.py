"""Images in, a compact and exact latent dataset out, and a reader so fast that training never waits."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentq._core import FormatError, ImageError, LatentqError, MismatchError, RecipeError, __version__
from latentq.quantizer import Quantizer
from latentq.recipe import Recipe

if TYPE_CHECKING:
    from latentq.dataset import LatentDataset

__all__ = [
    "FormatError",
    "ImageError",
    "LatentDataset",
    "LatentqError",
    "MismatchError",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "__version__",
]

# What needs torch is imported when it is first asked for.
_LATE = {"LatentDataset": "latentq.dataset"}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module 'latentq' has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
