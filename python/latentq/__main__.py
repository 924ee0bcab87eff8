"""Entry point of `latentq` and of `python -m latentq`, which torchrun uses."""

import sys


def main() -> int:
    """Runs one command and returns its exit code. Ctrl-C while the command line is imported is one line too."""
    try:
        from latentq.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("latentq: interrupted\n")
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
