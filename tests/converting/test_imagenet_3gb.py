"""imagenet_3gb's torch file: read and written bit for bit as its script does."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

import latentq
from conftest import contents
from latentq import Card, LatentDataset, MismatchError
from latentq.autoencoders import Normalization
from latentq.cli.main import main
from latentq.converting.pipeline import convert
from support.layout_fixtures import torch_list
from support.making import make_dataset


def names(folder="."):
    """List the names in a folder, hidden ones too."""
    return sorted(path.name for path in Path(folder).iterdir())


def equal(ours, theirs):
    """True if two such lists are equal, with their dtypes."""
    return len(ours) == len(theirs) and all(
        list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_a_torch_file_becomes_a_dataset_with_its_codes(torch_items, converted):
    assert latentq.verify(converted) == []
    codes = LatentDataset(converted, dtype=torch.uint8)
    values = LatentDataset(converted)
    for number, item in enumerate(torch_items):
        assert torch.equal(codes[number]["latent"], item["latent"])
        q = item["latent"].double()
        torch.testing.assert_close(values[number]["latent"].double(), q / 255 * 13 - 6.5, atol=2e-6, rtol=0)
        assert (codes[number]["label"], codes[number]["key"]) == (int(item["label"]), str(int(item["id"])))


def test_the_card_is_complete_and_says_what_is_unknown(torch_items, converted):
    card = Card.load(converted)
    assert card.counts == latentq.format.facts.SampleCounts(300, 0)
    assert card.autoencoder.name == "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
    assert (card.autoencoder.family, card.autoencoder.weights) == ("AutoencoderDC", "unknown")
    latent = card.latents["latent"]
    assert (latent.quantizer.kind, set(latent.quantizer.low), set(latent.quantizer.high)) == ("uniform", {-6.5}, {6.5})
    values = torch.stack([item["latent"] for item in torch_items]).double() / 255 * 13 - 6.5
    np.testing.assert_allclose(latent.statistics.mean, values.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(latent.statistics.std, values.std((0, 2, 3), correction=0), atol=1e-5)


def test_a_stock_streaming_dataset_reads_a_converted_dataset(streaming_alone, torch_items, converted):
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(converted), shuffle=False, batch_size=1)
    assert len(dataset) == len(torch_items)
    np.testing.assert_array_equal(dataset[299]["latent"], torch_items[299]["latent"])
    assert dataset[299]["label"] == torch_items[299]["label"]


def test_a_torch_file_converts_back_unchanged(torch_items, converted, tmp_path):
    assert convert(converted, tmp_path / "again.pt") == 300
    assert equal(torch_items, torch.load(tmp_path / "again.pt", weights_only=True))
    assert names(tmp_path) == ["again.pt"]


def test_samples_that_share_a_storage_are_read_too(torch_items, converted, tmp_path):
    """The script saves views of whole batches if it has not copied them."""
    latents, labels = (
        torch.stack([item["latent"] for item in torch_items]),
        torch.stack([item["label"] for item in torch_items]),
    )
    views = [{**item, "latent": latents[i], "label": labels[i]} for i, item in enumerate(torch_items)]
    torch.save(views, tmp_path / "views.pt")
    convert(tmp_path / "views.pt", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(converted)


class Patches:
    """An autoencoder with DC-AE's shapes: one convolution."""

    name, normalization, pixel_range = "patches", Normalization(0.41407), (-1.0, 1.0)
    weight = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 8

    def encode(self, pixels):
        return torch.nn.functional.conv2d(pixels, self.weight, stride=32)

    def decode(self, latents):
        return torch.nn.functional.conv_transpose2d(latents, self.weight, stride=32) / 50

    def latent_shape(self, size):
        return 32, size // 32, size // 32


def test_encoding_by_the_recipe_gives_the_scripts_list(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", recipe="imagenet-3gb", autoencoder=Patches())
    convert(tmp_path / "out", tmp_path / "imagenet_3gb.pt")
    files = sorted(pictures.rglob("*.*"), key=lambda path: str(path.relative_to(pictures)))
    options = latentq.Recipe.load("imagenet-3gb").image.options()
    data = torch.load(tmp_path / "imagenet_3gb.pt", weights_only=True)
    assert [int(item["id"]) for item in data] == list(range(12))
    for item, file in zip(data, files, strict=True):
        pixels = torch.from_numpy(latentq.image.load(file, 256, **options)).permute(2, 0, 1)[None]
        z = Patches().encode(pixels.float() / 127.5 - 1)[0]
        exact = (z.double().clip(-6.5, 6.5) + 6.5) / 13 * 255
        # A convolution's last bits depend on its batch: a code may differ only if it was a tie.
        assert (item["latent"].double() - exact).abs().max() < 0.5 + 1e-3
        assert item["label"] == ["ant", "bee", "cat"].index(file.parent.name)


def test_codes_with_another_meaning_are_refused_naming_both_sides(tmp_path):
    make_dataset(tmp_path / "out", 5, shape=(32, 8, 8))
    with pytest.raises(MismatchError, match=r"it holds latents \(32, 8, 8\) in 8 bits, affine from .* -6.5 to 6.5"):
        convert(tmp_path / "out", tmp_path / "five.pt")
    make_dataset(tmp_path / "scaled", 5, shape=(4, 32, 32), scaled=True)
    with pytest.raises(
        MismatchError, match=r"imagenet\.int8, .* it holds scaled latents .*, and the layout has latents "
    ):
        convert(tmp_path / "scaled", tmp_path / "mds")
    assert names(tmp_path) == ["out", "scaled"]


class Code:
    """Content of a hostile file."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def samples_but(**changed):
    return [*torch_list(3), torch_list(1)[0] | changed]


WRONG = {
    "no list": {"latent": torch.zeros(3)},
    "no dict": [torch.zeros(3)],
    "no label": [{"id": torch.tensor(1), "latent": torch.zeros(32, 8, 8, dtype=torch.uint8)}],
    "float latents": samples_but(latent=torch.zeros(32, 8, 8)),
    "another shape": samples_but(latent=torch.zeros(32, 16, 16, dtype=torch.uint8)),
    "an array": samples_but(latent=np.zeros((32, 8, 8), np.uint8)),
    "a label of one axis": samples_but(label=torch.tensor([3])),
    "a label that is no number": samples_but(label="cat"),
    "a fraction": samples_but(id=torch.tensor(0.5)),
    "code": [Code()],
    "nothing": [],
}


@pytest.mark.parametrize("what", WRONG)
def test_a_torch_file_with_other_content_is_refused_in_one_line(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(WRONG[what], "wrong.pt")
    assert main(["convert", "wrong.pt", "out"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latentq: wrong.pt: ")
    if isinstance(WRONG[what], list) and len(WRONG[what]) == 4 and what != "an array":
        assert "sample 3" in line
    assert names() == ["wrong.pt"]


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_truncated_torch_file_is_refused_in_one_line(converted, tmp_path, keep, capsys):
    data = (converted.parent / "imagenet_3gb.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    assert main(["convert", str(tmp_path / "cut.pt"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"latentq: {tmp_path / 'cut.pt'}: ")
    assert names(tmp_path) == ["cut.pt"]


def test_the_memory_for_a_torch_file_stays_under_two_and_a_half_times_its_size(tmp_path):
    torch.save(torch_list(8000), tmp_path / "list.pt")
    program = textwrap.dedent(r"""
        import re, sys, torch, latentq.reading.dataset
        from latentq.converting.pipeline import convert

        def peak():
            return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", open("/proc/self/status").read())[1])

        before = peak()
        convert(*sys.argv[1:])
        print(peak() - before)
    """)
    for source, out in (("list.pt", "out"), ("out", "again.pt")):  # read, and written
        done = subprocess.run(
            [sys.executable, "-c", program, source, out], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        size = (tmp_path / (source if out == "out" else out)).stat().st_size
        assert 0 < int(done.stdout) < 2.5 * size
