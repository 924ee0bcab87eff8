"""A loader's device side: every copy to a GPU is from pinned memory and waits for nothing. Needs no GPU.

`support/fake_gpu.py` says how that is found.
"""

import dataclasses

import numpy as np
import pytest
import torch

from latentq import LatentDataset, LatentMixture, Transform, mds
from latentq.format.card import CARD, Card
from latentq.reading.resident import ResidentDataset
from support.fake_gpu import fake_gpu, is_pinned, synchronizations  # noqa: F401  (a fixture)
from support.making import make_dataset

pytestmark = pytest.mark.usefixtures("fake_gpu")

KINDS = [("affine", 8), ("affine", 4), ("affine", 2), ("codebook", 8), ("codebook", 5), ("trellis", 4),
         ("float16", 8), ("bfloat16", 8), ("float32", 8)]  # fmt: skip


def batches(make, **options):
    """Prepares the reading of one batch of a loader of the dataset that `make` returns."""

    def prepare():
        dataset = make()
        given = {} if not isinstance(dataset, LatentDataset | LatentMixture) else {"device": "cuda"}
        loader = dataset.loader(4, shuffle=True, **given, **options)
        loader._pin = True  # as where CUDA is available
        iterator = iter(loader)

        def work():
            batch = next(iterator)
            assert {value.device.type for value in batch.values() if isinstance(value, torch.Tensor)} == {"cuda"}
            return batch

        return work

    return prepare


@pytest.mark.parametrize("scale", ["raw", "scaled", "normalized"])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loader_sends_batches_without_waiting(tmp_path, kind, bits, scale, dtype):
    make_dataset(tmp_path / "out", 40, kind=kind, bits=bits)
    assert synchronizations(batches(lambda: LatentDataset(tmp_path / "out", scale=scale, dtype=dtype))) == []


@pytest.mark.parametrize("options", [{"prefetch": 1}, {"prefetch": 5, "threads": 1}, {"label_dropout": 0.5},
                                     {"caption_dropout": 0.5}, {"rank": 1, "world_size": 2}], ids=str)  # fmt: skip
@pytest.mark.parametrize("label_encoding", ["int", "str"])
def test_options_of_a_loader_change_nothing(tmp_path, options, label_encoding):
    make_dataset(tmp_path / "out", 40, label_encoding=label_encoding)
    assert synchronizations(batches(lambda: LatentDataset(tmp_path / "out"), **options)) == []


@pytest.mark.parametrize("kind", ["affine", "codebook", "trellis", "float16"])
def test_mixture_sends_batches_without_waiting(tmp_path, kind):
    for name in ("a", "b"):
        make_dataset(tmp_path / name, 40, kind=kind, seed=0)

    def mixture():
        return LatentMixture([LatentDataset(tmp_path / name) for name in ("a", "b")], weights=[1, 2])

    assert synchronizations(batches(mixture)) == []


@pytest.mark.parametrize("scale", ["raw", "scaled"])
@pytest.mark.parametrize(("kind", "bits"), KINDS)
def test_resident_dataset_gives_batches_without_waiting(tmp_path, kind, bits, scale):
    make_dataset(tmp_path / "out", 40, kind=kind, bits=bits)
    assert synchronizations(batches(lambda: LatentDataset(tmp_path / "out", scale=scale).to_device("cuda"))) == []


def test_resident_dataset_looks_up_indices_without_waiting(tmp_path):
    make_dataset(tmp_path / "out", 40)

    def prepare():
        resident = LatentDataset(tmp_path / "out").to_device("cuda")
        on_device = torch.tensor([3, 1, 2], device="cuda")
        return lambda: (resident.batch([5, -1]), resident.batch(np.array([5, 1])), resident.batch(on_device))

    assert synchronizations(prepare) == []


@pytest.fixture
def moments(tmp_path):
    """A dataset whose latents are drawn from moments."""
    made = make_dataset(tmp_path / "moments", 40, shape=(4, 4, 5))
    column = dataclasses.replace(made.card.recipe.columns["latent"], content="moments")
    recipe = dataclasses.replace(made.card.recipe, columns={**made.card.recipe.columns, "latent": column})
    (made.path / CARD).write_bytes(dataclasses.replace(made.card, recipe=recipe).to_toml())
    assert Card.load(made.path).recipe.columns["latent"].content == "moments"
    return made.path


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("scale", ["raw", "scaled"])
def test_latents_are_drawn_from_moments_without_waiting(moments, resident, scale):
    def make():
        dataset = LatentDataset(moments, scale=scale)
        return dataset.to_device("cuda") if resident else dataset

    assert synchronizations(batches(make)) == []


@pytest.fixture
def encoded(tmp_path):
    """A dataset whose latents are encoded by the transform codec."""
    made = make_dataset(tmp_path / "floats", 40, kind="float32", shape=(4, 8, 8))
    facts = dataclasses.replace(made.card.latents["latent"], quantizer=Transform.calibrate(made.codes, bytes=200))
    columns = made.card.columns | {"latent": "ndarray:uint8:200"}
    card = dataclasses.replace(made.card, columns=columns, latents={"latent": facts})
    with mds.Writer(tmp_path / "encoded", columns) as writer:
        for index, row in enumerate(facts.quantizer.encode(made.codes)):
            writer.write({"latent": row, "key": str(index), "label": index, "caption": ""})
        writer.add_file(CARD, card.to_toml())
    return tmp_path / "encoded"


@pytest.mark.parametrize("scale", ["raw", "scaled"])
@pytest.mark.parametrize("resident", [False, True])
def test_latents_of_a_codec_that_begins_on_the_cpu_are_sent_without_waiting(encoded, monkeypatch, resident, scale):
    shape = (4, 4, 8, 8)
    if resident:  # its memory is not real here, and fake tensors are not for several threads
        parts = {"latent": torch.zeros(shape, dtype=torch.int16), "latent steps": torch.ones(4)}
        monkeypatch.setattr(ResidentDataset, "_numbers", lambda *_: parts)

    def make():
        dataset = LatentDataset(encoded, columns=["latent", "label"], scale=scale)
        return dataset.to_device("cuda") if resident else dataset

    def prepare():
        work = batches(make)()

        def checked():
            batch = work()
            assert batch.keys() == {"latent", "label", "valid"}
            assert (batch["latent"].shape, batch["latent"].dtype) == (shape, torch.float32)

        return checked

    assert synchronizations(prepare) == []


@pytest.mark.parametrize("indices", [[5, -1], np.array([5, 1])])
def test_a_batch_of_such_latents_in_memory_is_sent_without_waiting(encoded, monkeypatch, indices):
    monkeypatch.setattr(
        Transform, "numbers", lambda *_, **__: (np.zeros((2, 4, 8, 8), np.int16), np.ones(2, np.float32))
    )

    def prepare():
        resident = LatentDataset(encoded).to_device("cuda")
        return lambda: resident.batch(indices)

    assert synchronizations(prepare) == []


def test_batches_of_a_transform_are_sent_without_waiting(tmp_path):
    make_dataset(tmp_path / "out", 40)

    def transform(sample):
        return {"twice": sample["latent"] * 2, "label": sample["label"]}

    assert synchronizations(batches(lambda: LatentDataset(tmp_path / "out", transform=transform))) == []


@pytest.mark.parametrize("label_encoding", ["int", "str"])
@pytest.mark.parametrize("transform", [None, dict])
def test_every_tensor_of_a_pinned_batch_on_the_cpu_is_pinned(tmp_path, label_encoding, transform):
    made = make_dataset(tmp_path / "out", 40, label_encoding=label_encoding)
    dataset = LatentDataset(made.path, transform=transform)
    loader = dataset.loader(4, pin_memory=True, label_dropout=0.5)
    loader._pin = True  # as where CUDA is available
    batch = next(iter(loader))
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    assert tensors.keys() == {"latent", "label", "valid", "drop_label"}
    assert [name for name, value in tensors.items() if not is_pinned(value)] == []
    np.testing.assert_allclose(batch["latent"], made.values[:4], atol=2e-6)
    assert batch["label"].tolist() == made.labels[:4].tolist()
