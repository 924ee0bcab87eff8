"""ResidentDataset: the same batches from memory, and no more memory than is free."""

import numpy as np
import pytest
import torch

from latentq import LatentDataset
from latentq.reading import resident
from support.making import make_dataset


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("made") / "out", 40)


@pytest.mark.parametrize("kind", ["affine", "codebook", "trellis", "float16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batches_equal_those_read_from_files(tmp_path, kind, dtype):
    reference = make_dataset(tmp_path / "out", 40, kind=kind)
    dataset = LatentDataset(reference.path, columns=["latent", "label"], dtype=dtype, scale="scaled")
    resident_dataset = dataset.to_device("cpu")
    for mine, theirs in zip(resident_dataset.loader(16, shuffle=True), dataset.loader(16, shuffle=True), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_it_is_a_map_style_dataset(reference):
    resident_dataset = LatentDataset(reference.path).to_device("cpu")
    assert len(resident_dataset) == 40
    assert resident_dataset[-1]["label"] == reference.labels[-1]
    np.testing.assert_allclose(resident_dataset[7]["latent"], reference.values[7], atol=2e-6)
    np.testing.assert_allclose(
        resident_dataset.batch(torch.tensor([3, 1]))["latent"], reference.values[[3, 1]], atol=2e-6
    )
    with pytest.raises(IndexError):
        resident_dataset[40]
    np.testing.assert_allclose(resident_dataset.batch(torch.tensor([-1]))["latent"], reference.values[[-1]], atol=2e-6)
    with pytest.raises(IndexError, match="index 40 is out of range"):
        resident_dataset.batch(torch.tensor([3, 40]))


def test_columns_of_strings_are_not_read(reference, monkeypatch):
    dataset = LatentDataset(reference.path)
    read = []
    gatherer = LatentDataset.gatherer
    monkeypatch.setattr(
        LatentDataset, "gatherer", lambda self, **options: read.append(options["names"]) or gatherer(self, **options)
    )
    resident_dataset = dataset.to_device("cpu")
    assert read == [("latent", "label")]
    assert resident_dataset[[2, 1]]["label"].tolist() == reference.labels[[2, 1]].tolist()


def test_packed_codes_stay_packed_in_memory(tmp_path):
    reference = make_dataset(tmp_path / "out", 10, bits=4)
    dataset = LatentDataset(reference.path)
    assert dataset.resident_bytes == 10 * (3 * 4 * 5 // 2 + 8)
    resident_dataset = dataset.to_device("cpu")
    assert sum(column.nbytes for column in resident_dataset.columns.values()) == dataset.resident_bytes
    np.testing.assert_allclose(resident_dataset.batch(range(10))["latent"], reference.values, atol=2e-6)


def test_a_dataset_larger_than_free_memory_is_refused(reference, monkeypatch):
    dataset = LatentDataset(reference.path)
    monkeypatch.setattr(resident, "_free_bytes", lambda _: dataset.resident_bytes - 1)
    with pytest.raises(MemoryError, match=r"needs 0\.00 GB on cpu, where 0\.00 GB are free"):
        dataset.to_device("cpu")
    monkeypatch.setattr(resident, "_free_bytes", lambda _: dataset.resident_bytes)
    dataset.to_device("cpu")


def test_free_memory_is_a_plausible_number():
    free = resident._free_bytes(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 50


def test_a_transform_cannot_be_resident(reference):
    with pytest.raises(ValueError, match="transform"):
        LatentDataset(reference.path, transform=dict).to_device("cpu")


def test_strings_alone_cannot_be_resident(reference):
    with pytest.raises(ValueError, match="no latents or labels are among the columns key, caption"):
        LatentDataset(reference.path, columns=["key", "caption"]).to_device("cpu")
