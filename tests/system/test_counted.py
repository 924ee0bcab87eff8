"""Counts and sizes in messages."""

import pytest

from latentq.system.text import counted, size_text


@pytest.mark.parametrize(("count", "text"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples")])
def test_a_count_of_one_has_a_singular_noun(count, text):
    assert counted(count, "sample") == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"), (2_000_000_000, "2.0 GB"), (3 * 10**12, "3.0 TB"),
    ],
)  # fmt: skip
def test_sizes_are_in_decimal_units(count, text):
    assert size_text(count) == text
