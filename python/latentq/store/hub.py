"""Datasets in repositories of the Hugging Face Hub: names, errors on one line, and reading at one commit."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from latentq._core import LatentqError
from latentq.store.objects import StoredObject
from latentq.system.extras import needed_for
from latentq.system.text import one_line

_URL = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@(.+))?", re.IGNORECASE)
_READS = 3  # of a range that is cut short
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_hub_url(path: object) -> bool:
    """True if a path names a dataset on the Hub: `hf://...`."""
    return isinstance(path, str) and path.lower().startswith("hf://")


def check_repository(name: str) -> str:
    """Returns the name of a repository.

    Raises:
        ValueError: It is not OWNER/NAME, each of letters, digits, `-`, `_` and `.`, without `--` and `..`.
    """
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith((".git", "-", ".")):
        raise ValueError(f"a repository of the Hub is OWNER/NAME, of letters, digits, '-', '_' and '.', not {name!r}")
    return name


def hub_api() -> Any:
    """Returns huggingface_hub's client of the endpoint in HF_ENDPOINT, or of the Hub itself.

    Raises:
        MissingPackageError: huggingface_hub is not installed.
    """
    with needed_for("the Hugging Face Hub"):
        from huggingface_hub import HfApi

        return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))  # read here, since it may be set after the import


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turns what the Hub's client raises inside the block into errors of one line that say what to do.

    Args:
        repository: OWNER/NAME.

    Raises:
        LatentqError: The Hub refuses, or has no such repository, revision or file.
        OSError: The Hub does not answer.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise LatentqError(
            f"hf://datasets/{repository} is gated: accept its terms on its page, and run `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise LatentqError(f"hf://datasets/{repository} has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise LatentqError(
            f"the Hub has no dataset {repository}, or hides it from you: set HF_TOKEN to a token that may read it, or "
            "run `hf auth login`"
        ) from None
    except errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError too
        raise OSError(f"hf://datasets/{repository}: the Hub does not answer: {_first_line(error)}") from None
    except errors.EntryNotFoundError as error:
        raise FileNotFoundError(f"hf://datasets/{repository}: {_first_line(error)}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise LatentqError(
                f"the Hub does not let you do this in {repository} ({_first_line(error)}): set HF_TOKEN to a token "
                "that may, or run `hf auth login`"
            ) from None
        raise OSError(f"hf://datasets/{repository}: {_first_line(error)}") from None
    except errors.OfflineModeIsEnabled as error:
        raise OSError(f"hf://datasets/{repository}: {_first_line(error)}") from None
    except (errors.LocalTokenNotFoundError, errors.HFValidationError) as error:
        raise LatentqError(f"hf://datasets/{repository}: {_first_line(error)}") from None
    except (OSError, connection_error()) as error:
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:  # of this machine
            raise
        if str(error).startswith(f"hf://datasets/{repository}"):  # of a block in this block
            raise
        raise OSError(f"hf://datasets/{repository}: the Hub does not answer: {_first_line(error)}") from None


def connection_error() -> type[Exception]:
    """Returns the connection error of the HTTP library that this version of huggingface_hub uses."""
    from huggingface_hub import get_session

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])  # requests, or an httpx
    error: type[Exception] = getattr(library, "TransportError", None) or library.RequestException
    return error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("For more information")]
    return one_line(" ".join(lines[:2]) or type(error).__name__)[:300]


class HubDataset:
    """The files of a dataset's repository at one commit: that which the revision names when it is first asked.

    Args:
        url: `hf://datasets/OWNER/NAME`, with `@REVISION` for a branch, tag or commit other than `main`.

    Attributes:
        url: The URL.
        repository: OWNER/NAME.
        revision: The revision, or None for the default branch.

    Raises:
        ValueError: The URL is not of this form.
        MissingPackageError: huggingface_hub is not installed.
    """

    def __init__(self, url: str) -> None:
        found = _URL.fullmatch(url.rstrip("/"))
        if found is None:
            raise ValueError(f"a dataset on the Hub is hf://datasets/OWNER/NAME or ...@REVISION, not {url!r}")
        self.url = url.rstrip("/")
        self.repository = check_repository(found[1])
        self.revision: str | None = found[2]
        self._api = hub_api()

    def __reduce__(self) -> tuple[Any, ...]:
        known = {name: commit for name, commit in self.__dict__.items() if name == "commit"}
        return HubDataset, (self.url,), known  # workers read the same commit

    def __repr__(self) -> str:
        return f"HubDataset({self.url!r})"

    @cached_property
    def commit(self) -> str:
        """The commit of the revision. Raises as `hub_errors`."""
        with hub_errors(self.repository):
            return str(self._api.dataset_info(self.repository, revision=self.revision).sha)

    def get(self, name: str) -> bytes:
        """Returns the bytes of a file.

        Raises:
            FileNotFoundError: There is no such file.
            LatentqError, OSError: As `hub_errors`.
        """
        with tempfile.TemporaryDirectory(prefix="latentq-hub-") as folder:
            path = Path(folder, "file")
            self.download(name, path)
            return path.read_bytes()

    def read(self, name: str, start: int, stop: int, version: str = "") -> bytes:  # noqa: ARG002  (of `Objects`)
        """Returns a range of a file's bytes, from byte `start` to before byte `stop`. Requests are repeated.

        Args:
            name: The file's path in the repository.
            start: The first byte.
            stop: The end of the range, at most the size of the file and after `start`.
            version: Ignored: the files of a commit do not change.

        Raises:
            FileNotFoundError: There is no such file.
            LatentqError, OSError: As `hub_errors`.
        """
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # in its reference, not in __all__
            build_hf_headers,
            hf_raise_for_status,
            http_backoff,
        )

        url = hf_hub_url(self.repository, name, repo_type="dataset", revision=self.commit, endpoint=self._api.endpoint)
        headers = build_hf_headers() | {"Range": f"bytes={start}-{stop - 1}"}
        data = b""
        for _ in range(_READS):
            with hub_errors(self.repository):
                response = http_backoff("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
                hf_raise_for_status(response)
                data = bytes(response.content)
            if len(data) == stop - start:
                return data
        raise OSError(errno.EIO, f"{len(data)} of {stop - start} bytes arrived", f"{self.url}/{name}")

    def find(self, name: str) -> StoredObject | None:
        """Returns what a listing says of a file, or None if there is none. Raises as `hub_errors`."""
        with hub_errors(self.repository):
            for entry in self._api.get_paths_info(self.repository, [name], repo_type="dataset", revision=self.commit):
                if hasattr(entry, "size"):  # a file, not a folder
                    return StoredObject(entry.path, entry.size)
        return None

    def files(self) -> Iterator[tuple[str, int]]:
        """Yields the path and the bytes of every file. Raises as `hub_errors`."""
        return ((entry.name, entry.size) for entry in self.list())

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yields the files in a folder and in those below it; none if there is no such folder.

        Raises:
            LatentqError, OSError: As `hub_errors`.
        """
        with contextlib.suppress(FileNotFoundError), hub_errors(self.repository):
            for entry in self._api.list_repo_tree(
                self.repository, prefix or None, recursive=True, repo_type="dataset", revision=self.commit
            ):
                if hasattr(entry, "size"):  # a file, not a folder
                    yield StoredObject(entry.path, entry.size)

    def download(self, name: str, path: Path) -> None:
        """Downloads a file. Raises as `copy`."""
        self.copy(name, path)

    def copy(self, name: str, path: Path) -> None:
        """Downloads a file. The client resumes and repeats requests itself.

        Args:
            name: The file's path in the repository.
            path: The path of the new file; a folder next to it is used and removed.

        Raises:
            FileNotFoundError: There is no such file.
            LatentqError, OSError: As `hub_errors`.
        """
        from huggingface_hub import constants, hf_hub_download

        folder = path.with_name(f"{path.name}.hub")
        try:
            with hub_errors(self.repository), without_bars():
                got = hf_hub_download(
                    self.repository,
                    name,
                    repo_type="dataset",
                    revision=self.commit,
                    local_dir=folder,
                    endpoint=self._api.endpoint or constants.ENDPOINT,
                )
            Path(got).replace(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def without_bars() -> Iterator[None]:
    """Hides the client's bar for each file: many files are downloaded at once."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # in its reference, not in __all__
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
