"""Sources on an object store: every kind gives what the same source gives from a folder."""

import gzip
import json
import os
import sys
import threading
from pathlib import Path

import pytest

import latentq
from conftest import contents, paint
from latentq import LatentqError, MismatchError
from latentq.cli.main import main
from latentq.sources import Captions, open_source
from latentq.sources.listing import read_sample
from latentq.store import blocks, files
from latentq.store.files import Stores, open_bytes
from latentq.store.objects import ObjectStore
from support.archive_making import make_archive, make_tar, with_captions
from support.fault_proxy import FaultProxy
from support.hub_server import Repository, Server
from support.listing import listed

SMALL = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 5, "progress": None}


def put_all(folder: Path, url: str) -> None:
    """Put every file below a folder under a URL."""
    store = ObjectStore(url)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)


def make_folder(folder, pictures):
    for index, (name, data) in enumerate(pictures.items()):
        path = folder / "abc"[index % 3] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"picture {name}")
    (folder / "a" / "readme.md").write_text("no picture")
    (folder / "a" / "unnamed").write_bytes(next(iter(pictures.values())))
    (folder / "a" / "unnamed.txt").write_text("a picture without a suffix")
    (folder / "a" / ".hidden").mkdir()
    (folder / "a" / ".hidden" / "x.jpg").write_bytes(b"hidden")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "x.jpg").write_bytes(b"junk")
    (folder / "b" / "broken é.jpg").write_bytes(b"no picture")
    (folder / "b" / "broken é.jpg.txt").write_text("broken")


def make_table(folder, pictures):
    make_folder(folder / "images", pictures)
    rows = [f"images/{'abc'[i % 3]}/{name},{i % 2},text {i}" for i, name in enumerate(pictures)]
    rows[2:2] = ["images/none.jpg,0,missing", "images/a/../b/broken é.jpg,1,broken"]
    (folder / "table.csv").write_text("\n".join(["path,label,caption", *rows]))


def make_tars(folder, pictures):
    members = [*with_captions(pictures)]
    make_tar(folder / "1.tar", members[:6])
    make_tar(folder / "2.tar", [*members[6:], ("bad.jpg", b"no picture"), ("bad.txt", b"bad"), ("alone.txt", b"?")])
    (folder / "3.tar").write_bytes((folder / "1.tar").read_bytes()[:-20_000])  # cut short


def make_gzip(folder, pictures):
    make_archive(folder / "1.tgz", [*with_captions(pictures)])


def make_zips(folder, pictures):
    members = [*with_captions(pictures)]
    make_archive(folder / "1.zip", members[:6])
    make_archive(folder / "2.zip", members[6:])


def make_parquet(folder, pictures):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for number in range(2):
        chosen = [*pictures.items()][number::2]
        table = pa.table(
            {
                "image": [{"bytes": data, "path": name} for name, data in chosen],
                "label": [index % 3 for index in range(len(chosen))],
                "caption": [f"picture {name}" for name, _ in chosen],
            }
        )
        pq.write_table(table, folder / f"{number}.parquet", row_group_size=3)


def make_mds(folder, pictures):
    with latentq.mds.Writer(folder, {"jpg": "jpeg", "caption": "str"}, hashes=["xxh3_64"], size_limit=9000) as out:
        for name, data in pictures.items():
            out.write({"jpg": data, "caption": f"picture {name}"})


KINDS = {
    "folder": (make_folder, "", {}),
    "captioned folder": (make_folder, "", {"captions": "txt"}),
    "table": (make_table, "table.csv", {}),
    "tar": (make_tars, "*.tar", {}),
    "tars in a folder": (make_tars, "", {}),
    "one tar": (make_tars, "2.tar", {}),
    "gzip": (make_gzip, "1.tgz", {}),
    "zip": (make_zips, "[0-9].zip", {}),
    "parquet": (make_parquet, "*.parquet", {}),
    "mds": (make_mds, "", {}),
    "buckets": (make_folder, "", {"size": None, "buckets": [[64, 64], [64, 72], [48, 96]]}),
    "tar in buckets": (make_tars, "*.tar", {"size": None, "buckets": [[64, 64], [64, 72], [48, 96]]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_dataset_of_a_source_on_a_store_is_that_of_a_folder(kind, pictures_made, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 1 << 14)
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    make, name, options = KINDS[kind]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in", pictures_made)
    put_all(tmp_path / "in", f"{s3}/some/where")
    here, there = (str(tmp_path / "in" / name) if name else tmp_path / "in"), f"{s3}/some/where/{name}"
    ours, theirs = (
        listed(open_source(here, captions=options.get("captions"))),
        listed(open_source(there, captions=options.get("captions"))),
    )
    assert theirs == ours
    latentq.encode(here, tmp_path / "here", **SMALL | options)
    latentq.encode(there, tmp_path / "there", **SMALL | options)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    if "buckets" not in kind:
        shards = {"min_size": 16, "unit_size": 5, "progress": None, "captions": options.get("captions")}
        latentq.shards(here, tmp_path / "images here", **shards)
        latentq.shards(there, tmp_path / "images there", **shards)
        assert contents(tmp_path / "images there") == contents(tmp_path / "images here")


def test_table_here_names_objects(pictures_made, s3, tmp_path):
    make_folder(tmp_path / "in", pictures_made)
    put_all(tmp_path / "in", f"{s3}/images")
    names = [path.relative_to(tmp_path / "in") for path in sorted((tmp_path / "in").rglob("*.jpg"))]
    (tmp_path / "t.tsv").write_text("".join(f"{s3}/images/{name}\n" for name in [*names, "none.jpg"]))
    source = open_source(tmp_path / "t.tsv")
    samples = listed(source).samples
    assert [sample.bytes for sample in samples] == [*[(tmp_path / "in" / name).stat().st_size for name in names], None]
    assert source.data(samples[0]) == (tmp_path / "in" / names[0]).read_bytes()


def test_table_on_a_store_names_no_file_of_this_machine(s3, tmp_path):
    paint(tmp_path / "a.jpg", 1)
    ObjectStore(s3).put("t.csv", f"path\n{tmp_path}/a.jpg\n".encode())
    with pytest.raises(LatentqError, match=r"t\.csv, line 2: .*a\.jpg is a path on this machine"):
        listed(open_source(f"{s3}/t.csv"))


def test_parquet_names_objects(s3, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    paint(tmp_path / "a.jpg", 1)
    ObjectStore(s3).put("a.jpg", tmp_path / "a.jpg")
    rows = [{"bytes": None, "path": f"{s3}/a.jpg"}, {"bytes": None, "path": f"{s3}/none.jpg"}]
    pq.write_table(
        pa.table({"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}),
        tmp_path / "a.parquet",
    )
    source = open_source(tmp_path / "a.parquet")
    there, missing = listed(source).samples
    assert source.data(there) == (tmp_path / "a.jpg").read_bytes()
    with pytest.raises(LatentqError, match=r"none\.jpg cannot be read: there is no such object"):
        source.data(missing)


CAPTIONS = {
    "c.jsonl": lambda rows: "\n".join(json.dumps({"file": name, "caption": text}) for name, text in rows).encode(),
    "c.csv": lambda rows: "\n".join(["file,caption", *(",".join(row) for row in rows)]).encode(),
    "c.json": lambda rows: json.dumps([{"file": name, "caption": text} for name, text in rows]).encode(),
}


@pytest.mark.parametrize("name", CAPTIONS)
def test_captions_come_from_a_store(name, pictures_made, s3, tmp_path):
    path = make_archive(tmp_path / "a.tar", pictures_made.items())
    ObjectStore(s3).put(name, CAPTIONS[name]([(picture, f"text {picture}") for picture in pictures_made]))
    for captions in (f"{s3}/{name}", f"{s3}/{name}:file,caption", Captions(f"{s3}/{name}")):
        samples = listed(open_source(path, captions=captions)).samples
        assert [sample.caption for sample in samples] == [f"text {picture}" for picture in pictures_made]


def test_class_names_come_from_a_store(pictures, s3):
    ObjectStore(s3).put("names.txt", b"ant the ant\n")
    texts = {s.label: s.label_text for s in listed(open_source(pictures, class_names=f"{s3}/names.txt")).samples}
    assert texts == {0: "the ant", 1: "bee", 2: "cat"}


def test_ranks_share_a_source_on_a_store_and_a_run_is_resumed(pictures_made, s3, tmp_path):
    make_tars(tmp_path, pictures_made)
    put_all(tmp_path, f"{s3}/in")
    latentq.encode(str(tmp_path / "*.tar"), tmp_path / "local", **SMALL)
    for rank in (1, 0, 1):
        latentq.encode(f"{s3}/in/*.tar", f"{s3}/out", **SMALL, rank=rank, world_size=2)
    store = ObjectStore(f"{s3}/out")
    local = {name: data for name, data in contents(tmp_path / "local").items() if not name.endswith("/")}
    assert {name: store.get(name) for name, _ in store.files()} == local


def test_output_in_the_source_is_not_listed(pictures, s3, tmp_path):
    put_all(pictures, f"{s3}/in")
    latentq.encode(pictures, tmp_path / "local", **SMALL)
    for _ in range(2):
        latentq.encode(f"{s3}/in", f"{s3}/in/out", **SMALL)
    assert ObjectStore(f"{s3}/in/out").get("latents.toml") == (tmp_path / "local" / "latents.toml").read_bytes()


def test_update_takes_new_changed_and_removed_objects(pictures, s3, tmp_path):
    put_all(pictures, f"{s3}/in")
    names = sorted(path.relative_to(pictures).as_posix() for path in pictures.rglob("*.*"))
    for source, out in ((pictures, "here"), (f"{s3}/in", "there")):
        latentq.encode(source, tmp_path / out, **SMALL)
    paint(pictures / "ant" / "new.png", 99)
    paint(pictures / names[0], 98, (40, 50))
    same_size = bytearray((pictures / names[3]).read_bytes())
    same_size[-30] ^= 1
    (pictures / names[3]).write_bytes(same_size)
    (pictures / names[-1]).unlink()
    ObjectStore(f"{s3}/in").delete(names[-1])
    put_all(pictures, f"{s3}/in")
    for source, out in ((pictures, "here"), (f"{s3}/in", "there")):
        latentq.encode(source, tmp_path / out, update=True, check_content=True, progress=None)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_gzip_on_a_store_is_compared_in_order(pictures_made, s3, tmp_path, monkeypatch):
    """Its members are hashed in one pass: threads that read them out of order would decompress it again and again."""
    ObjectStore(s3).put("a.tgz", make_archive(tmp_path / "a.tgz", pictures_made.items()))
    card = latentq.encode(f"{s3}/a.tgz", tmp_path / "out", **SMALL)
    opens, gzip_file = [], gzip.GzipFile
    monkeypatch.setattr(gzip, "GzipFile", lambda **args: opens.append(args) or gzip_file(**args))
    assert latentq.encode(f"{s3}/a.tgz", tmp_path / "out", update=True, check_content=True, progress=None) == card
    assert len(opens) == 2  # listed, and compared


def test_more_objects_than_a_page_of_a_listing(s3):
    """2,100 keys come in three pages, in the order of a walk through folders."""
    from moto.s3.models import s3_backends

    backend = s3_backends["123456789012"]["aws"]  # of the server's, which is in this process
    names = [f"{'abé'[n % 3]}/{n // 100}-{n}.png" for n in range(2100)]
    for name in names:
        backend.put_object(s3.removeprefix("s3://"), f"many/{name}", b"x")
    samples = listed(open_source(f"{s3}/many")).samples
    assert [sample.key for sample in samples] == sorted(names, key=os.fsencode)
    assert {sample.label_text for sample in samples} == {*"abé"}


def test_listing_that_is_cut_off_goes_on(pictures, s3, monkeypatch):
    """obstore's stream of pages is over after an error: what follows must not be taken for the end."""
    put_all(pictures, f"{s3}/in")
    monkeypatch.setattr("latentq.store.objects._PAGE", 5)
    monkeypatch.setattr("latentq.store.objects._FIRST_WAIT", 0.01)
    store = ObjectStore(f"{s3}/in")
    whole = [entry.name for entry in store.list()]
    from obstore.exceptions import GenericError

    pages, failures = store._obstore.list, 2

    def failing(*args, **kwargs):
        nonlocal failures
        yield next(iterator := iter(pages(*args, **kwargs)))
        if failures:
            failures -= 1
            raise GenericError("cut off")
        yield from iterator

    class Obstore:
        list = staticmethod(failing)

    store._obstore = Obstore
    assert [entry.name for entry in store.list()] == whole
    assert not failures


@pytest.mark.parametrize("kind", ["folder", "tar", "gzip", "zip", "parquet", "table", "mds"])
def test_failing_requests_of_a_source_are_made_again(kind, pictures_made, s3, s3_server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 1 << 13)
    make, name, _ = KINDS[kind]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in", pictures_made)
    put_all(tmp_path / "in", f"{s3}/in")
    here = str(tmp_path / "in" / name) if name else tmp_path / "in"
    latentq.encode(here, tmp_path / "here", **SMALL)
    proxy = FaultProxy(s3_server, probability=0.06, seed=1)
    try:
        latentq.encode(f"{s3}/in/{name}", tmp_path / "there", storage_options={"endpoint": proxy.url}, **SMALL)
    finally:
        proxy.close()
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert any(proxy.faults.values())


@pytest.mark.parametrize("kind", ["folder", "tar", "gzip", "zip", "parquet", "table"])
def test_store_that_goes_away_makes_no_rejects(kind, pictures_made, s3, tmp_path, monkeypatch):
    """A run on a dead or forbidding store ends, and the same command completes the dataset to the same bytes."""
    make, name, _ = KINDS[kind]
    (tmp_path / "in").mkdir()
    make(tmp_path / "in", pictures_made)
    put_all(tmp_path / "in", f"{s3}/in")
    here = str(tmp_path / "in" / name) if name else tmp_path / "in"
    latentq.encode(here, tmp_path / "here", **SMALL)
    from latentq.system.faults import DeniedError

    left = 0
    for error in (OSError(5, "the store is away", "s3://x"), DeniedError(13, "denied", "s3://x")):

        def failing(store, name, request, original=ObjectStore._call, error=error):
            nonlocal left
            left -= 1
            if left < 0:
                raise error
            return original(store, name, request)

        with monkeypatch.context() as patched:
            patched.setattr(ObjectStore, "_call", failing)
            for count in range(3, 60, 7):
                left = count
                try:
                    latentq.encode(f"{s3}/in/{name}", tmp_path / "there", **SMALL)
                    break
                except OSError:
                    continue
        latentq.encode(f"{s3}/in/{name}", tmp_path / "there", **SMALL)
        assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_object_that_is_replaced_while_it_is_read_is_told(pictures_made, s3, tmp_path):
    """By its ETag, even if the size is the same; a gone one too."""
    data = make_archive(tmp_path / "a.tar", pictures_made.items()).read_bytes()
    store = ObjectStore(s3)
    store.put("a.tar", data)
    source = open_source(f"{s3}/a.tar")
    sample = listed(source).samples[0]
    store.put("a.tar", data[:-1] + b"\1")
    with pytest.raises(MismatchError, match=rf"^{s3}/a\.tar was replaced while it was read: run the same command"):
        source.data(sample)
    store.put("a.tar", b"shorter")
    with pytest.raises(MismatchError, match=r"a\.tar was replaced while it was read"):
        source.data(sample)
    store.delete("a.tar")
    with pytest.raises(MismatchError, match=rf"^{s3}/a\.tar is listed with {len(data)} bytes and is not there now"):
        source.data(sample)
    store.put("a.tar", data + bytes(512))
    with pytest.raises(
        MismatchError, match=rf"^{s3}/a\.tar is listed with {len(data)} bytes and has {len(data) + 512}"
    ):
        open_source(f"{s3}/a.tar").data(sample)


def test_image_that_is_another_now_ends_the_run(pictures, s3, tmp_path):
    put_all(pictures, f"{s3}/in")
    source = open_source(f"{s3}/in")
    sample = listed(source).samples[0]
    ObjectStore(f"{s3}/in").put(sample.key, b"other")
    with pytest.raises(MismatchError, match=rf"{sample.key} is listed with {sample.bytes} bytes and has 5 bytes now"):
        source.data(sample)
    ObjectStore(f"{s3}/in").delete(sample.key)
    with pytest.raises(MismatchError, match=r"is not there now"):
        source.deferred(sample)()


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("{s3}/none", FileNotFoundError, "No such file or directory: '{s3}/none'"),
        ("{s3}/none.tar", FileNotFoundError, "No such file or directory: '{s3}/none.tar'"),
        ("{s3}/mixed/*.tgz", FileNotFoundError, r"No such file or directory: '{s3}/mixed/\*.tgz'"),
        ("s3://no-such-bucket/x", FileNotFoundError, "there is no such bucket: 's3://no-such-bucket'"),
        ("{s3}/mixed", LatentqError, "holds files of several kinds"),
        ("{s3}/mixed/*.bin", LatentqError, "x.bin is neither a folder of images nor a table nor an archive"),
        ("{s3}/saved", LatentqError, "save_to_disk: copy it to this machine"),
        ("{s3}/double", LatentqError, "contained empty path segment"),
        ("{s3}/empty.tar", LatentqError, "hold no images: .*an empty file"),
    ],
)
def test_problems_are_told_in_one_line(name, kind, words, s3):
    import boto3

    store = ObjectStore(s3)
    for key in ("mixed/a.tar", "mixed/b.zip", "mixed/x.bin", "saved/state.json", "empty.tar"):
        store.put(key, b"")
    boto3.client("s3").put_object(Bucket=s3.removeprefix("s3://"), Key="double//a.jpg", Body=b"x")
    with pytest.raises(kind, match=words.format(s3=s3)) as error:
        listed(open_source(name.format(s3=s3)))
    assert "\n" not in str(error.value)


def test_archives_on_a_store_are_not_deleted(pictures_made, s3, tmp_path):
    ObjectStore(s3).put("a.tar", make_archive(tmp_path / "a.tar", pictures_made.items()))
    with pytest.raises(
        LatentqError, match=rf"delete_archives deletes files of this machine, and {s3}/a.tar is on a st"
    ):
        latentq.encode(f"{s3}/a.tar", tmp_path / "out", **SMALL, delete_archives=True)


def test_command_takes_options_for_the_source(pictures, s3, s3_server, tmp_path, monkeypatch, capsys):
    put_all(pictures, f"{s3}/in")
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_REGION"):
        monkeypatch.delenv(name)
    options = ["--storage-option", f"endpoint={s3_server}", "--storage-option", "allow_http=true"]
    options += ["--storage-option", "region=us-east-1"]
    command = ["encode", f"{s3}/in", str(tmp_path / "out"), "--size", "64", "--quiet", *options]
    assert main(command) == 0
    assert main(["shards", f"{s3}/in", str(tmp_path / "shards"), "--min-size", "16", "--quiet", *options]) == 0
    assert capsys.readouterr().err == ""
    assert main(["encode", str(pictures), str(tmp_path / "other"), *options]) != 0
    assert "storage options are for URLs" in capsys.readouterr().err


def test_commands_find_originals_on_a_store(photos, s3, s3_server, tmp_path, monkeypatch, capsys):
    put_all(photos, f"{s3}/in")
    latentq.encode(photos, tmp_path / "out", **SMALL)
    put_all(tmp_path / "out", f"{s3}/out")
    for name in ("AWS_ENDPOINT_URL", "AWS_ALLOW_HTTP", "AWS_REGION"):
        monkeypatch.delenv(name)
    options = ["--storage-option", f"endpoint={s3_server}", "--storage-option", "allow_http=true"]
    options += ["--storage-option", "region=us-east-1"]
    for command, *arguments in (
        ["decode", "-o", str(tmp_path / "sheet.png")],
        ["measure", "--bits", "8"],
        ["info", "--storage"],
        ["report", "-o", str(tmp_path / "page.html")],
    ):
        outputs = []
        for dataset, source, given in (
            (str(tmp_path / "out"), str(photos), []),
            (str(tmp_path / "out"), f"{s3}/in", options),
            (f"{s3}/out", f"{s3}/in", options),
        ):
            assert main([command, dataset, *arguments, "--source", source, *given, "--quiet"]) == 0
            outputs.append(capsys.readouterr())
        assert not any(output.err for output in outputs)
        assert command == "report" or outputs[0] == outputs[1] == outputs[2]


def test_patterns_are_those_of_glob(s3, tmp_path):
    import glob

    names = ["a.tar", "b.tar", ".c.tar", "d/a.tar", "d/e/f.tar", ".g/h.tar", "d/[1].tar", "d/é.tar"]
    store = ObjectStore(f"{s3}/in")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
        store.put(name, b"")
    for pattern in ("*.tar", "**/*.tar", "d/*.tar", "*/e/*", "[ab].tar", "d/[[]1].tar", "?.tar", "**", ".*", "d/**"):
        ours = sorted(str(file) for _, file in Stores().matching(f"{s3}/in/{pattern}"))
        found = glob.glob(str(tmp_path / pattern), recursive=True)  # noqa: PTH207  (which is the reference)
        assert ours == sorted(f"{s3}/in/{Path(f).relative_to(tmp_path)}" for f in found if Path(f).is_file()), pattern


def test_blocks_in_memory_are_few_and_read_ahead_goes_on_in_order(monkeypatch):
    data = bytes(range(256)) * 400
    asked = []

    def fetch(start, stop):
        asked.append((start, stop))
        return data[start:stop]

    opened = blocks.BlockBytes(fetch, len(data), block=1000, kept=8, ahead=4)
    parts = [opened.read(at, 700) for at in range(0, len(data), 700)]
    assert b"".join(parts) == data
    assert len(opened._blocks) <= 8
    assert len(asked) == len({*asked}) == -(-len(data) // 1000)  # each byte once
    asked.clear()
    assert opened.read(50_123, 7) == data[50_123:50_130]
    assert opened.read(3, 7) == data[3:10]
    assert len(asked) == 2  # nothing is read ahead of jumps
    asked.clear()
    assert opened.read(10, 90_000) == data[10:90_010]
    assert sum(stop - start for start, stop in asked) == 90_000
    assert opened.read(len(data) - 3, 10) == data[-3:]
    assert opened.read(len(data), 10) == b""
    opened.close()


def test_block_that_failed_is_asked_for_again():
    failures = [OSError(5, "away")]

    def fetch(start, stop):
        if failures:
            raise failures.pop()
        return bytes(stop - start)

    opened = blocks.BlockBytes(fetch, 100, block=10)
    with pytest.raises(OSError, match="away"):
        opened.read(0, 5)
    assert opened.read(0, 5) == bytes(5)


def test_any_reads_of_blocks_are_those_of_the_bytes():
    import random

    draw = random.Random(0)
    data = draw.randbytes(5000)
    opened = blocks.BlockBytes(lambda start, stop: data[start:stop], len(data), block=64, kept=4, ahead=3)
    errors = []

    def read(seed):
        draw = random.Random(seed)
        for _ in range(300):
            offset, count = draw.randrange(5100), draw.choice([0, 1, 63, 64, 65, 200, 1000])
            if opened.read(offset, count) != data[offset : offset + count]:
                errors.append((offset, count))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    opened.close()


def test_tar_from_a_store_is_read_once_for_the_list_and_in_few_requests(s3, tmp_path, monkeypatch):
    """Captions and images of a tar of 3 MB: each block is asked for once, and a unit asks for its own blocks."""
    monkeypatch.setattr(files, "BLOCK", 1 << 18)
    picture = os.urandom(60_000)
    path = make_tar(tmp_path / "a.tar", [(f"{n:03}.jpg", picture) for n in range(50)])
    ObjectStore(s3).put("a.tar", path)
    asked = []
    original = ObjectStore.read
    monkeypatch.setattr(
        ObjectStore,
        "read",
        lambda self, name, start, stop, version: asked.append(start) or original(self, name, start, stop, version),
    )
    source = open_source(f"{s3}/a.tar")
    samples = listed(source).samples
    assert len(asked) - 1 == len({*asked}) == -(-path.stat().st_size // (1 << 18))  # 1 to see that it is no gzip
    asked.clear()
    assert [source.deferred(sample)() for sample in samples[10:14]] == [picture] * 4
    assert len(asked) <= 4


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with a repository of images in class folders, and of a tar of them."""
    from huggingface_hub import constants, file_download

    paint(tmp_path / "in" / "images" / "ant" / "a.png", 1)
    paint(tmp_path / "in" / "images" / "bee" / "b é.jpg", 2, (200, 150))
    members = [(path.name, path.read_bytes()) for path in sorted((tmp_path / "in").rglob("*.*"))]
    (tmp_path / "in" / "tars").mkdir()
    make_tar(tmp_path / "in" / "tars" / "1.tar", members)
    there = {name: data for name, data in contents(tmp_path / "in").items() if not name.endswith("/")}
    with Server({"me/photos": Repository({"main": there})}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield server


@pytest.mark.parametrize("name", ["images", "tars/*.tar", "tars/1.tar"])
def test_source_on_the_hub_is_that_of_a_folder(name, hub, tmp_path):
    latentq.encode(str(tmp_path / "in" / name), tmp_path / "here", **SMALL)
    latentq.encode(f"hf://datasets/me/photos/{name}", tmp_path / "there", **SMALL)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    with pytest.raises(FileNotFoundError, match="No such file"):
        open_source("hf://datasets/me/photos/none")


@pytest.mark.parametrize("name", ["images", "tars/1.tar"])
def test_hub_that_refuses_makes_no_rejects(name, hub, tmp_path):
    source = open_source(f"hf://datasets/me/photos/{name}")
    samples = listed(source).samples
    hub.repositories["me/photos"].token = "other"
    with pytest.raises(PermissionError, match="accept its terms on its page"):
        read_sample(source, samples[0])


def test_range_of_a_file_on_the_hub_that_is_cut_short_is_told(hub):
    file = Stores().file("hf://datasets/me/photos/tars/1.tar")
    assert file.read(5, 600) == hub.repositories["me/photos"].files["main"]["tars/1.tar"][5:600]
    path = [path for _, path, _ in hub.log if path.startswith("/bucket/")][-1]
    hub.faults[path] += ["short"]
    assert len(file.read(5, 600)) == 595
    hub.faults[path] += 3 * ["short"]
    with pytest.raises(OSError, match=r"of 595 bytes arrived: 'hf://datasets/me/photos/tars/1\.tar'"):
        file.read(5, 600)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(LatentqError, match=r"^s3://bucket needs obstore, which is not installed: pip install 'obstore"):
        open_source("s3://bucket/x.tar")


def test_gzip_stream_of_a_store_is_that_of_the_file(s3):
    data = os.urandom(100_000)
    ObjectStore(s3).put("a.gz", gzip.compress(data))
    file = Stores().file(f"{s3}/a.gz")
    with gzip.GzipFile(fileobj=files.open_stream(file, block=1000)) as stream:
        assert stream.read() == data
    assert open_bytes(file).read(0, 2) == b"\x1f\x8b"
