"""COCO 2014, validation: a zip of images and a zip of annotations, from its own site."""

from __future__ import annotations

from latentq.collect.base import COLUMNS, Collection, Request
from latentq.collect.file import File
from latentq.collect.hub_files import HubFiles

_SITE = "http://images.cocodataset.org"
_FILES = ("zips/val2014.zip", "annotations/annotations_trainval2014.zip")


def _files(request: Request, _: HubFiles) -> list[File]:
    site = (request.site or _SITE).rstrip("/")
    return [File(path.rpartition("/")[2], path.rpartition("/")[2], address=f"{site}/{path}") for path in _FILES]


COLLECTION = Collection(
    _files,
    takes=("site",),
    advice=f"{' and '.join(_FILES)} are no longer at that address: give a mirror with --site",
    columns={"jpg": COLUMNS["jpg"], "caption": ("caption", "json")},
)
