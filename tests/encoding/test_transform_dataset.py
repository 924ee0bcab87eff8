"""A dataset encoded by a transform, from `latentq encode` to every reader."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import replace

import numpy as np
import pytest
import tomli_w
import torch
from torch.utils.data import DataLoader

import latentq
from conftest import contents, paint
from latentq import (
    Card,
    FormatError,
    LatentDataset,
    LatentMixture,
    LatentqError,
    MismatchError,
    Recipe,
    RecipeError,
    mds,
)
from latentq.inspect.describe import quantizer_text
from latentq.inspect.measure import measure
from latentq.inspect.measure import of_dataset as latents_to_measure
from latentq.inspect.pictures import pictures as decode_pictures
from latentq.inspect.report.write import report
from latentq.inspect.storage import storage
from latentq.quantizer import Transform

OPTIONS = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 4}
COMMAND = [sys.executable, "-m", "latentq", "encode", "--autoencoder", "dct-f8c16", "--size", "64", "--unit-size", "4",
           "--batch-size", "4", "--codec", "transform", "--bytes", "400"]  # fmt: skip


def recipe(**quantizer):
    tables = Recipe.load("default").to_dict()
    tables["columns"]["latent"]["quantizer"] = {"kind": "transform", **quantizer}
    return Recipe.from_dict(tables)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(14):
        paint(folder / f"{number:02}.png", number, (90, 70))
    return folder


@pytest.fixture(scope="module", params=[{"bytes": 400}, {"rate": 3.0}], ids=["bytes", "rate"])
def out(request, source, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    latentq.encode(source, out, recipe=recipe(**request.param), **OPTIONS)
    return out


@pytest.fixture(scope="module")
def exact(source, tmp_path_factory):
    """The latents of the same images, stored as floats."""
    tables = Recipe.load("default").to_dict()
    tables["columns"]["latent"]["quantizer"] = {"kind": "float32"}
    out = tmp_path_factory.mktemp("floats") / "out"
    latentq.encode(source, out, recipe=Recipe.from_dict(tables), **OPTIONS)
    return torch.stack([sample["latent"] for sample in LatentDataset(out)])


def test_stored_bytes_are_those_of_the_cards_codec(out, exact):
    card = Card.load(out)
    facts = card.latents["latent"]
    transform = facts.quantizer
    assert isinstance(transform, Transform)
    assert card.columns["latent"] == ("ndarray:uint8:400" if transform.sample_bytes else "bytes")
    stored = [bytes(row) for row in mds.Reader(out).gather(range(14), "latent")]
    assert stored == [bytes(row) for row in transform.encode(exact)]
    expected = torch.from_numpy(transform.decode(stored, facts.shape))
    values = LatentDataset(out).batch(range(14))["latent"]
    assert torch.equal(values, expected)
    assert (values - exact).square().mean() < 0.05 * exact.square().mean()
    np.testing.assert_allclose(facts.statistics.mean, expected.double().mean((0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(facts.statistics.std, expected.double().std((0, 2, 3), correction=0), atol=1e-12)
    assert facts.statistics.max == tuple(expected.double().amax((0, 2, 3)).tolist())
    normalized = LatentDataset(out, scale="normalized").batch(range(14))["latent"].double()
    np.testing.assert_allclose(normalized.mean((0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(normalized.std((0, 2, 3), correction=0), 1, atol=1e-4)


def test_every_reader_gives_the_same_values(out, streaming_alone):
    dataset = LatentDataset(out)
    expected = dataset.batch(range(14))["latent"]
    assert torch.equal(torch.stack([sample["latent"] for sample in dataset]), expected)
    loaded = torch.cat([batch["latent"] for batch in dataset.loader(4, drop_last=False)])
    assert torch.equal(loaded, expected)
    resident = dataset.to_device("cpu")
    assert torch.equal(resident.batch(range(14))["latent"], expected)
    assert torch.equal(torch.cat([batch["latent"] for batch in resident.loader(4)]), expected)
    resident.device, resident._apart = torch.device("meta"), {"latent"}  # as if the memory here were another device's
    rows = resident.read([9, 3, 13])
    assert rows["latent"].dtype == torch.int16
    assert torch.equal(resident.decode_batch(rows)["latent"], expected[[9, 3, 13]])
    workers = torch.cat([batch["latent"] for batch in DataLoader(dataset, batch_size=5, num_workers=2)])
    assert torch.equal(workers, expected)
    mixture = LatentMixture([dataset, LatentDataset(out)])
    assert all(torch.isin(batch["latent"], expected).all() for batch in mixture.loader(4))
    half = LatentDataset(out, dtype=torch.bfloat16).batch([9, 3])["latent"]
    assert torch.equal(half, expected[[9, 3]].bfloat16())
    for dtype in (torch.float32, torch.bfloat16):  # what a resident dataset on a GPU does, in two parts
        dataset = LatentDataset(out, dtype=dtype, scale="normalized")
        layout, stored = dataset.layout, dataset.read(range(14))["latent"]
        parts = layout.on_host["latent"].numbers(stored)
        assert parts[0].dtype == torch.int16
        assert torch.equal(layout.on_host["latent"].from_numbers(*parts, dtype), dataset.batch(range(14))["latent"])
    with pytest.raises(ValueError, match="no codes"):
        LatentDataset(out, dtype=torch.uint8)


def test_a_mixture_of_other_tables_or_another_codec_is_refused(out, source, tmp_path):
    for name, options in (("tables", {"bytes": 300}), ("trellis", {"codec": "trellis"})):
        latentq.encode(source, tmp_path / name, **OPTIONS, **options)
        with pytest.raises(MismatchError, match=f"{name} has quantizer of 'latent' ") as caught:
            LatentMixture([LatentDataset(out), LatentDataset(tmp_path / name)])
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(": encode one with --like the other")


def test_a_stock_reader_reads_the_bytes(out, streaming_alone):
    streaming = pytest.importorskip("streaming")
    streaming.base.util.clean_stale_shared_memory()
    facts = Card.load(out).latents["latent"]
    stock = streaming.StreamingDataset(local=str(out), batch_size=1)
    expected = LatentDataset(out).batch(range(14))["latent"].numpy()
    stored = [bytes(stock[index]["latent"]) for index in range(14)]
    np.testing.assert_array_equal(facts.quantizer.decode(stored, facts.shape), expected)
    streaming.base.util.clean_stale_shared_memory()
    from latentq.reading.streaming import LatentStreamingDataset

    ours = LatentStreamingDataset(local=str(out), batch_size=1)
    assert torch.equal(torch.stack([ours[index]["latent"] for index in range(14)]), torch.from_numpy(expected))


def damage(folder):
    """Changes a byte of sample 5, which is in the second unit, and returns its shard."""
    stored = mds.Reader(folder).gather([5], "latent")[0]
    shard = next(folder.glob("*1/shard.*.mds"))
    data = shard.read_bytes()
    place = data.index(bytes(stored)) + len(bytes(stored)) // 2  # among the words
    shard.write_bytes(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    return shard


def test_a_sample_that_does_not_decode_is_damage(out, tmp_path, streaming_alone):
    assert latentq.verify(out) == []
    damaged = tmp_path / "out"
    shutil.copytree(out, damaged)
    shard = damage(damaged)
    index = json.loads((shard.parent / "index.json").read_text())
    for entry in index["shards"]:  # so that not even a hash tells
        entry["raw_data"]["hashes"] = {}
    (shard.parent / "index.json").write_text(json.dumps(index))
    messages = [finding.message for finding in latentq.verify(damaged)]
    assert any("sample 1, column latent: cannot be decoded" in message for message in messages), messages
    place = rf"{re.escape(str(shard))}: sample 1 \(5 of the dataset\), column latent: cannot be decoded"
    with pytest.raises(FormatError, match=place):
        LatentDataset(damaged).batch(range(14))
    with pytest.raises(FormatError, match=place):
        list(LatentDataset(damaged).loader(7, shuffle=True))
    column = rf"{re.escape(str(damaged))}.*: column latent: encoded sample 3 cannot be decoded"
    dataset = LatentDataset(damaged)
    with pytest.raises(FormatError, match=column):  # as of a worker, which sends samples as stored
        dataset.decode_batch(dataset.read([2, 3, 4, 5]))
    named = rf"{re.escape(str(damaged))}: sample 5, column latent: cannot be decoded"
    with pytest.raises(FormatError, match=named):
        LatentDataset(damaged).to_device("cpu").batch(range(14))
    with pytest.raises(FormatError, match=named):
        list(LatentDataset(damaged).to_device("cpu").loader(7, shuffle=True))
    with pytest.raises(FormatError, match=named):
        decode_pictures(damaged, [2, 5])
    with pytest.raises(FormatError, match=named):
        latents_to_measure(damaged)
    with pytest.raises(FormatError, match=named):
        report(damaged, tmp_path / "report.html")
    pytest.importorskip("streaming")
    from latentq.reading.streaming import LatentStreamingDataset

    with pytest.raises(FormatError, match=named):
        LatentStreamingDataset(local=str(damaged), batch_size=1)[5]


def test_damage_is_named_in_a_bucket_and_by_convert(tmp_path):
    for number in range(14):
        paint(tmp_path / f"source/a/{number:02}.png", number, (90, 70) if number < 3 else (70, 90))
    out = tmp_path / "out"
    latentq.encode(tmp_path / "source", out, **OPTIONS, codec="transform", bytes=400)
    damage(out)
    with pytest.raises(FormatError, match="out: sample 5, column latent: cannot be decoded"):
        latentq.convert(out, tmp_path / "floats", to_layout="fast-dit")
    out = tmp_path / "buckets"
    options = {"autoencoder": "dct-f8c16", "unit_size": 4, "buckets": "64x80,80x64", "bytes": 400}
    latentq.encode(tmp_path / "source", out, **options)
    assert quantizer_text(Card.load(out).latents["latent"]) == "transform, 400 bytes (2.50 bits an element)"
    damage(out)
    resident = LatentDataset(out).to_device("cpu")  # where sample 5 is not row 5 of its bucket
    with pytest.raises(FormatError, match="buckets: sample 5, column latent: cannot be decoded"):
        resident[5]
    resident.device = torch.device("meta")  # then integers are decoded for another device
    with pytest.raises(FormatError, match="buckets: sample 5, column latent: cannot be decoded"):
        resident.read([5])


def test_verify_adds_up_the_latents_again(out):
    unit = next(out.glob("*/unit.toml"))
    text = unit.read_text()
    tables = tomllib.loads(text)
    tables["latents"]["latent"]["moments"]["sum"][1] += 0.5
    try:
        unit.write_text(tomli_w.dumps(tables))
        assert any("its sums of latent" in finding.message for finding in latentq.verify(out))
    finally:
        unit.write_text(text)


def test_pictures_storage_and_info_know_the_size(out, source, capsys):
    transform = Card.load(out).latents["latent"].quantizer
    stored = mds.Reader(out).gather([5], "latent")[0]
    picture = decode_pictures(out, [5], source=source)[0][-1]
    assert picture.lines[0] == f"from the transform, {len(bytes(stored))} bytes"
    assert transform.sample_bytes in (None, len(bytes(stored)))
    rows = {row.what: row for row in storage(out)}
    total = sum(map(len, mds.Reader(out).gather(range(14), "latent")))
    assert rows["latents, as stored"].bytes == pytest.approx(total, abs=14)
    assert rows["ImageNet would take"].bytes == pytest.approx(total / 14 * 1_281_167, rel=1e-3)
    from latentq.cli.main import main

    assert main(["info", str(out)]) == 0
    assert "transform, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "model", "sample_bytes", "imagenet"),
    [
        ("imagenet-1.3gb", "dc", 1024, "1.31 GB, 1.22 GiB"),
        ("imagenet-1gb", "dc", 768, "0.98 GB, 0.92 GiB"),
        ("sdxl-2kb", "vae", 2048, "2.62 GB, 2.44 GiB"),
        ("sdxl-1.5kb", "vae", 1536, "1.97 GB, 1.83 GiB"),
    ],
)
def test_a_recipe_takes_the_bytes_of_its_name(
    tmp_path, layout_models, tiny_vae, capsys, name, model, sample_bytes, imagenet
):
    from latentq.cli.main import main

    for number in range(3):
        paint(tmp_path / "source" / f"{number}.png", number, (90, 70))
    network = tiny_vae if model == "vae" else layout_models / "dc"
    card = latentq.encode(tmp_path / "source", tmp_path / "out", recipe=name, autoencoder=network)
    assert card.columns["latent"] == f"ndarray:uint8:{sample_bytes}"
    assert card.latents["latent"].shape == ((4, 32, 32) if model == "vae" else (32, 8, 8))
    assert {len(bytes(row)) for row in mds.Reader(tmp_path / "out").gather(range(3), "latent")} == {sample_bytes}
    assert main(["info", str(tmp_path / "out"), "--storage"]) == 0
    assert f"1,281,167 images of its training set: {imagenet}" in capsys.readouterr().out


@pytest.mark.parametrize("codec", ["trellis", "transform"])
def test_a_report_shows_what_a_codec_decodes_to(source, tmp_path, codec):
    latentq.encode(source, tmp_path / "out", **OPTIONS, codec=codec, bits=4)
    from latentq.cli.main import main

    assert main(["report", str(tmp_path / "out"), "--source", str(source), "--out", str(tmp_path / "r.html")]) == 0
    assert codec in (tmp_path / "r.html").read_text()


@pytest.mark.long
def test_a_killed_run_goes_on_and_ranks_write_the_same_bytes(source, tmp_path):
    assert subprocess.run([*COMMAND, source, tmp_path / "whole"], capture_output=True).returncode == 0
    process = subprocess.Popen(
        [*COMMAND, source, tmp_path / "out"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not list(tmp_path.glob("out/*/index.json")):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    options = {**OPTIONS, "codec": "transform", "bytes": 400, "batch_size": 4}
    latentq.encode(source, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    for rank in (1, 0):
        latentq.encode(source, tmp_path / "ranks", **options, rank=rank, world_size=2)
    assert contents(tmp_path / "ranks") == contents(tmp_path / "whole")


def test_an_update_keeps_the_tables(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for number in range(6):
        paint(source / f"{number}.png", number, (90, 70))
    card = latentq.encode(source, out, **OPTIONS, codec="transform", bits=3)
    assert card.columns["latent"] == "ndarray:uint8:384"
    paint(source / "9.png", 9, (90, 70))
    (source / "2.png").unlink()
    updated = latentq.encode(source, out, update=True)
    assert updated.latents["latent"].quantizer == card.latents["latent"].quantizer
    assert latentq.verify(out) == []


def test_the_others_of_a_batch_are_stored(source, tmp_path, monkeypatch):
    encode_counted = Transform.encode_counted

    def refuse_the_second(self, x, **options):
        return replace(encode_counted(self, x, **options), bad={1: "refused"})

    monkeypatch.setattr(Transform, "encode_counted", refuse_the_second)
    card = latentq.encode(source, tmp_path / "out", **OPTIONS, batch_size=4, codec="transform", bytes=400)
    assert (card.counts.samples, card.counts.rejects) == (10, 4)
    monkeypatch.undo()
    assert latentq.verify(tmp_path / "out") == []
    keys = [sample["key"] for sample in LatentDataset(tmp_path / "out")]
    assert keys == [f"{number:02}.png" for number in range(14) if number % 4 != 1]


def test_the_decoders_metric_changes_the_basis_alone(source, tmp_path, tiny_vae):
    options = {"autoencoder": tiny_vae, "size": 64}
    plain = latentq.encode(source, tmp_path / "plain", recipe=recipe(bytes=150), **options)
    weighted = latentq.encode(source, tmp_path / "weighted", recipe=recipe(bytes=150, metric="decoder"), **options)
    a, b = (card.latents["latent"].quantizer for card in (plain, weighted))
    assert a.basis != b.basis
    assert a.mean == b.mean
    assert latentq.verify(tmp_path / "weighted") == []


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_metric_is_of_images_from_all_over_the_list(source, exact, tmp_path, monkeypatch, batch_size):
    """The first ones of a list are often of one class."""
    from latentq.encoding import calibrate, decoder_metric

    given = []
    monkeypatch.setattr(calibrate, "_TRIED", 3)
    monkeypatch.setattr(decoder_metric, "decoder_metric", lambda _, latents, *__: given.extend(latents) or np.eye(16))
    options = {**OPTIONS, "batch_size": batch_size}
    latentq.encode(source, tmp_path / "out", recipe=recipe(bytes=400, metric="decoder"), **options)
    np.testing.assert_array_equal(np.stack(given), exact[[0, 4, 8]])


def test_measure_has_a_row_of_just_as_many_bytes(exact):
    rows = measure(exact.numpy(), bits=(4,), methods=("trellis",))
    by_scheme = {row.scheme: row for row in rows if row.bits == 4}
    assert by_scheme["transform"].sqnr_db > by_scheme["trellis"].sqnr_db
    assert by_scheme["transform"].entropy is None
    small = measure(exact.numpy()[:, :3, :4, :4], bits=(4,), methods=("trellis",))
    assert "transform" not in {row.scheme for row in small}


def test_other_layouts_and_small_latents_are_refused(out, source, tmp_path):
    with pytest.raises(MismatchError, match="transform"):
        latentq.convert(out, tmp_path / "out.pt")
    with pytest.raises(RecipeError, match="5000 bytes are more than a latent takes in float32, 4096"):
        latentq.encode(source, tmp_path / "out", **OPTIONS, bytes=5000)
    with pytest.raises(RecipeError, match="use a trellis"):
        latentq.encode(source, tmp_path / "out", autoencoder="dct-f8c16", size=24, codec="transform")


def test_too_few_bytes_are_refused_before_anything_is_encoded(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RecipeError, match=r"17 bytes cannot hold a latent of shape \(16, 8, 8\): .* takes 18"):
        latentq.encode(source, out, **OPTIONS, bytes=17)
    assert not out.exists()
    with pytest.raises(ValueError, match="17 bytes hold no sample of shape"):
        Transform.calibrate(np.ones((2, 16, 8, 8), np.float32), bytes=17)


def test_bytes_that_are_too_few_for_these_latents_are_found_at_the_calibration(source, tmp_path, monkeypatch):
    encode_counted = Transform.encode_counted

    def without_large_steps(self, x, **options):
        # A step that is large enough fits any budget, unless a latent is far from the others: here none is.
        return encode_counted(replace(self, step=self.step / 2**14), x, **options)

    monkeypatch.setattr(Transform, "encode_counted", without_large_steps)
    out = tmp_path / "out"
    few = r"latent: none of 14 calibration samples can be encoded in 100 bytes: .*the number of bytes is too small"
    with pytest.raises(LatentqError, match=few):
        latentq.encode(source, out, **OPTIONS, bytes=100)
    assert not list(out.rglob("shard*"))
    assert not (out / "latents.toml").exists()


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ({}, "one of bytes, bits, rate"),
        ({"bytes": 100, "rate": 4.0}, "one of bytes, bits, rate"),
        ({"bytes": 0}, "number of bytes"),
        ({"rate": 40}, "0.25 to 16"),
        ({"bits": 9}, "2 to 8"),
        ({"bits": 4, "metric": "images"}, "'decoder'"),
        ({"bits": 4, "method": "mse"}, "unknown field"),
    ],
)
def test_a_recipe_with_other_options_is_refused(quantizer, message):
    with pytest.raises(RecipeError, match=message):
        recipe(**quantizer)


def test_options_name_the_codec_in_any_order():
    base = Recipe.load("default")
    quantizer = base.override(bytes=700, codec="transform").columns["latent"].quantizer
    assert quantizer == {"kind": "transform", "bytes": 700}
    assert base.override(codec="transform").columns["latent"].quantizer == {"kind": "transform", "bits": 4}
    assert base.override(bits=3, codec="trellis").columns["latent"].quantizer["bits"] == 3
    assert base.override(bytes=700).columns["latent"].quantizer == quantizer
    with pytest.raises(RecipeError, match="bytes does not apply"):
        base.override(bytes=700, codec="trellis")
    for options in ({"bits": 4, "bytes": 700}, {"codec": "trellis", "calibrate": "mse"},
                    {"codec": "transform", "calibrate": "lloyd-max"}):  # fmt: skip
        with pytest.raises(RecipeError, match="exclude each other"):
            base.override(**options)
    with pytest.raises(RecipeError, match="transform is for latents"):
        base.override(store="moments", codec="transform")
    affine = {"kind": "affine", "bits": 8, "method": "mse"}
    for before in (base, base.override(codec="trellis"), base.override(bytes=700)):
        assert before.override(codec="affine").columns["latent"].quantizer == affine
    both = base.override(codec="affine", calibrate="minmax", bits=5).columns["latent"].quantizer
    assert both == {"kind": "affine", "bits": 5, "method": "minmax"}
    for options, message in (
        ({"calibrate": "lloyd-max"}, "exclude each other"),
        ({"bytes": 700}, "bytes does not apply"),
    ):
        with pytest.raises(RecipeError, match=message):
            base.override(codec="affine", **options)
    tables = base.override(text_encoder="any").to_dict()
    tables["columns"]["caption_embedding"]["quantizer"] = {"kind": "transform", "bytes": 300}
    with pytest.raises(RecipeError, match=r"transform is for latents; store caption_embedding by a trellis"):
        Recipe.from_dict(tables)


def test_bits_of_a_transform_are_refused_with_buckets_of_several_areas():
    base = Recipe.load("default")
    for options in ({"codec": "transform"}, {"codec": "transform", "bits": 3}):
        with pytest.raises(RecipeError, match=r"columns\.latent: [43] bits per element are another number of bytes"):
            base.override(buckets="kohya", **options)
        assert base.override(buckets=((128, 256), (256, 128)), **options).buckets is not None
    recipe = base.override(buckets="kohya", codec="transform", bytes=700)
    with pytest.raises(RecipeError, match="--bytes N"):
        recipe.override(bits=4)
    assert recipe.override(unit_size=9).columns["latent"].quantizer == {"kind": "transform", "bytes": 700}


def test_a_run_with_another_codec_is_refused_by_its_kind(out, source):
    with pytest.raises(MismatchError, match=r"quantizer\.kind = 'transform'; this run has 'trellis'"):
        latentq.encode(source, out, **OPTIONS, codec="trellis", bits=4)


@pytest.mark.parametrize("sample_bytes", [None, 399])
def test_a_card_with_other_bytes_than_the_shards_is_refused(source, tmp_path, sample_bytes):
    out = tmp_path / "out"
    card = latentq.encode(source, out, **OPTIONS, bytes=400)
    facts = card.latents["latent"]
    other = replace(facts, quantizer=replace(facts.quantizer, sample_bytes=sample_bytes))
    (out / "latents.toml").write_bytes(replace(card, latents={"latent": other}).to_toml())
    message = "400 bytes a sample in the shards, and by the card (any|399)"
    with pytest.raises(FormatError, match=message):
        LatentDataset(out).batch([0])
    with pytest.raises(FormatError, match=message):
        LatentDataset(out).decodable([0])
    with pytest.raises(FormatError, match=message):
        LatentDataset(out).to_device("cpu")


def test_buckets_of_other_sizes_have_other_bits_per_element(source, tmp_path):
    card = latentq.encode(source, tmp_path / "out", autoencoder="dct-f8c16", buckets="64x64,128x128", bytes=400)
    assert quantizer_text(card.latents["latent"]) == "transform, 400 bytes (0.78 to 3.12 bits an element)"
