"""Shuffling within windows of shards: a permutation that reads few shards at a time and resumes anywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq import LatentDataset, LatentMixture
from latentq.reading.order import Order, permute
from latentq.reading.windows import ShardRuns, Window
from support.bucket_making import make_buckets
from support.making import make_dataset


def runs_of(lengths):
    lengths = np.array(lengths, np.int64)
    return ShardRuns(np.cumsum(lengths) - lengths, lengths)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    window=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_every_sample_comes_once_and_a_window_has_the_samples_of_its_shards(lengths, window, seed, epoch):
    size, runs = sum(lengths), runs_of(lengths)
    order = Order((size,), (size,), Window(window), seed, runs=(runs,))
    samples = order.indices(epoch, np.arange(size))
    assert sorted(samples) == list(range(size))
    shards = np.searchsorted(runs.starts, samples, side="right") - 1
    begin = 0
    while begin < size:
        here = list(dict.fromkeys(shards[begin:].tolist()))
        # The window that begins here ends with the last sample of the shards that are in it.
        for end in range(begin + 1, size + 1):
            inside = set(shards[begin:end].tolist())
            if len(inside) == min(window, len(here)) and sum(lengths[shard] for shard in inside) == end - begin:
                break
        else:
            raise AssertionError(f"no window of {window} shards begins at {begin}")
        begin = end
    one = np.random.default_rng(seed).integers(0, size, 5)
    assert order.indices(epoch, one).tolist() == samples[one].tolist()


def test_order_differs_by_seed_and_epoch_and_reaches_every_place():
    runs = runs_of([10] * 40)
    orders = {
        (seed, epoch): Order((400,), (400,), Window(4), seed, runs=(runs,)).indices(epoch, np.arange(400)).tolist()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len({tuple(order) for order in orders.values()}) == 9
    firsts = [
        Order((400,), (400,), Window(4), seed, runs=(runs,)).indices(0, np.zeros(1, np.int64))[0] for seed in range(300)
    ]
    assert len(set(firsts)) > 180  # of 400: 211 are expected
    places = np.bincount(np.array(firsts) % 10, minlength=10)
    assert places.min() > 10


def test_window_of_all_shards_is_one_permutation_of_the_samples():
    runs = runs_of([3, 4, 5])
    whole = Order((12,), (12,), Window(3), 7, runs=(runs,)).indices(2, np.arange(12))
    # The shards are permuted, then the positions.
    order = permute(np.arange(3), 3, (7, 0, 2, 0))
    by_shard = np.concatenate([np.arange(12)[runs.starts[s] : runs.starts[s] + runs.lengths[s]] for s in order])
    assert whole.tolist() == by_shard[permute(np.arange(12), 12, (7, 0, 2, 1, 0))].tolist()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("made") / "out", 60, size_limit=1 << 9)


def keys(loader):
    return [key for batch in loader for key, valid in zip(batch["key"], batch["valid"], strict=True) if valid]


def test_loader_is_resumed_anywhere_on_any_number_of_ranks(made):
    dataset = LatentDataset(made.path)
    options = {"shuffle": "window", "window": 3, "seed": 5}
    whole = keys(dataset.loader(4, **options))
    assert sorted(whole) == made.keys
    assert whole != keys(dataset.loader(4, shuffle=True, seed=5))
    for taken in (1, 7, 14):
        loader = dataset.loader(4, **options)
        batches = iter(loader)
        begun = [key for _ in range(taken) for key in next(batches)["key"]]
        ranks = [dataset.loader(2, **options, rank=rank, world_size=3) for rank in range(3)]
        for rank in ranks:
            rank.load_state_dict(loader.state_dict())
        steps = zip(*ranks, strict=True)
        rest = [key for step in steps for key in keys(step)]
        assert begun + rest == whole


def test_states_of_other_windows_are_refused(made):
    dataset = LatentDataset(made.path)
    loader = dataset.loader(4, shuffle="window", window=3)
    for other in ({"shuffle": True}, {"shuffle": "window", "window": 4}, {}):
        with pytest.raises(ValueError, match=r"a loader with shuffle \['window', 3\]"):
            dataset.loader(4, **other).load_state_dict(loader.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"shuffle": "windows"}, "'window', not 'windows'"), ({"shuffle": "window", "window": 0}, "at least 1 shard")],
)
def test_windows_that_are_none(made, options, message):
    for make in (LatentDataset(made.path).loader, LatentDataset(made.path).batch_sampler):
        with pytest.raises(ValueError, match=message):
            make(4, **options)


def test_resident_datasets_have_no_windows(made):
    with pytest.raises(ValueError, match="shuffle=True shuffles this one as a whole"):
        LatentDataset(made.path).to_device("cpu").loader(4, shuffle="window")


def test_buckets_and_mixtures_have_windows(tmp_path, made):
    buckets = make_buckets(tmp_path / "buckets")
    dataset = LatentDataset(buckets.path)
    assert sorted(keys(dataset.loader(4, shuffle="window", window=2))) == [f"{n:06d}.png" for n in range(len(buckets))]
    other = make_dataset(tmp_path / "other", 20, size_limit=1 << 9, seed=1)
    mixture = LatentMixture([LatentDataset(made.path), LatentDataset(other.path)])
    assert sorted(keys(mixture.loader(4, shuffle="window", window=2))) == sorted(made.keys + other.keys)
    sampler = mixture.batch_sampler(4, shuffle="window", window=2, seed=3)
    of_loader = keys(mixture.loader(4, shuffle="window", window=2, seed=3))
    assert [key for batch in sampler for key in mixture.batch(batch)["key"]] == of_loader
