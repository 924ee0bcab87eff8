"""Optional packages, and the message if one is missing."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import latentq
from latentq.system.extras import EXTRAS, MissingPackageError, missing_package, needed_for

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"

# Hides modules as if they were not installed, then runs the code.
WITHOUT = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def run_without(hidden: set[str], code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT.format(hidden=hidden) + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_hints_are_the_extras_of_the_project() -> None:
    if not PYPROJECT.exists():
        pytest.skip("there is no pyproject.toml next to the installed package")
    declared = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    assert {extra: list(packages.values()) for extra, packages in EXTRAS.items()} == declared


def test_the_hint_names_the_packages_themselves() -> None:
    error = missing_package(ModuleNotFoundError("No module", name="pyarrow.parquet"), "a parquet file")
    assert str(error) == "a parquet file needs pyarrow.parquet, which is not installed: pip install 'pyarrow>=15'"
    assert error.name == "pyarrow.parquet"
    assert isinstance(error, latentq.LatentqError)


def test_a_module_of_no_extra_gets_no_hint() -> None:
    error = missing_package(ModuleNotFoundError("No module", name="pyarrows"), "this")
    assert str(error) == "this needs the module 'pyarrows', which is not installed"


def test_the_message_names_the_innermost_purpose() -> None:
    with pytest.raises(MissingPackageError, match=r"^inner needs"), needed_for("outer"), needed_for("inner"):
        raise ModuleNotFoundError("No module", name="torch")


@pytest.mark.parametrize("name", ["LatentDataset", "LatentLoader", "LatentMixture", "encode"])
def test_without_torch_a_name_says_what_to_install(name: str) -> None:
    done = run_without({"torch"}, f"import latentq; latentq.{name}")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.endswith(f"latentq.{name} needs torch, which is not installed: pip install 'torch>=2.6'")


def test_streaming_without_its_package_says_what_to_install() -> None:
    for code in ("latentq.LatentStreamingDataset", "from latentq.streaming import LatentStreamingDataset"):
        done = run_without({"streaming"}, f"import latentq; {code}")
        assert "needs streaming, which is not installed: pip install 'mosaicml-streaming>=0.11'" in done.stderr


def test_commands_without_torch_say_so_on_one_line(pictures: Path, tmp_path: Path) -> None:
    code = "from latentq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = run_without({"torch", "diffusers"}, code, "encode", pictures, tmp_path / "out", "--size", 64, "--quiet")
    assert done.returncode == 1
    assert done.stderr == "latentq: this command needs torch, which is not installed: pip install 'torch>=2.6'\n"


def test_a_run_on_ray_without_its_package_says_so_on_one_line(pictures: Path, tmp_path: Path) -> None:
    code = "from latentq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    for command in ("encode", "shards"):
        done = run_without({"ray"}, code, command, pictures, tmp_path / command, "--quiet", "--ray")
        assert done.returncode == 1
        assert done.stderr == "latentq: a run on Ray needs ray, which is not installed: pip install 'ray>=2.40'\n"


def test_shards_info_and_verify_need_no_extra(pictures: Path, tmp_path: Path) -> None:
    hidden = {name.partition(".")[0] for packages in EXTRAS.values() for name in packages}
    code = "from latentq.cli.main import main; sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "shards"
    for arguments in (("shards", pictures, out, "--min-size", 8), ("info", out), ("verify", out), ("repair", out)):
        done = run_without(hidden, code, *arguments)
        assert done.returncode == 0, done.stderr
