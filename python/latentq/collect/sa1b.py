"""Segment Anything: tars from a list of links on its page, and captions by LLaVA from the Hub."""

from __future__ import annotations

import re
from pathlib import Path

from latentq._core import FormatError
from latentq.collect.base import COLUMNS, Collection, Request
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles

_CAPTIONS = File("SA1B_caption.tar.gz", "SA1B_caption.tar.gz", "PixArt-alpha/SAM-LLaVA-Captions10M")
_NAME = re.compile(r"[\w.-]*?(\d+)\.tar")


def _files(request: Request, _: HubFiles) -> list[File]:
    assert request.links is not None
    links = _links(Path(request.links))
    every = list(links)
    archives = [links[number] for number in request.numbers(every, small=every[: -(-len(every) // 100)])]
    return [_CAPTIONS, *archives]


def _links(path: Path) -> dict[int, File]:
    """Reads the list of links: archives by number, in the order of the list.

    Raises:
        OSError: The list cannot be read.
        FormatError: The file is not a list of links.
    """
    archives: dict[int, File] = {}
    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise FormatError(f"{path} is not UTF-8 text: give the list of links, file name<TAB>link") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, link = (cell.strip() for cell in line.partition("\t"))
        match = _NAME.fullmatch(name)
        if match is None and number == 1:  # the header
            continue
        if match is None or not link.startswith(("http://", "https://")):
            raise FormatError(f"{path}, line {number}: expected the name of a tar, a tab and its link")
        archives.setdefault(int(match[1]), File(str(int(match[1])), name, address=link))
    if not archives:
        raise FormatError(f"{path} holds no links: expected a header, then lines of file name<TAB>link")
    return archives


COLLECTION = Collection(
    _files,
    takes=("ids", "links"),
    advice="links to Segment Anything expire: download the list of links again from its page, and give it with --links",
    columns={("caption_syn_pixart_llava15" if name == "caption" else name): what for name, what in COLUMNS.items()},
)
