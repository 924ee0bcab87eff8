"""The list of a batch's samples: a collate function may look at it or change it, and nothing is copied in vain."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.utils import _pytree
from torch.utils.data import DataLoader, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from latentq import LatentDataset


def test_a_batch_is_the_same_through_collate_and_default_collate_and_sample_by_sample(reference):
    dataset = LatentDataset(reference.path)
    indices = [3, 39, 0, 3, -2]
    samples = dataset.__getitems__(indices)
    assert len(samples) == 5
    for batch in (dataset.collate(samples), default_collate(samples), default_collate([dataset[i] for i in indices])):
        np.testing.assert_allclose(batch["latent"], reference.values[indices], atol=2e-6)
        assert batch["latent"].shape == (5, 3, 4, 5)
        assert batch["label"].dtype == torch.int64
        assert batch["label"].tolist() == reference.labels[indices].tolist()
        assert batch["key"] == [reference.keys[i] for i in indices]


def test_samples_are_a_list(reference):
    samples = LatentDataset(reference.path).__getitems__([1, 2, 5])
    assert [sample["key"] for sample in samples] == [reference.keys[i] for i in (1, 2, 5)]
    assert samples[-1]["key"] == reference.keys[5]
    assert [sample["label"] for sample in samples[:2]] == reference.labels[[1, 2]].tolist()
    assert type(samples[0]["label"]) is int
    with pytest.raises(IndexError):
        samples[3]


def _sorted(samples):
    samples.sort(key=lambda sample: sample["key"], reverse=True)
    return samples


def _appended(samples):
    samples.append(samples[0])
    return samples


def _extended(samples):
    samples += samples[:2]
    samples.extend(samples[-1:])
    return samples


def _assigned(samples):
    samples[0] = samples[-1]
    samples[1:2] = []
    return samples


def _shortened(samples):
    samples.pop()
    del samples[0]
    samples.remove(samples[0])
    samples.reverse()
    return samples


def _relabeled(samples):
    samples[2]["label"] = -1
    return samples


def _cropped(samples):
    for sample in samples:
        sample["latent"] = sample["latent"][:, :2]
    return samples


CHANGES = [
    _sorted,
    _appended,
    _extended,
    _assigned,
    _shortened,
    _relabeled,
    _cropped,
    lambda samples: samples + samples[:1],
    lambda samples: samples[:1] + samples,
    lambda samples: [{"key": "", "label": 0, "latent": torch.ones(3, 4, 5), "caption": ""}] + samples,  # noqa: RUF005
    lambda samples: 2 * samples,
    lambda samples: sorted(samples, key=lambda sample: sample["label"]),
    lambda samples: [*samples, *reversed(samples)],
    lambda samples: samples.copy() if samples else samples,
    lambda samples: copy.copy(samples),
    lambda samples: pickle.loads(pickle.dumps(samples)),
    lambda samples: tuple(samples)[1:],
]


@pytest.mark.parametrize(("change", "workers"), [*((change, 0) for change in CHANGES), (_sorted, 1), (_appended, 1)])
@pytest.mark.parametrize("own", [True, False])
def test_a_collate_fn_may_change_its_list_of_samples(reference, change, workers, own):
    dataset = LatentDataset(reference.path)

    def collate(samples):
        assert isinstance(samples, list)
        return (dataset.collate if own else default_collate)(change(samples))

    batches = list(DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate))
    items = [dict(dataset[i]) for i in range(40)]
    expected = [default_collate(change(items[i : i + 4])) for i in range(0, 40, 4)]
    for batch, right in zip(batches, expected, strict=True):
        assert batch.keys() == right.keys()
        assert torch.equal(batch["latent"], right["latent"])
        assert batch["label"].tolist() == right["label"].tolist()
        assert list(batch["key"]) == list(right["key"])


def test_samples_that_were_only_looked_at_are_collated_without_a_copy(reference):
    dataset = LatentDataset(reference.path)
    samples = dataset.__getitems__([1, 2])
    assert len(samples) == 2
    assert [sample["key"] for sample in samples] == reference.keys[1:3]
    assert dataset.collate(samples)["latent"].data_ptr() == samples[0]["latent"].data_ptr()
    assert samples == list(samples)
    assert (samples > [], bool(samples), samples.index(samples[0])) == (True, True, 0)


def test_pytorch_walks_the_tensors_of_a_sample(reference):
    doubled = _pytree.tree_map_only(torch.Tensor, lambda tensor: 2 * tensor, LatentDataset(reference.path)[3])
    np.testing.assert_allclose(doubled["latent"], 2 * reference.values[3], atol=4e-6)
    assert doubled["key"] == reference.keys[3]


def test_samples_can_be_pinned_as_torch_does_it(reference, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, _device=None: tensor.clone())  # there may be no GPU
    dataset = LatentDataset(reference.path)
    samples = dataset.__getitems__([1, 2, 5])
    pinned = pin_memory(samples)
    assert len(pinned) == 3
    assert [sample["key"] for sample in pinned] == [reference.keys[i] for i in (1, 2, 5)]
    assert torch.equal(dataset.collate(pinned)["latent"], dataset.batch([1, 2, 5])["latent"])


def test_collate_does_not_copy(reference):
    dataset = LatentDataset(reference.path)
    samples = dataset.__getitems__([1, 2])
    assert dataset.collate(samples)["latent"].data_ptr() == samples[0]["latent"].data_ptr()
