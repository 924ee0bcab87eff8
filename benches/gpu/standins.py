"""Stands in for what a bare torch machine lacks, and runs modules of this project in processes that have the stand-ins.

    python benches/gpu/standins.py MODULE [ARGUMENTS]

latentq writes TOML by `tomli_w`. Where that is missing, importing this file puts a small writer in its place. As a
plugin of pytest (`-p standins`) it also counts tests as skipped that need other missing packages.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("diffusers", "streaming", "transformers", "open_clip", "PIL", "yaml", "hypothesis", "pyarrow", "datasets")


def dumps(data: Mapping[str, Any]) -> str:
    """Returns tables as TOML."""
    return "\n".join(_table(data, ())) + "\n"


def _table(data: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables = {key: value for key, value in data.items() if isinstance(value, Mapping)}
    if path:
        yield f"\n[{'.'.join(map(_string, path))}]"
    for key, value in data.items():
        if key not in tables:
            yield f"{_string(key)} = {_value(value)}"
    for key, table in tables.items():
        yield from _table(table, (*path, key))


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_string(key)} = {_value(item)}" for key, item in value.items()) + "}"
    raise TypeError(f"TOML has no {type(value).__name__}")


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def has(name: str) -> bool:
    """True if a package can be imported."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def install() -> list[str]:
    """Puts stand-ins in the place of missing modules; returns the names of those."""
    if has("tomli_w"):
        return []
    module = types.ModuleType("tomli_w")
    module.dumps = dumps  # type: ignore[attr-defined]
    sys.modules["tomli_w"] = module
    return ["tomli_w"]


def environment() -> dict[str, str]:
    """Returns the environment of a child process that finds latentq and this file, and belongs to no larger run."""
    paths = [str(ROOT / "python"), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def command(module: str, *arguments: object) -> list[str]:
    """Returns the command line that runs a module with the stand-ins."""
    return [sys.executable, str(Path(__file__)), module, *map(str, arguments)]


def pytest_runtest_logreport(report: Any) -> None:
    """Counts a test as skipped if it failed because a package is missing that a bare torch machine lacks."""
    text = str(getattr(report, "longreprtext", ""))
    if report.failed and any(f"No module named '{name}" in text for name in OPTIONAL):
        report.outcome, report.longrepr = (
            "skipped",
            (report.location[0], report.location[1] or 0, "a package is missing"),
        )


MISSING = install()

if __name__ == "__main__":
    import runpy

    sys.argv = sys.argv[1:]
    sys.path[0] = str(ROOT / "python")  # not this file's folder, whose modules have common names
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
