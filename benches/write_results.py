"""Put the tables of a pytest-benchmark JSON file into RESULTS.md.

    python -m pytest benches/bench_mds.py --benchmark-json bench.json
    python benches/write_results.py bench.json

RESULTS.md has a pair of comments for every benchmark file, `<!-- bench_mds -->` and `<!-- /bench_mds -->`. What is
between the comments is replaced for each file in the JSON; everything else stays. Run whole files, not a choice by
`-k`, so that a table never loses contenders.

A row's time and rate are medians over the rounds. "times as fast" is the median of the ratios within each round, since
contenders of one round met the same other work on the machine.
"""

import argparse
import json
import re
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentq.benchmark.turns import RATES, SECONDS, in_units, speed_ratio

RESULTS = Path(__file__).with_name("RESULTS.md")


def table(benchmarks: list[dict[str, Any]]) -> str:
    """One group, a row for each contender."""
    info = {bench["extra_info"]["contender"]: bench["extra_info"] for bench in benchmarks}
    durations = {bench["extra_info"]["contender"]: bench["stats"]["data"] for bench in benchmarks}
    any_info = next(iter(info.values()))
    reference = durations.get(any_info["reference"])
    ours = durations.get("latentq") if any_info["reference"] != "latentq" else None
    has_rate = any_info["items"] != 1
    extra = sorted({name for details in info.values() for name in details.get("columns", {})})
    header = ["", "median", "fastest"]
    header += [f"{any_info['unit']}/s"] if has_rate else []
    header += [f"times as fast as {any_info['reference']}"] if reference else []
    header += ["latentq is times as fast"] if ours else []
    header += extra
    rows = []
    for name, values in durations.items():
        row = [name, *(in_units(f(values), SECONDS) for f in (statistics.median, min))]
        if has_rate:
            rate = info[name]["items"] / statistics.median(values)
            row.append(in_units(rate, RATES))
        row += [f"{speed_ratio(reference, values):.2f}"] if reference else []
        row += [f"{speed_ratio(values, ours):.2f}"] if ours else []
        row += [str(info[name].get("columns", {}).get(column, "")) for column in extra]
        rows.append(row)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(result: dict[str, Any], file: str) -> str:
    """The date, machine, versions and command of the figures."""
    info = result["machine_info"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items())
    cpu = info["cpu"].get("brand_raw", info["processor"] or info["machine"])
    commit = result["commit_info"]["id"][:7] + (" with changes" if result["commit_info"]["dirty"] else "")
    return (
        f"{result['datetime'][:10]}, commit {commit}, {cpu}, {info['isa']}, {info['cores']} cores, "
        f"load average {info['load']:.1f} at the start, {info['system']} "
        f"{info['kernel']}, Python {info['python_version']}, {packages}. "
        f"`pytest benches/{file}.py`."
    )


def grouped(benchmarks: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """The benchmarks by file and group, in the order in which they ran."""
    files: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for bench in benchmarks:
        file = Path(bench["fullname"].partition("::")[0]).stem
        files.setdefault(file, {}).setdefault(bench["group"], []).append(bench)
    return files


def replace_tables(text: str, file: str, tables: str) -> str:
    """RESULTS.md with new tables of one file."""
    start, end = f"<!-- {file} -->", f"<!-- /{file} -->"
    pattern = re.compile(f"^{start}$.*?^{end}$", re.DOTALL | re.MULTILINE)
    new, count = pattern.subn(lambda _match: f"{start}\n{tables}\n{end}", text)
    if count != 1:
        raise SystemExit(f"RESULTS.md needs the comments {start} and {end} once; found {count}")
    return new


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path)
    parser.add_argument("--print", action="store_true", help="print the tables and leave RESULTS.md as it is")
    options = parser.parse_args()
    result = json.loads(options.json.read_text())
    text = RESULTS.read_text()
    for file, groups in grouped(result["benchmarks"]).items():
        tables = "\n\n".join(
            [machine(result, file), *(f"**{group}**\n\n{table(benchmarks)}" for group, benchmarks in groups.items())]
        )
        if options.print:
            print(f"{tables}\n")
        else:
            text = replace_tables(text, file, tables)
    if not options.print:
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
