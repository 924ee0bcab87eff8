"""JourneyDB: tgz archives of images, train and valid. It needs a token of an account that accepted its terms."""

from __future__ import annotations

from latentq.collect.base import Collection, Request
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles

_REPOSITORY = "JourneyDB/JourneyDB"
_ANNOTATIONS = ("data/train/train_anno_realease_repath.jsonl.tgz", "data/valid/valid_anno_repath.jsonl.tgz")


def _files(request: Request, _: HubFiles) -> list[File]:
    numbers = request.numbers(range(200), small=range(2))
    archives = [
        (str(number), f"data/{split}/imgs/{number:03}.tgz") for split in ("train", "valid") for number in numbers
    ]
    annotations = [(path, path) for path in _ANNOTATIONS]
    return [File(name, path, _REPOSITORY) for name, path in (*annotations, *archives)]


COLLECTION = Collection(_files)
