"""How long work tells of itself: a bar on a terminal, a plain line now and then otherwise."""

from __future__ import annotations

import contextlib
import time
from types import TracebackType
from typing import Any, Self, TextIO

_EVERY = 10.0  # seconds between plain lines


class Progress:
    """Counts images done, with their rate, the time left and the rejects.

    Args:
        total: How many images there are, those included that an earlier run has done.
        label: What is being done, e.g. `encode`.
        stream: Where it is told; None tells nothing.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None) -> None:
        self._total = total
        self._label = label
        self._stream = stream
        self._bar: Any = None
        self._done = self._skipped = self._rejects = 0
        self._start = self._told = time.monotonic()
        self._told_of = -1
        if stream is not None and stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit="img", file=stream, dynamic_ncols=True, smoothing=0.1)

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
        self.note(
            f"{self._label}: {self._skipped + self._done} of {self._total} images, {rate:.1f} images/s, "
            f"{_duration(left)} left, {self._rejects} rejects"
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
