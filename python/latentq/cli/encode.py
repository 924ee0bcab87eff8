"""The command `latentq encode`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, get_args

from latentq.cli.common import UsageError, add_how, add_source, check_source, command, tell_counts
from latentq.format.recipe import STORES, Alpha, Crop, Dtype, Filter, Icc, Recipe
from latentq.models.autoencoders import DEFAULT


def add_encode(commands: Any) -> None:
    parser = command(
        commands,
        "encode",
        _encode,
        "encode images into a latent dataset, or go on where an earlier run stopped",
        "  latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae --size 256",
    )
    parser.set_defaults(resumable=True)
    add_source(parser)
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
    how = add_how(parser)
    how.add_argument("--batch-size", type=int, default=64, metavar="N", help="images encoded at once (default 64)")
    how.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda:LOCAL_RANK where there is one)")
    how.add_argument("--compile", action="store_true", help="torch.compile the autoencoder; last bits may differ")
    how.add_argument("--profile", action="store_true", help="print how long each stage worked and waited")


_OVERRIDES = (
    "revision", "subfolder", "pixel_range", "dtype", "size", "crop", "filter", "orient", "alpha", "icc", "min_size",
    "min_side", "store", "scaled", "bits", "calibrate", "calibration", "flip", "seed", "unit_size", "text_revision",
    "text_subfolder", "text_dtype", "text_length", "text_captions", "pooled", "image",
)  # fmt: skip


def _encode(options: argparse.Namespace) -> int:
    from latentq.converting.tokens_tsv import dataset_of
    from latentq.encoding.pipeline import encode
    from latentq.encoding.stages import Profile

    if not options.delete_archives:  # otherwise they may be gone
        check_source(options.source)
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {options.threads}")
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
    return tell_counts(Path(options.out), dataset_of(Path(options.out)), card, card.counts)
