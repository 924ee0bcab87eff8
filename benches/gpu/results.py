"""The findings of a run: checks, numbers and stages, as tables and in a JSON file that is rewritten at every change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

LIMIT = 12_000  # characters of the tables
_WIDTH = 160  # characters of a cell
UNFINISHED = "did not end: the process ended or was killed during this stage"


class Results:
    """The results of a run, and the file that holds them.

    Attributes:
        file: The JSON file, which holds all that is known at any time, so that a killed run leaves its results.
        data: `env`, a dict; `checks`, `numbers` and `stages`, lists of dicts. A check's `ok` is None if it could not
            be judged.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.data: dict[str, Any] = {"env": {}, "checks": [], "numbers": [], "stages": []}
        self.save()

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_name(self.file.name + ".part")
        part.write_text(json.dumps(self.data, allow_nan=False) + "\n")
        part.replace(self.file)

    def set_env(self, **facts: Any) -> None:
        """Adds facts about the machine and the run."""
        self.data["env"].update(plain(facts))
        self.save()

    def add(self, kind: str, **values: Any) -> None:
        """Adds one of the `checks` or `numbers`."""
        self.data[kind].append(plain(values))
        self.save()

    def begin(self, stage: str) -> None:
        """Records that a stage has begun."""
        self.data["stages"].append({"name": stage, "seconds": None, "ok": False, "error": UNFINISHED})
        self.save()

    def end(self, seconds: float, error: str | None) -> None:
        """Records the end of the stage that has begun last."""
        self.data["stages"][-1].update(seconds=round(seconds, 3), ok=error is None, error=error)
        self.save()

    def skip(self, stage: str, reason: str) -> None:
        """Records that a stage was not run."""
        self.data["stages"].append({"name": stage, "seconds": 0.0, "ok": False, "error": reason})
        self.save()

    def value(self, stage: str, name: str) -> float | None:
        """Returns a number that an earlier stage has measured, or None."""
        for number in self.data["numbers"]:
            if (number["stage"], number["name"]) == (stage, name):
                return float(number["value"])
        return None


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: numbers of NumPy and torch as numbers, NaN and others as text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    try:
        return plain(value.item())
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return str(value)


def markdown(data: dict[str, Any], limit: int = LIMIT) -> str:
    """Returns the tables to print: failed checks first, then numbers, then what passed, in at most `limit` characters.

    Rows that do not fit are counted; passed checks give way first.
    """
    passed: list[str] = []
    failed = [
        _row("stage " + stage["name"], _last_line(stage["error"]), "it ends", "NO")
        for stage in data["stages"]
        if not stage["ok"]
    ]
    for check in data["checks"]:
        name = f"{check['stage']}: {check['name']}"
        ok = {True: "yes", False: "NO", None: "not judged"}[check["ok"]]
        got = check["got"] if check["ok"] else " ".join(filter(None, (_text(check["got"]), check["note"])))
        (failed if check["ok"] is False else passed).append(_row(name, got, check["wanted"], ok))
    numbers = [
        _row(f"{n['stage']}: {n['name']}", f"{_text(n['value'])} {n['unit']}".strip(), _spread(n))
        for n in data["numbers"]
    ]
    for kept_numbers in (numbers, numbers[:60], numbers[:20]):
        text = _tables(data, failed, passed, kept_numbers, len(numbers), limit)
        if len(text) <= limit:
            return text
    return text[: limit - 20].rsplit("\n", 1)[0] + "\n(cut)\n"


def _tables(
    data: dict[str, Any], failed: list[str], passed: list[str], numbers: list[str], total: int, limit: int
) -> str:
    """Returns the tables with as many of the passed checks as fit."""
    head = [_header(data), "", "| check | got | wanted | ok |", "|---|---|---|---|", *failed]
    tail = ["", "| number | value | spread |", "|---|---:|---|", *numbers]
    if len(numbers) < total:
        tail.append(_row(f"{total - len(numbers)} more in {_text(data['env'].get('json', 'the JSON file'))}", "", ""))
    room = limit - len("\n".join([*head, *tail])) - 80
    kept = 0
    while kept < len(passed) and room >= len(passed[kept]) + 1:
        room -= len(passed[kept]) + 1
        kept += 1
    rest = [_row(f"{len(passed) - kept} more that did not fail", "", "", "")] if kept < len(passed) else []
    return "\n".join([*head, *passed[:kept], *rest, *tail]) + "\n"


def _header(data: dict[str, Any]) -> str:
    env, checks = data["env"], data["checks"]
    facts = [f"{key} {env[key]}" for key in ("driver", "torch", "cuDNN", "triton", "commit", "date") if env.get(key)]
    counts = f"{sum(c['ok'] is True for c in checks)} checks passed, {sum(c['ok'] is False for c in checks)} failed, "
    counts += f"{sum(c['ok'] is None for c in checks)} not judged"
    stages = ", ".join(f"{s['name']} {s['seconds'] or 0:.0f}" for s in data["stages"])
    lines = [f"{env.get('card', 'no card')}; {', '.join(facts)}. {counts}. Seconds: {stages}."]
    lines += [f"{key}: {env[key]}." for key in ("network", "images") if env.get(key)]
    return "\n".join(lines)


def _row(*cells: Any) -> str:
    return f"| {' | '.join(_text(cell) for cell in cells)} |"


def _text(value: Any) -> str:
    if isinstance(value, float):
        value = f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    text = " ".join(str(value).replace("|", "\\|").split())
    return text if len(text) <= _WIDTH else text[: _WIDTH - 3] + "..."


def _last_line(error: str | None) -> str:
    lines = (error or "").strip().splitlines()
    return lines[-1] if lines else ""


def _spread(number: dict[str, Any]) -> str:
    if number["min"] is None:
        return ""
    return f"{_text(number['min'])} to {_text(number['max'])}, {number['n']} times"
