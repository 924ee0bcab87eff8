"""Run the commands and the code of the README as they are written, block by block."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import paint
from latentq import Card
from support.commands import run_line

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_vae):
    """The folders that the README names: photographs in one folder, images by class, and the autoencoder."""
    folder = tmp_path_factory.mktemp("readme")
    for index in range(8):
        for name in ("photos", "validation", f"imagenet/class{index % 3}"):
            paint(folder / name / f"{index}.jpg", index, (300, 280))
    (folder / "names.txt").write_text("class0 the first\nclass1 the second\nclass2 the third\n")
    # A folder of the Hub's name is found before the Hub is asked.
    shutil.copytree(tiny_vae, folder / "stabilityai" / "sdxl-vae")
    return folder


LINES = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
COMMANDS = [line for line in LINES if line.startswith(("latentq ", "torchrun "))]


def run_command(folder, line):
    """Runs a command of the README, after the commands that make the datasets it names."""
    for earlier in COMMANDS[: COMMANDS.index(line)]:
        words = earlier.split()
        out = words[words.index("encode") + 2] if "encode" in words else line
        if out in line.split() and not (folder / out).exists():
            run_command(folder, earlier)
    run_line(line, folder)


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 9


@pytest.mark.usefixtures("kept_encodings")  # `latentq bench` registers that of imagenet.int8 for the whole process
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_the_readme_runs(folder, line):
    run_command(folder, line)
    words = line.split()
    for option in ("-o", "--output"):
        if option in words:
            assert (folder / words[words.index(option) + 1]).exists()


@pytest.mark.parametrize("photos", ["photos", "imagenet"])
def test_python_blocks(streaming_alone, folder, photos):
    """They run in one program, after the command that makes `out`, from one folder or from class folders."""
    if photos != "photos":
        images, folder = folder / photos, folder / "classes"
        folder.mkdir()
        (folder / "photos").symlink_to(images)
    run_command(folder, next(line for line in COMMANDS if " out/ " in line))
    code = "\n".join(text for language, text in BLOCKS if language == "python")
    program = folder / "program.py"
    body = "".join(f"    {line}\n" for line in code.splitlines())
    program.write_text(f"def main():\n{body}\nif __name__ == '__main__':\n    main()\n")
    done = subprocess.run([sys.executable, program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ("label" in Card.load(folder / "out").columns) == (photos != "photos")


def test_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text() if (README.parent / "Makefile").exists() else None
    if makefile is None:
        pytest.skip("there is no Makefile next to the installed package")
    for target in re.findall(r"(?:^|`)make ([\w-]+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_paths_named_exist():
    root = README.parent
    if not (root / "rust").exists():
        pytest.skip("there is no source tree next to the installed package")
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()):
        assert (root / path.partition("#")[0]).exists(), path
