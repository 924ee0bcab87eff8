"""The families of diffusers' autoencoders: tiny random models, compared with its classes and its pipelines."""

import inspect
import io
import json
import re
import shutil
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

import latentq
from latentq import LatentDataset, LatentqError, Recipe, RecipeError
from latentq.autoencoders import Normalization, Posterior
from latentq.models.autoencoders.generic import GenericAutoencoder, generic
from latentq.models.autoencoders.loading import FAMILIES
from latentq.models.scale import ScaleChange
from support.diffusers_families import INSTALLED, MODELS, SCALED, make, stub

SHAPES = {
    "playground": (4, 16, 16), "glm": (8, 16, 16), "flux2": (4, 16, 16), "qwen": (4, 16, 16),
    "qwen-layered": (4, 16, 16), "qwen21": (4, 16, 16), "wan21": (4, 16, 16), "wan22": (4, 8, 8),
    "hunyuan-image": (4, 16, 16),
    "hunyuan-refiner": (4, 16, 16), "hunyuan-video15": (4, 16, 16), "hunyuan-video": (4, 4, 4), "cosmos": (4, 8, 8),
    "asymmetric": (4, 16, 16), "temporal-decoder": (4, 16, 16), "rae": (64, 4, 4), "ltx": (4, 8, 8),
}  # fmt: skip
VIDEO = [
    name for name in INSTALLED if name.startswith(("qwen", "wan", "hunyuan-refiner", "hunyuan-video", "cosmos", "ltx"))
]
WITHOUT_POSTERIOR = ["cosmos", "rae"]
RGBA = ["qwen-layered", "qwen21"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of each tiny model, saved by diffusers."""
    folder = tmp_path_factory.mktemp("families")
    for name in INSTALLED:
        make(name).save_pretrained(folder / name)
    return {name: folder / name for name in INSTALLED}


@pytest.fixture(scope="module")
def networks(saved):
    return {name: latentq.load_autoencoder(folder) for name, folder in saved.items()}


def pixels_for(name, count=2):
    """Return images of 16 x 32 pixels, or squares for a family that takes nothing else."""
    height = 32 if name == "rae" else 16
    pixels = torch.rand(count, 3, height, 32, generator=torch.Generator().manual_seed(2))
    return pixels if name == "rae" else pixels * 2 - 1


def encoded_by_the_library(name, model, pixels):
    """Returns the mode, the log-variance or None, and the pixels decoded from the mode, image by image."""
    if name in RGBA:
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], 1)
    results = []
    for image in pixels.split(1):
        output = model.encode(image.unsqueeze(2) if name in VIDEO else image)
        distribution = getattr(output, "latent_dist", None)
        latents = output.latent if distribution is None else distribution.mode()
        options = {"num_frames": 1} if name == "temporal-decoder" else {}
        results.append((latents, getattr(distribution, "logvar", None), model.decode(latents, **options).sample))
    latents, logvar, decoded = (None if part[0] is None else torch.cat(part) for part in zip(*results, strict=True))
    return latents, logvar, decoded


def scales(network):
    change = ScaleChange.to_scaled(network.normalization, network.positions)
    return change, change.inverse()


@pytest.mark.parametrize("name", INSTALLED)
def test_latents_and_pixels_are_those_of_the_library(networks, name):
    network, model = networks[name], make(name)
    assert network.family == MODELS[name][0]
    assert network.latent_shape(32) == SHAPES[name]
    assert network.pixel_range == ((0, 1) if name == "rae" else (-1, 1))
    assert isinstance(network, Posterior) == (name not in WITHOUT_POSTERIOR)
    pixels = pixels_for(name)
    with torch.no_grad():
        expected, logvar, decoded = encoded_by_the_library(name, model, pixels)
    frame = (lambda tensor: tensor[:, :, 0]) if name in VIDEO else (lambda tensor: tensor)
    raw = scales(network)[1](expected) if name == "rae" else frame(expected)  # RAE's module scales by itself
    latents = network.encode(pixels)
    channels, height, width = SHAPES[name]
    assert tuple(latents.shape) == (2, channels, height if name == "rae" else height // 2, width)
    torch.testing.assert_close(latents, raw, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.encode(pixels[1:]), raw[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network.decode(raw), frame(decoded)[:, :3], atol=1e-4, rtol=1e-4)
    if logvar is not None:
        mean, variance = network.posterior(pixels)
        torch.testing.assert_close(mean, raw, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(variance, frame(logvar), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in INSTALLED if name in SCALED])
def test_scaled_latents_are_those_of_the_pipeline(networks, name):
    network, model = networks[name], make(name)
    z = torch.randn(2, *SHAPES[name], generator=torch.Generator().manual_seed(3))
    latents = z.unsqueeze(2) if name in VIDEO else z
    expected = SCALED[name](stub(model, latents), latents)
    to_scaled, to_raw = scales(network)
    scaled = to_scaled(z)
    assert not torch.allclose(scaled.flatten(), z.flatten())
    torch.testing.assert_close(scaled[: len(expected)], expected[:, :, 0] if name in VIDEO else expected)
    torch.testing.assert_close(to_raw(scaled), z, atol=1e-5, rtol=1e-5)


def test_rae_is_scaled_as_its_own_module_does(networks):
    network, model = networks["rae"], make("rae")
    z = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(scales(network)[0](z), model._normalize_latents(z) * 1.25)
    assert network.positions.shape == (2, 64, 4, 4)
    for size in (16, 64):
        with pytest.raises(ValueError, match="images of 32 x 32 pixels, not"):
            network.latent_shape(size)


def test_rae_without_statistics_of_positions_needs_no_file(tmp_path):
    options = {**MODELS["rae"][1], "latents_mean": None, "latents_std": None}
    diffusers.AutoencoderRAE(**options).save_pretrained(tmp_path)
    network = latentq.load_autoencoder(tmp_path)
    assert network.positions is None
    np.testing.assert_allclose(network.normalization.std, 1 + 1e-5)


@pytest.mark.parametrize("name", ["playground", "flux2", "wan22", "rae"])
def test_a_dataset_gives_what_the_pipeline_feeds_its_transformer(saved, networks, pictures, tmp_path, name):
    data = Recipe.load("default").to_dict()
    data["columns"]["latent"] |= {"size": 32, "store": "mean", "quantizer": {"kind": "float32"}}
    latentq.encode(pictures, tmp_path / "out", recipe=Recipe.from_dict(data), autoencoder=saved[name], batch_size=5)
    raw, scaled = (
        LatentDataset(tmp_path / "out", scale=scale).batch(range(12))["latent"] for scale in ("raw", "scaled")
    )
    model = make(name)
    if name == "rae":
        expected = model._normalize_latents(raw) * 1.25
    else:
        latents = raw.unsqueeze(2) if name in VIDEO else raw
        expected = SCALED[name](stub(model, latents), latents)
        expected = expected[:, :, 0] if name in VIDEO else expected
    torch.testing.assert_close(scaled[: len(expected)], expected, atol=1e-5, rtol=1e-5)
    low, high = networks[name].pixel_range
    decoded = ((networks[name].decode(raw[:1])[0] - low) * (255 / (high - low))).round().clamp(0, 255)
    dataset = LatentDataset(tmp_path / "out", scale="scaled")
    picture = np.asarray(dataset.decode(0, autoencoder=networks[name])).astype(int)
    assert abs(picture - decoded.permute(1, 2, 0).numpy().astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("flux2", "flux2"), ("qwen-image", "qwen"), ("wan", "wan21"), ("hunyuan-image", "hunyuan-image"), ("rae", "rae")],
)
def test_a_recipe_of_a_current_model_encodes_with_a_model_of_its_class(networks, pictures, tmp_path, recipe, name):
    card = latentq.encode(pictures, tmp_path / "out", recipe=recipe, autoencoder=networks[name], size=32)
    assert (card.autoencoder.family, card.latents["latent"].shape) == (MODELS[name][0], SHAPES[name])
    assert latentq.verify(tmp_path / "out") == []


def test_a_class_that_is_unknown_is_used_with_a_line_on_what_was_assumed(saved, networks, pictures, tmp_path):
    assert "AutoencoderKLLTXVideo" not in FAMILIES
    stream = io.StringIO()
    options = {"size": 64, "autoencoder": saved["ltx"], "progress": stream}
    card = latentq.encode(pictures, tmp_path / "out", **options)
    assert (card.autoencoder.family, card.latents["latent"].shape) == ("AutoencoderKLLTXVideo", (4, 16, 16))
    lines = [line for line in stream.getvalue().splitlines() if "does not know" in line]
    assert len(lines) == 1
    expected = (
        r"ltx is of class AutoencoderKLLTXVideo, which latentq does not know; assumed are pixels from -1 to 1, an "
        r"image as a video of one frame, latents of 4 channels for 4 x 4 pixels each, and for scaled latents "
        r"\(z - mean\) \* 2\.0 / std"
    )
    assert re.search(expected, lines[0])
    assert [network.note for name, network in networks.items() if name != "ltx"] == [""] * (len(networks) - 1)


@pytest.mark.parametrize(
    "error",
    [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")],
)
def test_too_little_memory_is_not_taken_for_a_class_that_cannot_be_used(error):
    class Unknown(torch.nn.Module):
        def encode(self, _pixels):
            raise error

    with pytest.raises(type(error)):
        generic(Unknown(), "unknown")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("playground", {"latents_std": [1.0, 2.0, 0.0, 1.0]}, "each std must be positive"),
        ("playground", {"latents_mean": ["a", 2.0, 0.0, 1.0]}, "could not convert"),
        ("playground", {"scaling_factor": float("nan")}, "must be finite"),
        ("wan21", {"latents_mean": 7}, "not iterable"),
        ("cosmos", {"latents_std": [1.0, 2.0, 3.0]}, "reshape"),
    ],
)
def test_a_configuration_with_impossible_statistics_is_one_error_line(saved, tmp_path, name, changes, message):
    shutil.copytree(saved[name], tmp_path / name)
    config = tmp_path / name / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(LatentqError, match=message) as caught:
        latentq.load_autoencoder(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_statistics_of_another_number_of_channels_are_refused_before_a_card_is_written(saved, pictures, tmp_path):
    shutil.copytree(saved["wan21"], tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latents_mean": [0.5, 0.25, 0.125]}))
    with pytest.raises(RecipeError, match="mean has 3 numbers for 4 channels"):
        latentq.encode(pictures, tmp_path / "out", autoencoder=tmp_path / "model", size=32)
    assert not (tmp_path / "out" / "latents.toml").exists()


def folder_of(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": kind}))
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("kind", ["AutoencoderOfTomorrow", "utils", "logging", "__version__", "", 7, None])
def test_a_class_that_diffusers_does_not_have_is_refused(tmp_path, kind):
    with pytest.raises(LatentqError, match=r"is of class .*diffusers|is no autoencoder"):
        latentq.load_autoencoder(folder_of(tmp_path, kind))


@pytest.mark.parametrize("kind", ["UNet2DModel", "DDPMScheduler", "DDPMPipeline"])
def test_a_class_that_is_no_autoencoder_is_refused(tmp_path, kind):
    with pytest.raises(LatentqError, match=f"is of class {kind}, which is no autoencoder"):
        latentq.load_autoencoder(folder_of(tmp_path, kind))


@pytest.mark.filterwarnings("ignore:.*weight_norm")  # diffusers' own
def test_an_autoencoder_of_sounds_is_refused(tmp_path):
    diffusers.AutoencoderOobleck(encoder_hidden_size=4, downsampling_ratios=[2], decoder_channels=4,
                                 decoder_input_channels=4, channel_multiples=[1]).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(LatentqError, match="AutoencoderOobleck, which latentq does not know, and which cannot be used"):
        latentq.load_autoencoder(tmp_path)


# Names of options and buffers that tell how latents are scaled, and names that look like it and do not.
SCALING = {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}
NO_SCALING = {
    "scale_factor_spatial", "scale_factor_temporal", "spatio_temporal_scaling", "decoder_spatio_temporal_scaling",
    "attn_scales", "upsampling_scaling_factor", "encoder_qkv_multiscales", "decoder_qkv_multiscales",
    "decoder_resnet_time_scale_shift", "decoder_timestep_scale_multiplier",  # the network's architecture
    "invert_scale_latents",  # a detail of CogVideoX's pipeline from images
    "latent_magnitude", "latent_shift",  # of AutoencoderTiny: latents as 8-bit images
    "encoder_norm_mean", "encoder_norm_std", "encoder_mean", "encoder_std",  # of AutoencoderRAE: pixels
    "_latents_mean", "_latents_std",  # of AutoencoderRAE: its latents_mean and latents_std
    "means", "stds",  # of ConsistencyDecoderVAE: inside its decoder
    "batch_norm_momentum", "batch_norm_eps", "bn",  # of AutoencoderKLFlux2: tested above
}  # fmt: skip
SOUND = re.compile(r"Audio|Oobleck|Vocoder|MMAudio|SAME")
UNUSED = {("AutoencoderKLCosmos", "scaling_factor")}  # no pipeline reads it


def autoencoder_classes():
    for name in dir(diffusers.models.autoencoders):
        kind = getattr(diffusers.models.autoencoders, name)
        if isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) and not SOUND.search(name):
            yield kind


def scaling_names(kind):
    """Lists the options, buffers and batch norms of a class whose names look like statistics of latents."""
    source = inspect.getsource(kind)
    buffers = re.findall(r'register_buffer\(\s*"(\w+)"', source) + re.findall(r"self\.(\w+) = nn\.BatchNorm", source)
    names = {*inspect.signature(kind.__init__).parameters, *buffers}
    return {name for name in names if re.search(r"mean|std|scal|shift|sigma|batch_norm|stat|magnitude|^bn", name)}


@pytest.mark.parametrize("kind", list(autoencoder_classes()), ids=lambda kind: kind.__name__)
def test_the_card_holds_all_that_a_class_says_about_the_scale_of_its_latents(kind):
    names = scaling_names(kind)
    assert names <= SCALING | NO_SCALING, "a new name: does it scale latents?"
    if kind.__name__ in ("AutoencoderKLFlux2", "AutoencoderRAE"):  # by its module: tested above
        assert {"bn"} <= names or {"_latents_mean", "_latents_std"} <= names
        return
    family = FAMILIES.get(kind.__name__, GenericAutoencoder)
    base = {
        "latent_channels": 4, "scaling_factor": 0.5, "shift_factor": None, "latents_mean": None, "latents_std": None,
    }  # fmt: skip
    with_statistics = {**base, "latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [2.0, 3.0, 4.0, 5.0]}
    for name, values, changed in (
        ("scaling_factor", base, 0.25),
        ("scaling_factor", with_statistics, 0.25),
        ("shift_factor", base, 0.125),
        ("latents_mean", with_statistics, [1.0, 2.0, 3.0, 5.0]),
        ("latents_std", with_statistics, [2.0, 3.0, 4.0, 6.0]),
    ):
        statistics = {key for key in ("latents_mean", "latents_std") if values[key]}
        if names >= {name} | statistics and (kind.__name__, name) not in UNUSED:
            before, after = (normalization_by(family, config) for config in (values, {**values, name: changed}))
            assert before != after, name


def normalization_by(family, config):
    class Config(dict):
        __getattr__ = dict.__getitem__

    module = SimpleNamespace(config=Config(config), named_buffers=list)
    normalization = family._normalization(object.__new__(family), module)
    assert isinstance(normalization, Normalization)
    return normalization
