"""LatentLoader: each sample once, in an order that can be resumed, and no thread left at the end."""

import gc
import json
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Unpack, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import default_collate

from conftest import heed_interrupts
from latentq import LatentDataset, LatentMixture
from latentq.reading import buffers
from latentq.reading.loader import _DEFAULTS, LatentLoader, LoaderOptions
from latentq.reading.order import Order
from latentq.reading.resident import ResidentDataset
from support.making import make_dataset


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("made") / "out", 40)


@pytest.fixture(scope="module")
def dataset(reference):
    return LatentDataset(reference.path)


class Numbers:
    """A source whose samples are their own indices, so that many epochs cost nothing."""

    transform = None
    samples_ahead = 0

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def read(self, indices, **_):
        return {"latent": torch.from_numpy(indices)}

    def noise_of(self, *_, **__):
        return {}

    def batch(self, indices, **_):
        return self.read(indices)

    def read_ahead(self, **_):
        pass

    def files(self, _shuffle):
        return None

    def native_gatherer(self, **_):
        return None

    def order(self, shuffle, seed):
        return Order((self.size,), (self.size,), shuffle, seed)


def test_batches_come_in_order_and_hold_the_datasets_values(reference, dataset):
    loader = dataset.loader(16)
    batches = list(loader)
    assert len(batches) == len(loader) == 3
    assert [len(b["label"]) for b in batches] == [16, 16, 8]
    latents = torch.cat([b["latent"] for b in batches])
    assert latents.dtype == torch.float32
    np.testing.assert_allclose(latents, reference.values, atol=2e-6)
    labels = torch.cat([b["label"] for b in batches])
    assert labels.dtype == torch.int64
    assert labels.tolist() == reference.labels.tolist()
    assert [key for b in batches for key in b["key"]] == reference.keys
    assert all(b["valid"].all() for b in batches)


def test_a_shuffled_epoch_has_every_sample_once_each_with_its_own_label(reference, dataset):
    loader = dataset.loader(16, shuffle=True, seed=3)
    orders = []
    for _ in range(2):
        batches = list(loader)
        keys = [key for b in batches for key in b["key"]]
        assert sorted(keys) == reference.keys
        order = [reference.keys.index(key) for key in keys]
        assert torch.cat([b["label"] for b in batches]).tolist() == reference.labels[order].tolist()
        np.testing.assert_allclose(torch.cat([b["latent"] for b in batches]), reference.values[order], atol=2e-6)
        orders.append(order)
    assert orders[0] != orders[1]
    again = dataset.loader(16, shuffle=True, seed=3)
    assert [reference.keys.index(key) for b in again for key in b["key"]] == orders[0]
    other = dataset.loader(16, shuffle=True, seed=4)
    assert [reference.keys.index(key) for b in other for key in b["key"]] != orders[0]


def test_drop_last_skips_the_batch_that_is_not_full(dataset):
    loader = dataset.loader(16, drop_last=True)
    assert [len(b["label"]) for b in loader] == [16, 16]
    assert len(loader) == 2


def _epoch(loader):
    return [b["latent"].tolist() for b in loader]


run = st.fixed_dictionaries(
    {
        "size": st.integers(1, 200),
        "batch_size": st.integers(1, 40),
        "world_size": st.integers(1, 9),
        "seed": st.integers(0, 5),
        "shuffle": st.booleans(),
        "drop_last": st.booleans(),
    }
)


def _loaders(size, batch_size, world_size, **options):
    return [
        LatentLoader(Numbers(size), batch_size, rank=rank, world_size=world_size, threads=1, **options)
        for rank in range(world_size)
    ]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=run, epoch=st.integers(0, 3))
def test_any_number_of_ranks_takes_every_sample_once_in_the_same_number_of_steps(run, epoch):
    loaders = _loaders(**run)
    seen = []
    steps = set()
    for loader in loaders:
        loader.set_epoch(epoch)
        batches = list(loader)
        steps.add(len(batches))
        assert len(batches) == len(loader)
        seen += [i for b in batches for i in b["latent"][b["valid"]].tolist()]
    assert len(steps) == 1
    whole = run["batch_size"] * run["world_size"]
    if run["drop_last"]:
        assert len(seen) == len(set(seen)) == run["size"] // whole * whole
    else:
        assert sorted(seen) == list(range(run["size"]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=run, stop=st.integers(0, 30))
def test_a_resumed_loader_continues_as_if_it_had_not_stopped(run, stop):
    for loader in _loaders(**run):
        undisturbed = [*_epoch(loader), *_epoch(loader)]
        again = LatentLoader(
            Numbers(run["size"]), run["batch_size"], rank=loader.rank, world_size=loader.world_size, threads=1,
            **{key: run[key] for key in ("shuffle", "seed", "drop_last")},
        )  # fmt: skip
        stop = min(stop, len(undisturbed) // 2)
        iterator = iter(again)
        before = [next(iterator)["latent"].tolist() for _ in range(stop)]
        state = again.state_dict()
        iterator.close()
        resumed = _loaders(**run)[loader.rank]
        resumed.load_state_dict(state)
        resumed.set_epoch(0)  # as a training loop does, which must not undo the state
        assert [*before, *_epoch(resumed), *_epoch(resumed)] == undisturbed


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=run, stop=st.integers(0, 30), world_size=st.integers(1, 9), batch_size=st.integers(1, 40))
def test_other_ranks_resume_the_same_global_order(run, stop, world_size, batch_size):
    run["drop_last"] = False
    order = [i for b in _loaders(**run | {"world_size": 1})[0] for i in b["latent"].tolist()]
    first = _loaders(**run)
    stop = min(stop, len(first[0]))
    iterators = [iter(loader) for loader in first]
    for _ in range(stop):
        for iterator in iterators:
            next(iterator)
    states = [loader.state_dict() for loader in first]
    assert all(state == states[0] for state in states)
    for iterator in iterators:
        iterator.close()
    second = _loaders(**run | {"world_size": world_size, "batch_size": batch_size})
    for loader in second:
        loader.load_state_dict(states[0])
    rest = [[b["latent"][b["valid"]].tolist() for b in loader] for loader in second]
    in_order = [i for step in zip(*rest, strict=True) for part in step for i in part]
    assert in_order == order[states[0]["position"] :]
    assert states[0]["position"] == min(stop * run["batch_size"] * run["world_size"], run["size"])


def test_a_dropped_last_batch_is_not_resumed_by_another_number_of_ranks():
    loader = LatentLoader(Numbers(10), 4, drop_last=True)
    iterator = iter(loader)
    next(iterator)
    next(iterator)
    state = loader.state_dict()
    other = LatentLoader(Numbers(10), 1, drop_last=True)
    other.load_state_dict(state)
    assert list(other) == []
    assert other.epoch == 1


def test_an_iteration_left_early_restarts_its_epoch(dataset):
    loader = dataset.loader(16, shuffle=True)
    first = next(iter(loader))
    assert next(iter(loader))["key"] == first["key"]


def test_an_iteration_that_zip_ended_counts_as_a_whole_epoch(dataset):
    loader = dataset.loader(4, shuffle=True, seed=3)
    whole = dataset.loader(4, shuffle=True, seed=3)
    epochs = [[batch["key"] for batch in whole] for _ in range(3)]
    for epoch in epochs:
        assert [batch["key"] for _, batch in zip(range(len(loader)), loader, strict=False)] == epoch
    loader.set_epoch(2)  # again
    assert [batch["key"] for batch in loader] == epochs[2]


@pytest.mark.parametrize(
    ("imported", "transform"),
    # The import of the package has modules lose their globals before the generator is closed.
    [("from latentq import LatentDataset", None), ("from latentq import LatentDataset", "dict"),
     ("import latentq; from latentq import LatentDataset", None)],
)  # fmt: skip
def test_a_loader_alive_at_the_interpreters_end_prints_nothing(reference, imported, transform):
    code = (
        f"import sys; {imported}; "
        f"batches = iter(LatentDataset(sys.argv[1], transform={transform}).loader(4)); next(batches)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(reference.path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_state_of_another_order_is_refused(dataset):
    state = dataset.loader(4, shuffle=True, seed=1).state_dict()
    with pytest.raises(ValueError, match="seed 1, and this loader has 2"):
        dataset.loader(4, shuffle=True, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="shuffle True, and this loader has False"):
        dataset.loader(4, seed=1).load_state_dict(state)


def test_ranks_come_from_torch_distributed(dataset):
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=3)
    try:
        loader = dataset.loader(4)
        assert (loader.rank, loader.world_size) == (1, 3)
        assert (dataset.loader(4, rank=0, world_size=1).world_size) == 1
    finally:
        torch.distributed.destroy_process_group()


def test_two_iterations_at_once_each_give_the_whole_epoch(reference, dataset):
    loader = dataset.loader(16, shuffle=True)
    pairs = list(zip(loader, loader, strict=True))
    assert all(torch.equal(first["latent"], second["latent"]) for first, second in pairs)
    assert sorted(key for first, _ in pairs for key in first["key"]) == reference.keys
    assert loader.epoch == 1


def test_a_small_dataset_is_one_batch_and_an_empty_dataset_none(dataset):
    assert [len(b["label"]) for b in dataset.loader(1000, shuffle=True)] == [40]
    assert list(dataset.loader(1000, drop_last=True)) == []
    empty = LatentLoader(Numbers(0), 4, shuffle=True)
    assert len(empty) == 0
    assert list(empty) == []
    assert empty.epoch == 1


def test_an_error_in_a_transform_reaches_the_loop(reference):
    broken = LatentDataset(reference.path, transform=lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(broken.loader(4))
    assert not _threads()


def test_an_epoch_below_0_is_refused(dataset):
    with pytest.raises(ValueError, match="not -1"):
        dataset.loader(4).set_epoch(-1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"batch_size": 1, "threads": 0}, "threads must be at least 1"),
        ({"batch_size": 1, "prefetch": 0}, "prefetch must be at least 1"),
        ({"batch_size": 1, "seed": -1}, "seed must be at least 0"),
        ({"batch_size": 1, "rank": 2, "world_size": 2}, "2 of 2"),
        ({"batch_size": 1, "rank": 0}, "given together"),
        ({"batch_size": 1, "label_dropout": 1.5}, "label_dropout must be from 0 to 1, not 1.5"),
    ],
)
def test_bad_arguments_are_refused(dataset, options, text):
    with pytest.raises(ValueError, match=text):
        dataset.loader(**options)


def _threads():
    """Lists the loader's threads, Python's and the core's. A thread that has ended may be listed a moment longer."""
    gc.collect()  # caches of earlier tests that ended with an error, which refers to them
    for _ in range(100):
        names = [thread.name for thread in threading.enumerate()]
        names += [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
        if not (found := [name for name in names if name.startswith("latentq")]):
            break
        time.sleep(0.01)
    return found


def test_no_thread_is_left_however_an_iteration_ends(dataset):
    list(dataset.loader(4))
    assert not _threads()
    for batch in dataset.loader(4):
        assert len(batch["label"]) == 4
        assert _threads()
        break
    del batch
    assert not _threads()
    with pytest.raises(ZeroDivisionError):
        _ = [1 / 0 for _ in dataset.loader(4)]
    assert not _threads()


class Failing(Numbers):
    def read(self, indices, **_):
        if 20 in indices:
            raise OSError("no more")
        return super().read(indices)


def test_an_error_while_reading_reaches_the_loop_after_the_batches_before_it():
    seen = []
    with pytest.raises(OSError, match="no more"):
        seen.extend(b["latent"].tolist() for b in LatentLoader(Failing(40), 8, threads=2))
    assert seen == [list(range(8)), list(range(8, 16))]
    assert not _threads()


def test_prefetch_bounds_the_number_of_prepared_batches():
    class Counting(Numbers):
        count = 0

        def read(self, indices, **_):
            self.count += 1
            return super().read(indices)

    source = Counting(1000)
    iterator = iter(LatentLoader(source, 1, threads=2, prefetch=3))
    for step in range(1, 50):
        next(iterator)
        assert source.count <= step + 3
    iterator.close()


def test_a_transform_is_applied_to_each_sample(reference):
    doubled = LatentDataset(reference.path, transform=lambda sample: sample | {"latent": 2 * sample["latent"]})
    latents = torch.cat([b["latent"] for b in doubled.loader(16)])
    np.testing.assert_allclose(latents, 2 * reference.values, atol=4e-6)
    with pytest.raises(TypeError, match="must return a dict"):
        next(iter(LatentDataset(reference.path, transform=lambda sample: sample["label"]).loader(4)))


def test_what_a_transform_returns_is_batched_as_by_torch(reference):
    def transform(sample):
        latent = sample["latent"]
        large = latent.repeat(1, 40, 40)
        return {
            "large": large,
            "tokens": large.long(),
            "double": large.double(),
            "mask": large > 0,
            "flipped": large.flip(-1).transpose(1, 2),
            "learned": large.clone().requires_grad_(),
            "mixed": large if sample["label"] % 2 else large.half(),
            "none": large[:, :0],
            "nested": [{"array": latent.numpy(), "number": 1.5, "text": sample["key"]}, (sample["label"], True)],
        }

    dataset = LatentDataset(reference.path, transform=transform)
    for start, batch in zip(range(0, len(dataset), 16), dataset.loader(16), strict=False):
        expected = default_collate([dataset[i] for i in range(start, min(start + 16, len(dataset)))])
        valid = batch.pop("valid")
        assert valid.all()
        assert batch.keys() == expected.keys()
        (given, pair), (right, right_pair) = batch.pop("nested"), expected.pop("nested")
        assert given["text"] == right["text"]
        assert all(map(torch.equal, (given["array"], *pair), (right["array"], *right_pair)))
        for name, value in expected.items():
            assert (batch[name].dtype, batch[name].shape) == (value.dtype, value.shape)
            assert torch.equal(batch[name], value)


def test_samples_of_several_shapes_are_refused_as_by_torch(reference):
    dataset = LatentDataset(
        reference.path, transform=lambda s: {"latent": s["latent"].repeat(1, 1, 1 + s["label"] % 2)}
    )
    with pytest.raises(RuntimeError, match="equal size"):
        list(dataset.loader(16))


def test_dropouts_are_functions_of_seed_epoch_and_sample(dataset, reference):
    def masks(batch_size, epoch, **options):
        loader = dataset.loader(batch_size, label_dropout=0.3, caption_dropout=0.5, **options)
        loader.set_epoch(epoch)
        return {
            key: (bool(label), bool(caption))
            for b in loader
            for key, label, caption in zip(b["key"], b["drop_label"], b["drop_caption"], strict=True)
        }

    first = masks(16, 0)
    assert masks(7, 0, threads=1) == first
    assert masks(5, 1) != first
    assert masks(16, 0, seed=1) != first
    labels, captions = map(list, zip(*first.values(), strict=True))
    assert 0 < sum(labels) < 40
    assert labels != captions
    assert "drop_label" not in next(iter(dataset.loader(4)))


INTERRUPTED = """
import sys, time
from pathlib import Path
from latentq import LatentDataset
loader = LatentDataset(sys.argv[1]).loader(1, threads=2)
try:
    while True:
        for batch in loader:
            print("running", flush=True)
except KeyboardInterrupt:
    time.sleep(0.1)  # a thread that has ended may be listed a moment longer
    names = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    print("left:", [name for name in names if name.startswith("latentq")], flush=True)
"""


def test_an_interrupt_ends_a_loop_and_leaves_no_thread(reference):
    command = [sys.executable, "-c", INTERRUPTED, str(reference.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "left: []"
    assert process.returncode == 0


def test_kept_tensors_stay_unchanged_while_memory_is_reused(reference, dataset, monkeypatch):
    monkeypatch.setattr(buffers, "_SMALL", 0)
    loader = dataset.loader(4, shuffle=True, threads=2, prefetch=2)
    kept, where = [], set()
    for _ in range(5):
        for batch in loader:
            where.add(batch["latent"].data_ptr())
            if len(kept) < 3:  # a view and an array of its memory outlive their batch
                kept.append((batch["key"][1], batch["latent"][1], batch["latent"][1].numpy()))
    for key, view, array in kept:
        expected = reference.values[reference.keys.index(key)]
        np.testing.assert_allclose(view, expected, atol=2e-6)
        np.testing.assert_allclose(array, expected, atol=2e-6)
    assert len(where) < 20  # of 50 batches


def test_a_state_is_json_even_if_the_loader_was_given_numpy_numbers(dataset):
    loader = dataset.loader(np.int64(4), shuffle=True, seed=np.int64(3))
    loader.set_epoch(np.int64(1))
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    iterator.close()
    assert json.loads(json.dumps(state)) == state
    again = dataset.loader(4, shuffle=True, seed=3)
    again.load_state_dict(state)
    assert again.state_dict() == state


@pytest.mark.parametrize(
    "change",
    [{"position": -5}, {"position": 41}, {"epoch": "1"}, {"position": None}, {"seed": 99}, {"sizes": [1]}, {"more": 1}],
)
def test_an_invalid_state_is_refused(dataset, change):
    loader = dataset.loader(4)
    with pytest.raises(ValueError, match="state"):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(ValueError, match="not nothing"):
        loader.load_state_dict({})


@pytest.mark.parametrize("state", [None, 3, [("epoch", 0)], "state"])
def test_a_state_that_is_no_dict_is_a_type_error(dataset, state):
    with pytest.raises(TypeError, match=rf"a dict from state_dict\(\), not {type(state).__name__}"):
        dataset.loader(4).load_state_dict(state)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_huge_batch_size_allocates_no_more_than_the_dataset_needs(dataset, world_size):
    loader = dataset.loader(10**12, shuffle=True, rank=0, world_size=world_size)
    tracemalloc.start()
    batches = list(loader)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [len(batch["label"]) for batch in batches] == [40 // world_size]
    assert peak < 1 << 22
    assert list(dataset.loader(10**12, drop_last=True)) == []


def test_every_option_of_a_loader_has_a_type(dataset):
    """Editors complete `ds.loader(...)` by these names."""
    hints = get_type_hints(LoaderOptions)
    assert list(hints) == list(_DEFAULTS)
    for source in (LatentDataset, LatentMixture, ResidentDataset):
        assert get_type_hints(source.loader)["options"] == Unpack[LoaderOptions]


def test_an_unknown_option_is_a_type_error_that_lists_the_options(dataset):
    for source in (dataset, dataset.to_device("cpu")):
        with pytest.raises(TypeError, match=r"no option 'shufle': there are shuffle, window, seed, .*caption_dropout"):
            source.loader(4, shufle=True)
    with pytest.raises(TypeError, match="device is no option"):
        dataset.to_device("cpu").loader(4, device="cuda")


@pytest.mark.parametrize("option", ["batch_size", "threads", "prefetch"])
def test_counts_are_integers(dataset, option):
    with pytest.raises(TypeError, match="integer"):
        dataset.loader(**{"batch_size": 4, option: 1.5})
