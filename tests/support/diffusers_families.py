"""Tiny random models of diffusers' autoencoders, and how its pipelines scale their latents."""

from types import SimpleNamespace

import diffusers
import numpy as np
import torch

KL = {
    "block_out_channels": (8, 8),
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "norm_num_groups": 4,
}
MEAN, STD = [0.1, -0.2, 0.3, -0.4], [1.5, 0.5, 2.0, 0.75]
STATISTICS = {"latents_mean": MEAN, "latents_std": STD}
VIDEO = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False],
    **STATISTICS,
}
HUNYUAN = {"latent_channels": 4, "block_out_channels": (8, 8), "layers_per_block": 1, "spatial_compression_ratio": 2}
# Name: class and options. Each makes (C, h, w) latents of 32 x 32 pixels in less than a second.
MODELS = {
    "playground": ("AutoencoderKL", {**KL, "latent_channels": 4, "scaling_factor": 0.5, **STATISTICS}),
    "glm": ("AutoencoderKL", {
        **KL, "latent_channels": 8, "latents_mean": [*MEAN, *MEAN], "latents_std": [*STD, *STD],
    }),
    "flux2": ("AutoencoderKLFlux2", {**KL, "latent_channels": 4, "layers_per_block": 1}),
    "qwen": ("AutoencoderKLQwenImage", VIDEO),
    "qwen-layered": ("AutoencoderKLQwenImage", {**VIDEO, "input_channels": 4}),
    "qwen21": ("AutoencoderKLQwenImage21", {**VIDEO, "decoder_base_dim": 8}),
    "wan21": ("AutoencoderKLWan", VIDEO),
    "wan22": ("AutoencoderKLWan", {
        **VIDEO, "decoder_base_dim": 8, "is_residual": True, "in_channels": 12, "out_channels": 12, "patch_size": 2,
    }),
    "hunyuan-image": ("AutoencoderKLHunyuanImage", {
        **HUNYUAN, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 32), "sample_size": 32,
        "scaling_factor": 0.75289,
    }),
    "hunyuan-refiner": ("AutoencoderKLHunyuanImageRefiner", {**HUNYUAN, "temporal_compression_ratio": 1}),
    "hunyuan-video15": ("AutoencoderKLHunyuanVideo15", {**HUNYUAN, "temporal_compression_ratio": 1}),
    "hunyuan-video": ("AutoencoderKLHunyuanVideo", {
        **HUNYUAN, "norm_num_groups": 4, "spatial_compression_ratio": 8, "block_out_channels": (8, 8, 8, 8),
    }),
    "cosmos": ("AutoencoderKLCosmos", {
        "latent_channels": 4, "encoder_block_out_channels": (8, 8, 8), "decode_block_out_channels": (8, 8, 8),
        "attention_resolutions": (8,), "resolution": 32, "num_layers": 1, "patch_size": 2,
        "spatial_compression_ratio": 4, "temporal_compression_ratio": 2,
        "latents_mean": np.repeat(MEAN, 2).tolist(), "latents_std": [std + frame for std in STD for frame in (0, 1)],
    }),
    "asymmetric": ("AsymmetricAutoencoderKL", {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "down_block_out_channels": (8, 8),
        "up_block_types": ("UpDecoderBlock2D",) * 2, "up_block_out_channels": (8, 16), "norm_num_groups": 4,
    }),
    "temporal-decoder": ("AutoencoderKLTemporalDecoder", {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "block_out_channels": (32, 32),
    }),
    "rae": ("AutoencoderRAE", {
        "encoder_hidden_size": 64, "encoder_patch_size": 4, "encoder_num_hidden_layers": 1, "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32,
        "patch_size": 8, "encoder_input_size": 16, "scaling_factor": 1.25,
        "latents_mean": torch.linspace(-1, 1, 1024).view(64, 4, 4),
        "latents_std": torch.linspace(0.5, 2, 1024).view(64, 4, 4),
    }),
    # Of no family that latentq knows.
    "ltx": ("AutoencoderKLLTXVideo", {
        "latent_channels": 4, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4, "patch_size": 1,
        "patch_size_t": 1, "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5, "scaling_factor": 2.0,
        "spatio_temporal_scaling": (True, True, False, False), "upsample_residual": (False,) * 4,
        "decoder_spatio_temporal_scaling": (True, True, False, False), "decoder_inject_noise": (False,) * 5,
        "upsample_factor": (1,) * 4, "down_block_types": ("LTXVideoDownBlock3D",) * 4,
    }),
}  # fmt: skip
# Those that the installed diffusers has: 0.39 has no AutoencoderKLQwenImage21.
INSTALLED = [name for name, (kind, _) in MODELS.items() if hasattr(diffusers, kind)]


def make(name):
    """Returns a tiny model with random weights and, where it has any, random statistics of its latents."""
    kind, options = MODELS[name]
    torch.manual_seed(5)
    model = getattr(diffusers, kind)(**options).eval().requires_grad_(False)
    for buffer, low in (
        ("bn.running_mean", -0.5),
        ("bn.running_var", 0.25),
        ("latents_mean", -0.5),
        ("latents_std", 0.5),
    ):
        if buffer in dict(model.named_buffers()):
            model.get_buffer(buffer).uniform_(low, 2)
    return model


def stub(model, latents):
    """Returns what a pipeline takes for its autoencoder: it has the configuration, and always encodes to `latents`."""
    encoded, buffers = SimpleNamespace(latents=latents), dict(model.named_buffers())
    return SimpleNamespace(
        config=model.config, encode=lambda _: encoded, dtype=torch.float32, bn=getattr(model, "bn", None),
        latents_mean=buffers.get("latents_mean"), latents_std=buffers.get("latents_std"),
        to=lambda *_, **__: None,
    )  # fmt: skip


def _playground(vae, latents):
    pipeline = diffusers.StableDiffusionXLImg2ImgPipeline
    return pipeline.prepare_latents(
        SimpleNamespace(vae=vae), torch.zeros(len(latents), 3, 8, 8), None, len(latents), 1, torch.float32, "cpu",
        add_noise=False,
    )  # fmt: skip


def _flux2(vae, latents):
    pipeline = diffusers.Flux2Pipeline
    patchify = pipeline._patchify_latents
    return pipeline._encode_vae_image(SimpleNamespace(vae=vae, _patchify_latents=patchify), latents, None)


def _qwen(vae, latents):
    return diffusers.QwenImageImg2ImgPipeline._encode_vae_image(SimpleNamespace(vae=vae), latents, None)


def _qwen21(vae, latents):
    return diffusers.QwenImage21Pipeline._encode_vae_image(SimpleNamespace(vae=vae, latent_channels=4), latents, None)


def _wan(vae, latents):
    pipeline = SimpleNamespace(
        vae=vae, vae_scale_factor_temporal=4, vae_scale_factor_spatial=8,
        scheduler=SimpleNamespace(add_noise=lambda scaled, *_: scaled),
    )  # fmt: skip
    prepare = diffusers.WanVideoToVideoPipeline.prepare_latents
    return prepare(pipeline, latents[:1], 1, dtype=torch.float32, device="cpu")


def _refiner(vae, latents):
    pipeline = diffusers.HunyuanImageRefinerPipeline
    reorder = pipeline._reorder_image_tokens
    scaled = pipeline._encode_vae_image(SimpleNamespace(vae=vae, _reorder_image_tokens=reorder), latents, None)
    first, second = scaled.chunk(2, 1)
    assert torch.equal(first, second)  # the frame, twice
    return first


def _hunyuan_video15(vae, _):
    processor = SimpleNamespace(preprocess=lambda *_, **__: torch.zeros(1, 3, 8, 8))
    return diffusers.HunyuanVideo15ImageToVideoPipeline._get_image_latents(vae, processor, None, 8, 8, "cpu")


def _ltx(vae, latents):
    pipeline = diffusers.LTXImageToVideoPipeline
    return pipeline._normalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)


def _statistics(vae, latents):
    """(z - mean) / std, with numbers for each channel, or for each channel and frame."""
    mean, std = (
        torch.tensor(vae.config[key]).view(1, latents.shape[1], -1, *(1,) * (latents.ndim - 3))[:, :, :1].view(
            1, -1, *(1,) * (latents.ndim - 2)
        )
        for key in ("latents_mean", "latents_std")
    )  # fmt: skip
    return (latents - mean) / std


def _factor(vae, latents):
    return latents * vae.config.scaling_factor


# How pipelines of diffusers scale the latents of their autoencoder: their own code, or else the formula of lines that
# cannot be called alone. A pipeline that takes one image at a time gets the first.
SCALED = {
    "playground": _playground,
    "glm": _statistics,  # GlmImagePipeline.__call__
    "flux2": _flux2,
    "qwen": _qwen,
    "qwen-layered": _qwen,
    "qwen21": _qwen21,
    "wan21": _wan,
    "wan22": _wan,
    "hunyuan-image": _factor,  # HunyuanImagePipeline.__call__
    "hunyuan-refiner": _refiner,
    "hunyuan-video15": _hunyuan_video15,
    "hunyuan-video": _factor,  # HunyuanVideoPipeline.__call__
    "cosmos": _statistics,  # CosmosVideoToWorldPipeline.prepare_latents, but for its scheduler's sigma_data
    "asymmetric": _factor,
    "temporal-decoder": _factor,  # StableVideoDiffusionPipeline.__call__
    "ltx": _ltx,
}
