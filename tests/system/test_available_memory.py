"""The memory that a process may still allocate, under made-up control groups."""

import pytest

from latentq.system import groups, memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that makes a control group and its parent; the machine has much memory."""
    monkeypatch.setattr(groups, "CGROUPS", tmp_path)
    monkeypatch.setattr(groups, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_in_system", lambda: 1 << 40)

    def write(own, limits, name, stat):
        (tmp_path / "own").write_text(own + "\n")
        for path, limit in limits.items():
            group = tmp_path / path
            group.mkdir(parents=True, exist_ok=True)
            (group / name).write_text(f"{limit}\n")
            (group / "memory.stat").write_text(f"cache 7\n{stat} 1000\nfile 999\n")

    return write


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"job": "max"}, 1 << 40),
        ({"job": "5000", "job/step": "max"}, 4000),
        ({"job": "9000", "job/step": "5000"}, 4000),
        ({"job": "max", "job/step": "max", "other": "2000"}, 1 << 40),
    ],
)
def test_least_limit_of_a_group_and_its_parents_version_2(machine, limits, expected):
    machine("0::/job/step", limits, "memory.max", "anon")
    assert memory.available_bytes() == expected


def test_least_limit_of_a_group_and_its_parents_version_1(machine):
    limits = {"memory": 2**63 - 4096, "memory/job": 6000, "memory/job/step": 8000}
    machine("9:cpu:/\n4:memory:/job/step\n0::/", limits, "memory.limit_in_bytes", "total_rss")
    assert memory.available_bytes() == 5000


def test_without_control_groups_the_system_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(groups, "CGROUPS", tmp_path)
    monkeypatch.setattr(groups, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "_in_system", lambda: None)
    assert memory.available_bytes() is None
