"""Uploads a large folder with huggingface_hub, in a process of its own.

Its `upload_large_folder` repeats what fails for ever, and its threads end only when all files are uploaded. So it runs
in a process that ends with its parent, and at an error that will not pass. Run as `python -m
latentq.publishing.upload`, it reads a line of JSON with the function's arguments, prints nothing on stdout but one line
if it fails, and ends if stdin is closed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from typing import Any

from latentq._core import LatentqError

_ATTEMPTS = 12  # failures in a row, with waits of 0.5 s, 1 s, 2 s and so on between them
_LONGEST_WAIT = 30.0  # seconds
_IN_A_ROW = 300.0  # seconds between failures that belong together
_FINAL = re.compile(r"\b(400|401|403|404|413|422) (Client Error|Bad Request|Unauthorized|Forbidden|Not Found)")


def upload(**arguments: Any) -> None:
    """Uploads a folder; what an earlier call has uploaded is not uploaded again.

    Args:
        arguments: Of `HfApi.upload_large_folder`; `quiet` True to print no progress on stderr.

    Raises:
        LatentqError: The Hub refuses, or fails again and again. The same call continues.
    """
    command = [sys.executable, "-m", "latentq.publishing.upload"]
    # In a session of its own, Ctrl-C reaches only this process, which ends the child.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(arguments) + "\n")
            child.stdin.flush()
            message = child.stdout.read().strip()
            code = child.wait()
        except BaseException:
            child.kill()
            raise
    if code:
        raise LatentqError(message or f"the upload ended with code {code}")


class _Failures(logging.Handler):
    """Waits after each failure, as the client logs them, and ends the process at one that will not pass."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._count, self._last = 0, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self.add(record.getMessage())

    def add(self, text: str) -> None:
        """Counts a failure, and waits before the next attempt."""
        message = " ".join(text.split())[:400]
        now = time.monotonic()
        self._count = self._count + 1 if now - self._last < _IN_A_ROW else 1
        if _FINAL.search(message) or self._count >= _ATTEMPTS:
            _end(message)
        time.sleep(min(_LONGEST_WAIT, 0.25 * 2**self._count))
        self._last = time.monotonic()


def _upload(api: Any, arguments: dict[str, Any], quiet: bool) -> None:
    """Uploads a folder by the client's function for large ones; since version 2 its only function is for both."""
    if hasattr(api, "upload_large_folder"):
        api.upload_large_folder(**arguments, print_report=not quiet, print_report_every=10)
    else:
        del arguments["num_workers"]
        failures = _Failures()
        while True:
            try:
                api.upload_folder(**arguments, commit_message="Add files of the dataset")
                return
            except Exception as error:
                failures.add(str(error))


def _end(message: str) -> None:
    """Ends the process at once, as its threads would not end."""
    with contextlib.suppress(OSError):
        os.write(1, f"{message}\n".encode())
    os._exit(1)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def _main() -> None:
    arguments = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    quiet = arguments.pop("quiet")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # there would be one for each file
    from huggingface_hub import HfApi

    log = logging.getLogger("huggingface_hub")
    for handler in list(log.handlers):
        log.removeHandler(handler)
    log.addHandler(_Failures())
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the client prints its reports on stdout
            _upload(HfApi(endpoint=os.environ.get("HF_ENDPOINT")), arguments, quiet)
    except Exception as error:
        _end(" ".join(str(error).split())[:400])
    os._exit(0)


if __name__ == "__main__":
    _main()
