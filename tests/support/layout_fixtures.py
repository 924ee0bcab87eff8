"""Fixtures: files and folders as other tools write them."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest


def torch_list(count, seed=0):
    """Make a list as imagenet_3gb's script saves it: every sample has its own tensors."""
    import torch

    rng = np.random.default_rng(seed)
    return [
        {
            "id": torch.tensor(7 * i),
            "latent": torch.from_numpy(rng.integers(0, 256, (32, 8, 8), np.uint8)),
            "label": torch.tensor(int(rng.integers(0, 1000))),
        }
        for i in range(count)
    ]


@pytest.fixture(scope="session")
def torch_items():
    return torch_list(300)


@pytest.fixture(scope="session")
def converted(torch_items, tmp_path_factory):
    """A dataset converted from `torch_items`; `imagenet_3gb.pt` is next to it."""
    import torch

    from latentq.converting.pipeline import convert

    folder = tmp_path_factory.mktemp("converted")
    torch.save(torch_items, folder / "imagenet_3gb.pt")
    assert convert(folder / "imagenet_3gb.pt", folder / "out") == 300
    return folder / "out"


@pytest.fixture(scope="session")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as imagenet.int8's scripts write it: two parts, merged by renaming the shards to four-digit names.

    Ten samples; the codes of sample i are `default_rng(i).integers(0, 256, 4096)`, its label i, and its class "name i".
    """
    folder = tmp_path_factory.mktemp("int8")
    writer = textwrap.dedent("""
        import numpy as np
        from streaming import MDSWriter
        from streaming.base.format.mds.encodings import Encoding, _encodings

        class uint8(Encoding):
            def encode(self, obj):
                return obj.tobytes()

            def decode(self, data):
                return np.frombuffer(data, np.uint8)

        _encodings["uint8"] = uint8
        columns = {"vae_output": "uint8", "label": "str", "label_as_text": "str"}
        for part in range(2):
            with MDSWriter(out=f"part{part}", columns=columns, size_limit=20000) as out:
                for index in range(part * 5, part * 5 + 5):
                    code = np.random.default_rng(index).integers(0, 256, 4096).astype(np.uint8)
                    out.write({"vae_output": code, "label": str(index), "label_as_text": f"name {index}"})
    """)
    subprocess.run([sys.executable, "-c", writer], cwd=folder, check=True)
    merged = folder / "merged"
    merged.mkdir()
    shards = []
    for part in range(2):
        for shard in json.loads((folder / f"part{part}" / "index.json").read_text())["shards"]:
            old, new = shard["raw_data"]["basename"], f"shard.{len(shards):04}.mds"
            (folder / f"part{part}" / old).rename(merged / new)
            shard["raw_data"]["basename"] = new
            shards.append(shard)
    assert len(shards) > 2
    (merged / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    return merged


def page_writes(path, tokens, paths):
    """Write a TSV by the own code of VQGAN-f16-16384's page."""
    import pandas as pd

    options = {"separator": ",", "max_line_width": 50000, "formatter": {"int": str}}
    encoded_as_string = [np.array2string(item, **options) for item in tokens]
    batch_df = pd.DataFrame.from_dict({"image_file": paths, "encoding": encoded_as_string})
    batch_df.to_csv(path, sep="\t", header=True, index=None)


@pytest.fixture(scope="session")
def token_rows():
    """The tokens of `tokens_tsv`: (40, 256)."""
    return np.random.default_rng(0).integers(0, 16384, (40, 256))


@pytest.fixture(scope="session")
def tokens_tsv(token_rows, tmp_path_factory):
    """A TSV of tokens as VQGAN-f16-16384's page writes it."""
    folder = tmp_path_factory.mktemp("tsv")
    page_writes(folder / "tokens.tsv", token_rows, [f'/data/naïve "{i}"\t.jpg' for i in range(40)])
    return folder / "tokens.tsv"


@pytest.fixture(scope="session")
def layout_models(tmp_path_factory):
    """Randomly initialized models of the shapes that imagenet_3gb and VQGAN-f16-16384 were made with."""
    import torch
    from diffusers import AutoencoderDC, VQModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    AutoencoderDC(
        latent_channels=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32,) * 6,
        decoder_block_out_channels=(32,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
    ).save_pretrained(folder / "dc")
    VQModel(
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
        block_out_channels=(8,) * 5,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=16384,
    ).save_pretrained(folder / "vq")
    return folder
