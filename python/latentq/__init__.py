"""Images in, a compact and exact latent dataset out, and a reader so fast that training never waits.

Every name is imported when it is first used, so that `import latentq` costs no more than NumPy does.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

try:
    from latentq._core import FormatError, ImageError, LatentqError, MismatchError, RecipeError, __version__, isa
except ValueError as error:  # an invalid LATENTQ_ISA
    # The program `latentq`, or `python -m latentq`: it imports this package first, so it cannot catch its errors.
    if sys.argv and sys.argv[0].rpartition(os.sep)[2] in ("latentq", "-m"):
        sys.stderr.write(f"latentq: {error}\n")
        sys.exit(2)
    raise

if TYPE_CHECKING:
    from latentq import image, mds
    from latentq.converting.pipeline import convert
    from latentq.encoding.pipeline import encode
    from latentq.format.card import Card
    from latentq.format.recipe import Recipe
    from latentq.inspect.report.write import report
    from latentq.inspect.verify import verify
    from latentq.models.autoencoders import Autoencoder, load_autoencoder
    from latentq.models.text import TextEncoder, load_text_encoder
    from latentq.publishing.push import push
    from latentq.quantizer import Quantizer, Transform
    from latentq.reading.dataset import LatentDataset
    from latentq.reading.loader import LatentLoader
    from latentq.reading.mixture import LatentMixture
    from latentq.reading.sampler import LatentBatchSampler
    from latentq.reading.streaming import LatentStreamingDataset
    from latentq.run.options import RayOptions
    from latentq.sharding.pipeline import shards
    from latentq.sources import open_source

__all__ = [
    "Autoencoder",
    "Card",
    "FormatError",
    "ImageError",
    "LatentBatchSampler",
    "LatentDataset",
    "LatentLoader",
    "LatentMixture",
    "LatentStreamingDataset",
    "LatentqError",
    "MismatchError",
    "Quantizer",
    "RayOptions",
    "Recipe",
    "RecipeError",
    "TextEncoder",
    "Transform",
    "__version__",
    "convert",
    "encode",
    "image",
    "isa",
    "load_autoencoder",
    "load_text_encoder",
    "mds",
    "open_source",
    "push",
    "report",
    "shards",
    "verify",
]

# The module that each name is imported from.
_MODULES = {
    "Autoencoder": "latentq.models.autoencoders",
    "Card": "latentq.format.card",
    "LatentDataset": "latentq.reading.dataset",
    "LatentBatchSampler": "latentq.reading.sampler",
    "LatentLoader": "latentq.reading.loader",
    "LatentMixture": "latentq.reading.mixture",
    "LatentStreamingDataset": "latentq.reading.streaming",
    "Quantizer": "latentq.quantizer",
    "RayOptions": "latentq.run.options",
    "Recipe": "latentq.format.recipe",
    "TextEncoder": "latentq.models.text",
    "Transform": "latentq.quantizer",
    "convert": "latentq.converting.pipeline",
    "encode": "latentq.encoding.pipeline",
    "load_autoencoder": "latentq.models.autoencoders",
    "load_text_encoder": "latentq.models.text",
    "open_source": "latentq.sources",
    "push": "latentq.publishing.push",
    "report": "latentq.inspect.report.write",
    "shards": "latentq.sharding.pipeline",
    "verify": "latentq.inspect.verify",
}


def __getattr__(name: str) -> Any:
    if name in ("image", "mds"):
        return importlib.import_module(f"latentq.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module 'latentq' has no attribute {name!r}")
    from latentq.system.extras import needed_for

    with needed_for(f"latentq.{name}"):
        value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
