"""`--delete-archives` deletes an archive as soon as no unit needs it, and nothing else."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import contents
from latentq import LatentqError
from latentq.cli.main import main
from latentq.sharding.pipeline import shards
from support.archive_making import make_tar, make_zip, pictures_of, with_captions

SHARDS = ["--min-size", "32", "--unit-size", "4"]
ENCODE = ["--autoencoder", "dct-f8c16", "--size", "32", "--unit-size", "4"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Makes four tars of three captioned images in two folders, the last one truncated, and another file."""
    folder = tmp_path_factory.mktemp("source")
    members = list(with_captions(pictures_of(folder / "pictures", 12)))
    for number in range(4):
        path = folder / "tars" / "ab"[number % 2] / f"{number}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_tar(path, members[6 * number : 6 * number + 6])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    (folder / "tars" / "a" / "keep.txt").write_text("mine")
    return folder / "tars"


def copied(source, tmp_path):
    shutil.copytree(source, tmp_path / "tars")
    return str(tmp_path / "tars" / "*" / "*.tar")


@pytest.mark.parametrize("fault", [MemoryError("no bytes"), LatentqError("x: out of memory"), OSError(5, "I/O error")])
def test_fault_of_the_machine_keeps_every_archive(tmp_path, monkeypatch, fault):
    make_tar(tmp_path / "a.tar", with_captions(pictures_of(tmp_path / "pictures", 3)))

    def failing(*_, **__):
        raise fault

    monkeypatch.setattr("latentq.sharding.pipeline.to_jpeg", failing)
    with pytest.raises((MemoryError, OSError)):
        shards(tmp_path / "a.tar", tmp_path / "out", min_size=32, delete_archives=True)
    assert (tmp_path / "a.tar").exists()
    assert not (tmp_path / "out" / "index.json").exists()


def left(tmp_path):
    return sorted(name for name in contents(tmp_path / "tars") if not name.endswith("/"))


@pytest.mark.parametrize(("command", "options"), [("shards", SHARDS), ("encode", ENCODE)])
def test_archives_are_deleted_and_the_same_command_succeeds_again(source, tmp_path, command, options, capsys):
    pattern = copied(source, tmp_path)
    assert main([command, pattern, str(tmp_path / "whole"), *options]) == 0
    assert len(left(tmp_path)) == 5
    assert main([command, pattern, str(tmp_path / "out"), *options, "--delete-archives"]) == 0
    assert left(tmp_path) == ["a/keep.txt", "b/3.tar"]  # what is broken may be worth fetching again
    for _ in range(2):
        assert main([command, pattern, str(tmp_path / "out"), *options, "--delete-archives"]) == 0
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        (tmp_path / "tars" / "b" / "3.tar").unlink(missing_ok=True)
    assert main([command, pattern, str(tmp_path / "another"), *options, "--delete-archives"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_archive_stays_until_all_of_its_units_are_published(source, tmp_path):
    pattern = copied(source, tmp_path)
    options = {"min_size": 32, "unit_size": 4, "delete_archives": True}
    assert shards(pattern, tmp_path / "out", rank=0, world_size=2, **options).counts is None
    # In order: a/0 (3), a/2 (3), b/1 (3), ...; units 0 and 2 are done, so only a/0 is no longer needed.
    assert left(tmp_path) == ["a/2.tar", "a/keep.txt", "b/1.tar", "b/3.tar"]
    assert shards(pattern, tmp_path / "out", rank=1, world_size=2, **options).counts is not None
    assert left(tmp_path) == ["a/keep.txt", "b/3.tar"]
    shutil.rmtree(tmp_path / "tars")
    assert shards(copied(source, tmp_path), tmp_path / "whole", min_size=32, unit_size=4).counts is not None
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_run_killed_after_the_last_deletion_can_be_finished(source, tmp_path):
    pattern = copied(source, tmp_path)
    (tmp_path / "tars" / "b" / "3.tar").unlink()
    shards(pattern, tmp_path / "out", min_size=32, delete_archives=True)
    whole = contents(tmp_path / "out")
    (tmp_path / "out" / "index.json").unlink()
    shards(pattern, tmp_path / "out", min_size=32, delete_archives=True)
    assert contents(tmp_path / "out") == whole


def test_archive_without_images_stays(source, tmp_path):
    pattern = copied(source, tmp_path)
    make_tar(tmp_path / "tars" / "a" / "1.tar", [("readme.md", b"no picture")])
    (tmp_path / "tars" / "b" / "3.tar").unlink()
    for rank in (0, 0, 1, 0):
        options = {"min_size": 32, "unit_size": 4, "delete_archives": True}
        card = shards(pattern, tmp_path / "out", rank=rank, world_size=2, **options)
    assert card.counts is not None
    assert left(tmp_path) == ["a/1.tar", "a/keep.txt"]
    make_tar(tmp_path / "tars" / "b" / "1.tar", [("new.jpg", b"a picture that nobody has listed")])
    with pytest.raises(LatentqError):
        shards(pattern, tmp_path / "out", **options)


def test_parquet_without_rows_is_not_deleted(tmp_path):
    pictures = pictures_of(tmp_path / "pictures", 3)
    for number, rows in enumerate(([], [*pictures.values()])):
        pq.write_table(pa.table({"jpg": pa.array(rows, pa.binary())}), tmp_path / f"{number}.parquet")
    for _ in range(2):
        shards(tmp_path / "*.parquet", tmp_path / "out", min_size=32, delete_archives=True)
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["0.parquet"]


def test_archive_that_is_missing_too_early_is_named(source, tmp_path):
    pattern = copied(source, tmp_path)
    shards(pattern, tmp_path / "out", min_size=32, unit_size=4, rank=0, world_size=2)
    (tmp_path / "tars" / "a" / "2.tar").unlink()
    with pytest.raises(LatentqError, match=r"a/2.tar is listed with \d+ bytes and is not there"):
        shards(pattern, tmp_path / "out", min_size=32, unit_size=4)


def test_zips_and_parquet_are_deleted_and_a_folder_is_not(tmp_path):
    pictures = pictures_of(tmp_path / "pictures", 3)
    make_zip(tmp_path / "a.zip", pictures.items())
    pq.write_table(pa.table({"jpg": list(pictures.values())}), tmp_path / "a.parquet")
    for name in ("a.zip", "a.parquet"):
        shards(tmp_path / name, tmp_path / f"{name}-out", min_size=32, delete_archives=True)
        assert not (tmp_path / name).exists()
    with pytest.raises(LatentqError, match="a source of kind folder has no archives"):
        shards(tmp_path / "pictures", tmp_path / "out", min_size=32, delete_archives=True)
    assert len([*(tmp_path / "pictures").iterdir()]) == 3
