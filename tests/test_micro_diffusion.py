"""The recipe micro-diffusion: its shards as micro_diffusion's own loader reads them."""

import numpy as np
import pytest
import torch
from PIL import Image
from streaming import StreamingDataset

import latentq
from conftest import paint


def tiny_recipe():
    """The recipe, but for a text encoder that is 32 wide and for computing in float32."""
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


def test_its_loader_finds_scaled_samples_of_two_sizes(streaming_alone, captioned, tiny_vae, tiny_open_clip, tmp_path):
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
            # Noise by counter: whatever it is, it has the posterior's spread about its mean.
            drawn = (torch.from_numpy(latent.astype(np.float32)) / 0.13025 - mean[0]) / torch.exp(logvar[0] / 2)
            assert latent.shape == (4, size // 8, size // 8)
            assert abs(float(drawn.mean())) < 0.1
            assert abs(float(drawn.std()) - 1) < 0.05
