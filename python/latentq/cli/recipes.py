"""The command `latentq recipes`."""

from __future__ import annotations

import argparse
from typing import Any

from latentq.cli.common import command, table
from latentq.format.recipe import Recipe


def add_recipes(commands: Any) -> None:
    parser = command(
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
    table([(name, Recipe.toml(name).partition("\n")[0].removeprefix("# ")) for name in Recipe.names()])
    return 0
