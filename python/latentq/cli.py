"""The command line: `latentq` or `python -m latentq`. Exit codes: 0 good, 1 the data is wrong, 2 the arguments are."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from latentq._core import LatentqError, RecipeError, __version__
from latentq.autoencoders import DEFAULT, load_autoencoder
from latentq.collect import COLLECTIONS, FAILED, Subset, collect
from latentq.progress import size_text as _size
from latentq.recipe import STORES, Alpha, Crop, Dtype, Filter, Icc, Recipe

if TYPE_CHECKING:
    from latentq.card import Card, Counts, EmbeddingFacts
    from latentq.units import UnitCard

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


_MOST_ARCHIVES = 1_000_000  # of one --ids A-B: more than any collection has
_SIGPIPE = 141  # what a shell reports of a command that SIGPIPE ended


class _UsageError(Exception):
    """Arguments that cannot be right; exit code 2."""


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
    except (_UsageError, RecipeError) as error:
        return _fail(str(error), 2)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            return _SIGPIPE
        return _fail(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), 1)
    except (LatentqError, IndexError, MemoryError) as error:
        return _fail(str(error) or "out of memory", 1)
    except ValueError as error:
        return _fail(str(error), 2)
    except RuntimeError as error:  # torch's, out of memory on a device say
        return _fail(str(error).strip().partition("\n")[0], 1)
    except ModuleNotFoundError as error:
        extra = {
            "pyarrow": "parquet",
            "datasets": "datasets",
            "streaming": "streaming",
            "huggingface_hub": "hub",
            "requests": "hub",
        }.get(error.name or "", "encode")
        return _fail(f"this needs {error.name}: pip install 'latentq[{extra}]'", 1)
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from there" if run in (_collect, _encode, _shards) else ""
        return _fail(f"interrupted{goes_on}", 130)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"latentq: {' '.join(message.split())}", file=sys.stderr)
    return code


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
        _add_encode, _add_collect, _add_shards, _add_recipes, _add_info, _add_verify, _add_repair, _add_decode,
        _add_convert, _add_measure,
    )  # fmt: skip
    for add in adders:
        add(commands)
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, example: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


# collect


def _add_collect(commands: Any) -> None:
    parser = _command(
        commands,
        "collect",
        _collect,
        "fetch a public collection, or go on where an earlier run stopped; exit code 1 where a file failed",
        "  latentq collect cc12m cc12m/ --subset small\n"
        "  latentq collect jdb jdb/ --ids 0 1 17-20\n"
        "  latentq collect jdb jdb/ --retry-failed              those of jdb/failed.tsv\n"
        "  latentq collect sa1b sa1b/ --links sa1b_links.tsv    the list that the data set's page gives",
    )
    parser.add_argument("name", metavar="NAME", choices=sorted(COLLECTIONS), help=", ".join(COLLECTIONS))
    parser.add_argument("folder", metavar="DIR", help="where the files go")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--subset", choices=get_args(Subset), default="all", help="small: about 1%% (default all)")
    which.add_argument("--ids", type=_numbers, nargs="+", metavar="N", help="the numbers of archives: 3, or 0-22")
    which.add_argument("--retry-failed", action="store_true", help="just those that failed.tsv lists")
    parser.add_argument("--links", metavar="FILE", help="for sa1b: its list of links")
    parser.add_argument("--site", metavar="URL", help="for coco: another address than its own")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="files fetched at once (default 8)")


def _numbers(text: str) -> range:
    """One number, or from one to another."""
    first, _, last = text.partition("-")
    try:
        numbers = range(int(first), int(last or first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor two as in 0-22")
    if numbers.stop - numbers.start > _MOST_ARCHIVES:
        raise argparse.ArgumentTypeError(f"{text!r} are more archives than any collection has")
    return numbers


def _collect(options: argparse.Namespace) -> int:
    done = collect(
        options.name,
        options.folder,
        subset=options.subset,
        ids=None if options.ids is None else [number for some in options.ids for number in some],
        retry_failed=options.retry_failed,
        links=options.links,
        site=options.site,
        threads=options.threads,
        progress=sys.stderr,
    )
    print(f"{options.folder}: {done.files} files, {_size(done.bytes)}")
    if not done.failed:
        return 0
    count = "1 file" if len(done.failed) == 1 else f"{len(done.failed)} files"
    listed = Path(options.folder) / FAILED
    return _fail(f"{count} failed, see {listed}: --retry-failed takes just those; {done.failed[0].reason}", 1)


# encode


def _add_encode(commands: Any) -> None:
    parser = _command(
        commands,
        "encode",
        _encode,
        "encode images into a latent dataset, or go on where an earlier run stopped",
        "  latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae --size 256",
    )
    _add_source(parser)
    parser.add_argument("out", metavar="OUT", help="the dataset's folder; a .tsv gets a table of tokens")
    parser.add_argument("--class-names", metavar="FILE", help="two columns: a class folder's name and a readable name")
    what = parser.add_argument_group("what is stored (the card keeps it)")
    which = what.add_mutually_exclusive_group()
    which.add_argument("--recipe", metavar="NAME", help=f"a TOML file or one of {', '.join(Recipe.names())}")
    which.add_argument("--like", metavar="DATASET", help="recipe, quantisers and class numbers of another dataset")
    what.add_argument("--autoencoder", metavar="NAME", help=f"a hub name, a folder, or {DEFAULT}")
    what.add_argument("--revision", help="the hub's branch, tag or commit")
    what.add_argument("--subfolder", help="where the autoencoder lies in its folder or repository")
    what.add_argument(
        "--pixel-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="where a checkpoint takes another"
    )
    what.add_argument("--dtype", choices=get_args(Dtype), help="what the autoencoder computes in")
    what.add_argument("--size", type=int, metavar="PIXELS", help="the side of the square that is encoded")
    what.add_argument("--crop", choices=get_args(Crop), help="how the square is cut out")
    what.add_argument("--filter", choices=get_args(Filter), help="Pillow's resampling filter")
    what.add_argument("--orient", action=argparse.BooleanOptionalAction, help="apply the EXIF orientation")
    what.add_argument("--alpha", choices=get_args(Alpha), help="what lies behind transparent pixels")
    what.add_argument("--icc", choices=get_args(Icc), help="whether embedded colour profiles are applied")
    what.add_argument("--min-size", type=int, metavar="PIXELS", help="of both sides; smaller pictures are rejected")
    what.add_argument("--min-side", type=int, metavar="PIXELS", help="inexact: decode JPEGs at no more than is needed")
    what.add_argument("--store", choices=STORES, help="a draw from the posterior, its mean, both moments, or tokens")
    what.add_argument("--scaled", action=argparse.BooleanOptionalAction, help="multiply by the scaling factor")
    what.add_argument("--bits", type=int, metavar="2..8", help="bits of each stored number")
    what.add_argument("--calibrate", metavar="METHOD", help="minmax, percentile, mse, or lloyd-max for code books")
    what.add_argument("--calibration", type=int, metavar="N", help="how many images quantisers are calibrated on")
    what.add_argument("--flip", action="store_true", default=None, help="store the mirrored pictures too")
    what.add_argument("--seed", type=int, help="of the posterior's noise")
    what.add_argument("--unit-size", type=int, metavar="N", help="samples in a unit, which is done or not done")
    text = parser.add_argument_group("captions and pictures (the card keeps it)")
    text.add_argument(
        "--text-encoder", metavar="NAME", help="store captions' embeddings: a hub name, a folder, or openclip:NAME"
    )
    text.add_argument("--text-revision", metavar="REVISION", help="the hub's branch, tag or commit")
    text.add_argument("--text-subfolder", metavar="NAME", help="of several in a pipeline another, text_encoder_2 say")
    text.add_argument("--text-dtype", choices=get_args(Dtype), help="what the text encoder computes in")
    text.add_argument("--text-length", type=int, metavar="N", help="tokens that a caption is padded or cut to")
    text.add_argument("--text-captions", type=int, metavar="N", help="how many captions of an image (default 1)")
    text.add_argument("--pooled", action="store_true", default=None, help="store the pooled embedding too")
    text.add_argument("--image", action="store_true", default=None, help="store the picture itself too, as column jpg")
    text.add_argument(
        "--collection",
        metavar="NAME",
        help="the limits of a collection whose archives SRC is: diffdb's, with --captions",
    )
    how = _add_how(parser)
    how.add_argument("--batch-size", type=int, default=64, metavar="N", help="images encoded at once (default 64)")
    how.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda:LOCAL_RANK where there is one)")
    how.add_argument("--compile", action="store_true", help="torch.compile the autoencoder; last bits may differ")
    how.add_argument("--profile", action="store_true", help="print how long each stage worked and waited")


def _add_source(parser: argparse.ArgumentParser) -> None:
    """What every command that reads a source asks for."""
    parser.add_argument(
        "source",
        metavar="SRC",
        help="a folder of images or of MDS shards, a table of image paths, .tar, .tgz, .zip or .parquet files (also as "
        "a quoted pattern, 'cc12m/*.tar'), what datasets' save_to_disk wrote, or hf:NAME",
    )
    parser.add_argument(
        "--captions",
        metavar="WHERE",
        help="a file of them (.jsonl, .csv, .tsv, .parquet, COCO's .json, .tgz), as FILE or FILE:KEY,CAPTION; txt or "
        "json:FIELD for members of archives named as the image; or the name of their column",
    )


def _add_how(parser: argparse.ArgumentParser) -> Any:
    """What every command that works unit by unit asks for."""
    how = parser.add_argument_group("how it is run (leaves no trace)")
    how.add_argument("--threads", type=int, metavar="N", help="that decode images (default: one per processor)")
    how.add_argument("--rank", type=int, metavar="N", help="which process this is (default: $RANK or 0)")
    how.add_argument("--world-size", type=int, metavar="N", help="how many there are (default: $WORLD_SIZE or 1)")
    how.add_argument("--strict", action="store_true", help="end at the first image that cannot be used")
    how.add_argument(
        "--delete-archives", action="store_true", help="delete each archive of SRC once all of its units are published"
    )
    return how


_OVERRIDES = (
    "revision", "subfolder", "pixel_range", "dtype", "size", "crop", "filter", "orient", "alpha", "icc", "min_size",
    "min_side", "store", "scaled", "bits", "calibrate", "calibration", "flip", "seed", "unit_size", "text_revision",
    "text_subfolder", "text_dtype", "text_length", "text_captions", "pooled", "image",
)  # fmt: skip


def _encode(options: argparse.Namespace) -> int:
    from latentq.pipeline import encode
    from latentq.stages import Profile
    from latentq.tokens_tsv import dataset_of

    if not options.delete_archives:  # otherwise they may be gone
        _check_source(options.source)
    if options.threads is not None and options.threads < 1:
        raise _UsageError(f"--threads must be at least 1, not {options.threads}")
    if options.autoencoder is None and options.recipe is None and options.like is None:
        print(
            f"latentq: no --autoencoder: taking the built-in {DEFAULT}, which is for trying things out; "
            "for training name one, e.g. stabilityai/sdxl-vae",
            file=sys.stderr,
        )
    profile = Profile()
    card = encode(
        options.source,
        options.out,
        recipe=options.recipe,
        autoencoder=options.autoencoder,
        text_encoder=options.text_encoder,
        like=options.like,
        class_names=options.class_names,
        captions=options.captions,
        collection=options.collection,
        device=options.device,
        batch_size=options.batch_size,
        threads=options.threads,
        rank=options.rank,
        world_size=options.world_size,
        strict=options.strict,
        delete_archives=options.delete_archives,
        compiled=options.compile,
        profile=profile,
        progress=sys.stderr,
        **{name: getattr(options, name) for name in _OVERRIDES},
    )
    if options.profile:
        print("\n".join(profile.table()), file=sys.stderr)
    return _tell_counts(Path(options.out), dataset_of(Path(options.out)), card, card.counts)


def _tell_counts(named: Path, out: Path, card: UnitCard, counts: Counts | None) -> int:
    """The last line of a command that works unit by unit in `out`, for what the user `named`."""
    from latentq.units import units_done

    if counts is None:
        done = units_done(out, card)
        print(
            f"{out}: {done} of {card.units} units are done; {card.units - done} are other processes' and still missing"
        )
        return 0
    rejects = f", {counts.rejects} rejects (see {out / 'rejects.tsv'})" if counts.rejects else ", no rejects"
    print(f"{named}: {counts.samples} samples{rejects}, {_size(_bytes_of(named))}")
    return 0


# recipes


def _add_recipes(commands: Any) -> None:
    parser = _command(
        commands,
        "recipes",
        _recipes,
        "list the recipes that encode takes, or show one, to be copied and changed",
        "  latentq recipes\n  latentq recipes sdxl > mine.toml; latentq encode photos/ out/ --recipe mine.toml",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the recipe to show")


def _recipes(options: argparse.Namespace) -> int:
    if options.name is not None:
        print(Recipe.toml(options.name), end="")
        return 0
    _table([(name, Recipe.toml(name).partition("\n")[0].removeprefix("# ")) for name in Recipe.names()])
    return 0


# shards


def _add_shards(commands: Any) -> None:
    parser = _command(
        commands,
        "shards",
        _shards,
        "convert a source into MDS shards of JPEGs and captions, filtered and shrunk, or go on where a run stopped",
        "  latentq shards 'cc12m/*.tar' cc12m-mds/\n"
        "  latentq shards 'diffdb/*/*.zip' diffdb-mds/ --collection diffdb --captions metadata-large.parquet",
    )
    _add_source(parser)
    parser.add_argument("out", metavar="OUT", help="the folder of the shards")
    what = parser.add_argument_group("what is stored")
    what.add_argument(
        "--collection", metavar="NAME", help="columns and limits of jdb, cc12m, diffdb, sa1b, textcaps, coco"
    )
    what.add_argument("--min-size", type=int, default=256, metavar="PIXELS", help="of both sides (default 256)")
    what.add_argument("--max-size", type=int, default=512, metavar="PIXELS", help="of the short side (default 512)")
    what.add_argument("--quality", type=int, default=95, metavar="1..100", help="of JPEGs made anew (default 95)")
    what.add_argument("--unit-size", type=int, default=4096, metavar="N", help="samples in a unit (default 4096)")
    _add_how(parser)


def _shards(options: argparse.Namespace) -> int:
    from latentq.shards import shards

    if not options.delete_archives:  # otherwise they may be gone
        _check_source(options.source)
    card = shards(
        options.source,
        options.out,
        collection=options.collection,
        captions=options.captions,
        min_size=options.min_size,
        max_size=options.max_size,
        quality=options.quality,
        unit_size=options.unit_size,
        threads=options.threads,
        rank=options.rank,
        world_size=options.world_size,
        strict=options.strict,
        delete_archives=options.delete_archives,
        progress=sys.stderr,
    )
    return _tell_counts(Path(options.out), Path(options.out), card, card.counts)


# info


def _add_info(commands: Any) -> None:
    parser = _command(
        commands,
        "info",
        _info,
        "show what a dataset says of itself",
        "  latentq info out/\n  latentq info out/ --json\n"
        "  latentq info out/ --storage --source photos/     what it takes, beside images and floats",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder")
    parser.add_argument("--json", action="store_true", help="the whole card as JSON")
    parser.add_argument("--storage", action="store_true", help="what it takes, beside images, JPEGs and floats")
    parser.add_argument("--source", metavar="SRC", help="with --storage: what it was made from, to try JPEGs with")


def _info(options: argparse.Namespace) -> int:
    from latentq.card import CARD, Card
    from latentq.units import units_done

    path = _dataset(options.dataset)
    if options.source is not None and not options.storage:
        raise _UsageError("--source goes with --storage")
    if not (path / CARD).exists():
        if options.storage:
            raise LatentqError(f"{path} has no card ({CARD}), so nothing says what its columns are")
        return _info_of_shards(path, options.json)
    card = Card.load(path)
    if options.storage:
        _storage(path, options)
        return 0
    if options.json:
        print(json.dumps({**card.to_dict(), "bytes": _bytes_of(path)}))
        return 0
    rows = [("dataset", str(path))]
    if card.counts is None:
        rows.append(("state", f"not finished: {units_done(path, card)} of {card.units} units"))
    else:
        rows += [
            ("samples", f"{card.counts.samples} of {card.source.samples} in the {card.source.kind}"),
            ("rejects", f"{card.counts.rejects}"),
            *([("redone", f"{card.counts.redone} in float32")] if card.counts.redone else ()),
            ("units", f"{card.units} of {card.recipe.unit_size} samples"),
        ]
    changed = f", changed: {', '.join(card.recipe.changed)}" if card.recipe.changed else ""
    image = card.recipe.image
    rows += [
        ("bytes", _size(_bytes_of(path))),
        ("recipe", f"{card.recipe.name}{changed}"),
        ("autoencoder", f"{card.autoencoder.name} ({card.autoencoder.family}, {card.recipe.autoencoder.dtype})"),
        ("weights", card.autoencoder.weights or "none"),
        *_text_rows(card),
        ("image", f"crop {image.crop}, filter {image.filter}, alpha {image.alpha}, icc {image.icc}"
                  f"{', EXIF orientation applied' if image.orient else ''}"),
        *((f"column {name}", encoding) for name, encoding in card.columns.items()),
        ("versions", ", ".join(f"{package} {version}" for package, version in card.versions.items())),
    ]  # fmt: skip
    _table(rows)
    for name, latent in card.latents.items():
        _print_latent(name, latent)
    for name, embedding in card.embeddings.items():
        _print_embedding(name, embedding)
    for name, tokens in card.tokens.items():
        print(f"\n{name}: {' x '.join(map(str, tokens.shape))}, tokens of {tokens.codebook_size}, {tokens.dtype}")
    return 0


def _storage(path: Path, options: argparse.Namespace) -> None:
    from latentq.storage import storage

    if options.source is not None:
        _check_source(options.source)
    rows = storage(path, options.source)
    if options.json:
        print(json.dumps([vars(row) for row in rows]))
        return
    width = max(len(row.what) for row in rows)
    print(f"{'':<{width}} {'total':>10} {'a sample':>12}")
    for row in rows:
        total, each = ("-" if value is None else _size(value) for value in (row.bytes, row.each))
        print(f"{row.what:<{width}} {total:>10} {each:>12}  {row.note}".rstrip())


def _info_of_shards(path: Path, as_json: bool) -> int:
    from latentq import mds

    reader = mds.Reader(path)
    if as_json:
        print(json.dumps({"samples": len(reader), "columns": reader.columns, "bytes": _bytes_of(path)}))
        return 0
    columns = [(f"column {name}", encoding) for name, encoding in reader.columns.items()]
    _table(
        [("shards", f"{path} (no card)"), ("samples", str(len(reader))), ("bytes", _size(_bytes_of(path))), *columns]
    )
    return 0


def _text_rows(card: Card) -> list[tuple[str, str]]:
    if card.text is None:
        return []
    several = f", {card.recipe.text.captions} captions an image" if card.recipe.text.captions > 1 else ""
    told = f"{card.text.family}, {card.recipe.text.dtype}, {card.text.length} tokens{several}"
    return [("text encoder", f"{card.text.name} ({told})"), ("text weights", card.text.weights or "none")]


def _print_embedding(name: str, embedding: EmbeddingFacts) -> None:
    quantizer = embedding.quantizer
    has_range = quantizer.kind in ("uniform", "affine", "codebook")
    clipped = f", {embedding.clipped} values clipped" if has_range and embedding.clipped is not None else ""
    bits = f", {quantizer.bits} bits" if has_range else ""
    print(f"\n{name}: {' x '.join(map(str, embedding.shape))}, {quantizer.kind}{bits}{clipped}")


def _print_latent(name: str, latent: Any) -> None:
    quantizer = latent.quantizer
    bits = f", {quantizer.bits} bits" if quantizer.kind in ("uniform", "affine", "codebook") else ""
    print(f"\n{name}: {' x '.join(map(str, latent.shape))}, {quantizer.kind}{bits}")
    if latent.statistics is None:
        return
    print(f"{'channel':>7} {'mean':>10} {'std':>10} {'min':>10} {'max':>10} {'clipped':>9}")
    for channel, (mean, std, low, high) in enumerate(
        zip(latent.statistics.mean, latent.statistics.std, latent.statistics.min, latent.statistics.max, strict=True)
    ):
        share = latent.clipped[channel] / latent.statistics.count[channel] if latent.clipped else 0.0
        print(f"{channel:>7} {mean:>10.4f} {std:>10.4f} {low:>10.4f} {high:>10.4f} {share:>9.4%}")


# verify


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands,
        "verify",
        _verify,
        "check every hash, every sample and every count; exit code 1 where something is wrong",
        "  latentq verify out/",
    )
    parser.add_argument("dataset", metavar="DATASET", help="a dataset's folder, or any folder of MDS shards")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")


def _verify(options: argparse.Namespace) -> int:
    from latentq.checks import verify

    path = _dataset(options.dataset)
    findings = verify(path)
    if options.json:
        print(json.dumps([vars(finding) for finding in findings]))
    else:
        for finding in findings:
            offset = f", offset {finding.offset}" if finding.offset else ""
            print(f"{path / finding.file}{offset}: {finding.message}")
        print(f"{path}: {'good' if not findings else f'{len(findings)} findings'}")
    return 1 if findings else 0


# repair


def _add_repair(commands: Any) -> None:
    parser = _command(
        commands,
        "repair",
        _repair,
        "make an index.json from MDS shards alone, where it is lost or broken; nothing is deleted",
        "  latentq repair shards/",
    )
    parser.add_argument("folder", metavar="FOLDER", help="a folder of MDS shards")


def _repair(options: argparse.Namespace) -> int:
    from latentq import mds

    path = _dataset(options.folder)
    done = mds.repair(path)
    for finding in done.left_out:
        print(f"{path / finding.file}: left out: {finding.message}")
    for name in done.kept:
        print(f"{path / name}: the index that was there")
    print(f"{path}: {done.shards} shards, {done.samples} samples")
    return 1 if done.left_out else 0


# decode


def _add_decode(commands: Any) -> None:
    parser = _command(
        commands,
        "decode",
        _decode,
        "turn stored latents back into pictures",
        "  latentq decode out/ --index 5 -o 5.png\n"
        "  latentq decode out/ --index 0 1 2 3 --source photos/ -o sheet.png   beside their originals, with PSNR\n"
        "  latentq decode imagenet_3gb.pt --index 5         so are the files that latentq convert reads",
    )
    parser.add_argument("dataset", metavar="SRC", help="a dataset's folder, or a file or folder that convert reads")
    parser.add_argument("--index", type=int, nargs="+", metavar="I", help="which samples (default: 8, evenly spread)")
    parser.add_argument(
        "-o", "--output", default="decoded.png", metavar="FILE", help="the picture (default decoded.png)"
    )
    parser.add_argument("--source", metavar="SRC", help="what it was made from: original, from float, as stored")
    parser.add_argument("--column", help="which latent column (default: the first)")
    parser.add_argument("--autoencoder", metavar="NAME", help="where it is, if the card's name does not say it")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 (default cpu)")


def _decode(options: argparse.Namespace) -> int:
    from latentq.decode import pictures, sheet

    if not Path(options.dataset).exists():
        raise _UsageError(f"{options.dataset}: no such file or folder")
    if options.source is not None:
        _check_source(options.source)
    try:
        rows = pictures(
            options.dataset,
            options.index,
            column=options.column,
            source=options.source,
            autoencoder=options.autoencoder,
            device=options.device,
        )
    except IndexError as error:
        raise _UsageError(f"--{error}") from None
    if len(rows) == len(rows[0]) == 1:
        from PIL import Image

        picture = Image.fromarray(rows[0][0].pixels)
    else:
        picture = sheet(rows)
    try:
        picture.save(options.output)
    except ValueError:
        raise _UsageError(f"-o {options.output}: name a picture by its extension, e.g. .png") from None
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(options.output)) from None
    scores = [row[-1].psnr for row in rows if row[-1].psnr is not None]
    mean = f", mean PSNR as stored {sum(scores) / len(scores):.2f} dB" if scores else ""
    print(f"{options.output}: {len(rows)} samples{mean}")
    return 0


# convert


def _add_convert(commands: Any) -> None:
    parser = _command(
        commands,
        "convert",
        _convert,
        "turn other tools' latents into a dataset, or a dataset into theirs; codes are copied as they are",
        "  latentq convert imagenet_3gb.pt out/       imagenet_3gb's torch file\n"
        "  latentq convert vae_mds/ out/              imagenet.int8's folder\n"
        "  latentq convert tokens.tsv out/            VQGAN's TSV of tokens\n"
        "  latentq convert out/ imagenet_3gb.pt       and back: by the name to .pt, .tsv, or imagenet.int8's folder",
    )
    parser.add_argument(
        "source", metavar="SRC", help="a dataset, or another tool's file or folder, told by its content"
    )
    parser.add_argument("out", metavar="DST", help="what is made; there must be nothing yet")


def _convert(options: argparse.Namespace) -> int:
    from latentq.convert import convert

    if not Path(options.source).exists():
        raise _UsageError(f"{options.source}: no such file or folder")
    samples = convert(options.source, options.out, progress=sys.stderr)
    out = Path(options.out)
    print(f"{out}: {samples} samples, {_size(_bytes_of(out) if out.is_dir() else out.stat().st_size)}")
    return 0


# measure


def _add_measure(commands: Any) -> None:
    parser = _command(
        commands,
        "measure",
        _measure,
        "what each scheme and number of bits would cost for given latents: half of them calibrate, half are measured",
        "  latentq measure latents.npy\n"
        "  latentq measure out/ --source photos/     encoded anew in float32, and against the pictures too (PSNR)",
    )
    parser.add_argument("latents", metavar="FILE_OR_DATASET", help="a .npy file (N, C, h, w), or a dataset's folder")
    parser.add_argument("--source", metavar="SRC", help="for a dataset: what it was made from")
    parser.add_argument("--autoencoder", metavar="NAME", help="to decode with; for a dataset, where it is")
    parser.add_argument("--bits", type=int, nargs="+", metavar="2..8", help="bits of each number (default: 8 6 4)")
    parser.add_argument("--column", help="for a dataset: which latent column (default: the first)")
    parser.add_argument("--json", action="store_true", help="the rows as JSON")


def _measure(options: argparse.Namespace) -> int:
    from latentq import measure
    from latentq.card import CARD

    path = Path(options.latents)
    if not path.exists():
        raise _UsageError(f"{path}: no such file or dataset")
    wanted = {"bits": options.bits} if options.bits else {}
    for bits in options.bits or ():
        if not 2 <= bits <= 8:
            raise _UsageError(f"--bits must be from 2 to 8, not {bits}")
    if path.is_file():
        if options.source is not None or options.column is not None:
            raise _UsageError("--source and --column go with a dataset, whose card says how its pictures were cut")
        network = load_autoencoder(options.autoencoder) if options.autoencoder else None
        measure.main_table(path, as_json=options.json, autoencoder=network, **wanted)
        return 0
    if not (path / CARD).exists():
        raise LatentqError(f"{path} has no card ({CARD}): it is no dataset")
    if options.source is not None:
        _check_source(options.source)
    if options.source is None:
        print("latentq: without --source these are the stored latents, quantised once already", file=sys.stderr)
    latents, network, images = measure.of_dataset(
        path, column=options.column, source=options.source, autoencoder=options.autoencoder
    )
    measure.main_table(latents, as_json=options.json, autoencoder=network, images=images, **wanted)
    return 0


# what they share


def _check_source(path: str) -> None:
    from latentq.sources import exists

    if not exists(path):
        raise _UsageError(f"{path}: no such file or folder")


def _dataset(path: str) -> Path:
    from latentq.tokens_tsv import dataset_of

    if not Path(path).is_dir():
        beside = dataset_of(Path(path))
        hint = f", but its dataset is {beside}" if beside.is_dir() else ""
        raise _UsageError(f"{path}: no such folder{hint}")
    return Path(path)


def _table(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _bytes_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
