"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from latentq.system.text import counted, duration_text, one_line, reject_group, size_text

_Item = TypeVar("_Item")
_LINE_SECONDS = 10.0  # between plain lines
_POSTFIX_SECONDS = 0.2  # between changes of the text next to a bar
_SHOWN_REJECTS = 5
_LISTED_AT_ONCE = 1024


def terminal() -> TextIO | None:
    """Returns stderr if it is a terminal, else None: the stream for progress that nobody asked for."""
    return sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None


@dataclass
class Totals:
    """Totals of a run that has ended.

    Attributes:
        images: Number of images that this run handled, rejects included.
        seconds: Time since its first image.
    """

    images: int = 0
    seconds: float = 0.0


class Progress:
    """Counts images, and prints their number, rate, time left and rejects.

    Args:
        total: Number of images, including those that an earlier run has done; None if it is not known.
        label: The name of the work, e.g. `encode`.
        stream: Stream to print to; None prints nothing.
        noun: The singular of what is counted.
        totals: Filled in at the end.
        detail: Returns a short text to print after the counts, such as the share of time in which a device worked.
        bar: Options of the bar on a terminal.
    """

    def __init__(
        self,
        total: int | None,
        label: str,
        stream: TextIO | None,
        *,
        noun: str = "image",
        totals: Totals | None = None,
        detail: Callable[[], str] | None = None,
        **bar: Any,
    ) -> None:
        self._total = total
        self._label = label
        self._stream = stream
        self._noun = noun
        self._totals = totals
        self._detail = detail
        self._written = 0
        self._bar: Any = None
        self._done = self._skipped = 0
        self._rejects: dict[str, _RejectGroup] = {}
        self._rejects_shown = 0
        self._start = self._printed = time.monotonic()
        self._printed_done = -1
        if stream is not None and stream.isatty():
            from tqdm import tqdm

            options = {"unit": "img" if noun == "image" else f"{noun}s", "dynamic_ncols": True, "smoothing": 0.1, **bar}
            self._bar = tqdm(total=total, desc=label, file=stream, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif kind is None and self._printed_done != self._done:
            self._print_line()
        self._print_rejects()
        if self._totals is not None:
            self._totals.images, self._totals.seconds = self._done, time.monotonic() - self._start

    def update(self, done: int) -> None:
        """Adds images that are done."""
        self._done += done
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._details()), refresh=False)
            self._bar.update(done)
        elif time.monotonic() - self._printed >= _LINE_SECONDS:
            self._print_line()

    def wrote(self, count: int) -> None:
        """Adds bytes that are published."""
        self._written += count

    def reject(self, key: str, stage: str, reason: str) -> None:
        """Adds one image that is rejected; only the first few are printed one by one."""
        group = self._rejects.setdefault(reject_group(stage, reason), _RejectGroup(stage, reason))
        group.count += 1
        group.same = group.same and reason == group.reason
        self._rejects_shown += 1
        if self._rejects_shown <= _SHOWN_REJECTS:
            self.note(f"rejected: {key}: {stage}: {reason}")
        elif self._rejects_shown == _SHOWN_REJECTS + 1:
            self.note("further rejects are counted by reason at the end; rejects.tsv lists all of them")
        self.update(1)

    def counted(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields items, and adds each when the next one is asked for."""
        for item in items:
            yield item
            self.update(1)

    def undo(self, accepted: int, rejects: Iterable[tuple[str, str]]) -> None:
        """Takes back images that must be done again.

        Args:
            accepted: Number of images that were not rejected.
            rejects: Stage and reason of each reject.
        """
        images = accepted
        for stage, reason in rejects:
            images += 1
            name = reject_group(stage, reason)
            self._rejects[name].count -= 1
            if not self._rejects[name].count:
                del self._rejects[name]
        self.update(-images)

    def skip(self, done: int) -> None:
        """Adds images that an earlier run has done, before all others; rate and time begin now."""
        self._skipped += done
        self._start = time.monotonic()
        if self._bar is not None:
            self._bar.initial += done
            self._bar.n += done
            self._bar.refresh()

    def note(self, line: str) -> None:
        """Prints one line without disturbing the bar, control characters escaped."""
        line = one_line(line)
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        elif self._stream is not None:
            with contextlib.suppress(OSError):  # a closed stream must not end the run
                print(line, file=self._stream, flush=True)

    def _print_line(self) -> None:
        self._printed, self._printed_done = time.monotonic(), self._done
        rate = self._done / max(self._printed - self._start, 1e-9)
        if self._total is None:
            pace = f", {rate:.1f} {self._noun}s/s" if rate else ""
            self.note(f"{self._label}: {counted(self._done, self._noun)}{pace}")
            return
        left = (self._total - self._skipped - self._done) / rate if rate else 0.0
        self.note(self._line(rate, duration_text(left)))

    def _line(self, rate: float, left: str) -> str:
        count = f"{self._label}: {self._skipped + self._done} of {counted(self._total or 0, self._noun)}"
        pace = f", {rate:.1f} {self._noun}s/s, {left} left" if rate else ""  # no rate if all was done before
        return ", ".join([f"{count}{pace}", *self._details()])

    def _details(self) -> list[str]:
        """Returns what is printed after the counts: rejects, bytes, and the caller's own text."""
        return [
            *([counted(self._reject_count(), "reject")] if self._rejects else ()),
            *([size_text(self._written)] if self._written else ()),
            *([self._detail()] if self._detail is not None and self._done else ()),
        ]

    def _reject_count(self) -> int:
        return sum(group.count for group in self._rejects.values())

    def _print_rejects(self) -> None:
        """Prints the number of rejects by reason, unless each of them has been printed."""
        if self._reject_count() <= _SHOWN_REJECTS:
            return
        for group in sorted(self._rejects.values(), key=lambda group: -group.count):
            example = group.reason if group.same else f"for example: {group.reason}"
            self.note(f"rejected: {counted(group.count, self._noun)}: {group.stage}: {example}")


@dataclass
class _RejectGroup:
    """Rejects whose reasons differ in numbers only."""

    stage: str
    reason: str
    count: int = 0
    same: bool = True


def listing_progress(archives: Collection[_Item], stream: TextIO | None) -> Iterator[_Item]:
    """Yields archives while they are listed; prints progress only if that takes long.

    Args:
        archives: The archives.
        stream: Stream to print to; None prints nothing.
    """
    with BriefProgress(len(archives), "list", stream, noun="archive") as bar:
        for archive in archives:
            yield archive
            bar.update(1)


def counting_progress(items: Iterable[_Item], stream: TextIO | None) -> Iterator[_Item]:
    """Yields images while they are listed; prints their number only if that takes long.

    Args:
        items: The images, of which nobody knows how many there are.
        stream: Stream to print to; None prints nothing.
    """
    if stream is None:
        yield from items
        return
    items = iter(items)
    with BriefProgress(None, "list", stream) as bar:
        while batch := list(itertools.islice(items, _LISTED_AT_ONCE)):
            yield from batch
            bar.update(len(batch))


class BriefProgress(Progress):
    """Progress of work that is usually short: nothing is printed unless it takes long, and nothing at the end."""

    def __init__(self, total: int | None, label: str, stream: TextIO | None, *, noun: str = "image") -> None:
        super().__init__(total, label, stream, noun=noun, leave=False, delay=1.0)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TransferProgress(Progress):
    """Counts the bytes of files that are downloaded in parallel, and prints how far each file is.

    Args:
        stream: Stream to print to; None prints nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(0, "collect", stream, unit="B", unit_scale=True)
        self._files = self._ended = self._failed = 0
        self._active: dict[str, tuple[int, int | None]] = {}
        self._lock = threading.Lock()

    def expect(self, files: int, total: int) -> None:
        """Sets the number of files, and the bytes of those whose size is known; time begins now."""
        self._files, self._total, self._start = files, total, time.monotonic()
        if self._bar is not None:
            self._bar.reset(total)

    def begin(self, name: str, size: int | None) -> None:
        """Adds a file whose download begins. The total includes its bytes if its size is known."""
        with self._lock:
            self._active[name] = (-1, size)

    def at(self, name: str, done: int, size: int | None) -> None:
        """Sets the number of bytes that a file has.

        Args:
            name: The file's name.
            done: The number of bytes that are there.
            size: The number of bytes of the whole file; None if unknown.
        """
        with self._lock:
            before, expected = self._active[name]
            self._active[name] = (done, size)
            if expected is None and size is not None:
                self._total = (self._total or 0) + size
                if self._bar is not None:
                    self._bar.total = self._total
            if before < 0:  # bytes of an earlier run, which the rate does not count
                self._skipped += done
                if self._bar is not None:
                    self._bar.initial += done
                    self._bar.n += done
            else:
                self.update(done - before)

    def end(self, name: str, error: str = "") -> None:
        """Removes a file that is complete, or has failed with an error."""
        with self._lock:
            self._active.pop(name, None)
            self._ended, self._failed = self._ended + 1, self._failed + bool(error)
            self._printed_done = -1  # print a last line even if the file added no bytes
            if error:
                self.note(f"failed: {name}: {error}")

    def update(self, done: int) -> None:
        """Adds bytes."""
        if self._bar is None:
            super().update(done)
            return
        if time.monotonic() - self._printed >= _POSTFIX_SECONDS:
            self._printed = time.monotonic()
            self._bar.set_postfix_str(one_line(f"{self._file_counts()}{self._file_shares()}"), refresh=False)
        self._bar.update(done)

    def _line(self, rate: float, left: str) -> str:
        done = size_text(self._skipped + self._done)
        return (
            f"{self._label}: {self._file_counts()}, {done} of {size_text(self._total or 0)}, "
            f"{size_text(round(rate))}/s, {left} left{self._file_shares()}"
        )

    def _file_counts(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended} of {counted(self._files, 'file')}{failed}"

    def _file_shares(self) -> str:
        """Returns the percentage of each file that is being downloaded and has a known size."""
        shares = (
            f"{name.rpartition('/')[2]} {100 * max(done, 0) // size}%"
            for name, (done, size) in self._active.items()
            if size and done >= 0
        )
        text = ", ".join(shares)
        return f"; {text}" if text else ""
