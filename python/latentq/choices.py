"""The options, and their choices, that the core, the Python API, recipes and the command line share.

Nothing heavy is imported here: `latentq --help` lists the choices without NumPy.
"""

from typing import Literal, TypeAlias, TypedDict

Crop: TypeAlias = Literal["center", "center-round", "adm"]
Filter: TypeAlias = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
Alpha: TypeAlias = Literal["white", "black", "drop"]
Icc: TypeAlias = Literal["srgb", "ignore"]
ChannelOrder: TypeAlias = Literal["chw", "hwc"]
Size: TypeAlias = int | tuple[int, int]
"""The side of a square in pixels, or (height, width)."""


def height_width(size: Size) -> tuple[int, int]:
    """Returns the height and width of a size."""
    return (size, size) if isinstance(size, int) else size


class PixelOptions(TypedDict, total=False):
    """The options that turn an image file into pixels: keyword arguments of `latentq.image.load` and `load_batch`."""

    crop: Crop
    filter: Filter
    orient: bool
    alpha: Alpha
    icc: Icc
    min_side: int | None


RangeMethod: TypeAlias = Literal["mse", "minmax", "percentile"]
Codec: TypeAlias = Literal["affine", "trellis", "transform"]
"""The kinds of quantizer that `--codec` chooses: `affine` encodes each value, the others a whole sample at once."""
Method: TypeAlias = Literal[RangeMethod, "lloyd-max", "trellis"]
"""The ways to calibrate a quantizer: `RangeMethod` finds ranges, `lloyd-max` codebooks, `trellis` a trellis."""
