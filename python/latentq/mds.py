"""MDS shards, the format of mosaicml-streaming: written byte for byte as its own writer does, read by any number.

The bytes are told in `docs/mds.md`. What is written here, a plain `StreamingDataset` reads; what `MDSWriter`,
`merge_index` or the scripts of imagenet.int8 wrote is read here. Columns of pickles are neither written nor decoded.
"""

from __future__ import annotations

import errno
import json
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from io import BytesIO
from itertools import combinations
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentq import _core
from latentq._core import FormatError
from latentq.system.memory import available_bytes

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Finding", "Reader", "Repair", "Writer", "merge", "merged_index", "repair", "verify"]


StrPath: TypeAlias = str | os.PathLike[str]


_INT64, _UINT8 = np.dtype(np.int64), np.dtype(np.uint8)


_SHARE = 8  # of the available memory, what all readers of a process together hold of shards that are not compressed


class Writer:
    """Writes a dataset into a temporary folder beside `path`, and publishes it with one rename when it is closed.

    Used as a context manager: an exception inside `with` publishes nothing and removes the temporary. A full shard is
    written by a thread of its own while the next is filled: two shards are in memory at most, while one is compressed
    also a copy of it and the result. A forked child can neither fill nor publish its parent's dataset. One thread at a
    time may use it.

    Args:
        path: The dataset's folder: absent (its parent exists), or empty.
        columns: Encoding of each column by name. The encodings are those of mosaicml-streaming but `pkl`, and
            `raw:DTYPE`, an array's bytes alone, which imagenet.int8 types as the scalar.
        compression: `br`, `bz2`, `gz`, `snappy` or `zstd`, all but `snappy` also with a level as in `zstd:7`.
        hashes: Algorithms whose digests the index carries, in any order: those of `hashlib` and `xxhash`.
        size_limit: Bytes that no shard exceeds, below 2**32, unless one sample alone does; `None` or 0: one shard of at
            most 4 GiB.
        sync: Whether everything is on the disk, not only in the system's memory, once `close` returns.

    Raises:
        ValueError: Columns, compression, hashes or limit that the format does not have.
        FileExistsError: There is something at `path`.
        OSError: Nothing can be written beside `path`.
    """

    def __init__(
        self,
        path: StrPath,
        columns: Mapping[str, str],
        *,
        compression: str | None = None,
        hashes: Iterable[str] = (),
        size_limit: int | None = 1 << 26,
        sync: bool = True,
    ) -> None:
        if size_limit is not None and size_limit < 0:
            raise ValueError(f"size_limit {size_limit} is negative")
        self._core = _core.MdsWriter(
            os.fspath(path), list(columns.items()), compression, list(hashes), min(size_limit or 0, 1 << 32), sync
        )
        self._fixed = {name: fixed for name, _, fixed in self._core.columns}
        self._encode = {name: _ENCODERS[text] for name, text in columns.items() if text in _ENCODERS}
        if not self._encode and type(self).write is Writer.write:
            self.write = self._core.write  # type: ignore[method-assign]  # all that is left of `write`, without its frame

    def write(self, sample: Mapping[str, Any]) -> None:
        """Adds one sample. A value that is `bytes` is written as it is, whatever the encoding.

        Args:
            sample: A value for each column; further keys are ignored.

        Raises:
            KeyError: A column is missing.
            ValueError: A value does not fit its column; nothing is written.
            TypeError: A value is of another type than its column's.
            OSError: A shard could not be written. Nothing can be published any more.
        """
        if self._encode:
            encoded = {name: self._encoded(name, sample[name]) for name in self._encode if name in sample}
            sample = {**sample, **encoded}
        self._core.write(sample)

    def write_batch(self, batch: Mapping[str, Any]) -> None:
        """Adds N samples at once: all of them, or none where a value does not fit.

        Args:
            batch: For each column a sequence of N values; of a column of fixed arrays also an array (N, *shape), of one
                of numbers an array (N,).

        Raises:
            ValueError: The columns have different lengths, or as in `write`.
            KeyError: As in `write`; also `TypeError` and `OSError`.
        """
        columns: dict[str, Any] = {}
        lengths = {}
        for name, fixed in self._fixed.items():
            if name not in batch:
                raise KeyError(f"the batch has no column {name!r}")
            values = batch[name]
            lengths[name] = len(values)
            if name in self._encode:
                values = [self._encoded(name, value) for value in values]
            elif fixed is not None and isinstance(values, np.ndarray):
                values = _rows(values, *fixed)
            columns[name] = values
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")
        self._core.write_batch(next(iter(lengths.values())), columns)

    def add_file(self, name: str, data: bytes) -> None:
        """Adds a further file, published together with the shards.

        Args:
            name: Its name, without a separator, not that of a shard or the index.
            data: What is in it.

        Raises:
            ValueError: Such a name, or one that was added before.
            OSError: It could not be written. Nothing can be published any more.
        """
        self._core.add_file(name, data)

    def close(self) -> None:
        """Writes what is left and the index, and publishes the dataset. A second time does nothing.

        Raises:
            FileExistsError: Another process has published there meanwhile; what was written here is removed.
            OSError: Something could not be written; nothing is published.
        """
        self._core.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._core.abort()

    def _encoded(self, name: str, value: Any) -> Any:
        if isinstance(value, bytes):
            return value
        try:
            return self._encode[name](value)
        except TypeError as error:
            raise TypeError(f"column {name!r}: {error}") from None
        except ValueError as error:
            raise ValueError(f"column {name!r}: {error}") from None


class Reader:
    """A dataset that is open for reading: a sequence of samples, each a dict of its columns.

    Files are opened when they are first touched, checked against their index then, and read by position. A reader can
    be shared between threads, pickled (as its path) and used after a fork.

    A column whose encoding is `pkl` or not known here gives its bytes. Arrays are writable and own their memory.

    Args:
        path: The dataset's folder.
        cache_bytes: Bytes of shards that are held in memory. Of compressed ones, as many as fit, and one always. Others
            are held only where the whole dataset is not larger, nor larger than an eighth of the memory that is
            available when it is opened, each from when as many samples have been read of it as it has. A forked child
            shares what its parent holds, and neither it nor an unpickled reader takes more of these: the system's page
            cache holds them for all processes.

    Raises:
        FileNotFoundError: There is no index.json in it.
        latentq.FormatError: The index breaks its format.
        ValueError: `cache_bytes` is negative.

    Attributes:
        path: The dataset's folder, absolute.
        columns: Encoding of each column by name, as `Writer` takes them.
    """

    path: Path
    columns: dict[str, str]

    def __init__(self, path: StrPath, *, cache_bytes: int = 1 << 30) -> None:
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes {cache_bytes} is negative")
        cache_bytes = min(cache_bytes, sys.maxsize)
        available = available_bytes()
        self._open(path, cache_bytes, cache_bytes if available is None else max(available // _SHARE, 0))

    def _open(self, path: StrPath, cache_bytes: int, raw_bytes: int) -> None:
        self.path = Path(path).absolute()
        self._cache_bytes = cache_bytes
        self._core = _core.MdsReader(str(self.path), cache_bytes, raw_bytes)
        described = self._core.columns
        self.columns = {name: encoding for name, encoding, _ in described}
        self._fixed = {name: fixed for name, _, fixed in described}
        self._place = {name: at for at, name in enumerate(self.columns)}
        self._decode = {name: _DECODERS[text] for name, text in self.columns.items() if text in _DECODERS}

    @property
    def core(self) -> _core.MdsReader:
        """What the core's `gather` reads from."""
        return self._core

    def __len__(self) -> int:
        return len(self._core)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The sample at `index`, negative from the end.

        Raises:
            IndexError: There is no such sample.
            latentq.FormatError: The shard, or a value in it, breaks its format.
        """
        try:
            sample = self._core.sample(index)
        except OverflowError:
            raise IndexError(f"index {index} is out of bounds for axis 0 with size {len(self)}") from None
        for name in self._decode:
            sample[name] = self._decoded(name, sample[name], index)
        return sample

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (str(self.path), self._cache_bytes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @overload
    def gather(self, indices: ArrayLike, column: str, *, out: NDArray[np.uint8] | None = None) -> Any: ...
    @overload
    def gather(
        self, indices: ArrayLike, column: Sequence[str], *, out: Mapping[str, NDArray[np.uint8]] | None = None
    ) -> dict[str, Any]: ...
    def gather(self, indices: ArrayLike, column: str | Sequence[str], *, out: Any = None) -> Any:
        """One column of many samples, or several columns.

        Args:
            indices: n integers in any order, negative from the end, also several times.
            column: A column's name, or several.
            out: C-contiguous uint8 array (n, k) for the bytes of one column's values, each of exactly k bytes; with
                several columns, a dict of such arrays for any of them.

        Returns:
            For a column of fixed arrays or numbers, an array (n, *shape) of its dtype; for any other, a list; `out`
            where it is given. For several columns, a dict of these.

        Raises:
            IndexError: There is no such sample.
            KeyError: There is no such column.
            ValueError: `out` is not of that kind, has arrays that overlap or are for columns not asked for, or a
                value has not k bytes.
            latentq.FormatError: A shard, or a value in it, breaks its format.
        """
        places = _indices(indices)
        if isinstance(column, str):
            return self._gather(places, [column], [out])[0]
        names, outs = list(column), {} if out is None else out
        if not isinstance(outs, Mapping):
            raise ValueError("with several columns, out must be a dict of arrays by column")
        if further := [name for name in outs if name not in names]:
            raise ValueError(f"out has arrays for {further}, which are not among the columns {names}")
        return dict(zip(names, self._gather(places, names, [outs.get(name) for name in names]), strict=True))

    def stored(self, index: int, column: str) -> Any:
        """One column of one sample, images as the bytes that are stored and not as pictures.

        Raises:
            IndexError: There is no such sample.
            KeyError: There is no such column.
            latentq.FormatError: The shard breaks its format.
        """
        try:
            places = np.array([operator.index(index)], np.int64)
        except OverflowError:
            raise IndexError(f"index {index} is out of bounds for axis 0 with size {len(self)}") from None
        values = self._core.gather(places, [self.stored_as(column)[0]], [None])[0]
        assert values is not None
        return values[0]

    def stored_as(self, column: str) -> tuple[int, tuple[str, list[int]] | None]:
        """A column's number, and the dtype and shape of its values where all have the same.

        Raises:
            KeyError: There is no such column.
        """
        if column not in self._place:
            raise KeyError(f"{self.path} has no column {column!r}, but {', '.join(map(repr, self.columns))}")
        return self._place[column], self._fixed[column]

    def _gather(self, indices: NDArray[np.int64], names: list[str], outs: list[NDArray[np.uint8] | None]) -> list[Any]:
        n = len(indices)
        arrays: list[Any] = []
        buffers: list[NDArray[np.uint8] | None] = []
        for name, out in zip(names, outs, strict=True):
            _, fixed = self.stored_as(name)
            if out is not None:
                good = isinstance(out, np.ndarray) and out.dtype == _UINT8 and out.ndim == 2 and len(out) == n
                if not good or not out.flags.c_contiguous or not out.flags.writeable:
                    raise ValueError(f"out must be a C-contiguous, writeable uint8 array of shape ({n}, k)")
                arrays.append(out)
                buffers.append(out)
            elif fixed is not None:
                dtype, shape = np.dtype(fixed[0]), fixed[1]
                array = np.empty((n, *shape), dtype)
                arrays.append(array)
                buffers.append(array.reshape(-1).view(np.uint8).reshape(n, _size(dtype, shape)))
            else:
                arrays.append(None)
                buffers.append(None)
        given = [out for out in outs if out is not None]
        if len(given) > 1 and any(np.may_share_memory(*pair) for pair in combinations(given, 2)):
            raise ValueError("the arrays of out overlap")
        lists = self._core.gather(indices, [self._place[name] for name in names], buffers)
        return [
            array if values is None else self.decoded_list(name, values, indices)
            for name, array, values in zip(names, arrays, lists, strict=True)
        ]

    def decoded_list(self, name: str, values: list[Any], indices: NDArray[np.int64]) -> list[Any]:
        """Values of a column as `gather` gives them, from what the core makes of them."""
        if name not in self._decode:
            return values
        return [self._decoded(name, value, index) for value, index in zip(values, indices.tolist(), strict=True)]

    def _decoded(self, name: str, value: Any, index: int) -> Any:
        try:
            return self._decode[name](value)
        except _NOT_THE_VALUE:
            raise
        except Exception as error:  # on damaged bytes Pillow's plugins raise what they like: SyntaxError, struct.error
            self._core.fault(index, self._place[name], str(error))


def merge(path: StrPath, folders: Sequence[str] | None = None) -> None:
    """Makes one dataset of several: writes `path/index.json`, whole or not at all, as mosaicml's `merge_index` would.

    Args:
        path: The folder that the datasets lie in.
        folders: Their names, in the order of the samples. Without: every immediate sub-folder that has an index.json,
            but those whose name begins with a dot, in the order of their names.

    Raises:
        FileNotFoundError: A folder has no index.json, or there is no folder that has one.
        latentq.FormatError: The index of a folder breaks its format.
        ValueError: A name is not that of an immediate sub-folder.
    """
    if folders is None and not any(Path(path).glob("[!.]*/index.json")):
        raise FileNotFoundError(errno.ENOENT, "no sub-folder holds an index.json", os.fspath(path))
    _core.mds_merge(os.fspath(path), None if folders is None else list(folders))


def merged_index(path: StrPath, folders: Sequence[str]) -> bytes:
    """The bytes that `merge(path, folders)` writes, not written. Raises as it does."""
    return _core.mds_merged_index(os.fspath(path), list(folders))


@dataclass(frozen=True)
class Finding:
    """Something wrong with a file of a dataset.

    Attributes:
        file: Path below the dataset's folder.
        offset: Bytes from the start of the file; where a compressed shard was understood, of its uncompressed form.
        message: One line.
    """

    file: str
    offset: int
    message: str


@dataclass(frozen=True)
class Repair:
    """What `repair` did.

    Attributes:
        shards: How many shards the index lists now.
        samples: How many samples are in them.
        left_out: Shards that could not be listed, and why. The files are left as they are.
        kept: The names, below the folder, under which indexes that were there are kept.
    """

    shards: int
    samples: int
    left_out: list[Finding]
    kept: list[str]


def verify(path: StrPath) -> list[Finding]:
    """Everything that is wrong with a dataset: index, sizes, every hash, counts, every value of every sample.

    Images are decoded with Pillow, which is needed only where there are columns of them.

    Args:
        path: The dataset's folder.

    Raises:
        FileNotFoundError: There is no index.json in it.
        OSError: The system refuses to read a file.
    """
    findings = [Finding(*finding) for finding in _core.mds_verify(os.fspath(path))]
    if any(finding.file == "index.json" for finding in findings):
        return findings
    reader = Reader(path)
    images = [name for name, encoding in reader.columns.items() if encoding in _IMAGES]
    return findings + _verify_images(reader, images, {finding.file for finding in findings}) if images else findings


def _verify_images(reader: Reader, columns: list[str], broken: set[str]) -> list[Finding]:
    """Findings for images that Pillow cannot decode, in shards that are not `broken` in other ways."""
    findings = []
    for index in range(len(reader)):
        for name in columns:
            at = reader._place[name]
            try:
                values = reader._core.gather(np.array([index]), [at], [None])[0]
            except FormatError:
                continue  # the core has found it
            try:
                for value in values or []:
                    decoded = reader._decode[name](value)
                    for image in decoded if isinstance(decoded, list) else [decoded]:
                        image.load()
            except _NOT_THE_VALUE:
                raise
            except Exception as error:  # as in `Reader._decoded`
                file, offset = reader._core.place(index, at)
                if file not in broken:
                    findings.append(Finding(file, offset, f"sample {index}, column {name!r}: {error}"))
    return findings


def repair(path: StrPath) -> Repair:
    """Makes an index.json from the shards in a folder alone. Nothing is deleted.

    Where there are no shards in the folder itself but in its sub-folders, each of these that has lost its index gets
    one, and the folder the merged one.

    Args:
        path: The folder.

    Raises:
        latentq.FormatError: There is no shard in it.
        OSError: A file cannot be read or written.
    """
    shards, samples, left_out, kept = _core.mds_repair(os.fspath(path))
    return Repair(shards, samples, [Finding(*finding) for finding in left_out], kept)


def _unpickled(path: str, cache_bytes: int) -> Reader:
    reader = Reader.__new__(Reader)
    reader._open(path, cache_bytes, 0)
    return reader


def _size(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


def _indices(indices: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(indices)
    if array.dtype == _INT64 and array.ndim == 1 and array.flags.c_contiguous:
        return array
    if array.ndim != 1:
        raise ValueError(f"indices must have one axis, not {array.ndim}")
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, not {array.dtype}")
    if array.dtype.kind == "u" and array.max() > np.iinfo(np.int64).max:
        raise IndexError(f"index {array.max()} is out of bounds")
    return np.ascontiguousarray(array, np.int64)


def _rows(values: NDArray[Any], dtype: str, shape: list[int]) -> Any:
    """The bytes of an array (N, *shape) in C order; where its dtype is another, its values one by one."""
    if values.dtype.name != dtype or list(values.shape[1:]) != shape:
        return list(values)
    return np.ascontiguousarray(values, np.dtype(dtype)).reshape(-1).view(np.uint8)


# What needs Python's own types: each takes a value and gives bytes or text, and back.


def _need(value: Any, kind: type | tuple[type, ...], what: str) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{what} is needed, not {type(value).__name__}")


def _encode_json(value: Any) -> str:
    return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)


def _encode_int(value: Any) -> str:
    _need(value, int, "an int")
    return str(int(value))  # of True the stock writer makes a text that no reader takes


def _encode_float(value: Any) -> str:
    _need(value, float, "a float")
    return str(value)


def _encode_decimal(value: Any) -> str:
    _need(value, Decimal, "a Decimal")
    return str(value)


def _need_image(value: Any) -> None:
    from PIL import Image

    _need(value, Image.Image, "a Pillow image")


def _encode_pil(value: Image.Image) -> bytes:
    _need_image(value)
    mode = value.mode.encode()
    return np.array([*value.size, len(mode)], "<u4").tobytes() + mode + value.tobytes()


def _encode_jpeg(value: Image.Image) -> bytes:
    _need_image(value)
    # A JPEG that comes from a file is not encoded a second time.
    name = getattr(value, "filename", "")
    if value.format == "JPEG" and name and Path(name).is_file():
        return Path(name).read_bytes()
    return _saved(value, "JPEG")


def _encode_png(value: Image.Image) -> bytes:
    _need_image(value)
    return _saved(value, "PNG")


def _saved(value: Image.Image, kind: str) -> bytes:
    out = BytesIO()
    value.save(out, format=kind)
    return out.getvalue()


def _joined(blobs: list[bytes], head: bytes = b"") -> bytes:
    lengths = np.array([len(blobs), *map(len, blobs)], np.uint64)
    if lengths.max() >= 1 << 32:
        raise ValueError("an element of 4 GiB or more")
    return b"".join([head, lengths.astype("<u4").tobytes(), *blobs])


def _list_encoder(encode: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def encode_list(value: Any) -> bytes:
        _need(value, list, "a list")
        return _joined([item if isinstance(item, bytes) else encode(item) for item in value], bytes(4))

    return encode_list


def _encode_jpeg_array(value: Sequence[bytes]) -> bytes:
    return _joined([bytes(item) for item in value])


def _decode_pil(value: bytes) -> Image.Image:
    from PIL import Image

    width, height, length = np.frombuffer(value, "<u4", 3).tolist()
    mode = value[12 : 12 + length].decode()
    return Image.frombytes(mode, (width, height), value[12 + length :])


def _decode_image(value: bytes) -> Image.Image:
    from PIL import Image

    return Image.open(BytesIO(value))


def _list_decoder(decode: Callable[[bytes], Image.Image]) -> Callable[[list[bytes]], list[Image.Image]]:
    return lambda values: [decode(value) for value in values]


_ENCODERS: dict[str, Callable[[Any], bytes | str]] = {
    "json": _encode_json,
    "str_int": _encode_int,
    "str_float": _encode_float,
    "str_decimal": _encode_decimal,
    "pil": _encode_pil,
    "jpeg": _encode_jpeg,
    "png": _encode_png,
    "jpeg_array": _encode_jpeg_array,
    "jpegarray": _encode_jpeg_array,
    "list[pil]": _list_encoder(_encode_pil),
    "list[jpeg]": _list_encoder(_encode_jpeg),
    "list[png]": _list_encoder(_encode_png),
}


_DECODERS: dict[str, Callable[[Any], Any]] = {
    "json": json.loads,
    "str_int": int,
    "str_float": float,
    "str_decimal": Decimal,
    "pil": _decode_pil,
    "jpeg": _decode_image,
    "png": _decode_image,
    "jpeg_array": _list_decoder(_decode_image),
    "jpegarray": _list_decoder(_decode_image),
    "list[pil]": _list_decoder(_decode_pil),
    "list[jpeg]": _list_decoder(_decode_image),
    "list[png]": _list_decoder(_decode_image),
}


# Raised by a decoder, these say nothing of what it was given: Pillow is not installed, or memory is short.
_NOT_THE_VALUE = (ImportError, MemoryError)


_IMAGES = {"pil", "jpeg", "png", "jpeg_array", "jpegarray", "list[pil]", "list[jpeg]", "list[png]"}
