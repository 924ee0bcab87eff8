"""docs/encoding.md's table of options is the table of overrides."""

from pathlib import Path
from typing import Literal, get_args, get_origin

from latentq import Recipe
from latentq.format.overrides import OVERRIDES, default_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encoding.md"


def rows():
    """The lines of the table, as they must stand in the page."""
    default = Recipe.load("default").to_dict()
    for override in OVERRIDES:
        choices = get_args(override.type) if get_origin(override.type) is Literal else ()
        effect = f"{override.help}: {', '.join(f'`{choice}`' for choice in choices)}" if choices else override.help
        value = default_text(override, default)
        field = "adds columns" if override.adds_columns else f"`{override.field}`"
        yield f"| `{override.option}` | {field} | {effect} | {f'`{value}`' if value else ''} |"


def test_the_table_of_the_page_is_the_table_of_the_package():
    lines = PAGE.read_text().splitlines()
    start = lines.index("| option | field of the recipe | effect | default |")
    end = lines.index("", start)
    assert lines[start + 2 : end] == list(rows())
