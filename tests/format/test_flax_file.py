"""Files of `flax.serialization`, whole, broken and hostile."""

import subprocess
import sys

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import FormatError
from latentq.format.flax_file import read_arrays
from support.flax_making import flax_bytes, packed_array

# What flax.serialization.to_bytes of Flax 0.12.8 wrote for `TREE`, with MAX_CHUNK_SIZE = 16.
FLAX = bytes.fromhex(
    "83a7656e636f64657282a86e6f726d5f6f757482a57363616c65c71901939103a7666c6f61743332c40c000000000000803f00000040a46269"
    "6173c71201939102a862666c6f61743136c404c03f00c0a6646f776e5f3081a66b65726e656cc71801939401010202a7666c6f61743136c408"
    "0000003c00400042a87175616e74697a6581a9656d62656464696e6783b95f5f6d73677061636b5f6368756e6b65645f61727261795f5fc3a5"
    "736861706582a13003a13102a66368756e6b7382a130c71d01939104a7666c6f61743332c410000000000000803f0000004000004040a131c7"
    "1501939102a7666c6f61743332c408000080400000a040a473746570d8039390a7666c6f61743332c4040000e040"
)
TREE = {
    "encoder": {
        "norm_out": {"scale": np.arange(3, dtype=np.float32), "bias": torch.tensor([1.5, -2.0]).bfloat16()},
        "down_0": {"kernel": np.arange(4, dtype=np.float16).reshape(1, 1, 2, 2)},
    },
    "quantize": {"embedding": np.arange(6, dtype=np.float32).reshape(3, 2)},
    "step": np.float32(7),
}
VALUES = {
    "encoder/norm_out/scale": np.arange(3, dtype=np.float32),
    "encoder/norm_out/bias": np.array([1.5, -2], np.float32),
    "encoder/down_0/kernel": np.arange(4, dtype=np.float16).reshape(1, 1, 2, 2),
    "quantize/embedding": np.arange(6, dtype=np.float32).reshape(3, 2),
    "step": np.array(7, np.float32),
}


def same(arrays, expected):
    return arrays.keys() == expected.keys() and all(
        (arrays[name].shape, arrays[name].dtype) == (value.shape, value.dtype)
        and arrays[name].tobytes() == value.tobytes()
        for name, value in expected.items()
    )


def test_a_file_that_flax_wrote_is_read(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(FLAX)
    assert same(read_arrays(tmp_path / "flax_model.msgpack"), VALUES)


def test_the_other_tests_write_what_flax_writes():
    assert flax_bytes(TREE, largest_chunk=16) == FLAX


ARRAYS = st.builds(
    lambda dtype, shape, seed: np.random.default_rng(seed).integers(0, 100, shape).astype(dtype),
    st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int32", "int64", "bool"]),
    st.lists(st.integers(1, 4), max_size=4),
    st.integers(0, 9),
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    tree=st.dictionaries(NAMES, st.recursive(ARRAYS, lambda t: st.dictionaries(NAMES, t, max_size=3), max_leaves=8)),
    largest=st.integers(1, 64),
)
def test_any_tree_of_arrays_is_read_with_any_size_of_chunks(tmp_path_factory, tree, largest):
    def leaves(node, path=()):
        for name, value in node.items():
            if isinstance(value, dict):
                yield from leaves(value, (*path, name))
            else:
                yield "/".join((*path, name)), value

    path = tmp_path_factory.getbasetemp() / "tree.msgpack"
    path.write_bytes(flax_bytes(tree, largest))
    assert same(read_arrays(path), dict(leaves(tree)))


@pytest.fixture
def refuses(tmp_path):
    """Check that a file of these bytes is one short error line that names the file."""

    def check(data, reason):
        path = tmp_path / "flax_model.msgpack"
        path.write_bytes(data)
        with pytest.raises(FormatError, match=reason) as caught:
            read_arrays(path)
        assert str(caught.value).startswith(f"{path}: not a file of flax.serialization, or broken: ")
        assert len(str(caught.value)) < 500
        assert "\n" not in str(caught.value)

    return check


def test_a_file_that_ends_early_or_late_is_refused(refuses):
    for length in range(len(FLAX)):
        refuses(FLAX[:length], "truncated")
    refuses(FLAX + b"\0", "it ends after 274 of 275 bytes")


def test_a_changed_byte_is_another_array_or_an_error(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    for at in range(len(FLAX)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(FLAX[:at] + bytes([FLAX[at] ^ flip]) + FLAX[at + 1 :])
            try:
                arrays = read_arrays(path)
            except FormatError:
                continue
            assert all(isinstance(array, np.ndarray) for array in arrays.values())


def ext(kind, *parts):
    return msgpack.packb({"a": msgpack.ExtType(kind, msgpack.packb(parts))})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text", "it ends after 1 of 4 bytes"),
        (msgpack.packb(5), "something other than arrays at its top: 5"),
        (msgpack.packb(packed_array((1,), "uint8", b"1")), "something other than arrays at its top"),
        (msgpack.packb({"a": {"b": None}}), "something other than arrays at a/b: None"),
        (msgpack.packb({"a": 1.5}), "something other than arrays at a: 1.5"),
        (msgpack.packb({"a": "b"}), "something other than arrays at a: 'b'"),
        (msgpack.packb({"a": [packed_array((1,), "uint8", b"1")]}), "max_array_len"),
        (msgpack.packb({"a": b"bytes"}), "max_bin_len"),
        (msgpack.packb({1: packed_array((1,), "uint8", b"1")}), "int is not allowed for map key"),
        (msgpack.packb({"a" * 200: 1}), "max_str_len"),
        (b"\x82\xa1a\xc0\xa1a\xc0", "not different texts"),
        (b"\x81" + msgpack.packb(packed_array((1,), "uint8", b"1")) + b"\xc0", "not allowed for map key"),
        (b"\x81\xa1\xff\xc0", "utf-8"),
        (b"\xc1", "it is not MessagePack"),
        (b"\x81\xa1a" * 2000, "it is nested too deeply"),
        (ext(2, 1.0, 2.0), "extension of type 2, which is no array"),
        (ext(77, (1,), "uint8", b"1"), "extension of type 77"),
        (msgpack.packb({"a": msgpack.Timestamp(0)}), "something other than arrays at a: Timestamp"),
        (ext(1, (1,), "uint8"), "not a shape, a dtype and bytes"),
        (ext(1, 1, "uint8", b"1"), "1 is not a shape"),
        (ext(1, (-1,), "uint8", b"1"), r"\[-1\] is not a shape"),
        (ext(1, (1.0,), "uint8", b"1"), r"\[1.0\] is not a shape"),
        (ext(1, (True,), "uint8", b"1"), r"\[True\] is not a shape"),
        (ext(1, (1,) * 33, "uint8", b"1"), "max_array_len"),
        (ext(1, (1,), "object", b"12345678"), "dtype 'object', which is not supported"),
        (ext(1, (1,), "O", b"12345678"), "dtype 'O', which is not supported"),
        (ext(1, (1,), "complex64", b"12345678"), "dtype 'complex64', which is not supported"),
        (ext(1, (1,), "V8", b"12345678"), "dtype 'V8', which is not supported"),
        (ext(1, (1,), "f4,f4", b"12345678"), "dtype 'f4,f4', which is not supported"),
        (ext(1, (1,), b"uint8", b"1"), "dtype b'uint8', which is not supported"),
        (ext(1, (1,), 5, b"1"), "dtype 5, which is not supported"),
        (ext(1, (3,), "float32", b"1234"), "does not have that many bytes"),
        (ext(1, (2**62, 2**62), "float32", b""), "does not have that many bytes"),
        (ext(1, (1,), "uint8", "1"), "does not have that many bytes"),
        (ext(1, (1,), "uint8", packed_array((1,), "uint8", b"1")), "max_ext_len"),
        (ext(1, (1,), "uint8", {"a": 1}), "max_map_len"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"")}), "incomplete input"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"\x93\x91\x01\xa5uint8\xc4\x01")}), "incomplete input"),
    ],
)
def test_what_is_no_array_is_refused(refuses, data, reason):
    refuses(data, reason)


CHUNK = packed_array((2,), "float32", bytes(8))


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({}, "not numbered"),
        ({"shape": {"0": 2}, "chunks": {}}, "not flat arrays"),
        ({"shape": {"0": 2}, "chunks": {"1": CHUNK}}, "not numbered"),
        ({"shape": {"0": 2}, "chunks": {"0": 5}}, "not flat arrays"),
        ({"shape": {"0": 2}, "chunks": {"0": packed_array((1, 2), "float32", bytes(8))}}, "not flat arrays"),
        ({"shape": {"0": 3}, "chunks": {"0": CHUNK}}, r"not an array of shape \(3,\)"),
        ({"shape": {"0": -2, "1": -1}, "chunks": {"0": CHUNK}}, "is not a shape"),
        ({"shape": {"0": "2"}, "chunks": {"0": CHUNK}}, "is not a shape"),
        ({"shape": {"0": CHUNK}, "chunks": {"0": CHUNK}}, "is not a shape"),
        ({"shape": {"0": 2**62, "1": 2**62}, "chunks": {"0": CHUNK}}, "not an array of shape"),
        ({"shape": {str(i): 1 for i in range(40)}, "chunks": {"0": CHUNK}}, "more than 32 axes"),
        ({"shape": {"0": 4}, "chunks": {"0": CHUNK, "1": packed_array((2,), "int32", bytes(8))}}, "not an array"),
    ],
)
def test_broken_chunks_are_refused(refuses, parts, reason):
    refuses(msgpack.packb({"a": {"__msgpack_chunked_array__": True, **parts}}), reason)


def test_a_fifo_or_an_absent_file_is_an_error(tmp_path):
    import os

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="fifo: not a regular file"):
        read_arrays(tmp_path / "fifo")
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "absent")


def bombs():
    """Yield files of few bytes that declare much, or would be many objects."""
    many = 2**32 - 1
    header = many.to_bytes(4, "big")
    yield "array", b"\xdd" + header
    yield "map", b"\xdf" + header
    yield "text", b"\x81\xdb" + header
    yield "bytes", b"\x81\xa1a\xc6" + header
    yield "extension", b"\x81\xa1a\xc9" + header + b"\x01"
    yield "arrays", b"\x91" * 500 + b"\xdd" + (2**22).to_bytes(4, "big") + bytes(2**22)
    yield "deep", b"\x81\xa1a" * 10**6
    yield "deep and short", b"\x81\xa1a" * 40 + b"\xc0"
    yield "inner arrays", msgpack.packb({"a": msgpack.ExtType(1, b"\xdd\x00\x40\x00\x00" * 10**5)})
    yield (
        "empty maps",
        b"\xde\x04\x00"
        + b"".join(
            msgpack.packb(str(i)) + b"\xde\x04\x00" + b"".join(msgpack.packb(str(j)) + b"\x80" for j in range(1024))
            for i in range(1024)
        ),
    )
    one = msgpack.packb(packed_array((1,), "uint8", b"1"))
    yield (
        "small arrays",
        b"\xde\x04\x00"
        + b"".join(
            msgpack.packb(str(i)) + b"\xde\x04\x00" + b"".join(msgpack.packb(str(j)) + one for j in range(1024))
            for i in range(300)
        ),
    )


LIMITED = """
import resource, sys
from pathlib import Path
from latentq import FormatError
from latentq.format.flax_file import read_arrays
import msgpack
limit = {limit} + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[1:]:
    try:
        read_arrays(Path(path))
    except FormatError as error:
        assert len(str(error)) < 500, error
        print(path, "MemoryError" in str(error) or "memory" in str(error))
"""


def test_files_that_declare_much_need_little_memory(tmp_path):
    paths = []
    for name, data in bombs():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=1 << 27), *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{path} False" for path in paths]
