"""The recipe micro-diffusion: micro_diffusion's loader and ours read the same values."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from streaming import StreamingDataset

import latentq
from conftest import paint
from latentq.models.text import load_text_encoder
from latentq.sharding.pipeline import shards
from support.archive_making import make_tar, pictures_of, with_captions


def tiny_recipe():
    """Returns the recipe for a text encoder of width 32, in float32."""
    recipe = latentq.Recipe.load("micro-diffusion").to_dict()
    recipe["columns"]["caption_latents"]["shape"] = [1, 77, 32]
    recipe["text"]["dtype"] = recipe["autoencoder"]["dtype"] = "float32"
    return latentq.Recipe.from_dict(recipe)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioned")
    for index in range(3):
        paint(folder / f"{index}.jpg", index, (600, 540 + 30 * index))
    rows = [f"{index}.jpg\tpicture {index}\n" for index in range(3)]
    (folder / "list.tsv").write_text("path\tcaption\n" + "".join(rows))
    return folder


def test_original_loader_finds_scaled_samples_of_two_sizes(
    streaming_alone, captioned, tiny_vae, tiny_open_clip, tmp_path
):
    options = {"recipe": tiny_recipe(), "autoencoder": tiny_vae, "text_encoder": f"openclip:{tiny_open_clip}"}
    latentq.encode(captioned / "list.tsv", tmp_path / "out", **options)
    network = latentq.load_autoencoder(tiny_vae)
    dataset = StreamingDataset(local=str(tmp_path / "out"), batch_size=1)
    assert [dataset[index]["caption"] for index in range(3)] == ["picture 0", "picture 1", "picture 2"]
    for index in range(3):
        picture = Image.open(captioned / f"{index}.jpg")
        for size in (256, 512):
            # As latents_loader.py reads them.
            latent = np.frombuffer(dataset[index][f"latents_{size}"], np.float16).reshape(-1, size // 8, size // 8)
            pixels = latentq.image.fit(np.asarray(picture), size).transpose(2, 0, 1)[None]
            mean, logvar = network.posterior(torch.from_numpy(pixels) * (2 / 255) - 1)
            # The noise is normal, so samples have the posterior's mean and spread.
            drawn = (torch.from_numpy(latent.astype(np.float32)) / 0.13025 - mean[0]) / torch.exp(logvar[0] / 2)
            assert latent.shape == (4, size // 8, size // 8)
            assert abs(float(drawn.mean())) < 0.1
            assert abs(float(drawn.std()) - 1) < 0.05


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, tiny_vae, tiny_open_clip):
    """Encodes two datasets: from the shards of a converted collection, and from a tar as it is downloaded."""
    folder = tmp_path_factory.mktemp("collections")
    pictures = pictures_of(folder / "pictures", 3, (520, 516))
    make_tar(folder / "cc12m.tar", with_captions(pictures))
    shards(folder / "cc12m.tar", folder / "sa1b", collection="sa1b")
    options = {"recipe": tiny_recipe(), "autoencoder": tiny_vae, "text_encoder": f"openclip:{tiny_open_clip}"}
    latentq.encode(folder / "sa1b", folder / "from-shards", **options)
    latentq.encode(folder / "cc12m.tar", folder / "from-tar", **options, image=True)
    return folder


class PlainLoader:
    """Decodes samples of a StreamingDataset as latents_loader.py of micro_diffusion does, by shape alone."""

    def __init__(self, path, size, seq, dim):
        self._dataset = StreamingDataset(local=str(path), batch_size=1)
        self._size, self._seq, self._dim = size, seq, dim

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        sample = self._dataset[index]
        caption = np.frombuffer(sample["caption_latents"], dtype=np.float16).copy()
        latents = np.frombuffer(sample[f"latents_{self._size}"], dtype=np.float16).copy()
        return {
            "caption": sample["caption"],
            "caption_latents": torch.from_numpy(caption).reshape(1, self._seq, self._dim),
            "image_latents": torch.from_numpy(latents).reshape(-1, self._size // 8, self._size // 8),
        }


@pytest.mark.parametrize("source", ["from-shards", "from-tar"])
@pytest.mark.parametrize("size", [256, 512])
def test_our_loader_equals_the_original_loader(streaming_alone, encoded, source, size):
    plain = PlainLoader(encoded / source, size, 77, 32)
    ours = latentq.LatentDataset(encoded / source, dtype=torch.float16, scale="scaled")
    batches = list(ours.loader(2, shuffle=True, seed=3, caption_dropout=0.5))
    found = {}
    for batch in batches:
        assert torch.equal(batch["drop_caption_mask"], 1 - batch["drop_caption"].float())
        for row, caption in enumerate(batch["caption"]):
            found[caption] = (batch["caption_embedding"][row], batch[f"latents_{size}"][row])
    assert len(found) == len(plain) == 3
    for index in range(3):
        sample = plain[index]
        caption, latents = found[sample["caption"]]
        assert torch.equal(caption, sample["caption_latents"])
        assert torch.equal(latents, sample["image_latents"])


def test_columns_hold_the_output_of_the_encoders(encoded, tiny_open_clip):
    dataset = latentq.LatentDataset(encoded / "from-shards")
    assert dict(dataset._reader.columns) == {
        "caption": "str", "caption_latents": "bytes", "latents_256": "bytes", "latents_512": "bytes"
    }  # fmt: skip
    encoder = load_text_encoder(f"openclip:{tiny_open_clip}")
    batch = dataset.batch(range(3))
    expected = encoder.encode(batch["caption"]).embedding[:, None].half().float()
    torch.testing.assert_close(batch["caption_embedding"], expected, rtol=2e-3, atol=2e-6)
    jpegs = latentq.LatentDataset(encoded / "from-tar", columns=["jpg"])
    assert [sample["image"].size for sample in jpegs] == [(520, 516), (521, 517), (522, 518)]


def test_mixture_of_both_drops_captions_at_random(encoded):
    columns = ["caption", "caption_embedding", "latents_256"]
    parts = [latentq.LatentDataset(encoded / name, columns=columns) for name in ("from-shards", "from-tar")]
    mixture = latentq.LatentMixture(parts, [1, 2])
    masks = []
    for dropout in (0.3, 0.0, 1.0):
        loader = mixture.loader(3, shuffle=True, caption_dropout=dropout)
        batches = [batch for _ in range(40) for batch in loader]
        drawn = [batch.get("drop_caption_mask", torch.ones(len(batch["valid"]))) for batch in batches]
        masks.append(torch.cat(drawn))
    assert set(masks[0].tolist()) == {0.0, 1.0}
    assert abs(float(masks[0].mean()) - 0.7) < 0.1  # of 240; more than 3 standard deviations
    assert masks[1].all()
    assert not masks[2].any()
    batch = batches[0]
    empty = mixture.empty_caption["caption_embedding"]
    without = torch.where(batch["drop_caption"][:, None, None, None], empty, batch["caption_embedding"])
    assert torch.equal(without, empty.expand(3, 1, 77, 32))


def test_shards_of_the_original_scripts_are_read_without_a_card(encoded, tmp_path):
    shutil.copytree(encoded / "from-shards", tmp_path / "theirs")
    for name in ("latents.toml", "empty_caption.npz"):
        (tmp_path / "theirs" / name).unlink()
    theirs = latentq.LatentDataset(tmp_path / "theirs", recipe=tiny_recipe(), scale="scaled")
    ours = latentq.LatentDataset(encoded / "from-shards", scale="scaled")
    for name in ("latents_512", "caption_embedding"):
        assert torch.equal(theirs[1][name], ours[1][name])
    with pytest.raises(latentq.LatentqError, match="no embedding of an empty caption"):
        _ = theirs.empty_caption


def test_streams_give_embeddings_and_the_empty_caption(streaming_alone, encoded, tmp_path):
    from latentq.reading.streaming import LatentStreamingDataset

    remote = LatentStreamingDataset(remote=str(encoded / "from-shards"), local=str(tmp_path), batch_size=1)
    local = latentq.LatentDataset(encoded / "from-shards")
    for name in ("caption_embedding", "latents_256"):
        assert torch.equal(remote[2][name], local[2][name])
    assert torch.equal(remote.empty_caption["caption_embedding"], local.empty_caption["caption_embedding"])
