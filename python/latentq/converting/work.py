"""The folder of a conversion that is not finished, from which the same command continues."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentq._core import MismatchError
from latentq.format.card import CARD
from latentq.store.local import replace_file, sync

_JOB = "job.json"
_DONE = "done.json"
_RESULT = "result"
_REPLACEMENT = "replacement"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FEW = 1000  # files that are fsynced, each by a call
_WAITING = 16  # of these calls at the same time: the disk does their work once


@dataclass(frozen=True)
class Work:
    """A conversion that is not finished.

    Attributes:
        out: The output, which appears when it is whole.
        folder: The folder, next to the output; removed at the end.
        result: The output in the making, in that folder.
    """

    out: Path
    folder: Path
    result: Path

    @property
    def done(self) -> int:
        """The number of samples that were written and fsynced, by `record`."""
        try:
            return int(json.loads((self.folder / _DONE).read_bytes())["samples"])
        except FileNotFoundError:
            return 0

    def record(self, samples: int) -> None:
        """Records that samples are written; a later run starts after them.

        Args:
            samples: The number of samples from the start.
        """
        _sync_files(self.result)
        replace_file(self.folder / _DONE, json.dumps({"samples": samples}).encode())

    def record_every(self, step: int, samples: int, recorded: int) -> int:
        """Records that samples are written if the last record is `step` samples ago. Returns the last record.

        Args:
            step: The number of samples.
            samples: The number of samples from the start.
            recorded: The last record.
        """
        if samples - recorded < step:
            return recorded
        self.record(samples)
        return samples

    def replace(self, path: Path, data: bytes) -> None:
        """Replaces a file of the result, durably: a later run finds the old one or the new one.

        Args:
            path: The file.
            data: Its bytes.
        """
        temporary = self.folder / _REPLACEMENT
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def restart(self) -> None:
        """Removes what an earlier run left, for an output that can only be written in one go."""
        if self.result.is_dir():
            shutil.rmtree(self.result)
        self.result.unlink(missing_ok=True)
        (self.folder / _DONE).unlink(missing_ok=True)

    @property
    def worth_keeping(self) -> bool:
        """True if a later run can continue from here."""
        if (self.folder / _DONE).exists():
            return True
        return self.result.is_dir() and any(self.result.glob("[0-9]*/index.json"))


def work_folder(out: Path) -> Path:
    """Returns the folder of a conversion that is not finished, next to its output."""
    return out.with_name(f".{out.name}.converting")


@contextlib.contextmanager
def resumable(out: Path, job: Mapping[str, Any]) -> Iterator[Work]:
    """Yields the work of a conversion, and publishes its result by one rename if the body succeeds.

    If the body raises or the process is killed, the folder stays if a later run can continue from it.

    Args:
        out: The output, which must not exist.
        job: Everything that decides the output. A later run with the same job continues.

    Raises:
        FileExistsError: `out` exists.
        MismatchError: Another conversion to `out` is unfinished, or runs at the same time.
        OSError: A file or folder cannot be written.
    """
    check_absent(out)
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to write to", str(out.parent))
    work = Work(out, work_folder(out), work_folder(out) / _RESULT)
    work.folder.mkdir(exist_ok=True)
    descriptor = os.open(work.folder, os.O_RDONLY)
    owned = False
    try:
        _lock(descriptor, out)
        _check_same(descriptor, work.folder, out)
        owned = True
        _check_job(work.folder, out, job)
        yield work
        _publish(work, out)
    except BaseException as error:
        if owned and work.folder.is_dir() and not work.worth_keeping:
            shutil.rmtree(work.folder, ignore_errors=True)
        if isinstance(error, OSError) and error.filename is None and error.errno in _FULL:
            raise OSError(error.errno, error.strerror, str(out)) from error  # a file's write does not name the file
        raise
    finally:
        os.close(descriptor)


def check_absent(out: Path) -> None:
    """Raises FileExistsError if there is something at `out`."""
    if os.path.lexists(out):
        raise FileExistsError(errno.EEXIST, "is there already; choose another name", str(out))


def _sync_files(folder: Path) -> None:
    """Fsyncs what is in a folder: each file if they are few, or else by one call for the whole system."""
    if not folder.is_dir():
        sync(folder)
        return
    names = list(itertools.islice(folder.rglob("*"), _FEW + 1))
    if len(names) > _FEW:
        os.sync()
        return
    with ThreadPoolExecutor(_WAITING, "latentq: fsync") as pool:
        list(pool.map(sync, names))  # which raises what a call raises
    sync(folder)


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MismatchError(f"{out}: another process is converting to it") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _check_same(descriptor: int, folder: Path, out: Path) -> None:
    """Raises MismatchError if a process that had the lock before has removed the folder."""
    if not folder.is_dir() or not os.path.samestat(os.fstat(descriptor), folder.stat()):
        raise MismatchError(f"{out}: another process was converting to it")


def _check_job(folder: Path, out: Path, job: Mapping[str, Any]) -> None:
    """Records the job, or compares it with the recorded one."""
    data = json.dumps(job, sort_keys=True, indent=1).encode()
    try:
        recorded = (folder / _JOB).read_bytes()
    except FileNotFoundError:
        replace_file(folder / _JOB, data)
        return
    if recorded != data:
        differing = _difference(recorded, job)
        raise MismatchError(
            f"{folder} holds an unfinished conversion to {out} with {differing}: remove it, or choose another output"
        )


def _difference(recorded: bytes, job: Mapping[str, Any]) -> str:
    try:
        before = json.loads(recorded)
        name = next(name for name in (*job, *before) if before.get(name) != job.get(name))
        there, here = ("not given" if value is None else f"{value!r}" for value in (before.get(name), job.get(name)))
        return f"other arguments ({name}: {there} there, {here} here)"
    except (ValueError, AttributeError, StopIteration):
        return "an unreadable description"


def _publish(work: Work, out: Path) -> None:
    if work.result.is_dir() and not (work.result / CARD).exists():  # the units of a dataset are fsynced
        _sync_files(work.result)
    sync(work.result)
    check_absent(out)
    work.result.rename(out)
    sync(out.absolute().parent)
    shutil.rmtree(work.folder, ignore_errors=True)
