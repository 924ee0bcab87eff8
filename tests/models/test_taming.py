"""VQGAN checkpoints of taming-transformers."""

import json
import os
import sys

import pytest
import torch
import yaml
from diffusers import VQModel

import latentq
from latentq.models.autoencoders.taming import VQGAN
from latentq.models.weights import weight_hash
from support.making import save_as_taming, taming_state_dict


def pixels_for(size, count=3):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_taming_is_the_same_network_under_its_own_names(families):
    ours, theirs = latentq.load_autoencoder(families["taming"]), VQModel.from_pretrained(families["vq"]).eval()
    assert (ours.family, ours.name, ours.latent_shape(64)) == ("taming.VQModel", "tiny-taming", (4, 16, 16))
    with torch.no_grad():
        torch.testing.assert_close(ours.encode(pixels_for(32)), theirs.encode(pixels_for(32)).latents)
    by_path = latentq.load_autoencoder(families["taming"] / "last.ckpt", pixel_range=(0.0, 1.0))
    assert (by_path.name, by_path.pixel_range) == ("last", (0.0, 1.0))
    assert weight_hash(by_path) == weight_hash(ours)


def test_taming_has_the_tensors_of_the_real_vqgan_f16_16384():
    """The configuration that boris/vqgan_f16_16384 and the paper's vqgan_imagenet_f16_16384 share."""
    with torch.device("meta"):
        theirs = VQModel(
            down_block_types=["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 128, 256, 256, 512),
            layers_per_block=2,
            latent_channels=256,
            num_vq_embeddings=16384,
        )
        ours = VQGAN(
            256, 16384, ch=128, out_ch=3, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=2, attn_resolutions=[16],
            in_channels=3, resolution=256, z_channels=256,
        )  # fmt: skip
    expected = {key: value.shape for key, value in taming_state_dict(theirs).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected
    for key in ("encoder.down.4.attn.1.q.weight", "decoder.up.4.attn.2.proj_out.bias", "decoder.mid.attn_1.norm.weight",
                "encoder.down.2.block.0.nin_shortcut.weight", "decoder.up.1.upsample.conv.weight"):  # fmt: skip
        assert key in expected


def test_a_taming_checkpoint_must_have_exactly_the_networks_tensors(tmp_path, tiny_vq):
    model = VQModel.from_pretrained(tiny_vq)
    state = taming_state_dict(model)
    lacking = {key: value for key, value in state.items() if not key.startswith("decoder.up.1.")}
    save_as_taming(model, tmp_path / "lacking", state=lacking)
    save_as_taming(model, tmp_path / "more", state=state | {"ema.decay": torch.zeros(1)})
    save_as_taming(model, tmp_path / "other", state=state | {"quant_conv.bias": torch.zeros(5)})
    for name, message in [
        ("lacking", r"tensors? missing, decoder\.up\.1\.block\.0\.conv1\.bias first"),
        ("more", r"1 tensor left over, ema\.decay first"),
        ("other", r"1 tensor of another shape, quant_conv\.bias first"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message):
            latentq.load_autoencoder(tmp_path / name)


def test_an_unusable_taming_folder_is_one_error_line(tmp_path, tiny_vq, tiny_taming):
    model = VQModel.from_pretrained(tiny_vq)
    save_as_taming(model, tmp_path / "gumbel", target="taming.models.vqgan.GumbelVQ")
    config = yaml.safe_load((tiny_taming / "model.yaml").read_text())
    for name, change in [("narrow", {"ch": 33}), ("double", {"double_z": True}), ("zero", {"ch_mult": 0})]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
        changed = json.loads(json.dumps(config))
        changed["model"]["params"]["ddconfig"] |= change
        (tmp_path / name / "model.yaml").write_text(yaml.dump(changed))
    for name, text in [("list", "[1"), ("empty", ""), ("nothing", "model: {target: x.VQModel, params: {}}")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
        (tmp_path / name / "model.yaml").write_text(text)
    for name, data in [("text", b"no"), ("short", (tiny_taming / "last.ckpt").read_bytes()[:5000])]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "last.ckpt").write_bytes(data)
        (tmp_path / name / "model.yaml").symlink_to(tiny_taming / "model.yaml")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "a.ckpt").touch()
    (tmp_path / "two" / "b.ckpt").touch()
    for name, message in [
        ("gumbel", "GumbelVQ; of taming-transformers only VQModel"),
        ("narrow", "not the configuration of a VQGAN"),
        ("double", "double_z must be false"),
        ("zero", "not the configuration of a VQGAN"),
        ("list", "not the configuration of a VQGAN"),
        ("empty", "not the configuration of a VQGAN"),
        ("nothing", "not the configuration of a VQGAN"),
        ("text", "not a checkpoint that can be read"),
        ("short", "not a checkpoint that can be read"),
        ("alone", r"needs its configuration next to it, as last\.yaml"),
        ("alone/absent.ckpt", "there is no checkpoint"),
        ("two", "2 checkpoints: name one"),
    ]:
        with pytest.raises(latentq.LatentqError, match=message) as caught:
            latentq.load_autoencoder(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_loading_a_checkpoint_calls_nothing_that_it_names(tmp_path, tiny_taming):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    (tmp_path / "model.yaml").symlink_to(tiny_taming / "model.yaml")
    torch.save({"callbacks": Harm(), "state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(latentq.LatentqError):
        latentq.load_autoencoder(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("name", "message"), [("last.ckpt", "there is no checkpoint"), ("model.yaml", "model.yaml: not a regular file")]
)
def test_a_fifo_is_no_part_of_a_checkpoint(tmp_path, tiny_taming, name, message):
    for file in ("last.ckpt", "model.yaml"):
        if file == name:
            os.mkfifo(tmp_path / file)
        else:
            (tmp_path / file).symlink_to(tiny_taming / file)
    with pytest.raises(latentq.LatentqError, match=message):
        latentq.load_autoencoder(tmp_path / "last.ckpt")


def test_a_missing_package_is_named_with_its_install_command(tiny_taming, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(latentq.LatentqError, match=r"needs yaml, which is not installed: pip install 'pyyaml>=6'"):
        latentq.load_autoencoder(tiny_taming)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (LAUGHS + "model: {target: *a9, params: {}}", "aliases are not supported"),
        (MERGES + "model: *a9", "aliases are not supported"),
        ("model: &m {target: a.VQModel, params: *m}", "aliases are not supported"),
        ("[" * 5000, "it is nested too deeply"),
        ("model: {target: [VQModel], params: {}}", "model.target is not text"),
        ("#" * (1 << 20) + "\n", "more than 1048576 bytes"),
        ("model: !!python/object/apply:os.system ['false']", "not the configuration of a VQGAN"),
    ],
)
def test_a_hostile_configuration_is_one_short_error_line(text, reason, tmp_path, tiny_taming):
    (tmp_path / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
    (tmp_path / "model.yaml").write_text(text)
    with pytest.raises(latentq.LatentqError, match=reason) as caught:
        latentq.load_autoencoder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "model.yaml"))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"num_res_blocks": 10**8},
        {"ch": 32 * 10**9},
        {"ch": "32"},
        {"ch": float("nan")},
        {"ch": -32},
        {"ch": True},
        {"ch_mult": [1] * 3000},
        {"attn_resolutions": 16},
        {"resolution": 0},
    ],
)
def test_an_implausible_architecture_is_refused_before_it_is_built(change, tmp_path, tiny_taming):
    config = yaml.safe_load((tiny_taming / "model.yaml").read_text())
    config["model"]["params"]["ddconfig"] |= change
    (tmp_path / "last.ckpt").symlink_to(tiny_taming / "last.ckpt")
    (tmp_path / "model.yaml").write_text(yaml.dump(config))
    with pytest.raises(latentq.LatentqError, match=f"not the configuration of a VQGAN: .*{next(iter(change))} must be"):
        latentq.load_autoencoder(tmp_path)


class Bytes:
    """Pickles as a call of `bytearray` with a size of 64 GiB."""

    def __reduce__(self):
        return bytearray, (2**36,)


def test_a_checkpoint_makes_no_objects_but_tensors(tmp_path, tiny_vq, tiny_taming):
    state = taming_state_dict(VQModel.from_pretrained(tiny_vq))
    (tmp_path / "model.yaml").symlink_to(tiny_taming / "model.yaml")
    torch.save({"callbacks": [Bytes()], "state_dict": state}, tmp_path / "last.ckpt")
    assert weight_hash(latentq.load_autoencoder(tmp_path)) == weight_hash(latentq.load_autoencoder(tiny_taming))
    for wrong, reason in [
        (Bytes(), "it holds no tensors"),
        ([1, 2], "no state_dict"),
        ({"state_dict": 5}, "no state_dict"),
        ({1: torch.zeros(1)}, "no state_dict"),
        ({"state_dict": state | {"encoder.conv_in.bias": Bytes()}}, "something else than tensors"),
    ]:
        torch.save(wrong, tmp_path / "last.ckpt")
        with pytest.raises(latentq.LatentqError, match=reason) as caught:
            latentq.load_autoencoder(tmp_path)
        assert str(tmp_path / "last.ckpt") in str(caught.value)
        assert "weights_only" not in str(caught.value)


def test_half_precision_checkpoints_load_as_float32(tmp_path, tiny_vq):
    model = VQModel.from_pretrained(tiny_vq)
    for dtype in (torch.float16, torch.bfloat16):
        state = {key: value.to(dtype) for key, value in taming_state_dict(model).items()}
        save_as_taming(model, tmp_path / str(dtype), state=state)
        loaded = latentq.load_autoencoder(tmp_path / str(dtype)).module.state_dict()
        assert all(torch.equal(loaded[key], value.float()) for key, value in state.items())
