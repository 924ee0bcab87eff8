"""Captions in a separate file, joined to the samples of a source by name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from latentq._core import FormatError, LatentqError
from latentq.sources.columns import CAPTION, KEY, caption_facts, captions_field, captions_in, column_of
from latentq.sources.delimited import DELIMITERS, table_rows
from latentq.sources.listing import Listing, Sample, Source, deferred_read
from latentq.sources.member import MAX_MEMBER_BYTES, Reads, plain_name
from latentq.sources.parquet import open_parquet, rows_of
from latentq.sources.sidecars import MAX_TEXT_BYTES
from latentq.sources.tar import Tar
from latentq.sources.zip import Zip
from latentq.store.local import check_regular
from latentq.system.text import counted

_NO_CAPTION, _UNSAFE = "no caption in", "not safe:"
_CaptionRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Found:
    """The captions of the rows that belong to a sample.

    Attributes:
        exactness: The position in `_names` of the name that the rows use.
        captions: The captions of all rows.
        fault: The fault of the first row, or empty.
    """

    exactness: int
    captions: tuple[str, ...]
    fault: str


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
    """

    path: str | os.PathLike[str]
    key: str | None = None
    caption: str | None = None
    limits: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Captions:
        """Parses `FILE`, or `FILE:KEY,CAPTION` to name the columns.

        Raises:
            FileNotFoundError: There is no such file.
            LatentqError: The text after the colon is not two names.
        """
        path, colon, names = text.rpartition(":")
        if Path(text).exists() or not colon:
            Path(text).stat()
            return cls(text)
        Path(path).stat()
        key, comma, caption = names.partition(",")
        if not (key and comma and caption):
            raise LatentqError(f"captions {text}: name two columns: KEY,CAPTION")
        return cls(path, key, caption)

    def join(self, listing: Listing) -> Listing:
        """Returns the listing with captions; a sample without a caption, or above a limit, gets that as its fault.

        Raises:
            OSError: The file cannot be read.
            FormatError: The file cannot be understood.
            LatentqError: The file lacks a needed column, or has no caption for any sample.
        """
        found = self._found(listing.samples)
        missing = f"{_NO_CAPTION} {Path(self.path).name}"
        samples = []
        for number, sample in enumerate(listing.samples):
            described = found.get(number, _Found(0, (), missing))
            captions, fault = described.captions, described.fault or ("" if described.captions else missing)
            facts = {**caption_facts(captions), "fault": sample.fault or fault}
            samples.append(replace(sample, **facts | {"caption": facts["caption"] or ""}))
        fields = [name for name in listing.fields if name not in ("caption", "captions", "fault")]
        return Listing(tuple(samples), ("caption", *captions_field(samples), *fields, "fault"), listing.notes)

    def _found(self, samples: Sequence[Sample]) -> dict[int, _Found]:
        """Finds the rows of each sample, by the sample's number.

        A row that gives an image's path belongs to that image alone, and not to others of the same file name. A sample
        takes the rows that name it most exactly.
        """
        wanted: dict[str, tuple[int, list[int]]] = {}
        for number, sample in enumerate(samples):
            for exactness, name in enumerate(_names(sample)):
                if not name:
                    continue
                if name not in wanted or exactness < wanted[name][0]:
                    wanted[name] = (exactness, [number])
                elif exactness == wanted[name][0]:
                    wanted[name][1].append(number)
        found: dict[int, _Found] = {}
        name = ""
        for name, captions, fault in self._rows():
            exactness, numbers = wanted.get(name, (0, []))
            for number in numbers:
                earlier = found.get(number)
                if earlier is None or exactness < earlier.exactness:
                    found[number] = _Found(exactness, captions, fault)
                elif exactness == earlier.exactness:
                    found[number] = replace(earlier, captions=earlier.captions + captions)
        if not found:
            names = f": it names {name!r}, the source {samples[0].text!r}" if name and samples else ""
            raise LatentqError(f"{self.path} has no caption for any of {counted(len(samples), 'sample')}{names}")
        return found

    def _rows(self) -> Iterator[tuple[str, tuple[str, ...], str]]:
        """Yields each row's image name, captions and fault.

        JSON rows may lack a column. The first row that has all needed columns decides which they are.
        """
        path = Path(self.path)
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

    def _parquet(self, path: Path) -> Iterator[_CaptionRow]:
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


class WithCaptions:
    """A source whose captions are in a separate file."""

    def __init__(self, source: Source, captions: Captions) -> None:
        self.kind = source.kind
        self._source, self._captions = source, captions
        self.files = getattr(source, "files", None)

    def listing(self) -> Listing:
        """Returns the source's listing, with captions."""
        return self._captions.join(self._source.listing())

    def unchanged(self, listing: Listing) -> bool:
        """True if both the source and the captions are still those of a listing."""
        unchanged = getattr(self._source, "unchanged", None)
        if unchanged is None or not unchanged(listing):
            return False
        bare = tuple(
            replace(s, caption=None, captions=None, fault="" if s.fault.startswith((_NO_CAPTION, _UNSAFE)) else s.fault)
            for s in listing.samples
        )
        return self._captions.join(replace(listing, samples=bare)).to_tsv() == listing.to_tsv()

    def data(self, sample: Sample) -> bytes | Path:
        """Returns the sample's data, as the source does."""
        return self._source.data(sample)

    def deferred(self, sample: Sample) -> Callable[[], bytes] | None:
        """Returns a function that reads the sample, as the source does."""
        return deferred_read(self._source, sample)


def _names(sample: Sample) -> Iterable[str]:
    """Returns the names that a row may use for a sample, best first: id, key, path in the archive, file name, stem."""
    path = sample.key[len(sample.archive) + 1 :] if sample.archive else sample.key
    base = path.rpartition("/")[2]
    stem = base.rpartition(".")[0]
    return sample.id or "", plain_name(sample.key), plain_name(path), base, stem  # empty if there is none


def _rows(path: Path) -> Iterator[_CaptionRow]:
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


def _table(path: Path) -> Iterator[_CaptionRow]:
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


def _zip(path: Path) -> Iterator[_CaptionRow]:
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


def _tar(path: Path) -> Iterator[_CaptionRow]:
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
