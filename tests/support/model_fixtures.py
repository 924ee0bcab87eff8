"""Fixtures: tiny models of the real classes with random weights, saved as their libraries save them."""

from pathlib import Path

import pytest

from support.making import save_as_taming
from support.text_making import save_clip, save_open_clip, save_t5


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized `AutoencoderKL`, saved by diffusers; its latents are (4, S/8, S/8)."""
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
def tiny_vq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized `VQModel`, saved by diffusers; its latents are (4, S/4, S/4), with 300 codes."""
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
    """The weights of `tiny_vq` as taming-transformers saves them: `last.ckpt` and `model.yaml`."""
    from diffusers import VQModel

    folder = tmp_path_factory.mktemp("models") / "tiny-taming"
    save_as_taming(VQModel.from_pretrained(tiny_vq), folder)
    return folder


@pytest.fixture(scope="session")
def tiny_open_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized open_clip model: captions of 77 tokens, width 32, pooled width 24."""
    return save_open_clip(tmp_path_factory.mktemp("models") / "tiny-open-clip")


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `text_encoder` and `tokenizer` of a diffusers pipeline: a `CLIPTextModel`, 16 tokens, both widths 32.

    With the suffix _2, an encoder with projection: pooled width 24.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny-clip"
    save_clip(folder, seed=1, projected=True, number="_2")
    return save_clip(folder)


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialized `T5EncoderModel` with its tokenizer: 20 tokens, width 32."""
    return save_t5(tmp_path_factory.mktemp("models") / "tiny-t5")


@pytest.fixture(scope="session")
def families(tmp_path_factory, tiny_vae, tiny_vq, tiny_taming):
    """The folders of tiny random models by name: each of diffusers' classes, and one of taming-transformers."""
    import torch
    from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

    folder = tmp_path_factory.mktemp("families")
    torch.manual_seed(3)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(folder / "flux")
    AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=["ResBlock", "EfficientViTBlock"],
        decoder_block_types=["ResBlock", "EfficientViTBlock"],
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.41407,
    ).save_pretrained(folder / "dc")
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    ).save_pretrained(folder / "taesd")
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        num_vq_embeddings=50,
        norm_type="spatial",
    )
    torch.nn.init.normal_(movq.quantize.embedding.weight)
    movq.save_pretrained(folder / "movq")
    return {"kl": tiny_vae, "vq": tiny_vq, "taming": tiny_taming} | {path.name: path for path in folder.iterdir()}
