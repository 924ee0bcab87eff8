"""torch.set_default_device does not change what latentq reads and writes: CPU tensors stay on the CPU.

The device `meta` stands for a GPU: its tensors have no values, so that any use of one fails.
"""

import pytest
import torch

from conftest import contents
from latentq import LatentDataset, LatentMixture, encode
from support.making import make_dataset

CASES = [("affine", torch.float32), ("affine", torch.bfloat16), ("affine", torch.uint8), ("float32", torch.float32)]


@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
def test_reading_is_independent_of_the_default_device(tmp_path, kind, dtype):
    reference = make_dataset(tmp_path / "out", 20, kind=kind)
    dataset = LatentDataset(reference.path, dtype=dtype)
    expected = dataset.batch(range(20))
    with torch.device("meta"):
        sources = [LatentDataset(reference.path, dtype=dtype), dataset.to_device("cpu"), LatentMixture([dataset])]
        for source in sources:
            [batch] = source.loader(20, label_dropout=0.5)
            for values in (batch, source.batch(range(20))):
                assert torch.equal(values["latent"], expected["latent"])
                assert torch.equal(values["label"], expected["label"])
            assert batch["drop_label"].device == batch["valid"].device == torch.device("cpu")
            assert torch.equal(source[3]["latent"], expected["latent"][3])


def test_encoding_and_decoding_are_independent_of_the_default_device(pictures, tmp_path):
    encode(pictures, tmp_path / "out", autoencoder="dct-f8c16", size=64)
    picture = LatentDataset(tmp_path / "out").decode(5)
    with torch.device("meta"):
        encode(pictures, tmp_path / "other", autoencoder="dct-f8c16", size=64)
        assert LatentDataset(tmp_path / "other").decode(5).tobytes() == picture.tobytes()
    assert contents(tmp_path / "other") == contents(tmp_path / "out")
