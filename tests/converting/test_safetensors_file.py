"""The reader of safetensors files, against the format's own library."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from latentq import FormatError
from latentq.converting.safetensors_file import SafetensorsFile

TENSORS = {
    "latents": np.arange(120, dtype=np.float32).reshape(5, 2, 3, 4),
    "half": np.arange(10, dtype=np.float16).reshape(5, 2),
    "labels": np.arange(5, dtype=np.int64) - 2,
    "codes": np.arange(7, dtype=np.int8),
    "one": np.array(3, np.int32),
    "empty": np.zeros((0, 4), np.uint8),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Return a file of tensors of every kind."""
    path = tmp_path_factory.mktemp("safetensors") / "a.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_tensors_and_rows_are_those_that_were_saved(path):
    file = SafetensorsFile(path)
    assert set(file.names) == set(TENSORS)
    assert file.metadata == {"format": "pt"}
    for name, tensor in TENSORS.items():
        assert file.describe(name) == (tensor.dtype.name, tensor.shape)
        np.testing.assert_array_equal(file.array(name), tensor)
    out = np.empty((2, 2, 3, 4), np.float32)
    assert file.rows("latents", 1, 3, out) is out
    np.testing.assert_array_equal(out, TENSORS["latents"][1:3])
    assert file.rows("labels", 5, 5).shape == (0,)
    for name, start, end in (("labels", 0, 6), ("labels", -1, 2), ("labels", 3, 2), ("one", 0, 1), ("other", 0, 1)):
        with pytest.raises(FormatError):
            file.rows(name, start, end)


def test_a_file_that_is_truncated_while_it_is_read_is_an_error(path, tmp_path):
    copy = tmp_path / "b.safetensors"
    copy.write_bytes(path.read_bytes())
    file = SafetensorsFile(copy)
    copy.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FormatError, match="truncated"):
        file.array("codes")


def test_a_file_is_closed_when_nothing_refers_to_it(path, tmp_path):
    def descriptors():
        links = (link for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
        return [link for link in links if os.path.realpath(link) == str(path.resolve())]

    file = SafetensorsFile(path)
    assert len(descriptors()) == 1
    del file
    assert descriptors() == []
    broken = tmp_path / "c.safetensors"
    broken.write_bytes(path.read_bytes()[:-20])
    before = len([*Path("/proc/self/fd").iterdir()])
    with pytest.raises(FormatError):
        SafetensorsFile(broken)
    assert len([*Path("/proc/self/fd").iterdir()]) == before


CHANGES = st.one_of(
    st.tuples(st.sampled_from([*TENSORS]), st.just("shape"), st.lists(st.integers(-1, 6), max_size=3)),
    st.tuples(st.sampled_from([*TENSORS]), st.just("data_offsets"), st.lists(st.integers(-1, 600), max_size=3)),
    st.tuples(st.sampled_from([*TENSORS]), st.just("dtype"), st.sampled_from(["F32", "I32", "U8", "F16"])),
    st.tuples(st.just("__metadata__"), st.just("format"), st.sampled_from(["np", 3, None])),
)


@given(changes=st.lists(CHANGES, max_size=2), tail=st.integers(-3, 3))
@settings(max_examples=200, deadline=None)
def test_a_file_is_refused_if_the_library_refuses_it(path, changes, tail, tmp_path_factory):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, field, value in changes:
        header[name][field] = value
    text = json.dumps(header).encode()
    body = data[8 + length :]
    changed = tmp_path_factory.mktemp("changed") / "a.safetensors"
    changed.write_bytes(len(text).to_bytes(8, "little") + text + (body + b"0" * max(tail, 0))[: len(body) + tail])
    try:
        with safe_open(changed, "np") as library:
            expected = {name: library.get_tensor(name) for name in library.keys()}  # noqa: SIM118  (not a dict)
    except SafetensorError:
        with pytest.raises(FormatError, match=r"a\.safetensors"):
            SafetensorsFile(changed)
        return
    file = SafetensorsFile(changed)
    assert set(file.names) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(file.array(name), tensor)
