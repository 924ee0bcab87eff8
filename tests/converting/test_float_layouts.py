"""Layouts of float latents and moments of one shape: in, out and in again, equal to the bit."""

import json
import shutil

import numpy as np
import pytest
import torch

import latentq
from latentq.cli.main import main
from latentq.converting.outgoing import Outgoing
from latentq.converting.pipeline import convert
from support import foreign_making as made

COUNT = 25


def floats(seed, *shape):
    return np.random.default_rng(seed).standard_normal((COUNT, *shape)).astype(np.float32)


def labels(classes=7):
    return np.random.default_rng(5).integers(0, classes, COUNT)


def stored(dataset, content, *, flip=False, spread="std"):
    """Return the stored values of a column and the labels, read by the dataset's own reader."""
    outgoing = Outgoing(dataset, "test")
    name = outgoing.need(content, flip=flip)
    columns = outgoing.open([name], spread=spread, scale="scaled" if outgoing.column(name).scaled else "raw")
    return np.concatenate([batch.values[name] for batch in columns.batches()])


def labels_of(dataset):
    read = latentq.LatentDataset(dataset, columns=["label"])
    return read.batch(range(len(read)))["label"].numpy()


@pytest.fixture(scope="module")
def lightningdit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lightningdit") / "vavae"
    made.lightningdit_writes(folder, floats(0, 32, 4, 4), floats(1, 32, 4, 4), labels(), shard=10)
    return folder


def test_lightningdit_is_equal_to_the_bit(lightningdit, tmp_path):
    assert convert(lightningdit, tmp_path / "in") == COUNT
    latents, flipped = stored(tmp_path / "in", "latent"), stored(tmp_path / "in", "latent", flip=True)
    assert np.array_equal(latents, floats(0, 32, 4, 4))
    assert np.array_equal(flipped, floats(1, 32, 4, 4))
    assert np.array_equal(labels_of(tmp_path / "in"), labels())
    assert not latentq.verify(tmp_path / "in")
    card = latentq.Card.load(tmp_path / "in")
    assert card.autoencoder.name == "hustvl/vavae-imagenet256-f16d32-dinov2"
    statistics = card.latents["latent"].statistics
    assert np.allclose(statistics.mean, latents.mean((0, 2, 3)), atol=1e-6)

    convert(tmp_path / "in", tmp_path / "out", to_layout="lightningdit")
    stats = torch.load(lightningdit / "latents_stats.pt")
    for index in (0, 13, COUNT - 1):
        for key, values in (("latents", latents), ("latents_flip", flipped)):
            count, feature, label = made.lightningdit_reads(tmp_path / "out", index, key)
            expected = (torch.from_numpy(values[index : index + 1]) - stats["mean"]) / stats["std"] * 1.0
            assert (count, label) == (COUNT, labels()[index])
            assert torch.equal(feature, expected.squeeze(0))
    convert(tmp_path / "out", tmp_path / "again")
    assert np.array_equal(stored(tmp_path / "again", "latent"), latents)
    assert latentq.Card.load(tmp_path / "again").autoencoder == card.autoencoder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_of_lightningdit_may_be_of_any_floats(dtype, lightningdit, tmp_path):
    shutil.copytree(lightningdit, tmp_path / "src")
    stats = {name: value.to(dtype) for name, value in torch.load(lightningdit / "latents_stats.pt").items()}
    torch.save(stats, tmp_path / "src" / "latents_stats.pt")
    convert(tmp_path / "src", tmp_path / "in")
    normalization = latentq.Card.load(tmp_path / "in").autoencoder.normalization
    assert normalization.mean == tuple(stats["mean"].ravel().tolist())
    assert normalization.std == tuple(stats["std"].ravel().tolist())
    torch.save({"mean": stats["mean"].long(), "std": stats["std"]}, tmp_path / "src" / "latents_stats.pt")
    with pytest.raises(latentq.FormatError, match=r"latents_stats\.pt: mean: must be a tensor of floats, not int64"):
        convert(tmp_path / "src", tmp_path / "again")


def test_scaled_latents_are_those_that_lightningdit_trains_on(lightningdit, tmp_path):
    convert(lightningdit, tmp_path / "in")
    dataset = latentq.LatentDataset(tmp_path / "in", columns=["latent"], scale="scaled")
    _, feature, _ = made.lightningdit_reads(lightningdit, 3, "latents")
    torch.testing.assert_close(dataset[3]["latent"], feature)


def safetensors_parts(path):
    """Return the header and the data of a file. The format's library writes metadata in random order."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return len(data), json.loads(data[8:end]), data[end:]


def test_a_shard_has_the_header_and_data_that_the_tool_writes(lightningdit, tmp_path):
    convert(lightningdit, tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", to_layout="lightningdit")
    made.lightningdit_writes(tmp_path / "tool", floats(0, 32, 4, 4), floats(1, 32, 4, 4), labels(), shard=10_000)
    shard = "latents_rank00_shard000.safetensors"
    assert safetensors_parts(tmp_path / "out" / shard) == safetensors_parts(tmp_path / "tool" / shard)


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("layout", ["repa", "edm2"])
def test_mean_and_std_are_equal_to_the_bit(layout, kind, tmp_path):
    moments = np.concatenate([floats(0, 4, 8, 8), np.abs(floats(1, 4, 8, 8)) * 1e-4], axis=1)
    source, out = (tmp_path / name if kind == "folder" else tmp_path / f"{name}.zip" for name in ("vae-sd", "out"))
    made.edm2_writes(source, moments, labels().tolist())
    assert convert(source, tmp_path / "in", from_layout=layout) == COUNT
    assert np.array_equal(stored(tmp_path / "in", "moments"), moments)
    assert np.array_equal(labels_of(tmp_path / "in"), labels())
    convert(tmp_path / "in", out, to_layout=layout)
    read, classes = (made.repa_reads if kind == "folder" else made.edm2_reads_zip)(out)
    assert np.array_equal(read, moments)
    assert np.array_equal(classes, labels())
    convert(out, tmp_path / "again", from_layout=layout)
    assert np.array_equal(stored(tmp_path / "again", "moments"), moments)


def edm2_encodes_latents(x):
    """Make training values of drawn latents as StabilityVAEEncoder.encode_latents of NVlabs/edm2 does."""
    scale = np.float32(0.5) / np.float32([4.17, 4.62, 3.71, 3.28])
    bias = np.float32(0) - np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    return x * torch.from_numpy(scale).reshape(1, -1, 1, 1) + torch.from_numpy(bias).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("layout", "trained", "pixels"),
    [("repa", lambda x: x * 0.18215, (-1.0, 1.0)), ("edm2", edm2_encodes_latents, (0.0, 1.0))],
)
def test_latents_are_drawn_from_mean_and_std(layout, trained, pixels, tmp_path):
    moments = np.concatenate([floats(0, 4, 8, 8), np.abs(floats(1, 4, 8, 8))], axis=1)
    made.edm2_writes(tmp_path / "vae-sd", moments, None)
    convert(tmp_path / "vae-sd", tmp_path / "in", from_layout=layout)
    assert latentq.Card.load(tmp_path / "in").autoencoder.pixel_range == pixels
    dataset = latentq.LatentDataset(tmp_path / "in", scale="scaled")
    torch.manual_seed(0)
    drawn = dataset.batch(range(COUNT))["latent"]
    torch.manual_seed(0)
    mean, std = torch.from_numpy(moments).chunk(2, 1)
    torch.testing.assert_close(drawn, trained(mean + std * torch.randn_like(mean)))
    convert(tmp_path / "in", tmp_path / "out", to_layout=layout)
    assert (tmp_path / "out" / "dataset.json").read_text() == '{"labels": null}'


def test_a_folder_that_fits_two_layouts_is_told_with_how_to_choose(tmp_path):
    made.edm2_writes(tmp_path / "vae-sd", floats(0, 8, 8, 8), None)
    with pytest.raises(latentq.MismatchError, match=r"fits several layouts: repa .* edm2 .*--from NAME chooses one"):
        convert(tmp_path / "vae-sd", tmp_path / "in")


def mar_names():
    return [f"n{index % 3:08d}/n{index % 3:08d}_{index}.JPEG" for index in range(COUNT)]


def test_mar_is_equal_to_the_bit(tmp_path):
    moments, flipped = floats(0, 32, 4, 4), floats(1, 32, 4, 4)
    made.mar_writes(tmp_path / "mar", mar_names(), moments, flipped)
    by_path = {f"{name}.npz": pair for name, *pair in zip(mar_names(), moments, flipped, strict=True)}
    assert convert(tmp_path / "mar", tmp_path / "in") == COUNT
    convert(tmp_path / "in", tmp_path / "out", to_layout="mar")
    read = made.mar_reads(tmp_path / "out")
    assert [path for path, *_ in read] == sorted(by_path)
    for path, one, other, target in read:
        assert np.array_equal(one, by_path[path][0])
        assert np.array_equal(other, by_path[path][1])
        assert target == int(path[1:9])
    convert(tmp_path / "out", tmp_path / "again")
    for spread in ("logvar", "std"):
        first = stored(tmp_path / "in", "moments", spread=spread)
        assert np.array_equal(stored(tmp_path / "again", "moments", spread=spread), first)
    assert np.array_equal(
        stored(tmp_path / "in", "moments", flip=True, spread="logvar")[0], by_path[sorted(by_path)[0]][1]
    )
    assert latentq.LatentDataset(tmp_path / "in", columns=["label_text"])[1]["label_text"] == "n00000000"


def test_info_tells_what_the_halves_of_moments_are(tmp_path, capsys):
    made.mar_writes(tmp_path / "mar", mar_names(), floats(0, 8, 4, 4), floats(1, 8, 4, 4))
    made.edm2_writes(tmp_path / "repa", np.abs(floats(0, 8, 4, 4)), None)
    for layout, spread in (("mar", "log-variances"), ("repa", "standard deviations")):
        convert(tmp_path / layout, tmp_path / f"{layout}-in", from_layout=layout)
        capsys.readouterr()
        assert main(["info", str(tmp_path / f"{layout}-in")]) == 0
        assert f"moments: 8 x 4 x 4, float32; means, then {spread}\n" in capsys.readouterr().out


def test_log_variances_become_standard_deviations(tmp_path):
    made.mar_writes(tmp_path / "mar", mar_names(), floats(0, 8, 4, 4), floats(1, 8, 4, 4))
    convert(tmp_path / "mar", tmp_path / "in", autoencoder="sd")
    convert(tmp_path / "in", tmp_path / "out", to_layout="repa")
    moments = stored(tmp_path / "in", "moments", spread="logvar")
    read, _ = made.repa_reads(tmp_path / "out")
    assert np.array_equal(np.array(read)[:, :4], moments[:, :4])
    np.testing.assert_allclose(np.array(read)[:, 4:], np.exp(moments[:, 4:].astype(float) / 2), rtol=1e-7)


def test_the_error_of_quantizing_is_told(lightningdit, tmp_path, capsys):
    import sys

    convert(lightningdit, tmp_path / "in", bits=8, progress=sys.stderr)
    assert "latent: 8 bits, signal-to-noise ratio" in capsys.readouterr().err
    card = latentq.Card.load(tmp_path / "in")
    step = max(high - low for q in [card.latents["latent"].quantizer] for low, high in zip(q.low, q.high, strict=True))
    error = np.abs(stored(tmp_path / "in", "latent") - floats(0, 32, 4, 4))
    assert np.quantile(error, 0.99) <= step / 255


@pytest.mark.parametrize(
    ("options", "size", "told"),
    [
        ({"codec": "trellis", "bits": 4}, 256, "4 bits by a trellis"),
        ({"codec": "transform"}, 256, "256 bytes by a transform"),
        ({"bytes": 200}, 200, "200 bytes by a transform"),
    ],
)
def test_a_codec_encodes_on_the_way_in(lightningdit, tmp_path, capsys, options, size, told):
    import sys

    convert(lightningdit, tmp_path / "in", **options, progress=sys.stderr)
    assert f"latent: {told}, signal-to-noise ratio" in capsys.readouterr().err
    facts = latentq.Card.load(tmp_path / "in").latents["latent"]
    dataset = latentq.LatentDataset(tmp_path / "in")
    rows = np.stack(latentq.mds.Reader(tmp_path / "in").gather(range(len(dataset)), "latent"))
    assert rows.shape == (len(dataset), size)
    read = dataset.batch(range(len(dataset)))["latent"].numpy()
    np.testing.assert_array_equal(read, facts.quantizer.dequantize_packed(rows, read.shape))
    exact = floats(0, 32, 4, 4)
    assert np.square(read - exact).mean() < 0.05 * np.square(exact).mean()
    np.testing.assert_allclose(facts.statistics.mean, read.mean((0, 2, 3), dtype=np.float64), atol=1e-9)
    assert latentq.verify(tmp_path / "in") == []
    convert(tmp_path / "in", tmp_path / "out", to_layout="lightningdit")
    convert(tmp_path / "out", tmp_path / "again")
    assert np.array_equal(stored(tmp_path / "again", "latent"), read)


def test_moments_take_a_trellis_and_no_transform(tmp_path):
    made.edm2_writes(tmp_path / "src", floats(0, 8, 4, 4), labels().tolist())
    with pytest.raises(latentq.RecipeError, match="transform is for latents; store moments by a trellis"):
        convert(tmp_path / "src", tmp_path / "in", from_layout="repa", bytes=100)
    convert(tmp_path / "src", tmp_path / "in", from_layout="repa", codec="trellis", bits=5)
    assert latentq.Card.load(tmp_path / "in").columns["moments"] == f"ndarray:uint8:{8 * 16 * 5 // 8}"
    assert latentq.verify(tmp_path / "in") == []


def test_a_latent_that_the_codec_cannot_encode_is_named(tmp_path, monkeypatch):
    from dataclasses import replace

    from latentq.converting.incoming import Incoming

    planned = Incoming.planned_recipe
    monkeypatch.setattr(Incoming, "planned_recipe", lambda *given: replace(planned(*given), calibration=5))
    latents = floats(0, 32, 4, 4)
    latents[7] *= 1e6  # none of those of the calibration
    made.lightningdit_writes(tmp_path / "src", latents, -latents, labels(), shard=10)
    with pytest.raises(latentq.LatentqError, match=r"sample .*7.*: its latent cannot be encoded by the transform"):
        convert(tmp_path / "src", tmp_path / "in", bytes=200)
    assert not (tmp_path / "in").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"codec": "trellis", "bytes": 200}, "bytes does not apply"),
        ({"bits": 4, "bytes": 200}, "exclude each other"),
        ({"codec": "jpeg"}, "codec must be one of affine, trellis, transform"),
        ({"bytes": 5000}, "5000 bytes are more than a latent takes"),
        ({"bytes": 3}, "3 bytes cannot hold a latent"),
    ],
)
def test_options_of_a_codec_that_do_not_apply_are_refused(lightningdit, tmp_path, options, message):
    with pytest.raises(latentq.RecipeError, match=message):
        convert(lightningdit, tmp_path / "in", **options)
    assert not (tmp_path / "in").exists()


def test_a_dataset_without_what_a_layout_needs_is_refused(lightningdit, tmp_path):
    convert(lightningdit, tmp_path / "in")
    stores = r"\(latentq encode --store moments stores moments\)$"
    with pytest.raises(latentq.MismatchError, match=f"no moments, which the layout of mar needs; it holds .*{stores}"):
        convert(tmp_path / "in", tmp_path / "out", to_layout="mar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_an_autoencoder_of_other_channels_is_told_and_has_no_normalization(tmp_path, capsys):
    import sys

    made.fast_dit_writes(tmp_path / "fast-dit", floats(0, 16, 4, 4), labels())
    made.simpletuner_writes(
        tmp_path / "simpletuner", [f"{index}.pt" for index in range(3)], torch.zeros(3, 8, 4, 4), compress=False
    )
    # fast-DiT's factor is in its code; SimpleTuner takes that of the autoencoder.
    for layout, formula in (("fast-dit", "z * 0.18215"), ("simpletuner", "z")):
        convert(tmp_path / layout, tmp_path / f"{layout}-in", from_layout=layout, progress=sys.stderr)
        assert (
            f"no usual autoencoder of {layout} has {16 if layout == 'fast-dit' else 8} channels"
            in capsys.readouterr().err
        )
        card = latentq.Card.load(tmp_path / f"{layout}-in")
        assert (card.autoencoder.name, card.autoencoder.normalization.formula) == ("unknown", formula)
    convert(tmp_path / "simpletuner", tmp_path / "named", from_layout="simpletuner", autoencoder="me/vae8")
    named = latentq.Card.load(tmp_path / "named").autoencoder
    assert (named.name, named.normalization.formula) == ("me/vae8", "z")
    assert main(["decode", str(tmp_path / "fast-dit-in"), "-o", str(tmp_path / "a.png")]) == 1
    expected = "latentq: nothing tells the autoencoder of these latents: name it with --autoencoder\n"
    assert capsys.readouterr().err == expected
    assert main(["convert", str(tmp_path / "fast-dit"), str(tmp_path / "other"), "--autoencoder", "sdxl"]) == 2
    expected = "latentq: --autoencoder must have 16 channels, as the latents do: sdxl has 4\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "other").exists()


def test_options_of_the_other_direction_are_refused(lightningdit, tmp_path):
    convert(lightningdit, tmp_path / "in")
    with pytest.raises(ValueError, match="bits must be left out: it is for the conversion of another tool's latents"):
        convert(tmp_path / "in", tmp_path / "out", to_layout="lightningdit", bits=8)
    with pytest.raises(latentq.LatentqError, match="convert it to one first, and that to mar"):
        convert(lightningdit, tmp_path / "out", to_layout="mar")
    with pytest.raises(ValueError, match="there is no layout 'nonsense'"):
        convert(tmp_path / "in", tmp_path / "out", to_layout="nonsense")


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("at", [1, 4, 9])
def test_a_conversion_that_was_killed_gives_the_same_bytes(at, lightningdit, tmp_path, monkeypatch):
    """A kill is an exception that runs no cleanup: the folder is copied as it is at some write, and continued there."""
    from latentq.converting import to_dataset
    from latentq.format.recipe import Recipe

    def small_units(self, sizes, bits):
        from dataclasses import replace

        return replace(original(self, sizes, bits), unit_size=4)

    original = to_dataset.Incoming.planned_recipe
    monkeypatch.setattr(to_dataset.Incoming, "planned_recipe", small_units)
    monkeypatch.setattr(to_dataset, "UNIT_SIZE", 4)
    monkeypatch.setattr(to_dataset, "_WORKERS", 1)  # so that no other unit changes while the folder is copied
    convert(lightningdit, tmp_path / "whole")
    calls = 0
    publish = to_dataset.publish_unit

    def copied(path, *arguments, **options):
        nonlocal calls
        publish(path, *arguments, **options)
        calls += 1
        if calls == min(at, 7):
            shutil.copytree(tmp_path / ".out.converting", tmp_path / "copy")

    monkeypatch.setattr(to_dataset, "publish_unit", copied)
    convert(lightningdit, tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "copy").rename(tmp_path / ".out.converting")
    before = (tmp_path / ".out.converting/result/00000/index.json").stat().st_mtime_ns
    convert(lightningdit, tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert (tmp_path / "out/00000/index.json").stat().st_mtime_ns == before
    assert Recipe.from_dict(latentq.Card.load(tmp_path / "out").recipe.to_dict()).unit_size == 4


@pytest.mark.parametrize("side", [32, 16])  # the folders' names have 256 for images of any size
def test_fast_dit_is_equal_to_the_bit(side, tmp_path):
    latents = floats(0, 4, side, side)
    made.fast_dit_writes(tmp_path / "features", latents, labels())
    assert convert(tmp_path / "features", tmp_path / "in") == COUNT
    assert np.array_equal(stored(tmp_path / "in", "latent"), latents)
    raw = latentq.LatentDataset(tmp_path / "in", columns=["latent"])[2]["latent"]
    torch.testing.assert_close(raw * 0.18215, torch.from_numpy(latents[2]))
    convert(tmp_path / "in", tmp_path / "out", to_layout="fast-dit")
    names, features, classes = made.fast_dit_reads(tmp_path / "out")
    for name, feature, label in zip(names, features, classes, strict=True):
        index = int(name.removesuffix(".npy"))
        assert np.array_equal(feature, latents[index : index + 1])
        assert (label.dtype, label.tolist()) == (np.int64, [labels()[index]])
    assert files(tmp_path / "out") == files(tmp_path / "features")
    convert(tmp_path / "out", tmp_path / "again")
    assert np.array_equal(stored(tmp_path / "again", "latent"), latents)


@pytest.mark.parametrize(("channels", "side", "model"), [(32, 16, "REPA-E/e2e-invae"), (4, 8, "REPA-E/e2e-sdvae")])
def test_repa_e_is_equal_to_the_bit(channels, side, model, tmp_path):
    moments = np.concatenate([floats(0, channels, 4, 4), np.abs(floats(1, channels, 4, 4)) * 1e-4], axis=1)
    made.repa_e_writes(tmp_path / "data", "repae-invae-400k", moments, labels().tolist())
    for source, name in ((tmp_path / "data", "in"), (tmp_path / "data" / "repae-invae-400k.h5", "in2")):
        assert convert(source, tmp_path / name) == COUNT
        assert np.array_equal(stored(tmp_path / name, "moments"), moments)
    card = latentq.Card.load(tmp_path / "in")
    assert (card.autoencoder.name, card.autoencoder.normalization.formula) == (model, "z")
    assert card.recipe.columns["moments"].pixels == (4 * side, 4 * side)
    convert(tmp_path / "in", tmp_path / "out", to_layout="repa-e")
    read, classes = made.repa_e_reads(tmp_path / "out", "latents")
    assert np.array_equal(read, moments)
    assert np.array_equal(classes, labels())
    convert(tmp_path / "out", tmp_path / "again")
    assert np.array_equal(stored(tmp_path / "again", "moments"), moments)
    assert np.array_equal(labels_of(tmp_path / "again"), labels())


def test_an_outgoing_conversion_that_was_killed_gives_the_same_bytes(tmp_path, monkeypatch):
    """The folder of the work is copied at a record of what is done, spoiled after it, and continued."""
    from latentq.converting import fast_dit, outgoing
    from latentq.converting.work import Work

    made.fast_dit_writes(tmp_path / "features", floats(0, 4, 32, 32), labels())
    convert(tmp_path / "features", tmp_path / "in")
    monkeypatch.setattr(fast_dit, "_STEP", 5)
    monkeypatch.setattr(outgoing, "_MAX_BATCH", 3)
    record = Work.record

    def copied(self, samples):
        record(self, samples)
        if samples == 12:
            shutil.copytree(self.folder, tmp_path / "copy")

    monkeypatch.setattr(Work, "record", copied)
    convert(tmp_path / "in", tmp_path / "out", to_layout="fast-dit")
    (tmp_path / "copy").rename(tmp_path / ".out2.converting")
    (tmp_path / ".out2.converting/result/imagenet256_features/12.npy").write_bytes(b"half")
    before = (tmp_path / ".out2.converting/result/imagenet256_features/11.npy").stat().st_mtime_ns
    convert(tmp_path / "in", tmp_path / "out2", to_layout="fast-dit")
    assert files(tmp_path / "out2") == files(tmp_path / "out") == files(tmp_path / "features")
    assert (tmp_path / "out2/imagenet256_features/11.npy").stat().st_mtime_ns == before
    assert not list(tmp_path.glob(".*"))


def test_another_unfinished_conversion_is_told(lightningdit, tmp_path):
    made.fast_dit_writes(tmp_path / "features", floats(0, 4, 32, 32), labels())
    work = tmp_path / ".in.converting"
    work.mkdir()
    (work / "job.json").write_text('{"layout": "lightningdit"}')
    (work / "done.json").write_text('{"samples": 3}')
    with pytest.raises(latentq.MismatchError, match=r"holds an unfinished conversion to .*: remove it, or choose"):
        convert(tmp_path / "features", tmp_path / "in")
    job = {"source": str(tmp_path / "features"), "layout": "fast-dit", "autoencoder": None, "codebook": None}
    (work / "job.json").write_text(json.dumps(job))
    with pytest.raises(latentq.MismatchError, match=r"with other arguments \(bits: not given there, 8 here\): remove"):
        convert(tmp_path / "features", tmp_path / "in", bits=8)


def test_encoding_stores_the_spread_that_a_recipe_names(pictures, tiny_vae, tmp_path):
    moments = {"from": "moments", "size": 32, "quantizer": {"kind": "float32"}}
    columns = {"logvar": moments, "std": moments | {"spread": "std"}}
    recipe = latentq.Recipe.from_dict({"name": "both", "columns": columns})
    latentq.encode(pictures, tmp_path / "out", recipe=recipe, autoencoder=tiny_vae)
    assert latentq.Card.load(tmp_path / "out").recipe.columns["std"].spread == "std"
    outgoing = Outgoing(tmp_path / "out", "test")
    (batch,) = outgoing.open(["logvar", "std"], spread="std").batches()
    mean, std = np.split(batch.values["std"], 2, axis=1)
    assert np.array_equal(batch.values["logvar"][:, : mean.shape[1]], mean)
    np.testing.assert_allclose(batch.values["logvar"][:, mean.shape[1] :], std, rtol=1e-6)
    drawn = []
    for name in columns:
        torch.manual_seed(0)
        drawn.append(latentq.LatentDataset(tmp_path / "out", columns=[name]).batch(range(len(mean)))[name])
    torch.testing.assert_close(*drawn)
