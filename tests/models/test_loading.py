"""Load autoencoders from folders and from the Hub."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import errors

import latentq
from latentq.models.match import autoencoder_for
from latentq.models.weights import weight_hash


def test_a_model_loads_from_a_subfolder_and_always_in_float32(tiny_vae, tmp_path):
    AutoencoderKL.from_pretrained(tiny_vae).to(torch.float16).save_pretrained(tmp_path / "vae")
    autoencoder = latentq.load_autoencoder(tmp_path, subfolder="vae")
    assert autoencoder.module.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert autoencoder.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
        assert autoencoder.decode(torch.zeros(1, 4, 2, 2)).dtype == torch.float32


def test_a_recipes_subfolder_is_ignored_in_a_folder_without_it(tiny_vae, pictures, tmp_path):
    recipe = latentq.Recipe.load("default").override(size=32, subfolder="vae")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(tiny_vae)
    card = latentq.encode(pictures, tmp_path / "out", recipe=recipe, autoencoder=tmp_path / "pipeline")
    for recipe_now in (
        recipe,
        recipe.override(subfolder="", revision="main"),
    ):  # resumed: the same weights
        assert latentq.encode(pictures, tmp_path / "out", recipe=recipe_now, autoencoder=tiny_vae) == card
    for folder in (tiny_vae, tmp_path / "pipeline"):
        assert weight_hash(autoencoder_for(card, folder)) == card.autoencoder.weights
    with pytest.raises(latentq.LatentqError, match=f"but {tiny_vae} has: say so by --subfolder ''"):
        latentq.encode(pictures, tmp_path / "other", recipe=recipe, autoencoder=tiny_vae, subfolder="unet")


def test_the_weight_hash_depends_on_the_weights_and_not_on_their_files(tiny_vae, tmp_path):
    model = AutoencoderKL.from_pretrained(tiny_vae)
    model.save_pretrained(tmp_path / "copy", max_shard_size="10KB")
    same = weight_hash(latentq.load_autoencoder(tmp_path / "copy"))
    assert same == weight_hash(latentq.load_autoencoder(tiny_vae))
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1
    model.save_pretrained(tmp_path / "other")
    assert weight_hash(latentq.load_autoencoder(tmp_path / "other")) != same


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_vae, tiny_taming):
    """A hub with three repositories; `hub.fetched` lists the downloaded files."""
    repositories = {"a/kl": tmp_path / "kl", "a/pipeline": tmp_path / "pipeline", "a/vqgan": tmp_path / "vqgan"}
    AutoencoderKL.from_pretrained(tiny_vae).save_pretrained(tmp_path / "kl", max_shard_size="20KB")
    shutil.copytree(tiny_vae, tmp_path / "pipeline" / "vae")
    for extra in ("vae/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors", "large.ckpt"):
        (tmp_path / "pipeline" / extra).touch()
    shutil.copytree(tiny_taming, tmp_path / "vqgan")
    log = SimpleNamespace(fetched=[])

    def names(_self, name, revision):
        if name not in repositories:
            raise errors.RepositoryNotFoundError(name, response=SimpleNamespace(headers={}, request=None))
        if revision not in (None, "v1"):
            raise errors.RevisionNotFoundError(revision, response=SimpleNamespace(headers={}, request=None))
        return [path.relative_to(repositories[name]).as_posix() for path in repositories[name].rglob("*.*")]

    def fetch(name, file, revision):
        log.fetched.append(file)
        return str(repositories[name] / file)

    monkeypatch.setattr("latentq.models.hub._reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return log


def test_only_the_model_is_downloaded_from_a_repository(hub, tiny_vae, tiny_taming):
    weights = weight_hash(latentq.load_autoencoder(tiny_vae))
    sharded = latentq.load_autoencoder("a/kl", revision="v1")
    assert (sharded.name, weight_hash(sharded)) == ("a/kl", weights)
    assert len(hub.fetched) > 3
    hub.fetched.clear()
    assert weight_hash(latentq.load_autoencoder("a/pipeline", subfolder="vae")) == weights
    assert hub.fetched == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    vqgan = latentq.load_autoencoder("a/vqgan")
    assert (vqgan.name, weight_hash(vqgan)) == ("a/vqgan", weight_hash(latentq.load_autoencoder(tiny_taming)))


def test_an_incomplete_repository_is_one_error_line(hub):
    for name, options, message in [
        ("a/nothing", {}, "no such repository"),
        ("a/kl", {"revision": "v2"}, "no revision 'v2'"),
        ("a/pipeline", {}, "subfolder 'vae' has one"),
        ("a/kl", {"subfolder": "vae"}, "has no vae/config.json.*outside of that subfolder.*--subfolder ''"),
    ]:
        with pytest.raises(latentq.LatentqError, match=f"cannot load the autoencoder '{name}': .*{message}") as caught:
            latentq.load_autoencoder(name, **options)
        assert "\n" not in str(caught.value)
        assert not hub.fetched


def test_the_cache_is_enough_without_the_hub(tiny_vae, tmp_path, monkeypatch):
    cached = tmp_path / "models--a--pipeline"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_vae, cached / "snapshots" / ("0" * 40) / "vae")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    network = latentq.load_autoencoder("a/pipeline", subfolder="vae")
    assert (network.name, weight_hash(network)) == ("a/pipeline", weight_hash(latentq.load_autoencoder(tiny_vae)))
    with pytest.raises(latentq.LatentqError, match="subfolder 'vae' has"):
        latentq.load_autoencoder("a/pipeline")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch, capfd):
    asked = []

    def head(*_, **__):
        asked.append(1)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    with pytest.raises(latentq.LatentqError, match="cannot be reached and its cache does not hold the model"):
        latentq.load_autoencoder("nobody/nothing")
    assert asked == [1]
    assert capfd.readouterr() == ("", "")


def test_an_unloadable_autoencoder_is_one_error_line(tiny_vae, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "vae").symlink_to(tiny_vae)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "no-weights").mkdir()
    (tmp_path / "no-weights" / "config.json").write_text((tiny_vae / "config.json").read_text())
    for name, message in [
        ("dct", "no autoencoder 'dct'"),
        (tmp_path / "empty", r"no config\.json and no checkpoint"),
        (tmp_path / "pipeline", "subfolder 'vae'"),
        (tmp_path / "other", "UNet2DModel"),
        (tmp_path / "broken", "cannot load"),
        (tmp_path / "no-weights", r"there is no diffusion_pytorch_model\.safetensors and no .*\.bin$"),
        ("nobody/nothing", "cannot load the autoencoder 'nobody/nothing'"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message) as caught:
            latentq.load_autoencoder(name)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_incomplete_weights_are_refused(tiny_vae, tmp_path):
    from safetensors.torch import load_file, save_file

    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "config.json").write_text((tiny_vae / "config.json").read_text())
    weights = load_file(tiny_vae / "diffusion_pytorch_model.safetensors")
    del weights["encoder.conv_in.weight"]
    save_file(weights, tmp_path / "part" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(latentq.LatentqError, match=r"do not fit: 1 tensor missing, encoder\.conv_in\.weight first"):
        latentq.load_autoencoder(tmp_path / "part")
