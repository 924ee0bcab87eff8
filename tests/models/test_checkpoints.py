"""Checkpoints of VA-VAE, MAR, LlamaGen and MaskGIT, compared with what their networks compute."""

import argparse
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import latentq
from latentq.format.normalization import Normalization
from latentq.models.autoencoders import Posterior, Tokenizer
from latentq.models.autoencoders.checkpoint import Checkpoint
from latentq.models.autoencoders.ldm import LdmAutoencoder
from latentq.models.autoencoders.llamagen import LlamaGenAutoencoder
from latentq.models.autoencoders.maskgit import MaskGitAutoencoder
from latentq.models.group_norm import GroupNormSiLU, with_fused_norms
from latentq.models.weights import weight_hash
from support.checkpoint_making import (
    LlamaGenReference,
    MaskGitReference,
    Reference,
    llamagen_shapes,
    maskgit_shapes,
    random_state,
    taming_shapes,
)

PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
MEAN, STD = torch.tensor([0.5, -1.0, 0.25, 2.0]), torch.tensor([1.0, 2.0, 0.5, 4.0])

VA_VAE = random_state(taming_shapes(32, (1, 1, 2), 4, 8, 4))
MAR = random_state(taming_shapes(32, (1, 2), 16, 32, 16, decoder_attends=False))
LLAMAGEN = random_state(llamagen_shapes(32, (1, 1, 2), 8, 4, 60))
MASKGIT = random_state(maskgit_shapes(32, (1, 2, 2), 8, 60))


def save_va_vae(folder, state=VA_VAE):
    """Write a checkpoint as LightningDiT does, with what only training needs, and its statistics."""
    folder.mkdir()
    more = {
        "loss.logvar": torch.zeros(()),
        "foundation_model.model.blocks.0.norm1.weight": torch.zeros(8),
        "linear_proj.weight": torch.zeros(8, 4, 1, 1),
    }
    data = {"epoch": 50, "state_dict": {**state, **more}, "optimizer_states": [{"state": {}}]}
    torch.save(data, folder / "vavae-imagenet256-f16d32-dinov2.pt")
    statistics = {"mean": MEAN.view(1, 4, 1, 1), "std": STD.view(1, 4, 1, 1)}
    torch.save(statistics, folder / "latents_stats.pt")
    return folder


def save_mar(path, state=MAR):
    torch.save({"model": state}, path)
    return path


def save_llamagen(path, state=LLAMAGEN):
    options = argparse.Namespace(vq_model="VQ-16", codebook_size=16384)
    torch.save({"model": state, "steps": 7, "args": options}, path)
    return path


def save_maskgit(path, state=MASKGIT):
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The checkpoints by the name of their project."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "va-vae": save_va_vae(folder / "va-vae"),
        "mar": save_mar(folder / "kl16.ckpt"),
        "llamagen": save_llamagen(folder / "vq_ds16_c2i.pt"),
        "maskgit": save_maskgit(folder / "maskgit-vqgan-imagenet-f16-256.bin"),
    }


def close(values, expected):
    torch.testing.assert_close(values.double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "state", "levels", "normalization"),
    [
        ("va-vae", VA_VAE, 3, Normalization(1.0, tuple(MEAN.tolist()), tuple(STD.tolist()))),
        ("mar", MAR, 2, Normalization(0.2325)),
    ],
)
def test_a_kl_autoencoder_computes_what_its_project_computes(saved, name, state, levels, normalization):
    network, reference = latentq.load_autoencoder(saved[name]), Reference(state, levels)
    assert isinstance(network, Posterior)
    assert (network.family, network.normalization, network.pixel_range) == (
        "ldm.AutoencoderKL",
        normalization,
        (-1.0, 1.0),
    )
    channels, reduction = len(state["post_quant_conv.weight"][0]), 2 ** (levels - 1)
    assert network.latent_shape(16) == (channels, 16 // reduction, 16 // reduction)
    mean, logvar = reference.encode(PIXELS).chunk(2, 1)
    close(network.encode(PIXELS), mean)
    for ours, theirs in zip(network.posterior(PIXELS), (mean, logvar.clamp(-30, 20)), strict=True):
        close(ours, theirs)
    close(network.decode(mean.float()), reference.decode(mean))


def test_log_variances_are_limited(tmp_path):
    state = MAR | {"quant_conv.bias": torch.tensor([0.0] * 16 + [1000.0] * 8 + [-1000.0] * 8)}
    logvar = latentq.load_autoencoder(save_mar(tmp_path / "kl16.ckpt", state)).posterior(PIXELS)[1]
    assert logvar.unique().tolist() == [-30.0, 20.0]


@pytest.mark.parametrize(
    ("name", "reference", "pixel_range"),
    [
        ("llamagen", LlamaGenReference(LLAMAGEN, 3), (-1.0, 1.0)),
        ("maskgit", MaskGitReference(MASKGIT, 3), (0.0, 1.0)),
    ],
)
def test_a_tokenizer_computes_what_its_project_computes(saved, name, reference, pixel_range):
    network = latentq.load_autoencoder(saved[name])
    assert isinstance(network, Tokenizer)
    assert (network.pixel_range, network.codebook_size) == (pixel_range, 60)
    assert network.latent_shape(16) == (4 if name == "llamagen" else 8, 4, 4)
    latents, tokens = reference.encode(PIXELS), reference.tokens(PIXELS)
    assert len(tokens.unique()) > 4
    close(network.encode(PIXELS), latents)
    assert torch.equal(network.tokens(PIXELS), tokens)
    close(network.decode_tokens(tokens), reference.decode(tokens))
    close(network.decode(latents.float()), reference.decode(tokens))
    assert network.tokens(torch.full((1, 3, 16, 16), torch.nan)).unique().tolist() == [-1]


def test_lengths_do_not_matter_to_llamagens_codes(tmp_path, saved):
    lengths = torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) * 9 + 0.1
    state = LLAMAGEN | {"quantize.embedding.weight": LLAMAGEN["quantize.embedding.weight"] * lengths}
    other = latentq.load_autoencoder(save_llamagen(tmp_path / "vq.pt", state))
    assert torch.equal(other.tokens(PIXELS), latentq.load_autoencoder(saved["llamagen"]).tokens(PIXELS))


class Described(Checkpoint):
    """A checkpoint of these shapes that is not in any file."""

    def __init__(self, shapes):
        self.path = Path("described.pt")
        self._records = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items()}

    def fill(self, module):
        assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == self.shapes


@pytest.mark.parametrize(
    ("family", "shapes", "parameters", "latent"),
    [
        (LdmAutoencoder, taming_shapes(128, (1, 1, 2, 2, 4), 32, 64, 32), 69_836_067, (32, 16, 16)),
        (
            LdmAutoencoder,
            taming_shapes(128, (1, 1, 2, 2, 4), 16, 32, 16, decoder_attends=False),
            66_456_019,
            (16, 16, 16),
        ),
        (LlamaGenAutoencoder, llamagen_shapes(128, (1, 1, 2, 2, 4), 256, 8, 16384), 71_883_403, (8, 16, 16)),
        (LlamaGenAutoencoder, llamagen_shapes(128, (1, 2, 2, 4), 256, 8, 16384), 70_109_835, (8, 32, 32)),
        (MaskGitAutoencoder, maskgit_shapes(128, (1, 1, 2, 2, 4), 256, 1024), 54_515_587, (256, 16, 16)),
    ],
    ids=["va-vae", "mar", "vq-16", "vq-8", "maskgit"],
)
def test_networks_of_the_real_sizes_have_the_real_tensors(family, shapes, parameters, latent):
    """The numbers of parameters are those of each project's own network."""
    shapes.pop("quantize.codebook_used", None)
    assert sum(map(math.prod, shapes.values())) == parameters
    assert family.recognizes(shapes)
    assert family.load(Described(shapes), "real").latent_shape(256) == latent


@pytest.mark.parametrize(("name", "state"), [("mar", MAR), ("llamagen", LLAMAGEN), ("maskgit", MASKGIT)])
def test_every_group_norm_before_a_silu_can_be_fused(saved, name, state):
    network = latentq.load_autoencoder(saved[name])
    fused = with_fused_norms(network)
    norms = [part for part in fused.module.modules() if isinstance(part, GroupNormSiLU) and part.fused]
    assert len(norms) == len([key for key in state if re.search(r"norm(1|2|_out)\.weight$", key)])
    assert torch.equal(fused.encode(PIXELS), network.encode(PIXELS))


def test_a_folder_or_a_file_names_the_same_network(saved):
    by_folder = latentq.load_autoencoder(saved["va-vae"])
    by_file = latentq.load_autoencoder(saved["va-vae"] / "vavae-imagenet256-f16d32-dinov2.pt")
    assert (by_folder.name, by_file.name) == ("va-vae", "vavae-imagenet256-f16d32-dinov2")
    assert weight_hash(by_folder) == weight_hash(by_file)
    assert by_folder.normalization == by_file.normalization


def test_a_checkpoint_without_statistics_says_what_was_assumed(tmp_path, saved):
    (save_va_vae(tmp_path / "va-vae") / "latents_stats.pt").unlink()
    network = latentq.load_autoencoder(tmp_path / "va-vae")
    assert network.normalization == Normalization()
    assert latentq.load_autoencoder(saved["mar"]).note.endswith("layers of MAR's KL-16: scaled latents are z * 0.2325")
    assert latentq.load_autoencoder(saved["va-vae"]).note == ""
    assert re.match(r"there is no latents_stats.pt next to .*: scaled latents are as raw latents", network.note)


@pytest.mark.parametrize(
    ("statistics", "reason"),
    [
        (b"no", "not a torch file"),
        ([1], "list indices must be integers"),
        ({"mean": MEAN.view(1, 4, 1, 1)}, "'std'"),
        ({"mean": MEAN, "std": STD}, r"tensors of shape \(1, 4, 1, 1\)"),
        ({"mean": MEAN.view(1, 4, 1, 1), "std": 5}, r"tensors of shape \(1, 4, 1, 1\)"),
        ({"mean": MEAN.view(1, 4, 1, 1), "std": -STD.view(1, 4, 1, 1)}, "std must be positive"),
        ({"mean": MEAN.view(1, 4, 1, 1) / 0, "std": STD.view(1, 4, 1, 1)}, "must be finite numbers"),
        ({"mean": torch.zeros(1, 5, 1, 1), "std": torch.ones(1, 5, 1, 1)}, r"tensors of shape \(1, 4, 1, 1\)"),
    ],
)
def test_broken_statistics_are_one_error_line(tmp_path, statistics, reason):
    path = save_va_vae(tmp_path / "va-vae") / "latents_stats.pt"
    path.unlink()
    if isinstance(statistics, bytes):
        path.write_bytes(statistics)
    else:
        torch.save(statistics, path)
    with pytest.raises(latentq.LatentqError, match=reason) as caught:
        latentq.load_autoencoder(tmp_path / "va-vae")
    assert str(caught.value).startswith(f"{path}: not the statistics of latents: ")
    assert "\n" not in str(caught.value)


STATES = {"mar": (save_mar, MAR), "llamagen": (save_llamagen, LLAMAGEN), "maskgit": (save_maskgit, MASKGIT)}


@pytest.mark.parametrize("name", STATES)
def test_a_checkpoint_must_have_exactly_the_networks_tensors(tmp_path, name):
    save, state = STATES[name]
    lacking = {key: value for key, value in state.items() if key != "decoder.conv_in.bias"}
    for changed, reason in [
        (lacking, r"1 tensor missing, decoder\.conv_in\.bias first"),
        (state | {"ema.decay": torch.zeros(1)}, r"1 tensor left over, ema\.decay first"),
        (
            state | {"encoder.norm_out.bias": torch.zeros(5)},
            r"1 tensor of another shape, encoder\.norm_out\.bias first",
        ),
        ({key: value for key, value in state.items() if "encoder.conv_in" not in key}, "encoder.conv_in.weight"),
        ({key: value for key, value in state.items() if "encoder.conv_out" not in key}, "encoder.conv_out"),
        (state | {"encoder.conv_in.weight": torch.zeros(33, 3, 3, 3)}, "of another shape|not an autoencoder"),
        (state | {"encoder.conv_in.weight": torch.zeros(5)}, "not an autoencoder of its kind"),
        (state | {"encoder.norm_out.bias": 5}, "something else than tensors"),
    ]:
        path = save(tmp_path / "model.pt", changed)
        with pytest.raises(latentq.LatentqError, match=reason) as caught:
            latentq.load_autoencoder(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_tensors_that_share_a_storage_cannot_claim_more_memory_than_the_file_has(tmp_path):
    shapes = taming_shapes(128, (1, 1, 2, 2, 4), 16, 32, 16)
    state = {name: torch.zeros(1, dtype=torch.uint8).expand(shape) for name, shape in shapes.items()}
    with pytest.raises(latentq.LatentqError, match="have more elements than the file has bytes"):
        latentq.load_autoencoder(save_mar(tmp_path / "kl16.ckpt", state))


def test_what_is_no_known_checkpoint_is_one_error_line(tmp_path, saved):
    torch.save({"weight": torch.zeros(3)}, tmp_path / "linear.pt")
    (tmp_path / "short.bin").write_bytes(saved["maskgit"].read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("no")
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "empty").mkdir()
    for name, reason in [
        ("linear.pt", "its tensors are those of no known autoencoder"),
        ("short.bin", "not a checkpoint that can be read"),
        ("text.pth", "not a checkpoint that can be read"),
        ("fifo.pt", "there is no checkpoint"),
        ("absent.pt", "there is no checkpoint"),
        ("absent", "no autoencoder .*: it is no folder, no checkpoint"),
        ("empty", r"no config\.json and no checkpoint"),
    ]:
        with pytest.raises(latentq.LatentqError, match=reason) as caught:
            latentq.load_autoencoder(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_loading_calls_nothing_that_a_checkpoint_names(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    for save, state in STATES.values():
        path = save(tmp_path / "model.pt", state | {"loss.harm": Harm()})
        assert latentq.load_autoencoder(path).name == "model"
    folder = save_va_vae(tmp_path / "va-vae")
    torch.save({"mean": Harm(), "std": Harm()}, folder / "latents_stats.pt")
    with pytest.raises(latentq.LatentqError, match="not the statistics of latents"):
        latentq.load_autoencoder(folder)
    assert not (tmp_path / "harm").exists()


@pytest.fixture
def hub(monkeypatch, tmp_path, saved):
    """Two repositories on the Hub: one with a checkpoint, one with several; returns the downloaded files."""
    save_va_vae(tmp_path / "vae")
    (tmp_path / "vae" / "README.md").touch()
    (tmp_path / "several").mkdir()
    for name in ("c2i_B_256.pt", "README.md"):
        (tmp_path / "several" / name).touch()
    (tmp_path / "several" / "vq_ds16_c2i.pt").symlink_to(saved["llamagen"])
    repositories = {"hustvl/vae": tmp_path / "vae", "FoundationVision/LlamaGen": tmp_path / "several"}
    fetched = []

    def names(_self, name, revision):
        return sorted(path.name for path in repositories[name].iterdir())

    def fetch(name, file, revision):
        fetched.append(file)
        return str(repositories[name] / file)

    monkeypatch.setattr("latentq.models.hub._reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.chdir(tmp_path)
    return fetched


def test_a_repository_with_one_checkpoint_is_named_alone_and_one_of_several_with_its_file(hub, saved):
    network = latentq.load_autoencoder("hustvl/vae")
    assert hub == ["latents_stats.pt", "vavae-imagenet256-f16d32-dinov2.pt"]
    assert (network.name, network.normalization.mean) == ("hustvl/vae", tuple(MEAN.tolist()))
    hub.clear()
    network = latentq.load_autoencoder("FoundationVision/LlamaGen/vq_ds16_c2i.pt")
    assert hub == ["vq_ds16_c2i.pt"]
    assert network.name == "FoundationVision/LlamaGen/vq_ds16_c2i.pt"
    assert weight_hash(network) == weight_hash(latentq.load_autoencoder(saved["llamagen"]))
    hub.clear()
    for name, reason in [
        ("FoundationVision/LlamaGen", "it holds 2 checkpoints: name one of them, as owner/name/c2i_B_256.pt"),
        (
            "FoundationVision/LlamaGen/absent.pt",
            r"there is no file .*/absent\.pt here; on the Hub: .*it has no absent\.pt",
        ),
        ("several/deep/absent.pt", "there is no checkpoint several/deep/absent.pt"),
    ]:
        with pytest.raises(latentq.LatentqError, match=reason):
            latentq.load_autoencoder(name)
    assert hub == []


def test_the_recipe_stores_what_lightningdit_trains_on(saved, pictures, tmp_path):
    card = latentq.encode(pictures, tmp_path / "out", recipe="va-vae", autoencoder=saved["va-vae"], size=32, seed=0)
    recipe = latentq.Recipe.load("va-vae")
    assert (recipe.autoencoder.model, recipe.image.crop) == ("hustvl/vavae-imagenet256-f16d32-dinov2", "adm")
    assert [column.flip for column in recipe.latents().values()] == [False, True]
    assert card.autoencoder.normalization == Normalization(1.0, tuple(MEAN.tolist()), tuple(STD.tolist()))
    raw, scaled = (latentq.LatentDataset(tmp_path / "out", scale=scale) for scale in ("raw", "scaled"))
    for name in ("latent", "latent_flip"):
        latents = torch.stack([sample[name] for sample in raw])
        expected = (latents - MEAN.view(4, 1, 1)) / STD.view(4, 1, 1)
        torch.testing.assert_close(torch.stack([sample[name] for sample in scaled]), expected, atol=1e-5, rtol=1e-5)
