"""The `turns` fixture, which has pytest-benchmark report what `take_turns` timed, and facts about the machine."""

import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import latentq
from latentq.benchmark.machine import versions
from latentq.benchmark.turns import CORES, Contenders, take_turns

PACKAGES = (
    "latentq", "numpy", "torch", "torchvision", "pillow", "opencv-python-headless", "mosaicml-streaming", "litdata",
    "webdataset", "datasets",
)  # fmt: skip


class ReplayTimer:
    """A timer for pytest-benchmark that replays durations measured earlier.

    pytest-benchmark reads its timer twice per round, before and after the work, and subtracts.
    """

    __name__ = "take_turns"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, durations: list[float]) -> None:
        """Set the durations to replay, in seconds."""
        self._readings = iter([reading for duration in durations for reading in (0.0, duration)])

    def __call__(self) -> float:
        return next(self._readings)


TIMER = ReplayTimer()
DURATIONS: dict[tuple[object, ...], dict[str, list[float]]] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, help="timed rounds of every group (default: each group's own number)")
    parser.addoption("--folder", type=Path, help="where files to read and write are made (default: the temporary one)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=TIMER))
        item.add_marker(pytest.mark.timeout(0))


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info["cores"] = CORES
    machine_info["load"] = os.getloadavg()[0]
    machine_info["kernel"] = platform.release()
    machine_info["isa"] = latentq.isa()
    machine_info["packages"] = versions(PACKAGES)


@pytest.fixture
def turns(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., dict[str, list[float]]]:
    """A function that runs this test's group in turns and reports the part of this test's contender.

    The test is parametrized by `contender`. The first test of a group runs all contenders that were selected (`-k`
    leaves some out); the others of the group report what it measured.
    """

    def report(
        contenders: Contenders,
        argument: object = None,
        *,
        group: str,
        rounds: int,
        reference: str | None = None,
        items: float = 1,
        unit: str = "calls",
        **options: Any,
    ) -> dict[str, list[float]]:
        """Run the group if this is its first test, and hand this contender's durations to pytest-benchmark.

        Args:
            contenders: Maps each value of the `contender` parameter to its work.
            argument: Passed to the work.
            group: The group's title; pytest-benchmark prints one table per group.
            rounds: Timed rounds, unless `--rounds` is given.
            reference: The contender that others are compared with in RESULTS.md.
            items: How many items one call handles.
            unit: What the items are, in the plural.
            **options: See `take_turns`.

        Returns:
            Durations by contender, of the contenders that were selected.
        """
        contender = _parameters(request.node)["contender"]
        benchmark.group = group
        if benchmark.disabled:  # --benchmark-disable: does it run at all?
            contenders[contender](argument)
            return {}
        key = _group_key(request.node)
        if key not in DURATIONS:
            selected = [_parameters(test)["contender"] for test in request.session.items if _group_key(test) == key]
            DURATIONS[key] = take_turns(
                {name: contenders[name] for name in contenders if name in selected},
                argument,
                rounds=request.config.getoption("--rounds") or rounds,
                **options,
            )
        durations = DURATIONS[key][contender]
        benchmark.extra_info.update(contender=contender, reference=reference, items=items, unit=unit)
        TIMER.load(durations)
        benchmark.pedantic(lambda: None, rounds=len(durations), iterations=options.get("iterations", 1))
        return DURATIONS[key]

    return report


def _parameters(test: pytest.Item) -> dict[str, Any]:
    return test.callspec.params if hasattr(test, "callspec") else {}


def _group_key(test: pytest.Item) -> tuple[object, ...]:
    """The test's function and parameters other than the contender."""
    others = sorted((name, str(value)) for name, value in _parameters(test).items() if name != "contender")
    return test.path, getattr(test, "originalname", test.name), *others
