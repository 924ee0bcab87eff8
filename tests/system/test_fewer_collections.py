"""The garbage collector is left as it was."""

import contextlib
import gc

import pytest

from latentq.system.memory import fewer_collections


@pytest.mark.parametrize(("before", "within"), [(700, 100_000), (200_000, 200_000), (0, 0)])
@pytest.mark.parametrize("error", [None, KeyError])
def test_the_collector_runs_less_often_only_during_the_block(before, within, error):
    others = gc.get_threshold()
    gc.set_threshold(before, *others[1:])
    try:
        with contextlib.suppress(KeyError), fewer_collections():
            found = gc.get_threshold()
            if error is not None:
                raise error
        assert found == (within, *others[1:])
        assert gc.get_threshold() == (before, *others[1:])
    finally:
        gc.set_threshold(*others)


def test_blocks_of_two_threads_that_overlap_leave_it_as_it_was():
    others = gc.get_threshold()
    gc.set_threshold(700, *others[1:])
    try:
        first, second = fewer_collections(), fewer_collections()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)
        assert gc.get_threshold() == (700, *others[1:])
    finally:
        gc.set_threshold(*others)
