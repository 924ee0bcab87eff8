"""Datasets with buckets: samples and batches of several shapes, from files, memory, workers and mixtures."""

import pickle
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentq import FormatError, LatentDataset, LatentMixture, MismatchError
from latentq.format.card import CARD, Card
from support.bucket_making import SHAPES, UNITS, Buckets, make_buckets
from support.making import make_dataset

COUNTS = tuple(np.sum(UNITS, 0).tolist())


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Buckets:
    return make_buckets(tmp_path_factory.mktemp("made") / "out")


@pytest.fixture(scope="module")
def dataset(made):
    return LatentDataset(made.path)


def assert_batch(batch, made, indices, atol=2e-6):
    """Check latents, labels, keys and shapes of a batch of one bucket."""
    assert batch["key"] == [f"{index:06d}.png" for index in indices]
    assert batch["label"].tolist() == made.labels[indices].tolist()
    assert batch["original_size"].tolist() == [original_size(made, index) for index in indices]
    assert tuple(batch["latent"].shape) == (len(indices), *SHAPES[made.buckets[indices[0]]])
    np.testing.assert_allclose(batch["latent"], [made.values[index] for index in indices], atol=atol)


def original_size(made, index):
    _, height, width = SHAPES[made.buckets[index]]
    return [8 * height + index, 8 * width]


def indices_of(batch):
    return [int(key[:6]) for key in batch["key"]]


def test_buckets_have_sizes_and_counts(made, dataset):
    assert [tuple(bucket) for bucket in dataset.buckets] == [
        (8 * height, 8 * width, count) for (_, height, width), count in zip(SHAPES, COUNTS, strict=True)
    ]
    assert dataset.buckets[1].samples == 9
    assert repr(dataset).startswith(
        f"LatentDataset({str(made.path)!r}, 41 samples, latent: (3, 1, 9) and 3 other shapes,"
    )
    assert Card.load(made.path).buckets == 4


@pytest.mark.parametrize(
    ("kind", "bits"), [("affine", 8), ("affine", 5), ("codebook", 8), ("codebook", 3), ("float16", 8)]
)
def test_every_sample_has_the_values_and_shape_of_its_bucket(tmp_path, kind, bits):
    made = make_buckets(tmp_path / "out", kind=kind, bits=bits)
    dataset = LatentDataset(made.path)
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample["label"] == made.labels[index]
        assert sample["caption"] == f"picture {index}"
        np.testing.assert_allclose(sample["latent"], made.values[index], atol=2e-6)
    assert dataset[-1]["key"] == "000040.png"


def test_a_batch_is_of_one_bucket(made, dataset):
    for bucket in range(1, 4):
        indices = made.of(bucket)[::-2]
        assert dataset.bucket_of(indices) == bucket
        assert_batch(dataset.batch(indices), made, indices)
        assert_batch(dataset[indices.tolist()], made, indices)
        stored = dataset.read(indices)
        assert stored["latent"].shape == (len(indices), int(np.prod(SHAPES[bucket])))
        assert_batch(dataset.decode_batch(stored, bucket=bucket), made, indices)
    mixed = [int(made.of(1)[0]), int(made.of(3)[0])]
    for read in (dataset.batch, dataset.read, dataset.__getitem__, dataset.bucket_of, dataset.decodable):
        with pytest.raises(ValueError, match=r"of the buckets 1 and 3: .*batch_sampler\(batch_size\)"):
            read(mixed)
    with pytest.raises(IndexError):
        dataset.batch([41])
    assert dataset.batch([])["latent"].shape == (0, *SHAPES[0])


def test_samples_of_several_buckets_are_a_list_for_ones_own_collate(made, dataset):
    indices = [40, 0, 7, 12, 39, 0, -41]
    samples = dataset.__getitems__(indices)
    assert [sample["label"] for sample in samples] == made.labels[indices].tolist()
    for index, sample in zip(indices, samples, strict=True):
        np.testing.assert_allclose(sample["latent"], made.values[index], atol=2e-6)
    with pytest.raises(ValueError, match=r"of the shapes .*batch_sampler=dataset.batch_sampler"):
        dataset.collate(samples)
    doubled = LatentDataset(made.path, transform=lambda sample: sample["label"] * 2)
    assert list(doubled.__getitems__(indices)) == (2 * made.labels[indices]).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8])
def test_dtypes(made, dtype):
    dataset = LatentDataset(made.path, dtype=dtype)
    for index in (0, 6, 40):
        latent = dataset[index]["latent"]
        assert latent.dtype == dtype
        expected = made.codes[index] if dtype == torch.uint8 else made.values[index]
        np.testing.assert_allclose(latent.float(), expected, atol=0.02)


@pytest.mark.parametrize("scale", ["scaled", "normalized"])
def test_scales_are_the_same_in_every_bucket(made, scale):
    dataset = LatentDataset(made.path, scale=scale)
    statistics = made.card.latents["latent"].statistics
    for index in (0, 6, 40):
        values = made.values[index]
        if scale == "scaled":
            expected = values * 0.25
        else:
            mean, std = (np.array(part)[:, None, None] for part in (statistics.mean, statistics.std))
            expected = (values - mean) / std
        np.testing.assert_allclose(dataset[index]["latent"], expected, atol=1e-5)


def test_tokens_and_moments(tmp_path):
    made = make_buckets(tmp_path / "tokens", tokens=True)
    dataset = LatentDataset(made.path, columns=["tokens", "latent"])
    assert all(torch.equal(dataset[i]["tokens"], torch.from_numpy(made.tokens[i].astype(np.int64))) for i in (0, 6, 40))
    assert {tuple(batch["tokens"].shape[1:]) for batch in dataset.loader(3)} == {shape[1:] for shape in SHAPES[1:]}
    shapes = tuple((4, *shape[1:]) for shape in SHAPES)
    moments = LatentDataset(make_buckets(tmp_path / "moments", shapes, moments=True).path)
    first, second = (list(moments.loader(4, shuffle=True, threads=threads)) for threads in (1, 3))
    assert all(torch.equal(a["latent"], b["latent"]) for a, b in zip(first, second, strict=True))
    other = {
        key: latent for batch in moments.loader(7) for key, latent in zip(batch["key"], batch["latent"], strict=True)
    }
    for batch in first:  # the noise is a function of the sample
        assert all(torch.equal(latent, other[key]) for key, latent in zip(batch["key"], batch["latent"], strict=True))


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True, "seed": 3}, {"drop_last": True}, {"shuffle": True, "threads": 1}]
)
def test_a_loaders_batches_are_those_of_the_batch_sampler(made, resident, options):
    dataset = LatentDataset(made.path, dtype=torch.float32)
    source = dataset.to_device("cpu") if resident else dataset
    loader = source.loader(4, **options)
    options = {key: value for key, value in options.items() if key != "threads"}
    sampler = source.batch_sampler(4, **options)
    for _ in range(2):
        expected = list(sampler)
        batches = list(loader)
        assert len(batches) == len(expected) == len(loader) == len(sampler)
        for batch, indices in zip(batches, expected, strict=True):
            assert batch["valid"].all()
            if resident:
                assert batch["label"].tolist() == made.labels[indices].tolist()
                assert batch["original_size"].tolist() == [original_size(made, index) for index in indices]
                np.testing.assert_allclose(batch["latent"], [made.values[i] for i in indices], atol=2e-6)
            else:
                assert_batch(batch, made, indices)
        seen = list(chain.from_iterable(expected))
        assert len(set(seen)) == len(seen) == (41 if "drop_last" not in options else 8 + 20 + 8)
        assert loader.state_dict() == sampler.state_dict()


def test_a_resident_dataset_takes_the_memory_of_its_buckets(made, dataset):
    resident = dataset.to_device("cpu")
    nbytes = sum(column.nbytes for columns in resident.bucket_columns for column in columns.values())
    assert nbytes == dataset.resident_bytes == 9 * (36 + 16) + 22 * (48 + 16) + 10 * (36 + 16)
    np.testing.assert_allclose(resident[12]["latent"], made.values[12], atol=2e-6)
    indices = made.of(2)[[3, 0, 11]]
    batch = resident.batch(torch.from_numpy(indices))
    np.testing.assert_allclose(batch["latent"], [made.values[index] for index in indices], atol=2e-6)
    with pytest.raises(ValueError, match="of the buckets 1 and 2"):
        resident.batch([0, 5])


def test_a_resident_dataset_on_another_device_decodes_rows_of_its_bucket(made, monkeypatch):
    """The code path of a GPU: indices go to the device, and each bucket's rows are selected and decoded there."""
    from latentq.reading import resident as module

    dataset = LatentDataset(made.path)
    resident = dataset.to_device("cpu")

    class Device:
        type = "other"

    monkeypatch.setattr(resident, "device", Device())
    monkeypatch.setattr(module, "send", lambda tensor, _: tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *_, **__: self)
    indices = made.of(3)[[4, 1]]
    read = resident.read(indices)
    assert read["latent"].tolist() == [4, 1]
    np.testing.assert_allclose(
        resident.decode_batch(read, bucket=3)["latent"], [made.values[index] for index in indices], atol=2e-6
    )
    np.testing.assert_allclose(resident.batch(indices)["latent"], [made.values[index] for index in indices], atol=2e-6)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers(made, dataset, context):
    sampler = dataset.batch_sampler(4, shuffle=True, seed=1)
    expected = list(dataset.batch_sampler(4, shuffle=True, seed=1))
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=dataset.collate,
        num_workers=1 if context == "spawn" else 2,
        multiprocessing_context=context,
    )
    for batch, indices in zip(loader, expected, strict=True):
        assert_batch(batch, made, indices)
    if context == "fork":  # samples of several buckets, and torch's own collate
        own = DataLoader(dataset, batch_size=10, shuffle=True, collate_fn=list, num_workers=1)
        for samples in own:
            for sample in samples:
                np.testing.assert_allclose(sample["latent"], made.values[int(sample["key"][:6])], atol=2e-6)
        plain = DataLoader(dataset, batch_sampler=dataset.batch_sampler(4, shuffle=True, seed=1), num_workers=1)
        for batch, indices in zip(plain, expected, strict=True):
            assert_batch(batch, made, indices)


def test_workers_of_a_loader_share_blocks_between_buckets_of_the_same_size(made, dataset):
    """Batches of two buckets have the same bytes and so the same block of memory, but not the same shape."""
    batches = [made.of(bucket)[:4].tolist() for bucket in (1, 3, 1, 3, 3, 1)]
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=dataset.collate, num_workers=1)
    for _ in range(2):
        for batch, indices in zip(loader, batches, strict=True):
            assert_batch(batch, made, indices)


def test_an_interrupted_loader_resumes_on_other_ranks(made, dataset):
    loaders = [dataset.loader(2, shuffle=True, rank=rank, world_size=2) for rank in range(2)]
    seen = []
    for loader in loaders:
        batches = iter(loader)
        for _ in range(4):
            seen += indices_of(next(batches))
        batches.close()
    state = loaders[0].state_dict()
    assert loaders[1].state_dict() == state
    rest = dataset.loader(5, shuffle=True)
    rest.load_state_dict(state)
    seen += [index for batch in rest for index in indices_of(batch)]
    assert sorted(seen) == list(range(41))


def test_states_of_loaders_with_and_without_buckets_are_told_apart(dataset, tmp_path):
    plain = LatentDataset(make_dataset(tmp_path / "plain").path)
    for ours, theirs in ((dataset, plain), (plain, dataset)):
        with pytest.raises(ValueError, match="one of the two datasets has buckets"):
            ours.loader(4).load_state_dict(theirs.loader(4).state_dict())


def test_dropouts_are_functions_of_the_sample(dataset):
    def masks(batch_size):
        loader = dataset.loader(batch_size, shuffle=True, label_dropout=0.4)
        return {
            key: bool(drop) for batch in loader for key, drop in zip(batch["key"], batch["drop_label"], strict=True)
        }

    assert masks(3) == masks(11)
    assert 0 < sum(masks(3).values()) < 41


def test_a_mixture_joins_buckets_of_equal_shapes(made, tmp_path):
    shapes = (SHAPES[1], (3, 5, 5))
    other = make_buckets(tmp_path / "other", shapes, ((6, 11),), seed=1, merged=False)
    square = make_dataset(tmp_path / "square", 10, shape=SHAPES[2])
    columns = ["latent", "key", "label", "caption"]
    mixture = LatentMixture([LatentDataset(each.path, columns=columns) for each in (made, other, square)])
    assert [bucket[2] for bucket in mixture.buckets] == [0, 9 + 6, 22 + 10, 10, 11]
    assert mixture.buckets[4][:2] == (40, 40)
    values = [*made.values, *other.values, *square.values]
    labels = np.concatenate([made.labels, other.labels, square.labels])
    for source in (mixture.loader(4, shuffle=True), mixture.loader(3)):
        seen, shapes_seen = [], set()
        for batch, indices in zip(source, _sampled(mixture, source), strict=True):
            assert batch["label"].tolist() == labels[indices].tolist()
            np.testing.assert_allclose(batch["latent"], [values[index] for index in indices], atol=2e-6)
            shapes_seen.add(tuple(batch["latent"].shape[1:]))
            seen += indices
        assert sorted(seen) == list(range(len(values)))
        assert shapes_seen == {*SHAPES[1:], (3, 5, 5)}
    np.testing.assert_allclose(mixture[58]["latent"], values[58], atol=2e-6)
    loader = DataLoader(mixture, batch_sampler=mixture.batch_sampler(5), collate_fn=mixture.collate, num_workers=1)
    for batch, indices in zip(loader, mixture.batch_sampler(5), strict=True):
        np.testing.assert_allclose(batch["latent"], [values[index] for index in indices], atol=2e-6)


def test_a_mixture_without_latents_reads_every_bucket(made, tmp_path):
    """Without latents all buckets have the same shapes; those of one dataset stay apart all the same."""
    other = make_buckets(tmp_path / "other", SHAPES[1:3], ((3, 8),), seed=1)
    mixture = LatentMixture([LatentDataset(path, columns=["label"]) for path in (made.path, other.path)])
    assert [bucket.samples for bucket in mixture.buckets] == [0 + 3, 9 + 8, 22, 10]
    labels = [label for batch in mixture.loader(4, shuffle=True) for label in batch["label"].tolist()]
    assert sorted(labels) == sorted(np.concatenate([made.labels, other.labels]).tolist())


def _sampled(source, loader):
    return list(source.batch_sampler(loader.batch_size, shuffle=loader.order.shuffle, seed=loader.order.seed))


def test_a_weighted_mixture_takes_exact_shares_and_repeats_nothing_too_early(made, dataset, tmp_path):
    other = make_buckets(tmp_path / "other", (SHAPES[1], (3, 5, 5)), ((6, 11),), seed=1, merged=False)
    mixture = LatentMixture([dataset, LatentDataset(other.path)], weights=[1, 3])
    sampler = mixture.batch_sampler(4, shuffle=True)
    taken = Counter()
    for epoch in range(1, 4):
        seen = list(chain.from_iterable(sampler))
        assert len(seen) == 58
        assert sum(index >= 41 for index in seen) == mixture.shares[1] in (43, 44)
        taken.update(seen)
        for bucket in range(mixture.table.count):
            for low, high in ((0, 41), (41, 58)):
                of = [
                    i for i in mixture.table.indices(bucket, np.arange(mixture.table.counts[bucket])) if low <= i < high
                ]
                assert max((taken[i] for i in of), default=0) - min((taken[i] for i in of), default=0) <= 1, epoch


def test_a_mixture_of_buckets_that_disagree_otherwise_is_refused(made, dataset, tmp_path):
    for change, message in [
        ({"low": -4.0}, "quantizer of 'latent'"),
        ({"weights": "sha256:2"}, "autoencoder"),
        ({"shapes": ((4, 2, 2), (4, 3, 3)), "units": ((3, 3),)}, "channels of 'latent' 4"),
    ]:
        name = str(len(list(tmp_path.iterdir())))
        other = LatentDataset(make_buckets(tmp_path / name, **change).path)
        with pytest.raises(MismatchError, match=message):
            LatentMixture([dataset, other])


def test_a_dataset_of_one_bucket_is_read_as_one_without(tmp_path):
    made = make_buckets(tmp_path / "one", SHAPES[2:3], ((7,), (9,)))
    plain = make_dataset(tmp_path / "plain", 16, shape=SHAPES[2])
    loaders = [LatentDataset(path).loader(3, shuffle=True) for path in (made.path, plain.path)]
    assert len(LatentDataset(made.path).buckets) == 1
    for mine, theirs in zip(*loaders, strict=True):
        assert mine["key"] == theirs["key"]
    assert loaders[0].state_dict() == loaders[1].state_dict()


def test_it_pickles(made, dataset):
    again = pickle.loads(pickle.dumps(dataset))
    assert_batch(again.batch(made.of(3)), made, made.of(3))


def test_shards_that_do_not_belong_to_the_cards_buckets_are_refused(tmp_path):
    made = make_buckets(tmp_path / "out")
    good = (made.path / "index.json").read_text()
    for old, new, message in [
        ("shard.003.", "shard.004.", r"there is shard.004.\*.mds, and the card has the buckets 000 to 003"),
        ("shard.003.", "shard.x.", r"there is shard.x.\*.mds"),
        ("shard.003.", "shard.", "a shard without a bucket in its name"),
        ("shard.003.", "shard.001.", "the card counts"),
    ]:
        (made.path / "index.json").write_text(good.replace(old, new))
        with pytest.raises(FormatError, match=message):
            LatentDataset(made.path)
    (made.path / "index.json").write_text(good)
    card = Card.load(made.path).to_dict()
    card["counts"]["buckets"] = [0, 10, 21, 10]
    (made.path / CARD).write_bytes(Card.from_dict(card).to_toml())
    with pytest.raises(FormatError, match="the card counts"):
        LatentDataset(made.path)
