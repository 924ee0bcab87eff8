"""Layouts of tokens and of integer codes: in, out and in again, equal codes."""

import numpy as np
import pytest
import torch

import latentq
from conftest import contents
from latentq.cli.main import main
from latentq.converting.pipeline import convert
from support import foreign_making as made

COUNT = 25


def labels():
    return np.random.default_rng(5).integers(0, 7, COUNT)


def tokens(codebook, *shape):
    return np.random.default_rng(1).integers(0, codebook, (COUNT, *shape))


def read(dataset, name, dtype=torch.float32):
    opened = latentq.LatentDataset(dataset, columns=[name], dtype=dtype)
    (values,) = opened.batch(range(len(opened))).values()
    return values.numpy()


@pytest.mark.parametrize("augmentations", [1, 2, 10])
def test_llamagen_has_equal_codes(augmentations, tmp_path):
    codes = tokens(16384, augmentations, 256)
    made.llamagen_writes(tmp_path / "codes", codes, labels())
    assert convert(tmp_path / "codes", tmp_path / "in") == COUNT
    card = latentq.Card.load(tmp_path / "in")
    assert len(card.tokens) == augmentations
    for index, name in enumerate(card.tokens):
        assert np.array_equal(read(tmp_path / "in", name).reshape(COUNT, 256), codes[:, index])
        assert card.recipe.columns[name].flip == (index >= (augmentations + 1) // 2)
    convert(tmp_path / "in", tmp_path / "out", to_layout="llamagen")
    features, classes = made.llamagen_reads(tmp_path / "out", COUNT)
    assert np.array_equal(np.concatenate(features), codes)
    assert features[0].dtype == np.int64
    assert np.array_equal(np.concatenate(classes), labels())
    convert(tmp_path / "out", tmp_path / "again")
    for name in card.tokens:
        assert np.array_equal(read(tmp_path / "again", name), read(tmp_path / "in", name))


def test_rar_has_equal_codes(tmp_path):
    codes = tokens(1024, 256)
    made.rar_writes(tmp_path / "pretokenized.jsonl", codes, labels().tolist())
    assert convert(tmp_path / "pretokenized.jsonl", tmp_path / "in") == COUNT
    assert np.array_equal(read(tmp_path / "in", "tokens").reshape(COUNT, 256), codes)
    convert(tmp_path / "in", tmp_path / "out.jsonl", to_layout="rar")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "pretokenized.jsonl").read_bytes()
    found = made.rar_reads(tmp_path / "out.jsonl")
    assert [label.item() for label, _ in found] == labels().tolist()
    assert torch.equal(torch.stack([row for _, row in found]), torch.from_numpy(codes))
    convert(tmp_path / "out.jsonl", tmp_path / "again")
    assert np.array_equal(read(tmp_path / "again", "tokens"), read(tmp_path / "in", "tokens"))


def test_a_token_beyond_the_codebook_is_refused_unless_another_is_named(tmp_path):
    made.rar_writes(tmp_path / "lines.jsonl", tokens(2048, 64), labels().tolist())
    with pytest.raises(latentq.FormatError, match="is outside the codebook of 1024"):
        convert(tmp_path / "lines.jsonl", tmp_path / "in")
    assert convert(tmp_path / "lines.jsonl", tmp_path / "in", codebook=4096) == COUNT
    assert latentq.Card.load(tmp_path / "in").tokens["tokens"].codebook_size == 4096


def test_cosmos_imagenet_has_equal_codes(tmp_path):
    codes = np.random.default_rng(0).integers(-128, 128, (COUNT, 16, 4, 4), np.int8)
    codes[0, 0, 0] = (-128, 127, 0, 1)
    made.cosmos_imagenet_writes(tmp_path / "ci.safetensors", codes, labels())
    assert convert(tmp_path / "ci.safetensors", tmp_path / "in") == COUNT
    np.testing.assert_allclose(read(tmp_path / "in", "latent"), codes * (16.0 / 255.0), atol=1e-6)
    convert(tmp_path / "in", tmp_path / "out.safetensors", to_layout="cosmos-imagenet")
    _, classes, stored = made.cosmos_imagenet_reads(tmp_path / "out.safetensors", "continuous")
    assert np.array_equal(stored.numpy(), codes)
    assert np.array_equal(classes.numpy(), labels())
    assert (tmp_path / "out.safetensors").read_bytes() == (tmp_path / "ci.safetensors").read_bytes()
    convert(tmp_path / "out.safetensors", tmp_path / "again")
    same = read(tmp_path / "again", "latent", torch.uint8) == read(tmp_path / "in", "latent", torch.uint8)
    assert same.all()


@pytest.mark.parametrize("dtype", [np.int8, np.int16])
def test_the_folder_of_cosmos_imagenet_is_detected(tmp_path, dtype):
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "README.md").write_text("fal's")
    shape = (COUNT, 16, 4, 4) if dtype == np.int8 else (COUNT, 4, 4)
    made.cosmos_imagenet_writes(folder / "a.safetensors", np.ones(shape, dtype), labels())
    assert convert(folder, tmp_path / "in") == convert(folder / "a.safetensors", tmp_path / "same") == COUNT
    assert contents(tmp_path / "in") == contents(tmp_path / "same")
    made.cosmos_imagenet_writes(folder / "b.safetensors", np.ones(shape, dtype), labels())
    with pytest.raises(latentq.MismatchError, match=r"holds a\.safetensors, b\.safetensors: name one file"):
        convert(folder, tmp_path / "both")


def test_cosmos_imagenet_has_equal_tokens(tmp_path):
    codes = tokens(64_000, 8, 8)
    made.cosmos_imagenet_writes(tmp_path / "di.safetensors", codes.astype(np.uint16).view(np.int16), labels())
    assert convert(tmp_path / "di.safetensors", tmp_path / "in") == COUNT
    assert np.array_equal(read(tmp_path / "in", "tokens"), codes)
    convert(tmp_path / "in", tmp_path / "out.safetensors", to_layout="cosmos-imagenet")
    data, _, _ = made.cosmos_imagenet_reads(tmp_path / "out.safetensors", "discrete")
    assert np.array_equal(data.numpy(), codes)
    convert(tmp_path / "out.safetensors", tmp_path / "again")
    assert np.array_equal(read(tmp_path / "again", "tokens"), codes)


def test_codes_of_another_meaning_are_refused(tmp_path):
    latents = np.random.default_rng(0).standard_normal((COUNT, 4, 32, 32)).astype(np.float32)
    made.fast_dit_writes(tmp_path / "features", latents, labels())
    convert(tmp_path / "features", tmp_path / "in", bits=8)
    with pytest.raises(latentq.MismatchError, match=r"codes are copied unchanged: the layout has 8 bits, uniform from"):
        convert(tmp_path / "in", tmp_path / "out", to_layout="cosmos-imagenet")


def test_options_that_would_change_nothing_are_refused(tmp_path, capsys):
    made.rar_writes(tmp_path / "tokens.jsonl", tokens(1024, 256), labels().tolist())
    made.fast_dit_writes(tmp_path / "features", np.zeros((COUNT, 4, 8, 8), np.float32), labels())
    for source, option, held in (("tokens.jsonl", "bits", "latents to quantize"), ("features", "codebook", "tokens")):
        assert main(["convert", str(tmp_path / source), str(tmp_path / "out"), f"--{option}", "4"]) == 2
        expected = f"latentq: --{option} must be left out: {tmp_path / source} holds no {held}\n"
        assert capsys.readouterr().err == expected
    made.cosmos_imagenet_writes(tmp_path / "codes", np.zeros((COUNT, 16, 4, 4), np.int8), labels())
    assert main(["convert", str(tmp_path / "codes"), str(tmp_path / "out"), "--bits", "4"]) == 2
    held = "codes, which are copied unchanged"
    assert capsys.readouterr().err == f"latentq: --bits must be left out: {tmp_path / 'codes'} holds {held}\n"
    assert not (tmp_path / "out").exists()


def test_the_layout_that_a_name_chose_is_told_with_how_to_choose_another(tmp_path):
    made.fast_dit_writes(tmp_path / "features", np.zeros((COUNT, 4, 8, 8), np.float32), labels())
    convert(tmp_path / "features", tmp_path / "in")
    held = (
        r"it holds scaled latents \(4, 8, 8\) in float32, and .*; the name out chose that layout, --to chooses another$"
    )
    with pytest.raises(latentq.MismatchError, match=held):
        convert(tmp_path / "in", tmp_path / "out")


def test_an_unknown_layout_is_told_by_the_name_of_the_option(tmp_path, capsys):
    made.rar_writes(tmp_path / "tokens.jsonl", tokens(1024, 256), labels().tolist())
    assert main(["convert", str(tmp_path / "tokens.jsonl"), str(tmp_path / "out"), "--from", "nope"]) == 2
    assert capsys.readouterr().err.startswith("latentq: --from: there is no layout 'nope': name one of ")
