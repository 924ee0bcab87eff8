"""JourneyDB: tgz of pictures, train and valid; a token of an account that has accepted its terms is needed."""

from __future__ import annotations

from latentq.collect.base import Collection, Request
from latentq.collect.file import File
from latentq.collect.hub import Hub

_REPOSITORY = "JourneyDB/JourneyDB"


_ANNOTATIONS = ("data/train/train_anno_realease_repath.jsonl.tgz", "data/valid/valid_anno_repath.jsonl.tgz")


def _files(request: Request, _: Hub) -> list[File]:
    numbers = request.numbers(range(200), small=range(2))
    archives = [
        (str(number), f"data/{split}/imgs/{number:03}.tgz") for split in ("train", "valid") for number in numbers
    ]
    return [File(name, path, _REPOSITORY) for name, path in ((*((path, path) for path in _ANNOTATIONS), *archives))]


COLLECTION = Collection(_files)
