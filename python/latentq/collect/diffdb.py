"""DiffusionDB, large: zips of WebP images in two parts, and a parquet of prompts and safety scores."""

from __future__ import annotations

from latentq.collect.base import Collection, Request
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles

_REPOSITORY = "poloclub/diffusiondb"
_METADATA = "metadata-large.parquet"
_FIRST_OF_PART_2 = 10_001


def _files(request: Request, _: HubFiles) -> list[File]:
    numbers = request.numbers(range(1, 14_001), small=range(1, 141))
    archives = [File(str(number), _path(number), _REPOSITORY) for number in numbers]
    return [File(_METADATA, _METADATA, _REPOSITORY), *archives]


def _path(number: int) -> str:
    return f"diffusiondb-large-part-{1 if number < _FIRST_OF_PART_2 else 2}/part-{number:06}.zip"


COLLECTION = Collection(_files, limits={"image_nsfw": 0.2, "prompt_nsfw": 0.2})
