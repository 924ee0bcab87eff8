"""Conceptual Captions 12M: WebDataset tars, each image with its caption in a .txt."""

from __future__ import annotations

from latentq.collect.base import Collection, Request
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles

_REPOSITORY = "pixparse/cc12m-wds"


def _files(request: Request, _: HubFiles) -> list[File]:
    numbers = request.numbers(range(2176), small=range(23))
    archives = [File(str(number), f"cc12m-train-{number:04}.tar", _REPOSITORY) for number in numbers]
    return [File("_info.json", "_info.json", _REPOSITORY), *archives]


COLLECTION = Collection(_files)
