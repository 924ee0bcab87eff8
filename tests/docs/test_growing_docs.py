"""The commands of docs/growing.md run, and leave the dataset of the source that has grown."""

import re
import shutil
from pathlib import Path

from conftest import paint
from latentq import Card
from support.commands import run_line

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "growing.md").read_text()


def test_the_commands_of_the_page_run(tiny_vae, tmp_path):
    for number in range(4):
        paint(tmp_path / ("photos" if number < 3 else "new") / f"{number}.jpg", number, (300, 280))
    shutil.copytree(tiny_vae, tmp_path / "models" / "vae")
    (block,) = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        run_line(line.partition("#")[0].strip(), tmp_path)
    assert Card.load(tmp_path / "out").counts.samples == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "00000",
        "00001.1",
        "index.json",
        "latents.toml",
        "list.1",
        "rejects.tsv",
    ]
