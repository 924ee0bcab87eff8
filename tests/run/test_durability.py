"""A unit or file that counts as done has been fsynced; a failed fsync does not count as done."""

import errno
import os
from pathlib import Path

import pytest

import latentq
from conftest import contents, paint
from latentq.converting.work import Work
from latentq.sharding.pipeline import shards
from latentq.store import local
from support.archive_making import make_tar, pictures_of, with_captions

SMALL = {"size": 32, "unit_size": 2}


@pytest.fixture
def photos(tmp_path):
    for index in range(4):
        paint(tmp_path / "photos" / f"{index}.png", index)
    return tmp_path / "photos"


@pytest.fixture
def synced(monkeypatch):
    """Records the paths that are fsynced; those in the returned set fail with EIO."""
    paths, broken = [], set()
    fsync = os.fsync

    def recording(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        paths.append(path)
        if path in broken:
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(local.os, "fsync", recording)
    return paths, broken


def test_every_folder_that_a_new_one_is_made_in_is_fsynced(photos, tmp_path, synced):
    paths, _ = synced
    latentq.encode(photos, tmp_path / "a" / "b" / "out", **SMALL)
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(paths)


def test_folder_named_relative_to_the_working_directory(photos, tmp_path, synced, monkeypatch):
    paths, _ = synced
    monkeypatch.chdir(tmp_path)
    latentq.encode("photos", "out", **SMALL)
    assert tmp_path in paths


def test_units_are_counted_as_done_only_after_an_fsync_of_their_folder(photos, tmp_path, synced):
    _, broken = synced
    out = tmp_path / "out"
    latentq.encode(photos, tmp_path / "whole", **SMALL)
    latentq.encode(photos, out, **SMALL, rank=0, world_size=2)
    broken.add(out)  # as after an fsync that failed, whose error the first run reported
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            latentq.encode(photos, out, **SMALL)
        assert not (out / "index.json").exists()
    broken.clear()
    latentq.encode(photos, out, **SMALL)
    assert contents(out) == contents(tmp_path / "whole")


def test_archive_is_deleted_only_after_an_fsync_of_the_folder_of_its_units(tmp_path, synced):
    _, broken = synced
    make_tar(tmp_path / "a.tar", with_captions(pictures_of(tmp_path / "pictures", 4)))
    out, options = tmp_path / "out", {"min_size": 32, "unit_size": 2}
    for rank in (0, 1):
        shards(tmp_path / "a.tar", out, **options, rank=rank, world_size=2)
    (out / "index.json").unlink()
    broken.add(out)
    with pytest.raises(OSError, match="Input/output error"):
        shards(tmp_path / "a.tar", out, **options, delete_archives=True)
    assert (tmp_path / "a.tar").exists()
    broken.clear()
    shards(tmp_path / "a.tar", out, **options, delete_archives=True)
    assert not (tmp_path / "a.tar").exists()


def test_file_whose_folder_cannot_be_fsynced_is_not_published(tmp_path, synced):
    _, broken = synced
    broken.add(tmp_path)
    with pytest.raises(OSError, match="Input/output error"), local.published_whole(tmp_path / "a.pt") as temporary:
        temporary.write_bytes(b"latents")
    assert list(tmp_path.iterdir()) == []
    broken.clear()
    with local.published_whole(tmp_path / "a.pt") as temporary:
        temporary.write_bytes(b"latents")
    assert (tmp_path / "a.pt").read_bytes() == b"latents"


def test_finished_dataset_on_a_read_only_file_system_is_opened_again(photos, tmp_path, monkeypatch):
    latentq.encode(photos, tmp_path / "out", **SMALL)

    def read_only(descriptor):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(local.os, "fsync", read_only)
    assert latentq.encode(photos, tmp_path / "out", **SMALL).complete


def test_samples_of_a_conversion_are_recorded_only_after_an_fsync_of_every_file(tmp_path, synced):
    paths, broken = synced
    work = Work(tmp_path / "out", tmp_path, tmp_path / "result")
    files = [work.result / "folder" / f"{index}.npy" for index in range(40)]
    files[0].parent.mkdir(parents=True)
    for file in files:
        file.write_bytes(b"latents")
    broken.add(files[17])
    with pytest.raises(OSError, match="Input/output error") as raised:
        work.record(40)
    assert raised.value.filename == str(files[17])
    assert work.done == 0
    broken.clear()
    paths.clear()
    work.record(40)
    assert work.done == 40
    assert {*files, files[0].parent, work.result} <= set(paths)
