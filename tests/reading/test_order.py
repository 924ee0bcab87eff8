"""The order of samples: each exactly once, for any number of ranks, from any position."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentq.reading.order import Order, bernoulli, permute, rank_slice, shares_of


@given(size=st.integers(1, 3000), seed=st.lists(st.integers(0, 2**63), min_size=1, max_size=3))
def test_a_permutation_has_each_index_once(size, seed):
    assert np.array_equal(np.sort(permute(np.arange(size), size, seed)), np.arange(size))


@given(size=st.integers(2**40, 2**61), start=st.integers(0, 2**39))
def test_a_huge_permutation_is_computed_for_a_few_positions(size, start):
    positions = np.arange(start, start + 100)
    indices = permute(positions, size, (1,))
    assert len(np.unique(indices)) == 100
    assert indices.min() >= 0
    assert indices.max() < size
    assert np.array_equal(permute(positions[::-1].copy(), size, (1,)), indices[::-1])


@pytest.mark.parametrize("size", [5, 64, 1000])
def test_over_many_seeds_each_position_takes_each_index_equally_often(size):
    positions = [0, size // 2, size - 1]
    seeds = 200 * 20
    seen = np.array([permute(np.array(positions), size, (seed,)) for seed in range(seeds)])
    cells = min(size, 20)
    for column in seen.T:
        counts = np.bincount(column * cells // size, minlength=cells)
        expected = np.bincount(np.arange(size) * cells // size, minlength=cells) * seeds / size
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < cells - 1 + 5 * np.sqrt(2 * (cells - 1))


def test_neighbors_do_not_stay_neighbors():
    indices = permute(np.arange(100_000), 100_000, (7,))
    steps = np.diff(indices)
    assert np.mean(np.abs(steps)) == pytest.approx(100_000 / 3, rel=0.02)
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.02


@given(
    shares=st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any),
    sizes=st.lists(st.integers(1, 60), min_size=5, max_size=5),
    shuffle=st.booleans(),
    seed=st.integers(0, 1000),
    epochs=st.integers(1, 4),
)
def test_a_mixture_takes_exact_shares_and_repeats_no_sample_before_all_others_came(
    shares, sizes, shuffle, seed, epochs
):
    sizes = sizes[: len(shares)]
    order = Order(tuple(sizes), tuple(shares), shuffle, seed)
    edges = np.cumsum([0, *sizes])
    taken = np.zeros(edges[-1], int)
    for epoch in range(epochs):
        indices = order.indices(epoch, np.arange(len(order)))
        which = np.searchsorted(edges, indices, side="right") - 1
        assert np.bincount(which, minlength=len(sizes)).tolist() == list(shares)
        for i, share in enumerate(shares):
            so_far = np.cumsum(which == i)
            assert np.abs(so_far - np.arange(1, len(order) + 1) * share / len(order)).max() < len(shares)
        taken += np.bincount(indices, minlength=edges[-1])
    for low, high, share, size in zip(edges[:-1], edges[1:], shares, sizes, strict=True):
        assert taken[low:high].min() == epochs * share // size
        assert taken[low:high].max() == -(-epochs * share // size)


@given(weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6), total=st.integers(1, 10**9))
def test_shares_sum_to_the_total_and_are_the_weights_to_within_one(weights, total):
    shares = shares_of(weights, total)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1 + total * 1e-12


@given(start=st.integers(0, 1000), count=st.integers(1, 100), world_size=st.integers(1, 130))
def test_ranks_share_a_batch_evenly_and_mark_repeated_samples(start, count, world_size):
    slices = [rank_slice(start, start + count, rank, world_size) for rank in range(world_size)]
    valid = np.concatenate([positions[valid] for positions, valid in slices])
    assert np.array_equal(np.sort(valid), np.arange(start, start + count))
    lengths = {len(positions) for positions, _ in slices}
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1
    assert all(valid.all() for _, valid in slices) or count < world_size
    assert all(start <= p < start + count for positions, _ in slices for p in positions)


def test_dropout_is_a_function_of_the_index_with_the_given_probability():
    indices = np.arange(100_000)
    drop = bernoulli(indices, 0.1, (3, 1))
    assert drop.mean() == pytest.approx(0.1, abs=0.005)
    assert np.array_equal(bernoulli(indices[::-1].copy(), 0.1, (3, 1)), drop[::-1])
    assert not np.array_equal(bernoulli(indices, 0.1, (3, 2)), drop)
    assert bernoulli(indices, 1.0, (3,)).all()
    assert not bernoulli(indices, 0.0, (3,)).any()
