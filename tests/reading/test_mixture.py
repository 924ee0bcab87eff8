"""LatentMixture: exact shares, one order, and no mixing of datasets that differ."""

import os
import re
import signal
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from latentq import LatentDataset, LatentMixture, MismatchError, Quantizer, mds
from support.making import make_dataset


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return [make_dataset(folder / f"part{i}", count, seed=i) for i, count in enumerate((30, 10, 20))]


def _mixture(parts, weights=None, **options):
    return LatentMixture([LatentDataset(part.path, **options) for part in parts], weights)


def test_samples_are_numbered_consecutively(parts):
    mixture = _mixture(parts)
    assert len(mixture) == 60
    values = np.concatenate([part.values for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    for i in (0, 29, 30, 39, 40, 59, -1):
        np.testing.assert_allclose(mixture[i]["latent"], values[i], atol=2e-6)
        assert mixture[i]["label"] == labels[i]
    with pytest.raises(IndexError, match="out of range for 60 samples"):
        mixture[60]
    batches = DataLoader(mixture, batch_size=25, collate_fn=mixture.collate)
    np.testing.assert_allclose(torch.cat([b["latent"] for b in batches]), values, atol=2e-6)


def test_an_epoch_without_weights_has_every_sample_once(parts):
    loader = _mixture(parts).loader(16, shuffle=True, seed=2)
    values = np.concatenate([part.values for part in parts])
    for _ in range(2):
        batches = list(loader)
        captions = [(key, int(label)) for b in batches for key, label in zip(b["key"], b["label"], strict=True)]
        expected = [(key, int(label)) for part in parts for key, label in zip(part.keys, part.labels, strict=True)]
        assert sorted(captions) == sorted(expected)
        latents = torch.cat([b["latent"] for b in batches]).numpy()
        np.testing.assert_allclose(np.sort(latents[:, 0, 0, 0]), np.sort(values[:, 0, 0, 0]), atol=2e-6)


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.integers(0, 5), min_size=3, max_size=3).filter(any), seed=st.integers(0, 9))
def test_shares_are_exact_in_an_epoch_and_even_in_every_batch(parts, weights, seed):
    part_of = {codes.tobytes(): i for i, part in enumerate(parts) for codes in part.codes}
    mixture = _mixture(parts, weights, columns=["latent"], dtype=torch.uint8)
    counts = Counter()
    for batch in mixture.loader(12, shuffle=True, seed=seed, threads=1):
        count = Counter(part_of[codes.numpy().tobytes()] for codes in batch["latent"])
        counts += count
        assert all(abs(count[i] - 12 * share / 60) < 6 for i, share in enumerate(mixture.shares))
    assert [counts[i] for i in range(3)] == list(mixture.shares)
    assert all(
        abs(share - 60 * weight / sum(weights)) < 1 for share, weight in zip(mixture.shares, weights, strict=True)
    )


def test_a_mixture_resumes_where_it_stopped(parts):
    undisturbed = [b["key"] for b in _mixture(parts, [1, 2, 3]).loader(7, shuffle=True)]
    loader = _mixture(parts, [1, 2, 3]).loader(7, shuffle=True)
    iterator = iter(loader)
    before = [next(iterator)["key"] for _ in range(4)]
    state = loader.state_dict()
    iterator.close()
    resumed = _mixture(parts, [1, 2, 3]).loader(7, shuffle=True)
    resumed.load_state_dict(state)
    assert [*before, *(b["key"] for b in resumed)] == undisturbed
    with pytest.raises(ValueError, match="shares"):
        _mixture(parts, [3, 2, 1]).loader(7, shuffle=True).load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "sha256:2"}, r"has autoencoder toy \(weights sha256:2, .*has toy \(weights sha256:1"),
        ({"shape": (3, 4, 4)}, r"has shape of 'latent' \(3, 4, 4\), .*\(3, 4, 5\)"),
        ({"low": -4.0}, r"has quantizer of 'latent' 8-bit affine \(-4 to 2\.5, .*\(-3 to 2\.5"),
        ({"bits": 6}, r"has quantizer of 'latent' 6-bit affine .*8-bit affine"),
        ({"scaled": True}, r"has stored scale of 'latent' scaled, .*raw"),
        ({"latents": ("a", "b")}, r"has columns a, b, caption, key, label, .*latent"),
    ],
)
def test_a_dataset_that_differs_from_the_first_is_refused_in_one_line(parts, tmp_path, options, text):
    other = make_dataset(tmp_path / "other", 5, **options)
    with pytest.raises(MismatchError, match=text) as caught:
        _mixture([parts[0], other])
    assert "\n" not in str(caught.value)
    assert str(other.path) in str(caught.value)
    assert str(parts[0].path) in str(caught.value)


def test_datasets_with_different_scales_or_dtypes_are_refused(parts):
    first = LatentDataset(parts[0].path)
    for options, text in (({"scale": "scaled"}, "scale scaled"), ({"dtype": torch.float16}, r"dtype torch\.float16")):
        with pytest.raises(MismatchError, match=text):
            LatentMixture([first, LatentDataset(parts[1].path, **options)])


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [0, 0, 0], [1, float("nan"), 1]])
def test_bad_weights_are_refused(parts, weights):
    with pytest.raises(ValueError, match="weights must be one for each of 3"):
        _mixture(parts, weights)


def test_weights_may_be_arrays_and_datasets_an_iterator(parts):
    expected = _mixture(parts, [1, 2, 3]).shares
    assert _mixture(parts, np.array([1, 2, 3], np.float32)).shares == expected
    assert _mixture(parts, torch.tensor([1.0, 2.0, 3.0])).shares == expected
    assert len(LatentMixture(LatentDataset(part.path) for part in parts)) == 60


@pytest.mark.parametrize("is_mixture", [True, False])
def test_an_iterator_ends_with_an_error_in_a_forked_child(parts, is_mixture):
    source = _mixture(parts) if is_mixture else LatentDataset(parts[0].path)
    batches = iter(source.loader(1, shuffle=True))
    next(batches)
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            list(batches)
        except ValueError as error:
            os._exit(0 if "after a fork" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(list(batches)) == len(source) - 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("is_mixture", [True, False])
def test_what_a_program_keeps_of_each_step_costs_only_its_own_memory(tmp_path, is_mixture):
    quantizer = Quantizer.uniform(-12.0, 12.0, channels=4)
    for name, count in (("first", 1000), ("second", 600)):
        with mds.Writer(tmp_path / name, {"latent": "ndarray:uint8:4,32,32"}, sync=False) as writer:
            writer.write_batch({"latent": np.zeros((count, 4, 32, 32), np.uint8)})
    parts = [LatentDataset(tmp_path / name, quantizer=quantizer) for name in ("first", "second")]
    parts[0].transform = None if is_mixture else dict
    loader = LatentMixture(parts).loader(256, shuffle=True) if is_mixture else parts[0].loader(100, shuffle=True)
    kept, before = [], 0
    for epoch in range(60):
        kept += [torch.zeros(1) for _ in loader]
        if epoch == 5:  # shards are cached, and memory is recycled
            before = _own_bytes()
    assert _own_bytes() - before < 32 << 20  # 380 or 540 steps


def _own_bytes():
    """The memory that only this process has."""
    return int(re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) << 10
