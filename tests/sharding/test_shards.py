"""`latentq shards`: the images that are kept, their bytes, and their columns."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import streaming
from PIL import Image, ImageCms
from torchvision.transforms import InterpolationMode, Resize

from conftest import contents, paint
from latentq import LatentqError, MismatchError, encode, mds, verify
from latentq.cli.main import main
from latentq.collect import COLLECTIONS
from latentq.format.shrink_jpeg import to_jpeg
from latentq.sharding.pipeline import shards
from support.archive_making import make_tar, make_zip, pictures_of, with_captions

SMALL = {"min_size": 64, "max_size": 128}


def picture(size, form="JPEG", mode="RGB", **options):
    """Returns the file of a smooth random image."""
    random = np.random.default_rng(sum(size))
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    small = random.integers(0, 256, (5, 6, channels), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small.squeeze(), mode).resize(size, Image.Resampling.BICUBIC).save(file, form, **options)
    return file.getvalue()


def opened(data):
    return Image.open(io.BytesIO(data))


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Makes a tar of images: three below 64 pixels, one broken, one without caption."""
    folder = tmp_path_factory.mktemp("collection")
    members = [*with_captions(pictures_of(folder / "pictures", 9, (120, 100)))]
    members += [*with_captions({f"small{i}.jpg": picture((63, 100 + i)) for i in range(3)})]
    members += [("broken.jpg", b"no"), ("broken.txt", b"a caption"), ("bare.jpg", picture((100, 100)))]
    return make_tar(folder / "a.tar", members)


def test_jpeg_that_needs_no_shrinking_keeps_its_bytes():
    for data in (picture((100, 64)), picture((300, 128), mode="L"), picture((128, 128), exif=exif(6))):
        assert to_jpeg(data, quality=95, **SMALL).data == data


@pytest.mark.parametrize("size", [(129, 128 * 3), (333, 257), (500, 129), (1000, 999)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_shrunk_image_equals_that_of_torchvision_and_pillow(size, form):
    data = picture(size, form)
    resize = Resize(128, InterpolationMode.BICUBIC, antialias=True)
    expected = resize(opened(data).convert("RGB"))
    file = io.BytesIO()
    expected.save(file, "JPEG", quality=95)
    jpeg = to_jpeg(data, quality=95, **SMALL)
    assert jpeg.data == file.getvalue()
    assert (jpeg.width, jpeg.height) == expected.size == opened(jpeg.data).size


def test_image_that_is_not_a_jpeg_becomes_one():
    jpeg = to_jpeg(picture((100, 90), "WEBP", "RGBA"), quality=95, **SMALL)
    assert opened(jpeg.data).format == "JPEG"
    assert (jpeg.width, jpeg.height) == (100, 90)


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_orientation_and_profile_are_kept_and_not_applied():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    original = picture((300, 200), exif=exif(6), icc_profile=profile)
    shrunk = opened(to_jpeg(original, quality=95, **SMALL).data)
    assert shrunk.size == (192, 128)
    assert shrunk.getexif()[0x0112] == 6
    assert shrunk.info["icc_profile"] == profile


@pytest.mark.parametrize("size", [(63, 500), (500, 63), (63, 63)])
def test_image_below_min_size_is_refused_naming_its_size(size):
    with pytest.raises(LatentqError, match=f"{size[0]} x {size[1]} pixels, below 64"):
        to_jpeg(picture(size), quality=95, **SMALL)


def test_stock_reader_finds_the_columns_and_counts_add_up(streaming_alone, collection, tmp_path):
    card = shards(collection, tmp_path / "out", unit_size=4, **SMALL)
    assert (card.counts.samples, card.counts.rejects) == (9, 5)
    assert card.counts.samples + card.counts.rejects == card.source.samples
    stages = [line.split("\t")[1] for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    assert stages == ["size", "size", "size", "decode", "list"]
    stock = streaming.StreamingDataset(local=str(tmp_path / "out"), shuffle=False, batch_size=1)
    assert len(stock) == 9
    for index in range(9):
        sample = stock[index]
        assert set(sample) == {"jpg", "caption", "width", "height"}
        assert sample["caption"] == f"picture {index:03}.jpg"
        assert sample["jpg"].size == (sample["width"], sample["height"]) == (120 + index, 100 + index)
    assert verify(tmp_path / "out") == []


def test_bytes_do_not_depend_on_processes_or_threads(collection, tmp_path):
    shards(collection, tmp_path / "whole", unit_size=4, threads=1, **SMALL)
    assert shards(collection, tmp_path / "parts", unit_size=4, rank=1, world_size=3, **SMALL).counts is None
    for rank in (0, 2):
        shards(collection, tmp_path / "parts", unit_size=4, threads=3, rank=rank, world_size=3, **SMALL)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    shards(collection, tmp_path / "whole", unit_size=4, **SMALL)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_other_options_on_the_same_folder_are_refused(collection, tmp_path):
    shards(collection, tmp_path / "out", rank=0, world_size=1, **SMALL)
    hint = "name another output folder, or continue with what it was made with"
    with pytest.raises(MismatchError, match=f"was made with min_size = 64; this run has 100: {hint}"):
        shards(collection, tmp_path / "out", min_size=100, max_size=128)
    encode(collection, tmp_path / "latents", size=64)
    with pytest.raises(MismatchError, match=r"holds something else"):
        shards(collection, tmp_path / "latents", **SMALL)
    with pytest.raises(ValueError, match="min_size must be from 1 to 128"):
        shards(collection, tmp_path / "new", min_size=129, max_size=128)


def test_another_version_of_a_library_is_a_warning(collection, tmp_path):
    shards(collection, tmp_path / "out", **SMALL)
    card = tmp_path / "out" / "shards.toml"
    card.write_text(re.sub(r'pillow = ".*"', 'pillow = "1.0"', card.read_text()))
    with pytest.warns(UserWarning, match=r"was begun with \{.*'pillow': '1\.0'.*\}; here are \{"):
        shards(collection, tmp_path / "out", **SMALL)


def test_a_column_that_the_source_lacks_is_named(tmp_path):
    make_tar(tmp_path / "a.tar", pictures_of(tmp_path / "pictures", 1, (120, 100)).items())
    with pytest.raises(LatentqError, match="the collection stores caption as caption, which the source does not have"):
        shards(tmp_path / "a.tar", tmp_path / "out", collection="cc12m", **SMALL)


def test_shards_are_a_source_of_latents(collection, tmp_path):
    shards(collection, tmp_path / "out", unit_size=4, **SMALL)
    assert encode(tmp_path / "out", tmp_path / "latents", size=64).counts.samples == 9
    (tmp_path / "out" / "index.json").unlink()
    with pytest.raises(LatentqError, match="is not finished: latentq shards must finish it"):
        encode(tmp_path / "out", tmp_path / "more", size=64)


def test_damage_to_shards_is_found(collection, tmp_path):
    shards(collection, tmp_path / "out", **SMALL)
    card = (tmp_path / "out" / "shards.toml").read_text()
    (tmp_path / "out" / "shards.toml").write_text(card.replace("samples = 9", "samples = 8"))
    assert [finding.file for finding in verify(tmp_path / "out")] == ["shards.toml"]
    (tmp_path / "out" / "shards.toml").write_text("no = 1")
    assert "not the card of converted shards" in verify(tmp_path / "out")[0].message


def test_source_without_usable_images_is_an_error(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.jpg", picture((63, 63)))])
    with pytest.raises(LatentqError, match="none of 1 sample could be stored"):
        shards(path, tmp_path / "out", **SMALL)


def test_killed_run_that_is_started_again_writes_the_same_bytes(tmp_path):
    make_tar(tmp_path / "a.tar", with_captions(pictures_of(tmp_path / "pictures", 80, (400, 300))))
    command = [sys.executable, "-m", "latentq", "shards", "a.tar", "out", "--unit-size", "4", "--max-size", "280"]
    for changes in (1, 2, 5, 9):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = None
        while process.poll() is None and changes:
            now = sorted(entry.name for entry in tmp_path.glob("out/*"))
            changes, before = changes - (now != before), now
        process.kill()
        process.wait()
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    shards(tmp_path / "a.tar", tmp_path / "whole", unit_size=4, max_size=280)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# Collections.


def test_diffusiondb_skips_unsafe_images(tmp_path):
    make_zip(
        tmp_path / "part-000001.zip",
        [*((f"{i}.webp", picture((90, 80), "WEBP")) for i in range(4)), ("part.json", b"{}")],
    )
    rows = {"image_name": ["0.webp", "1.webp", "2.webp"], "prompt": ["zero", "one", "two"]}
    rows |= {"part_id": [1, 1, 1], "image_nsfw": [0.1, 0.21, 0.2], "prompt_nsfw": [0.1, 0.1, 0.2]}
    pq.write_table(pa.table(rows), tmp_path / "metadata.parquet")
    card = shards(
        tmp_path / "*.zip", tmp_path / "out", collection="diffdb", captions=str(tmp_path / "metadata.parquet"), **SMALL
    )
    assert (card.counts.samples, card.counts.rejects) == (2, 2)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == (
        "part-000001.zip/1.webp\tlist\tnot safe: image_nsfw is 0.21, above 0.2\n"
        "part-000001.zip/3.webp\tlist\tno caption in metadata.parquet\n"
    )
    with pytest.raises(
        LatentqError, match="limits on image_nsfw, prompt_nsfw need a file of captions with those columns: --captions"
    ):
        shards(tmp_path / "*.zip", tmp_path / "more", collection="diffdb", **SMALL)


def test_textcaps_keeps_ids_and_coco_keeps_json(tmp_path):
    data = picture((100, 90))
    rows = {"image": [{"bytes": data, "path": "x"}], "image_id": ["ab12"], "reference_strs": [["one", "two"]]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    shards(tmp_path / "t.parquet", tmp_path / "textcaps", collection="textcaps", **SMALL)
    sample = mds.Reader(tmp_path / "textcaps")[0]
    assert (sample["image_id"], sample["caption"], sample["width"]) == ("ab12", "one", 100)
    name = "COCO_val2014_000000000042.jpg"
    make_zip(tmp_path / "val2014.zip", [(f"val2014/{name}", data)])
    notes = {"images": [{"id": 42, "file_name": name}], "annotations": [{"image_id": 42, "caption": "a dog"}]}
    (tmp_path / "captions.json").write_text(json.dumps(notes))
    captions = str(tmp_path / "captions.json")
    shards(tmp_path / "val2014.zip", tmp_path / "coco", collection="coco", captions=captions, **SMALL)
    assert mds.Reader(tmp_path / "coco").columns == {"caption": "json", "jpg": "jpeg"}
    assert mds.Reader(tmp_path / "coco")[0]["caption"] == "a dog"


def test_collection_whose_columns_the_source_lacks_is_refused(tmp_path):
    make_zip(tmp_path / "a.zip", [("a.jpg", picture((90, 90)))])
    with pytest.raises(
        LatentqError, match="stores caption as caption_syn_pixart_llava15, which the source does not have"
    ):
        shards(tmp_path / "a.zip", tmp_path / "out", collection="sa1b", **SMALL)
    with pytest.raises(ValueError, match=f"there is no collection 'x': name one of {', '.join(COLLECTIONS)}"):
        shards(tmp_path / "a.zip", tmp_path / "out", collection="x", **SMALL)


def test_command_line_prints_counts(collection, tmp_path, capsys):
    out = tmp_path / "out"
    sizes = ("--min-size", "64", "--max-size", "128")
    assert main(["shards", str(collection.parent / "*.tar"), str(out), *sizes]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 9 samples, 5 rejects (see {out / 'rejects.tsv'})")
    assert main(["verify", str(out)]) == 0
    assert main(["shards", str(tmp_path / "nothing*.tar"), str(out)]) == 2
    paint(tmp_path / "in" / "x.png", 1)
    assert main(["shards", str(tmp_path / "in"), str(tmp_path / "plain"), *sizes]) == 0
    assert set(mds.Reader(tmp_path / "plain").columns) == {"jpg", "width", "height"}
