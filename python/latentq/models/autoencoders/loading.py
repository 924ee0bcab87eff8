"""Loads an autoencoder by name: finds its files, determines its family from them, and checks its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentq._core import LatentqError
from latentq.models.autoencoders.asymmetric import AsymmetricAutoencoder
from latentq.models.autoencoders.base import DiffusersNetwork, Network
from latentq.models.autoencoders.checkpoint import Checkpoint
from latentq.models.autoencoders.cosmos import CosmosAutoencoder
from latentq.models.autoencoders.dc import DCAutoencoder
from latentq.models.autoencoders.flax_vqgan import WEIGHTS as FLAX_WEIGHTS
from latentq.models.autoencoders.flax_vqgan import load_flax
from latentq.models.autoencoders.flux2 import Flux2Autoencoder
from latentq.models.autoencoders.generic import generic
from latentq.models.autoencoders.hunyuan_image import HunyuanImageAutoencoder, HunyuanImageRefinerAutoencoder
from latentq.models.autoencoders.hunyuan_video import HunyuanVideo15Autoencoder, HunyuanVideoAutoencoder
from latentq.models.autoencoders.kl import KLAutoencoder
from latentq.models.autoencoders.ldm import STATISTICS, LdmAutoencoder
from latentq.models.autoencoders.llamagen import LlamaGenAutoencoder
from latentq.models.autoencoders.maskgit import MaskGitAutoencoder
from latentq.models.autoencoders.qwen_image import QwenImage21Autoencoder, QwenImageAutoencoder
from latentq.models.autoencoders.rae import RaeAutoencoder
from latentq.models.autoencoders.taming import TamingAutoencoder
from latentq.models.autoencoders.temporal_decoder import TemporalDecoderAutoencoder
from latentq.models.autoencoders.tiny import TinyAutoencoder
from latentq.models.autoencoders.vq import VQAutoencoder
from latentq.models.autoencoders.wan import WanAutoencoder
from latentq.models.hub import CHECKPOINTS, CONFIG, download, weight_files, weight_layouts
from latentq.models.weights import check_weights, load_failure, quiet
from latentq.system.text import one_line

FAMILIES: dict[str, type[DiffusersNetwork]] = {
    family.family: family
    for family in (
        AsymmetricAutoencoder, CosmosAutoencoder, DCAutoencoder, Flux2Autoencoder, HunyuanImageAutoencoder,
        HunyuanImageRefinerAutoencoder, HunyuanVideo15Autoencoder, HunyuanVideoAutoencoder, KLAutoencoder,
        QwenImage21Autoencoder, QwenImageAutoencoder, RaeAutoencoder, TemporalDecoderAutoencoder, TinyAutoencoder,
        VQAutoencoder, WanAutoencoder,
    )
}  # fmt: skip
_WEIGHTS = weight_layouts("diffusion_pytorch_model", "diffusion_pytorch_model")
_ROOT_HINT = "say so by --subfolder ''"


def load(name: str | os.PathLike[str], *, revision: str, subfolder: str) -> Network:
    """Loads an autoencoder from a folder, a checkpoint, or the Hub, onto the CPU.

    Args:
        name: A folder, the path of a checkpoint, or the name of a repository, or of a checkpoint in it, on the Hub.
        revision: The Hub's branch, tag or commit; empty for the default branch.
        subfolder: The folder of the model inside the folder or repository; empty for its root.

    Raises:
        LatentqError: There is none, or its family is unknown; the message is one line.
        ModuleNotFoundError: A package is missing.
    """
    path = Path(name)
    if path.suffix in CHECKPOINTS and not path.is_dir():
        repository, file = _on_hub(str(name))
        if not repository:
            return _load_checkpoint(path, path.stem)
        try:
            root = download("autoencoder", repository, revision, lambda names: _companions(names, file))
        except LatentqError as error:
            raise LatentqError(f"there is no file {name} here; on the Hub: {error}") from None
        return _load_checkpoint(root / file, str(name))
    if not path.is_dir() and (path.is_absolute() or str(name).startswith((".", "~"))):
        raise LatentqError(f"cannot load the autoencoder {str(name)!r}: there is no such folder or checkpoint")
    title = path.resolve().name if path.is_dir() else str(name)
    prefix = f"{subfolder}/" if subfolder else ""
    root = path
    if not path.is_dir():
        root = download("autoencoder", str(name), revision, lambda names: _needed_files(names, prefix))
    folder = root / subfolder
    if (folder / CONFIG).is_file():
        if (folder / FLAX_WEIGHTS).exists() and not _has_diffusers_weights(folder):
            return load_flax(folder, title)
        return _load_diffusers(folder, str(name), title)
    hint = ", but its subfolder 'vae' has: name that" if (folder / "vae" / CONFIG).is_file() else ""
    if subfolder and (root / CONFIG).is_file():
        hint = f", but {root} has: {_ROOT_HINT}"
    checkpoints = _checkpoints(sorted(map(str, folder.iterdir()))) if folder.is_dir() and not hint else []
    if len(checkpoints) == 1:
        return _load_checkpoint(Path(checkpoints[0]), title)
    if checkpoints:
        raise LatentqError(f"{folder} holds {len(checkpoints)} checkpoints: name one of them, e.g. {checkpoints[0]}")
    raise LatentqError(f"{folder} holds no autoencoder: it has no {CONFIG} and no checkpoint{hint}")


def _checkpoints(files: Iterable[str]) -> list[str]:
    """Selects the checkpoints among files."""
    return [file for file in files if file.endswith(CHECKPOINTS) and not file.endswith(STATISTICS)]


def _on_hub(name: str) -> tuple[str, str]:
    """Splits `owner/name/file` into the repository and the file; both are empty for a local path."""
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    if not file or not owner or owner[0] in ".~" or Path(owner).is_dir():
        return "", ""
    return f"{owner}/{repository}", file


def _load_checkpoint(path: Path, name: str) -> Network:
    """Loads a checkpoint of torch; the names of its tensors tell its family."""
    checkpoint = Checkpoint(path)
    for family in (LlamaGenAutoencoder, MaskGitAutoencoder, LdmAutoencoder):
        if family.recognizes(checkpoint.shapes):
            return family.load(checkpoint, name)
    if not TamingAutoencoder.recognizes(checkpoint.shapes):
        raise LatentqError(f"{path}: its tensors are those of no known autoencoder")
    return TamingAutoencoder.load(checkpoint, _yaml_of(path), name)


def _has_diffusers_weights(folder: Path) -> bool:
    return any((folder / first).is_file() for first, *_ in _WEIGHTS)


def _load_diffusers(folder: Path, name: str, title: str) -> Network:
    try:
        kind = json.loads((folder / CONFIG).read_bytes())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LatentqError(f"cannot load the autoencoder {name!r}: {folder / CONFIG}: {error!r}") from None
    network_class = _class_of(kind, name)
    if not _has_diffusers_weights(folder):
        expected = " and no ".join(first for first, *_ in _WEIGHTS if not first.endswith(".json"))
        raise LatentqError(f"cannot load the autoencoder {name!r}: next to its {CONFIG} there is no {expected}")
    import diffusers
    import torch

    try:
        with quiet(diffusers.utils.logging), FAMILIES.get(kind, DiffusersNetwork).loading():
            module, info = network_class.from_pretrained(
                folder, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, TypeError, AssertionError, LookupError, ArithmeticError) as error:
        reason = load_failure(error)
        raise LatentqError(f"cannot load the autoencoder {name!r}: {reason}") from None
    # diffusers initializes missing weights at random and only logs it.
    check_weights(
        name,
        missing=info["missing_keys"],
        mismatched=[key for key, *_ in info["mismatched_keys"]],
        unexpected=info["unexpected_keys"],
    )
    try:
        return FAMILIES[kind](module, title) if kind in FAMILIES else generic(module, title)
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of the configuration's numbers
        raise LatentqError(f"cannot load the autoencoder {name!r}: {folder / CONFIG}: {one_line(error)}") from None


def _class_of(kind: object, name: str) -> Any:
    """Returns the class of diffusers that a configuration names.

    Raises:
        LatentqError: The installed diffusers has no such class, or it is no autoencoder.
    """
    import diffusers

    try:
        network_class = getattr(diffusers, kind) if isinstance(kind, str) else None
    except (AttributeError, RuntimeError):  # RuntimeError: the class needs a package that is missing
        network_class = None
    if network_class is None:
        raise LatentqError(
            f"{name} is of class {kind}, which diffusers {diffusers.__version__} does not have; a newer one may"
        )
    is_module = isinstance(network_class, type) and issubclass(network_class, diffusers.ModelMixin)
    if not (is_module and hasattr(network_class, "encode") and hasattr(network_class, "decode")):
        raise LatentqError(f"{name} is of class {kind}, which is no autoencoder")
    return network_class


def _yaml_of(checkpoint: Path) -> Path:
    """Finds the configuration of a VQGAN: the `.yaml` of the same name, or the only one in its folder."""
    found = sorted(path for ending in ("*.yaml", "*.yml") for path in checkpoint.parent.glob(ending))
    same = [path for path in found if path.stem == checkpoint.stem]
    if len(same or found) != 1:
        raise LatentqError(
            f"{checkpoint} needs its configuration next to it, as {checkpoint.with_suffix('.yaml').name}: "
            f"there are {len(found)} .yaml files"
        )
    return (same or found)[0]


def _needed_files(names: list[str], prefix: str) -> list[str]:
    """Selects the files of a repository that make the model whose configuration is below `prefix`."""
    if f"{prefix}{CONFIG}" in names:
        return weight_files(names, prefix, (*_WEIGHTS, (FLAX_WEIGHTS,)), "diffusers")
    hint = "; its subfolder 'vae' has one: name that" if f"{prefix}vae/{CONFIG}" in names else ""
    if prefix and CONFIG in names:
        hint = f"; outside of that subfolder it has one: {_ROOT_HINT}"
    checkpoints = [] if hint else _checkpoints(_siblings(names, prefix))
    if len(checkpoints) == 1:
        return _companions(names, checkpoints[0])
    if checkpoints:
        raise LatentqError(f"it holds {len(checkpoints)} checkpoints: name one of them, as owner/name/{checkpoints[0]}")
    raise LatentqError(f"it has no {prefix}{CONFIG}, and no checkpoint{hint}")


def _companions(names: list[str], checkpoint: str) -> list[str]:
    """Selects a checkpoint of a repository, last, and the files next to it that describe it."""
    if checkpoint not in names:
        raise LatentqError(f"it has no {checkpoint}")
    siblings = _siblings(names, checkpoint[: checkpoint.rfind("/") + 1])
    return [*(name for name in siblings if name.endswith((".yaml", ".yml", STATISTICS))), checkpoint]


def _siblings(names: list[str], prefix: str) -> list[str]:
    """Selects the files of a repository that are directly below `prefix`."""
    return [name for name in names if name.startswith(prefix) and "/" not in name[len(prefix) :]]
