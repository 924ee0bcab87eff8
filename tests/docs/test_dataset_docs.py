"""The example of a list in docs/dataset.md is what the package writes."""

import re
from pathlib import Path

from latentq.run.sample_list import cut_into_units, list_parts
from latentq.sources import Sample

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "dataset.md").read_text()


def test_the_list_of_the_page_is_a_list():
    (example,) = re.findall(r"^```\n(# .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    samples = [
        Sample("cat/0.png", 7626, 0, "cat"),
        Sample("cat/1.png", 7232, 0, "cat"),
        Sample("dog/0.png", 7707, 1, "dog"),
    ]
    units = cut_into_units(samples, 2)
    assert [part.decode() for part in list_parts((unit, 0) for unit in units)] == [example]
