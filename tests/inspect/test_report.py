"""`latentq report`: a page that stands alone, with the numbers of the definitions, which no data can change."""

import base64
import hashlib
import io
import json
import os
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from conftest import paint
from latentq import Card, LatentDataset, Quantizer
from latentq.cli.main import main
from latentq.inspect.report.channels import BINS, Errors, estimated_errors, measure_channels, of_stored_channels
from latentq.inspect.report.contents import count_captions, count_classes, count_rejects, count_tokens
from latentq.inspect.report.data_urls import data_urls
from latentq.system.progress import Progress
from support import foreign_making
from support.making import make_dataset

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp; {{ 7*7 }} \x1b[31m\u202e'
VOID = {"meta", "link", "img", "br", "hr", "input", "source"}


class Page(HTMLParser):
    """A report, parsed: its elements with their attributes, its text, and the text of each section and script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.source = text
        self.elements, self.open, self.parts, self.scripts, self.cells = [], [], [], [], []
        self.sections = {}
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == [], "an element is not closed"
        self.text = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "h2":
            self.section = attributes["id"]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th") and self.cells:
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.parts.append(data)
            self.sections[self.section] = self.sections.get(self.section, "") + data
            if "tr" in self.open and self.cells and self.cells[-1]:
                self.cells[-1][-1] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def no_progress():
    return Progress(None, "", None)


def page_of(path, out, **options):
    latentq.report(path, out, **options)
    return Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Fourteen pictures in three class folders with captions, two of which cannot be read."""
    folder = tmp_path_factory.mktemp("report") / "photos"
    for index in range(12):
        path = folder / ["ant", "bee", "cat"][index % 3] / f"{index:02}.png"
        paint(path, index, (90 + index, 70 + 3 * index))
        path.with_suffix(".txt").write_text(" ".join(["word"] * (index + 1)) if index != 5 else EVIL)
    (folder / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\x00")
    (folder / "ant" / "<b>evil&.jpg").write_bytes(b"\xff\xd8\xff\x01")
    return folder


@pytest.fixture(scope="module")
def names(source):
    file = source.parent / "names.txt"
    file.write_text("ant the ant\nbee <script>alert(3)</script>\ncat the cat\n")
    return file


@pytest.fixture(scope="module")
def dataset(source, names):
    """Those pictures, encoded in 6 bits by the built-in transform at 64 pixels, with labels and captions."""
    out = source.parent / "out <i>"
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64, bits=6, captions="txt", class_names=names)
    return out


@pytest.fixture(scope="module")
def page(dataset, source):
    return page_of(dataset, source.parent / "report.html", source=source)


@pytest.fixture(scope="module")
def exact(dataset, source):
    """The raw latents of all samples before quantization, and their originals."""
    opened = LatentDataset(dataset)
    pixels = np.stack([latentq.image.load(source / opened[index]["key"], 64) for index in range(len(opened))])
    network = latentq.load_autoencoder("dct-f8c16")
    return network.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).double().numpy(), pixels


def test_the_page_loads_nothing_and_runs_only_its_own_script(page):
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")], tag
    css = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    assert "url(" not in css
    assert "@import" not in css
    ((script,)) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert not page.all("style")[1:]


def test_the_page_can_be_used_without_seeing_it(page):
    assert page.all("html")[0]["lang"] == "en"
    assert all(image.get("alt") for image in page.all("img"))
    drawings = page.all("svg")
    assert len(drawings) > 16
    assert all(drawing["role"] == "img" and drawing["aria-label"] for drawing in drawings)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.all("a")} <= set(ids)
    zooms = [button for button in page.all("button") if button.get("class") == "zoom"]
    assert len(zooms) == 12 + 4
    assert all(button["aria-label"].startswith("Enlarge sample") for button in zooms)


def test_errors_are_those_of_the_definition(page, dataset, exact):
    original, _ = exact
    stored = LatentDataset(dataset).batch(range(12))["latent"].double().numpy()
    error = stored - original
    overall = 10 * np.log10((original**2).sum() / (error**2).sum())
    assert f"SQNR over all channels {overall:.2f} dB, measured on 12 images, encoded again" in page.text
    sqnr = 10 * np.log10((original**2).sum((0, 2, 3)) / (error**2).sum((0, 2, 3)))
    span = original.max((0, 2, 3)) - original.min((0, 2, 3))
    psnr = 10 * np.log10(span**2 / (error**2).mean((0, 2, 3)))
    facts = Card.load(dataset).latents["latent"]
    rows = [row for row in page.cells if len(row) == 9 and row[0].isdigit()]
    assert [row[0] for row in rows] == [str(channel) for channel in range(16)]
    for channel, row in enumerate(rows):
        assert row[1:5] == [f"{getattr(facts.statistics, name)[channel]:.4g}" for name in ("mean", "std", "min", "max")]
        assert row[5] == f"{facts.quantizer.low[channel]:.4g} to {facts.quantizer.high[channel]:.4g}"
        assert row[6] == f"{facts.clipped[channel] / facts.statistics.count[channel]:.4%}"
        assert row[7] == f"{sqnr[channel]:.2f} dB"
        assert row[8] == f"{psnr[channel]:.2f} dB"
    each = 10 * np.log10((original**2).sum((1, 2, 3)) / (error**2).sum((1, 2, 3)))
    worst = re.findall(r"#(\d+)[^#]*?SQNR ([\d.]+) dB", page.sections["worst"])
    assert worst == [(str(index), f"{each[index]:.2f}") for index in np.argsort(each)[:4]]


def test_pictures_are_the_decoded_samples_and_their_psnr_is_right(page, dataset, exact):
    _, originals = exact
    pictures = {image["alt"]: image["src"] for image in page.all("img")}
    opened = LatentDataset(dataset)
    assert "Pictures are stored without loss." in page.text
    for index in (0, 7, 11):
        key = opened[index]["key"]
        decoded = np.asarray(opened.decode(index))
        for form, pixels in (("original", originals[index]), ("from 6-bit integers", decoded)):
            data = base64.b64decode(pictures[f"{key}, {form}"].removeprefix("data:image/webp;base64,"))
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        value = 10 * np.log10(255**2 / np.mean((decoded.astype(float) - originals[index]) ** 2))
        assert f"PSNR {value:.2f} dB" in page.sections["samples"]
    forms = {alt.rpartition(", ")[2] for alt in pictures}
    assert forms == {"original", "64 x 64 JPEG", "from float32", "from float16", "from 6-bit integers"}


def test_a_histogram_of_codes_has_a_bar_for_each_level(dataset):
    opened = LatentDataset(dataset)
    channels = measure_channels(opened, "latent", no_progress())
    codes = LatentDataset(dataset, dtype=torch.uint8).batch(range(12))["latent"].numpy()
    for channel in range(16):
        expected = np.bincount(codes[:, channel].ravel(), minlength=BINS)
        np.testing.assert_array_equal(channels.counts[channel].round(2), expected)
    values = opened.batch(range(12))["latent"].double().numpy()
    np.testing.assert_allclose(channels.mean, values.mean((0, 2, 3)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(channels.std, values.std((0, 2, 3)), rtol=1e-9)
    np.testing.assert_array_equal(channels.low, values.min((0, 2, 3)))
    np.testing.assert_array_equal(channels.high, values.max((0, 2, 3)))
    ends = ((codes == 0) | (codes == 63)).mean((1, 2, 3))
    assert channels.at_ends == pytest.approx(dict(enumerate(ends)))


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("float16", 8), ("float32", 8), ("bfloat16", 8), ("trellis", 4), ("trellis", 8), ("codebook", 4), ("codebook", 8)],
)
def test_the_distribution_of_any_kind_is_that_of_its_values(tmp_path, kind, bits):
    reference = make_dataset(tmp_path / "out", 30, kind=kind, bits=bits)
    channels = measure_channels(LatentDataset(tmp_path / "out"), "latent", no_progress())
    values = reference.values.swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose(channels.counts.sum(1), values.shape[1])
    np.testing.assert_allclose(channels.mean, values.mean(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(channels.std, values.std(1), rtol=1e-5)
    assert (channels.edges[:, 0] <= values.min(1) + 1e-6).all()
    assert (channels.edges[:, -1] >= values.max(1) - 1e-6).all()
    if kind.startswith("float"):
        for counts, edges, row in zip(channels.counts, channels.edges, values, strict=True):
            np.testing.assert_array_equal(counts, np.histogram(row, edges)[0])


@pytest.mark.parametrize("rounding", ["nearest", "truncate"])
@pytest.mark.parametrize("bits", [5, 8])
def test_the_estimated_error_is_near_the_measured_one(tmp_path, rounding, bits):
    from latentq.inspect.report.channels import _Sums

    values = np.random.default_rng(0).normal(size=(64, 4, 16, 16)).astype(np.float32) * 2
    quantizer = Quantizer.uniform(-14, 14, channels=4, bits=bits, rounding=rounding)
    sums = _Sums(quantizer)
    sums.add(np.arange(64), quantizer.pack(quantizer.quantize(values)), (4, 16, 16), 1)
    estimated = estimated_errors(sums.channels(64))
    assert estimated.overall_sqnr_db == pytest.approx(quantizer.measure(values).overall_sqnr_db, abs=0.1)
    np.testing.assert_allclose(estimated.sqnr_db, quantizer.measure(values).sqnr_db, atol=0.2)


def test_nothing_in_the_data_becomes_a_part_of_the_page(page):
    assert len(page.scripts) == 1
    assert not [tag for tag, _ in page.elements if tag in ("i", "b", "iframe", "object") and tag == "iframe"]
    assert all(image["src"].startswith("data:image/webp") for image in page.all("img"))
    shown = EVIL.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert shown in page.text  # in the sample's caption, as it is
    assert "<script>alert(3)</script>" in page.text
    assert "ant/<b>evil&.jpg" in page.sections["rejects"]
    assert "49" not in re.findall(r"\{\{.*?\}\}", page.text)
    assert "out <i>" in page.text
    assert not {"\x1b", "\u202e"} & set(page.source)


def test_classes_captions_and_rejects_are_counted(page, dataset):
    opened = LatentDataset(dataset)
    classes = count_classes(opened)
    assert classes.counts.tolist() == [4, 4, 4]
    assert sorted(classes.names) == ["0: the ant", "1: <script>alert(3)</script>", "2: the cat"]
    captions = count_captions(opened)
    stored = [opened[index]["caption"] for index in range(12)]
    assert sorted(captions.words.tolist()) == sorted(len(caption.split()) for caption in stored)
    groups = count_rejects(dataset)
    assert sum(group.count for group in groups) == 2
    assert {key for group in groups for key in group.keys} == {"ant/<b>evil&.jpg", "cat/broken.jpg"}
    assert "2 of 14 images (14.29%) were rejected" in page.text


def test_rejects_that_differ_in_numbers_only_are_one_reason(tmp_path):
    lines = [f"{index}.png\tsize\t{index} x 7 pixels, below 64" for index in range(500)]
    lines += ["a\\tb.png\tdecode\tno \\\\ image", "c\tdecode\tno \\\\ image"]
    (tmp_path / "rejects.tsv").write_text("".join(f"{line}\n" for line in lines))
    first, second = count_rejects(tmp_path)
    assert (first.stage, first.reason, first.count) == ("size", "0 x 7 pixels, below 64", 500)
    assert first.keys == ("0.png", "1.png", "2.png")
    assert (second.reason, second.count, second.keys) == ("no \\ image", 2, ("a\tb.png", "c"))


def test_the_size_table_is_that_of_info(page, dataset, source, capsys):
    assert main(["info", str(dataset), "--storage", "--source", str(source), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    from latentq.system.text import size_text

    for row in rows:
        total = "-" if row["bytes"] is None else size_text(row["bytes"])
        assert any(cells[:2] == [row["what"], total] for cells in page.cells), row


def test_formulas_and_code_are_those_of_the_card(page, dataset, tmp_path):
    normalization = Card.load(dataset).autoencoder.normalization
    assert f"scaled = {normalization.formula}" in page.text
    assert len(page.all("math")) == 2
    code = re.search(
        r"import latentq\n\n.*?\n    batch\[.*?\n?(?=In Python|On the|$)", page.sections["load"], re.DOTALL
    )
    text = code[0].partition("On the command line")[0].replace("batch_size=64", "batch_size=4")
    assert repr(str(dataset)) in text
    names = {}
    exec(text, names)
    assert names["batch"]["latent"].shape == (4, 16, 8, 8)
    assert "# (64, 16, 8, 8) float32" in text


def test_two_datasets_are_compared_sample_by_sample(dataset, source, tmp_path):
    other = tmp_path / "other"
    (tmp_path / "photos").mkdir()
    for path in sorted(source.rglob("*.png"))[3:]:
        (tmp_path / "photos" / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / "photos" / path.parent.name / path.name).symlink_to(path)
    latentq.encode(tmp_path / "photos", other, autoencoder="dct-f8c16", size=64, bits=3)
    page = page_of(dataset, tmp_path / "page.html", compare=other, samples=12)
    keys = [LatentDataset(other)[index]["key"] for index in range(9)]
    assert len(keys) == 9
    pictures = {image["alt"]: image["src"] for image in page.all("img")}
    for index, key in enumerate(keys):
        data = base64.b64decode(pictures[f"{key}, B from 3-bit integers"].removeprefix("data:image/webp;base64,"))
        expected = np.asarray(LatentDataset(other).decode(index))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), expected)
    assert sum(", A from 6-bit integers" in alt for alt in pictures) == 12
    tags = [attributes.get("class") for tag, attributes in page.elements if tag in ("span", "b")]
    assert "tag a" in tags
    assert "tag b" in tags
    assert page.text.count("estimated from the widths of steps") == 2
    assert "There is no" not in page.text


def test_a_compared_dataset_of_other_images_has_no_originals_and_says_so(dataset, source, tmp_path):
    for index in range(3):
        paint(tmp_path / "others" / f"other{index}.png", index)
    latentq.encode(tmp_path / "others", tmp_path / "other", autoencoder="dct-f8c16", size=64)
    page = page_of(dataset, tmp_path / "page.html", source=source, compare=tmp_path / "other", samples=3)
    assert "There are no originals: " in page.text
    assert "measured on 12 images" in page.text
    assert "estimated from the widths of steps" in page.text
    with pytest.raises((OSError, latentq.LatentqError), match=r"other0\.png"):
        latentq.report(tmp_path / "other", tmp_path / "x.html", source=source)


def test_buckets_and_several_shapes(source, tmp_path):
    latentq.encode(source, tmp_path / "out", autoencoder="dct-f8c16", buckets=[[64, 64], [64, 96], [72, 64]])
    page = page_of(tmp_path / "out", tmp_path / "page.html", source=source)
    buckets = LatentDataset(tmp_path / "out").buckets
    for bucket in buckets:
        share = f"{bucket.samples / 12:.1%}"
        expected = [
            f"{bucket.height} x {bucket.width}",
            f"{bucket.width / bucket.height:.3f}",
            f"{bucket.samples}",
            share,
        ]
        assert expected in page.cells
    sizes = {(image["width"], image["height"]) for image in page.all("img")}
    assert sizes == {(str(bucket.width), str(bucket.height)) for bucket in buckets if bucket.samples}
    assert "measured on 12 images" in page.text


def test_tokens_are_counted(source, tiny_vq, tmp_path):
    latentq.encode(source, tmp_path / "out", autoencoder=tiny_vq, size=32, store="tokens")
    opened = LatentDataset(tmp_path / "out")
    use = count_tokens(opened, "tokens", no_progress())
    tokens = opened.batch(range(12))["tokens"].numpy()
    found, counts = np.unique(tokens, return_counts=True)
    assert dict(zip(use.tokens.tolist(), use.counts.tolist(), strict=True)) == dict(
        zip(found.tolist(), counts.tolist(), strict=True)
    )
    share = counts / counts.sum()
    assert use.entropy == pytest.approx(-(share * np.log2(share)).sum())
    page = page_of(tmp_path / "out", tmp_path / "page.html", source=source, autoencoder=tiny_vq)
    assert f"{len(found)} of the codebook's tokens occur" in page.text
    forms = {image["alt"].rpartition(", ")[2] for image in page.all("img")}
    assert forms == {"original", "32 x 32 JPEG", "from tokens"}


def test_moments_name_their_channels(source, tiny_vae, tmp_path):
    latentq.encode(source, tmp_path / "out", autoencoder=tiny_vae, size=32, store="moments")
    page = page_of(tmp_path / "out", tmp_path / "page.html", source=source, autoencoder=tiny_vae, samples=3)
    rows = {row[0]: row for row in page.cells if row and row[0].startswith(("mean ", "log-variance "))}
    assert list(rows) == [f"{kind} {channel}" for kind in ("mean", "log-variance") for channel in range(4)]
    assert rows["mean 2"][7].endswith(" dB")
    assert rows["log-variance 2"][7] == "-"  # they are not drawn again
    assert 'batch["latent"] # (64, 4, 4, 4) float32' in page.text


def test_standard_deviations_are_not_called_log_variances(tmp_path):
    foreign_making.edm2_writes(tmp_path / "moments", np.ones((3, 4, 4, 4), np.float32), None)
    latentq.convert(tmp_path / "moments", tmp_path / "out", from_layout="repa")
    page = page_of(tmp_path / "out", tmp_path / "page.html")
    assert [row[0] for row in page.cells if row and row[0].startswith("standard")] == [
        f"standard deviation {channel}" for channel in range(2)
    ]
    assert "log-variance" not in page.source


def test_floats_are_not_said_to_be_smaller_than_floats_and_numbers_of_classes_are_labels(tmp_path):
    latents = np.random.default_rng(0).standard_normal((4, 4, 8, 8)).astype(np.float32)
    foreign_making.fast_dit_writes(tmp_path / "features", latents, np.array([436, 7, 7, 7]))
    latentq.convert(tmp_path / "features", tmp_path / "out")
    latentq.report(tmp_path / "out", tmp_path / "out.html", progress=None)
    text = (tmp_path / "out.html").read_text()
    assert "smaller than float32" not in text
    assert "label 436" in text
    latentq.convert(tmp_path / "features", tmp_path / "small", bits=8)
    latentq.report(tmp_path / "small", tmp_path / "small.html", progress=None)
    assert "4.0 times smaller than float32" in (tmp_path / "small.html").read_text()


def test_embeddings_and_masks_of_captions(source, tiny_clip, tmp_path):
    latentq.encode(
        source, tmp_path / "out", autoencoder="dct-f8c16", size=64, captions="txt", text_encoder=tiny_clip, pooled=True
    )
    opened = LatentDataset(tmp_path / "out")
    captions = count_captions(opened)
    masks = opened.batch(range(12))["attention_mask"].numpy()
    assert sorted(captions.tokens.tolist()) == sorted(masks.sum(-1).ravel().tolist())
    assert captions.limit == 16
    channels = measure_channels(opened, "caption_embedding", no_progress())
    values = opened.batch(range(12))["caption_embedding"].double().numpy().reshape(-1, 32)
    np.testing.assert_allclose(channels.mean, values.mean(0), atol=1e-6)
    np.testing.assert_allclose(channels.std, values.std(0), rtol=1e-5)
    page = page_of(tmp_path / "out", tmp_path / "page.html")
    assert "caption_embedding: 1 x 16 x 32" in page.text
    assert "pooled_embedding: 1 x 32" in page.text
    assert "Tokens of captions" in page.text


def test_thousands_of_channels_stay_readable(tmp_path):
    make_dataset(tmp_path / "out", 6, shape=(3000, 1, 1))
    page = page_of(tmp_path / "out", tmp_path / "page.html")
    assert len(page.all("svg")) < 25
    assert len(page.source) < 400_000
    assert "12 of 3,000 channels" in page.text


def test_a_recipe_for_a_dataset_with_a_card_is_refused(tmp_path, capsys):
    make_dataset(tmp_path / "out", 6)
    assert main(["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html"), "--recipe", "sdxl"]) == 2
    assert "--recipe sdxl: " in (error := capsys.readouterr().err)
    assert "has a card, which says how it was made" in error
    assert not (tmp_path / "page.html").exists()


def test_a_folder_without_a_card_needs_a_recipe(tmp_path, tiny_vae, capsys):
    from latentq import mds

    folder, columns = tmp_path / "imagenet.int8", {"vae_output": "raw:uint8", "label": "str", "label_as_text": "str"}
    codes = np.random.default_rng(0).integers(100, 150, (5, 4, 32, 32), np.uint8)
    with mds.Writer(folder, columns) as writer:
        for index, code in enumerate(codes):
            writer.write({"vae_output": code.reshape(-1), "label": f"{index % 2}", "label_as_text": EVIL})
    out = str(tmp_path / "page.html")
    assert main(["report", str(folder), "-o", out]) == 2
    assert "has no card: --recipe names what made it (dc-ae, " in capsys.readouterr().err
    command = ["report", str(folder), "-o", out, "--recipe", "imagenet.int8", "--autoencoder", str(tiny_vae)]
    assert main(command) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert "recipe='imagenet.int8'" in page.text
    assert len(page.scripts) == 1
    quantizer = Quantizer.uniform(-14, 14, channels=4)
    values = quantizer.dequantize(codes).astype(np.float64)
    rows = [row for row in page.cells if len(row) == 8 and row[0].isdigit()]
    assert [row[1] for row in rows] == [f"{mean:.4g}" for mean in values.mean((0, 2, 3))]
    latentq.convert(folder, tmp_path / "converted")
    assert main([*command, "--compare", str(tmp_path / "converted")]) == 0
    both = ["report", str(tmp_path / "converted"), "--compare", str(tmp_path / "converted"), "--recipe", "sdxl"]
    assert main(both) == 2
    assert "have cards, which say how they were made" in capsys.readouterr().err
    assert main([*command, "--source", str(tmp_path)]) == 1
    assert "has no card and no list of its source" in capsys.readouterr().err


def test_without_its_autoencoder_a_dataset_is_still_shown(source, tiny_vae, tmp_path, capsys):
    latentq.encode(source, tmp_path / "out", autoencoder=tiny_vae, size=32)
    page = page_of(tmp_path / "out", tmp_path / "page.html")
    assert "Latents are not decoded: " in page.text
    assert "--autoencoder" in page.text
    assert len(page.all("img")) == 12 + 4
    assert all("first three channels as" in image["alt"] for image in page.all("img"))
    command = ["report", str(tmp_path / "out"), "-o", str(tmp_path / "x.html")]
    assert main([*command, "--autoencoder", "dct-f8c16"]) == 1
    assert "weights sha256:" in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()


def test_a_dataset_without_samples_tells_its_rejects(dataset, tmp_path):
    card = Card.load(dataset)
    empty = replace(card, counts=replace(card.counts, samples=0, rejects=14))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "latents.toml").write_bytes(empty.to_toml())
    (tmp_path / "none" / "index.json").write_text('{"version": 2, "shards": []}')
    (tmp_path / "none" / "rejects.tsv").write_text("".join(f"{index}.png\tread\tgone\n" for index in range(14)))
    page = page_of(tmp_path / "none", tmp_path / "page.html")
    assert "14 of 14 images (100.00%) were rejected for 1 reason" in page.text
    assert page.all("img") == []


def test_errors_of_other_channels_than_the_stored_ones_are_not_shown_as_theirs(tmp_path):
    make_dataset(tmp_path / "out", 4, shape=(8, 2, 2))
    channels = measure_channels(LatentDataset(tmp_path / "out"), "latent", no_progress())
    for count, content, kept in ((8, "latent", 8), (2, "latent", 0), (4, "moments", 4), (8, "moments", 0)):
        errors = Errors(4, np.ones(count), np.ones(count), 1.0, {0: 1.0})
        fitted = of_stored_channels(errors, channels, content)
        assert len(fitted.sqnr_db) == len(fitted.psnr_db) == kept
        assert fitted.overall_sqnr_db == 1.0


def luminance(color):
    """The relative luminance of #rrggbb, by WCAG 2."""
    values = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_every_text_has_the_contrast_that_wcag_asks_for(page):
    css = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL)[1]
    themes = [
        dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        for block in re.findall(r":root[^{]*\{(.*?)\}", css, re.DOTALL)
    ]
    assert len(themes) == 3  # light, dark by choice, dark by the system
    assert themes[1] == themes[2] != themes[0]
    for theme in themes:
        for text in ("text", "soft", "accent", "mark", "other"):
            for ground in ("page", "panel", "sunken"):
                high, low = sorted((luminance(theme[text]), luminance(theme[ground])), reverse=True)
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground, theme[text], theme[ground])


def test_pictures_share_a_number_of_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (40, 300, 500, 3), np.uint8)
    urls, text = data_urls(list(noise))
    assert sum(map(len, urls)) < 4_100_000
    assert "at most" in text
    with Image.open(io.BytesIO(base64.b64decode(urls[3].partition(",")[2]))) as picture:
        assert max(picture.size) <= 512
        assert picture.width / picture.height == pytest.approx(5 / 3, abs=0.02)
    assert data_urls([])[0] == []


def test_a_picture_counts_as_often_as_the_page_shows_it():
    noise = list(np.random.default_rng(0).integers(0, 256, (6, 400, 400, 3), np.uint8))
    assert "without loss" in data_urls(noise)[1]
    urls, text = data_urls(noise, [1, 1, 1, 1, 1, 4])
    assert "quality 95" in text
    assert sum(map(len, urls)) + 3 * len(urls[5]) < 4_100_000


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--samples", "0"), 2, "--samples must be at least 1, not 0"),
        (("--source", "nowhere"), 2, "no such file or folder"),
        (("--compare", "nowhere"), 2, "nowhere: no such folder"),
        (("-o", "nowhere/x.html"), 2, "there is no folder nowhere"),
        (("--column", "x"), 1, "no latent column 'x'"),
    ],
)
def test_wrong_arguments_are_found_before_anything_is_written(
    dataset, tmp_path, monkeypatch, capsys, arguments, code, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(dataset), *arguments]) == code
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["report", "decode"])
def test_an_output_that_a_rename_would_replace_is_refused_before_the_work(dataset, tmp_path, capsys, command):
    (folder := tmp_path / "folder.png").mkdir()
    os.mkfifo(fifo := tmp_path / "fifo.png")
    assert main([command, str(dataset), "-o", str(folder)]) == 2
    assert capsys.readouterr().err == f"latentq: -o {folder} is a folder: name a file in it\n"
    assert main([command, str(dataset), "-o", str(fifo)]) == 2
    assert capsys.readouterr().err == f"latentq: -o {fifo} is not a regular file\n"
    assert fifo.is_fifo()


def test_a_missing_package_is_named(dataset, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pygal", None)
    assert main(["report", str(dataset), "-o", str(tmp_path / "x.html")]) == 1
    message = "latentq: latentq.report needs pygal, which is not installed: pip install 'pygal>=3'\n"
    assert capsys.readouterr().err == message
