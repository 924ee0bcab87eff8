"""The uploads of `latentq push`: what is repeated, with the interfaces of huggingface_hub 1 and 2."""

import logging

import pytest

from latentq.publishing import upload

ARGUMENTS = {"repo_id": "me/photos", "folder_path": "out", "repo_type": "dataset", "revision": "main"}


class Ended(BaseException):
    """The process would have ended with a message."""


@pytest.fixture
def waits(monkeypatch):
    """The waits between attempts, which are not slept; and an end of the process that is an exception."""

    def end(message):
        raise Ended(message)

    waits = []
    monkeypatch.setattr(upload.time, "sleep", waits.append)
    monkeypatch.setattr(upload, "_end", end)
    return waits


class Large:
    """A client of version 0 or 1: it repeats what fails itself, and logs it."""

    def __init__(self, errors):
        self.errors, self.calls = list(errors), []

    def upload_large_folder(self, *, num_workers, print_report, print_report_every, **arguments):
        assert print_report_every == 10
        self.calls.append((num_workers, print_report, arguments))
        for error in self.errors:
            logging.getLogger("huggingface_hub").error("Failed to upload: %s", error)

    def upload_folder(self, **_):
        raise AssertionError("there is a function for large folders")


class Single:
    """A client of version 2: its function for folders of any size raises what fails."""

    def __init__(self, errors):
        self.errors, self.calls = list(errors), []

    def upload_folder(self, *, commit_message, **arguments):
        assert commit_message
        self.calls.append(arguments)
        if self.errors:
            raise OSError(self.errors.pop(0))


@pytest.fixture(params=[Large, Single])
def attempt(request, monkeypatch):
    """Upload with a client that fails in some ways, and return it."""
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [upload._Failures()])

    def run(*errors):
        client = request.param(errors)
        upload._upload(client, {**ARGUMENTS, "num_workers": 3}, quiet=True)
        return client

    return run


def test_what_may_pass_is_repeated_after_growing_waits(attempt, waits):
    client = attempt(*["503 Server Error: Service Unavailable"] * 8)
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    if isinstance(client, Large):
        assert client.calls == [(3, False, ARGUMENTS)]
    else:
        assert client.calls == [ARGUMENTS] * 9


def test_failures_that_are_far_apart_are_not_counted_together(attempt, waits, monkeypatch):
    now = iter(range(1000, 100_000, 200))  # read before and after each wait
    monkeypatch.setattr(upload.time, "monotonic", lambda: float(next(now)))
    attempt(*["timed out"] * 11)
    assert waits[:3] == [0.5, 1, 2]
    waits.clear()
    now = iter(range(100_000, 10_000_000, 400))
    attempt(*["timed out"] * 30)
    assert waits == [0.5] * 30


@pytest.mark.parametrize("refusal", ["401 Client Error: Unauthorized", "403 Forbidden", "413 Client Error: Too Large"])
def test_a_refusal_ends_at_once(attempt, waits, refusal):
    with pytest.raises(Ended, match=refusal.partition(":")[0]):
        attempt("timed out", refusal, "timed out")
    assert waits == [0.5]


def test_a_failure_that_does_not_pass_ends_at_last(attempt, waits):
    with pytest.raises(Ended, match="timed out"):
        attempt(*["timed out"] * 100)
    assert len(waits) == upload._ATTEMPTS - 1
