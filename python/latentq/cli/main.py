"""The command line: `latentq` or `python -m latentq`.

Exit codes: 0 good, 1 wrong data, 2 wrong arguments, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from latentq._core import LatentqError, RecipeError, __version__
from latentq.cli.common import UsageError, fail
from latentq.system.extras import missing_package
from latentq.system.text import one_line

COMMANDS = (
    "encode", "prune", "collect", "shards", "recipes", "info", "verify", "repair", "decode", "convert", "measure",
    "report", "completion", "push", "bench"
)  # fmt: skip
_EPILOG = """examples:
  latentq encode photos/ out/                                   the built-in transform, to try things out
  latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae --size 256
  latentq encode photos/ out/ --recipe imagenet.int8            the layout of the published dataset
  latentq encode list.tsv tokens.tsv --recipe vqgan-f16-16384   from a table of paths to a table of tokens
  latentq encode photos/ out/ --update                          what is new, changed or gone since
  latentq recipes                                               names for --recipe
  torchrun --nproc-per-node 8 -m latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae
  latentq collect cc12m cc12m/ --subset small                   the archives of a public collection
  latentq encode 'cc12m/*.tar' out/ --recipe micro-diffusion    latents and embeddings of captions
  latentq shards 'cc12m/*.tar' shards/                          MDS shards of JPEGs and captions, at most 512 pixels
  latentq info out/
  latentq verify out/
  latentq decode out/ --index 5 -o 5.png
  latentq convert imagenet_3gb.pt out/                          from other tools' latents, and back
  latentq measure out/ --source photos/                         the error of other schemes and bits
  latentq report out/ --source photos/                          a page with pictures, distributions and errors
  latentq completion bash                                       completion of commands and options by Tab
  latentq push out/ hf:me/photos --license cc-by-4.0            to the Hugging Face Hub
  latentq bench                                                 speed here, next to installed rivals
"""
_OPTIONS = {"from_layout": "from", "to_layout": "to"}  # options whose arguments have another name
_SIGPIPE = 141  # the exit code that a shell reports for a command ended by SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        arguments: The command line without the program's name; None for the process's own.
    """
    _prepare_streams()
    code = _main(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:  # it is None if it was closed
                stream.flush()
        except OSError:  # nobody reads it; without this, Python's own flush at exit would end with code 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                code = code or _SIGPIPE
    return code


def _prepare_streams() -> None:
    """Makes the standard streams take any text, whatever the locale, and keeps the numbers of closed ones occupied.

    A file of the dataset would otherwise get the number of a closed stream, and all that libraries print to it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _main(arguments: Sequence[str]) -> int:
    try:
        parser = build_parser(arguments)
        if not arguments:
            parser.print_help(sys.stderr)
            return 2
        options = parser.parse_args(arguments)
    except KeyboardInterrupt:  # while the command is imported
        return fail("interrupted", 130)
    warnings.showwarning = _show_warning
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except UsageError as error:
        return fail(str(error), 2)
    except RecipeError as error:
        return fail(_with_options(str(error), options), 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _SIGPIPE
        return fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)
    except ModuleNotFoundError as error:
        return fail(str(missing_package(error, "this command")), 1)
    except (LatentqError, IndexError, MemoryError) as error:
        return fail(_with_options(str(error), options) or "out of memory", 1)
    except ValueError as error:
        return fail(_with_options(str(error), options), 2)
    except RuntimeError as error:  # for example torch's, if a device is out of memory
        return fail(str(error).strip().partition("\n")[0], 1)
    except KeyboardInterrupt:
        hint = "; the same command continues from there" if options.resumable else ""
        return fail(f"interrupted{hint}", 130)


def _with_options(message: str, options: argparse.Namespace) -> str:
    """Replaces the names of Python arguments by the options that were given: `batch_size` by `--batch-size`.

    A name of one word, such as `rank`, is replaced only where a message begins with it, as in `rank must be`.
    """
    for name, value in vars(options).items():
        if value is not None:
            place = rf"(?<![\w./'\"-]){name}(?=: | must\b|,)" if "_" in name else rf"\A{name}(?= must\b)"
            option = _OPTIONS.get(name, name.replace("_", "-"))
            message = re.sub(place, f"--{option}", message)
    return message


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"latentq: warning: {one_line(message)}", file=sys.stderr)


def build_parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Returns the parser, with all commands only if the first argument names none: importing takes time."""
    parser = argparse.ArgumentParser(
        prog="latentq",
        description="Turns images into a compact latent dataset, and inspects such datasets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentq {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    named = tuple(arguments[:1])
    for name in named if named and named[0] in COMMANDS else COMMANDS:
        importlib.import_module(f"latentq.cli.{name}").add(commands)
    return parser
