"""Check that the stock readers of docs/mds.md read what its table says: `make test-readers`.

The table's first line names the readers and their versions. mosaicml-streaming is that of this environment; each other
one is installed by uv in an environment of its own below target/readers, since all are imported as `streaming`.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from readers import datasets

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "mds.md"
INSTALLED = "mosaicml-streaming"


def table():
    """Return the readers of the page, and for each dataset the cells of its row."""
    header, rows = re.search(
        r"^\| what is written \|(.*)\|\n\|[-|]+\|\n((?:\|.*\|\n)+)", PAGE.read_text(), re.M
    ).groups()
    readers = [tuple(cell.split()) for cell in header.split("|")]
    cells = {}
    for row in rows.splitlines():
        names, *outcomes = (cell.strip() for cell in row.strip("|").split("|"))
        for name in re.findall(r"`([^`]+)`", names) or [names]:
            cells[name] = outcomes
    return readers, cells


def python_of(name, version):
    """Return the interpreter of a reader's environment, which is made if it is not there yet."""
    if name == INSTALLED:
        found = importlib.metadata.version(name)
        if not found.startswith(f"{version}."):
            sys.exit(f"{name} {found} is installed, and {PAGE} is about {version}")
        return sys.executable
    folder = ROOT / "target" / "readers" / f"{name}-{version}"
    python = folder / "bin" / "python"
    subprocess.run(["uv", "venv", "-q", "--allow-existing", "--python", sys.executable, folder], check=True)
    subprocess.run(["uv", "pip", "install", "-q", "--python", python, f"{name}=={version}.*"], check=True)
    return python


def outcomes_of(python, folder):
    """Return what a reader reads of each dataset: yes, as Python numbers, or no with its message."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, ROOT / "tests" / "readers" / "read.py", folder]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def main():
    """Make the datasets, read them with each reader, and compare the outcomes with the table."""
    readers, cells = table()
    wrong = []
    with tempfile.TemporaryDirectory(prefix="latentq-readers-") as folder:
        datasets.make_all(Path(folder))
        for column, (name, version) in enumerate(readers):
            found = outcomes_of(python_of(name, version), folder)
            if found.keys() != cells.keys():
                sys.exit(f"{PAGE} and the datasets differ in {', '.join(sorted(found.keys() ^ cells.keys()))}")
            counts = {}
            for dataset, message in found.items():
                outcome = message if message in ("yes", "as Python numbers") else "no"
                counts[outcome] = counts.get(outcome, 0) + 1
                if outcome != cells[dataset][column]:
                    wrong.append(f"{name} {version}, {dataset}: {message}; the table says {cells[dataset][column]}")
            print(f"{name} {version}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
