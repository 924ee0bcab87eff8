"""The facts of a unit, `unit.toml`."""

import tomllib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from latentq import FormatError
from latentq.quantizer import Moments
from latentq.run.units import LatentSums, Reject, UnitFacts

HISTOGRAM = "'[[1,0,2],[0,3,0]]'"


def facts(histogram):
    latents = {"latent": LatentSums(np.array([0, 5]), np.array(histogram))}
    return UnitFacts("c", "l", 3, 1, [Reject("a.jpg", "read", "broken")], latents, {"caption_embedding": 7})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "unit.toml"


@given(arrays(np.int64, array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 2**63 - 1)))
def test_facts_are_read_as_they_were_written(tmp_path_factory, histogram):
    path = tmp_path_factory.getbasetemp() / "unit.toml"
    path.write_bytes(facts(histogram).to_toml())
    unit = UnitFacts.load(path)
    read = unit.latents.pop("latent")
    assert read.histogram.dtype == np.int64
    assert np.array_equal(read.histogram, histogram)
    assert (read.clipped.tolist(), read.moments) == ([0, 5], [])
    assert unit == UnitFacts("c", "l", 3, 1, [Reject("a.jpg", "read", "broken")], {}, {"caption_embedding": 7})


def test_facts_of_floats_have_no_histogram(path):
    moments = Moments.of(np.ones((2, 3)))
    sums = LatentSums(np.array([0, 0]), None, [moments])
    path.write_bytes(UnitFacts(samples=1, latents={"latent": sums}).to_toml())
    read = UnitFacts.load(path).latents["latent"]
    assert read.histogram is None
    assert [part.to_dict() for part in read.moments] == [moments.to_dict()]


def test_a_histogram_is_one_string_that_needs_no_escapes():
    text = facts([[1, 0, 2], [0, 3, 0]]).to_toml().decode()
    assert f"\nhistogram = {HISTOGRAM}\n" in text
    assert tomllib.loads(text)["latents"]["latent"]["histogram"] == HISTOGRAM.strip("'")


@pytest.mark.parametrize("key", ['histogram = "[[1]]"', 'x\nhistogram = "[[1]]"\n', "'"])
def test_only_a_histogram_is_written_so(path, key):
    path.write_bytes(UnitFacts(samples=0, rejects=[Reject(key, "read", key)]).to_toml())
    assert UnitFacts.load(path).rejects == [Reject(key, "read", key)]


@pytest.mark.parametrize(
    "histogram",
    [
        "[[1, 0, 2], [0, 3, 0]]",  # TOML's own numbers
        "3",
        "true",
        "''",
        "'[[1,0,2],[0,3,0]'",
        "'[[1,0,2],[0,3,0]] '''",
        "'[]'",
        "'[[],[]]'",
        "'[1,0,2]'",
        "'[[1,0,2],[0,3]]'",
        "'[[1,0,2],3]'",
        "'[[[1,0,2]],[[0,3,0]]]'",
        "'[[1,0,-2],[0,3,0]]'",
        "'[[1,0,2.0],[0,3,0]]'",
        "'[[1,0,NaN],[0,3,0]]'",
        "'[[1,0,true],[0,3,0]]'",
        "'[[1,0,null],[0,3,0]]'",
        "'[[1,0,\"2\"],[0,3,0]]'",
        "'{\"1\":[2]}'",
        "'[{\"1\":2}]'",
        "'null'",
        "'[[9223372036854775808]]'",
        f"'[[{'9' * 5000}]]'",
        f"'{'[' * 100_000}'",
    ],
)
def test_a_damaged_histogram_is_no_facts_of_a_unit(path, histogram):
    whole = facts([[1, 0, 2], [0, 3, 0]]).to_toml().decode()
    assert HISTOGRAM in whole
    path.write_text(whole.replace(HISTOGRAM, histogram))
    with pytest.raises(FormatError, match=r"unit\.toml: not the facts of a unit"):
        UnitFacts.load(path)


@pytest.mark.parametrize("text", ["samples = inf\nrejects = []", f"samples = 0\nrejects = {'[' * 100_000}"])
def test_numbers_and_lists_without_end_are_no_facts_of_a_unit(path, text):
    path.write_text(text)
    with pytest.raises(FormatError, match=r"unit\.toml: not the facts of a unit"):
        UnitFacts.load(path)
