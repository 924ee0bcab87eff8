"""The bytes of a dataset do not depend on threads, batches, ranks, other processes or earlier runs."""

import dataclasses
import errno
import shutil

import pytest

import latentq
from conftest import contents
from latentq import LatentDataset, LatentqError, Recipe, mds

SMALL = {"autoencoder": "dct-f8c16", "size": 64}


def test_bytes_do_not_depend_on_threads_batch_size_or_ranks(pictures, tmp_path):
    """One process or several, in either order, write the same bytes with the built-in transform."""
    latentq.encode(pictures, tmp_path / "one", **SMALL, unit_size=5)
    expected = contents(tmp_path / "one")
    for name, ranks, batch, threads in [("a", [0, 1], 7, 1), ("b", [1, 0], 64, 3), ("c", [2, 0, 1], 1, 2)]:
        cards = [
            latentq.encode(
                pictures, tmp_path / name, **SMALL, unit_size=5,
                rank=rank, world_size=len(ranks), batch_size=batch, threads=threads,
            )
            for rank in ranks
        ]  # fmt: skip
        assert [card.complete for card in cards] == [False] * (len(ranks) - 1) + [True]
        assert contents(tmp_path / name) == expected


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_float_columns_do_not_depend_on_the_batch_size(pictures, tmp_path, kind):
    recipe = Recipe.load("default").to_dict()
    recipe["columns"]["latent"]["quantizer"] = {"kind": kind}
    for batch in (1, 5, 64):
        latentq.encode(pictures, tmp_path / str(batch), recipe=Recipe.from_dict(recipe), size=64, batch_size=batch)
    assert contents(tmp_path / "1") == contents(tmp_path / "5") == contents(tmp_path / "64")


def test_rank_and_world_size_come_from_the_environment(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, unit_size=5)
    assert not card.complete
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == ["00001", "list"]


def test_kl_latents_do_not_depend_on_ranks_or_threads(pictures, tmp_path, tiny_vae):
    options = {"autoencoder": tiny_vae, "size": 64, "unit_size": 5, "batch_size": 4}
    latentq.encode(pictures, tmp_path / "one", **options, threads=1)
    for rank in (1, 0):
        latentq.encode(pictures, tmp_path / "two", **options, threads=2, rank=rank, world_size=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_finished_dataset_is_not_changed(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert latentq.encode(pictures, tmp_path / "out", **SMALL).complete
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_temporary_of_a_killed_run_is_removed(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    expected = contents(tmp_path / "out")
    (tmp_path / "out" / ".00000.0123abcd").mkdir()
    (tmp_path / "out" / ".00000.0123abcd" / "shard.00000.mds").write_bytes(b"x")
    (tmp_path / "out" / ".index.json.0123abcd").write_bytes(b"x")
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert contents(tmp_path / "out") == expected


def test_unit_that_another_process_publishes_counts_as_done(pictures, tmp_path, monkeypatch):
    latentq.encode(pictures, tmp_path / "other", **SMALL, unit_size=5)
    out = tmp_path / "out"
    expected = contents(tmp_path / "other")
    add_file = mds.Writer.add_file

    def late(writer, name, data):
        for number in ("00000", "00001"):
            shutil.copytree(tmp_path / "other" / number, out / number, dirs_exist_ok=True)
        add_file(writer, name, data)

    monkeypatch.setattr(mds.Writer, "add_file", late)
    assert latentq.encode(pictures, out, **SMALL, unit_size=5).complete
    assert contents(out) == expected


def test_finished_dataset_is_opened_again_without_writing(pictures, tmp_path, monkeypatch):
    card = latentq.encode(pictures, tmp_path / "out", **SMALL)

    def refuse(path, data):
        raise OSError(errno.EROFS, "read-only file system", str(path))

    monkeypatch.setattr(latentq.store.local, "_write", refuse)
    assert latentq.encode(pictures, tmp_path / "out", **SMALL) == card


def test_unfinished_dataset_is_not_complete(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", **SMALL, unit_size=5, rank=0, world_size=2)
    with pytest.raises(LatentqError, match="2 of 3 units"):
        LatentDataset(tmp_path / "out")
    assert "2 of 3 units" in latentq.verify(tmp_path / "out")[0].message


def test_another_version_of_a_library_is_a_warning(pictures, tmp_path):
    out = tmp_path / "out"
    card = latentq.encode(pictures, out, **SMALL)
    changed = dataclasses.replace(card, versions={**card.versions, "torch": "1.0"})
    (out / "latents.toml").write_bytes(changed.to_toml())
    with pytest.warns(UserWarning, match=r"begun with torch 1\.0"):
        latentq.encode(pictures, out, **SMALL)


def test_dataset_contains_no_time_or_path(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "a", **SMALL)
    shutil.copytree(pictures, tmp_path / "elsewhere" / "photos")
    latentq.encode(tmp_path / "elsewhere" / "photos", tmp_path / "b", **SMALL)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
