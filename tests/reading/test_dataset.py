"""LatentDataset: samples and batches hold the values in the shards."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from latentq import LatentDataset, LatentMixture
from support.making import SCALING_FACTOR, make_dataset


def test_a_sample_holds_the_values_in_the_shards(reference):
    dataset = LatentDataset(reference.path)
    assert len(dataset) == 40
    assert dataset.card == reference.card
    for i in (0, 7, 39, -1, -40, np.int64(3), torch.tensor(5)):
        sample = dataset[i]
        assert list(sample) == ["latent", "key", "label", "caption"]
        assert sample["latent"].dtype == torch.float32
        np.testing.assert_allclose(sample["latent"], reference.values[i], atol=2e-6)
        assert sample["key"] == reference.keys[i]
        assert sample["label"] == reference.labels[i]
        assert type(sample["label"]) is int
        assert sample["caption"] == f"picture {range(40)[i]}"


@pytest.mark.parametrize("index", [40, -41, 10**12])
def test_an_index_out_of_range_is_an_index_error(reference, index):
    with pytest.raises(IndexError, match="out of range for 40 samples"):
        LatentDataset(reference.path)[index]


def test_an_index_that_is_not_an_integer_is_a_type_error(reference):
    with pytest.raises(TypeError):
        LatentDataset(reference.path)[1.5]


@pytest.mark.parametrize("indices", [[3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1])])
def test_several_indices_give_their_batch(reference, indices):
    batch = LatentDataset(reference.path)[indices]
    np.testing.assert_allclose(batch["latent"], reference.values[[3, 1]], atol=2e-6)
    assert batch["label"].tolist() == reference.labels[[3, 1]].tolist()
    assert LatentMixture([LatentDataset(reference.path)])[indices]["key"] == batch["key"]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("collated", [True, False])
def test_a_batch_sampler_can_replace_the_sampler(reference, workers, collated):
    dataset = LatentDataset(reference.path)
    sampler = BatchSampler(SequentialSampler(dataset), 7, drop_last=False)
    options = {"collate_fn": dataset.collate} if collated else {}
    batches = list(DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=workers, **options))
    assert [key for b in batches for key in b["key"]] == reference.keys
    np.testing.assert_allclose(torch.cat([b["latent"] for b in batches]), reference.values, atol=2e-6)


def test_a_loop_over_a_dataset_ends(reference):
    assert sum(1 for _ in LatentDataset(reference.path)) == 40


@pytest.mark.parametrize(
    "take", [lambda d: d[0], lambda d: d[[1, 2]], lambda d: d.batch([3]), lambda d: next(iter(d.loader(4)))]
)
def test_a_missing_column_is_a_key_error_that_names_the_columns(reference, take):
    for dataset in (LatentDataset(reference.path), LatentMixture([LatentDataset(reference.path)])):
        columns = take(dataset)
        with pytest.raises(KeyError, match="there is no column 'labels': there are latent, key, label, caption"):
            columns["labels"]
        assert columns.get("labels") is None
        assert "labels" not in columns
        for copied in (copy.copy(columns), copy.deepcopy(columns), pickle.loads(pickle.dumps(columns)), columns | {}):
            assert type(copied) is dict
            assert list(copied) == list(columns)


@pytest.mark.parametrize(
    "mask",
    [[True, False], [0, True], True, np.ones(40, bool), torch.ones(40, dtype=bool), [np.True_], [torch.tensor(True)]],
)
def test_a_mask_is_no_list_of_indices(reference, mask):
    for dataset in (LatentDataset(reference.path), LatentMixture([LatentDataset(reference.path)])):
        with pytest.raises(TypeError, match=r"integers?\b"):
            dataset[mask]
        with pytest.raises(TypeError, match=r"integers?\b"):
            dataset.batch([mask] if isinstance(mask, bool) else mask)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint64, np.int64])
def test_indices_may_be_integers_of_any_dtype(tmp_path, dtype):
    reference = make_dataset(tmp_path / "out", 300)
    dataset = LatentDataset(reference.path)
    assert dataset.batch(np.array([1, 2], dtype))["key"] == reference.keys[1:3]
    mixture = LatentMixture([dataset, dataset])
    assert [sample["key"] for sample in mixture.__getitems__(np.array([1, 2], dtype))] == reference.keys[1:3]
    if dtype == np.uint64:
        with pytest.raises(IndexError):
            dataset.batch(np.array([2**64 - 1], dtype))


def test_an_empty_batch_is_a_batch(reference):
    assert LatentDataset(reference.path).batch([])["latent"].shape == (0, 3, 4, 5)


@pytest.mark.parametrize("kind", ["affine", "codebook", "trellis", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", ["raw", "scaled", "normalized"])
@pytest.mark.parametrize("scaled", [False, True])
def test_latents_of_every_kind_are_read_in_every_scale(tmp_path, kind, scale, scaled):
    reference = make_dataset(tmp_path / "out", 12, kind=kind, scaled=scaled)
    latents = LatentDataset(reference.path, scale=scale).batch(range(12))["latent"].double().numpy()
    mean, std = reference.values.mean((0, 2, 3), keepdims=True), reference.values.std((0, 2, 3), keepdims=True)
    raw = reference.values / SCALING_FACTOR if scaled else reference.values
    expected = {"raw": raw, "scaled": raw * SCALING_FACTOR, "normalized": (reference.values - mean) / std}[scale]
    np.testing.assert_allclose(latents, expected, rtol=1e-6, atol=1e-5)


def test_a_channel_of_one_value_is_normalized_to_zero(tmp_path):
    reference = make_dataset(tmp_path / "out", 4, low=2.5)
    channel = LatentDataset(reference.path, scale="normalized").batch(range(4))["latent"][:, 0]
    assert (channel == 0).all()


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_packed_codes_are_read_as_codes_and_as_values(tmp_path, bits):
    reference = make_dataset(tmp_path / "out", 10, bits=bits)
    np.testing.assert_allclose(LatentDataset(reference.path).batch(range(10))["latent"], reference.values, atol=2e-6)
    codes = LatentDataset(reference.path, dtype=torch.uint8).batch(range(10))["latent"]
    assert codes.dtype == torch.uint8
    assert np.array_equal(codes, reference.codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_dtypes_are_the_float32_values_rounded(reference, dtype):
    full = LatentDataset(reference.path).batch(range(40))["latent"]
    half = LatentDataset(reference.path, dtype=dtype).batch(range(40))["latent"]
    assert torch.equal(half, full.to(dtype))


def test_a_float_column_has_no_codes(tmp_path):
    reference = make_dataset(tmp_path / "out", 2, kind="float16")
    with pytest.raises(ValueError, match="stored as float16"):
        LatentDataset(reference.path, dtype=torch.uint8)


def test_only_the_columns_asked_for_are_read(reference):
    dataset = LatentDataset(reference.path, columns=["label", "latent"])
    assert list(dataset[0]) == ["label", "latent"]
    assert list(LatentDataset(reference.path, columns=["key"])[0]) == ["key"]


def test_several_latent_columns_keep_their_names(tmp_path):
    reference = make_dataset(tmp_path / "out", 3, latents=("latent_256", "latent_256_flip"))
    assert list(LatentDataset(reference.path)[0]) == ["latent_256", "latent_256_flip", "key", "label", "caption"]


def test_a_single_latent_column_is_called_latent(tmp_path):
    reference = make_dataset(tmp_path / "out", 3, latents=("vae_output",))
    assert list(LatentDataset(reference.path)[0]) == ["latent", "key", "label", "caption"]
    assert list(LatentDataset(reference.path, columns=["label", "vae_output"])[0]) == ["label", "latent"]


def test_labels_stored_as_text_are_integers(tmp_path):
    reference = make_dataset(tmp_path / "out", 5, label_encoding="str")
    dataset = LatentDataset(reference.path)
    assert dataset[2]["label"] == reference.labels[2]
    assert dataset.batch(range(5))["label"].tolist() == reference.labels.tolist()


def test_a_transform_replaces_each_sample(reference):
    dataset = LatentDataset(reference.path, transform=_doubled)
    plain = LatentDataset(reference.path)
    assert torch.equal(dataset[3]["latent"], 2 * plain[3]["latent"])
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=dataset.collate)))
    assert torch.equal(batch["latent"], 2 * plain.batch(range(4))["latent"])


def _doubled(sample):
    return sample | {"latent": 2 * sample["latent"]}


def test_the_repr_names_path_count_and_shape(reference):
    text = repr(LatentDataset(reference.path))
    assert str(reference.path) in text
    assert "40 samples" in text
    assert "(3, 4, 5)" in text


def test_importing_latentq_does_not_import_torch():
    code = (
        "import latentq, sys; assert 'torch' not in sys.modules; latentq.LatentDataset; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sample_is_decoded_to_the_same_picture_in_every_scale(reference):
    pixels = {}
    for scale in ("raw", "scaled", "normalized"):
        toy = Toy()
        pixels[scale] = np.asarray(LatentDataset(reference.path, scale=scale).decode(3, autoencoder=toy))
        np.testing.assert_allclose(toy.seen[0], reference.values[3], atol=2e-6)
    assert pixels["raw"].shape == (4, 5, 3)
    assert np.array_equal(pixels["raw"], pixels["normalized"])


class Toy:
    pixel_range = (-3.0, 3.0)

    def decode(self, latents):
        self.seen = latents
        return latents
