"""Datasets on an object store: the same bytes as in a folder, published whole or not at all."""

import json
from pathlib import Path

import numpy as np
import pytest

import latentq
from conftest import contents
from latentq import LatentqError, MismatchError
from latentq.cli.main import main
from latentq.run import mirror
from latentq.store.objects import ObjectStore
from latentq.system.progress import Progress
from latentq.system.text import size_text

SMALL = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 5, "progress": None}


def objects(url: str) -> dict[str, bytes]:
    store = ObjectStore(url)
    return {name: store.get(name) for name, _ in store.files()}


def files(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if not name.endswith("/")}


@pytest.fixture
def local(pictures, tmp_path) -> dict[str, bytes]:
    """The files of the dataset of `pictures` in a folder."""
    latentq.encode(pictures, tmp_path / "local", **SMALL)
    return files(tmp_path / "local")


def test_dataset_on_a_store_has_the_bytes_of_one_in_a_folder(pictures, s3, local):
    card = latentq.encode(pictures, f"{s3}/data/set/", **SMALL)
    assert card.complete
    assert objects(f"{s3}/data/set") == local


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_ranks_share_a_dataset_on_a_store(pictures, s3, local, order):
    cards = [latentq.encode(pictures, f"{s3}/set", **SMALL, rank=rank, world_size=3) for rank in order]
    assert [card.complete for card in cards] == [False, False, True]
    assert objects(f"{s3}/set") == local


def test_finished_dataset_on_a_store_is_not_written_again(pictures, s3, monkeypatch):
    latentq.encode(pictures, f"{s3}/set", **SMALL)
    monkeypatch.setattr(ObjectStore, "put", None)
    assert latentq.encode(pictures, f"{s3}/set", **SMALL).complete


class Killed(BaseException):
    """Ends a run as a signal does."""


def test_run_killed_at_any_request_is_completed_to_the_same_bytes(pictures, s3, local, monkeypatch):
    """Until the last object is there a reader sees no index, and the next run completes the dataset."""
    requests = 0
    while True:
        left, done = requests, False

        def put(store, name, data, mode, original=ObjectStore._put):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return original(store, name, data, mode)

        url = f"{s3}/{requests}"
        with monkeypatch.context() as patched:
            patched.setattr(ObjectStore, "_put", put)
            try:
                latentq.encode(pictures, url, **SMALL)
                done = True
            except Killed:
                assert "index.json" not in objects(url)
        if done:
            break
        latentq.encode(pictures, url, **SMALL)
        assert objects(url) == local
        requests += 3
    assert requests > 10


def test_part_of_a_list_that_a_killed_process_left_is_completed(pictures, s3, tmp_path, monkeypatch):
    """Before the card and in an update: only a list that a card names is whole."""
    monkeypatch.setattr("latentq.run.sample_list.MAX_PART", 5)
    first = sorted(path for path in pictures.rglob("*") if path.is_file())[0]
    for options in (SMALL, {"update": True, "progress": None}):
        latentq.encode(pictures, tmp_path / "local", **options)
        left = 2 if options is SMALL else 1

        def put(store, name, data, mode, original=ObjectStore._put):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return original(store, name, data, mode)

        with monkeypatch.context() as patched:
            patched.setattr(ObjectStore, "_put", put)
            with pytest.raises(Killed):
                latentq.encode(pictures, f"{s3}/set", **options)
        latentq.encode(pictures, f"{s3}/set", **options)
        assert objects(f"{s3}/set") == files(tmp_path / "local")
        (first.parent / f"zz{first.suffix}").write_bytes(first.read_bytes())


def test_list_that_is_published_is_not_put_again(pictures, s3, monkeypatch):
    latentq.encode(pictures, f"{s3}/set", **SMALL, rank=0, world_size=2)
    names = []

    def put(store, name, data, mode, original=ObjectStore._put):
        names.append(name)
        return original(store, name, data, mode)

    monkeypatch.setattr(ObjectStore, "_put", put)
    latentq.encode(pictures, f"{s3}/set", **SMALL, rank=1, world_size=2)
    assert not [name for name in names if name.startswith("list/")]


@pytest.mark.parametrize("options", [{}, {"size": None, "buckets": [[64, 64], [64, 72], [48, 96]]}])
def test_attempts_of_other_bytes_never_mix(pictures, s3, tmp_path, options):
    """A dead attempt of other bytes left every file of a unit but its index: the unit is published beside them."""
    latentq.encode(pictures, tmp_path / "local", **SMALL | options)
    local = files(tmp_path / "local")
    store = ObjectStore(f"{s3}/set")
    for name, data in local.items():
        if name.startswith("00001/") and not name.endswith("index.json"):
            store.put(name, data[:-1] + b"?")
    latentq.encode(pictures, f"{s3}/set", **SMALL | options)
    stored = objects(f"{s3}/set")
    shards = sorted(name for name in local if name.startswith("00001/shard."))
    assert all(stored[name][-1:] == b"?" for name in shards)
    names = [shard["raw_data"]["basename"] for shard in json.loads(stored["00001/index.json"])["shards"]]
    assert not {f"00001/{name}" for name in names} & {*shards}
    assert [stored[f"00001/{name}"] for name in names] == [local[name] for name in shards]
    assert stored["latents.toml"] == local["latents.toml"]
    folder = tmp_path / "copy"
    for name, data in stored.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert main(["verify", f"{s3}/set", "--quiet"]) == 0
    unlisted = [latentq.mds.Finding(name, 0, "the index does not list the shard") for name in shards]
    assert latentq.mds.verify(folder) == unlisted
    ours, theirs = latentq.LatentDataset(folder), latentq.LatentDataset(tmp_path / "local")
    for index in range(len(theirs)):
        assert np.array_equal(ours[index]["latent"], theirs[index]["latent"])


def test_unit_that_another_process_publishes_first_stays(pictures, s3, local, monkeypatch):
    store = ObjectStore(f"{s3}/set")
    publish = mirror.Mirror.publish_unit

    def late(self, name):
        if name == "00001":
            for file, data in local.items():
                if file.startswith("00001/"):
                    store.put(file, data)
        return publish(self, name)

    monkeypatch.setattr(mirror.Mirror, "publish_unit", late)
    assert latentq.encode(pictures, f"{s3}/set", **SMALL).complete
    assert objects(f"{s3}/set") == local


def test_bytes_of_a_unit_that_another_process_published_are_not_counted(pictures, s3, local, monkeypatch):
    store = ObjectStore(f"{s3}/set")
    publish, counts = mirror.Mirror.publish_unit, []

    def late(self, name):
        if name == "00001":  # of another attempt: its index has other bytes
            for file, data in local.items():
                if file.startswith("00001/"):
                    store.put(file, data + b" " * file.endswith("index.json"))
        return publish(self, name)

    monkeypatch.setattr(mirror.Mirror, "publish_unit", late)
    monkeypatch.setattr(Progress, "wrote", lambda _, count: counts.append(count))
    latentq.encode(pictures, f"{s3}/set", **SMALL)
    others = [len(data) for name, data in local.items() if name.startswith(("00000/", "00002/"))]
    assert sum(counts) == sum(others)


def test_first_card_wins(pictures, s3, local, monkeypatch):
    """A process whose card comes second uses the first one's quantizers."""
    store = ObjectStore(f"{s3}/set")
    publish = mirror.Mirror.publish_plan
    other = {**SMALL, "calibration": 3}
    latentq.encode(pictures, f"{s3}/other", **other)
    first = ObjectStore(f"{s3}/other").get("latents.toml")
    assert first != local["latents.toml"]

    def late(self):
        monkeypatch.setattr(mirror.Mirror, "publish_plan", publish)
        latentq.encode(pictures, f"{s3}/set", **SMALL, rank=1, world_size=2)
        return publish(self)

    monkeypatch.setattr(mirror.Mirror, "publish_plan", late)
    latentq.encode(pictures, f"{s3}/set", **SMALL, rank=0, world_size=2)
    assert store.get("latents.toml") == local["latents.toml"]
    assert objects(f"{s3}/set") == local


def test_update_on_a_store_is_that_of_a_folder(pictures, s3, tmp_path):
    (pictures / "new").mkdir()
    latentq.encode(pictures, tmp_path / "local", **SMALL)
    latentq.encode(pictures, f"{s3}/set", **SMALL)
    first = sorted(path for path in pictures.rglob("*") if path.is_file())[0]
    (first.parent / f"zz{first.suffix}").write_bytes(first.read_bytes())
    options = {"update": True, "progress": None}
    latentq.encode(pictures, tmp_path / "local", **options)
    latentq.encode(pictures, f"{s3}/set", **options)
    assert objects(f"{s3}/set") == files(tmp_path / "local")


@pytest.mark.parametrize("killed_at", ["latents.next.toml", "index.json", "rejects.tsv", "latents.toml"])
def test_update_killed_while_it_finishes_is_completed(pictures, s3, tmp_path, monkeypatch, killed_at):
    latentq.encode(pictures, tmp_path / "local", **SMALL)
    latentq.encode(pictures, f"{s3}/set", **SMALL)
    first = sorted(path for path in pictures.rglob("*") if path.is_file())[0]
    (first.parent / f"zz{first.suffix}").write_bytes(first.read_bytes())
    latentq.encode(pictures, tmp_path / "local", update=True, progress=None)

    def put(store, name, data, mode, original=ObjectStore._put):
        if name == killed_at:
            raise Killed
        return original(store, name, data, mode)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "_put", put)
        with pytest.raises(Killed):
            latentq.encode(pictures, f"{s3}/set", update=True, progress=None)
    latentq.encode(pictures, f"{s3}/set", update=True, progress=None)
    assert objects(f"{s3}/set") == files(tmp_path / "local")


def test_other_objects_are_refused(pictures, s3):
    ObjectStore(f"{s3}/set").put("notes.txt", b"")
    with pytest.raises(MismatchError, match=rf"^{s3}/set holds something else \(notes.txt\): name a place"):
        latentq.encode(pictures, f"{s3}/set", **SMALL)


@pytest.mark.parametrize("name", ["0/00.jpg", "00000/00.jpg"])
def test_numbered_folders_of_images_are_no_units(name, pictures, s3):
    ObjectStore(f"{s3}/set").put(name, b"")
    with pytest.raises(MismatchError, match=rf"^{s3}/set holds something else \({name}\): name a place"):
        latentq.encode(pictures, f"{s3}/set", **SMALL)


@pytest.mark.parametrize("url", ["http://host/set", "hf://datasets/owner/set"])
def test_urls_that_cannot_be_written_make_no_folder(url, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{url} cannot be written to: name a folder, or a URL of s3://"):
        latentq.encode(pictures, url, **SMALL)
    assert [*tmp_path.iterdir()] == [pictures]


def test_errors_name_the_url(pictures, s3):
    latentq.encode(pictures, f"{s3}/set", **SMALL)
    with pytest.raises(MismatchError, match=rf"^{s3}/set was made with .* = 64; this run has 32"):
        latentq.encode(pictures, f"{s3}/set", **SMALL | {"size": 32})


def test_bucket_that_does_not_exist_is_named(pictures, s3):
    with pytest.raises(OSError, match="there is no such bucket: 's3://no-such-bucket/set'"):
        latentq.encode(pictures, "s3://no-such-bucket/set", **SMALL)


def test_options_come_from_the_call_too(pictures, s3, s3_server, monkeypatch, local):
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_REGION"):
        monkeypatch.delenv(name)
    options = {"endpoint": s3_server, "allow_http": "true", "region": "us-east-1"}
    assert latentq.encode(pictures, f"{s3}/set", storage_options=options, **SMALL).complete


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("s3://bucket-0/set", {"no_such": "1"}, "Configuration key: 'no_such' is not valid for store 'S3'"),
        ("folder", {"endpoint": "http://x"}, "storage options are for URLs, and folder is a folder"),
    ],
)
def test_wrong_options_are_named(pictures, out, options, words):
    with pytest.raises(ValueError, match=words):
        latentq.encode(pictures, out, storage_options=options, **SMALL)


def test_temporary_folder_is_removed(pictures, s3, tmp_path, monkeypatch):
    """That of a killed process of this machine too, at the next run."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    latentq.encode(pictures, f"{s3}/set", **SMALL)
    assert not list(tmp_path.glob("latentq-*"))
    with mirror.mirrored(f"{s3}/set") as (folder, _):
        dead = folder.parent.with_name(f"{folder.parent.name}-dead")
        dead.mkdir()
        (dead / "lock").touch()
        latentq.encode(pictures, f"{s3}/set", **SMALL)
        assert [*tmp_path.glob("latentq-*")] == [folder.parent]  # a process that lives keeps its own


def test_none_stored_is_told_with_the_url(s3, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    with pytest.raises(LatentqError, match="none of 1 sample can be encoded"):
        latentq.encode(tmp_path / "bad", f"{s3}/set", **SMALL)


def test_command_makes_a_dataset_on_a_store(pictures, s3, s3_server, capsys):
    command = ["encode", str(pictures), f"{s3}/set", "--size", "64", "--quiet", "--storage-option"]
    assert main([*command, f"endpoint={s3_server}"]) == 0
    size = size_text(sum(size for _, size in ObjectStore(f"{s3}/set").files()))
    assert capsys.readouterr().out.startswith(f"{s3}/set: 12 samples, no rejects, {size}; 12 images in ")
    assert main([*command, "endpoint"]) == 2
    assert capsys.readouterr().err == "latentq: --storage-option must be KEY=VALUE, not endpoint\n"


def test_shards_of_images_on_a_store_are_those_of_a_folder(pictures, s3, tmp_path):
    options = {"min_size": 16, "unit_size": 5, "progress": None}
    latentq.shards(pictures, tmp_path / "local", **options)
    for rank in (1, 0):
        latentq.shards(pictures, f"{s3}/shards", **options, rank=rank, world_size=2)
    assert objects(f"{s3}/shards") == files(tmp_path / "local")
