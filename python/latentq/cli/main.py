"""The command line: `latentq` or `python -m latentq`. Exit codes: 0 good, 1 the data is wrong, 2 the arguments are."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from latentq._core import LatentqError, RecipeError, __version__
from latentq.cli.collect import add_collect
from latentq.cli.common import UsageError, fail
from latentq.cli.convert import add_convert
from latentq.cli.decode import add_decode
from latentq.cli.encode import add_encode
from latentq.cli.info import add_info
from latentq.cli.measure import add_measure
from latentq.cli.recipes import add_recipes
from latentq.cli.shards import add_shards
from latentq.cli.verify import add_repair, add_verify

_EPILOG = """examples:
  latentq encode photos/ out/                                   the built-in transform, to try things out
  latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae --size 256
  latentq encode photos/ out/ --recipe imagenet.int8            what the published dataset holds
  latentq encode list.tsv tokens.tsv --recipe vqgan-f16-16384   a table of paths becomes one of tokens
  latentq recipes                                               what can be named as --recipe
  torchrun --nproc-per-node 8 -m latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae
  latentq collect cc12m cc12m/ --subset small                   the archives of a public collection
  latentq encode 'cc12m/*.tar' out/ --recipe micro-diffusion     latents and captions' embeddings
  latentq shards 'cc12m/*.tar' shards/                          MDS shards of JPEGs and captions, at most 512 pixels
  latentq info out/
  latentq verify out/
  latentq decode out/ --index 5 -o 5.png
  latentq convert imagenet_3gb.pt out/                          other tools' latents, and back
  latentq measure out/ --source photos/                         what other schemes and bits would cost
"""


_SIGPIPE = 141  # what a shell reports of a command that SIGPIPE ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    code = _main(arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # nobody listens any more; without this the interpreter's own flush would end it with 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if stream is sys.stdout:
                code = code or _SIGPIPE
    return code


def _main(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (UsageError, RecipeError) as error:
        return fail(str(error), 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _SIGPIPE
        return fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)
    except (LatentqError, IndexError, MemoryError) as error:
        return fail(str(error) or "out of memory", 1)
    except ValueError as error:
        return fail(str(error), 2)
    except RuntimeError as error:  # torch's, out of memory on a device say
        return fail(str(error).strip().partition("\n")[0], 1)
    except ModuleNotFoundError as error:
        extra = {
            "pyarrow": "parquet",
            "datasets": "datasets",
            "streaming": "streaming",
            "huggingface_hub": "hub",
            "requests": "hub",
        }.get(error.name or "", "encode")
        return fail(f"this needs {error.name}: pip install 'latentq[{extra}]'", 1)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from there" if options.resumable else ""
        return fail(f"interrupted{goes_on}", 130)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"latentq: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="latentq",
        description="Turns images into a compact latent dataset, and looks at such datasets.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"latentq {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    adders = (
        add_encode, add_collect, add_shards, add_recipes, add_info, add_verify, add_repair, add_decode,
        add_convert, add_measure,
    )  # fmt: skip
    for add in adders:
        add(commands)
    return parser
