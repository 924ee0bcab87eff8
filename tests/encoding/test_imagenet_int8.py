"""imagenet.int8: its own loader reads our datasets, and we read its shards."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

import latentq
from conftest import SHARED, paint
from latentq import Card, LatentDataset, mds
from latentq.converting.pipeline import convert
from latentq.models.noise import noise

pytestmark = pytest.mark.usefixtures("streaming_alone")

# The loader of the project's page, verbatim.
SEED = textwrap.dedent("""
    from streaming.base.format.mds.encodings import Encoding, _encodings
    import numpy as np
    from typing import Any
    import torch
    from streaming import StreamingDataset

    class uint8(Encoding):
        def encode(self, obj: Any) -> bytes:
            return obj.tobytes()

        def decode(self, data: bytes) -> Any:
            x=  np.frombuffer(data, np.uint8).astype(np.float32)
            return (x / 255.0 - 0.5) * 24.0

    _encodings["uint8"] = uint8

    remote_train_dir = "./vae_mds" # this is the path you installed this dataset.
    local_train_dir = "./local_train_dir"

    train_dataset = StreamingDataset(
        local=local_train_dir,
        remote=remote_train_dir,
        split=None,
        shuffle=True,
        shuffle_algo="naive",
        num_canonical_nodes=1,
        batch_size = 32
    )

    train_dataloader = torch.utils.data.DataLoader(
        train_dataset,
        batch_size=32,
        num_workers=3,
    )
""").strip()

AFTERWARDS = textwrap.dedent("""
    if __name__ == "__main__":
        batch = next(iter(train_dataloader))
        vae_latent = batch["vae_output"].reshape(-1, 4, 32, 32)
        np.savez("read.npz", vae_output=vae_latent, label=batch["label"], label_as_text=batch["label_as_text"])
""")


@pytest.fixture
def classes(tmp_path):
    folder = tmp_path / "classes"
    for index in range(6):
        paint(folder / f"n0{index % 2}" / f"{index}.jpg", index, (300 + index, 280))
    (tmp_path / "names.txt").write_text("n00 acoustic guitar\nn01 thunder snake\n")
    return folder


@pytest.fixture
def encoded(classes, tmp_path, tiny_vae):
    out = tmp_path / "vae_mds"
    names = tmp_path / "names.txt"
    latentq.encode(classes, out, recipe="imagenet.int8", autoencoder=tiny_vae, class_names=names, batch_size=2)
    return out


def test_copied_loader_equals_the_page():
    page = SHARED / "seeds" / "imagenet-int8.md"
    if not page.exists():
        pytest.skip("the seed's page is not here")
    assert SEED in page.read_text()


def test_codes_equal_those_of_the_original_script(encoded, classes, tiny_vae):
    network = latentq.load_autoencoder(tiny_vae)
    reader = mds.Reader(encoded)
    stored = np.empty((6, 4096), np.uint8)
    reader.gather(range(6), "vae_output", out=stored)
    files = sorted(classes.rglob("*.jpg"))
    for number in range(6):
        # In the same batch shape: the last bit of a convolution may depend on it.
        pair = [files[number - number % 2], files[number - number % 2 + 1]]
        pixels, _ = latentq.image.load_batch(pair, 256, orient=False, alpha="drop", icc="ignore")
        mean, logvar = network.posterior(torch.from_numpy(pixels).float() * (2 / 255) - 1)
        z = mean[number % 2] + (logvar[number % 2] / 2).exp() * torch.from_numpy(noise(0, [number], 0, (4, 32, 32))[0])
        expected = ((z.clip(-14, 14) / 28.0 + 0.5) * 255.0).to(torch.uint8)
        np.testing.assert_array_equal(stored[number].reshape(4, 32, 32), expected.numpy())


@pytest.mark.parametrize("plain", [False, True])
def test_original_loader_reads_our_output(encoded, tmp_path, plain):
    """Reads the dataset, and the plain folder that it is converted to."""
    if plain:
        encoded = encoded.rename(tmp_path / "dataset")
        convert(encoded, tmp_path / "vae_mds")
    script = tmp_path / "loader.py"
    script.write_text(SEED + "\n" + AFTERWARDS)
    subprocess.run([sys.executable, script], cwd=tmp_path, check=True, timeout=200)
    read = np.load(tmp_path / "read.npz")
    stored = np.empty((6, 4096), np.uint8)
    mds.Reader(encoded).gather(range(6), "vae_output", out=stored)
    values = (stored.astype(np.float32) / 255.0 - 0.5) * 24.0
    expected = sorted(zip(map(bytes, values), ["0"] * 3 + ["1"] * 3, strict=True))
    assert sorted(zip((bytes(v.ravel()) for v in read["vae_output"]), read["label"], strict=True)) == expected
    texts = dict(zip(read["label"], read["label_as_text"], strict=True))
    assert texts == {"0": "acoustic guitar", "1": "thunder snake"}


def test_card_names_the_recipe_and_our_reader_dequantizes(encoded):
    card = Card.load(encoded)
    assert card.columns == {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    quantizer = card.latents["vae_output"].quantizer
    assert (quantizer.kind, quantizer.rounding, set(quantizer.low), set(quantizer.high)) == (
        "uniform", "truncate", {-14.0}, {14.0}
    )  # fmt: skip
    stored = np.empty((6, 4096), np.uint8)
    mds.Reader(encoded).gather(range(6), "vae_output", out=stored)
    for number, sample in enumerate(LatentDataset(encoded)):
        assert (sample["label"], sample["label_text"]) in {(0, "acoustic guitar"), (1, "thunder snake")}
        lower_edge = (stored[number].reshape(4, 32, 32) / 255.0 - 0.5) * 28.0
        np.testing.assert_allclose(sample["latent"].numpy(), lower_edge, atol=1e-5)
    assert latentq.verify(encoded) == []


def test_folder_of_the_original_scripts_opens(int8_folder):
    dataset = LatentDataset(int8_folder, recipe="imagenet.int8")
    assert len(dataset) == 10
    for index, sample in enumerate(dataset):
        codes = np.random.default_rng(index).integers(0, 256, 4096).astype(np.uint8).reshape(4, 32, 32)
        np.testing.assert_allclose(sample["latent"].numpy(), (codes / 255.0 - 0.5) * 28.0, atol=1e-5)
        assert (sample["label"], sample["label_text"]) == (index, f"name {index}")
