"""The order of datasets with buckets: each sample once, one bucket for all ranks at a step, resumed at any step."""

import hashlib
import json
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentq.reading.buckets import BucketTable
from latentq.reading.order import BucketOrder, Order
from latentq.reading.sampler import LatentBatchSampler
from latentq.reading.steps import Schedule, Steps


@dataclass
class Case:
    """A dataset of buckets, whose samples are numbered, and how it is read."""

    counts: list[int]
    runs: list[int]
    batch_size: int
    world_size: int
    shuffle: bool
    drop_last: bool
    seed: int

    @property
    def table(self):
        """Runs of one bucket after the other, as units of a few samples each leave them."""
        left, starts, which, size = list(self.counts), [0], [], 0
        while any(left):
            for bucket, run in enumerate(self.runs):
                if count := min(left[bucket], run):
                    size += count
                    left[bucket] -= count
                    which.append(bucket)
                    starts.append(size)
        return BucketTable(np.array(starts[:-1], np.int64), np.array(which, np.int32), size, len(self.counts))

    def order(self, *, shuffle=None, seed=None):
        shuffle, seed = self.shuffle if shuffle is None else shuffle, self.seed if seed is None else seed
        sizes = [(count,) for count in self.counts]
        return BucketOrder.of(sizes, sizes, shuffle, seed, self.table)

    def steps(self, rank=0, **changes):
        options = {"drop_last": self.drop_last, "world_size": self.world_size, "batch_size": self.batch_size} | changes
        return Steps(self.order(), options.pop("batch_size"), rank=rank, **options)

    @property
    def whole(self):
        return self.batch_size * self.world_size


@st.composite
def cases(draw, drop_last=None):
    counts = draw(st.lists(st.integers(0, 70), min_size=2, max_size=7).filter(any))
    return Case(
        counts,
        draw(st.lists(st.integers(1, 30), min_size=len(counts), max_size=len(counts))),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 5)),
        draw(st.booleans()),
        draw(st.booleans()) if drop_last is None else drop_last,
        draw(st.integers(0, 3)),
    )


def epoch_of(steps):
    """Go through an epoch as a loader does."""
    epoch_steps = steps._begin()
    epoch = steps.epoch
    for step in epoch_steps:
        steps._position = step.cursor
        yield step
    steps._end(epoch)


def described(steps):
    return [(step.bucket, step.indices.tolist(), step.masks["valid"].tolist()) for step in steps]


@settings(max_examples=30, deadline=None)
@given(case=cases(), epoch=st.integers(0, 3))
def test_each_sample_comes_once_and_all_ranks_are_in_one_bucket_at_a_step(case, epoch):
    ranks = [case.steps(rank) for rank in range(case.world_size)]
    for steps in ranks:
        steps.set_epoch(epoch)
    table = case.table
    epochs = [described(epoch_of(steps)) for steps in ranks]
    assert {len(steps) for steps in epochs} == {len(ranks[0])}
    seen = []
    for step in zip(*epochs, strict=True):
        (bucket,) = {bucket for bucket, _, _ in step}
        lengths = {len(indices) for _, indices, _ in step}
        assert max(lengths) <= case.batch_size
        assert max(lengths) - min(lengths) <= 1
        for _, indices, valid in step:
            assert table.of(np.array(indices)).tolist() == [bucket] * len(indices)
            seen += [index for index, is_valid in zip(indices, valid, strict=True) if is_valid]
    assert len(seen) == len(set(seen))
    given = np.bincount(table.of(np.array(seen, np.int64)), minlength=len(case.counts)).tolist()
    assert given == [count // case.whole * case.whole if case.drop_last else count for count in case.counts]


@settings(max_examples=30, deadline=None)
@given(case=cases(), stop=st.integers(0, 200), rank=st.integers(0, 4))
def test_a_resumed_epoch_continues_as_if_it_had_not_stopped(case, stop, rank):
    rank %= case.world_size
    undisturbed = case.steps(rank)
    expected = [described(epoch_of(undisturbed)) for _ in range(3)]
    stop %= len(undisturbed) + 1
    first = case.steps(rank)
    before = described(islice(epoch_of(first), stop))
    state = json.loads(json.dumps(first.state_dict()))
    assert state["epoch"] == 0
    resumed = case.steps(rank)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(0)  # as a training loop does, which must not undo the state
    assert [before + described(epoch_of(resumed)), *(described(epoch_of(resumed)) for _ in range(2))] == expected


@settings(max_examples=30, deadline=None)
@given(
    case=cases(),
    stops=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12), st.integers(1, 5), st.booleans()), max_size=4),
    epoch=st.integers(0, 2),
)
def test_other_batches_and_ranks_take_what_is_left_and_repeat_nothing(case, stops, epoch):
    """Stop and resume several times, each time with another batch size, number of ranks and `drop_last`."""
    seen, state = [], None
    last = (10**6, case.batch_size, case.world_size, False)
    for stop, batch_size, world_size, drop_last in [*stops, last]:
        ranks = [
            case.steps(rank, batch_size=batch_size, world_size=world_size, drop_last=drop_last)
            for rank in range(world_size)
        ]
        states = []
        for steps in ranks:
            if state is None:
                steps.set_epoch(epoch)
            else:
                steps.load_state_dict(state)
            for _, indices, valid in described(islice(epoch_of(steps), stop)):
                seen += [index for index, is_valid in zip(indices, valid, strict=True) if is_valid]
            states.append(steps.state_dict())
        assert all(each == states[0] for each in states)
        state = json.loads(json.dumps(states[0]))
        is_over = state["epoch"] != epoch or 0 < state["step"] == len(ranks[0]._schedule(epoch, tuple(state["start"])))
        if is_over:
            break  # the epoch is over, perhaps without the samples that drop_last skips
    assert len(seen) == len(set(seen))
    if not any(drop_last for *_, drop_last in stops):
        assert sorted(seen) == list(range(sum(case.counts)))


@settings(max_examples=30, deadline=None)
@given(case=cases(), epoch=st.integers(0, 3))
def test_every_stretch_of_steps_has_each_buckets_share(case, epoch):
    steps = case.steps()
    steps.set_epoch(epoch)
    buckets = np.array([step.bucket for step in epoch_of(steps)], int)
    counts = np.bincount(buckets, minlength=len(case.counts))
    for bucket, count in enumerate(counts):
        so_far = np.cumsum(buckets == bucket)
        even = np.arange(1, len(buckets) + 1) * count / max(len(buckets), 1)
        assert np.abs(so_far - even).max(initial=0) < len(case.counts)


def steps_of(schedule, numbers):
    """The bucket, start and end of each step."""
    steps = [None] * len(numbers)
    for bucket, slots, starts, ends in schedule.turns(numbers):
        for slot, start, end in zip(slots.tolist(), starts.tolist(), ends.tolist(), strict=True):
            assert steps[slot] is None
            steps[slot] = [bucket, start, end]
    return steps


@settings(max_examples=30, deadline=None)
@given(
    left=st.lists(st.integers(0, 2**28), min_size=1, max_size=9).filter(any),
    batch=st.integers(1, 2**20),
    drop_last=st.booleans(),
    seeds=st.none() | st.tuples(st.integers(0, 5), st.integers(0, 5)),
    at=st.floats(0, 1, exclude_max=True),
)
def test_a_step_is_computed_on_its_own(left, batch, drop_last, seeds, at):
    schedule = Schedule(tuple(left), batch, drop_last, seeds)
    assert schedule.given(0) == (0,) * len(left)
    if not len(schedule):
        return
    first = int(at * len(schedule))
    numbers = np.arange(first, min(first + 50, len(schedule)))
    together = steps_of(schedule, numbers)
    given = list(schedule.given(first))
    for number, (bucket, start, end) in zip(numbers, together, strict=True):
        assert steps_of(schedule, np.array([number])) == [[bucket, start, end]]
        assert start == given[bucket]
        assert end == min(start + batch, left[bucket])
        given[bucket] = end
    if numbers[-1] + 1 < len(schedule):
        assert schedule.given(int(numbers[-1]) + 1) == tuple(given)
    assert schedule.given(len(schedule)) == tuple(left)


def test_a_bucket_of_one_step_comes_at_another_time_in_each_epoch():
    case = Case([1000, 3, 3, 900], [7, 1, 1, 7], 5, 2, True, False, 0)
    steps = case.steps()
    where = []
    for _ in range(30):
        buckets = [step.bucket for step in epoch_of(steps)]
        where.append((buckets.index(1), buckets.index(2)))
    assert len({first for first, _ in where}) > 20
    assert np.abs(np.subtract(*np.transpose(where))).mean() > len(steps) / 6
    unshuffled = Case(**vars(case) | {"shuffle": False}).steps()
    assert described(epoch_of(unshuffled)) == described(epoch_of(unshuffled))


def test_buckets_have_permutations_of_their_own():
    order = Case([50, 50], [50, 50], 1, 1, True, False, 0).order()
    first, second = (order.in_bucket(bucket, 0, np.arange(50)) - 50 * bucket for bucket in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


# Two epochs of a rank, as they must be in every process and version: states of old loaders depend on it.
GOLDEN_BUCKETS = "f0b34af09eae422e467470a9deaa1d4fca484e9e92591e928bd92f444666ea9e"


def test_the_order_is_a_function_of_its_arguments_alone():
    steps = Case([70, 0, 33, 5], [9, 9, 9, 9], 4, 3, True, False, 7).steps(1)
    epochs = [described(epoch_of(steps)) for _ in range(2)]
    assert hashlib.sha256(json.dumps(epochs).encode()).hexdigest() == GOLDEN_BUCKETS


@settings(max_examples=30, deadline=None)
@given(case=cases(), epoch=st.integers(0, 2), rank=st.integers(0, 4), stop=st.integers(0, 60))
def test_a_batch_sampler_gives_the_same_batches_and_states(case, epoch, rank, stop):
    rank %= case.world_size
    sampler = LatentBatchSampler(
        case.order, case.batch_size, rank=rank, world_size=case.world_size,
        **{name: getattr(case, name) for name in ("shuffle", "seed", "drop_last")},
    )  # fmt: skip
    steps = case.steps(rank)
    for each in (sampler, steps):
        each.set_epoch(epoch)
    assert len(sampler) == len(steps)
    undisturbed = case.steps(rank)
    undisturbed.set_epoch(epoch)
    expected = [step.indices.tolist() for step in epoch_of(undisturbed)]
    assert list(sampler) == expected
    assert sampler.epoch == epoch + 1
    assert sampler.state_dict(len(expected))["epoch"] == epoch
    stop %= len(expected) + 1
    list(islice(epoch_of(steps), stop))
    state = sampler.state_dict(stop)  # of the iteration that is over, as a DataLoader's workers run ahead
    if stop < len(expected):
        assert state == steps.state_dict()
    sampler.load_state_dict(state)
    assert list(sampler) == expected[stop:]
    with pytest.raises(ValueError, match=f"batches must be from 0 to {len(expected) - stop}, not -1"):
        sampler.state_dict(-1)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_a_table_finds_every_sample_by_its_bucket_and_its_place_there(case):
    table = case.table
    assert table.counts.tolist() == case.counts
    indices = np.arange(table.size)
    buckets, ordinals = table.of(indices), table.ordinals(indices)
    for bucket, count in enumerate(case.counts):
        mine = indices[buckets == bucket]
        assert ordinals[mine].tolist() == list(range(count))
        assert table.indices(bucket, np.arange(count)).tolist() == mine.tolist()
        assert table.indices(bucket, np.arange(count)[::-1]).tolist() == mine[::-1].tolist()


# What the loader did before there were buckets: computed by the code of commit 27d9625.
GOLDEN = "fdda0c89acebd84fec3d57eb0434db1e91a5e24e9671e17698542bf356859edd"


def test_without_buckets_orders_and_states_are_those_of_before():
    digest = hashlib.sha256()
    for sizes, shares in [((37,), (37,)), ((20, 17, 5), (20, 17, 5)), ((20, 9), (7, 22))]:
        for batch_size, world_size in [(1, 1), (4, 1), (3, 4), (50, 1), (10, 7)]:
            for shuffle, drop_last in [(False, False), (False, True), (True, False), (True, True)]:
                order = Order(sizes, shares, shuffle, 3)
                for rank in range(world_size):
                    steps = Steps(order, batch_size, drop_last=drop_last, rank=rank, world_size=world_size)
                    for _ in range(2):
                        for step in epoch_of(steps):
                            values = [step.indices.tolist(), step.masks["valid"].tolist(), steps.state_dict()]
                            digest.update(json.dumps(values).encode())
                        digest.update(json.dumps(steps.state_dict()).encode())
    assert digest.hexdigest() == GOLDEN


@pytest.mark.parametrize(
    "change",
    [
        {"start": [1]}, {"start": [0, 0, -1]}, {"start": [0, 0, 99]}, {"start": [0, 0, True]}, {"start": 3},
        {"step": -1}, {"step": 99}, {"step": 1.0}, {"batch": 0}, {"batch": "4"}, {"drop_last": 0}, {"epoch": -1},
        {"seed": 9}, {"sizes": [[20], [0]]}, {"position": 3}, {"shuffle": True},
    ],
)  # fmt: skip
def test_an_invalid_state_is_refused(change):
    case = Case([20, 0, 9], [3, 3, 3], 4, 1, False, False, 0)
    steps = case.steps()
    with pytest.raises(ValueError, match="state"):
        steps.load_state_dict({**steps.state_dict(), **change})
    with pytest.raises(ValueError, match="start, step, batch, drop_last"):
        steps.load_state_dict({"epoch": 0, "position": 3, "sizes": [29], "shares": [29], "shuffle": False, "seed": 0})


def test_an_epoch_too_large_for_the_arithmetic_is_refused():
    table = BucketTable(np.array([0, 2**31]), np.array([0, 1], np.int32), 2**32, 2)
    sizes = [(2**31,), (2**31,)]
    with pytest.raises(ValueError, match=f"at most 3037000498 samples, not {2**32}"):
        BucketOrder.of(sizes, sizes, False, 0, table)


def test_bad_options_of_a_batch_sampler_are_refused():
    case = Case([20, 9], [3, 3], 4, 1, False, False, 0)
    with pytest.raises(TypeError, match=r"no option 'threads': there are shuffle, window, seed, .*world_size"):
        LatentBatchSampler(case.order, 4, threads=3)
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        LatentBatchSampler(case.order, 0)
    with pytest.raises(ValueError, match="together"):
        LatentBatchSampler(case.order, 4, rank=1)
