"""torch.save's files, read without making tensors and without executing anything."""

import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from latentq import FormatError
from latentq.format.safe_torch_file import TorchFile


def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def number(value):
    return pickle.dumps(value, 2)[2:-1]


def tensor(start=0, shape=(2, 3), strides=(3, 1), storage="0", kind="FloatStorage"):
    """The pickle of a tensor, as torch.save writes it."""
    persistent = text("storage") + b"ctorch\n" + kind.encode() + b"\n" + text(storage) + text("cpu") + number(6)
    fields = pickle.MARK + persistent + pickle.TUPLE + pickle.BINPERSID + number(start)
    fields += number(shape) + number(strides) + pickle.NEWFALSE + b"ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + pickle.MARK + fields + pickle.TUPLE + pickle.REDUCE


def save(path, data, method=zipfile.ZIP_STORED):
    """A torch file with this pickle and one storage of six float32 values, followed by another record."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", pickle.PROTO + b"\x02" + data + pickle.STOP)
        file.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
        file.writestr("archive/other", bytes(1000))
    return path


def test_tensors_of_every_dtype_and_layout_are_read_as_torch_has_them(tmp_path):
    dtypes = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    dtypes += [torch.float16, torch.float32, torch.float64]
    base = torch.arange(24).reshape(4, 6)
    saved = [base.to(dtype) for dtype in dtypes] + [base.T, base[1:, ::2], base[3], base[0, 0], base[:0]]
    saved += [base[:1].expand(5, 6), base.to(torch.bfloat16)]
    torch.save(saved, tmp_path / "x.pt")
    file = TorchFile(tmp_path / "x.pt")
    records = file.load()
    for record, expected in zip(records[:-1], saved[:-1], strict=True):
        np.testing.assert_array_equal(file.read(record), expected.numpy())
    bits = file.read(records[-1]).copy()
    assert torch.equal(torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16), saved[-1])


def test_a_tensor_is_read_at_its_place(tmp_path):
    file = TorchFile(save(tmp_path / "x.pt", tensor(1, (2, 2), (3, 1))))
    np.testing.assert_array_equal(file.read(file.load()), [[1, 2], [4, 5]])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"start": 1}, "it ends at element 7, its storage has 6"),
        ({"start": -1}, "start -1"),
        ({"strides": (-3, 1)}, "strides (-3, 1) do not fit"),
        ({"strides": (3,)}, "strides (3,) do not fit"),
        ({"shape": (2**40, 2**40), "strides": (0, 0)}, "has more elements than the file has bytes"),
        ({"shape": (2**62, 3)}, "its storage has 6"),
        ({"shape": ("a", 3)}, "do not fit"),
        ({"storage": "1"}, "there is no record data/1"),
        ({"kind": "DoubleStorage"}, "its storage has 3"),
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, changed, reason):
    path = save(tmp_path / "x.pt", tensor(**changed))
    file = TorchFile(path)
    with pytest.raises(FormatError) as caught:
        file.read(file.load())
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cos\nsystem\n" + text("false") + pickle.TUPLE1 + pickle.REDUCE, "posix.system, which is no tensor"),
        (b"cbuiltins\nbytearray\n" + number(2**36) + pickle.TUPLE1 + pickle.REDUCE, "builtins.bytearray"),
        (b"ctorch\nFloatTensor\n" + number(2**36) + pickle.TUPLE1 + pickle.REDUCE, "torch.FloatTensor"),
        (b"", "unpickling stack underflow"),
        (pickle.EMPTY_LIST * 100000 + pickle.APPEND * 99999 + pickle.STOP, None),
    ],
)
def test_other_objects_are_refused_without_being_made(tmp_path, data, reason):
    path = save(tmp_path / "x.pt", data)
    if reason is None:  # deeply nested, and harmless
        assert isinstance(TorchFile(path).load(), list)
        return
    with pytest.raises(FormatError) as caught:
        TorchFile(path).load()
    assert str(caught.value).startswith(f"{path}: cannot be loaded: ")
    assert reason.replace("posix", "") in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_other_objects_can_be_ignored(tmp_path):
    harm = b"cos\nmkdir\n" + text(str(tmp_path / "harm")) + pickle.TUPLE1 + pickle.REDUCE
    huge = b"cbuiltins\nbytearray\n" + number(2**36) + pickle.TUPLE1 + pickle.REDUCE
    items = text("harm") + harm + text("huge") + huge + text("weight") + tensor()
    file = TorchFile(save(tmp_path / "x.pt", pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS))
    data = file.load(ignore_others=True)
    assert file.read(data["weight"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("ignore_others", [True, False])
def test_operations_that_would_allocate_gigabytes_are_refused(tmp_path, ignore_others):
    memo = pickle.EMPTY_LIST + pickle.LONG_BINPUT + struct.pack("<I", 2**31 - 1)
    for data, reason in (
        (memo, "memo index of 2147483647"),
        (pickle.BYTEARRAY8 + struct.pack("<Q", 2**40), "expected 1099511627776 bytes"),
        (pickle.BYTEARRAY8 + struct.pack("<Q", 1) + b"x", "bytearray"),
        (pickle.BINBYTES8 + struct.pack("<Q", 2**40), "expected 1099511627776 bytes"),
    ):
        with pytest.raises(FormatError, match=reason):
            TorchFile(save(tmp_path / "x.pt", data)).load(ignore_others=ignore_others)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "text").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("a/b", b"")
    save(tmp_path / "compressed", tensor(), zipfile.ZIP_DEFLATED)
    for name, reason in (("text", "not a zip"), ("zip", "no data.pkl"), ("compressed", "compressed")):
        with pytest.raises(FormatError, match=reason) as caught:
            TorchFile(tmp_path / name).load()
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
