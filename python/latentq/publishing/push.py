"""`latentq.push`: uploads a finished dataset to the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from latentq._core import LatentqError, MismatchError
from latentq.format.card import CARD, Card, open_card
from latentq.format.files import EMPTY_CAPTION, INDEX, NORMALIZATION, PICTURES, README, REJECTS
from latentq.publishing.page import MARK, check_license, page
from latentq.publishing.upload import upload
from latentq.run.finish import resume_update
from latentq.run.units import card_hash, list_folder, unit_names
from latentq.store.hub import check_repository, hub_api, hub_errors, without_bars
from latentq.system.progress import terminal
from latentq.system.text import counted, one_line, size_text

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_SMALL = (CARD, INDEX)  # in the last commit, with the page
_FILES_A_WORKER = 64
_QUALITY = 92  # of the pictures


def push(
    out: str | os.PathLike[str],
    to: str,
    *,
    license: str | None = None,
    private: bool = False,
    revision: str | None = None,
    pictures: bool = True,
    source: str | os.PathLike[str] | None = None,
    autoencoder: str | os.PathLike[str] | None = None,
    progress: TextIO | bool | None = True,
) -> str:
    """Uploads a finished dataset to a dataset repository of the Hugging Face Hub, with a page written from its card.

    The shards are uploaded first, by huggingface_hub's `upload_large_folder`; index, card and page come last, in one
    commit. So a reader of the branch sees a whole dataset or none. The same call continues an interrupted one: what is
    uploaded is not uploaded again. Nothing in the repository is deleted.

    The page, README.md, is the dataset folder's own if it has one. A page in the repository that does not end with
    the line that marks pages of this function is not replaced.

    Args:
        out: The dataset's folder.
        to: `hf:OWNER/NAME`. The repository is made if it does not exist.
        license: The license's identifier on the Hub, such as `cc-by-4.0`; for the page.
        private: True to make a new repository private; an existing one stays as it is.
        revision: The branch; it is made if it does not exist. None for the default branch.
        pictures: True to show decoded samples on the page. If the autoencoder cannot be loaded, the page has none.
        source: The dataset's source, to show the originals next to the decoded samples.
        autoencoder: The autoencoder's name or folder, if the card's name does not find it.
        progress: Stream for progress; True for stderr if it is a terminal.

    Returns:
        The URL for `LatentDataset`: `hf://datasets/OWNER/NAME`, with `@REVISION` if one was given.

    Raises:
        ValueError: `to` is not `hf:OWNER/NAME`, or `license` no identifier.
        LatentqError: The dataset is not finished, there is no token, or the Hub refuses.
        MismatchError: The repository holds another dataset.
        MissingPackageError: huggingface_hub is not installed.
        OSError: The folder cannot be read, or the Hub does not answer.
    """
    stream = (terminal() if progress is True else None) if isinstance(progress, bool) else progress
    repository = repository_of(to)
    check_license(license)
    path = Path(out)
    card = _finished_card(path)
    files = list(_files(path, card))
    nbytes = sum((path / name).stat().st_size for name in files)
    api = hub_api()
    with hub_errors(repository):
        _prepare(api, repository, path, private=private, revision=revision)
    shown, lines = _pictures(path, source, autoencoder, stream) if pictures else (None, "")
    text = page(card, repository, nbytes=nbytes, license=license, revision=revision, lines=lines)
    _say(stream, f"{path}: {counted(len(files), 'file')}, {size_text(nbytes)} to hf://datasets/{repository}")
    _upload_files(api, path, [name for name in files if name not in _SMALL], repository, revision, stream)
    with hub_errors(repository), without_bars():
        _commit(api, path, repository, revision, text, shown)
    return f"hf://datasets/{repository}" + (f"@{revision}" if revision else "")


def extent(out: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the number and the bytes of the files that `push` uploads, without page and pictures.

    Args:
        out: The dataset's folder.

    Raises:
        LatentqError: The dataset is not finished.
        OSError: The folder cannot be read.
    """
    path = Path(out)
    sizes = [(path / name).stat().st_size for name in _files(path, _finished_card(path))]
    return len(sizes), sum(sizes)


def repository_of(to: str) -> str:
    """Returns OWNER/NAME of `hf:OWNER/NAME`.

    Raises:
        ValueError: It is something else.
    """
    if not to.startswith("hf:") or to.startswith("hf://"):
        raise ValueError(f"the place to push to is hf:OWNER/NAME, not {to!r}")
    return check_repository(to.removeprefix("hf:"))


def _finished_card(path: Path) -> Card:
    if path.is_dir() and (path / CARD).exists():
        resume_update(path)
    card = open_card(path)
    if card is None:
        raise LatentqError(f"{path} has no card ({CARD}), so nothing says what it holds: convert it first")
    return card


def _files(path: Path, card: Card) -> Iterator[str]:
    """Yields the files of the dataset, by their paths in it: what an update has replaced is not among them."""
    yield from _SMALL
    yield from (name for name in (REJECTS, EMPTY_CAPTION, NORMALIZATION) if (path / name).exists())
    for folder in (list_folder(path, card.source.revision), *(path / name for name in unit_names(path, card))):
        for file in sorted(folder.iterdir()):
            if not file.name.startswith("."):
                yield f"{folder.name}/{file.name}"


def _prepare(api: HfApi, repository: str, path: Path, *, private: bool, revision: str | None) -> None:
    """Makes repository and branch, and checks that they take this dataset, before anything is uploaded.

    Raises:
        LatentqError: There is no token.
        MismatchError: The repository holds another dataset.
    """
    from huggingface_hub import CommitOperationAdd, get_token
    from huggingface_hub.errors import EntryNotFoundError

    if get_token() is None:
        raise LatentqError(
            "there is no token for the Hub: set HF_TOKEN to a token that may write, or run `hf auth login`"
        )
    api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
    if revision is not None:
        api.create_branch(repository, branch=revision, repo_type="dataset", exist_ok=True)
    card = (path / CARD).read_bytes()
    try:
        # Sends no content: a file this small is no LFS file. The Hub refuses if the token may not write.
        small = CommitOperationAdd(CARD, card[:1])
        api.preupload_lfs_files(repository, [small], repo_type="dataset", revision=revision)
    except EntryNotFoundError:  # no such route on servers that only imitate the Hub
        raise LatentqError(f"{api.endpoint} takes no uploads") from None
    remote = _get(api, repository, CARD, revision)
    if remote is not None and card_hash(remote) != card_hash(card):
        raise MismatchError(
            f"hf://datasets/{repository} holds another dataset: the card there is not that of {path}; push to another "
            "repository, or to a branch (revision)"
        )
    if remote is None and _get(api, repository, INDEX, revision) is not None:
        raise MismatchError(f"hf://datasets/{repository} holds shards without a card of latentq: push elsewhere")


def _get(api: HfApi, repository: str, name: str, revision: str | None) -> bytes | None:
    """Returns the bytes of a file of a repository, or None if there is none."""
    from latentq.store.hub import HubDataset

    found = api.get_paths_info(repository, [name], repo_type="dataset", revision=revision)
    if not found:
        return None
    return HubDataset(f"hf://datasets/{repository}" + (f"@{revision}" if revision else "")).get(name)


def _pictures(
    path: Path,
    source: str | os.PathLike[str] | None,
    autoencoder: str | os.PathLike[str] | None,
    stream: TextIO | None,
) -> tuple[bytes | None, str]:
    """Returns a JPEG of decoded samples and what it shows; None and nothing if the autoencoder cannot be loaded."""
    from latentq.inspect.pictures import pictures, sheet

    try:
        rows = pictures(path, source=source, autoencoder=autoencoder, progress=stream)
    except (LatentqError, ModuleNotFoundError) as error:
        if source is not None or autoencoder is not None:
            raise
        warnings.warn(f"no pictures on the page: {one_line(error)}", stacklevel=3)
        return None, ""
    file = io.BytesIO()
    sheet(rows).save(file, "JPEG", quality=_QUALITY)
    titles = "each as its original and in several forms, the last as stored" if len(rows[0]) > 1 else "decoded"
    return file.getvalue(), f"{counted(len(rows), 'sample')}, {titles}"


def _upload_files(
    api: HfApi, path: Path, names: list[str], repository: str, revision: str | None, stream: TextIO | None
) -> None:
    """Uploads files through a folder of links, where the client keeps what it has done.

    The client's notes would otherwise lie in the dataset, and count for every repository.
    """
    from huggingface_hub import constants

    key = f"{api.endpoint} {repository} {revision} {path.resolve()}"
    staging = Path(constants.HF_HOME, "latentq", "push", hashlib.sha256(key.encode()).hexdigest()[:16])
    present = _sizes(api, repository, revision)
    if staging.is_dir() and not any(name in present for name in names):
        shutil.rmtree(staging)  # of a repository that was deleted since
    _link(path, names, staging)
    missing = names
    for _ in range(2):
        upload(
            repo_id=repository,
            repo_type="dataset",
            revision=revision,
            folder_path=str(staging),
            num_workers=min(max((os.cpu_count() or 1) - 2, 2), 1 + len(names) // _FILES_A_WORKER),
            quiet=stream is None or not stream.isatty(),  # its reports overwrite each other
        )
        present = _sizes(api, repository, revision)
        missing = [name for name in names if present.get(name) != (path / name).stat().st_size]
        shutil.rmtree(staging)
        if not missing:
            return
        _link(path, missing, staging)  # the notes were wrong: someone removed files from the repository
    shutil.rmtree(staging)
    raise OSError(f"hf://datasets/{repository} lacks {counted(len(missing), 'file')} after the upload: {missing[0]}")


def _link(path: Path, names: list[str], staging: Path) -> None:
    """Makes a folder of links to some files of a dataset, and to nothing else."""
    if staging.is_dir():
        for entry in staging.iterdir():
            if entry.name != ".cache":
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    for name in names:
        link = staging / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((path / name).resolve())


def _sizes(api: HfApi, repository: str, revision: str | None) -> dict[str, int]:
    """Returns the size of each file in a repository."""
    with hub_errors(repository):
        tree = api.list_repo_tree(repository, recursive=True, repo_type="dataset", revision=revision)
        return {entry.path: entry.size for entry in tree if hasattr(entry, "size")}


def _commit(api: HfApi, path: Path, repository: str, revision: str | None, text: str, shown: bytes | None) -> None:
    """Publishes the dataset: index, card and page in one commit."""
    from huggingface_hub import CommitOperationAdd

    content: dict[str, Any] = {name: path / name for name in _SMALL}
    own = path / README
    remote = None if own.exists() else _get(api, repository, README, revision)
    if own.exists():
        content[README] = own
    elif remote is None or MARK.encode() in remote:
        content[README] = text.encode()
        if shown is not None:
            content[PICTURES] = shown
    operations = [CommitOperationAdd(name, data) for name, data in content.items()]
    for attempt in range(3):
        try:
            api.create_commit(
                repository, operations, commit_message="Publish the dataset", repo_type="dataset", revision=revision
            )
            return
        except OSError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if attempt == 2 or (status is not None and status < 500):
                raise
            time.sleep(1 << attempt)


def _say(stream: TextIO | None, line: str) -> None:
    if stream is not None:
        print(f"latentq: {line}", file=stream)
