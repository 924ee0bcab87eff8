"""The choices of options that the core, the Python API, recipes and the command line share.

Nothing heavy is imported here: `latentq --help` lists these choices without NumPy.
"""

from typing import Literal, TypeAlias

Crop: TypeAlias = Literal["center", "center-round", "adm"]
Filter: TypeAlias = Literal["box", "bilinear", "hamming", "bicubic", "lanczos"]
Alpha: TypeAlias = Literal["white", "black", "drop"]
Icc: TypeAlias = Literal["srgb", "ignore"]
ChannelOrder: TypeAlias = Literal["chw", "hwc"]

RangeMethod: TypeAlias = Literal["mse", "minmax", "percentile"]
Method: TypeAlias = Literal[RangeMethod, "lloyd-max"]
"""The ways to calibrate a quantizer: `RangeMethod` finds ranges, `lloyd-max` finds codebooks."""
