"""The command `latentq completion`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latentq.cli.common import add_command, print_json

if TYPE_CHECKING:
    from latentq.cli.common import Commands

_SHELLS = ("bash", "zsh", "tcsh")
_PATHS = {"SRC", "DST", "OUT", "DATASET", "FILE", "FOLDER", "DIR", "FILE_OR_DATASET"}  # metavars of files and folders


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "completion",
        _run,
        "print the script with which a shell completes latentq's commands and options",
        "  latentq completion bash > ~/.local/share/bash-completion/completions/latentq\n"
        '  latentq completion zsh > "${fpath[1]}/_latentq"',
    )
    parser.add_argument("shell", choices=_SHELLS, help="the shell")


def _run(options: argparse.Namespace) -> int:
    import shtab

    from latentq.cli.main import build_parser  # which imports the commands by name

    parser = build_parser()
    names = _names()
    for action in _actions(parser):
        if action.metavar in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if action.dest in names:  # only here: the command accepts other values as well
            action.choices = names[action.dest]
    script = shtab.complete(parser, options.shell)
    if options.json:
        print_json({"shell": options.shell, "script": script})
    else:
        print(script)
    return 0


def _names() -> dict[str, list[str]]:
    """Returns the values to offer for arguments that accept other ones as well, by the arguments' names."""
    from latentq.converting.names import CODES, NAMES, WRITTEN
    from latentq.format.recipe import Recipe

    return {"from_layout": [*CODES, *NAMES], "to_layout": [*CODES, *WRITTEN], "recipe": Recipe.names()}


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Returns the arguments of a parser and of its commands."""
    found = []
    for action in parser._actions:
        found.append(action)
        if isinstance(action, argparse._SubParsersAction):
            found += [inner for command in action.choices.values() for inner in _actions(command)]
    return found
