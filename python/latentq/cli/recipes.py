"""The command `latentq recipes`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latentq.cli.common import add_command, print_json, print_rows
from latentq.system.text import escaped

if TYPE_CHECKING:
    from latentq.cli.common import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "recipes",
        _run,
        "list the recipes that come with latentq, or print one to copy and change",
        "  latentq recipes\n  latentq recipes sdxl > mine.toml; latentq encode photos/ out/ --recipe mine.toml",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="recipe to print")


def _run(options: argparse.Namespace) -> int:
    from latentq.format.recipe import Recipe

    if options.json:
        summaries = [{"name": name, "summary": _summary(name)} for name in Recipe.names()]
        print_json(summaries if options.name is None else Recipe.load(options.name).to_dict())
        return 0
    if options.name is not None:
        for line in Recipe.toml(options.name).splitlines():
            print("\t".join(map(escaped, line.split("\t"))))
        return 0
    print_rows([(name, _summary(name)) for name in Recipe.names()])
    return 0


def _summary(name: str) -> str:
    """Returns the first line of a recipe, which says what it is for."""
    from latentq.format.recipe import Recipe

    return Recipe.toml(name).partition("\n")[0].removeprefix("# ")
