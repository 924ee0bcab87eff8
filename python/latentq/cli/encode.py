"""The command `latentq encode`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args, get_origin

from latentq.choices import Size
from latentq.cli.common import (
    UsageError,
    add_command,
    add_ray_options,
    add_run_options,
    add_source,
    add_storage_options,
    check_source,
    dry_run_dict,
    dry_run_rows,
    print_json,
    print_result,
    print_rows,
    progress_stream,
    ray_options,
    storage_options,
)
from latentq.format.buckets import BucketsOption, parse_size
from latentq.format.options import AutoencoderOptions
from latentq.format.overrides import OVERRIDES, Override, PixelRange, default_text
from latentq.format.recipe import Recipe
from latentq.inspect.describe import buckets_text, model_rows, shape_text

if TYPE_CHECKING:
    from latentq.cli.common import Commands
    from latentq.encoding.request import EncodeRequest
    from latentq.encoding.stages import Profile
    from latentq.format.overrides import RecipeOverrides
    from latentq.run.mirror import Mirror
    from latentq.run.options import RayOptions
    from latentq.system.progress import Totals

# The help's groups of overrides, by the table of the recipe that they change.
_GROUPS = {
    "autoencoder": "recipe: autoencoder (recorded in the card, as the whole recipe is)",
    "image": "recipe: from image file to pixels",
    "columns": "recipe: columns",
    "text": "recipe: text encoder",
    "": "recipe: calibration and units",
}


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "encode",
        _run,
        "encode images to a latent dataset, or continue an earlier run",
        "  latentq encode photos/ out/ --autoencoder stabilityai/sdxl-vae --size 256\n"
        "  latentq encode photos/ out/ --update --dry-run     what changed in photos/, and what would be encoded\n"
        "  latentq encode 's3://bucket/cc12m/*.tar' out/       read archives, or images below a prefix, from a store",
        resumable=True,
    )
    add_source(parser)
    parser.add_argument(
        "--label-column", metavar="NAME", help="the column of labels (default: a usual name, such as label)"
    )
    parser.add_argument(
        "out", metavar="OUT", help="the dataset's folder or URL; a name ending in .tsv gets a table of tokens"
    )
    changes = parser.add_argument_group("a source that changes")
    changes.add_argument(
        "--update",
        action="store_true",
        help="encode what is new or changed in SRC, and drop what is gone; the dataset decides recipe and quantizers",
    )
    changes.add_argument(
        "--check-content",
        action="store_true",
        help="with --update: also read the files whose size is unchanged, and compare their content",
    )
    parser.add_argument("--class-names", metavar="FILE", help="two columns: a class folder's name and a readable name")
    parser.add_argument(
        "--collection",
        metavar="NAME",
        help="apply the limits of a collection to its archives: diffdb's, with --captions",
    )
    recipe = parser.add_argument_group(
        "recipe", "An option below overrides the field of the recipe that is chosen here."
    )
    choice = recipe.add_mutually_exclusive_group()
    choice.add_argument(
        "--recipe", metavar="NAME", help=f"a TOML file or one of {', '.join(Recipe.names())} (default: default)"
    )
    choice.add_argument("--like", metavar="DATASET", help="recipe, quantizers and class numbers of another dataset")
    _add_overrides(parser)
    how = add_run_options(parser)
    add_storage_options(how)
    add_ray_options(how, gpus=True)
    how.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="images encoded at once (default: 64 up to 256 x 256 pixels, fewer above: 16 at 512 x 512)",
    )
    how.add_argument("--device", help="cpu, cuda, cuda:1 (default: cuda:LOCAL_RANK if there is one, else cpu)")
    faster = how.add_mutually_exclusive_group()
    faster.add_argument("--compile", action="store_true", help="torch.compile the autoencoder; last bits may differ")
    faster.add_argument(
        "--fused-norm",
        action="store_true",
        help="group norm and SiLU of the autoencoder in one Triton kernel on CUDA, which no GPU has measured yet; last "
        "bits may differ",
    )
    how.add_argument("--profile", action="store_true", help="print how long each stage worked and waited")


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    """Adds one option for each field of the recipe that can be overridden, with the default recipe's value."""
    groups = {table: parser.add_argument_group(title) for table, title in _GROUPS.items()}
    default = Recipe.load("default").to_dict()
    for override in OVERRIDES:
        table, dot, _ = override.field.partition(".")
        table = "columns" if table == "buckets" else table
        group = groups[table if dot or table in groups else ""]
        value = default_text(override, default)
        group.add_argument(override.option, **_argument(override, f" (default: {value})" if value else ""))


def _size(text: str) -> Size:
    try:
        return parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels nor HEIGHTxWIDTH") from None


def _argument(override: Override, default: str) -> dict[str, Any]:
    """Returns the keyword arguments of `add_argument` for an override."""
    options: dict[str, Any] = {"default": None, "help": f"{override.help}{default}".replace("%", "%%")}
    if override.type is bool:
        return options | {"action": "store_true" if override.adds_columns else argparse.BooleanOptionalAction}
    if get_origin(override.type) is Literal:
        return options | {"choices": get_args(override.type)}
    if override.type is PixelRange:
        return options | {"type": float, "nargs": 2, "metavar": tuple(override.metavar.split())}
    if override.type is Size:
        return options | {"type": _size, "metavar": override.metavar}
    return options | {"type": str if override.type is BucketsOption else override.type, "metavar": override.metavar}


def _run(options: argparse.Namespace) -> int:
    from latentq.encoding.pipeline import encode_request
    from latentq.encoding.stages import Profile
    from latentq.format.card import CARD
    from latentq.run.mirror import mirrored
    from latentq.system.progress import Totals

    ray = ray_options(options)
    if not options.delete_archives and ray is None:  # archives may be deleted already; workers find what is missing
        check_source(options.source)
    if options.like is not None and not os.path.lexists(Path(options.like) / CARD):
        raise UsageError(f"--like {options.like}: no dataset, because it has no {CARD}")
    if options.check_content and not options.update:
        raise UsageError("--check-content needs --update")
    if options.update and options.delete_archives:
        raise UsageError("--update and --delete-archives exclude each other: an update lists the whole source again")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads must be at least 1, not {options.threads}")
    if not any((options.autoencoder, options.recipe, options.like, options.update, options.quiet)):
        print(
            f"latentq: no --autoencoder: using the built-in {AutoencoderOptions.model}, which is for trying things "
            "out; for training name a real one, e.g. stabilityai/sdxl-vae",
            file=sys.stderr,
        )
    profile, totals = Profile(), Totals()
    inputs = (options.source, options.captions, options.class_names)
    with mirrored(options.out, storage_options(options), inputs=inputs) as (folder, mirror):
        request = _request(options, folder, mirror, profile, totals, ray)
        if options.dry_run:
            return _dry_run(request, options)
        card = encode_request(request)
        if options.profile:
            print("\n".join(profile.table()), file=sys.stderr)
        return print_result(
            options.out, request.out, card, card.counts, totals, mirror,
            as_json=options.json, summary=progress_stream(options), stages=profile.worked(),
        )  # fmt: skip


def _request(
    options: argparse.Namespace,
    folder: Path,
    mirror: Mirror | None,
    profile: Profile,
    totals: Totals,
    ray: RayOptions | None,
) -> EncodeRequest:
    from latentq.encoding.options import split_options
    from latentq.encoding.request import EncodeRequest

    overrides = {override.name: getattr(options, override.name) for override in OVERRIDES}
    models = {name: overrides.pop(name) for name in ("autoencoder", "text_encoder")}
    settings, changes = split_options(
        {
            "device": options.device,
            "batch_size": options.batch_size,
            "threads": options.threads,
            "rank": options.rank,
            "world_size": options.world_size,
            "strict": options.strict,
            "delete_archives": options.delete_archives,
            "compiled": options.compile,
            "fused_norm": options.fused_norm,
            "profile": profile,
            "update": options.update,
            "check_content": options.check_content,
            "progress": progress_stream(options),
            "totals": totals,
            "ray": ray,
            **cast("RecipeOverrides", overrides),
        }
    )
    return EncodeRequest(
        options.source,
        folder,
        settings,
        changes,
        mirror,
        recipe=options.recipe,
        like=options.like,
        class_names=options.class_names,
        captions=options.captions,
        image_column=options.image_column,
        label_column=options.label_column,
        collection=options.collection,
        storage_options=storage_options(options),
        **models,
    )


def _dry_run(request: EncodeRequest, options: argparse.Namespace) -> int:
    from latentq.encoding.dry_run import dry_run

    found = dry_run(request)
    if options.json:
        print_json(dry_run_dict(options.out, found.plan))
        return 0
    card = found.card
    shapes = [(name, shape_text(latent)) for name, latent in card.latents.items()]
    shapes += [(name, shape_text(tokens)) for name, tokens in card.tokens.items()]
    shapes += [(name, " x ".join(map(str, embedding.shape))) for name, embedding in card.embeddings.items()]
    print_rows(
        [
            *dry_run_rows(card, card.recipe.unit_size, found.plan),
            ("recipe", card.recipe.name),
            *model_rows(card),
            *([("buckets", buckets_text(card.recipe))] if card.buckets else ()),
            *((f"shape {name}", shape) for name, shape in shapes),
            *((f"column {name}", encoding) for name, encoding in card.columns.items()),
        ]
    )
    return 0
