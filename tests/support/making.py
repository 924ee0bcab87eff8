"""Make small latent datasets without the pipeline, and checkpoints as taming-transformers writes them."""

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np

from latentq import mds
from latentq.format.card import CARD, Card
from latentq.format.facts import AutoencoderFacts, LatentFacts, SampleCounts, SourceFacts
from latentq.format.normalization import Normalization
from latentq.format.recipe import Recipe
from latentq.quantizer import Quantizer, Statistics

SCALING_FACTOR = 0.25


@dataclass(frozen=True)
class ReferenceDataset:
    """A dataset and its contents; `values` are the float64 values of the codes, computed here and not by latentq."""

    path: Path
    codes: np.ndarray
    values: np.ndarray
    labels: np.ndarray
    card: Card

    @property
    def keys(self):
        return [f"{i:06d}.png" for i in range(len(self.codes))]


def make_dataset(
    path,
    count=40,
    *,
    shape=(3, 4, 5),
    bits=8,
    kind="affine",
    low=-3.0,
    scaled=False,
    weights="sha256:1",
    label_encoding="int",
    size_limit=1 << 26,
    latents=("latent",),
    seed=0,
    hashes=(),
):
    """Write a finished dataset with the columns latent, key, label and caption."""
    rng = np.random.default_rng(seed)
    channels = shape[0]
    if kind in ("float32", "float16", "bfloat16"):
        quantizer = Quantizer.floating(kind, channels=channels)
        values = rng.normal(size=(count, *shape)).astype(np.float16)
        codes = {
            "float32": values.astype(np.float32),
            "float16": values,
            "bfloat16": (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16),
        }[kind]
        if kind == "bfloat16":
            values = (codes.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float64)
        encoding = f"ndarray:{codes.dtype}:{','.join(map(str, shape))}"
    else:
        codes = rng.integers(0, 1 << bits, size=(count, *shape), dtype=np.uint8)
        lows = low - np.arange(channels)
        highs = 2.5 + np.arange(channels)
        codes[:, lows == highs] = 0
        if kind == "affine":
            quantizer = Quantizer.affine(lows.tolist(), highs.tolist(), bits=bits)
            steps = (highs - lows) / ((1 << bits) - 1)
            values = lows[:, None, None] + codes * steps[:, None, None]
        elif kind == "trellis":
            levels = np.sort(rng.normal(size=(channels, 2 << bits)), axis=1).astype(np.float32)
            quantizer = Quantizer.trellis(levels)
            u = np.pad(codes.reshape(count, -1) & 1, ((0, 0), (3, 0)))
            label = 2 * (u[:, 3:] ^ u[:, 2:-1] ^ u[:, :-3]) + u[:, 1:-2]
            numbers = 4 * (codes.astype(int) >> 1) + label.reshape(codes.shape)
            values = levels[np.arange(channels)[:, None, None], numbers].astype(np.float64)
        else:
            levels = np.sort(rng.normal(size=(channels, 1 << bits)), axis=1).astype(np.float32)
            quantizer = Quantizer.codebook(levels)
            values = levels[np.arange(channels)[:, None, None], codes].astype(np.float64)
        stored = ",".join(map(str, shape)) if bits == 8 else quantizer.packed_bytes(int(np.prod(shape)))
        encoding = f"ndarray:uint8:{stored}"
    labels = rng.integers(0, 1000, size=count)
    columns = dict.fromkeys(latents, encoding) | {"key": "str", "label": label_encoding, "caption": "str"}
    reference = ReferenceDataset(
        Path(path), codes, values, labels, _card(columns, latents, shape, quantizer, values, scaled, weights)
    )
    rows = codes if bits == 8 else quantizer.pack(codes)
    with mds.Writer(reference.path, columns, size_limit=size_limit, hashes=hashes) as writer:
        for i in range(count):
            label = int(labels[i]) if label_encoding == "int" else str(labels[i])
            sample = {"key": reference.keys[i], "label": label, "caption": f"picture {i}"}
            writer.write(sample | dict.fromkeys(latents, rows[i]))
        writer.add_file(CARD, reference.card.to_toml())
    return reference


def _card(columns, latents, shape, quantizer, values, scaled, weights):
    recipe = {
        "name": "test",
        "columns": {name: {"from": "latent", "scaled": scaled} for name in latents}
        | {name: {"from": name, "encoding": columns[name]} for name in ("key", "label", "caption")},
    }
    axes = (0, 2, 3)
    count = [values[:, 0].size] * shape[0]
    stats = Statistics(*map(tuple, (count, *(f(values, axes).tolist() for f in (np.mean, np.std, np.min, np.max)))))
    return Card(
        source=SourceFacts(kind="folder", samples=len(values), sha256="0" * 64),
        recipe=Recipe.from_dict(recipe),
        autoencoder=AutoencoderFacts("toy", "Toy", weights, Normalization(SCALING_FACTOR), (-1.0, 1.0)),
        columns=columns,
        latents={name: LatentFacts(shape, quantizer, stats, (0,) * shape[0]) for name in latents},
        counts=SampleCounts(samples=len(values), rejects=0),
        versions={},
    )


# Patterns of the keys that diffusers renamed in taming-transformers' network, and their names there.
_TAMING_NAMES = {
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0": "mid.attn_1",
    r"down_blocks": "down",
    r"(down|up)samplers\.0": r"\1sample",
    r"resnets": "block",
    r"attentions": "attn",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
    r"group_norm": "norm",
    r"to_(q|k|v)": r"\1",
    r"to_out\.0": "proj_out",
}


def taming_state_dict(model):
    """Return a diffusers VQModel's weights with the names and shapes of taming-transformers."""
    levels = len(model.config.block_out_channels)
    state = {}
    for key, value in model.state_dict().items():
        key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
        attention = "attentions" in key and value.ndim == 2  # a 1x1 convolution in taming, a matrix in diffusers
        for pattern, name in _TAMING_NAMES.items():
            key = re.sub(pattern, name, key)
        state[key] = value[:, :, None, None] if attention else value
    return state


def taming_params(model):
    """Return the `model.params` of taming-transformers' configuration for a diffusers VQModel."""
    config = model.config
    width, attends = config.block_out_channels[0], [kind.startswith("Attn") for kind in config.down_block_types]
    ddconfig = {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": width,
        "ch_mult": [channels // width for channels in config.block_out_channels],
        "num_res_blocks": config.layers_per_block,
        "attn_resolutions": [64 // 2**level for level, attend in enumerate(attends) if attend],
        "dropout": 0.0,
    }
    return {
        "embed_dim": config.vq_embed_dim,
        "n_embed": config.num_vq_embeddings,
        "ddconfig": ddconfig,
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"},
    }


def save_as_taming(model, folder, *, state=None, target="taming.models.vqgan.VQModel"):
    """Write `last.ckpt` and `model.yaml` as Lightning does: with the loss, and with classes that are not installed."""
    import torch
    import yaml

    params = taming_params(model)
    folder.mkdir()
    (folder / "model.yaml").write_text(yaml.dump({"model": {"target": target, "params": params}}))
    state = taming_state_dict(model) if state is None else state
    foreign = type("ModelCheckpoint", (dict,), {"__module__": "not_installed"})
    sys.modules["not_installed"] = ModuleType("not_installed")
    sys.modules["not_installed"].ModelCheckpoint = foreign
    options = foreign(monitor="val/rec_loss")
    options.mode = "min"
    data = {
        "epoch": 7,
        "callbacks": {foreign: {"best_model_path": "last.ckpt"}},
        "hyper_parameters": [options],
        "best_score": np.float64(0.5),
        "optimizer_states": [{"state": {0: {"step": 3, "exp_avg": torch.zeros(3)}}}],
        "state_dict": {**state, "loss.discriminator.main.0.weight": torch.zeros(2, 3, 4, 4)},
    }
    torch.save(data, folder / "last.ckpt")
    del sys.modules["not_installed"]
