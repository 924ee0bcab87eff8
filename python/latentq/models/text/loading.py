"""From a name to a text encoder of transformers: finds model and tokenizer, and checks the weights."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latentq._core import LatentqError
from latentq.models.hub import downloaded, matching
from latentq.models.text.base import UNLOADABLE, TextNetwork
from latentq.models.text.clip import ClipText
from latentq.models.text.t5 import T5Text
from latentq.models.weights import check_weights

_CONFIG = "config.json"


_INNER = "text_encoder"  # in a diffusers pipeline; its tokenizer is `tokenizer`


# What is fetched of a repository: the first of these that is there. An index goes with the files that it names.
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"),
)


_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")


_TOKENIZER = ("tokenizer*", *_VOCABULARIES[1:], "merges.txt", "special_tokens_map.json", "added_tokens.json")


def load(name: str, *, revision: str, subfolder: str, length: int) -> TextNetwork:
    """A text encoder from a folder or the hub, on the CPU.

    Raises:
        LatentqError: There is none, or it is of a kind that is not known; one line.
        ModuleNotFoundError: A package is missing.
        ValueError: It takes fewer tokens than `length`.
    """
    path = Path(name)
    title = path.resolve().name if path.is_dir() else name
    root = (
        path if path.is_dir() else downloaded("text encoder", name, revision, lambda names: _wanted(names, subfolder))
    )
    inner = subfolder or (_INNER if (root / _INNER / _CONFIG).is_file() else "")
    folder = root / inner
    if not (folder / _CONFIG).is_file():
        raise LatentqError(f"{folder} holds no text encoder: it has no {_CONFIG}, and no sub-folder {_INNER} with one")
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
        kind, classes = config["model_type"], config.get("architectures") or []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LatentqError(f"cannot load the text encoder {name!r}: {folder / _CONFIG}: {error!r}") from None
    import transformers

    if kind in ("clip_text_model", "clip"):
        # A whole CLIP has the projection; a text model says by its class.
        projected = kind == "clip" or "CLIPTextModelWithProjection" in classes
        family: Any = ClipText
        model = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    elif kind == "t5":
        family, model = T5Text, transformers.T5EncoderModel
    else:
        raise LatentqError(f"{name} is of type {kind}; the types that can be loaded are: clip, clip_text_model, t5")
    import torch

    beside = root / _tokenizer_of(inner)
    if not any((beside / file).is_file() for file in _VOCABULARIES):
        raise LatentqError(
            f"cannot load the text encoder {name!r}: {beside} holds no tokenizer; name the whole pipeline"
        )
    try:
        with _quiet():
            module, info = model.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(beside)
    except ModuleNotFoundError:
        raise
    except UNLOADABLE as error:
        reason = " ".join(str(error).split())
        raise LatentqError(f"cannot load the text encoder {name!r}: {reason}") from None
    # transformers would fill what is missing at random, and only log it. The rest of a larger model may be left over.
    check_weights(
        name,
        missing=info["missing_keys"],
        of_other_shape=[key for key, *_ in info["mismatched_keys"]],
        left_over=[],
    )
    network: TextNetwork = family(module, tokenizer, title, length=length)
    return network


def _tokenizer_of(inner: str) -> str:
    """Where the tokenizer of an encoder in a sub-folder lies: `tokenizer_2` for `text_encoder_2`; else with it."""
    parent, _, last = inner.rpartition("/")
    return "/".join(filter(None, (parent, last.replace(_INNER, "tokenizer"))))


def _wanted(names: list[str], subfolder: str) -> list[str]:
    """Which of a repository's files make the encoder and its tokenizer."""
    inner = subfolder or (_INNER if f"{_INNER}/{_CONFIG}" in names else "")
    prefix = f"{inner}/" if inner else ""
    beside = f"{_tokenizer_of(inner)}/" if inner else ""
    if f"{prefix}{_CONFIG}" not in names:
        raise LatentqError(f"it has no {prefix}{_CONFIG}, and no {_INNER}/{_CONFIG}")
    for patterns in _WEIGHTS:
        found = matching(names, prefix, *patterns)
        if prefix + patterns[0] in found:
            return [f"{prefix}{_CONFIG}", *found, *matching(names, beside, *_TOKENIZER)]
    raise LatentqError(f"it has no weights of transformers beside {prefix}{_CONFIG}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own hints: what is wrong is raised."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
