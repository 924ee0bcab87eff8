"""The code blocks of docs/reading.md and the training example run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentq import encode, mds
from support.bucket_making import make_buckets
from support.making import make_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def noise_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for i in range(16):
        (folder / f"class{i % 2}").mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((80, 64)).save(folder / f"class{i % 2}" / f"{i}.png")
    return folder


def test_every_block_of_the_page_runs(streaming_alone, tmp_path):
    make_dataset(tmp_path / "latents", 12)
    make_dataset(tmp_path / "more", 8, seed=1)
    make_buckets(tmp_path / "buckets")
    with mds.Writer(
        tmp_path / "vae_mds", {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    ) as writer:
        writer.write({"vae_output": np.zeros(4096, np.uint8), "label": "3", "label_as_text": "three"})
    with mds.Writer(tmp_path / "plain_mds", {"vae": "ndarray:uint8:4,8,8", "label": "int"}) as writer:
        writer.write({"vae": np.zeros((4, 8, 8), np.uint8), "label": 3})
    text = (ROOT / "docs" / "reading.md").read_text()
    code = "".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    body = "".join(f"    {line}\n" for line in code.splitlines())
    program = tmp_path / "program.py"
    program.write_text(f"def main():\n{body}\nif __name__ == '__main__':\n    main()\n")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("reading", ["workers", "loader", "resident"])
def test_the_training_example_learns_and_draws_a_picture(noise_pictures, tmp_path, reading):
    out = tmp_path / "latents"
    encode(noise_pictures, out, size=64)
    picture = tmp_path / "drawn.png"
    command = [
        ROOT / "examples" / "train.py",
        out,
        "--reading",
        reading,
        "--steps",
        "60",
        "--out",
        tmp_path / "drawn.png",
    ]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.search(r"loss ([\d.]+) at first, ([\d.]+) at last", done.stdout).groups())
    assert last < 0.9 * first
    assert Image.open(picture).size == (8 * 64, 64)
