"""Models on the Hugging Face hub: of a repository only what is needed is fetched, and what is wrong is one line."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

from latentq._core import LatentqError

_PROBE = 3  # seconds


def downloaded(what: str, name: str, revision: str, wanted: Callable[[list[str]], list[str]]) -> Path:
    """The folder in the hub's cache that holds what of a repository is needed, fetched where the hub can be reached.

    Args:
        what: What it is, for messages: `autoencoder`.
        name: The repository, `owner/name`.
        revision: The branch, tag or commit; empty for the default.
        wanted: Chooses among the names of the repository's files; raises LatentqError where they are not enough.

    Raises:
        LatentqError: It cannot be had; one line that says what to do.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download

    at = revision or None
    try:
        if not _reachable():
            return Path(snapshot_download(name, revision=at, local_files_only=True))
        for file in wanted(HfApi().list_repo_files(name, revision=at)):
            path = hf_hub_download(name, file, revision=at)
        return Path(path.removesuffix(file))
    except errors.GatedRepoError:
        reason = f"accept its terms at https://huggingface.co/{name} and run `hf auth login`"
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository on the hub (for a private one run `hf auth login`)"
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}"
    except errors.LocalEntryNotFoundError:
        reason = "the hub cannot be reached and its cache does not hold it: connect, or name a folder"
    except (OSError, ValueError, LatentqError) as error:
        reason = " ".join(str(error).split())
    raise LatentqError(f"cannot load the {what} {name!r}: {reason}")


def matching(names: list[str], prefix: str, *patterns: str) -> list[str]:
    """The files below a prefix whose names match any of the patterns."""
    return [name for pattern in patterns for name in names if fnmatchcase(name, prefix + pattern)]


def _reachable() -> bool:
    """Whether the hub answers; asked once, since its client asks six times, for 23 seconds, before it gives up."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PROBE)
    except Exception:  # whatever the client's library raises
        return False
    return True
