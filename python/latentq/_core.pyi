# The compiled core. Its public, documented face is `latentq.image`, `latentq.quantizer` and `latentq.mds`.

__all__ = [
    "FormatError",
    "ImageError",
    "LatentqError",
    "MismatchError",
    "RecipeError",
    "__version__",
]

__version__: str

# error.rs

class LatentqError(Exception): ...
class FormatError(LatentqError): ...
class ImageError(LatentqError): ...
class RecipeError(LatentqError): ...
class MismatchError(LatentqError): ...
