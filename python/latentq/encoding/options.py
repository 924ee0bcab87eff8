"""The options of `latentq.encode`: how it is run, and fields of the recipe to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from latentq.encoding.stages import Profile
from latentq.format.overrides import RecipeOverrides
from latentq.run.options import RunOptions, RunSettings, run_settings


class EncodeRunOptions(RunOptions, total=False):
    """Options of running an encoding. They are not recorded in the dataset.

    Attributes:
        device: Device that the models compute on; by default `cuda:LOCAL_RANK` if there is a GPU, else `cpu`. An
            autoencoder that is an object stays on its own device.
        batch_size: Images per batch of the autoencoder; by default 64 up to 256 pixels, and fewer above: 16 at 512. It
            is halved each time that the device runs out of memory.
        compiled: Compile the autoencoder with torch.compile; latents may then differ in the last bit.
        fused_norm: Compute the autoencoder's group norms and the SiLU that follows each in one step, by a Triton kernel
            on CUDA, elsewhere by torch; latents may then differ in the last bit. Not together with `compiled`, which
            fuses them too.
        profile: Collects the time that each stage works and waits.
        update: Take what changed in the source since the dataset was made into it. The dataset decides the recipe.
        check_content: With `update`, read files whose facts are unchanged too, and compare their content.
    """

    device: str | None
    batch_size: int | None
    compiled: bool
    fused_norm: bool
    profile: Profile | None
    update: bool
    check_content: bool


class EncodeOptions(EncodeRunOptions, RecipeOverrides, total=False):
    """Every option of `encode` beyond what it encodes, and with which models."""


@dataclass(frozen=True)
class EncodeSettings(RunSettings):
    """`EncodeRunOptions` with every default filled in that does not depend on the recipe."""

    device: str | None
    batch_size: int | None
    compiled: bool
    fused_norm: bool
    profile: Profile
    update: bool
    check_content: bool


def split_options(options: EncodeOptions) -> tuple[EncodeSettings, RecipeOverrides]:
    """Splits the options of `encode` into settings, checked and with defaults, and the overrides of the recipe.

    Raises:
        ValueError: An option is out of range.
    """
    own = EncodeRunOptions.__annotations__
    run_options = cast(RunOptions, {key: value for key, value in options.items() if key in RunOptions.__annotations__})
    overrides = cast(RecipeOverrides, {key: value for key, value in options.items() if key not in own})
    batch_size = options.get("batch_size")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    if options.get("compiled") and options.get("fused_norm"):
        raise ValueError("compiled and fused_norm exclude each other: torch.compile fuses group norms itself")
    if options.get("check_content") and not options.get("update"):
        raise ValueError("check_content is an option of update")
    if options.get("update") and options.get("delete_archives"):
        raise ValueError("update and delete_archives exclude each other: an update lists the whole source again")
    settings = EncodeSettings(
        **vars(run_settings(**run_options)),
        device=options.get("device"),
        batch_size=batch_size,
        compiled=options.get("compiled", False),
        fused_norm=options.get("fused_norm", False),
        profile=options.get("profile") or Profile(),
        update=options.get("update", False),
        check_content=options.get("check_content", False),
    )
    return settings, overrides
