"""Entry point of `latentq` and of `python -m latentq`, which torchrun uses."""

import os
import signal
import sys
import threading
import time

_APART = 0.5  # seconds between the signals of two Ctrl-C; closer ones are of one, which other processes got too


def main() -> int:
    """Runs one command and returns its exit code. Ctrl-C while the command line is imported is one line too."""
    try:
        _end_at_second_interrupt()
        from latentq.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("latentq: interrupted\n")
        return 130
    return run()


def _end_at_second_interrupt() -> None:
    """Has a second Ctrl-C end the process at once.

    Python acts upon the first one only between its own steps, and a request to a store that does not answer is one step
    of minutes. What is published is whole at any time.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        first = 0.0
        while True:
            if os.read(reading, 1) != bytes([signal.SIGINT]):
                continue
            now = time.monotonic()
            if first and now - first > _APART:
                os.write(2, b"latentq: interrupted\n")
                os._exit(130)
            first = first or now

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
