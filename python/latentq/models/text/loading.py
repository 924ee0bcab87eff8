"""Loads a text encoder of transformers by name: finds model and tokenizer, and checks the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from latentq._core import LatentqError
from latentq.models.hub import CONFIG, download, matching, weight_files, weight_layouts
from latentq.models.text.base import UNLOADABLE, TextNetwork
from latentq.models.text.clip import ClipText
from latentq.models.text.t5 import T5Text
from latentq.models.weights import check_weights, load_failure, quiet

_PIPELINE_FOLDER = "text_encoder"  # in a diffusers pipeline; its tokenizer is in `tokenizer`
_WEIGHTS = weight_layouts("model", "pytorch_model")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model")
_TOKENIZER = ("tokenizer*", *_VOCABULARIES[1:], "merges.txt", "special_tokens_map.json", "added_tokens.json")


def load(name: str, *, revision: str, subfolder: str, length: int) -> TextNetwork:
    """Loads a text encoder from a folder or the Hub, onto the CPU.

    Args:
        name: A folder, or the name of a repository on the Hub.
        revision: The Hub's branch, tag or commit; empty for the default branch.
        subfolder: The folder of the model inside the folder or repository; empty to look for it.
        length: The number of tokens of a caption; 0 for as many as the model takes.

    Raises:
        LatentqError: There is none, or its family is unknown; the message is one line.
        ModuleNotFoundError: A package is missing.
        ValueError: The model takes fewer tokens than `length`.
    """
    root = Path(name)
    title = root.resolve().name if root.is_dir() else name
    if not root.is_dir():
        root = download("text encoder", name, revision, lambda names: _needed_files(names, subfolder))
    inner = subfolder or (_PIPELINE_FOLDER if (root / _PIPELINE_FOLDER / CONFIG).is_file() else "")
    folder = root / inner
    if not (folder / CONFIG).is_file():
        raise LatentqError(
            f"{folder} holds no text encoder: it has no {CONFIG}, and no subfolder {_PIPELINE_FOLDER} with one"
        )
    family, model = _family_of(folder, name)
    tokenizer_folder = root / _tokenizer_of(inner)
    if not any((tokenizer_folder / file).is_file() for file in _VOCABULARIES):
        raise LatentqError(
            f"cannot load the text encoder {name!r}: {tokenizer_folder} holds no tokenizer; name the whole pipeline"
        )
    import torch
    import transformers

    try:
        with quiet(transformers.utils.logging):
            module, info = model.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
            tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_folder)
    except ModuleNotFoundError:
        raise
    except UNLOADABLE as error:
        reason = load_failure(error)
        raise LatentqError(f"cannot load the text encoder {name!r}: {reason}") from None
    # transformers initializes missing weights at random and only logs it. A larger model's other weights are fine.
    check_weights(
        name,
        missing=info["missing_keys"],
        mismatched=[key for key, *_ in info["mismatched_keys"]],
        unexpected=[],
    )
    network: TextNetwork = family(module, tokenizer, title, length=length)
    return network


def _family_of(folder: Path, name: str) -> tuple[Any, Any]:
    """Returns the family and the class of transformers that a model's configuration names."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        kind, classes = config["model_type"], config.get("architectures") or []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LatentqError(f"cannot load the text encoder {name!r}: {folder / CONFIG}: {error!r}") from None
    import transformers

    if kind in ("clip_text_model", "clip"):
        # A whole CLIP has the projection; a text model's class says whether it has.
        projected = kind == "clip" or "CLIPTextModelWithProjection" in classes
        return ClipText, transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    if kind == "t5":
        return T5Text, transformers.T5EncoderModel
    raise LatentqError(f"{name} is of type {kind}; the supported types are: clip, clip_text_model, t5")


def _tokenizer_of(inner: str) -> str:
    """Returns the folder of an encoder's tokenizer: `tokenizer_2` for `text_encoder_2`; otherwise the encoder's own."""
    parent, _, last = inner.rpartition("/")
    return "/".join(filter(None, (parent, last.replace(_PIPELINE_FOLDER, "tokenizer"))))


def _needed_files(names: list[str], subfolder: str) -> list[str]:
    """Selects the files of a repository that make the encoder and its tokenizer."""
    inner = subfolder or (_PIPELINE_FOLDER if f"{_PIPELINE_FOLDER}/{CONFIG}" in names else "")
    prefix = f"{inner}/" if inner else ""
    tokenizer_prefix = f"{_tokenizer_of(inner)}/" if inner else ""
    if f"{prefix}{CONFIG}" not in names:
        raise LatentqError(f"it has no {prefix}{CONFIG}, and no {_PIPELINE_FOLDER}/{CONFIG}")
    model = weight_files(names, prefix, _WEIGHTS, "transformers")
    return [*model, *matching(names, tokenizer_prefix, *_TOKENIZER)]
