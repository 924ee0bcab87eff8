"""LatentStreamingDataset: mosaicml-streaming's machinery, latentq's samples."""

import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from latentq import FormatError, LatentDataset, LatentqError, MismatchError, Quantizer, mds
from support.bucket_making import SHAPES, make_buckets
from support.making import make_dataset

streaming = pytest.importorskip("streaming")

from latentq.reading.streaming import LatentStreamingDataset  # noqa: E402  (needs the optional package)


@pytest.fixture(autouse=True)
def _clean(streaming_alone):
    streaming.base.util.clean_stale_shared_memory()
    encodings = dict(streaming.base.format.mds.encodings._encodings)
    yield
    streaming.base.format.mds.encodings._encodings.update(encodings)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("made") / "out", 30, size_limit=1 << 10)


def _check_equal(sample, other):
    assert sample.keys() == other.keys()
    for name, value in sample.items():
        assert torch.equal(value, other[name]) if torch.is_tensor(value) else value == other[name]


def test_a_remote_dataset_gives_the_samples_of_a_local_one(reference, tmp_path):
    remote = LatentStreamingDataset(remote=str(reference.path), local=str(tmp_path), batch_size=4, scale="scaled")
    local = LatentDataset(reference.path, scale="scaled")
    assert len(remote) == 30
    for i in (0, 17, 29):
        _check_equal(remote[i], local[i])
    assert (tmp_path / "latents.toml").read_bytes() == (reference.path / "latents.toml").read_bytes()


def test_an_epoch_through_workers_has_every_sample_once(reference):
    dataset = LatentStreamingDataset(local=str(reference.path), batch_size=4, shuffle=True, dtype=torch.bfloat16)
    batches = list(DataLoader(dataset, batch_size=4, num_workers=2))
    keys = [key for b in batches for key in b["key"]]
    assert sorted(keys) == reference.keys
    assert batches[0]["latent"].dtype == torch.bfloat16
    order = [reference.keys.index(key) for key in keys]
    assert torch.cat([b["label"] for b in batches]).tolist() == reference.labels[order].tolist()
    expected = LatentDataset(reference.path, dtype=torch.bfloat16).batch(order)["latent"]
    assert torch.equal(torch.cat([b["latent"] for b in batches]), expected)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "codebook", "trellis"])
def test_every_kind(tmp_path, kind):
    reference = make_dataset(tmp_path / "out", 4, kind=kind)
    dataset = LatentStreamingDataset(local=str(reference.path), batch_size=1, scale="normalized")
    local = LatentDataset(reference.path, scale="normalized")
    for i in range(4):
        _check_equal(dataset[i], local[i])


@pytest.mark.parametrize("bits", [4, 5, 6])
def test_packed_codes_are_values_here_and_bytes_to_a_stock_reader(tmp_path, bits):
    reference = make_dataset(tmp_path / "out", 4, bits=bits)
    _check_equal(LatentStreamingDataset(local=str(reference.path), batch_size=1)[2], LatentDataset(reference.path)[2])
    streaming.base.util.clean_stale_shared_memory()
    stored = streaming.StreamingDataset(local=str(reference.path), batch_size=1)[2]["latent"]
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, mds.Reader(reference.path).gather([2], "latent")[0])


def test_streams_that_agree_are_joined_and_others_are_refused(reference, tmp_path):
    twin = make_dataset(tmp_path / "twin", 10, seed=1)
    other = make_dataset(tmp_path / "other", 10, weights="sha256:2")
    streams = [streaming.Stream(local=str(reference.path)), streaming.Stream(local=str(twin.path))]
    both = LatentStreamingDataset(streams=streams, batch_size=1)
    assert len(both) == 40
    _check_equal(both[35], LatentDataset(twin.path)[5])
    streams = [streaming.Stream(local=str(reference.path)), streaming.Stream(local=str(other.path))]
    streaming.base.util.clean_stale_shared_memory()
    with pytest.raises(MismatchError, match=r"sha256:2.*sha256:1"):
        LatentStreamingDataset(streams=streams, batch_size=1)


def test_a_remote_without_a_card_is_an_error(reference, tmp_path):
    make_dataset(tmp_path / "remote", 4)
    (tmp_path / "remote" / "latents.toml").unlink()
    with pytest.raises(LatentqError, match=r"has no latents\.toml"):
        LatentStreamingDataset(remote=str(tmp_path / "remote"), local=str(tmp_path / "local"), batch_size=1)


def test_a_plain_remote_opens_with_a_quantizer_alone(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (3, 4, 2, 2), np.uint8)
    with mds.Writer(tmp_path / "remote", {"vae": "ndarray:uint8:4,2,2", "size": "ndarray:float32:2"}) as writer:
        for code in codes:
            writer.write({"vae": code, "size": np.array([1, 2], np.float32)})
    options = {"quantizer": Quantizer.uniform(-1.0, 1.0, channels=4)}
    remote = LatentStreamingDataset(
        remote=str(tmp_path / "remote"), local=str(tmp_path / "local"), batch_size=1, **options
    )
    _check_equal(remote[1], LatentDataset(tmp_path / "remote", **options)[1])


def test_the_encoding_of_imagenet_int8_is_registered_only_when_asked(tmp_path):
    codes = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32), np.uint8)
    columns = {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    with mds.Writer(tmp_path / "out", columns) as writer:
        for i in range(3):
            writer.write({"vae_output": codes[i], "label": str(i), "label_as_text": f"class {i}"})
    entry = json.loads((tmp_path / "out" / "index.json").read_bytes())["shards"][0]
    assert entry["column_encodings"][entry["column_names"].index("vae_output")] == "uint8"
    options = {"local": str(tmp_path / "out"), "batch_size": 1, "recipe": "imagenet.int8"}
    with pytest.raises(FormatError, match="raw_uint8=True"):
        LatentStreamingDataset(**options)[1]
    streaming.base.util.clean_stale_shared_memory()
    sample = LatentStreamingDataset(**options, raw_uint8=True)[1]
    np.testing.assert_allclose(sample["latent"], codes[1] / 255.0 * 28 - 14, atol=2e-6)
    assert sample["label"] == 1


def test_samples_of_buckets_have_the_shapes_of_their_buckets(tmp_path):
    made = make_buckets(tmp_path / "remote", tokens=True)
    remote = LatentStreamingDataset(remote=str(made.path), local=str(tmp_path / "local"), batch_size=1, scale="scaled")
    local = LatentDataset(made.path, scale="scaled")
    for i in range(len(made)):
        _check_equal(remote[i], local[i])
    other = make_buckets(tmp_path / "other", SHAPES[1:3], ((4, 5),), tokens=True, seed=1)
    streams = [streaming.Stream(local=str(path)) for path in (made.path, other.path)]
    streaming.base.util.clean_stale_shared_memory()
    both = LatentStreamingDataset(streams=streams, batch_size=1)
    _check_equal(both[len(made) + 6], LatentDataset(other.path)[6])
    samples = list(DataLoader(both, batch_size=1, num_workers=1, collate_fn=lambda batch: batch[0]))
    assert sorted(sample["latent"].shape for sample in samples) == sorted(
        value.shape for value in made.values + other.values
    )
