"""Files of datasets on the Hugging Face Hub: names, sizes, hashes and URLs at a commit."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from latentq._core import LatentqError
from latentq.collect.download import (
    Pause,
    Remote,
    RetryableError,
    access_advice,
    retry,
    retryable_status,
    root_cause,
)
from latentq.collect.file import File
from latentq.store.hub import connection_error

_T = TypeVar("_T")

_PATHS_PER_REQUEST = 1000


class HubFiles:
    """The files of datasets on the Hub, each dataset pinned to the commit that was seen first.

    Args:
        commits: The pinned commits by repository and revision; new ones are added.
        pause: Waits between attempts.
    """

    def __init__(self, commits: dict[str, dict[str, str]], pause: Pause) -> None:
        from huggingface_hub import HfApi

        self.commits = commits
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # read here, since it may be set after the import
        self._pause = pause

    def commit(self, repository: str, revision: str) -> str:
        """Returns the commit that a revision is pinned to.

        Raises:
            LatentqError: The Hub does not answer, or refuses.
        """
        pinned = self.commits.setdefault(repository, {})
        if revision not in pinned:
            info = self._ask(repository, lambda: self._api.dataset_info(repository, revision=revision))
            pinned[revision] = str(info.sha)
        return pinned[revision]

    def paths(self, repository: str, revision: str) -> list[str]:
        """Returns the paths of all files at a revision; none if there is no such revision.

        Raises:
            LatentqError: The Hub does not answer, or refuses.
        """
        from huggingface_hub.errors import RevisionNotFoundError

        try:
            commit = self.commit(repository, revision)
        except RevisionNotFoundError:
            return []
        return self._ask(
            repository, lambda: self._api.list_repo_files(repository, revision=commit, repo_type="dataset")
        )

    def remotes(self, files: Iterable[File]) -> dict[str, Remote]:
        """Returns the remote files by path, without paths that the repository does not have.

        Raises:
            LatentqError: The Hub does not answer, or refuses.
        """
        from huggingface_hub import hf_hub_url

        remotes = {}
        by_revision: dict[tuple[str, str], list[str]] = {}
        for file in files:
            by_revision.setdefault((file.repository, file.revision), []).append(file.path)
        for (repository, revision), paths in by_revision.items():
            commit = self.commit(repository, revision)
            for start in range(0, len(paths), _PATHS_PER_REQUEST):
                chunk = paths[start : start + _PATHS_PER_REQUEST]
                for info in self._ask(repository, functools.partial(self._infos, repository, chunk, commit)):
                    remotes[info.path] = Remote(
                        hf_hub_url(
                            repository, info.path, repo_type="dataset", revision=commit, endpoint=self._api.endpoint
                        ),
                        info.size,
                        "sha256" if info.lfs else "git",
                        info.lfs.sha256 if info.lfs else info.blob_id,
                        repository=repository,
                    )
        return remotes

    def _infos(self, repository: str, paths: list[str], commit: str) -> list[Any]:
        infos = self._api.get_paths_info(repository, paths, revision=commit, repo_type="dataset")
        return [info for info in infos if hasattr(info, "blob_id")]  # files, not folders

    def _ask(self, repository: str, call: Callable[[], _T]) -> _T:
        """Calls the Hub, and retries if it may still answer."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        def attempt() -> _T:
            try:
                return call()
            except GatedRepoError:
                raise LatentqError(access_advice(repository, self._api.endpoint)) from None
            except RevisionNotFoundError:
                raise
            except RepositoryNotFoundError:
                raise LatentqError(
                    f"the Hub at {self._api.endpoint} has no dataset {repository}, or hides it from users without a "
                    "token that may read it (HF_TOKEN, or hf auth login)"
                ) from None
            except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
                raise LatentqError(f"{repository}: {error}") from None
            except HfHubHTTPError as error:
                if error.response is None:
                    raise RetryableError(str(error)) from None
                retryable = retryable_status(error.response.status_code, error.response.headers)
                if retryable is None:
                    raise LatentqError(f"{repository}: {str(error).strip().partition(chr(10))[0]}") from None
                raise retryable from None
            except connection_error() as error:
                raise RetryableError(f"no answer: {root_cause(error)}") from None

        try:
            return retry(attempt, self._pause)
        except RetryableError as error:
            raise LatentqError(f"the Hub at {self._api.endpoint} does not answer for {repository}: {error}") from None

    def headers(self) -> dict[str, str]:
        """Returns the headers of a request to the Hub: the token, if there is one."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # in its reference, not in __all__

        return dict(build_hf_headers())
