"""Optional packages: which of them belong together, and one message if one is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from latentq._core import LatentqError

# The extras of pyproject.toml: the requirement of each module that latentq imports. An extra includes those that its
# packages need themselves.
EXTRAS = {
    "torch": {"torch": "torch>=2.6"},
    "encode": {"torch": "torch>=2.6", "diffusers": "diffusers>=0.32", "msgpack": "msgpack>=1", "yaml": "pyyaml>=6"},
    "text": {
        "open_clip": "open_clip_torch>=3",
        "transformers": "transformers>=4.46",
        "sentencepiece": "sentencepiece>=0.2",
        "google.protobuf": "protobuf>=4",
    },
    "streaming": {"streaming": "mosaicml-streaming>=0.11"},
    "parquet": {"pyarrow": "pyarrow>=15"},
    "datasets": {"datasets": "datasets>=3"},
    "completion": {"shtab": "shtab>=1.7"},
    "store": {"obstore": "obstore>=0.9"},
    "ray": {"ray": "ray>=2.40"},
    "convert": {"torch": "torch>=2.6", "h5py": "h5py>=3.10"},
    "report": {"jinja2": "jinja2>=3.1", "pygal": "pygal>=3"},
    "hub": {"huggingface_hub": "huggingface-hub>=0.30", "requests": "requests>=2.31"},
}


class MissingPackageError(LatentqError, ModuleNotFoundError):
    """An optional package is not installed; the message says how to install it."""


def missing_package(error: ModuleNotFoundError, purpose: str) -> MissingPackageError:
    """Returns the error for an import that failed.

    The hint names the missing packages themselves: it works however latentq was installed.

    Args:
        error: The error of the import.
        purpose: What needs the module, e.g. `latentq.LatentDataset`.
    """
    if isinstance(error, MissingPackageError):
        return error
    module = error.name or ""
    requirements = next((packages for packages in EXTRAS.values() if _owner(module, packages)), None)
    if requirements is None:
        return MissingPackageError(f"{purpose} needs the module {module!r}, which is not installed", name=module)
    missing = [requirement for name, requirement in requirements.items() if not is_installed(name)]
    missing = missing or [requirements[_owner(module, requirements)]]
    hint = " ".join(f"'{requirement}'" for requirement in missing)
    return MissingPackageError(f"{purpose} needs {module}, which is not installed: pip install {hint}", name=module)


@contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Turns a failed import inside the block into MissingPackageError.

    Args:
        purpose: What needs the imports.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing_package(error, purpose) from None


def _owner(module: str, packages: dict[str, str]) -> str:
    """Returns the listed module that a module is, or is part of; empty if there is none."""
    return next((name for name in packages if module == name or module.startswith(f"{name}.")), "")


def is_installed(module: str) -> bool:
    """Returns whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent of a dotted name is missing
        return False
