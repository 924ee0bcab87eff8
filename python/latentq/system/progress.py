"""How long work tells of itself: a bar on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from latentq.system.text import duration_text, size_text

_T = TypeVar("_T")


_EVERY = 10.0  # seconds between plain lines


_OFTEN = 0.2  # seconds between changes of what stands beside a bar


class Progress:
    """Counts images done, with their rate, the time left and the rejects.

    Args:
        total: How many images there are, those included that an earlier run has done.
        label: What is being done, e.g. `encode`.
        stream: Where it is told; None tells nothing.
        bar: Options of the bar on a terminal.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None, **bar: Any) -> None:
        self._total = total
        self._label = label
        self._stream = stream
        self._bar: Any = None
        self._done = self._skipped = self._rejects = 0
        self._start = self._told = time.monotonic()
        self._told_of = -1
        if stream is not None and stream.isatty():
            from tqdm import tqdm

            options = {"unit": "img", "dynamic_ncols": True, "smoothing": 0.1, **bar}
            self._bar = tqdm(total=total, desc=label, file=stream, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self._told_of != self._done:
            self._tell()

    def update(self, done: int, rejects: int = 0) -> None:
        """Adds images that are done, and how many of them were rejected."""
        self._done += done
        self._rejects += rejects
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self._rejects} rejects", refresh=False)
            self._bar.update(done)
        elif time.monotonic() - self._told >= _EVERY:
            self._tell()

    def skip(self, done: int) -> None:
        """Adds what an earlier run has done, before anything else: the rate counts neither it nor the time till now."""
        self._skipped += done
        self._start = time.monotonic()
        if self._bar is not None:
            self._bar.initial += done
            self._bar.n += done
            self._bar.refresh()

    def note(self, line: str) -> None:
        """Tells one line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        elif self._stream is not None:
            with contextlib.suppress(OSError):  # nobody listens any more: no reason to stop
                print(line, file=self._stream, flush=True)

    def _tell(self) -> None:
        self._told, self._told_of = time.monotonic(), self._done
        rate = self._done / max(self._told - self._start, 1e-9)
        left = (self._total - self._skipped - self._done) / rate if rate else 0.0
        self.note(self._line(rate, duration_text(left)))

    def _line(self, rate: float, left: str) -> str:
        return (
            f"{self._label}: {self._skipped + self._done} of {self._total} images, {rate:.1f} images/s, "
            f"{left} left, {self._rejects} rejects"
        )


def looking(archives: Collection[_T], stream: TextIO | None) -> Iterator[_T]:
    """Archives one after the other, as they are looked through; told of only where that takes long.

    Args:
        archives: The archives.
        stream: Where it is told; None tells nothing.
    """
    with _Looking(len(archives), "list", stream, unit="file", leave=False, delay=1.0) as bar:
        for archive in archives:
            yield archive
            bar.update(1)


class _Looking(Progress):
    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _line(self, rate: float, left: str) -> str:
        return f"{self._label}: {self._done} of {self._total} archives, {rate:.1f} a second, {left} left"


class Transfer(Progress):
    """Counts bytes of files that are fetched side by side, and says how far each of them is.

    Args:
        stream: Where it is told; None tells nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__(0, "collect", stream, unit="B", unit_scale=True)
        self._files = self._ended = self._failed = 0
        self._now: dict[str, tuple[int, int | None]] = {}
        self._lock = threading.Lock()

    def expect(self, files: int, total: int) -> None:
        """How many files there are to be, and their bytes as far as they are known; the clock begins now."""
        self._files, self._total, self._start = files, total, time.monotonic()
        if self._bar is not None:
            self._bar.reset(total)

    def begin(self, name: str, size: int | None) -> None:
        """A file is begun; its bytes are in the total where they are known."""
        with self._lock:
            self._now[name] = (-1, size)

    def at(self, name: str, done: int, size: int | None) -> None:
        """So many bytes of a file are there."""
        with self._lock:
            before, expected = self._now[name]
            self._now[name] = (done, size)
            if expected is None and size is not None:
                self._total += size
                if self._bar is not None:
                    self._bar.total = self._total
            if before < 0:  # an earlier run's, which the rate does not count
                self._skipped += done
                if self._bar is not None:
                    self._bar.initial += done
                    self._bar.n += done
            else:
                self.update(done - before)

    def end(self, name: str, error: str = "") -> None:
        """A file is there, or has failed."""
        with self._lock:
            self._now.pop(name, None)
            self._ended, self._failed = self._ended + 1, self._failed + bool(error)
            self._told_of = -1  # that is news, whatever it brought
            if error:
                self.note(f"failed: {name}: {error}")

    def update(self, done: int, rejects: int = 0) -> None:
        """As of any progress."""
        if self._bar is None:
            super().update(done, rejects)
            return
        if time.monotonic() - self._told >= _OFTEN:
            self._told = time.monotonic()
            self._bar.set_postfix_str(f"{self._of_files()}{self._each()}", refresh=False)
        self._bar.update(done)

    def _line(self, rate: float, left: str) -> str:
        done = size_text(self._skipped + self._done)
        return (
            f"{self._label}: {self._of_files()}, {done} of {size_text(self._total)}, {size_text(round(rate))}/s, "
            f"{left} left{self._each()}"
        )

    def _of_files(self) -> str:
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended} of {self._files} files{failed}"

    def _each(self) -> str:
        """How far each of those files is that are being fetched."""
        parts = (f"{name.rpartition('/')[2]} {100 * done // size}%" for name, (done, size) in self._now.items() if size)
        text = ", ".join(parts)
        return f"; {text}" if text else ""
