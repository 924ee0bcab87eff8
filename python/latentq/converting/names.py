"""The names of the layouts, for `--from` and `--to`, without importing what reads and writes them."""

from __future__ import annotations

IMAGENET_3GB = "imagenet_3gb"
IMAGENET_INT8 = "imagenet.int8"
VQGAN = "vqgan"
CODES = (IMAGENET_3GB, IMAGENET_INT8, VQGAN)
"""The layouts whose codes are copied unchanged to and from a recipe of latentq."""
WRITTEN = (
    "lightningdit", "repa", "edm2", "repa-e", "mar", "fast-dit", "llamagen", "rar", "cosmos-imagenet", "kohya",
    "musubi", "nemo", "energon",
)  # fmt: skip
"""The other layouts that are read and written."""
NAMES = (*WRITTEN, "prx", "micro-diffusion", "simpletuner")
"""The other layouts, with those that are only read."""
