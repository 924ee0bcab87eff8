"""Images in, a compact and exact latent dataset out, and a reader so fast that training never waits."""

from latentq import mds
from latentq._core import FormatError, ImageError, LatentqError, MismatchError, RecipeError, __version__

__all__ = ["FormatError", "ImageError", "LatentqError", "MismatchError", "RecipeError", "__version__", "mds"]
