"""LatentDataset: samples and batches hold the values in the shards, whichever way workers are started.

Over 500 lines: the tests read one dataset, the fixture `reference`.
"""

import copy
import itertools
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils import _pytree
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from latentq import FormatError, LatentDataset, LatentMixture, LatentqError, MismatchError, Recipe, RecipeError, mds
from latentq.quantizer import Quantizer
from latentq.reading import workers
from support.making import SCALING_FACTOR, make_dataset


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("made") / "out", 40, size_limit=1 << 11)


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


@pytest.mark.parametrize("indices", [[3, 1], (3, 1), np.array([3, 1])])
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


def test_workers_and_resident_batches_name_their_columns_too(reference):
    dataset = LatentDataset(reference.path, columns=["latent", "key"])
    (batch,) = DataLoader(dataset, batch_size=40, num_workers=1, collate_fn=dataset.collate)
    with pytest.raises(KeyError, match="there is no column 'label': there are latent, key"):
        batch["label"]
    with pytest.raises(KeyError, match="there is no column 'label': there are latent"):
        dataset.to_device("cpu")[0]["label"]


def test_pytorch_walks_the_tensors_of_a_sample(reference):
    doubled = _pytree.tree_map_only(torch.Tensor, lambda tensor: 2 * tensor, LatentDataset(reference.path)[3])
    np.testing.assert_allclose(doubled["latent"], 2 * reference.values[3], atol=4e-6)
    assert doubled["key"] == reference.keys[3]


@pytest.mark.parametrize(
    "mask", [[True, False], [0, True], True, np.ones(40, bool), [np.True_, np.False_], [torch.tensor(True)]]
)
def test_a_mask_is_no_list_of_indices(reference, mask):
    for dataset in (LatentDataset(reference.path), LatentMixture([LatentDataset(reference.path)])):
        with pytest.raises(TypeError, match=r"integers?\b"):
            dataset[mask]
        with pytest.raises(TypeError, match=r"integers?\b"):
            dataset.batch([mask] if isinstance(mask, bool) else mask)


def test_samples_can_be_pinned_as_torch_does_it(reference, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, _device=None: tensor.clone())  # there may be no GPU
    dataset = LatentDataset(reference.path)
    samples = dataset.__getitems__([1, 2, 5])
    pinned = pin_memory(samples)
    assert len(pinned) == 3
    assert [sample["key"] for sample in pinned] == [reference.keys[i] for i in (1, 2, 5)]
    assert torch.equal(dataset.collate(pinned)["latent"], dataset.batch([1, 2, 5])["latent"])


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


def test_collate_does_not_copy(reference):
    dataset = LatentDataset(reference.path)
    samples = dataset.__getitems__([1, 2])
    assert dataset.collate(samples)["latent"].data_ptr() == samples[0]["latent"].data_ptr()


def test_an_empty_batch_is_a_batch(reference):
    assert LatentDataset(reference.path).batch([])["latent"].shape == (0, 3, 4, 5)


@pytest.mark.parametrize("kind", ["affine", "codebook", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("scale", ["raw", "scaled", "normalized"])
@pytest.mark.parametrize("scaled", [False, True])
def test_every_kind_in_every_scale(tmp_path, kind, scale, scaled):
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


def test_a_label_that_is_not_a_number_is_named_in_the_error(tmp_path):
    with mds.Writer(tmp_path / "out", {"latent": "ndarray:uint8:1,2,2", "label": "str"}) as writer:
        writer.write({"latent": np.zeros((1, 2, 2), np.uint8), "label": "cat"})
    recipe = _recipe({"latent": _latent(), "label": {"from": "label", "encoding": "str"}})
    with pytest.raises(FormatError, match="'cat'"):
        LatentDataset(tmp_path / "out", recipe=recipe)[0]


def test_a_transform_replaces_each_sample(reference):
    dataset = LatentDataset(reference.path, transform=_doubled)
    plain = LatentDataset(reference.path)
    assert torch.equal(dataset[3]["latent"], 2 * plain[3]["latent"])
    batch = next(iter(DataLoader(dataset, batch_size=4, collate_fn=dataset.collate)))
    assert torch.equal(batch["latent"], 2 * plain.batch(range(4))["latent"])


def _doubled(sample):
    return sample | {"latent": 2 * sample["latent"]}


# LATENTQ_SWEEP=1 tries every combination; by default a few cover each choice once.
WORKERS = (
    list(itertools.product(["fork", "spawn", "forkserver"], [1, 2], [True, False], [True, False]))
    if os.environ.get("LATENTQ_SWEEP")
    else [("fork", 2, True, False), ("fork", 1, False, True), ("spawn", 2, True, True), ("forkserver", 1, True, False)]
)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(("method", "workers", "persistent", "pin"), WORKERS)
def test_workers_give_every_sample(reference, method, workers, persistent, pin):
    dataset = LatentDataset(reference.path)
    _ = dataset[0]  # opens files in the parent
    loader = DataLoader(
        dataset,
        batch_size=7,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=persistent,
        pin_memory=pin,
    )
    for _ in range(2):
        batches = list(loader)
        np.testing.assert_allclose(torch.cat([b["latent"] for b in batches]), reference.values, atol=2e-6)
        assert torch.cat([b["label"] for b in batches]).tolist() == reference.labels.tolist()
        assert [key for b in batches for key in b["key"]] == reference.keys


def test_a_worker_that_is_killed_is_an_error_and_no_hang(reference):
    # In a subprocess: torch raises from a signal handler, which would also hit the next test.
    done = subprocess.run([sys.executable, "-c", KILLED, reference.path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.search(r"RuntimeError: DataLoader worker .*(exited unexpectedly|killed by signal)", done.stderr)


KILLED = """
import os, signal, sys
from latentq import LatentDataset
from torch.utils.data import DataLoader

def killed_at_4(sample):
    if sample["key"] == "000004.png":  # the second worker's first: it has sent nothing that waits to be fetched from it
        os.kill(os.getpid(), signal.SIGKILL)
    return sample

if __name__ == "__main__":
    list(DataLoader(LatentDataset(sys.argv[1], transform=killed_at_4), batch_size=4, num_workers=2))
"""


@pytest.mark.parametrize("opened", [True, False])
def test_a_truncated_shard_is_an_error_that_names_it(tmp_path, opened):
    reference = make_dataset(tmp_path / "out", 40, size_limit=1 << 11)
    dataset = LatentDataset(reference.path)
    shard = sorted(reference.path.glob("*.mds"))[-1]
    if opened:
        _ = dataset[39]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    with pytest.raises((FormatError, OSError), match=shard.name):
        dataset.batch(range(40))
    with pytest.raises((FormatError, OSError), match=shard.name):
        list(dataset.loader(8))
    with pytest.raises((FormatError, OSError), match=shard.name):
        list(DataLoader(dataset, batch_size=8, num_workers=1))


def test_persistent_workers_survive_a_loop_left_early(reference):
    dataset = LatentDataset(reference.path)
    options = {"batch_size": 7, "num_workers": 1, "persistent_workers": True, "collate_fn": dataset.collate}
    loader = DataLoader(dataset, **options, drop_last=True)
    assert next(iter(loader))["key"] == reference.keys[:7]
    assert [key for b in loader for key in b["key"]] == reference.keys[:35]


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")
@pytest.mark.parametrize(("method", "workers", "persistent", "pin"), WORKERS)
def test_workers_give_the_same_with_collate(reference, method, workers, persistent, pin):
    dataset = LatentDataset(reference.path)
    loader = DataLoader(
        dataset,
        batch_size=7,
        num_workers=workers,
        multiprocessing_context=method,
        persistent_workers=persistent,
        pin_memory=pin,
        collate_fn=dataset.collate,
    )
    for _ in range(2):
        batches = list(loader)  # all are kept, so that no two may share memory
        assert all(isinstance(batch, dict) for batch in batches)
        np.testing.assert_allclose(torch.cat([b["latent"] for b in batches]), reference.values, atol=2e-6)
        assert torch.cat([b["label"] for b in batches]).tolist() == reference.labels.tolist()
        assert [key for b in batches for key in b["key"]] == reference.keys


def test_a_batch_changed_in_a_worker_arrives_changed(reference):
    def changed(samples):
        batch = dataset.collate(samples)
        batch["latent"] = 2 * batch["latent"]
        return {**batch, "count": len(batch["key"]), "again": copy.deepcopy(dataset.collate(samples))["label"]}

    dataset = LatentDataset(reference.path)
    batches = list(DataLoader(dataset, batch_size=7, num_workers=2, collate_fn=changed))
    np.testing.assert_allclose(torch.cat([b["latent"] for b in batches]), 2 * reference.values, atol=4e-6)
    assert sum(b["count"] for b in batches) == 40
    assert torch.cat([b["again"] for b in batches]).tolist() == reference.labels.tolist()


def test_a_batch_that_a_worker_sends_twice_is_an_error_and_no_hang(reference):
    dataset = LatentDataset(reference.path)
    kept = []

    def collate(samples):
        kept.append(dataset.collate(samples))
        return kept[0]

    batches = iter(DataLoader(dataset, batch_size=7, num_workers=1, collate_fn=collate, timeout=60))
    next(batches)
    with pytest.raises(RuntimeError, match="sent the same batch of latents twice"):
        next(batches)


def test_memory_shared_with_workers_is_reused_and_released(reference):
    dataset = LatentDataset(reference.path)
    options = {"batch_size": 2, "collate_fn": dataset.collate, "num_workers": 2}
    for _ in range(3):
        assert len(list(DataLoader(dataset, **options))) == 20
        assert len(workers._senders) <= 2 + len(multiprocessing.active_children())
        assert all(len(sender.blocks) <= 4 for sender in workers._senders.values())  # two prefetched, two in use


def test_a_dataset_pickles_small_and_reads_after_unpickling(reference):
    dataset = LatentDataset(reference.path)
    _ = dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 10_000
    assert torch.equal(pickle.loads(data)[5]["latent"], dataset[5]["latent"])


def test_many_processes_read_one_dataset(reference):
    dataset = LatentDataset(reference.path)
    _ = dataset[0]
    with multiprocessing.get_context("fork").Pool(4) as pool:
        labels = pool.map(_label, [(dataset, i) for i in range(40)])
    assert labels == reference.labels.tolist()


def _label(task):
    dataset, i = task
    return dataset[i]["label"]


def test_the_repr_names_path_count_and_shape(reference):
    text = repr(LatentDataset(reference.path))
    assert str(reference.path) in text
    assert "40 samples" in text
    assert "(3, 4, 5)" in text


def test_an_unfinished_dataset_is_refused_with_its_progress(tmp_path, reference):
    unfinished = replace(
        reference.card,
        counts=None,
        source=replace(reference.card.source, samples=41),
        recipe=replace(reference.card.recipe, unit_size=4),
    )
    (tmp_path / "latents.toml").write_bytes(unfinished.to_toml())
    for unit in range(3):
        (tmp_path / f"{unit:05d}").mkdir()
        (tmp_path / f"{unit:05d}" / "index.json").touch()
    (tmp_path / ".00003.abc").mkdir()
    (tmp_path / "00004").mkdir()
    with pytest.raises(LatentqError) as caught:
        LatentDataset(tmp_path)
    assert str(caught.value) == f"{tmp_path} is not finished: 3 of 11 units"


def test_a_complete_card_without_an_index_is_not_finished(tmp_path, reference):
    (tmp_path / "latents.toml").write_bytes(reference.card.to_toml())
    with pytest.raises(LatentqError, match="is not finished: 0 of 1 units"):
        LatentDataset(tmp_path)


def test_a_card_that_counts_other_samples_than_the_index_is_refused(tmp_path, reference):
    shutil.copytree(reference.path, tmp_path / "out")
    wrong = replace(reference.card, counts=replace(reference.card.counts, samples=39))
    (tmp_path / "out" / "latents.toml").write_bytes(wrong.to_toml())
    with pytest.raises(FormatError, match="39 samples, the index 40"):
        LatentDataset(tmp_path / "out")


def test_a_folder_that_is_no_dataset_is_a_typed_error_of_one_line(tmp_path, reference):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    shutil.copytree(reference.path, tmp_path / "broken")
    (tmp_path / "broken" / "latents.toml").write_text("format = ")
    shutil.copytree(reference.path, tmp_path / "bare")
    (tmp_path / "bare" / "latents.toml").unlink()
    for name, error, text in (
        ("missing", FileNotFoundError, "missing"),
        ("file", NotADirectoryError, "file"),
        ("empty", LatentqError, "holds no dataset"),
        ("broken", FormatError, "latents.toml: not a card"),
        ("bare", RecipeError, "say what made it"),
    ):
        with pytest.raises(error, match=text) as caught:
            LatentDataset(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_dataset_without_samples_is_refused(tmp_path):
    with mds.Writer(tmp_path / "out", {"latent": "ndarray:uint8:1,2,2"}):
        pass
    with pytest.raises(LatentqError, match="has no samples"):
        LatentDataset(tmp_path / "out", recipe=_recipe({"latent": _latent()}))


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"columns": ["latents"]}, ValueError, "no column 'latents': there are latent, key, label, caption"),
        ({"columns": "latent"}, TypeError, "list of names"),
        ({"columns": []}, ValueError, "at least one of latent, key, label, caption"),
        ({"dtype": torch.float64}, ValueError, "dtype must be one of"),
        ({"scale": "unit"}, ValueError, "scale must be one of"),
        ({"recipe": "imagenet.int8"}, ValueError, "has a card"),
    ],
)
def test_bad_arguments_are_refused_with_the_valid_choices(reference, options, error, text):
    with pytest.raises(error, match=text):
        LatentDataset(reference.path, **options)


# Folders without a card, as other tools write them.


def _latent(**fields):
    quantizer = {"kind": "uniform", "low": -1.0, "high": 1.0, "bits": 8, "rounding": "nearest"}
    return {"from": "latent", "quantizer": quantizer, "encoding": "ndarray:uint8:1,2,2"} | fields


def _recipe(columns):
    return Recipe.from_dict({"name": "test", "columns": columns})


@pytest.fixture(scope="module")
def imagenet_int8(tmp_path_factory):
    """A folder like the published imagenet.int8: a raw `uint8` column, labels as text, no card."""
    path = tmp_path_factory.mktemp("int8") / "out"
    codes = np.random.default_rng(0).integers(0, 256, (6, 4, 32, 32), np.uint8)
    columns = {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    with mds.Writer(path, columns, hashes=("sha1",)) as writer:
        for i in range(6):
            writer.write({"vae_output": codes[i], "label": str(100 + i), "label_as_text": f"class {i}"})
    return path, codes


def test_imagenet_int8_opens_with_its_recipe(imagenet_int8):
    path, codes = imagenet_int8
    dataset = LatentDataset(path, recipe="imagenet.int8")
    assert dataset.card is None
    batch = dataset.batch(range(6))
    assert batch["label"].tolist() == [100, 101, 102, 103, 104, 105]
    assert batch["label_text"] == [f"class {i}" for i in range(6)]
    np.testing.assert_allclose(batch["latent"], codes / 255.0 * 28 - 14, atol=2e-6)


def test_imagenet_int8_opens_with_the_range_of_its_page(imagenet_int8):
    path, codes = imagenet_int8
    page = Quantizer.uniform(-12.0, 12.0, channels=4)
    latents = LatentDataset(path, recipe="imagenet.int8", quantizer=page).batch(range(6))["latent"]
    np.testing.assert_allclose(latents, (codes / 255.0 - 0.5) * 24, atol=2e-6)


def _plain_folder(path, columns, count=6):
    """Writes a folder as `streaming.MDSWriter` does: no card, `columns` of random values next to `name` and `size`."""
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 256, (count, *shape), np.uint8) for name, shape in columns.items()}
    encodings = {name: f"ndarray:uint8:{','.join(map(str, shape))}" for name, shape in columns.items()}
    with mds.Writer(path, encodings | {"label": "int64", "name": "str", "size": "ndarray:float32:2"}) as writer:
        for i in range(count):
            sample = {"label": np.int64(7 * i), "name": f"picture {i}", "size": np.array([i, 0.5], np.float32)}
            writer.write({name: values[i] for name, values in rows.items()} | sample)
    return rows


def test_a_plain_folder_opens_with_a_quantizer_alone(tmp_path):
    rows = _plain_folder(tmp_path / "out", {"vae": (4, 3, 5), "mask": (1, 3, 5)})
    quantizer = Quantizer.uniform(-12.0, 12.0, channels=4)
    dataset = LatentDataset(tmp_path / "out", quantizer=quantizer)
    assert list(dataset[0]) == ["label", "mask", "name", "size", "latent"]
    assert type(dataset[2]["label"]) is int
    for batch in (
        dataset.batch(range(6)),
        *dataset.loader(6),
        *DataLoader(dataset, batch_size=6),
        *DataLoader(dataset, batch_size=6, num_workers=1, collate_fn=dataset.collate),
        LatentMixture([dataset]).batch(range(6)),
    ):
        np.testing.assert_allclose(batch["latent"], rows["vae"] / 255 * 24 - 12, atol=2e-6)
        np.testing.assert_array_equal(batch["mask"], rows["mask"])
        assert batch["label"].tolist() == [0, 7, 14, 21, 28, 35]
        assert batch["name"] == [f"picture {i}" for i in range(6)]
        assert torch.equal(batch["size"], torch.tensor([[i, 0.5] for i in range(6)]))
    assert list(LatentDataset(tmp_path / "out", quantizer=quantizer, columns=["vae", "label"])[0]) == [
        "latent",
        "label",
    ]
    assert torch.equal(dataset.to_device("cpu")[1]["latent"], dataset[1]["latent"])


def test_plain_columns_keep_their_names_if_one_name_is_taken(tmp_path):
    quantizer = Quantizer.uniform(-1.0, 1.0, channels=2)
    _plain_folder(tmp_path / "taken", {"vae": (2, 3, 5), "latent": (4, 3, 5)})
    taken = LatentDataset(tmp_path / "taken", quantizer=quantizer)
    assert list(taken[0]) == ["label", "latent", "name", "size", "vae"]
    assert list(taken.layout.latents) == ["vae"]
    _plain_folder(tmp_path / "two", {"low": (2, 3, 5), "high": (2, 6, 10)})
    assert list(LatentDataset(tmp_path / "two", quantizer=quantizer).layout.latents) == ["high", "low"]


def test_a_plain_folder_that_the_quantizer_does_not_fit_is_refused_with_its_columns(tmp_path):
    _plain_folder(tmp_path / "out", {"vae": (4, 3, 5)})
    with pytest.raises(
        RecipeError, match=r"no column ndarray:uint8:3,h,w that the quantizer fits, but .*, vae ndarray:uint8:4,3,5"
    ):
        LatentDataset(tmp_path / "out", quantizer=Quantizer.uniform(-1.0, 1.0, channels=3))


def test_a_quantizer_with_other_channels_is_refused(imagenet_int8):
    wrong = Quantizer.uniform(-12.0, 12.0, channels=3)
    with pytest.raises(MismatchError, match="4 channels, and its quantizer 3"):
        LatentDataset(imagenet_int8[0], recipe="imagenet.int8", quantizer=wrong)


@pytest.mark.parametrize("scale", ["scaled", "normalized"])
def test_other_scales_need_a_card(imagenet_int8, scale):
    with pytest.raises(LatentqError, match=r"needs the .* of a card"):
        LatentDataset(imagenet_int8[0], recipe="imagenet.int8", scale=scale)


def test_a_recipe_for_other_columns_is_refused(imagenet_int8):
    with pytest.raises(MismatchError, match=r"has a column 'latent', and the shards have .*vae_output"):
        LatentDataset(imagenet_int8[0], recipe=_recipe({"latent": _latent()}))


def test_a_recipe_without_shape_or_range_is_refused(imagenet_int8):
    for column, text in (
        (_latent(encoding="raw:uint8"), "does not say the shape"),
        (_latent(quantizer={"kind": "affine"}), "give a quantizer"),
    ):
        with pytest.raises(RecipeError, match=text):
            LatentDataset(imagenet_int8[0], recipe=_recipe({"vae_output": column}))


def test_values_of_another_length_than_the_recipes_are_an_error(imagenet_int8):
    recipe = _recipe({"vae_output": _latent(encoding="raw:uint8", shape=[4, 32, 31])})
    with pytest.raises((LatentqError, ValueError), match="4096"):
        LatentDataset(imagenet_int8[0], recipe=recipe)[0]


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


def test_without_a_card_decoding_needs_an_autoencoder(imagenet_int8):
    dataset = LatentDataset(imagenet_int8[0], recipe="imagenet.int8")
    with pytest.raises(LatentqError, match="to name an autoencoder: give one"):
        dataset.decode(0)
