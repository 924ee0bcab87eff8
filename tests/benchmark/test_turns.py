"""Contenders take turns, and ratios are those within a round."""

from latentq.benchmark.group import Group, measure
from latentq.benchmark.turns import Measured, in_units, speed_ratio, take_turns


class Clock:
    """Advances by one second per reading, and by what the work adds."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1
        return self.now


def test_contenders_take_turns_and_warm_up_rounds_are_dropped():
    clock, calls = Clock(), []

    def work(name, seconds):
        def run(argument):
            calls.append(name)
            clock.now += seconds * argument

        return run

    contenders = {"slow": work("slow", 10), "fast": work("fast", 2)}
    durations = take_turns(contenders, 2, rounds=3, warmup=1, clock=clock)
    assert calls == ["slow", "fast"] * 4
    assert durations == {"slow": [21.0] * 3, "fast": [5.0] * 3}


def test_untimed_call_and_setup_are_not_timed():
    clock, calls = Clock(), []

    def setup(argument):
        calls.append("setup")
        clock.now += 100

    def work(argument):
        calls.append("work")
        clock.now += 5

    durations = take_turns({"a": work}, None, rounds=1, warmup=0, untimed_call=True, setup=setup, clock=clock)
    assert calls == ["setup", "work", "work"]
    assert durations == {"a": [6.0]}


def test_duration_that_the_work_measured_itself_counts():
    durations = take_turns({"a": lambda _: Measured(0.25), "b": lambda _: 0.25}, None, rounds=2)
    assert durations["a"] == [0.25, 0.25]
    assert durations["b"] != [0.25, 0.25]


def test_a_ratio_is_the_median_of_those_within_a_round():
    # A round in which the machine was busy slows both; by the medians of the times the ratio would be 2.
    assert speed_ratio([3.0, 30.0, 4.0], [1.0, 10.0, 2.0]) == 3.0


def test_a_group_compares_others_with_ours_and_counts_items_and_iterations():
    def turns(contenders, data, *, rounds, iterations):
        assert (list(contenders), data, rounds, iterations) == (["latentq", "latentq, other", "a", "b"], 7, 3, 2)
        return {"latentq": [2.0, 2.0, 4.0], "latentq, other": [1.0] * 3, "a": [6.0, 4.0, 4.0], "b": [1.0, 2.0, 4.0]}

    work = dict.fromkeys(["latentq", "latentq, other", "a", "b"], print)
    group = Group("t", work, 7, 10, "values", limits=("b",), rounds=9, options={"iterations": 2})
    rows = measure(group, rounds=3, turns=turns).rows
    assert [row.latentq_is for row in rows] == [None, None, 2.0, 1.0]
    assert [row.rate for row in rows] == [10.0, 20.0, 5.0, 10.0]
    assert [row.limit for row in rows] == [False, False, False, True]
    assert rows[2].fastest == 2.0


def test_numbers_have_three_digits():
    units = ((1e6, "M"), (1.0, ""))
    assert [in_units(value, units) for value in (1.234e6, 12.34e6, 1234.5e6, 9.876, 0.5)] == [
        "1.23 M", "12.3 M", "1,234 M", "9.88", "0.50",
    ]  # fmt: skip
