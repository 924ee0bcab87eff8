"""The share of the processors that a process may use, under made-up control groups."""

import os

import pytest

from latentq.system import groups as module
from latentq.system.processors import processors


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that writes files of control groups; the machine has 64 processors."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(module, "OWN_CGROUPS", tmp_path / "own")

    def write(own="0::/\n", **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_cpu_limit_of_control_groups_version_2(machine, text, expected):
    machine(cpu_DOT_max=text + "\n")
    assert processors() == expected


def test_least_limit_of_all_parents_counts(machine):
    machine(
        own="0::/pods/mine\n",
        cpu_DOT_max="3200000 100000",
        pods__cpu_DOT_max="800000 100000",
        pods__mine__cpu_DOT_max="max 100000",
        pods__other__cpu_DOT_max="100000 100000",
    )
    assert processors() == 8


def test_a_control_group_whose_path_is_the_hosts_is_found_in_a_container(machine):
    machine(own="0::/docker/0123\n", cpu_DOT_max="400000 100000")
    assert processors() == 4


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("300000", 3), ("250000", 3)])
def test_cpu_limit_of_control_groups_version_1(machine, quota, expected):
    machine(
        own="12:memory:/m\n4:cpu,cpuacct:/docker/0123\n0::/\n",
        cpu__docker__0123__cpu_DOT_cfs_quota_us=quota,
        cpu__docker__0123__cpu_DOT_cfs_period_us="100000",
    )
    assert processors() == expected


@pytest.mark.parametrize("name", ["cpuset_DOT_cpus_DOT_effective", "cpuset__cpuset_DOT_effective_cpus"])
@pytest.mark.parametrize(("text", "expected"), [("0-15\n", 16), ("3\n", 1), ("0-1,8,60-63\n", 7), ("\n", 64)])
def test_set_of_processors_is_a_limit(machine, name, text, expected):
    machine(own="0::/\n7:cpuset:/\n", **{name: text})
    assert processors() == expected


def test_machine_without_control_groups(machine):
    assert processors() == 64


def test_processes_of_torchrun_share_the_processors(machine, monkeypatch):
    machine(cpu_DOT_max="3200000 100000")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert processors() == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert processors() == 1


def test_affinity_of_a_process_that_has_its_own_processors_is_not_divided(machine, monkeypatch):
    machine()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert processors() == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(10)))
    assert processors() == 10
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert processors() == 16


@pytest.mark.parametrize("text", ["0", "-2", "two", ""])
def test_local_world_size_that_is_no_number_is_an_error(machine, monkeypatch, text):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
    with pytest.raises(ValueError, match=f"LOCAL_WORLD_SIZE must be a whole number of at least 1, not {text!r}"):
        processors()


def test_decode_threads_default_to_the_share(machine, monkeypatch):
    from latentq.run.options import run_settings

    machine(cpu_DOT_max="3200000 100000")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert run_settings().threads == 4
    assert run_settings(threads=9).threads == 9
