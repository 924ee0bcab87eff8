"""Group norm and SiLU in one step: which pairs are fused, and that Triton's kernels compute what torch does."""

import builtins
import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional

import latentq
from conftest import contents, paint
from latentq.cli.main import main
from latentq.encoding.latents import LatentEncoder
from latentq.format.options import AutoencoderOptions
from latentq.models import group_norm
from latentq.models.autoencoders.kl import KLAutoencoder
from latentq.models.autoencoders.taming import VQGAN, TamingAutoencoder
from latentq.models.autoencoders.tiny import TinyAutoencoder
from latentq.models.autoencoders.vq import VQAutoencoder
from latentq.models.group_norm import GroupNormSiLU, with_fused_norms

PIXELS = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1


def kl():
    from diffusers import AutoencoderKL

    module = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    )  # fmt: skip
    return KLAutoencoder(module, "kl")


def vq():
    from diffusers import VQModel

    return VQAutoencoder(VQModel(block_out_channels=(32,), norm_num_groups=8), "vq")


def spatial_vq():
    """A MOVQ: its decoder has norms that take the latents too."""
    from diffusers import VQModel

    return VQAutoencoder(VQModel(block_out_channels=(32,), norm_num_groups=8, norm_type="spatial"), "movq")


def taming():
    module = VQGAN(
        4, 64, ch=32, out_ch=3, ch_mult=[1, 2], num_res_blocks=1, attn_resolutions=[16], in_channels=3, resolution=32,
        z_channels=4,
    )  # fmt: skip
    return TamingAutoencoder(module, "taming", channels=4, reduction=2)


# The number of pairs: two in each residual block, of which the middle has two, and one before the last convolution.
NETWORKS = {
    "AutoencoderKL": (kl, (2 * (2 + 2) + 1) + (2 * (2 + 4) + 1)),
    "VQModel": (vq, (2 * (1 + 2) + 1) + (2 * (2 + 2) + 1)),
    "MOVQ": (spatial_vq, 2 * (1 + 2) + 1),
    "taming": (taming, (2 * (2 + 2) + 1) + (2 * (4 + 2) + 1)),
}


@pytest.mark.parametrize(("make", "pairs"), NETWORKS.values(), ids=list(NETWORKS))
def test_pairs_of_known_networks_are_fused_in_a_copy_that_shares_the_weights(make, pairs):
    torch.manual_seed(0)
    network = make()
    before = str(network.module)
    expected = network.encode(PIXELS)
    fused = with_fused_norms(network)
    norms = [part for part in fused.module.modules() if isinstance(part, GroupNormSiLU) and part.fused]
    assert len(norms) == pairs
    assert type(fused) is type(network)
    assert torch.equal(fused.encode(PIXELS), expected)  # the CPU has no kernels: torch's in another place
    assert torch.equal(fused.decode(expected), network.decode(expected))
    shared = fused.module.state_dict()
    assert list(shared) == list(network.module.state_dict())
    assert all(shared[key].data_ptr() == value.data_ptr() for key, value in network.module.state_dict().items())
    assert str(network.module) == before
    assert not any(getattr(part, "fused", False) for part in network.module.modules())


def test_blocks_in_which_the_pair_is_not_certain_are_left_alone():
    from diffusers.models.resnet import ResnetBlock2D

    class OwnBlock(ResnetBlock2D):
        pass

    for block in (
        ResnetBlock2D(in_channels=32, temb_channels=16),  # activates the time embedding too
        ResnetBlock2D(in_channels=32, temb_channels=16, time_embedding_norm="scale_shift"),
        ResnetBlock2D(in_channels=32, temb_channels=None, non_linearity="mish"),
        OwnBlock(in_channels=32, temb_channels=None),  # may have a `forward` of its own
        nn.Sequential(nn.GroupNorm(4, 32), nn.SiLU()),
    ):
        before = str(block)
        assert group_norm._fuse(block) == 0
        assert str(block) == before


def test_an_autoencoder_without_known_pairs_is_refused():
    from diffusers import AutoencoderTiny

    with pytest.raises(ValueError, match="no group norm followed by SiLU is known in the autoencoder tiny"):
        with_fused_norms(TinyAutoencoder(AutoencoderTiny(), "tiny"))
    with pytest.raises(ValueError, match="autoencoder dct-f8c16"):
        with_fused_norms(latentq.load_autoencoder("dct-f8c16"))


def test_without_triton_torch_computes_both(monkeypatch):
    importing = builtins.__import__

    def missing(name, *arguments, **options):
        if name.partition(".")[0] == "triton":
            raise ModuleNotFoundError("No module named 'triton'")
        return importing(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # else the CPU alone were the reason
    group_norm._kernels.cache_clear()
    norm = GroupNormSiLU(4, 8)
    norm.fused = True
    values = torch.randn(2, 8, 4, 4)
    assert group_norm._is_supported(values)
    assert torch.equal(norm(values), functional.silu(functional.group_norm(values, 4, norm.weight, norm.bias)))
    assert group_norm._kernels() is None
    group_norm._kernels.cache_clear()


INTERPRETED = """
    import json
    import torch
    from torch.nn import functional
    from latentq.models import group_norm_kernels as kernels
    from latentq.models.group_norm import GroupNormSiLU

    kernels._ELEMENTS, kernels._TILES, kernels._LANES = 32, 2, 16  # several tiles and blocks
    torch.manual_seed(0)

    def norm_of(channels, groups):
        norm = GroupNormSiLU(groups, channels, eps=1e-6).requires_grad_(False)
        norm.weight.copy_(torch.randn(channels))
        norm.bias.copy_(torch.randn(channels))
        norm.fused = True
        return norm

    def torchs(norm, x):
        return functional.silu(
            functional.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        )

    def inputs():
        for shape, groups in (((2, 6, 7, 10), 3), ((2, 24, 3, 3), 2)):  # no powers of two, and more than `_LANES`
            for dtype in (torch.bfloat16, torch.float16, torch.float32):
                for format in (torch.contiguous_format, torch.channels_last):
                    values = (3 * torch.randn(shape) + 1.5).to(dtype).contiguous(memory_format=format)
                    yield values, norm_of(shape[1], groups)

    worst = {}
    for x, norm in inputs():
        y = norm(x)
        assert (y.dtype, y.shape, y.stride()) == (x.dtype, x.shape, x.stride())
        if x.dtype == torch.bfloat16:
            assert torch.equal(norm(x[:1].clone(memory_format=torch.preserve_format)), y[:1])  # whatever the batch
        exact = torchs(norm, x.float())  # what torch gives under autocast
        unit = torch.finfo(x.dtype).eps * torch.exp2(exact.abs().clamp_min(2.0**-6).log2().floor())
        units = ((y.double() - exact.to(x.dtype).double()).abs() / unit).max().item()
        worst[str(x.dtype)] = max(worst.get(str(x.dtype), 0.0), units)
        double = torchs(norm, x.double())
        if x.dtype == torch.float32:
            error = (y - double).abs().max().item()
            worst["float32 against float64"] = max(worst.get("float32 against float64", 0.0), error)

    # A mean that is large against the deviation: sums of squares of the values would cancel.
    norm = norm_of(8, 4)
    x = (1000 + torch.randn(1, 8, 7, 7)).contiguous(memory_format=torch.channels_last)
    worst["large mean"] = (norm(x) - torchs(norm, x.double())).abs().max().item()

    # A constant group has no deviation, and NaN stays in its own group of its own sample.
    x = torch.full((1, 8, 5, 5), 7.25).contiguous(memory_format=torch.channels_last)
    worst["constant"] = (norm(x) - functional.silu(norm.bias)[:, None, None]).abs().max().item()
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    clean = norm(x)
    x[0, 2, 1, 1] = torch.nan
    spoiled = norm(x)
    assert spoiled[0, 2:4].isnan().all()
    spoiled[0, 2:4] = clean[0, 2:4]
    assert torch.equal(spoiled, clean)
    print(json.dumps(worst))
"""


def interpreted(program: str) -> str:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_kernels_compute_what_torch_does_within_one_unit_of_the_dtype():
    pytest.importorskip("triton")
    worst = json.loads(interpreted(INTERPRETED))
    assert 0 < worst["torch.bfloat16"] <= 1
    assert worst["torch.float16"] <= 1
    assert worst["float32 against float64"] < 4e-6
    assert worst["large mean"] < 5e-4  # float32 has units of 6e-5 there
    assert worst["constant"] < 1e-6


COMPILED = """
    import re
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from latentq.models import group_norm_kernels as kernels

    SIZES = dict(tiles=4, rows=32, lanes=32, block=128)
    for kernel in (kernels._block_moments, kernels._group_scales, kernels._normalize):
        pointers = {"x": "*bf16", "y": "*bf16", "eps": "fp32"}
        pointers |= dict.fromkeys(("means", "squares", "weight", "bias", "centers", "scales"), "*fp32")
        is_size = {parameter.name: parameter.is_constexpr for parameter in kernel.params}
        signature = {name: "constexpr" if size else pointers.get(name, "i32") for name, size in is_size.items()}
        source = ASTSource(kernel, signature, {name: SIZES[name] for name, size in is_size.items() if size})
        ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=kernels._OPTIONS).asm["ptx"]
        print(kernel.fn.__name__, len(re.findall(r"ld\\.global", ptx)) > 0, re.findall(r"\\b(?:atom|red)\\.", ptx))
"""


def test_the_kernels_compile_for_cuda_and_have_no_atomics(tmp_path):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILED)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name} True []" for name in ("_block_moments", "_group_scales", "_normalize")
    ]  # fmt: skip


@pytest.fixture
def fused_calls(monkeypatch):
    """Collects for each call of a `GroupNormSiLU` if it is fused."""
    calls = []
    compute = GroupNormSiLU.forward

    def counted(norm, x):
        calls.append(norm.fused)
        return compute(norm, x)

    monkeypatch.setattr(GroupNormSiLU, "forward", counted)
    return calls


def test_encoding_takes_the_fused_norms_and_leaves_no_trace(tmp_path, fused_calls):
    for index in range(3):
        paint(tmp_path / "photos" / f"{index}.png", index, (40, 40))
    torch.manual_seed(0)
    options = {"size": 32, "store": "mean", "autoencoder": kl(), "device": "cpu"}
    latentq.encode(tmp_path / "photos", tmp_path / "plain", **options)
    assert fused_calls == []
    latentq.encode(tmp_path / "photos", tmp_path / "fused", **options, fused_norm=True)
    assert fused_calls == [True] * 9 * 2  # nine in the encoder, one batch to calibrate and one to encode
    assert contents(tmp_path / "fused") == contents(tmp_path / "plain")


def test_samples_are_encoded_again_without_fused_norms(fused_calls):
    network = kl()
    encoder = LatentEncoder(network, AutoencoderOptions(dtype="float32"), "cpu", fused_norm=True)
    column = latentq.Recipe.load("default").override(store="mean").encoded()["latent"]
    pixels = torch.zeros((1, 3, 32, 32), dtype=torch.uint8)
    encoder.encode(pixels, column, [0], 0, exact=True)
    assert fused_calls == []
    encoder.encode(pixels, column, [0], 0)
    assert fused_calls == [True] * 9


def test_compiling_and_fusing_exclude_each_other(tmp_path, capsys):
    paint(tmp_path / "photos" / "a.png", 0, (40, 40))
    with pytest.raises(ValueError, match="compiled and fused_norm exclude each other"):
        latentq.encode(tmp_path / "photos", tmp_path / "out", compiled=True, fused_norm=True)
    with pytest.raises(SystemExit):
        main(["encode", str(tmp_path / "photos"), str(tmp_path / "out"), "--compile", "--fused-norm"])
    assert "not allowed with argument --compile" in capsys.readouterr().err
