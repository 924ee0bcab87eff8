# The compiled core. The public, documented API is `latentq.image`, `latentq.quantizer` and `latentq.mds`.

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, final

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from latentq.choices import ChannelOrder, PixelOptions, RangeMethod

__all__ = [
    "LARGE",
    "MAX_PIXELS",
    "Calibrator",
    "FormatError",
    "Gathering",
    "ImageBatch",
    "ImageError",
    "LatentqError",
    "MdsBuffers",
    "MdsMergedIndex",
    "MdsReader",
    "MdsWriter",
    "MemoryTables",
    "MismatchError",
    "Quantizer",
    "RecipeError",
    "Threads",
    "Transform",
    "TransformCalibrator",
    "TrellisCalibrator",
    "__version__",
    "check_transform_shape",
    "convert",
    "gather",
    "gather_array",
    "gather_now",
    "image_decode",
    "image_decode_and_drop",
    "image_fit",
    "image_hash",
    "image_info",
    "image_load",
    "image_load_batch",
    "image_resize",
    "image_size",
    "image_window",
    "isa",
    "mds_merge",
    "mds_repair",
    "mds_samples_by_folder",
    "mds_verify",
    "moments",
    "new_array",
    "pack",
    "permute",
    "unpack",
]

__version__: str

# recycled.rs: from `LARGE` bytes on, arrays take memory of arrays that are gone

LARGE: int

def new_array(shape: Sequence[int], dtype: npt.DTypeLike) -> NDArray[Any]: ...

# lib.rs

def isa() -> Literal["scalar", "neon", "avx2", "avx512"]: ...

# error.rs

class LatentqError(Exception): ...
class FormatError(LatentqError): ...
class ImageError(LatentqError): ...
class RecipeError(LatentqError): ...
class MismatchError(LatentqError): ...

# batch.rs: the arrays passed to `gather` must not be read or written before `result`, which may be called once; the
# bool next to a codec is true if uint16 items are the bits of bfloat16, not float16

@final
class Threads:
    def __new__(cls, count: int) -> Threads: ...
    def ask(self, reader: MdsReader, indices: npt.NDArray[np.int64], columns: Sequence[int]) -> None: ...
    def shutdown(self) -> None: ...

@final
class MemoryTables:
    def __new__(cls, columns: Sequence[npt.NDArray[np.uint8]]) -> MemoryTables: ...

@final
class Gathering:
    def result(self) -> list[list[Any] | None]: ...

def gather_array(
    reader: MdsReader,
    indices: npt.NDArray[np.int64],
    column: int,
    shape: Sequence[int],
    dtype: npt.DTypeLike,
) -> npt.NDArray[Any]: ...
def gather(
    samples: MdsReader | MemoryTables,
    indices: npt.NDArray[np.int64],
    columns: Sequence[int],
    outs: Sequence[npt.NDArray[Any] | None],
    codecs: Sequence[tuple[Quantizer | Transform, bool] | None],
    threads: Threads | None,
) -> Gathering: ...
def gather_now(
    reader: MdsReader,
    indices: npt.NDArray[np.int64],
    columns: Sequence[int],
    outs: Sequence[npt.NDArray[Any] | None],
) -> list[list[Any] | None]: ...

# permutation.rs: in-place; positions must be contiguous

def permute(positions: npt.NDArray[np.int64], size: int, keys: Sequence[int]) -> None: ...

# quant.rs: the bool after a float array is true if its uint16 items are the bits of bfloat16, not float16

@final
class Quantizer:
    @staticmethod
    def affine(low: Sequence[float], high: Sequence[float], bits: int, truncate: bool) -> Quantizer: ...
    @staticmethod
    def codebook(levels: npt.NDArray[np.float32], bits: int) -> Quantizer: ...
    @staticmethod
    def trellis(levels: npt.NDArray[np.float32], bits: int) -> Quantizer: ...
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
    def ranges(self, bits: int, method: RangeMethod) -> list[tuple[float, float]]: ...
    def measure(self, quantizer: Quantizer) -> list[tuple[float, float, float, float, float]]: ...
    def levels(self, bits: int) -> list[float]: ...

@final
class TrellisCalibrator:
    def __new__(cls, channels: int) -> TrellisCalibrator: ...
    def update(self, x: npt.NDArray[Any], bfloat16: bool) -> tuple[int, int] | None: ...
    def levels(self, bits: int) -> list[float]: ...

# transform.rs: encoded samples are one array of bytes, with the length of each; a bad sample is (index, channel of its
# first NaN or infinity if that is the reason, reason)

@final
class Transform:
    def __new__(
        cls,
        step: float,
        mean: npt.NDArray[np.float32],
        basis: npt.NDArray[np.float32],
        inverse: npt.NDArray[np.float32],
        base: npt.NDArray[np.uint8],
        frequency: npt.NDArray[np.uint16],
    ) -> Transform: ...
    def encode(
        self, x: npt.NDArray[Any], bfloat16: bool, budget: int | None, threads: int
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[tuple[int, int | None, str]]]: ...
    def decode(
        self,
        data: npt.NDArray[np.uint8],
        lengths: npt.NDArray[np.int64],
        out: npt.NDArray[Any],
        bfloat16: bool,
        threads: int,
    ) -> list[tuple[int, int | None, str]]: ...
    def decode_numbers(
        self,
        data: npt.NDArray[np.uint8],
        lengths: npt.NDArray[np.int64],
        out: npt.NDArray[np.int16] | npt.NDArray[np.int32],
        steps: npt.NDArray[np.float32],
        threads: int,
    ) -> list[tuple[int, int | None, str]]: ...

@final
class TransformCalibrator:
    def __new__(cls, channels: int) -> TransformCalibrator: ...
    def update(self, x: npt.NDArray[Any], bfloat16: bool) -> tuple[int, int] | None: ...
    def tables(
        self, rate: float, metric: tuple[npt.NDArray[np.float64], float] | None
    ) -> tuple[
        float,
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint8],
        npt.NDArray[np.uint16],
    ]: ...

def check_transform_shape(channels: int, height: int, width: int) -> None: ...
def convert(
    x: npt.NDArray[Any], x_bfloat16: bool, out: npt.NDArray[Any], out_bfloat16: bool, threads: int
) -> tuple[tuple[int, int] | None, npt.NDArray[np.bool_]]: ...
def pack(codes: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], elements: int, bits: int, threads: int) -> None: ...
def unpack(
    packed: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8], elements: int, bits: int, threads: int
) -> None: ...
def moments(x: npt.NDArray[Any], bfloat16: bool) -> list[tuple[float, float, float, float]]: ...

# mds.rs

@final
class MdsReader:
    def __new__(cls, path: str, memory: int, raw: int, page_cache: int) -> MdsReader: ...
    def __len__(self) -> int: ...
    @property
    def columns(self) -> list[tuple[str, str, tuple[str, list[int]] | None]]: ...
    @property
    def index_hash(self) -> int: ...
    @property
    def samples_ahead(self) -> int: ...
    def sample(self, index: int) -> dict[str, Any]: ...
    def groups(self) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int32]]: ...
    def expect_all(self, page_cache: int) -> None: ...
    def stop_ahead(self) -> None: ...
    def close_shard(self, number: int) -> None: ...
    def location(self, index: int, column: int) -> tuple[str, int]: ...
    def fault(self, index: int, column: int, message: str) -> NoReturn: ...

@final
class MdsBuffers:
    def __new__(cls) -> MdsBuffers: ...

@final
class MdsWriter:
    def __new__(
        cls,
        path: str,
        columns: Sequence[tuple[str, str]],
        compression: str | None,
        hashes: Sequence[str],
        size_limit: int,
        sync: bool,
        buffers: MdsBuffers | None,
    ) -> MdsWriter: ...
    @property
    def columns(self) -> list[tuple[str, str, tuple[str, list[int]] | None]]: ...
    def begin_group(self, name: str, columns: Sequence[tuple[str, str]]) -> None: ...
    def write(self, sample: Mapping[str, Any]) -> None: ...
    def write_batch(self, n: int, batch: dict[str, Any]) -> None: ...
    def add_file(self, name: str, data: bytes) -> None: ...
    def finish(self) -> None: ...
    def abort(self) -> None: ...

@final
class MdsMergedIndex:
    def __new__(cls, path: str) -> MdsMergedIndex: ...
    def start(self) -> bytes: ...
    def folder(self, name: str) -> bytes: ...
    def end(self) -> bytes: ...

def mds_repair(
    path: str, folders: Sequence[str] | None, allow_fewer: bool, progress: Callable[[str, int, int], object]
) -> tuple[int, int, list[tuple[str, int, str]], list[str]]: ...
def mds_samples_by_folder(path: str) -> list[tuple[str, int]]: ...
def mds_verify(path: str) -> list[tuple[str, int, str]]: ...
def mds_merge(path: str, folders: Sequence[str] | None) -> None: ...

# image.rs: an image is its encoded bytes or its path; pixels are uint8 (height, width, 3)

MAX_PIXELS: int

class _ImageOptions(PixelOptions, total=False):
    layout: ChannelOrder
    max_pixels: int

# The arrays, (N, 3 * size * size), must not be accessed at a position between its `start` and its `result`, which may
# be called once.
@final
class ImageBatch:
    def __new__(
        cls,
        threads: Threads,
        sizes: Sequence[tuple[int, int]],
        outs: Sequence[npt.NDArray[np.uint8]],
        options: _ImageOptions,
        measure: bool,
    ) -> ImageBatch: ...
    def start(self, position: int, item: bytes | str) -> None: ...
    def is_done(self) -> bool: ...
    def result(self, position: int) -> tuple[Exception | None, tuple[int, int] | None, int | None]: ...

def image_decode(data: bytes | str, options: _ImageOptions) -> NDArray[np.uint8]: ...
def image_decode_and_drop(data: bytes | str, size: tuple[int, int] | None, options: _ImageOptions) -> None: ...
def image_fit(pixels: NDArray[np.uint8], size: tuple[int, int], options: _ImageOptions) -> NDArray[np.uint8]: ...
def image_hash(data: bytes | str) -> int: ...
def image_info(data: bytes | str) -> tuple[str, int, int, int, int]: ...
def image_load(data: bytes | str, size: tuple[int, int], options: _ImageOptions) -> NDArray[np.uint8]: ...
def image_load_batch(
    items: list[bytes | str],
    sizes: Sequence[tuple[int, int]],
    threads: int,
    outs: list[NDArray[np.uint8]],
    options: _ImageOptions,
) -> list[Exception | None]: ...
def image_resize(pixels: NDArray[np.uint8], height: int, width: int, options: _ImageOptions) -> NDArray[np.uint8]: ...
def image_size(data: bytes | str, orient: bool) -> tuple[int, int]: ...
def image_window(
    image: tuple[int, int], size: tuple[int, int], options: _ImageOptions
) -> tuple[int, int, int, int]: ...
