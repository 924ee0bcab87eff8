"""The modules that a command imports: none that it does not use."""

import json
import subprocess
import sys

import pytest

import latentq
from latentq.cli.main import COMMANDS

HEAVY = {
    "torch",
    "diffusers",
    "transformers",
    "open_clip",
    "streaming",
    "datasets",
    "pyarrow",
    "pandas",
    "scipy",
    "ray",
}
CODE = """
import json, sys
from latentq.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
print("\\n" + json.dumps([code, sorted(sys.modules)]))
"""


def imported(*arguments: object) -> set[str]:
    """The top-level packages that a command imports; the command must succeed."""
    command = [sys.executable, "-c", CODE, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, None), done.stderr
    return {name.partition(".")[0] for name in modules}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from conftest import paint

    folder = tmp_path_factory.mktemp("start")
    for index in range(3):
        paint(folder / "pictures" / f"{index}.png", index)
    latentq.encode(folder / "pictures", folder / "out", autoencoder="dct-f8c16", size=64)
    return folder / "out"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_package_at_all(command):
    assert not imported(command, "--help") & (HEAVY | {"numpy", "PIL", "tqdm", "requests"})


def test_the_list_of_commands_imports_no_package_at_all():
    assert not imported("--help") & (HEAVY | {"numpy", "PIL", "tqdm", "requests"})
    assert not imported("recipes") & (HEAVY | {"numpy", "PIL", "tqdm", "requests"})


@pytest.mark.parametrize("command", [("info",), ("info", "--json"), ("verify",), ("repair",)])
def test_looking_at_a_dataset_imports_numpy_only(dataset, command):
    path = dataset / "00000" if command == ("repair",) else dataset
    modules = imported(command[0], path, *command[1:])
    assert not modules & HEAVY
    assert "numpy" in modules


def test_encoding_with_the_built_in_transform_needs_torch_and_not_diffusers(dataset, tmp_path):
    modules = imported("encode", dataset.parent / "pictures", tmp_path / "out", "--size", 64)
    assert modules & HEAVY == {"torch"}
    assert imported("decode", dataset, "--index", 0, "-o", tmp_path / "x.png") & HEAVY == {"torch"}
