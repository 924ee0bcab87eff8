"""The commands and the code of docs/report.md run as they are written."""

import re
import shlex
from pathlib import Path

import pytest

import latentq
from conftest import paint
from latentq.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "report.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for index in range(4):
        paint(folder / "photos" / f"{index}.png", index)
    latentq.encode(folder / "photos", folder / "out", autoencoder="dct-f8c16", size=64)
    latentq.encode(folder / "photos", folder / "out-6bit", autoencoder="dct-f8c16", size=64, bits=6)
    return folder


def test_commands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = [line for language, text in BLOCKS if language == "sh" for line in text.splitlines()]
    assert len(lines) == 3
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "latentq"
        assert main(arguments) == 0
        assert Path(arguments[arguments.index("-o") + 1]).stat().st_size > 10_000


def test_code(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (code,) = (text for language, text in BLOCKS if language == "python")
    Path("report.html").unlink(missing_ok=True)
    exec(code, {})
    assert "out" in Path("report.html").read_text()
