"""Downloads models from the Hugging Face Hub: only the files that are needed, with errors on one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from latentq._core import LatentqError
from latentq.system.text import one_line

CONFIG = "config.json"
CHECKPOINTS = (".ckpt", ".pt", ".pth", ".bin")  # suffixes of what torch.save writes
_PROBE_TIMEOUT = 3  # seconds


def download(kind: str, name: str, revision: str, choose: Callable[[list[str]], list[str]]) -> Path:
    """Downloads the needed files of a repository. Without a connection to the Hub, uses its local cache.

    Args:
        kind: The kind of model, for messages: `autoencoder`.
        name: The repository, `owner/name`.
        revision: The branch, tag or commit; empty for the default branch.
        choose: Selects from the names of the repository's files; raises LatentqError if the model is incomplete.

    Returns:
        The snapshot's folder in the Hub's cache.

    Raises:
        LatentqError: The model cannot be downloaded; the message is one line and says what to do.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    commit = revision or None
    try:
        if not _reachable():
            return Path(snapshot_download(name, revision=commit, local_files_only=True))
        for file in choose(HfApi().list_repo_files(name, revision=commit)):
            path = hf_hub_download(name, file, revision=commit)
        return Path(path.removesuffix(file))
    except errors.GatedRepoError:
        reason = f"accept its terms at https://huggingface.co/{name} and run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository on the Hub (for a private one run `hf auth login`)"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        reason = "the Hub cannot be reached and its cache does not hold the model: connect, or name a folder"
    except (OSError, ValueError, LatentqError) as error:
        reason = one_line(error)
    raise LatentqError(f"cannot load the {kind} {name!r}: {reason}")


def weight_layouts(stem: str, binary_stem: str) -> tuple[tuple[str, ...], ...]:
    """Lists the ways in which diffusers and transformers save weights, in the order of preference.

    Args:
        stem: The name of the safetensors file without its suffix.
        binary_stem: The name of torch's file without its suffix.

    Returns:
        For each layout the file that must be there, then patterns of the files that go with it: an index goes with its
        parts.
    """
    names = [(stem, "safetensors"), (binary_stem, "bin")]
    layouts = [
        ((f"{name}.{suffix}",), (f"{name}.{suffix}.index.json", f"{name}-*-of-*.{suffix}")) for name, suffix in names
    ]
    return tuple(layout for pair in layouts for layout in pair)


def weight_files(names: list[str], prefix: str, layouts: Sequence[tuple[str, ...]], library: str) -> list[str]:
    """Selects a model's configuration and one set of its weights from a repository's files.

    Args:
        names: All files of the repository.
        prefix: The model's folder in the repository, with a slash at its end; empty for the root.
        layouts: The result of `weight_layouts`.
        library: The library that saved the weights, for messages.

    Raises:
        LatentqError: The repository has no weights in this folder.
    """
    for patterns in layouts:
        found = matching(names, prefix, *patterns)
        if prefix + patterns[0] in found:
            return [f"{prefix}{CONFIG}", *found]
    raise LatentqError(f"it has no weights of {library} next to {prefix}{CONFIG}")


def matching(names: list[str], prefix: str, *patterns: str) -> list[str]:
    """Returns the files below a prefix whose names match any of the patterns."""
    return [name for pattern in patterns for name in names if fnmatchcase(name, prefix + pattern)]


def _reachable() -> bool:
    """True if the Hub answers. Asked once: the Hub's client asks six times, for 23 seconds, before it gives up."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE_TIMEOUT)
    except Exception:  # any error of the client's HTTP library
        return False
    return True
