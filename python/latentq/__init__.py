"""Images in, a compact and exact latent dataset out, and a reader so fast that training never waits.

Everything here is imported where it is first used, so that `import latentq` costs no more than NumPy does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from latentq._core import FormatError, ImageError, LatentqError, MismatchError, RecipeError, __version__

if TYPE_CHECKING:
    from latentq import image, mds
    from latentq.autoencoders import Autoencoder, load_autoencoder
    from latentq.card import Card
    from latentq.checks import verify
    from latentq.dataset import LatentDataset
    from latentq.loader import LatentLoader
    from latentq.mixture import LatentMixture
    from latentq.pipeline import encode
    from latentq.quantizer import Quantizer
    from latentq.recipe import Recipe
    from latentq.text import TextEncoder, load_text_encoder

__all__ = [
    "Autoencoder",
    "Card",
    "FormatError",
    "ImageError",
    "LatentDataset",
    "LatentLoader",
    "LatentMixture",
    "LatentqError",
    "MismatchError",
    "Quantizer",
    "Recipe",
    "RecipeError",
    "TextEncoder",
    "__version__",
    "encode",
    "image",
    "load_autoencoder",
    "load_text_encoder",
    "mds",
    "verify",
]

_HOMES = {
    "Autoencoder": "latentq.autoencoders",
    "Card": "latentq.card",
    "LatentDataset": "latentq.dataset",
    "LatentLoader": "latentq.loader",
    "LatentMixture": "latentq.mixture",
    "Quantizer": "latentq.quantizer",
    "Recipe": "latentq.recipe",
    "TextEncoder": "latentq.text",
    "encode": "latentq.pipeline",
    "load_autoencoder": "latentq.autoencoders",
    "load_text_encoder": "latentq.text",
    "verify": "latentq.checks",
}


def __getattr__(name: str) -> Any:
    if name in ("image", "mds"):
        return importlib.import_module(f"latentq.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'latentq' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
