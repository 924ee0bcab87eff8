"""Encoding into buckets of aspect ratios: who goes where, pixels, the order of a unit, every kind of source."""

import io
import json
import tarfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import latentq
from conftest import contents, paint
from latentq import Card, FormatError, RecipeError, mds, verify
from latentq.encoding import placing
from latentq.models.text import Embeddings
from latentq.run.finish import Completion
from latentq.run.units import UnitFacts
from support.archive_making import make_tar, make_zip
from support.mds_stock import stock_samples

AREA = {"area": 32 * 32, "multiple": 8, "max_ratio": 2.0}
SMALL = {"buckets": AREA, "unit_size": 7, "batch_size": 3}


class Pixels:
    """An autoencoder whose latents are the pixels."""

    name = "pixels"
    pixel_range = (0.0, 255.0)
    codebook_size = 256

    def __init__(self):
        self.shapes = []

    def latent_shape(self, size):
        return 3, size, size

    def encode(self, pixels):
        self.shapes.append(tuple(pixels.shape))
        return pixels.clone()

    def posterior(self, pixels):
        return pixels.clone(), torch.full_like(pixels, -30.0)

    def tokens(self, pixels):
        return pixels[:, 0].round().long()

    def decode(self, latents):
        return latents


def recipe(**columns):
    latent = {"from": "latent", "store": "mean", "quantizer": {"kind": "float32"}}
    key = {"from": "key", "encoding": "str"}
    return latentq.Recipe.from_dict(
        {"name": "test", "columns": {"latent": latent, "key": key} | columns, "buckets": AREA, "unit_size": 7}
    )


def picture(index, width, height, suffix, orientation=1):
    """The bytes of a generated picture."""
    pixels = np.random.default_rng(index).integers(0, 256, (4, 5, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    image.save(file, {"jpg": "JPEG"}.get(suffix, suffix.upper()), exif=exif)
    return file.getvalue()


def make_pictures(count, seed=0):
    """The bytes of pictures of every aspect ratio by name; some are turned by EXIF."""
    rng = np.random.default_rng(seed)
    made = {}
    for index in range(count):
        short, long = sorted(rng.integers(6, 90, 2).tolist())
        size = (short, long) if index % 2 else (long, short)
        suffix = ("png", "jpg", "webp")[index % 3]
        made[f"{index:04}.{suffix}"] = picture(index, *size, suffix, 6 if index % 7 == 0 else 1)
    return made


def write(folder, files):
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def pictures_by_name():
    return make_pictures(25)


@pytest.fixture
def source(tmp_path, pictures_by_name):
    return write(tmp_path / "source", pictures_by_name)


def nearest(sizes, height, width):
    """The bucket of nearest aspect ratio, the larger and then the taller of equal ones."""

    def order(size):
        ratio = Fraction(width * size[0], height * size[1])
        return max(ratio, 1 / ratio), -size[0] * size[1], -size[0]

    return min(range(len(sizes)), key=lambda bucket: order(sizes[bucket]))


def upright(data):
    with Image.open(io.BytesIO(data)) as opened:
        return ImageOps.exif_transpose(opened).convert("RGB")


def cover(image, height, width):
    """The pixels of a picture that is resized to cover a size and cropped, and the top and left of the crop."""
    scale = max(Fraction(width, image.width), Fraction(height, image.height))
    resized = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = round((resized.width - width) / 2), round((resized.height - height) / 2)
    return np.asarray(resized.crop((left, top, left + width, top + height))), (top, left)


def stored(out):
    """The samples of a dataset in its order."""
    reader = mds.Reader(out)
    return [reader[index] for index in range(len(reader))]


def bucket_counts(out):
    return list(Card.load(out).counts.buckets)


def test_a_thousand_images_of_every_ratio(tmp_path, streaming_alone):
    """Pixels are those of plain Pillow, units are ordered by bucket, then by list, and the stock reader reads all."""
    files = make_pictures(1000)
    made = write(tmp_path / "source", files)
    out = tmp_path / "out"
    wanted = recipe(
        **{name: {"from": name, "encoding": "ndarray:int32:2"} for name in ("original_size", "crop_top_left", "bucket")}
    )
    wanted = wanted.override(buckets={"area": 48 * 48, "multiple": 8, "max_ratio": 3.0})
    latentq.encode(made, out, recipe=wanted, autoencoder=Pixels(), unit_size=250, batch_size=16)
    sizes = wanted.bucket_sizes()
    assert len(sizes) > 4
    expected = []
    for start in range(0, 1000, 250):
        unit = []
        for name in sorted(files)[start : start + 250]:
            image = upright(files[name])
            bucket = nearest(sizes, image.height, image.width)
            unit.append((bucket, name, image))
        expected += sorted(unit, key=lambda entry: entry[:2])
    samples = stored(out)
    assert [sample["key"] for sample in samples] == [name for _, name, _ in expected]
    for sample, (bucket, _, image) in zip(samples, expected, strict=True):
        pixels, corner = cover(image, *sizes[bucket])
        np.testing.assert_array_equal(sample["latent"], pixels.transpose(2, 0, 1).astype(np.float32))
        assert sample["original_size"].tolist() == [image.height, image.width]
        assert sample["crop_top_left"].tolist() == list(corner)
        assert sample["bucket"].tolist() == list(sizes[bucket])
    assert bucket_counts(out) == np.bincount([bucket for bucket, _, _ in expected], minlength=len(sizes)).tolist()
    assert all(bucket_counts(out))
    assert verify(out) == []

    from streaming import StreamingDataset

    dataset = StreamingDataset(local=str(out), batch_size=1, shuffle=False)
    found = list(dataset)
    assert [sample["key"] for sample in found] == [name for _, name, _ in expected]
    for ours, theirs in zip(samples, found, strict=True):
        np.testing.assert_array_equal(theirs["latent"], ours["latent"])


def test_the_files_of_a_unit(source, tmp_path, pictures_by_name):
    out = tmp_path / "out"
    (source / "0005.broken.jpg").write_bytes(b"no image")
    card = latentq.encode(source, out, recipe=recipe(), autoencoder=Pixels(), batch_size=2)
    assert card.latents["latent"].shapes == tuple((3, *size) for size in card.recipe.bucket_sizes())
    names = sorted(path.name for path in source.iterdir())
    places = []
    for number, unit in enumerate(sorted(path for path in out.iterdir() if path.name.isdigit())):
        index = json.loads((unit / "index.json").read_text())
        shards = [shard["raw_data"]["basename"] for shard in index["shards"]]
        assert shards == sorted(shards)
        facts = UnitFacts.load(unit / "unit.toml")
        buckets = [int(shard.split(".")[1]) for shard in shards]
        assert [shard["samples"] for shard in index["shards"]] == [count for count in facts.buckets if count]
        assert buckets == [bucket for bucket, count in enumerate(facts.buckets) if count]
        for bucket, shard in zip(buckets, index["shards"], strict=True):
            encodings = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
            height, width = card.recipe.bucket_sizes()[bucket]
            assert encodings["latent"] == f"ndarray:float32:3,{height},{width}"
        places += np.fromfile(unit / "buckets.u16", "<u2").tolist()
        hashes = np.fromfile(unit / "content.xxh3", "<u8")
        for name, found in zip(names[7 * number :], hashes.tolist(), strict=False):
            assert found == latentq._core.image_hash(str(source / name))
    sizes = card.recipe.bucket_sizes()
    for name, place in zip(names, places, strict=True):
        image = upright(pictures_by_name[name]) if name in pictures_by_name else None
        assert place == (nearest(sizes, image.height, image.width) if image else 0)
    assert (out / "rejects.tsv").read_text().startswith("0005.broken.jpg\tdecode\tnot an image")
    assert card.counts.rejects == 1
    assert verify(out) == []


def test_batches_of_a_bucket_are_equal_and_full_if_compiled(source, tmp_path, monkeypatch):
    network = Pixels()
    card = latentq.encode(source, tmp_path / "out", recipe=recipe(), autoencoder=network, unit_size=25, batch_size=4)
    found = {}
    for rows, _, height, width in network.shapes:
        found.setdefault((height, width), []).append(rows)
    for size, count in zip(card.recipe.bucket_sizes(), card.counts.buckets, strict=True):
        batches = -(-count // 4)
        assert found.get(size, []) == [-(-count // max(batches, 1))] * batches
    monkeypatch.setattr("latentq.encoding.latents._compiled", lambda call: call)
    network.shapes.clear()
    latentq.encode(source, tmp_path / "compiled", recipe=recipe(), autoencoder=network, batch_size=4, compiled=True)
    assert {rows for rows, *_ in network.shapes} == {4}
    assert sum(card.counts.buckets) == 25


def test_batch_sizes_ranks_and_resuming_do_not_change_a_byte(source, tmp_path, pictures_by_name):
    options = {"autoencoder": "dct-f8c16", "buckets": AREA, "unit_size": 7, "conditioning": True, "flip": True}
    whole = tmp_path / "whole"
    latentq.encode(source, whole, **options)
    assert verify(whole) == []
    for size in (1, 3):
        latentq.encode(source, tmp_path / f"batch-{size}", batch_size=size, threads=2 * size, **options)
        assert contents(tmp_path / f"batch-{size}") == contents(whole)
    for rank in (1, 0):
        latentq.encode(source, tmp_path / "ranks", rank=rank, world_size=2, **options)
    assert contents(tmp_path / "ranks") == contents(whole)


def test_an_interrupted_run_continues(source, tmp_path, monkeypatch):
    options = {"autoencoder": "dct-f8c16", "buckets": AREA, "unit_size": 7}
    latentq.encode(source, tmp_path / "whole", **options)
    from latentq.encoding import write as writing

    publish, published = writing.publish_unit, []

    def failing(path, *arguments, **named):
        if len(published) == 2:
            raise KeyboardInterrupt
        published.append(path)
        return publish(path, *arguments, **named)

    monkeypatch.setattr(writing, "publish_unit", failing)
    with pytest.raises(KeyboardInterrupt):
        latentq.encode(source, tmp_path / "out", **options)
    monkeypatch.undo()
    latentq.encode(source, tmp_path / "out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize(("codec", "size"), [("trellis", {"bits": 4}), ("transform", {"bytes": 512})])
def test_a_codec_of_whole_samples_in_an_interrupted_run_ranks_and_an_update(source, tmp_path, monkeypatch, codec, size):
    options = {
        "autoencoder": "dct-f8c16",
        "buckets": {**AREA, "area": 64 * 64},
        "unit_size": 7,
        "codec": codec,
        **size,
    }
    whole = tmp_path / "whole"
    latentq.encode(source, whole, **options)
    assert Card.load(whole).recipe.columns["latent"].quantizer["kind"] == codec
    assert sum(count > 0 for count in bucket_counts(whole)) > 2
    from latentq.encoding import write as writing

    publish, published = writing.publish_unit, []

    def failing(path, *arguments, **named):
        if len(published) == 2:
            raise KeyboardInterrupt
        published.append(path)
        return publish(path, *arguments, **named)

    monkeypatch.setattr(writing, "publish_unit", failing)
    with pytest.raises(KeyboardInterrupt):
        latentq.encode(source, tmp_path / "out", batch_size=3, **options)
    monkeypatch.undo()
    latentq.encode(source, tmp_path / "out", batch_size=3, **options)
    for rank in (1, 0):
        latentq.encode(source, tmp_path / "ranks", rank=rank, world_size=2, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "ranks") == contents(whole)
    (source / "0003.png").unlink()
    paint(source / "new.png", 1, (50, 120))
    card = latentq.encode(source, whole, update=True)
    assert card.quantizers == Card.load(tmp_path / "out").quantizers
    assert verify(whole) == []
    latentq.encode(source, tmp_path / "fresh", like=tmp_path / "out")
    expected = {sample["key"]: sample["latent"] for sample in latentq.LatentDataset(tmp_path / "fresh")}
    found = {sample["key"]: sample["latent"] for sample in latentq.LatentDataset(whole)}
    assert found.keys() == expected.keys() == {path.name for path in source.iterdir()}
    assert all(torch.equal(latent, expected[key]) for key, latent in found.items())


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip", "tars"])
@pytest.mark.parametrize("limits", [(64, 1 << 28), (0, 1 << 28), (0, 2000)])
def test_sources_of_every_kind_give_the_same_samples(source, tmp_path, pictures_by_name, kind, limits, monkeypatch):
    """Members of archives are read again, or once in order: from memory, or from a temporary file beyond a limit."""
    monkeypatch.setattr(placing, "OPEN_ARCHIVES", limits[0])
    monkeypatch.setattr(placing, "SPOOL_BYTES", limits[1])
    members = list(pictures_by_name.items())
    if kind == "zip":
        made = make_zip(tmp_path / "a.zip", members)
    elif kind == "tars":
        made = tmp_path / "tars"
        made.mkdir()
        for number in range(5):
            make_tar(made / f"{number}.tar", members[5 * number : 5 * number + 5])
    else:
        made = make_tar(tmp_path / f"a.{kind}", members, "w:gz" if kind == "tgz" else "w")
    options = {"recipe": recipe(), "autoencoder": Pixels()}
    latentq.encode(source, tmp_path / "folder", **options)
    latentq.encode(made, tmp_path / "out", **options)
    assert verify(tmp_path / "out") == []
    expected = {sample["key"]: sample["latent"] for sample in stored(tmp_path / "folder")}
    found = {sample["key"].rpartition("/")[2]: sample["latent"] for sample in stored(tmp_path / "out")}
    assert found.keys() == expected.keys()
    for key, latent in found.items():
        np.testing.assert_array_equal(latent, expected[key])


class InOrder:
    """A source of bytes that must be read in order; counts how far it was read when each unit was published."""

    kind = "folder"

    def __init__(self, files, out):
        self.files, self.out, self.read = list(files.items()), out, []

    def listing(self):
        from latentq.sources import Listing, Sample

        return Listing([Sample(name, len(data)) for name, data in self.files])

    def data(self, sample):
        number = [name for name, _ in self.files].index(sample.key)
        units = sum(1 for path in self.out.glob("0*") if (path / "index.json").exists()) if self.out.exists() else 0
        self.read.append((number, units))
        return self.files[number][1]


def test_a_source_in_order_is_read_once_in_order_and_a_unit_ahead(tmp_path, pictures_by_name):
    out = tmp_path / "out"
    made = InOrder(pictures_by_name, out)
    latentq.encode(made, out, recipe=recipe(), autoencoder=Pixels(), batch_size=2)
    assert [number for number, _ in made.read] == list(range(25))
    # Unit u + 2 is not begun before the last batch of unit u is planned; then at most a unit is still being written.
    assert all(number // 7 <= units + 3 for number, units in made.read)
    assert verify(out) == []


def test_small_images_are_rejected_or_go_to_a_smaller_bucket(tmp_path):
    folder = write(
        tmp_path / "source",
        {"a.png": picture(0, 31, 32, "png"), "b.png": picture(1, 32, 32, "png"), "c.png": picture(2, 12, 8, "png"),
         "d.png": picture(3, 7, 90, "png"), "e.jpg": b"broken"},
    )  # fmt: skip
    sizes = [[32, 32], [16, 16], [8, 8]]
    columns = recipe().columns
    for small, keys, rejects in (
        ("enlarge", ["c.png", "a.png", "b.png", "d.png"], "e.jpg\tdecode"),
        (
            "reject",
            ["b.png"],
            "a.png\tsize\t32 x 31 pixels (height x width), smaller than its bucket of 32 x 32\nc.png\tsize",
        ),
        (
            "smaller",
            ["c.png", "a.png", "b.png"],
            "d.png\tsize\t90 x 7 pixels (height x width), smaller than every bucket\ne.jpg",
        ),
    ):
        if small == "enlarge":
            buckets = {"sizes": [[32, 32], [16, 24]]}
            keys = ["c.png", "a.png", "b.png", "d.png"]
        else:
            buckets = {"sizes": sizes}
        table = {"name": "test", "columns": {name: {"from": c.content} for name, c in columns.items()}}
        table["columns"] = {
            "latent": {"from": "latent", "store": "mean", "quantizer": {"kind": "float32"}},
            "key": {"from": "key", "encoding": "str"},
        }
        table["buckets"] = buckets | {"small": small}
        out = tmp_path / small
        card = latentq.encode(folder, out, recipe=latentq.Recipe.from_dict(table), autoencoder=Pixels())
        found = [sample["key"] for sample in stored(out)]
        assert sorted(found) == sorted(keys)
        assert rejects in (out / "rejects.tsv").read_text()
        assert card.counts.samples + card.counts.rejects == 5
        lines = [line.split("\t")[0] for line in (out / "rejects.tsv").read_text().splitlines()]
        assert lines == sorted(lines)
        assert verify(out) == []


def test_what_follows_from_shapes_is_of_each_bucket(source, tmp_path):
    """Moments, tokens, flipped and packed columns, columns of bytes, and image files."""
    columns = {
        "moments": {"from": "moments", "quantizer": {"kind": "float16"}},
        "tokens": {"from": "tokens"},
        "latent_flip": {"from": "latent", "store": "mean", "flip": True, "quantizer": {"kind": "float32"}},
        "packed": {
            "from": "latent",
            "store": "mean",
            "quantizer": {"kind": "uniform", "low": 0, "high": 255, "bits": 5},
        },
        "plain": {"from": "latent", "store": "mean", "encoding": "bytes", "quantizer": {"kind": "float32"}},
        "jpg": {"from": "image", "encoding": "bytes"},
    }
    out = tmp_path / "out"
    card = latentq.encode(source, out, recipe=recipe(**columns), autoencoder=Pixels())
    assert verify(out) == []
    for sample in stored(out):
        latent = sample["latent"]
        np.testing.assert_array_equal(sample["latent_flip"], latent[..., ::-1])
        np.testing.assert_array_equal(sample["moments"][:3], latent.astype(np.float16))
        np.testing.assert_array_equal(sample["tokens"], latent[0].astype(np.uint16))
        assert sample["plain"] == latent.tobytes()
        assert sample["packed"].nbytes == -(-latent.size * 5 // 8)
        assert sample["jpg"] == (source / sample["key"]).read_bytes()
    bucket = next(number for number, count in enumerate(card.counts.buckets) if count)
    own = card.for_bucket(bucket)
    height, width = card.recipe.bucket_sizes()[bucket]
    assert own.columns["tokens"] == f"ndarray:uint16:{height},{width}"
    assert own.columns["packed"] == f"ndarray:uint8:{-(-3 * height * width * 5 // 8)}"
    assert own.columns["plain"] == "bytes"


@pytest.mark.parametrize("method", ["mse", "lloyd-max", "trellis"])
def test_calibration_takes_samples_of_every_bucket(source, tmp_path, method):
    options = {"autoencoder": "dct-f8c16", "buckets": AREA, "bits": 4, "calibrate": method}
    card = latentq.encode(source, tmp_path / "out", **options)
    again = latentq.encode(source, tmp_path / "again", batch_size=1, **options)
    assert card == again
    wide = latentq.encode(source, tmp_path / "like", like=tmp_path / "out")
    assert wide.quantizers == card.quantizers
    assert wide.counts == card.counts
    assert verify(tmp_path / "out") == verify(tmp_path / "like") == []


def test_an_update_follows_the_source(source, tmp_path, pictures_by_name):
    out = tmp_path / "out"
    options = {"recipe": recipe().override(small="reject"), "autoencoder": Pixels()}
    latentq.encode(source, out, **options)
    before = contents(out)
    assert Card.load(out).counts.rejects > 2
    same = latentq.encode(source, out, update=True, check_content=True, autoencoder=Pixels())
    assert same.source.revision == 0
    assert contents(out) == before
    (source / "0003.png").unlink()
    (source / "0010.jpg").write_bytes(picture(99, 80, 41, "jpg"))
    for index in range(5):
        paint(source / f"new-{index}.png", index, (50 + 30 * index, 170 - 30 * index))
    card = latentq.encode(source, out, update=True, autoencoder=Pixels())
    assert verify(out) == []
    latentq.encode(source, tmp_path / "fresh", **options)
    expected = {sample["key"]: sample["latent"] for sample in stored(tmp_path / "fresh")}
    found = {sample["key"]: sample["latent"] for sample in stored(out)}
    assert found.keys() == expected.keys()
    assert all(np.array_equal(latent, expected[key]) for key, latent in found.items())
    assert card.counts.buckets == Card.load(tmp_path / "fresh").counts.buckets


def test_conditioning_without_buckets(source, tmp_path, pictures_by_name):
    latentq.encode(source, tmp_path / "out", autoencoder="dct-f8c16", size=(16, 24), conditioning=True)
    for sample in stored(tmp_path / "out"):
        image = upright(pictures_by_name[sample["key"]])
        _, corner = cover(image, 16, 24)
        assert sample["original_size"].tolist() == [image.height, image.width]
        assert sample["crop_top_left"].tolist() == list(corner)
        assert sample["bucket"].tolist() == [16, 24]
        assert sample["latent"].shape == (16, 2, 3)
    assert verify(tmp_path / "out") == []


def test_a_crop_too_far_out_for_its_column_is_a_reject(tmp_path):
    (tmp_path / "source").mkdir()
    for name, width in (("a", 40), ("b", 600_000)):
        Image.fromarray(np.zeros((1, width, 3), np.uint8)).save(tmp_path / "source" / f"{name}.png")
    card = latentq.encode(
        tmp_path / "source", tmp_path / "out", autoencoder="dct-f8c16", buckets="8192x8", conditioning=True
    )
    assert card.counts.buckets == (1,)
    (line,) = (tmp_path / "out" / "rejects.tsv").read_text().splitlines()
    assert line == "b.png\tsize\t600000 x 1 pixels: its crop_top_left does not fit in 32 bits"


def test_units_of_other_buckets_cannot_be_finished():
    total = Completion(None)
    total.add(UnitFacts(samples=1, buckets=[1, 0]))
    with pytest.raises(FormatError, match="a unit counts 0 buckets, those before it 2"):
        total.add(UnitFacts(samples=1))


def test_what_does_not_fit_is_refused_before_anything_is_encoded(source, tmp_path):
    with pytest.raises(RecipeError, match=r"size 20 x 32: .*multiple of 8, not 20"):
        latentq.encode(source, tmp_path / "out", autoencoder="dct-f8c16", buckets=[[32, 32], [20, 32]])

    class ByPosition(Pixels):
        normalization = latentq.format.normalization.Normalization(positions=f"sha256:{0:064}")

    table = recipe().to_dict()
    table["columns"]["latent"]["scaled"] = True
    with pytest.raises(RecipeError, match="scales latents by the mean and std of each position"):
        latentq.encode(source, tmp_path / "out", recipe=latentq.Recipe.from_dict(table), autoencoder=ByPosition())
    assert not (tmp_path / "out").exists()


def test_verify_finds_buckets_that_are_not_those_of_the_shards(source, tmp_path):
    out = tmp_path / "out"
    latentq.encode(source, out, autoencoder="dct-f8c16", buckets=AREA, unit_size=25)
    assert verify(out) == []
    path = out / "00000" / "buckets.u16"
    data = path.read_bytes()
    places = np.frombuffer(data, "<u2").copy()
    first, second = places[0], next(place for place in places if place != places[0])
    path.write_bytes(np.where(places == first, second, places).astype("<u2").tobytes())
    (finding,) = verify(out)
    assert finding.file == "00000/buckets.u16"
    swapped = places.copy()
    other = int(np.flatnonzero(places == second)[0])
    swapped[[0, other]] = swapped[[other, 0]]
    path.write_bytes(swapped.tobytes())
    assert "the list says" in verify(out)[0].message
    for wrong in (data[:-1], data + b"\0\0", b"\xff\xff" + data[2:]):
        path.write_bytes(wrong)
        (finding,) = verify(out)
        assert (finding.file, finding.message[:13]) == ("00000/buckets.u16", "does not hold")
    path.unlink()
    assert any("buckets.u16" in finding.file and finding.message == "missing" for finding in verify(out))
    path.write_bytes(data)
    facts = out / "00000" / "unit.toml"
    text = facts.read_text()
    counts = UnitFacts.load(facts).buckets
    facts.write_text(text.replace(f"    {counts[0]},", f"    {counts[0] + 1},", 1))
    assert any("says buckets" in finding.message for finding in verify(out))


def test_a_stock_reader_reads_every_shard(source, tmp_path):
    latentq.encode(source, tmp_path / "out", autoencoder="dct-f8c16", buckets=AREA)
    ours, theirs = stored(tmp_path / "out"), stock_samples(tmp_path / "out")
    assert len(ours) == len(theirs) == 25
    for a, b in zip(ours, theirs, strict=True):
        assert a["key"] == b["key"]
        np.testing.assert_array_equal(a["latent"], b["latent"])


def test_a_tar_of_web_dataset_keeps_captions_with_their_images(tmp_path, pictures_by_name):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in pictures_by_name.items():
            for member, body in ((name, data), (f"{name.split('.')[0]}.txt", f"picture {name}".encode())):
                info = tarfile.TarInfo(member)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    columns = {"caption": {"from": "caption", "encoding": "str"}}
    latentq.encode(path, tmp_path / "out", recipe=recipe(**columns), autoencoder=Pixels())
    for sample in stored(tmp_path / "out"):
        assert sample["caption"] == f"picture {sample['key'].rpartition('/')[2]}"


def test_layouts_of_one_shape_are_refused(source, tmp_path):
    columns = {"tokens": {"from": "tokens"}}
    with pytest.raises(RecipeError, match="holds tokens of one shape"):
        latentq.encode(source, tmp_path / "out.tsv", recipe=recipe(**columns), autoencoder=Pixels())
    latentq.encode(source, tmp_path / "out", recipe=recipe(**columns), autoencoder=Pixels())
    with pytest.raises(latentq.MismatchError, match=r"has 3 buckets, and the layout of .* has one shape"):
        latentq.convert(tmp_path / "out", tmp_path / "converted.tsv")


class Text:
    """A text encoder whose embedding of a caption is its length; counts the captions that it is given."""

    name, length, width, pooled_width, masked = "text", 2, 3, 0, False

    def __init__(self):
        self.asked = []

    def encode(self, captions):
        self.asked += [caption for caption in captions if caption]
        lengths = torch.tensor([float(len(caption)) for caption in captions])
        return Embeddings(lengths[:, None, None].expand(-1, 2, 3).contiguous(), None, None)


def test_captions_are_embedded_once_with_their_images(tmp_path, pictures_by_name):
    source = write(tmp_path / "source", pictures_by_name)
    for number, name in enumerate(pictures_by_name):
        (source / f"{name.split('.')[0]}.txt").write_text("x" * (1 + number % 20))
    columns = {"caption": {"from": "caption", "encoding": "str"}}
    text = Text()
    wanted = recipe(**columns).override(small="reject", text_encoder="text", unit_size=25)
    options = {"recipe": wanted, "autoencoder": Pixels(), "text_encoder": text, "captions": "txt"}
    latentq.encode(source, tmp_path / "out", batch_size=4, **options)
    samples = stored(tmp_path / "out")
    assert 5 < len(samples) < 25
    for sample in samples:
        assert (sample["caption_embedding"] == len(sample["caption"])).all()
    assert sorted(text.asked) == sorted({sample["caption"] for sample in samples})
    assert verify(tmp_path / "out") == []
