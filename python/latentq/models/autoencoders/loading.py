"""From a name to a network: finds the files, tells the family by them, and checks the weights."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from latentq._core import LatentqError
from latentq.models.autoencoders.base import Network
from latentq.models.autoencoders.dc import DCAutoencoder
from latentq.models.autoencoders.kl import KLAutoencoder
from latentq.models.autoencoders.taming import TamingAutoencoder
from latentq.models.autoencoders.tiny import TinyAutoencoder
from latentq.models.autoencoders.vq import VQAutoencoder
from latentq.models.hub import downloaded, matching
from latentq.models.weights import check_weights

_CONFIG = "config.json"


_FAMILIES = {family.family: family for family in (KLAutoencoder, DCAutoencoder, TinyAutoencoder, VQAutoencoder)}


# What is fetched of a repository: the first of these that is there. An index goes with the files that it names.
_WEIGHTS = (
    ("diffusion_pytorch_model.safetensors",),
    ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model-*-of-*.safetensors"),
    ("diffusion_pytorch_model.bin",),
    ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model-*-of-*.bin"),
)


_ROOT = "say so by --subfolder ''"


def load(name: str | os.PathLike[str], *, revision: str, subfolder: str) -> Network:
    """A network from a folder, the path of a `.ckpt`, or the hub, on the CPU.

    Raises:
        LatentqError: There is none, or it is of a kind that is not known; one line.
        ModuleNotFoundError: A package is missing.
    """
    path = Path(name)
    if path.suffix == ".ckpt" and not path.is_dir():
        return TamingAutoencoder.load(path, _yaml_beside(path), path.stem)
    if not path.is_dir() and (path.is_absolute() or str(name).startswith((".", "~"))):
        raise LatentqError(f"cannot load the autoencoder {str(name)!r}: there is no such folder or .ckpt file")
    title = path.resolve().name if path.is_dir() else str(name)
    prefix = f"{subfolder}/" if subfolder else ""
    root = path
    if not path.is_dir():
        root = downloaded("autoencoder", str(name), revision, lambda names: _wanted(names, prefix))
    folder = root / subfolder
    if (folder / _CONFIG).is_file():
        return _load_diffusers(folder, str(name), title)
    checkpoints = sorted(folder.glob("*.ckpt"))
    if len(checkpoints) == 1:
        return TamingAutoencoder.load(checkpoints[0], _yaml_beside(checkpoints[0]), title)
    if checkpoints:
        raise LatentqError(f"{folder} holds {len(checkpoints)} checkpoints: name one of them, e.g. {checkpoints[0]}")
    hint = ", but its sub-folder 'vae' has: name that" if (folder / "vae" / _CONFIG).is_file() else ""
    if subfolder and (root / _CONFIG).is_file():
        hint = f", but {root} has: {_ROOT}"
    raise LatentqError(f"{folder} holds no autoencoder: it has no {_CONFIG} and no .ckpt{hint}")


def _load_diffusers(folder: Path, name: str, title: str) -> Network:
    try:
        kind = json.loads((folder / _CONFIG).read_bytes())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LatentqError(f"cannot load the autoencoder {name!r}: {folder / _CONFIG}: {error!r}") from None
    family = _FAMILIES.get(kind)
    if family is None:
        raise LatentqError(f"{name} is of class {kind}; the classes that can be loaded are: {', '.join(_FAMILIES)}")
    if not any((folder / first).is_file() for first, *_ in _WEIGHTS):
        expected = " and no ".join(first for first, *_ in _WEIGHTS if not first.endswith(".json"))
        raise LatentqError(f"cannot load the autoencoder {name!r}: beside its {_CONFIG} there is no {expected}")
    import diffusers
    import torch

    try:
        with _quiet():
            module, info = getattr(diffusers, kind).from_pretrained(
                folder, torch_dtype=torch.float32, low_cpu_mem_usage=False, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise LatentqError(f"cannot load the autoencoder {name!r}: {reason}") from None
    # diffusers would fill what is missing at random, and only log it.
    check_weights(
        name,
        missing=info["missing_keys"],
        of_other_shape=[key for key, *_ in info["mismatched_keys"]],
        left_over=info["unexpected_keys"],
    )
    return family(module, title)


def _yaml_beside(checkpoint: Path) -> Path:
    """The configuration of a checkpoint: the file of its name, or the only one in its folder."""
    found = sorted(path for ending in ("*.yaml", "*.yml") for path in checkpoint.parent.glob(ending))
    same = [path for path in found if path.stem == checkpoint.stem]
    if not checkpoint.is_file():
        raise LatentqError(f"there is no checkpoint {checkpoint}")
    if len(same or found) != 1:
        raise LatentqError(
            f"{checkpoint} needs its configuration beside it, as {checkpoint.with_suffix('.yaml').name}: "
            f"there are {len(found)} .yaml files"
        )
    return (same or found)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' own hints and bars: what is wrong is raised."""
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _wanted(names: list[str], prefix: str) -> list[str]:
    """Which of a repository's files make the model whose configuration lies at `prefix`."""
    if f"{prefix}{_CONFIG}" in names:
        for patterns in _WEIGHTS:
            found = matching(names, prefix, *patterns)
            if prefix + patterns[0] in found:
                return [f"{prefix}{_CONFIG}", *found]
        raise LatentqError(f"it has no weights of diffusers beside {prefix}{_CONFIG}")
    beside = [name for name in names if name.rpartition("/")[0] == prefix.rstrip("/")]
    checkpoints = [name for name in beside if name.endswith(".ckpt")]
    yamls = [name for name in beside if name.endswith((".yaml", ".yml"))]
    if len(checkpoints) == 1 and yamls:
        return [*yamls, *checkpoints]
    hint = "; its sub-folder 'vae' has one: name that" if f"{prefix}vae/{_CONFIG}" in names else ""
    if prefix and _CONFIG in names:
        hint = f"; outside of that sub-folder it has one: {_ROOT}"
    raise LatentqError(f"it has no {prefix}{_CONFIG}, and not one .ckpt with its .yaml{hint}")
