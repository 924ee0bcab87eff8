"""Other tools' layouts: what is read of them and written of them is, bit for bit, theirs."""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import AutoencoderDC, VQModel
from PIL import Image
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

import latentq
from conftest import contents
from latentq import Card, LatentDataset, LatentqError, MismatchError, mds
from latentq.cli.main import main
from latentq.converting import convert
from latentq.models.decode import decode_latents
from support.making import make_dataset


def torch_list(count, seed=0):
    """What imagenet_3gb's script saves: every sample with tensors of its own."""
    rng = np.random.default_rng(seed)
    return [
        {
            "id": torch.tensor(7 * i),
            "latent": torch.from_numpy(rng.integers(0, 256, (32, 8, 8), np.uint8)),
            "label": torch.tensor(int(rng.integers(0, 1000))),
        }
        for i in range(count)
    ]


def names(folder="."):
    """What is in a folder, hidden or not."""
    return sorted(path.name for path in Path(folder).iterdir())


def equal(ours, theirs):
    """Whether two such lists are the same, types and all."""
    return len(ours) == len(theirs) and all(
        list(a) == list(b) and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture(scope="module")
def items():
    return torch_list(300)


@pytest.fixture(scope="module")
def converted(items, tmp_path_factory):
    """A dataset of imagenet_3gb's torch file."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save(items, folder / "imagenet_3gb.pt")
    assert convert(folder / "imagenet_3gb.pt", folder / "out") == 300
    return folder / "out"


# imagenet_3gb's torch file


def test_a_torch_file_becomes_a_dataset_with_its_codes(items, converted):
    assert latentq.verify(converted) == []
    codes = LatentDataset(converted, dtype=torch.uint8)
    values = LatentDataset(converted)
    for number, item in enumerate(items):
        assert torch.equal(codes[number]["latent"], item["latent"])
        q = item["latent"].double()
        torch.testing.assert_close(values[number]["latent"].double(), q / 255 * 13 - 6.5, atol=2e-6, rtol=0)
        assert (codes[number]["label"], codes[number]["key"]) == (int(item["label"]), str(int(item["id"])))


def test_its_card_is_complete_and_says_what_is_known(items, converted):
    card = Card.load(converted)
    assert card.counts == latentq.format.card.Counts(300, 0)
    assert card.autoencoder.name == "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers"
    assert (card.autoencoder.family, card.autoencoder.weights) == ("AutoencoderDC", "unknown")
    latent = card.latents["latent"]
    assert (latent.quantizer.kind, set(latent.quantizer.low), set(latent.quantizer.high)) == ("uniform", {-6.5}, {6.5})
    values = torch.stack([item["latent"] for item in items]).double() / 255 * 13 - 6.5
    np.testing.assert_allclose(latent.statistics.mean, values.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(latent.statistics.std, values.std((0, 2, 3), correction=0), atol=1e-5)


def test_a_stock_streaming_dataset_reads_it(streaming_alone, items, converted):
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(converted), shuffle=False, batch_size=1)
    assert len(dataset) == len(items)
    np.testing.assert_array_equal(dataset[299]["latent"], items[299]["latent"])
    assert dataset[299]["label"] == items[299]["label"]


def test_a_torch_file_comes_back_as_it_was(items, converted, tmp_path):
    assert convert(converted, tmp_path / "again.pt") == 300
    assert equal(items, torch.load(tmp_path / "again.pt", weights_only=True))
    assert names(tmp_path) == ["again.pt"]


def test_samples_that_share_a_storage_are_read_alike(items, converted, tmp_path):
    """The script saves views of whole batches where it has not copied them."""
    latents, labels = torch.stack([item["latent"] for item in items]), torch.stack([item["label"] for item in items])
    views = [{**item, "latent": latents[i], "label": labels[i]} for i, item in enumerate(items)]
    torch.save(views, tmp_path / "views.pt")
    convert(tmp_path / "views.pt", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(converted)


class Patches:
    """An autoencoder of DC-AE's shapes: one convolution."""

    name, scaling_factor, pixel_range = "patches", 0.41407, (-1.0, 1.0)
    weight = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 8

    def encode(self, pixels):
        return torch.nn.functional.conv2d(pixels, self.weight, stride=32)

    def decode(self, latents):
        return torch.nn.functional.conv_transpose2d(latents, self.weight, stride=32) / 50

    def latent_shape(self, size):
        return 32, size // 32, size // 32


def test_what_the_recipe_makes_is_the_list_that_the_script_makes(pictures, tmp_path):
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
        # A convolution's last bits depend on its batch: a code may differ only where it was a tie.
        assert (item["latent"].double() - exact).abs().max() < 0.5 + 1e-3
        assert item["label"] == ["ant", "bee", "cat"].index(file.parent.name)


def test_codes_that_mean_something_else_are_refused_with_both_sides_named(tmp_path):
    make_dataset(tmp_path / "out", 5, shape=(32, 8, 8))
    with pytest.raises(MismatchError, match=r"out holds latents \(32, 8, 8\) in 8 bits, affine from .* -6.5 to 6.5"):
        convert(tmp_path / "out", tmp_path / "five.pt")
    make_dataset(tmp_path / "scaled", 5, shape=(4, 32, 32), scaled=True)
    with pytest.raises(MismatchError, match=r"scaled holds scaled latents .* the layout of imagenet\.int8 latents "):
        convert(tmp_path / "scaled", tmp_path / "mds")
    assert names(tmp_path) == ["out", "scaled"]


class Code:
    """What a hostile file would hold."""

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
def test_a_torch_file_of_something_else_is_refused_in_one_line(what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(WRONG[what], "wrong.pt")
    assert main(["convert", "wrong.pt", "out"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("latentq: wrong.pt: ")
    if isinstance(WRONG[what], list) and len(WRONG[what]) == 4 and what != "an array":
        assert "sample 3" in line
    assert names() == ["wrong.pt"]


@pytest.mark.parametrize("keep", [0, 3, 100, 0.5, 0.999])
def test_a_torch_file_that_is_cut_short_is_refused_in_one_line(converted, tmp_path, keep, capsys):
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
        from latentq.converting import convert

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


# imagenet.int8's folder


def test_imagenet_int8s_folder_becomes_a_dataset_and_comes_back(int8_folder, tmp_path):
    assert convert(int8_folder, tmp_path / "out") == 10
    assert latentq.verify(tmp_path / "out") == []
    ours, theirs = LatentDataset(tmp_path / "out"), LatentDataset(int8_folder, recipe="imagenet.int8")
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a["latent"], b["latent"])
        assert (a["label"], a["label_text"]) == (b["label"], b["label_text"])
    assert convert(tmp_path / "out", tmp_path / "back") == 10
    assert names(tmp_path / "back") == ["index.json", "shard.00000.mds"]
    there, back = mds.Reader(int8_folder), mds.Reader(tmp_path / "back")
    assert back.columns == there.columns == {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    assert list(map(repr, back)) == list(map(repr, there))


def test_a_folder_of_other_columns_is_refused_in_one_line(tmp_path):
    with mds.Writer(tmp_path / "other", {"image": "bytes"}) as writer:
        writer.write({"image": b"x"})
    with pytest.raises(LatentqError, match=r"other has no latents\.toml, and is no folder of imagenet\.int8 either"):
        convert(tmp_path / "other", tmp_path / "out")
    with pytest.raises(LatentqError, match="holds no dataset"):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vae_output": np.zeros(4095, np.uint8)}, "4095"),
        ({"vae_output": np.zeros(16384, np.uint8)}, "16384"),
        ({"label": "guitar"}, "'guitar', which is no label's number"),
    ],
)
def test_a_wrong_sample_in_such_a_folder_is_told_in_one_line(changed, message, tmp_path, capsys):
    columns = {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    with mds.Writer(tmp_path / "vae_mds", columns) as writer:
        writer.write({"vae_output": np.zeros(4096, np.uint8), "label": "1", "label_as_text": "one"})
        writer.write({"vae_output": np.zeros(4096, np.uint8), "label": "1", "label_as_text": "one"} | changed)
    assert main(["convert", str(tmp_path / "vae_mds"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert names(tmp_path) == ["vae_mds"]


# VQGAN's TSV


def page_writes(path, tokens, paths):
    """The TSV as the page's own lines write it."""
    options = {"separator": ",", "max_line_width": 50000, "formatter": {"int": str}}
    encoded_as_string = [np.array2string(item, **options) for item in tokens]
    batch_df = pd.DataFrame.from_dict({"image_file": paths, "encoding": encoded_as_string})
    batch_df.to_csv(path, sep="\t", header=True, index=None)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 16384, (40, 256))


@pytest.fixture(scope="module")
def tsv(tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tsv")
    page_writes(folder / "tokens.tsv", tokens, [f'/data/naïve "{i}"\t.jpg' for i in range(40)])
    return folder / "tokens.tsv"


def test_a_tsv_of_tokens_becomes_a_dataset_and_comes_back_byte_for_byte(tsv, tokens, tmp_path):
    assert convert(tsv, tmp_path / "out") == 40
    assert latentq.verify(tmp_path / "out") == []
    dataset = LatentDataset(tmp_path / "out")
    np.testing.assert_array_equal(torch.stack([sample["tokens"] for sample in dataset]).flatten(1), tokens)
    assert dataset[3]["key"] == '/data/naïve "3"\t.jpg'
    assert Card.load(tmp_path / "out").recipe == latentq.Recipe.load("vqgan-f16-16384")
    assert convert(tmp_path / "out", tmp_path / "back.tsv") == 40
    assert (tmp_path / "back.tsv").read_bytes() == tsv.read_bytes()


def test_tokens_of_larger_pictures_are_known_by_their_number(tmp_path):
    lines = [f"/{i}.jpg\t{list(range(1024))}\n" for i in range(2)]
    (tmp_path / "large.tsv").write_text("image_file\tencoding\n" + "".join(lines))
    convert(tmp_path / "large.tsv", tmp_path / "out")
    card = Card.load(tmp_path / "out")
    assert (card.recipe.columns["encoding"].size, card.tokens["encoding"].shape) == (512, (32, 32))


ROW = f"/a.jpg\t{[0] * 256}\n"
WRONG_ROWS = {
    "no header": (ROW, "line 1: the header must be image_file and encoding"),
    "nothing but a header": ("", "holds no samples"),
    "too large": (ROW.replace("[0,", "[16384,"), "line 2: token 16384 is outside the code book of 16384"),
    "negative": (ROW + ROW.replace("0]", "-1]"), "line 3: token -1 is outside"),
    "enormous": (ROW.replace("0]", f"{10**30}]"), "line 2: token 1000"),
    "a fraction": (ROW.replace("0]", "0.5]"), "line 2: the encoding must be a list of whole numbers"),
    "truth": (ROW.replace("0]", "true]"), "line 2: the encoding must be a list of whole numbers"),
    "words": ("/a.jpg\tcat\n", "line 2: the encoding must be a list of tokens as [1,2,3], not 'cat'"),
    "nested": ("/a.jpg\t[[1]]\n", "line 2: the encoding must be a list of whole numbers"),
    "none": ("/a.jpg\t[]\n", "line 2: the encoding must be a list of whole numbers"),
    "left out by NumPy": ("/a.jpg\t[1,2,...,3]\n", "NumPy has left tokens out of it"),
    "ragged": (ROW + "\n" + ROW.replace("0, ", "", 1), "line 4: has 255 tokens, and the first row 256"),
    "no square": ("/a.jpg\t[1, 2, 3]\n", "3 tokens for an image do not make a square"),
    "one column": (ROW + "/b.jpg\n", "line 3: must have 2 columns, not 1"),
    "not UTF-8": (ROW.replace("a", "\udcff"), "line 2: the path is not UTF-8"),
    "zeros": ("\0" * 50 + "\n", "line 2: "),
}


@pytest.mark.parametrize("what", WRONG_ROWS)
def test_a_tsv_that_is_wrong_is_refused_in_one_line(what, tmp_path, capsys):
    rows, message = WRONG_ROWS[what]
    header = "" if what == "no header" else "image_file\tencoding\n"
    (tmp_path / "wrong.tsv").write_text(header + rows, errors="surrogateescape")
    assert main(["convert", str(tmp_path / "wrong.tsv"), str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"latentq: {tmp_path / 'wrong.tsv'}")
    assert message in line
    assert names(tmp_path) == ["wrong.tsv"]


def test_a_dataset_without_tokens_gives_no_tsv(converted, tmp_path):
    with pytest.raises(LatentqError, match=r"holds no tokens: a \.tsv is of tokens"):
        convert(converted, tmp_path / "out.tsv")
    assert names(tmp_path) == []


# the command


def test_what_is_there_is_never_replaced(tsv, converted, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there.pt").write_text("mine")
    for source, out in ((tsv, "there"), (converted, "there.pt"), (converted, "there")):
        assert main(["convert", str(source), str(tmp_path / out)]) == 1
        assert capsys.readouterr().err == f"latentq: {tmp_path / out}: is there already\n"
    assert (tmp_path / "there.pt").read_text() == "mine"


@pytest.mark.parametrize(
    ("source", "out", "code", "message"),
    [
        ("nowhere", "out", 2, "nowhere: no such file or folder"),
        ("tokens.tsv", "no/folder", 1, "no such folder to write to"),
        ("tokens.tsv", "out.pt", 1, "is a TSV of tokens: convert it to a latent dataset first"),
        (
            "words.txt",
            "out",
            1,
            "words.txt, line 1: the header must be image_file and encoding, not 'once'",
        ),
    ],
)
def test_what_cannot_be_is_one_line(source, out, code, message, tsv, monkeypatch, capsys):
    monkeypatch.chdir(tsv.parent)
    Path("words.txt").write_text("once")
    assert main(["convert", source, out]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_interrupt_leaves_nothing_behind(tsv, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("latentq.converting.finish", interrupted)
    assert main(["convert", str(tsv), str(tmp_path / "out")]) == 130
    assert names(tmp_path) == []


# back to pictures


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Models of the shapes that imagenet_3gb and VQGAN-f16-16384 were made with, randomly initialised."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    AutoencoderDC(
        latent_channels=32,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(32,) * 6,
        decoder_block_out_channels=(32,) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
    ).save_pretrained(folder / "dc")
    VQModel(
        down_block_types=["DownEncoderBlock2D"] * 5,
        up_block_types=["UpDecoderBlock2D"] * 5,
        block_out_channels=(8,) * 5,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=16384,
    ).save_pretrained(folder / "vq")
    return folder


@pytest.mark.parametrize("foreign", [True, False])
@pytest.mark.parametrize("layout", ["torch file", "imagenet.int8", "tokens"])
def test_decode_gives_the_pictures_of_every_layout_and_of_its_dataset(
    layout, foreign, request, models, tokens, items, tmp_path
):
    if layout == "torch file":
        path, model = request.getfixturevalue("converted").parent / "imagenet_3gb.pt", models / "dc"
        stored = items[7]["latent"][None].float() / 255 * 13 - 6.5
    elif layout == "imagenet.int8":
        path, model = request.getfixturevalue("int8_folder"), request.getfixturevalue("tiny_vae")
        codes = np.random.default_rng(7).integers(0, 256, 4096).astype(np.float32)
        stored = torch.from_numpy((codes / 255 - 0.5) * 28).reshape(1, 4, 32, 32)
    else:
        path, model = request.getfixturevalue("tsv"), models / "vq"
        stored = torch.from_numpy(tokens[7]).reshape(1, 16, 16)
    if not foreign:
        convert(path, tmp_path / "out")
        path = tmp_path / "out"
    picture = tmp_path / "7.png"
    assert main(["decode", str(path), "--index", "7", "--autoencoder", str(model), "-o", str(picture)]) == 0
    options = {"pixel_range": (0.0, 1.0)} if layout == "tokens" else {}
    expected = decode_latents(latentq.load_autoencoder(model, **options), stored)[0]
    assert expected.std() > 0
    assert np.abs(np.asarray(Image.open(picture)).astype(int) - expected).max() <= 1


def test_an_autoencoder_of_another_shape_decodes_nothing(converted, tiny_vae, tmp_path, capsys):
    for source in (converted.parent / "imagenet_3gb.pt", converted):
        command = ["decode", str(source), "--autoencoder", str(tiny_vae), "-o", str(tmp_path / "x.png")]
        assert main(command) == 1
        assert "stores latent of shape (32, 8, 8), tiny-vae makes (4, 32, 32)" in capsys.readouterr().err


def test_a_sheet_of_a_foreign_file_shows_eight(converted, models, tmp_path, capsys):
    source = converted.parent / "imagenet_3gb.pt"
    command = ["decode", str(source), "--autoencoder", str(models / "dc"), "-o", str(tmp_path / "x.png")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'x.png'}: 8 samples\n"
    assert main([*command, "--index", "300"]) == 2
    assert main([*command, "--source", str(tmp_path)]) == 1
    assert "convert it to a dataset" in capsys.readouterr().err


# what it takes


def test_storage_counts_what_is_there(pictures, tmp_path, capsys):
    latentq.encode(pictures, tmp_path / "out", size=64)
    command = ["info", str(tmp_path / "out"), "--storage"]
    assert main([*command, "--json"]) == 0
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out)}
    files = [path for path in pictures.rglob("*") if path.is_file()]
    assert rows["original images"]["bytes"] == sum(path.stat().st_size for path in files)
    assert rows["JPEG 64 x 64, quality 95"]["bytes"] is None
    assert rows["latents, float32"] == {"what": "latents, float32", "bytes": 12 * 4096, "each": 4096, "note": ""}
    assert (rows["latents, float16"]["bytes"], rows["latents, as stored"]["each"]) == (12 * 2048, 1024)
    whole = sum(len(data) for data in contents(tmp_path / "out").values())
    assert rows["the whole dataset"]["bytes"] == whole
    assert main([*command, "--source", str(pictures)]) == 0
    table = capsys.readouterr().out
    sizes = []
    for path in files:
        file = io.BytesIO()
        Image.fromarray(latentq.image.load(path, 64)).save(file, "JPEG", quality=95)
        sizes.append(file.tell())
    assert f"{sum(sizes) / 1000:.1f} kB" in table
    assert "estimated from 12" in table


def test_storage_of_what_was_converted_says_what_is_not_known(tsv, tmp_path, capsys):
    convert(tsv, tmp_path / "out")
    assert main(["info", str(tmp_path / "out"), "--storage"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("  ")[2] for line in lines[1:5]] == [
        "their sizes are not in its list",
        "no originals to try it with: --source names them",
        "it holds tokens",
        "it holds tokens",
    ]
    assert "512 bytes" in lines[5]


# the page


def test_every_line_of_the_page_runs(tmp_path, monkeypatch, converted, int8_folder, tsv, models, tiny_vae, pictures):
    shutil.copy(converted.parent / "imagenet_3gb.pt", tmp_path)
    shutil.copy(tsv, tmp_path / "tokens.tsv")
    shutil.copytree(int8_folder, tmp_path / "vae_mds")
    for name, model in (("dc-ae", models / "dc"), ("vqgan", models / "vq"), ("sdxl-vae", tiny_vae)):
        (tmp_path / name).symlink_to(model)
    pictures.rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    latentq.encode("photos", "out", size=64)
    page = (Path(__file__).resolve().parents[2] / "docs" / "convert.md").read_text()
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    for language, text in blocks:
        if language == "python":
            exec(text, {})
        else:
            for line in text.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
