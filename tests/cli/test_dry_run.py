"""`--dry-run` of encode and shards: what it says comes true, and nothing is written."""

import re
import shutil

import pytest

import latentq
from conftest import paint
from latentq import Card
from latentq.cli.main import main
from latentq.sharding.card import ShardsCard
from support.archive_making import make_tar, with_captions
from support.cli_fixtures import SMALL

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "byte": 1, "bytes": 1}
DRY_SMALL = (*SMALL, "--unit-size", "50")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "data" / "source"
    for number in range(120):
        paint(folder / "ab"[number % 2] / f"{number:03}.jpg", number, (90 + number % 7, 70))
    return folder


@pytest.fixture
def out(tmp_path):
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


def state(folder):
    """Every file below a folder, with what tells whether it was touched."""
    files = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {path: (facts.st_ino, facts.st_size, facts.st_mtime_ns) for path, facts in files.items()}


@pytest.fixture
def dry(tmp_path, capsys):
    """Runs a command with --dry-run, asserts that nothing is written, and returns its rows."""

    def run(*command):
        before = state(tmp_path)
        capsys.readouterr()
        code = main([*map(str, command), "--dry-run"])
        captured = capsys.readouterr()
        assert state(tmp_path) == before
        assert code == 0, captured.err
        return dict(re.split(r"  +", line, maxsplit=1) for line in captured.out.splitlines())

    return run


def size_of(text):
    number, unit = text.removeprefix("about ").split()
    return float(number) * UNITS[unit]


def size_on_disk(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_counts_and_bytes_of_encode_come_true(dry, source, out):
    rows = dry("encode", source, out, *DRY_SMALL)
    assert rows["dry run"] == "nothing is written"
    assert rows["images"] == "120 in the source (folder)"
    assert rows["units"] == "3, each of up to 50 samples; 0 there, the first missing is 00000"
    assert rows["to do"] == "3 units, 120 images"
    assert re.fullmatch(r"50 images, no rejects, \d+\.\d images/s", rows["tried"])
    assert re.fullmatch(r"about \d+:\d\d, with 120 images to calibrate on", rows["time"])
    assert (rows["recipe"], rows["weights"]) == ("default", "none")
    assert rows["autoencoder"] == "dct-f8c16 (DctAutoencoder, float32)"
    assert rows["shape latent"] == "16 x 8 x 8"
    card = latentq.encode(source, out, autoencoder="dct-f8c16", size=64, unit_size=50)
    assert (card.units, card.source.samples) == (3, 120)
    assert {f"column {name}": encoding for name, encoding in card.columns.items()}.items() <= rows.items()
    assert size_of(rows["bytes"]) == pytest.approx(size_on_disk(out), rel=0.03)


@pytest.mark.parametrize(
    "options",
    [("--bits", "4"), ("--image",), ("--store", "mean", "--flip"), ("--calibrate", "lloyd-max"),
     ("--codec", "trellis", "--bits", "4"), ("--bytes", "700")],
)  # fmt: skip
def test_bytes_follow_from_the_columns(dry, source, out, options):
    rows = dry("encode", source, out, *DRY_SMALL, *options)
    assert main(["encode", str(source), str(out), *DRY_SMALL, *options]) == 0
    assert size_of(rows["bytes"]) == pytest.approx(size_on_disk(out), rel=0.04)


def test_what_is_there_is_counted(dry, source, out):
    begin = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 50, "world_size": 3}
    latentq.encode(source, out, **begin, rank=1)
    rows = dry("encode", source, out, *DRY_SMALL)
    assert rows["units"] == "3, each of up to 50 samples; 1 there, the first missing is 00000"
    assert rows["to do"] == "2 units, 70 images"
    assert "calibrate" not in rows["time"]
    rows = dry("encode", source, out, *DRY_SMALL, "--world-size", 3, "--rank", 2)
    assert rows["to do"] == "2 units, 70 images; of this process: 1 unit, 20 images"
    rows = dry("encode", source, out, *DRY_SMALL, "--world-size", 3, "--rank", 1)
    assert rows["to do"] == "2 units, 70 images; of this process: 0 units, 0 images"
    assert rows["bytes"] == "unknown: nothing is left to try"
    for rank in (0, 2):
        latentq.encode(source, out, **begin, rank=rank)
    rows = dry("encode", source, out, *DRY_SMALL)
    assert rows["units"] == "3, each of up to 50 samples; 3 there"
    assert (rows["to do"], "time" in rows) == ("no unit", False)
    assert size_of(rows["bytes"]) == pytest.approx(size_on_disk(out), rel=0.02)


def test_an_update_says_what_changed_and_what_it_encodes(dry, source, out):
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64, unit_size=50)
    update = ("encode", source, out, "--update")
    rows = dry(*update)
    assert (rows["update"], rows["to do"]) == ("0 new, 0 changed, 0 removed", "no unit")
    (source / "a" / "000.jpg").unlink()
    paint(source / "a" / "002.jpg", 500, (200, 90))
    for number in range(3):
        paint(source / "b" / f"new{number}.jpg", number)
    rows = dry(*update)
    assert rows["update"] == "3 new, 1 changed, 1 removed"
    assert rows["units"] == "4, each of up to 50 samples; 2 there, the first missing is 00000.1"
    assert rows["to do"] == "2 units, 52 images"
    assert rows["images"] == "122 in the source (folder)"
    assert main([*map(str, update)]) == 0
    assert Card.load(out).source.samples == 122
    main(["prune", str(out), "--yes"])
    assert size_of(rows["bytes"]) == pytest.approx(size_on_disk(out), rel=0.03)


def test_content_is_compared_if_asked_for(dry, tmp_path, out):
    source = tmp_path / "data" / "source"
    for number in range(4):
        paint(source / f"{number}.bmp", number)
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64)
    paint(source / "1.bmp", 9)
    assert dry("encode", source, out, "--update")["update"] == "0 new, 0 changed, 0 removed"
    assert dry("encode", source, out, "--update", "--check-content")["update"] == "0 new, 1 changed, 0 removed"


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command with --dry-run and without, and asserts that both are refused with the same message."""

    def run(*command, message):
        said, codes = [], set()
        for option in (["--dry-run"], []):
            before = state(tmp_path)
            codes.add(main([*map(str, command), *option]))
            said.append(capsys.readouterr().err.splitlines()[-1])
            if option:
                assert state(tmp_path) == before
        assert said[0] == said[1]
        assert codes in ({1}, {2})
        assert re.search(message, said[0])

    return run


def test_encode_is_refused_as_the_run_would_be(refused, source, out, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    fresh = tmp_path / "fresh"
    refused("encode", source, tmp_path / "other", *SMALL, message="holds something else")
    refused("encode", source, fresh, *SMALL, "--store", "moments", message="has no posterior")
    refused("encode", source, fresh, "--autoencoder", "nosuch", message="nosuch")
    refused("encode", source, tmp_path / "a", *SMALL, "--delete-archives", message="no archives to delete")
    (tmp_path / "empty").mkdir()
    refused("encode", tmp_path / "empty", fresh, *SMALL, message="empty")
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64, unit_size=50, rank=0, world_size=2)
    refused("encode", source, out, *DRY_SMALL, "--bits", 4, message=r"was made with recipe\.columns.*bits.* = 8")
    refused("encode", source, out, "--update", message="is not finished")
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64, unit_size=50)
    refused("encode", source, out, "--update", "--bits", 4, message=r"was made with recipe\.columns.*bits.* = 8")
    (source / "a" / "000.jpg").unlink()
    refused("encode", source, out, *DRY_SMALL, message="lists 120 samples, the source has 119 now")


def test_rejects_of_the_tried_images_are_counted_and_strict_ends(dry, refused, source, out):
    for path in list(source.rglob("*.jpg"))[::2]:
        path.write_bytes(b"no")
    rows = dry("encode", source, out, *DRY_SMALL)
    rejects = re.fullmatch(r"50 images, (\d+) rejects, the first: \S+\.jpg: decode: .*images/s", rows["tried"])
    assert 10 < int(rejects[1]) < 40
    refused("encode", source, out, *DRY_SMALL, "--strict", message=r"\.jpg: decode: ")


def test_delete_archives_deletes_nothing(dry, source, out, tmp_path):
    images = [(path.name, path.read_bytes()) for path in sorted(source.rglob("*.jpg"))]
    archive = make_tar(tmp_path / "data" / "a.tar", images)
    command = ("encode", archive, out, *DRY_SMALL, "--delete-archives")
    assert dry(*command)["images"] == "120 in the source (tar)"
    assert archive.exists()
    shards = ("shards", archive, out.with_name("shards"), "--min-size", 8, "--delete-archives")
    dry(*shards)
    assert archive.exists()
    shutil.copy(archive, archive.with_name("copy"))
    for done in (command, shards):
        shutil.copy(archive.with_name("copy"), archive)
        assert main([*map(str, done)]) == 0
        assert not archive.exists()
        assert dry(*done)["to do"] == "no unit"


def test_counts_and_bytes_of_shards_come_true(dry, source, out, tmp_path):
    images = {path.name: path.read_bytes() for path in sorted(source.rglob("*.jpg"))}
    archive = make_tar(tmp_path / "data" / "a.tar", with_captions(images))
    command = ("shards", archive, out, "--min-size", 16, "--max-size", 48, "--unit-size", 50)
    rows = dry(*command)
    assert rows["units"] == "3, each of up to 50 samples; 0 there, the first missing is 00000"
    assert re.fullmatch(r"64 images, no rejects, \d+\.\d images/s", rows["tried"])
    assert re.fullmatch(r"about \d+:\d\d", rows["time"])
    assert main([*map(str, command)]) == 0
    card = ShardsCard.load(out)
    assert {f"column {name}": encoding for name, encoding in card.columns.items()}.items() <= rows.items()
    assert size_of(rows["bytes"]) == pytest.approx(size_on_disk(out), rel=0.03)
    shutil.rmtree(out / "00001")
    assert dry(*command)["units"] == "3, each of up to 50 samples; 2 there, the first missing is 00001"


def test_shards_are_refused_as_the_run_would_be(refused, source, out, tmp_path):
    command = ("shards", source, out, "--min-size", 16, "--unit-size", 50)
    refused("shards", source, tmp_path / "a", "--collection", "cc12m", message="stores caption as caption")
    refused("shards", source, tmp_path / "b", "--delete-archives", message="no archives to delete")
    assert main([*map(str, command)]) == 0
    refused(*command, "--quality", 80, message="was made with quality = 95; this run has 80")
    (source / "a" / "000.jpg").unlink()
    refused(*command, message="lists 120 samples, the source has 119 now")


def test_temporary_files_are_removed(source, out, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    for command in (("encode", *DRY_SMALL), ("shards", "--min-size", "8"), ("shards", "--collection", "cc12m")):
        main([command[0], str(source), str(out), *command[1:], "--dry-run"])
        assert list((tmp_path / "temporary").iterdir()) == []


def test_images_of_missing_units_are_tried(dry, source, out, monkeypatch):
    """A dry run of an update tries new samples, not those that are there."""
    latentq.encode(source, out, autoencoder="dct-f8c16", size=64, unit_size=50)
    (source / "b" / "new.jpg").write_bytes(b"no")
    rows = dry("encode", source, out, "--update")
    assert re.fullmatch(r"1 image, 1 reject, the first: b/new.jpg: decode: .*", rows["tried"])


def test_embeddings_and_captions_count(dry, source, out, tmp_path, tiny_clip, tiny_vae):
    images = {path.name: path.read_bytes() for path in sorted(source.rglob("*.jpg"))}
    archive = make_tar(tmp_path / "data" / "a.tar", with_captions(images))
    models = ("--autoencoder", tiny_vae, "--size", 64, "--text-encoder", tiny_clip)
    rows = dry("encode", archive, out, *models, "--batch-size", 16)
    assert rows["tried"].startswith("15 images, no rejects, ")
    assert rows["text encoder"].startswith(f"{tiny_clip.name} (")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", rows["weights"])
    assert main([*map(str, ("encode", archive, out, *models))]) == 0
    assert size_of(rows["bytes"]) == pytest.approx(size_on_disk(out), rel=0.04)
