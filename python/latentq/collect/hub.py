"""Hugging Face's hub: which files a data set has at which commit, their sizes and hashes, and where to fetch them."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from latentq._core import LatentqError
from latentq.collect.download import Pause, Remote, TryAgainError, again_of, cause, denial, retried
from latentq.collect.file import File

_T = TypeVar("_T")


_AT_ONCE = 1000  # paths asked for in one request


class Hub:
    """The data sets of a hub, each held at the commit that it was first seen at.

    Args:
        commits: By repository and revision, the commits that are held already; those seen are added.
        pause: How to wait.
    """

    def __init__(self, commits: dict[str, dict[str, str]], pause: Pause) -> None:
        from huggingface_hub import HfApi

        self.commits = commits
        self._api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # also where it is set after that import
        self._pause = pause

    def commit(self, repository: str, revision: str) -> str:
        """The commit that a revision is held at.

        Raises:
            LatentqError: The hub does not say.
        """
        held = self.commits.setdefault(repository, {})
        if revision not in held:
            info = self._ask(repository, lambda: self._api.dataset_info(repository, revision=revision))
            held[revision] = str(info.sha)
        return held[revision]

    def paths(self, repository: str, revision: str) -> list[str]:
        """Every file at a revision; none where there is no such revision.

        Raises:
            LatentqError: The hub does not say.
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
        """What there is to fetch, by path; a path that the repository does not have is left out.

        Raises:
            LatentqError: The hub does not say.
        """
        from huggingface_hub import hf_hub_url

        found = {}
        by_revision: dict[tuple[str, str], list[str]] = {}
        for file in files:
            by_revision.setdefault((file.repository, file.revision), []).append(file.path)
        for (repository, revision), paths in by_revision.items():
            commit = self.commit(repository, revision)
            for start in range(0, len(paths), _AT_ONCE):
                some = paths[start : start + _AT_ONCE]
                for info in self._ask(repository, functools.partial(self._infos, repository, some, commit)):
                    found[info.path] = Remote(
                        hf_hub_url(
                            repository, info.path, repo_type="dataset", revision=commit, endpoint=self._api.endpoint
                        ),
                        info.size,
                        "sha256" if info.lfs else "git",
                        info.lfs.sha256 if info.lfs else info.blob_id,
                        repository=repository,
                    )
        return found

    def _infos(self, repository: str, paths: list[str], commit: str) -> list[Any]:
        infos = self._api.get_paths_info(repository, paths, revision=commit, repo_type="dataset")
        return [info for info in infos if hasattr(info, "blob_id")]  # files, not folders

    def _ask(self, repository: str, call: Callable[[], _T]) -> _T:
        """What the hub answers, asked again where it may yet answer."""
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        def once() -> _T:
            try:
                return call()
            except GatedRepoError:
                raise LatentqError(denial(repository, self._api.endpoint)) from None
            except RevisionNotFoundError:
                raise
            except RepositoryNotFoundError:
                raise LatentqError(
                    f"the hub at {self._api.endpoint} has no data set {repository}, or hides it without a token that "
                    "may see it (HF_TOKEN, or hf auth login)"
                ) from None
            except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
                raise LatentqError(f"{repository}: {error}") from None
            except HfHubHTTPError as error:
                if error.response is None:
                    raise TryAgainError(str(error)) from None
                again = again_of(error.response.status_code, error.response.headers)
                if again is None:
                    raise LatentqError(f"{repository}: {str(error).strip().partition(chr(10))[0]}") from None
                raise again from None
            except _no_answer() as error:
                raise TryAgainError(f"no answer: {cause(error)}") from None

        try:
            return retried(once, self._pause)
        except TryAgainError as error:
            raise LatentqError(f"the hub at {self._api.endpoint} does not answer for {repository}: {error}") from None

    def headers(self) -> dict[str, str]:
        """What the hub is told with a request: the token, where there is one."""
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # in its reference, not in __all__

        return dict(build_hf_headers())


def _no_answer() -> type[Exception]:
    """What is raised where no answer comes, by the library that this version of huggingface_hub asks with."""
    from huggingface_hub import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])  # requests, or an httpx
    error: type[Exception] = getattr(library, "TransportError", None) or library.RequestException
    return error
