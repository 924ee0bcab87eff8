"""Charts of `latentq report`: labels."""

import re

import numpy as np
import pytest

from latentq.inspect.report import charts


def labels(low, high, *, is_small):
    svg = charts.histogram(np.linspace(low, high, 9), np.ones(8), name="values", is_small=is_small)
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


@pytest.mark.parametrize(
    ("low", "high", "small", "large"),
    [
        (-2.5, 2.5, True, True),
        (-1.06, 3.98, False, True),  # room for the label 0 next to -1.06 only in a wide chart
        (-3.98, 1.06, False, True),
        (-1234.5, 5678.9, False, True),
        (-0.1, 9, False, False),
        (0, 3, False, False),
        (1, 3, False, False),
    ],
)
def test_histogram_labels_zero_where_there_is_room(low, high, small, large):
    ends = [charts.number(low), charts.number(high)]
    for is_small, has_zero in ((True, small), (False, large)):
        found = labels(low, high, is_small=is_small)
        assert sorted(found) == sorted([*ends, *["0"] * has_zero])
