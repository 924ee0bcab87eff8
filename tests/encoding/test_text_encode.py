"""Captions in the pipeline: each is embedded once, and stopped runs write the same bytes."""

import dataclasses
import io
import json
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import latentq
from conftest import contents
from latentq import Card, LatentDataset, LatentMixture, LatentqError, MismatchError, Quantizer, Recipe, RecipeError, mds
from latentq.cli.main import main
from latentq.collect import COLLECTIONS
from latentq.encoding import captions as caption_encoding
from latentq.encoding.stages import Profile
from latentq.format.options import Column
from latentq.models.text import Embeddings, load_text_encoder
from latentq.run.sample_list import SampleList
from latentq.sharding.pipeline import shards
from latentq.sources import Captions
from support.archive_making import make_tar, make_zip, pictures_of, with_captions
from support.text_making import save_clip

SMALL = {"autoencoder": "dct-f8c16", "size": 32}
CAPTIONS = [f"a picture of {what}" for what in ("a cat", "a dog", "a cat", "a tree", "two bees", "a cat", "an ant")]


@pytest.fixture(scope="module")
def tar(tmp_path_factory):
    """Makes a WebDataset tar of seven images, three of which share a caption."""
    folder = tmp_path_factory.mktemp("captioned")
    pictures = pictures_of(folder / "pictures", len(CAPTIONS), (40, 36))
    members = []
    for (name, data), caption in zip(pictures.items(), CAPTIONS, strict=True):
        members += [(name, data), (name.replace(".jpg", ".txt"), caption.encode())]
    return make_tar(folder / "0.tar", members)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Makes a parquet file of four images with one to three captions each."""
    folder = tmp_path_factory.mktemp("several")
    pictures = pictures_of(folder / "pictures", 4, (40, 36))
    captions = [[f"picture {i}, {j}" for j in range(1 + i % 3)] for i in range(4)]
    images = [{"bytes": data, "path": name} for name, data in pictures.items()]
    pq.write_table(pa.table({"image": images, "reference_strs": captions}), folder / "0.parquet")
    return folder / "0.parquet", captions


class Blocks:
    """A user's own autoencoder: the mean of blocks of pixels."""

    name = family = "blocks"
    pixel_range = (0.0, 1.0)

    def latent_shape(self, size):
        return (3, size // 8, size // 8)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=8)


class Counting:
    """A text encoder that records the captions it is given."""

    name, length, width, pooled_width, masked = "counting", 5, 8, 3, True

    def __init__(self, spoil=None, overflow=False):
        self.asked = []
        self.spoil, self.overflow = spoil, overflow

    def encode(self, captions):
        self.asked.append(list(captions))
        numbers = torch.tensor([[float(sum(map(ord, text))) + len(text)] for text in captions])
        states = torch.sin(numbers[:, :, None] * torch.arange(1, 41).reshape(5, 8) * 0.01)
        for row, text in enumerate(captions):
            if text == self.spoil and (not self.overflow or torch.is_autocast_enabled("cpu")):
                states[row, 2, 3] = torch.nan
        mask = (torch.arange(5)[None] < numbers % 5 + 1).to(torch.uint8)
        return Embeddings(states, mask, states[:, 0, :3])


def _stored(captions, dtype=np.float16):
    return Counting().encode(captions).embedding.numpy().astype(dtype)[:, None]


@pytest.mark.parametrize("family", ["tiny_open_clip", "tiny_clip", "tiny_t5"])
def test_stored_embeddings_equal_the_text_encoders_output(request, tar, tmp_path, family):
    folder = request.getfixturevalue(family)
    name = f"openclip:{folder}" if family == "tiny_open_clip" else str(folder)
    card = latentq.encode(tar, tmp_path / "out", **SMALL, text_encoder=name, pooled=family != "tiny_t5" or None)
    encoder = load_text_encoder(name)
    embeddings = encoder.encode(CAPTIONS)
    dataset = LatentDataset(tmp_path / "out")
    batch = dataset.batch(range(len(CAPTIONS)))
    assert batch["caption"] == CAPTIONS
    assert batch["caption_embedding"].shape == (7, 1, encoder.length, 32)
    torch.testing.assert_close(
        batch["caption_embedding"][:, 0], embeddings.embedding.half().float(), rtol=2e-3, atol=2e-6
    )
    assert ("attention_mask" in batch) == encoder.masked
    if encoder.masked:
        assert batch["attention_mask"].dtype == torch.uint8
        assert torch.equal(batch["attention_mask"][:, 0], embeddings.mask)
    if encoder.pooled_width:
        torch.testing.assert_close(
            batch["pooled_embedding"][:, 0], embeddings.pooled.half().float(), rtol=2e-3, atol=2e-6
        )
    assert card.text.name.removeprefix("openclip:") == folder.name
    assert card.text.weights == latentq.models.weights.weight_hash(encoder)
    assert card.recipe.text.model == card.text.name
    assert str(folder.parent) not in (tmp_path / "out" / "latents.toml").read_text()
    assert latentq.verify(tmp_path / "out") == []
    empty = encoder.encode([""])
    assert torch.allclose(dataset.empty_caption["caption_embedding"][0], empty.embedding.half().float(), 2e-3, 2e-6)


def test_equal_captions_are_embedded_once_in_batches_of_one_size(tar, tmp_path):
    encoder = Counting()
    latentq.encode(tar, tmp_path / "out", **SMALL, text_encoder=encoder, batch_size=3)
    assert encoder.asked[0] == [""]  # for empty_caption.npz
    assert [len(asked) for asked in encoder.asked[1:]] == [3, 3]
    texts = [text for asked in encoder.asked[1:] for text in asked]
    assert texts == [*dict.fromkeys(CAPTIONS), ""]
    stored = LatentDataset(tmp_path / "out").batch(range(7))["caption_embedding"].numpy()
    np.testing.assert_array_equal(stored, _stored(CAPTIONS).astype(np.float32))


def test_cache_of_embeddings_is_bounded(tar, tmp_path, monkeypatch):
    monkeypatch.setattr(caption_encoding, "CACHE_BYTES", 0)
    captions = [f"caption {i % 50}" for i in range(200)]
    samples = [latentq.sources.Sample(str(i), 1, caption=caption) for i, caption in enumerate(captions)]
    network = Counting()
    columns = {"caption_embedding": Column("caption_embedding")}
    encoder = caption_encoding.CaptionEncoder(network, Recipe.load("default").text, "cpu", columns)
    quantizers = {"caption_embedding": latentq.Quantizer.floating("float16", channels=8)}
    unit = caption_encoding.UnitCaptions(encoder, quantizers, samples, 4)
    stored = []
    for start in range(0, 200, 4):
        queued = unit.start(samples[start : start + 4])
        stored += [unit.wait(sample_captions)[0].stored["caption_embedding"] for sample_captions in queued]
        assert len(unit._cache) <= 8
    np.testing.assert_array_equal(np.stack(stored), _stored(captions)[:, 0])
    assert {len(asked) for asked in network.asked} == {4}


@pytest.mark.parametrize("batch_size", [2, 64])
def test_continued_run_writes_the_same_bytes(tar, tiny_open_clip, tmp_path, batch_size):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["caption_embedding"] = {"from": "caption_embedding", "quantizer": {"kind": "affine"}}
    recipe["text"] = {"model": f"openclip:{tiny_open_clip}", "dtype": "bfloat16"}
    options = {"recipe": Recipe.from_dict(recipe), **SMALL, "unit_size": 3, "batch_size": batch_size}
    latentq.encode(tar, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    for name in ("index.json", "rejects.tsv"):
        (tmp_path / "again" / name).unlink()
    shutil.rmtree(tmp_path / "again" / "00001")
    latentq.encode(tar, tmp_path / "again", **options)
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    for rank in (1, 0):
        latentq.encode(tar, tmp_path / "parts", **options, rank=rank, world_size=2)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("kind", "bits"), [("affine", 8), ("affine", 6), ("codebook", 4), ("trellis", 4), ("bfloat16", 16)]
)
def test_embeddings_are_quantized_along_their_last_axis(tar, tmp_path, kind, bits):
    options = {} if kind == "bfloat16" else {"bits": bits}
    recipe = Recipe.load("default").to_dict()
    recipe["text"] = {"model": "counting"}
    for name in ("caption_embedding", "pooled_embedding"):
        recipe["columns"][name] = {"from": name, "quantizer": {"kind": kind, **options}}
    card = latentq.encode(tar, tmp_path / "out", recipe=Recipe.from_dict(recipe), **SMALL, text_encoder=Counting())
    quantizer = card.embeddings["caption_embedding"].quantizer
    assert (quantizer.kind, quantizer.channels, quantizer.bits) == (kind, 8, bits)
    embedding = Counting().encode(CAPTIONS).embedding
    expected = quantizer.dequantize(quantizer.quantize(embedding.reshape(-1, 8))).reshape(7, 1, 5, 8)
    dataset = LatentDataset(tmp_path / "out")
    batch = dataset.batch(range(7))
    assert torch.equal(batch["caption_embedding"], expected)
    assert batch["pooled_embedding"].shape == (7, 1, 3)
    empty = Counting().encode([""]).embedding
    expected = quantizer.dequantize(quantizer.quantize(empty.reshape(-1, 8))).reshape(1, 5, 8)
    assert torch.equal(dataset.empty_caption["caption_embedding"], expected)
    if kind != "bfloat16":
        low, high = (torch.tensor(side) for side in (quantizer.low, quantizer.high))
        assert card.embeddings["caption_embedding"].clipped == int(((embedding < low) | (embedding > high)).sum())
        codes = LatentDataset(tmp_path / "out", columns=["caption_embedding"], dtype=torch.uint8).batch([1])
        assert torch.equal(codes["caption_embedding"].reshape(5, 8), quantizer.quantize(embedding[1]))
    assert latentq.verify(tmp_path / "out") == []
    assert card == Card.load(tmp_path / "out")


def test_a_trellis_of_embeddings_runs_while_the_networks_compute_the_next_batches(tar, tmp_path, monkeypatch):
    calls, seen, searched = threading.Condition(), [], []

    class Counted(Blocks):
        def encode(self, pixels):
            with calls:
                seen.append(len(pixels))
                calls.notify_all()
            return super().encode(pixels)

    quantize = Quantizer.quantize_counted

    def waiting(self, *arguments, **options):
        # The empty caption is quantized before the first batch.
        if self.kind == "trellis" and threading.current_thread() is not threading.main_thread():
            searched.append(self.channels)
            with calls:  # four batches are calibrated on, so the first is searched here while the third is computed
                assert calls.wait_for(lambda: len(seen) >= 4 + 3, timeout=30)
        return quantize(self, *arguments, **options)

    monkeypatch.setattr(Quantizer, "quantize_counted", waiting)
    recipe = Recipe.load("default").to_dict()
    recipe["text"] = {"model": "counting"}
    recipe["columns"]["caption_embedding"] = {
        "from": "caption_embedding", "quantizer": {"kind": "trellis", "bits": 4}
    }  # fmt: skip
    profile = Profile()
    latentq.encode(
        tar, tmp_path / "out", recipe=Recipe.from_dict(recipe), autoencoder=Counted(), text_encoder=Counting(), size=32,
        batch_size=2, profile=profile,
    )  # fmt: skip
    assert len(seen) == 8
    assert searched == [8] * 4
    assert profile.seconds["codec", "worked"] > 0


def test_several_captions_of_an_image_are_stored(several, tmp_path):
    source, captions = several
    latentq.encode(source, tmp_path / "out", **SMALL, text_encoder=Counting(), text_captions=3, pooled=True)
    batch = LatentDataset(tmp_path / "out").batch(range(4))
    assert batch["caption"] == [sample_captions[0] for sample_captions in captions]
    filled = [[sample_captions[i % len(sample_captions)] for i in range(3)] for sample_captions in captions]
    assert batch["captions"] == filled
    for row, sample_captions in enumerate(filled):
        np.testing.assert_array_equal(
            batch["caption_embedding"][row], _stored(sample_captions)[:, 0].astype(np.float32)
        )
    assert batch["attention_mask"].shape == (4, 3, 5)
    assert batch["pooled_embedding"].shape == (4, 3, 3)
    listed = SampleList(tmp_path / "out" / "list")
    assert [list(sample.captions or [sample.caption]) for sample in listed] == captions


def test_embeddings_can_be_resident(several, tmp_path):
    latentq.encode(several[0], tmp_path / "out", **SMALL, text_encoder=Counting(), pooled=True)
    dataset = LatentDataset(tmp_path / "out", dtype=torch.float16)
    resident = dataset.to_device("cpu")
    for batch in resident.loader(2, shuffle=True, caption_dropout=1.0):
        assert not batch["drop_caption_mask"].any()
        assert batch["caption_embedding"].dtype == torch.float16
    for name in ("caption_embedding", "attention_mask", "pooled_embedding"):
        assert torch.equal(resident.batch([3, 0])[name], dataset.batch([3, 0])[name])


def test_several_captions_come_from_several_rows(tmp_path):
    pictures = pictures_of(tmp_path / "pictures", 2, (40, 36))
    images = [{"id": i, "file_name": name} for i, name in enumerate(pictures)]
    annotations = [{"image_id": i % 2, "caption": f"caption {i}"} for i in range(5)]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    source = latentq.sources.open_source(tmp_path / "pictures", captions=str(tmp_path / "captions.json"))
    listing = source.listing()
    assert [sample.captions for sample in listing.samples] == [
        ("caption 0", "caption 2", "caption 4"), ("caption 1", "caption 3")
    ]  # fmt: skip


def test_mixture_of_all_six_collections(tmp_path):
    """Each is encoded from archives of its layout, except sa1b, which comes from converted shards."""
    jpegs = pictures_of(tmp_path / "pictures", 3, (300, 280))
    names = list(jpegs)
    webp = {}
    for name, data in jpegs.items():
        file = io.BytesIO()
        Image.open(io.BytesIO(data)).save(file, "WEBP")
        webp[name.replace(".jpg", ".webp")] = file.getvalue()
    make_tar(tmp_path / "000.tgz", [(f"000/{name}", data) for name, data in jpegs.items()], "w:gz")
    rows = [json.dumps({"img_path": f"./000/{name}", "prompt": f"jdb {name}"}) for name in names]
    (tmp_path / "jdb.jsonl").write_text("\n".join(rows))
    make_tar(tmp_path / "cc12m.tar", with_captions(jpegs))
    make_zip(tmp_path / "part-1.zip", webp.items())
    scores = {"image_nsfw": [0.0, 0.5, 0.1], "prompt_nsfw": [0.0, 0.0, 0.1]}
    pq.write_table(pa.table({"image_name": list(webp), "prompt": list(webp), **scores}), tmp_path / "diffdb.parquet")
    shards(tmp_path / "cc12m.tar", tmp_path / "sa1b", collection="sa1b")
    images = [{"bytes": data, "path": name} for name, data in jpegs.items()]
    table = {"image": images, "reference_strs": [[f"{name}, {i}" for i in range(2)] for name in names]}
    pq.write_table(pa.table(table), tmp_path / "textcaps.parquet")
    make_zip(tmp_path / "val2014.zip", [(f"val2014/{name}", data) for name, data in jpegs.items()])
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i % 3, "caption": f"coco {i}"} for i in range(6)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    limits = COLLECTIONS["diffdb"].limits
    sources = {
        "jdb": ("000.tgz", Captions(tmp_path / "jdb.jsonl")),
        "cc12m": ("cc12m.tar", None),
        "diffdb": ("part-1.zip", Captions(tmp_path / "diffdb.parquet", limits=limits)),
        "sa1b": ("sa1b", None),
        "textcaps": ("textcaps.parquet", None),
        "coco": ("val2014.zip", Captions(tmp_path / "coco.json")),
    }
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": "float16"}
    encoder = Counting()
    for name, (source, captions) in sources.items():
        options = {"recipe": Recipe.from_dict(recipe), "size": 32, "min_size": 256, "captions": captions}
        card = latentq.encode(tmp_path / source, tmp_path / f"{name}-latents", **options, text_encoder=encoder)
        assert card.counts.samples + card.counts.rejects == card.source.samples == 3
        assert card.counts.rejects == (1 if name == "diffdb" else 0)
    columns = ["latent", "caption", "caption_embedding", "attention_mask"]
    mixture = LatentMixture([LatentDataset(tmp_path / f"{name}-latents", columns=columns) for name in sources])
    batches = list(mixture.loader(5, shuffle=True, caption_dropout=0.5))
    captions = [caption for batch in batches for caption in batch["caption"]]
    assert len(captions) == len(mixture) == 17
    assert {"jdb 000.jpg", "picture 000.jpg", "000.webp", "000.jpg, 0", "coco 0"} <= set(captions)
    embeddings = torch.cat([batch["caption_embedding"] for batch in batches]).numpy()
    np.testing.assert_array_equal(embeddings, _stored(captions).astype(np.float32))


def test_nonfinite_embedding_is_redone_in_float32_or_rejected(tar, tmp_path):
    card = latentq.encode(tar, tmp_path / "out", **SMALL, text_encoder=Counting(spoil=CAPTIONS[0]))
    assert (card.counts.samples, card.counts.rejects) == (4, 3)
    assert "encode\tits caption's embedding holds NaN or infinity" in (tmp_path / "out" / "rejects.tsv").read_text()
    kept = [text for text in CAPTIONS if text != CAPTIONS[0]]
    batch = LatentDataset(tmp_path / "out").batch(range(4))
    assert batch["caption"] == kept
    np.testing.assert_array_equal(batch["caption_embedding"], _stored(kept).astype(np.float32))
    overflowing = Counting(spoil=CAPTIONS[0], overflow=True)
    card = latentq.encode(tar, tmp_path / "redone", **SMALL, text_encoder=overflowing, text_dtype="bfloat16")
    assert (card.counts.samples, card.counts.rejects, card.counts.redone) == (7, 0, 3)
    stored = LatentDataset(tmp_path / "redone").batch(range(7))["caption_embedding"]
    np.testing.assert_array_equal(stored, _stored(CAPTIONS).astype(np.float32))


def test_image_file_is_stored_on_request(tar, tmp_path):
    latentq.encode(tar, tmp_path / "out", **SMALL, image=True)
    source, reader = latentq.sources.open_source(tar), mds.Reader(tmp_path / "out")
    for number, sample in enumerate(source.listing().samples):
        assert reader.stored(number, "jpg") == source.data(sample)
    assert LatentDataset(tmp_path / "out")[1]["image"].size == (41, 37)


def test_stored_image_that_is_not_a_jpeg_becomes_one(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL, image=True)
    reader = mds.Reader(tmp_path / "out")
    for number, key in enumerate(reader.gather(range(12), "key")):
        stored, original = reader.stored(number, "jpg"), Image.open(pictures / key)
        assert Image.open(io.BytesIO(stored)).format == "JPEG"
        assert Image.open(io.BytesIO(stored)).size == original.size
        if original.format == "JPEG":
            assert stored == (pictures / key).read_bytes()


def test_impossible_text_options_are_one_line_errors(pictures, tar, tiny_open_clip, tmp_path):
    for source, options, error, text in (
        (pictures, {"text_encoder": Counting()}, RecipeError, "needs captions: the source has none"),
        (
            tar,
            {"text_encoder": f"openclip:{tiny_open_clip}", "text_length": 99},
            ValueError,
            "takes captions of 1 to 77",
        ),
        (tar, {"text_encoder": "no-such"}, LatentqError, "no text encoder 'no-such'"),
        (tar, {"pooled": True}, RecipeError, "needs a text encoder"),
        (tar, {"text_encoder": Counting(), "text_captions": 0}, RecipeError, "at least 1"),
    ):
        with pytest.raises(error, match=text):
            latentq.encode(source, tmp_path / "out", **SMALL, **options)
        assert not (tmp_path / "out").exists()
    unmasked = Recipe.load("default").to_dict()
    unmasked["text"] = {"model": "x"}
    unmasked["columns"]["attention_mask"] = {"from": "attention_mask"}
    with pytest.raises(RecipeError, match=r"attention_mask, which openclip:.* does not give"):
        latentq.encode(
            tar, tmp_path / "out", recipe=Recipe.from_dict(unmasked), text_encoder=f"openclip:{tiny_open_clip}", size=32
        )


def test_other_text_weights_are_refused_but_a_copy_is_not(tar, tiny_clip, tmp_path):
    out = tmp_path / "out"
    latentq.encode(tar, out, **SMALL, text_encoder=tiny_clip)
    before = contents(out)
    copy, other = tmp_path / "copy", tmp_path / "other" / "tiny-clip"
    shutil.copytree(tiny_clip, copy)
    save_clip(other, seed=5)
    (out / "index.json").unlink()
    latentq.encode(tar, out, **SMALL, text_encoder=copy)
    assert contents(out) == before
    with pytest.raises(MismatchError, match=r"made with text\.weights = 'sha256:.*this run has 'sha256:"):
        latentq.encode(tar, out, **SMALL, text_encoder=other)
    latentq.encode(tar, tmp_path / "like", like=out, text_encoder=copy)
    with pytest.raises(MismatchError, match="the dataset was made by"):
        latentq.encode(tar, tmp_path / "unlike", like=out, text_encoder=other)
    latentq.encode(tar, tmp_path / "second", **SMALL, text_encoder=other)
    columns = ["caption_embedding", "attention_mask"]
    mixture = LatentMixture([LatentDataset(path, columns=columns) for path in (out, tmp_path / "like")])
    assert len(mixture) == 14
    assert torch.equal(mixture[3]["caption_embedding"], mixture[10]["caption_embedding"])
    assert mixture.empty_caption["caption_embedding"].shape == (1, 16, 32)
    with pytest.raises(MismatchError, match=r"has text encoder tiny-clip \(weights .*, and .* has tiny-clip"):
        LatentMixture([LatentDataset(path, columns=columns) for path in (out, tmp_path / "second")])


def test_command_line_stores_captions_and_reports_them(tar, tiny_clip, tmp_path, capsys):
    arguments = ["encode", tar, tmp_path / "out", "--size", "32", "--text-encoder", tiny_clip, "--pooled", "--image"]
    assert main([*map(str, arguments), "--text-length", "12", "--profile"]) == 0
    assert "captions " in capsys.readouterr().err
    assert main(["info", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "text encoder tiny-clip (CLIPTextModel, float32, 12 tokens)" in " ".join(out.split())
    assert "caption_embedding: 1 x 12 x 32, float16" in out
    assert main(["info", str(tmp_path / "out"), "--storage"]) == 0
    assert "embeddings, as stored" in capsys.readouterr().out
    assert (
        main(["decode", str(tmp_path / "out"), "--index", "1", "--source", str(tar), "-o", str(tmp_path / "1.png")])
        == 0
    )
    assert main(["measure", str(tmp_path / "out"), "--bits", "8"]) == 0
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_verify_finds_a_broken_embedding_of_the_empty_caption(tar, tmp_path):
    out = tmp_path / "out"
    card = latentq.encode(tar, out, **SMALL, text_encoder=Counting())
    file = out / "empty_caption.npz"
    data = file.read_bytes()
    at = data.index(_stored([""]).tobytes())
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    (finding,) = latentq.verify(out)
    assert "empty_caption.npz" in f"{finding.file} {finding.message}"
    with pytest.raises(latentq.FormatError, match=r"empty_caption\.npz"):
        _ = LatentDataset(out).empty_caption
    file.unlink()
    (finding,) = latentq.verify(out)
    assert (finding.file, finding.message) == ("empty_caption.npz", "missing")
    assert dataclasses.replace(card, text=None).text is None
