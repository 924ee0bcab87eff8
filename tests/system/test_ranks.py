"""The rank of a process is that which its launcher gives it."""

import os
import re
import shlex
from pathlib import Path

import pytest
import torch

from conftest import paint
from latentq.cli.main import main
from latentq.models.device import default_device
from latentq.system.ranks import environment_ranks, local_rank, local_world_size

LAUNCHERS = {
    "torchrun": {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
    # As srun sets them for --nodes=2 --ntasks-per-node=4.
    "srun": {
        "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    },
    "mpirun": {
        "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for variables in LAUNCHERS.values():
        for name in variables:
            monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_launcher_is_understood(monkeypatch, launcher):
    assert (environment_ranks(), local_rank(), local_world_size()) == ((0, 1), 0, 1)
    set_all(monkeypatch, LAUNCHERS[launcher])
    assert (environment_ranks(), local_rank(), local_world_size()) == ((5, 8), 1, 4)
    assert environment_ranks(2, 3) == (2, 3)
    assert environment_ranks(2) == (2, 8)


def test_torchrun_under_srun_counts_and_not_srun(monkeypatch):
    srun = {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }
    set_all(monkeypatch, srun | LAUNCHERS["torchrun"])
    assert (environment_ranks(), local_rank(), local_world_size()) == ((5, 8), 1, 4)


def test_mpirun_under_slurm_counts_and_not_srun(monkeypatch):
    # mpirun starts one daemon on each machine by srun, and each daemon its processes, which inherit these from it.
    daemon = {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }
    set_all(monkeypatch, daemon | LAUNCHERS["mpirun"])
    assert (environment_ranks(), local_rank(), local_world_size()) == ((5, 8), 1, 4)


def test_a_batch_script_without_srun_is_one_process(monkeypatch):
    set_all(monkeypatch, {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "4"})
    assert (environment_ranks(), local_rank(), local_world_size()) == ((0, 1), 0, 1)


@pytest.mark.parametrize(
    ("name", "text", "least"),
    [("SLURM_PROCID", "two", 0), ("SLURM_STEP_NUM_TASKS", "0", 1), ("SLURM_STEP_TASKS_PER_NODE", "(x2)", 1)],
)
def test_a_variable_that_is_no_number_is_named(monkeypatch, name, text, least):
    set_all(monkeypatch, LAUNCHERS["srun"] | {name: text})
    expected = re.escape(f"{name} must be a whole number of at least {least}, not {text!r}")
    with pytest.raises(ValueError, match=expected):
        print(environment_ranks(), local_world_size())


def test_a_rank_beyond_the_number_of_processes_is_an_error(monkeypatch):
    set_all(monkeypatch, LAUNCHERS["mpirun"] | {"OMPI_COMM_WORLD_RANK": "8"})
    with pytest.raises(ValueError, match="not 8 of 8"):
        environment_ranks()


def test_the_gpu_is_that_of_the_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    set_all(monkeypatch, LAUNCHERS["srun"] | {"SLURM_LOCALID": "6"})
    assert default_device() == "cuda:2"


def commands():
    """Yields the commands of docs/scaling.md that start ranks of latentq, without their launchers."""
    for line in (Path(__file__).parents[2] / "docs/scaling.md").read_text().splitlines():
        if "latentq encode photos/ out/" in line and "--ray" not in line:
            yield line.partition("latentq encode photos/")[2]


def test_the_commands_of_the_page_share_the_work(tmp_path, monkeypatch):
    for number in range(6):
        (tmp_path / "photos").mkdir(exist_ok=True)
        paint(tmp_path / "photos" / f"{number}.png", number, (20, 18))
    monkeypatch.chdir(tmp_path)
    launchers = {
        "torchrun": {"RANK": "{}", "WORLD_SIZE": "2", "LOCAL_RANK": "{}", "LOCAL_WORLD_SIZE": "2"},
        "accelerate": {"RANK": "{}", "WORLD_SIZE": "2", "LOCAL_RANK": "{}", "LOCAL_WORLD_SIZE": "2"},
        "srun": {"SLURM_PROCID": "{}", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "{}"},
        "array": {"SLURM_ARRAY_TASK_ID": "{}", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "0"},
        "none": {},
    }
    for (launcher, variables), options in zip(launchers.items(), commands(), strict=True):
        for rank in range(2):
            with monkeypatch.context() as patch:
                set_all(patch, {name: text.format(rank) for name, text in variables.items()})
                given = options if rank else options.replace("--rank 1", "--rank 0")
                given = given.replace("out/", f"{launcher}/").replace("stabilityai/sdxl-vae", "dct-f8c16")
                arguments = shlex.split(os.path.expandvars(given))
                assert main(["encode", "photos/", *arguments, "--size", "16", "--unit-size", "2", "--quiet"]) == 0
            assert Path(launcher, "00001").exists() == bool(rank)
        assert Path(launcher, "index.json").is_file()
