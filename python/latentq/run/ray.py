"""Workers on a Ray cluster, and the queue of their units.

Ray decides where workers are, starts them again when their machine dies, and starts more when the cluster grows. Which
worker gets which unit is decided here, in the process that began the run. The state of the run is on disk, as always.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from types import TracebackType
from typing import Any, Self, TextIO

from latentq._core import LatentqError
from latentq.run.listing import print_notes
from latentq.run.options import RayOptions
from latentq.run.worker import Failure, Started, Work, Worker
from latentq.system.extras import needed_for
from latentq.system.text import counted, one_line

_TICK = 1.0  # seconds between looks at slow units and missing machines
_FIRST_NOTE, _NEXT_NOTES = 30.0, 60.0  # seconds without any worker until that is told, and told again
_ATTEMPTS = 5  # of a unit, and of a worker in a row
_SLOW = 1.5  # times the median: a unit that takes longer is given to another worker too, if no unit waits
_STOP = 60.0  # seconds that workers may take to end
_ANSWER = 10.0  # seconds in which a cluster must take a connection


@dataclass(frozen=True)
class _Died:
    """A call that ended because its worker died, or cannot be reached.

    Attributes:
        reason: One line.
        never_ran: True if the worker cannot be made at all.
    """

    reason: str
    never_ran: bool


class ClusterError(LatentqError):
    """A cluster cannot be used, or its workers die."""


@dataclass(eq=False)
class _Member:
    """A worker, as the process that began the run sees it.

    Attributes:
        number: Its number.
        actor: Its handle.
        is_asked: True if it is to be started.
        starting: The call that is waited for until it takes units: for its host, and then to start; None for a moment
            if the first is to be made again.
        is_placed: True if its process runs.
        is_ready: True if it takes units.
        is_doubtful: True if the call to start it was lost once: Ray may take a worker for alive that is not yet.
        making: The units that it was given, by call, in order.
        since: When it began the first of them.
        host: Its machine.
        process: Its process.
        killed: A process of it that was told to end, and may still answer.
        began: When it was given its first unit.
        ended: When its last unit was done.
        units: Number of units that it was the first to make.
        images: Number of images in them.
        failures: How often it failed since it last made a unit.
    """

    number: int
    actor: Any
    is_asked: bool = False
    starting: Any = None
    is_placed: bool = False
    is_ready: bool = False
    is_doubtful: bool = False
    making: dict[Any, int] = field(default_factory=dict)
    since: float = 0.0
    host: str = ""
    process: str = ""
    killed: str = ""
    began: float = 0.0
    ended: float = 0.0
    units: int = 0
    images: int = 0
    failures: int = 0

    def __str__(self) -> str:
        return f"worker {self.number} on {self.host or 'an unknown machine'}"

    @property
    def rate(self) -> float:
        """Images per second since its first unit."""
        return self.images / max(self.ended - self.began, 1e-9)


class Workers:
    """The workers of a run. As a context manager it ends them.

    Args:
        work: What each worker does.
        options: Which cluster, and how many workers.
        stream: Stream for notes, or None.
        gpus: True if the work uses GPUs.

    Attributes:
        note: Prints one line for the user.

    Raises:
        ClusterError: There is no such cluster, or it is this machine alone and cannot hold a worker.
        MissingPackageError: Ray is not installed.
    """

    def __init__(self, work: Work, options: RayOptions, stream: TextIO | None, *, gpus: bool) -> None:
        with needed_for("a run on Ray"):
            import ray
            import ray.exceptions
        self._ray: Any = ray
        self._stream = stream
        self.note: Callable[[str], None] = lambda line: print_notes([line], stream)
        self._is_ours, self._is_alone = _connect(ray, options.address)
        try:
            self._cpus, self._gpus = self._sizes(options, gpus=gpus)
            folder = os.getcwd()  # noqa: PTH109  (sent as text)
            hire = partial(self._actor().remote, work, self._cpus, self._gpus, folder)
            self._members = [_Member(number, hire()) for number in range(self._count(options.workers))]
        except BaseException:
            self._disconnect()
            raise
        self._plan: Any = None
        self._stdout = contextlib.ExitStack()
        if self._is_ours:  # Ray prints there about processes that died
            self._stdout.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._next_note = time.monotonic() + _FIRST_NOTE

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                idle = [member for member in self._members if member.is_ready and not member.making]
                stops = [member.actor.stop.remote() for member in idle]
                if stops:
                    self._ray.wait(stops, num_returns=len(stops), timeout=_STOP)
            for member in self._members:
                self._ray.kill(member.actor)
        finally:
            self._disconnect()
            self._stdout.close()

    def plan(self) -> Any:
        """Starts the first worker, and returns what it planned; then begins to start the others.

        Raises:
            Exception: That of the worker.
        """
        first, *others = self._members
        self._place(first)
        while not first.is_ready:
            deque(self._next_outcomes(), 0)  # it has no units yet
        for member in others:
            self._place(member)
        return self._plan

    def results(self, sizes: Mapping[int, int]) -> Iterator[tuple[int, Any]]:
        """Gives units to the workers, and yields the number and the result of each unit once it is done.

        Args:
            sizes: The number of images of each unit, by its number, in the order in which they are given.

        Raises:
            Exception: That of a worker, if it is not its machine's, or if too many attempts at a unit fail.
            ClusterError: A unit ended too many workers.
        """
        waiting, left = deque(sizes), set(sizes)
        given: Counter[int] = Counter()  # workers that have the unit now
        failed: Counter[int] = Counter()
        seconds: deque[float] = deque(maxlen=1000)
        while left:
            self._give(waiting, left, given, seconds)
            for member, number, outcome in self._next_outcomes():
                now, given[number] = time.monotonic(), given[number] - 1
                if isinstance(outcome, Failure | _Died):
                    failed[number] += 1
                    if failed[number] == _ATTEMPTS or not _may_pass(outcome):
                        raise _raised(outcome, f"unit {number:05} failed {counted(failed[number], 'time')}")
                    if member.is_ready:  # else it was told already, for another of its units
                        self._renew(member, outcome)
                    if number in left and not given[number]:
                        waiting.appendleft(number)
                    continue
                if number in left:
                    left.remove(number)
                    seconds.append(now - member.since)
                    member.units, member.images = member.units + 1, member.images + sizes[number]
                    yield number, outcome
                member.failures, member.since, member.ended = 0, now, now

    def rates(self) -> str:
        """Returns the number of workers that take units, and how many images a second each of them does."""
        rates = [member.rate for member in self._members if member.is_ready and member.units]
        spread = f" at {min(rates):.1f} to {max(rates):.1f} images/s" if rates else ""
        return counted(sum(member.is_ready for member in self._members), "worker") + spread

    def summary(self) -> list[str]:
        """Returns a line for each worker that made units."""
        return [
            f"{member}: {counted(member.units, 'unit')}, {counted(member.images, 'image')}, {member.rate:.1f} images/s"
            for member in self._members
            if member.units
        ]

    def _give(self, waiting: deque[int], left: set[int], given: Counter[int], seconds: deque[float]) -> None:
        """Gives each worker a unit, and the next one already, unless so few wait that others may need them."""
        ready = [member for member in self._members if member.is_ready]
        for already, enough in ((0, 0), (1, len(self._members))):
            for member in ready:
                while waiting and waiting[0] not in left:
                    waiting.popleft()
                if len(member.making) == already and len(waiting) > enough:
                    self._make(member, waiting.popleft(), given)
        if waiting or not seconds:
            return
        # What is slow is given twice; the first to publish wins.
        late = time.monotonic() - _SLOW * median(seconds)
        slow = [
            (member.since, number)
            for member in self._members
            if member.making and member.since < late
            for number in member.making.values()
            if number in left and given[number] == 1
        ]
        for member, (_, number) in zip((member for member in ready if not member.making), sorted(slow), strict=False):
            self._make(member, number, given)

    def _make(self, member: _Member, number: int, given: Counter[int]) -> None:
        now = time.monotonic()
        member.began = member.began or now
        if not member.making:
            member.since = now
        member.making[member.actor.make.remote(number)] = number
        given[number] += 1

    def _next_outcomes(self) -> Iterator[tuple[_Member, int, Any]]:
        """Waits a while for calls to end, and yields the worker, the number and the outcome of each unit among them.

        Workers whose process runs are started, and those that could not be started are made again.
        """
        calls: dict[Any, _Member] = {}
        for member in self._members:
            if member.is_asked and member.starting is None and not member.is_ready:
                member.starting = member.actor.host.remote()
            calls |= dict.fromkeys([*([member.starting] if member.starting else ()), *member.making], member)
        ended, rest = self._ray.wait(list(calls), timeout=_TICK)
        if ended and rest:
            ended += self._ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        self._tell_if_idle()
        is_slow_to_come = False
        for call in ended:
            member, outcome = calls[call], self._outcome(call)
            if call is not member.starting:
                yield member, member.making.pop(call), outcome
            elif isinstance(outcome, tuple) and outcome[1] != member.killed:
                (member.host, member.process), member.is_placed = outcome, True
                member.starting = member.actor.start.remote(self._plan)
            elif isinstance(outcome, Started):
                member.starting, member.is_ready, member.is_doubtful = None, True, False
                if self._plan is None:
                    self._plan = outcome.plan
                    print_notes(outcome.notes, self._stream)
            elif isinstance(outcome, _Died) and member.is_placed and not member.is_doubtful and not outcome.never_ran:
                member.is_doubtful = True
                self._place(member)
            elif isinstance(outcome, Failure | _Died) and (member.is_placed or not _may_pass(outcome)):
                self._renew(member, outcome)
            else:  # Ray starts it again, and refuses calls until then
                member.starting, is_slow_to_come = None, True
        if is_slow_to_come and len(ended) == 1:
            time.sleep(_TICK)

    def _outcome(self, call: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(call)
        except errors.ActorUnavailableError:
            return _Died("it died, or cannot be reached", never_ran=False)
        except errors.RayActorError as error:
            return _Died(f"it died: {one_line(str(error).strip().splitlines()[-1].strip())}", error.actor_init_failed)

    def _place(self, member: _Member) -> None:
        """Begins to wait for a worker's process."""
        member.is_asked, member.is_placed, member.is_ready, member.starting = True, False, False, None

    def _renew(self, member: _Member, outcome: Failure | _Died) -> None:
        """Starts a worker again that died, or whose machine has a fault; Ray may choose another machine for it.

        Raises:
            Exception: That of the worker, if it cannot pass, or if this is the last worker and it failed too often.
        """
        member.failures += 1
        is_given_up = member.failures == _ATTEMPTS
        if not _may_pass(outcome) or (is_given_up and len(self._members) == 1):
            raise _raised(outcome, f"{member} failed {counted(member.failures, 'time')}")
        then = "it is given up" if is_given_up else "its units go to others, and it is started again"
        self.note(f"{member}: {_reason(outcome)}: {then}")
        if is_given_up:
            self._members.remove(member)
        if is_given_up or isinstance(outcome, Failure):
            self._ray.kill(member.actor, no_restart=is_given_up)
            member.killed = member.process
        self._place(member)

    def _tell_if_idle(self) -> None:
        """Prints a line now and then while no worker runs."""
        now = time.monotonic()
        if any(member.is_placed for member in self._members):
            self._next_note = now + _FIRST_NOTE
        elif now >= self._next_note:
            self._next_note = now + _NEXT_NOTES
            free = _text(self._ray.available_resources())
            self.note(f"no worker runs yet: each needs {self._needs()}; the cluster has {self._has()}, free are {free}")

    def _actor(self) -> Any:
        return self._ray.remote(Worker).options(
            num_cpus=self._cpus,
            num_gpus=self._gpus,
            max_restarts=-1,
            max_concurrency=8,
            scheduling_strategy="SPREAD",
        )

    def _sizes(self, options: RayOptions, *, gpus: bool) -> tuple[int, float]:
        """Returns the processors and the GPUs of a worker."""
        with_gpu = [machine for machine in self._machines() if machine.get("GPU", 0)]
        wanted = options.gpus_per_worker if gpus else 0
        per_worker = (1 if with_gpu else 0) if wanted is None else wanted
        cpus = options.cpus_per_worker
        if cpus is None:
            shares = [machine["CPU"] * per_worker / machine["GPU"] for machine in with_gpu] if per_worker else []
            cpus = max(1, int(min(shares, default=1)))
        return cpus, per_worker

    def _count(self, wanted: int | None) -> int:
        """Returns the number of workers; tells the user if they do not fit in the cluster as it is.

        Raises:
            ClusterError: The cluster is this machine alone, and it cannot hold one worker.
        """
        fitting = 0
        for machine in self._machines():
            by_gpus = [machine.get("GPU", 0) // self._gpus] if self._gpus else []
            fitting += int(min([machine.get("CPU", 0) // self._cpus, *by_gpus]))
        count = wanted or max(1, fitting)
        if not fitting and self._is_alone:
            raise ClusterError(f"a worker needs {self._needs()}, and this machine has {self._has()}")
        if not fitting:
            self.note(f"a worker needs {self._needs()}, and no machine of the cluster has them: waiting for one")
        elif fitting < count:
            self.note(f"{fitting} of {count} workers fit in the cluster; the others start when it grows")
        return count

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]

    def _needs(self) -> str:
        return _text({"CPU": self._cpus, "GPU": self._gpus})

    def _has(self) -> str:
        total: Counter[str] = Counter()
        for machine in self._machines():
            total.update(machine)
        return _text(total)

    def _disconnect(self) -> None:
        if self._is_ours:
            self._ray.shutdown()


def _text(resources: Mapping[str, float]) -> str:
    """Returns processors and GPUs as text."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    return (
        f"{cpus:g} CPU{'s' * (cpus != 1)} and {gpus:g} GPU{'s' * (gpus != 1)}"
        if gpus
        else f"{cpus:g} CPU{'s' * (cpus != 1)} and no GPU"
    )


def _connect(ray: Any, address: str | None) -> tuple[bool, bool]:
    """Connects this process to a cluster.

    Args:
        ray: The package.
        address: See `RayOptions`.

    Returns:
        True if this made the connection, and is to end it; and true if the cluster is this machine alone.

    Raises:
        ClusterError: There is no such cluster, or it cannot be used.
    """
    if ray.is_initialized():
        return False, False
    named = address or os.environ.get("RAY_ADDRESS") or ""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        _reach(named)
        try:
            ray.init(address=address or "auto", **quiet)
        except ConnectionError:
            if address is not None or os.environ.get("RAY_ADDRESS"):
                raise
        else:
            return True, address == "local"
        ray.init(address="local", include_dashboard=False, **quiet)
    except Exception as error:  # Ray raises bare ones too
        where = named or "this machine"
        raise ClusterError(f"the Ray cluster of {where} cannot be used: {one_line(error)}") from None
    return True, True


def _reach(address: str) -> None:
    """Raises OSError if nobody listens at an address, which Ray would ask for minutes, with a line for each attempt."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()


def _may_pass(outcome: Failure | _Died) -> bool:
    """True if another attempt may succeed: the machine had a fault, or the worker died."""
    return outcome.is_machine if isinstance(outcome, Failure) else not outcome.never_ran


def _reason(outcome: Failure | _Died) -> str:
    if isinstance(outcome, Failure):
        return one_line(outcome.error) or type(outcome.error).__name__
    return outcome.reason


def _raised(outcome: Failure | _Died, context: str) -> Exception:
    """Returns what ends the run: the exception of a worker, with its machine in the message; or that workers died."""
    if not isinstance(outcome, Failure):
        hint = "; is latentq installed on every machine?" if outcome.never_ran else ""
        return ClusterError(f"{context}: {outcome.reason}{hint}")
    error, where = outcome.error, f"(worker on {outcome.host})"
    if isinstance(error, OSError) and error.strerror:
        error.strerror = f"{error.strerror} {where}"
    elif len(error.args) == 1 and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]} {where}",)
    return error
