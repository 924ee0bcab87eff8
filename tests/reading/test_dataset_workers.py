"""LatentDataset in DataLoader workers: however they are started, they give every sample, and an error never hangs."""

import copy
import itertools
import multiprocessing
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentq import LatentDataset
from latentq.reading import workers


def test_workers_and_resident_batches_name_their_columns_too(reference):
    dataset = LatentDataset(reference.path, columns=["latent", "key"])
    (batch,) = DataLoader(dataset, batch_size=40, num_workers=1, collate_fn=dataset.collate)
    with pytest.raises(KeyError, match="there is no column 'label': there are latent, key"):
        batch["label"]
    with pytest.raises(KeyError, match="there is no column 'label': there are latent"):
        dataset.to_device("cpu")[0]["label"]


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


@pytest.fixture
def accelerator(monkeypatch):
    """An accelerator as far as a DataLoader asks for one: it starts the thread that pins batches."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # torch < 2.9
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)


@pytest.mark.parametrize("nested", [False, True])
def test_an_error_in_the_pinning_thread_keeps_its_cause(reference, monkeypatch, accelerator, nested):
    dataset = LatentDataset(reference.path)

    def collate(samples):
        batch = dataset.collate(samples)
        return (batch, 1) if nested else batch

    def loader():
        return DataLoader(dataset, batch_size=20, num_workers=1, collate_fn=collate, pin_memory=True)

    assert len(list(loader())) == 2  # the thread works

    def fails(*_, **__):
        raise MemoryError("no memory for 20 latents")

    monkeypatch.setattr(type(dataset.layout), "decode_batch", fails)
    with pytest.raises(MemoryError, match="no memory for 20 latents"):
        next(iter(loader()))


@pytest.mark.long
def test_memory_shared_with_workers_is_reused_and_released(reference):
    dataset = LatentDataset(reference.path)
    options = {"batch_size": 2, "collate_fn": dataset.collate, "num_workers": 2}
    for _ in range(3):
        for process in multiprocessing.active_children():  # on a busy machine, former workers may take a while to end
            process.join(30)
        alive = len(multiprocessing.active_children())
        assert len(list(DataLoader(dataset, **options))) == 20
        assert len(workers._senders) <= 2 + alive
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
