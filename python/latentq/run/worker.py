"""A worker of a cluster: does one part of a run in a thread, and is given its units call by call.

Nothing here knows Ray, which makes an actor of `Worker`.
"""

from __future__ import annotations

import io
import os
import pickle
import secrets
import socket
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from latentq._core import LatentqError
from latentq.run.queue import UnitQueue
from latentq.system.faults import is_machine_fault
from latentq.system.text import one_line


class Work(Protocol):
    """Work of every worker of a run. It is pickled."""

    def __call__(self, queue: UnitQueue, plan: Any) -> object:
        """Plans the run, reports the plan to the queue, and makes the units that the queue gives.

        Args:
            queue: The queue.
            plan: What the first worker planned; None for the first worker itself.
        """


@dataclass(frozen=True)
class Started:
    """A worker that has planned the run, and waits for units.

    Attributes:
        plan: The plan, if it is the first worker.
        notes: Lines for the user.
    """

    plan: Any
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """An exception of a worker.

    Attributes:
        error: The exception.
        is_machine: True if the same work may succeed elsewhere, or another time.
        host: The machine's name.
    """

    error: Exception
    is_machine: bool
    host: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Returns the failure of an exception, which is replaced by its message if it cannot be pickled."""
        # torch reports the faults of a device as RuntimeError.
        is_machine = is_machine_fault(error) or isinstance(error, RuntimeError) or not isinstance(error, Exception)
        try:
            kept = pickle.loads(pickle.dumps(error))
            kept = kept if isinstance(kept, Exception) else LatentqError(repr(error))
        except Exception:
            kept = LatentqError(f"{type(error).__name__}: {one_line(error)}")
        return cls(kept, is_machine, socket.gethostname())


class Worker:
    """One process of a cluster. Its methods are called from several threads at the same time.

    Args:
        work: What it does.
        cpus: Its processors.
        gpus: Its GPUs.
        folder: The current folder of the process that began the run, which relative paths are relative to.
    """

    def __init__(self, work: Work, cpus: int, gpus: float, folder: str) -> None:
        if os.path.isdir(folder):  # noqa: PTH112  (a plain string, as it was sent)
            os.chdir(folder)
        self._name = secrets.token_hex(8)
        self._work = work
        self._cpus, self._gpus = cpus, gpus
        self._lock = threading.Lock()
        self._part: _Part | None = None

    def host(self) -> tuple[str, str]:
        """Returns the name of the machine that it is on, and a name of this process."""
        return socket.gethostname(), self._name

    def start(self, plan: Any = None) -> Started | Failure:
        """Begins the part of this worker, if it has not begun, and waits for its plan.

        Args:
            plan: What the first worker planned; None for the first worker itself.
        """
        with self._lock:
            if self._part is None or self._part.has_ended:
                self._part = _Part(self._work, plan, self._cpus, self._gpus)
            part = self._part
        try:
            found = part.plan.result()
        except BaseException as error:
            return Failure.of(error)
        first = plan is None
        return Started(found if first else None, part.lines() if first else ())

    def make(self, number: int) -> Any:
        """Makes a unit, and returns its result or a `Failure`."""
        part = self._part
        try:
            if part is None:
                raise RuntimeError("the worker was started again")
            return part.make(number).result()
        except BaseException as error:
            return Failure.of(error)

    def stop(self) -> None:
        """Ends the part, once the units that were given are made."""
        if self._part is not None:
            self._part.stop()


class _Part:
    """The part of one worker: the queue that its work takes units from, and the thread that does it.

    Args:
        work: What the worker does.
        plan: What the first worker planned; None for the first worker itself.
        cpus: The processors of the worker.
        gpus: Its GPUs.

    Attributes:
        plan: The plan, once there is one.
    """

    def __init__(self, work: Work, plan: Any, cpus: int, gpus: float) -> None:
        self.cpus, self.gpus = cpus, gpus
        self.notes = _Notes()
        self.plan: Future[Any] = Future()
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque()
        self._results: dict[int, Future[Any]] = {}
        self._stopped = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work, plan), name="latentq: worker", daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """True if the work has ended, or has failed."""
        return self._error is not None

    def lines(self) -> tuple[str, ...]:
        """Returns the notes of the work before it had planned."""
        return tuple(self.notes.getvalue().splitlines())

    def make(self, number: int) -> Future[Any]:
        """Gives a unit, and returns its result to come."""
        with self._changed:
            if self._error is not None:
                raise self._error
            if number not in self._results:
                self._results[number] = Future()
                self._waiting.append(number)
                self._changed.notify_all()
            return self._results[number]

    def stop(self) -> None:
        """Ends the queue, and waits for the work."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def planned(self, plan: Any) -> None:
        """Reports the plan: see `UnitQueue`."""
        self.notes.is_open = False
        if not self.plan.done():  # the work may have begun again
            self.plan.set_result(plan)

    def waves(self) -> Iterator[Iterator[int]]:
        """Yields units as they come: see `UnitQueue`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if not self._waiting:
                    return
            yield self._there()

    def _there(self) -> Iterator[int]:
        while True:
            with self._changed:
                if not self._waiting:
                    return
                number = self._waiting.popleft()
            yield number

    def done(self, number: int, result: Any) -> None:
        """Reports a unit: see `UnitQueue`."""
        with self._changed:
            future = self._results.pop(number)
        future.set_result(result)

    def _run(self, work: Work, plan: Any) -> None:
        error: BaseException = RuntimeError("the worker was stopped")
        try:
            if plan is None:
                warnings.showwarning = self._note_warning
            work(self, plan)
        except BaseException as raised:
            error = raised
        with self._changed:
            self._error = error
            futures = [*self._results.values(), *([] if self.plan.done() else [self.plan])]
            self._results.clear()
        for future in futures:
            future.set_exception(error)

    def _note_warning(self, message: Warning | str, *_: Any, **__: Any) -> None:
        self.notes.write(f"warning: {one_line(message)}\n")


class _Notes(io.StringIO):
    """Takes lines until it is closed for more."""

    is_open = True

    def write(self, text: str) -> int:
        return super().write(text) if self.is_open else len(text)
