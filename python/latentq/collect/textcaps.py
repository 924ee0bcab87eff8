"""TextCaps: the parquet files of its dataset on the Hub, or those that the Hub converted if it has none."""

from __future__ import annotations

import re

from latentq._core import LatentqError
from latentq.collect.base import COLUMNS, Collection, Request
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles

_REPOSITORY = "HuggingFaceM4/TextCaps"
_SPLITS = {"train", "validation"}


def _files(_: Request, hub: HubFiles) -> list[File]:
    for revision in ("main", "refs/convert/parquet"):
        paths = [path for path in hub.paths(_REPOSITORY, revision) if path.endswith(".parquet")]
        if wanted := [path for path in paths if _SPLITS & set(re.split(r"[/._-]", path))]:
            return [File(path, path, _REPOSITORY, revision) for path in wanted]
    raise LatentqError(f"{_REPOSITORY} has no parquet files of train and validation")


COLLECTION = Collection(_files, takes=(), columns={**COLUMNS, "image_id": ("id", "str")})
