"""Captions in a separate file, joined to the samples of a source by name."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentq._core import FormatError, LatentqError
from latentq.sources.columns import CAPTION, KEY, caption_facts, captions_in, column_of
from latentq.sources.delimited import DELIMITERS, table_rows
from latentq.sources.file_dict import FileDict
from latentq.sources.listing import Listing, Sample, Source, connections_of, deferred_read
from latentq.sources.member import MAX_MEMBER_BYTES, Reads, plain_name
from latentq.sources.parquet import open_parquet, rows_of
from latentq.sources.sidecars import MAX_TEXT_BYTES
from latentq.sources.spool import spooled
from latentq.sources.tar import Tar
from latentq.sources.zip import Zip
from latentq.store.files import File, Stores, is_stored
from latentq.store.local import check_regular
from latentq.system.text import counted

_NO_CAPTION, _UNSAFE = "no caption in", "not safe:"
_CaptionRow = Mapping[str, Any]


@dataclass(frozen=True)
class Captions:
    """A file of captions: JSON, JSON lines, CSV, TSV, parquet, COCO's .zip, or a .tgz of JSON lines or .txt files.

    The key of a row is a sample's key, the path of an image (in its archive), its file name, or its file name without
    the extension; the most exact of these counts. An image may have several rows, and a row several captions.

    Attributes:
        path: The file.
        key: The column that names the image; None looks for a usual name.
        caption: The column of captions; None looks for a usual name.
        limits: Rejects an image if one of these columns is above its limit.
        storage_options: For a URL: see `latentq.store.objects.ObjectStore`.
    """

    path: str | os.PathLike[str]
    key: str | None = None
    caption: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)
    storage_options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Captions:
        """Parses `FILE`, or `FILE:KEY,CAPTION` to name the columns. The file may be a URL.

        Raises:
            FileNotFoundError: There is no such file.
            LatentqError: The text after the colon is not two names.
        """
        path, colon, names = text.rpartition(":")
        if is_stored(text):  # that it exists is found when it is read, with the options of its store
            if "/" in names:  # the colon of `s3://`
                return cls(text)
        elif Path(text).exists() or not colon:
            Path(text).stat()
            return cls(text)
        else:
            Path(path).stat()
        key, comma, caption = names.partition(",")
        if not (key and comma and caption):
            raise LatentqError(f"captions {text}: name two columns: KEY,CAPTION")
        return cls(path, key, caption)

    def join(self, listing: Listing) -> Listing:
        """Returns the listing with captions; a sample without a caption, or above a limit, gets that as its fault.

        The samples raise OSError if the file cannot be read, FormatError if it cannot be understood, and LatentqError
        if it lacks a needed column, or has no caption for any sample.
        """
        return Listing(self._joined(listing.samples), listing.notes)

    def _joined(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """Yields the samples with captions, once all are taken.

        A row that gives an image's path belongs to that image alone, and not to others of the same file name. A sample
        takes the rows that name it most exactly.
        """
        rows, last_name = self._by_name()
        exactness: FileDict[int] = FileDict()  # of the samples that each name is for
        count = 0
        first = ""

        def named() -> Iterator[Sample]:
            nonlocal count, first
            for sample in samples:
                first = first if count else sample.text
                count += 1
                for position, name in enumerate(_names(sample)):
                    if name in rows:
                        known = exactness.get(name)
                        if known is None or position < known:
                            exactness[name] = position
                yield sample

        missing = f"{_NO_CAPTION} {Path(self.path).name}"
        for fields in spooled(named()):
            if not exactness:
                break
            sample = Sample(*fields)
            names = (name for position, name in enumerate(_names(sample)) if exactness.get(name) == position)
            captions, fault = rows.get(next(names, "")) or ((), missing)
            fault = sample.fault or fault or ("" if captions else missing)
            yield sample._replace(**caption_facts(captions) | {"caption": captions[0] if captions else ""}, fault=fault)
        if not exactness:
            names_shown = f": it names {last_name!r}, the source {first!r}" if last_name and count else ""
            raise LatentqError(f"{self.path} has no caption for any of {counted(count, 'sample')}{names_shown}")

    def _by_name(self) -> tuple[_RowsByName, str]:
        """Returns all rows by name, and the last row's name."""
        found = _RowsByName()
        name = ""
        for name, captions, fault in self._rows():
            if name:
                found.add(name, captions, fault)
        return found, name

    def _rows(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Yields each row's image name, captions and fault.

        JSON rows may lack a column. The first row that has all needed columns decides which they are.
        """
        path = Stores(self.storage_options).file(self.path)
        if isinstance(path, Path):
            check_regular(path)
        columns: tuple[str, str] | None = None
        missing: LatentqError | None = None
        for row in self._parquet(path) if path.suffix.lower() == ".parquet" else _rows(path):
            if columns is None:
                try:
                    columns = self._columns(row)
                except LatentqError as error:
                    missing = missing or error
                    continue
            key, caption = row.get(columns[0]), row.get(columns[1])
            if key is None:
                continue
            yield plain_name(str(key)), captions_in(caption), self._fault(row)
        if columns is None and missing is not None:
            raise missing

    def _columns(self, row: _CaptionRow) -> tuple[str, str]:
        key = self.key or column_of(KEY, row)
        caption = self.caption or column_of(CAPTION, row)
        needed = ((key, "the image"), (caption, "the caption"), *((name, "a limit") for name in self.limits))
        for name, purpose in needed:
            if name is None or name not in row:
                raise LatentqError(
                    f"{self.path} has no column {f'{name!r} ' if name else ''}for {purpose}: it has {', '.join(row)}"
                )
        assert key is not None
        assert caption is not None
        return key, caption

    def _parquet(self, path: File) -> Iterator[_CaptionRow]:
        """Yields rows of the needed columns only: there may be millions of rows."""
        with open_parquet(path) as file:
            columns = self._columns(dict.fromkeys(file.schema_arrow.names))
            for rows in rows_of(path, file, [*columns, *self.limits]):
                yield from rows

    def _fault(self, row: _CaptionRow) -> str:
        for name, limit in self.limits.items():
            value = row.get(name)
            if value is None or not float(value) <= limit:
                return f"{_UNSAFE} {name} is {value}, above {limit}"
        return ""


class _RowsByName:
    """The captions of all rows of each name, and the fault of the first of them."""

    def __init__(self) -> None:
        self._first: FileDict[tuple[tuple[str, ...], str, int]] = FileDict()  # with the number of rows of the name
        self._others: FileDict[tuple[str, ...]] = FileDict()  # by the row's number among those of its name, `/`, name

    def add(self, name: str, captions: tuple[str, ...], fault: str) -> None:
        """Adds a row. It takes the same time however many rows of its name there are."""
        first = self._first.get(name)
        if first is None:
            self._first[name] = captions, fault, 1
        elif captions:
            first_captions, first_fault, count = first
            self._others[f"{count}/{name}"] = captions
            self._first[name] = first_captions, first_fault, count + 1

    def get(self, name: str) -> tuple[tuple[str, ...], str] | None:
        """Returns the captions and the fault of a name, or None."""
        first = self._first.get(name)
        if first is None:
            return None
        captions, fault, count = first
        others = (self._others.get(f"{number}/{name}") or () for number in range(1, count))
        return (*captions, *itertools.chain.from_iterable(others)), fault

    def __contains__(self, name: str) -> bool:
        return name in self._first


class WithCaptions:
    """A source whose captions are in a separate file."""

    def __init__(self, source: Source, captions: Captions) -> None:
        self.kind = source.kind
        self._source, self._captions = source, captions
        self.files = getattr(source, "files", None)
        self.connections = connections_of(source)

    def listing(self) -> Listing:
        """Returns the source's listing, with captions."""
        return self._captions.join(self._source.listing())

    def unchanged(self, samples: Iterable[Sample]) -> bool:
        """True if both the source and the captions are still those of the listed samples.

        Args:
            samples: The listed samples, which are iterated over several times.
        """
        unchanged = getattr(self._source, "unchanged", None)
        if unchanged is None or not unchanged(samples):
            return False
        again = self._captions.join(Listing(map(_without_captions, samples))).samples
        return all(_caption_facts(old) == _caption_facts(new) for old, new in zip(samples, again, strict=True))

    def data(self, sample: Sample) -> bytes | Path:
        """Returns the sample's data, as the source does."""
        return self._source.data(sample)

    def deferred(self, sample: Sample) -> Callable[[], bytes] | None:
        """Returns a function that reads the sample, as the source does."""
        return deferred_read(self._source, sample)


def _without_captions(sample: Sample) -> Sample:
    """Returns a sample as it was before its captions were joined."""
    joined = sample.fault.startswith((_NO_CAPTION, _UNSAFE))
    return sample._replace(caption=None, captions=None, fault="" if joined else sample.fault)


def _caption_facts(sample: Sample) -> tuple[object, ...]:
    """Returns what `Captions.join` sets, as it reads back from a list."""
    return sample.caption or None, sample.captions, sample.fault


def _names(sample: Sample) -> Iterable[str]:
    """Returns the names that a row may use for a sample, best first: id, key, path in the archive, file name, stem."""
    path = sample.key[len(sample.archive) + 1 :] if sample.archive else sample.key
    base = path.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return sample.id or "", plain_name(sample.key), plain_name(path), base, stem  # empty if there is none


def _rows(path: File) -> Iterator[_CaptionRow]:
    name = path.name.lower()
    try:
        if name.endswith((".tgz", ".tar.gz", ".tar")):
            yield from _tar(path)
        elif name.endswith(".json"):
            yield from _json(path.name, path.read_bytes())
        elif name.endswith(".zip"):
            yield from _zip(path)
        elif path.suffix.lower() in DELIMITERS:
            yield from _table(path)
        elif name.endswith(".jsonl"):
            with path.open("rb") as lines:
                yield from _json_lines(path.name, lines)
        else:
            raise LatentqError(
                f"{path}: a file of captions is a .jsonl, .json, .csv, .tsv, .parquet, COCO's .zip, .tar or .tgz"
            )
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not UTF-8 text") from None
    except RecursionError as error:
        raise FormatError(f"{path}: not a table: {error}") from None


def _table(path: File) -> Iterator[_CaptionRow]:
    """Yields the rows of a CSV or TSV by the names in its header."""
    rows = table_rows(path)
    _, header = next(rows, (0, []))
    for _, row in rows:
        yield dict(zip(header, row, strict=False)) | dict.fromkeys(header[len(row) :])


def _json_lines(name: str, lines: Iterable[bytes]) -> Iterator[_CaptionRow]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise FormatError(f"{name}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise FormatError(f"{name}, line {number}: not a JSON object")
        yield row


def _json(name: str, content: bytes) -> Iterator[_CaptionRow]:
    """Yields the rows of a JSON file: a list of objects, objects by image name, COCO's captions, or JSON lines."""
    try:
        data = json.loads(content)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):  # after the first line
            raise FormatError(f"not JSON: {error}") from None
        yield from _json_lines(name, content.splitlines())
        return
    if isinstance(data, list) and all(isinstance(row, dict) for row in data):
        yield from data
    elif isinstance(data, dict) and data and all(isinstance(row, dict) for row in data.values()):
        for image, row in data.items():
            yield {**row, KEY[0]: image}
    else:
        yield from _coco(data)


def _zip(path: File) -> Iterator[_CaptionRow]:
    """Yields the captions in COCO's zip of annotations, which holds other annotations too."""
    zipped = Zip(path)
    found = False
    try:
        for member in zipped.members(lambda name: Reads(whole=MAX_MEMBER_BYTES if _is_coco_captions(name) else 0)):
            if not _is_coco_captions(member.name):
                continue
            if member.content is None:
                raise FormatError(f"{member.name}: {member.fault}")
            found = True
            try:
                data = json.loads(member.content)
            except ValueError as error:
                raise FormatError(f"{member.name}: not JSON: {error}") from None
            yield from _coco(data)
    finally:
        zipped.close()
    if not found:
        raise FormatError("the zip holds no captions_*.json")


def _is_coco_captions(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.startswith("captions_") and base.endswith(".json")


def _coco(data: Any) -> Iterator[_CaptionRow]:
    """Yields the captions of COCO's JSON, joined to file names by the image's number."""
    try:
        names = {image["id"]: image["file_name"] for image in data["images"]}
        for annotation in data["annotations"]:
            yield {"file_name": names[annotation["image_id"]], "caption": annotation["caption"]}
    except (KeyError, TypeError) as error:
        raise FormatError(f"neither rows of captions nor COCO's captions (images and annotations): {error!r}") from None


def _tar(path: File) -> Iterator[_CaptionRow]:
    """Yields the captions of a tar with a .txt per image, named as the image, or with JSON lines."""
    tar = Tar(path)
    tables = []
    try:
        for member in tar.members(lambda name: Reads(whole=MAX_TEXT_BYTES if name.endswith(".txt") else 0)):
            base = member.name.rpartition("/")[2]
            if base.startswith("._"):
                continue
            if base.endswith(".jsonl"):
                tables.append(member)
            elif member.content is not None:
                yield {"key": base.removesuffix(".txt"), "caption": member.content.decode("utf-8-sig").strip()}
        for member in tables:  # line by line, because they may be of any size
            yield from _json_lines(member.name, tar.lines(member))
    finally:
        tar.close()
