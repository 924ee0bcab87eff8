# The compiled core. Its public, documented face is `latentq.image`, `latentq.quantizer` and `latentq.mds`.

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Calibrator",
    "FormatError",
    "ImageError",
    "LatentqError",
    "MismatchError",
    "Quantizer",
    "RecipeError",
    "__version__",
    "convert",
    "moments",
    "pack",
    "unpack",
]

__version__: str

# error.rs

class LatentqError(Exception): ...
class FormatError(LatentqError): ...
class ImageError(LatentqError): ...
class RecipeError(LatentqError): ...
class MismatchError(LatentqError): ...

# quant.rs: a bool beside a float array says that its uint16 items are bfloat16's bits, not float16's

@final
class Quantizer:
    @staticmethod
    def affine(low: Sequence[float], high: Sequence[float], bits: int, truncate: bool) -> Quantizer: ...
    @staticmethod
    def codebook(levels: npt.NDArray[np.float32], bits: int) -> Quantizer: ...
    def quantize(
        self, x: npt.NDArray[Any], bfloat16: bool, out: npt.NDArray[np.uint8], packed: bool, threads: int
    ) -> tuple[int, int] | None: ...
    def quantize_counted(
        self, x: npt.NDArray[Any], bfloat16: bool, out: npt.NDArray[np.uint8], threads: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]: ...
    def dequantize(self, codes: npt.NDArray[np.uint8], out: npt.NDArray[Any], bfloat16: bool, threads: int) -> None: ...
    def dequantize_packed(
        self, packed: npt.NDArray[np.uint8], shape: Sequence[int], out: npt.NDArray[Any], bfloat16: bool, threads: int
    ) -> None: ...
    def histogram(self, codes: npt.NDArray[np.uint8], out: npt.NDArray[np.int64]) -> None: ...

@final
class Calibrator:
    def __new__(cls, channels: int) -> Calibrator: ...
    def update(self, x: npt.NDArray[Any], bfloat16: bool) -> tuple[int, int] | None: ...
    def ranges(self, bits: int, method: str) -> list[tuple[float, float]]: ...
    def levels(self, bits: int) -> list[float]: ...

def convert(
    x: npt.NDArray[Any], x_bfloat16: bool, out: npt.NDArray[Any], out_bfloat16: bool, threads: int
) -> tuple[tuple[int, int] | None, npt.NDArray[np.bool_]]: ...
def pack(codes: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], elements: int, bits: int, threads: int) -> None: ...
def unpack(
    packed: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], elements: int, bits: int, threads: int
) -> None: ...
def moments(x: npt.NDArray[Any], bfloat16: bool) -> list[tuple[float, float, float, float]]: ...
