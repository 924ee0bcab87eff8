"""What every test can use: the photographs and latents kept beside the checkout, where they are."""

import fcntl
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def photographs() -> Path:
    """64 ImageNet photographs in class folders. Tests that need them are skipped where they are absent."""
    folder = SHARED / "images"
    if not folder.is_dir():
        pytest.skip("the shared photographs are not here")
    return folder


@pytest.fixture(scope="session")
def latents() -> Path:
    """Real latents as float16 .npy files. Tests that need them are skipped where they are absent."""
    folder = SHARED / "latents"
    if not folder.is_dir():
        pytest.skip("the shared latents are not here")
    return folder


@pytest.fixture
def streaming_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests with a StreamingDataset run one at a time, also where pytest-xdist runs several.

    mosaicml-streaming takes names in shared memory by looking which are free, which two processes can do at once.
    """
    with (tmp_path_factory.getbasetemp().parent / "streaming.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def paint(path: Path, seed: int, size: tuple[int, int] = (96, 72)) -> None:
    """Saves a smooth random picture, (width, height) pixels, in the format that the name says."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 8, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve small generated pictures in three class folders, JPEG and PNG, in a folder of their own."""
    folder = tmp_path / "pictures"
    for index in range(12):
        name = f"{index:02}.{'png' if index % 3 else 'jpg'}"
        paint(folder / ["ant", "bee", "cat"][index % 3] / name, index, (90 + index, 70 + 3 * index))
    return folder


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised `AutoencoderKL` of the real class, saved by diffusers: (4, S/8, S/8)."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny-vae"
    AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def int8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What imagenet.int8's scripts write: two ranges apart, merged by renaming the shards to four-digit names.

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


@pytest.fixture(scope="session")
def tiny_vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised `VQModel` of the real class, saved by diffusers: (4, S/4, S/4), 300 codes."""
    import torch
    from diffusers import VQModel

    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("models") / "tiny-vq"
    model = VQModel(
        down_block_types=["DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        vq_embed_dim=4,
        num_vq_embeddings=300,
    )
    torch.nn.init.normal_(model.quantize.embedding.weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_taming(tmp_path_factory: pytest.TempPathFactory, tiny_vq: Path) -> Path:
    """The weights of `tiny_vq` as taming-transformers would have saved them: `last.ckpt` and `model.yaml`."""
    from diffusers import VQModel

    from support.making import save_as_taming

    folder = tmp_path_factory.mktemp("models") / "tiny-taming"
    save_as_taming(VQModel.from_pretrained(tiny_vq), folder)
    return folder


def run(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """One `latentq` command as a process of its own, its output caught."""
    command = [sys.executable, "-m", "latentq", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, **options)


def heed_interrupts() -> None:
    """For `preexec_fn`: a child heeds Ctrl-C even where the tests run in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything below a folder, by relative path; a folder in it ends with `/` and holds nothing itself."""
    return {
        f"{path.relative_to(folder)}{'/' if path.is_dir() else ''}": b"" if path.is_dir() else path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised open_clip model: captions of 77 tokens, 32 wide, 24 pooled."""
    from support.text_making import save_open_clip

    return save_open_clip(tmp_path_factory.mktemp("models") / "tiny-open-clip")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder's `text_encoder` and `tokenizer`: a `CLIPTextModel`, 16 tokens, 32 wide and pooled.

    Beside them, with the suffix _2, one with projection: 24 pooled.
    """
    from support.text_making import save_clip

    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    save_clip(folder, seed=1, projected=True, number="_2")
    return save_clip(folder)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised `T5EncoderModel` with its tokenizer: 20 tokens, 32 wide."""
    from support.text_making import save_t5

    return save_t5(tmp_path_factory.mktemp("models") / "tiny-t5")
