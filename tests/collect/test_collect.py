"""`latentq collect`: whatever a server does, each file arrives intact or is listed as failed.

Over 500 lines: the tests download from one server, the fixture `server`.
"""

import base64
import errno
import fcntl
import hashlib
import io
import os
import random
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zlib

import pytest

from conftest import contents
from latentq import LatentqError, MismatchError
from latentq.cli.main import main
from latentq.collect import collect, download
from latentq.system.progress import TransferProgress
from support.hub_server import Repository, Server

CC12M = "pixparse/cc12m-wds"


def data_of(seed, size=300_000):
    return random.Random(seed).randbytes(size)


def zip_of(seed, size=300_000):
    """Returns bytes that begin as a zip does."""
    return b"PK\3\4" + data_of(seed, size - 4)


def tar_of(seed, size=50_000):
    """Returns bytes that begin as a tar does."""
    return tarfile.TarInfo(f"{seed}").tobuf() + data_of(seed, size - 512)


@pytest.fixture
def server(monkeypatch):
    files = {f"cc12m-train-{number:04}.tar": data_of(number) for number in range(23)}
    files["_info.json"] = b"{}"
    with Server({CC12M: Repository({"main": files})}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)
        yield server


def files_of(server, name=CC12M, revision="main"):
    return server.repositories[name].files[revision]


def arrived(folder):
    return {name: data for name, data in contents(folder).items() if name != "collect.toml" and not name.endswith("/")}


def bucket(server, path, name=CC12M):
    return f"/bucket/{name}/{server.repositories[name].commit('main')}/{path}"


def test_the_small_subset_arrives_complete(server, tmp_path, capsys):
    assert main(["collect", "cc12m", str(tmp_path / "cc12m"), "--subset", "small"]) == 0
    assert arrived(tmp_path / "cc12m") == files_of(server)
    assert "24 files, 6.9 MB" in capsys.readouterr().out


def test_existing_files_are_not_downloaded_again(server, tmp_path):
    collect("cc12m", tmp_path, ids=[0, 1])
    before = server.sent.copy()
    done = collect("cc12m", tmp_path, ids=[0, 1, 2])
    assert (done.files, done.failed) == (4, [])
    assert {path for path in server.sent if server.sent[path] != before[path]} == {
        bucket(server, "cc12m-train-0002.tar")
    }


@pytest.mark.parametrize("fault", ["drop", "short", "wrong", "busy", "hang up", 503, 500, 403])
def test_temporary_faults_of_a_server_are_survived(server, tmp_path, fault):
    for number in (0, 1):
        server.faults[bucket(server, f"cc12m-train-{number:04}.tar")] = [fault, fault]
    server.faults["/api/datasets/" + CC12M + "/revision/main"] = ["busy", 503, "hang up"]
    done = collect("cc12m", tmp_path, ids=[0, 1, 2])
    assert (done.files, done.failed) == (4, [])
    assert all(data == files_of(server)[name] for name, data in arrived(tmp_path).items())


@pytest.mark.parametrize("seed", range(3))
def test_with_random_faults_every_file_arrives_or_is_listed_as_failed(server, tmp_path, seed):
    moods = random.Random(seed)
    kinds = ["drop", "short", "wrong", "busy", "hang up", "html", 403, 404, 500, 503]
    for path in [bucket(server, name) for name in files_of(server)]:
        server.faults[path] = moods.choices(kinds, k=moods.randrange(12))
    done = collect("cc12m", tmp_path, subset="small")
    downloaded = {name: data for name, data in arrived(tmp_path).items() if name in files_of(server)}
    assert all(data == files_of(server)[name] for name, data in downloaded.items())
    assert len(downloaded) + len(done.failed) == 24
    for _ in range(12):
        done = collect("cc12m", tmp_path, retry_failed=True)
    assert done.failed == []
    assert arrived(tmp_path) == files_of(server)


def test_the_retry_count_starts_again_with_every_new_byte(server, tmp_path):
    name, path = "cc12m-train-0000.tar", bucket(server, "cc12m-train-0000.tar")
    files_of(server)[name] = data_of(0, 1_500_000)
    server.faults[path] = ["drop"] * 12  # each after 100,000 bytes
    assert collect("cc12m", tmp_path, ids=[0]).failed == []
    ranges = [int(asked[len("bytes=") : -1]) for _, at, asked in server.log if at == path and asked]
    assert ranges == sorted(ranges)
    assert len(ranges) == 12
    assert server.sent[path] < 3_000_000


def test_failed_files_are_listed_and_can_be_retried_alone(server, tmp_path, capsys):
    del files_of(server)["cc12m-train-0003.tar"]
    server.faults[bucket(server, "cc12m-train-0001.tar")] = ["wrong"] * 99
    server.faults[bucket(server, "cc12m-train-0002.tar")] = [503] * 99
    folder = str(tmp_path)
    assert main(["collect", "cc12m", folder, "--ids", "0-4"]) == 1
    output = capsys.readouterr()
    assert "3 files" in output.out
    assert output.err.splitlines()[-1].startswith("latentq: 3 files failed, see ")
    failed = [line.split("\t") for line in (tmp_path / "failed.tsv").read_text().splitlines()]
    assert [line[0] for line in failed] == ["1", "2", "3"]
    assert failed[0][1].endswith("/cc12m-train-0001.tar")
    assert "sha256" in failed[0][2]
    assert "503" in failed[1][2]
    assert failed[2][2] == f"cc12m-train-0003.tar is not in {CC12M} at main"
    assert not (tmp_path / "cc12m-train-0001.tar").exists()
    # A run on other files keeps them listed.
    assert main(["collect", "cc12m", folder, "--ids", "5"]) == 0
    assert len((tmp_path / "failed.tsv").read_text().splitlines()) == 3
    server.faults.clear()
    server.log.clear()
    assert main(["collect", "cc12m", folder, "--retry-failed"]) == 1
    fetched = {path for _, path, _ in server.log if path.startswith("/bucket/")}
    assert fetched == {bucket(server, f"cc12m-train-{number:04}.tar") for number in (1, 2)}
    assert [line.split("\t")[0] for line in (tmp_path / "failed.tsv").read_text().splitlines()] == ["3"]


def test_retries_end_if_the_content_is_always_wrong(server, tmp_path):
    path = bucket(server, "cc12m-train-0000.tar")
    server.faults[path] = ["drop", "wrong"] * 99
    [failure] = collect("cc12m", tmp_path, ids=[0]).failed
    assert "its sha256 is" in failure.reason
    assert server.sent[path] < 4 * 300_000


def test_failed_tsv_is_removed_once_nothing_has_failed(server, tmp_path):
    server.faults[bucket(server, "cc12m-train-0000.tar")] = [410]
    assert len(collect("cc12m", tmp_path, ids=[0]).failed) == 1
    assert collect("cc12m", tmp_path, ids=[0], retry_failed=True).failed == []
    assert sorted(contents(tmp_path)) == ["_info.json", "cc12m-train-0000.tar", "collect.toml"]


def test_the_error_for_a_gated_data_set_says_what_to_do(server, tmp_path, monkeypatch, capsys):
    server.repositories["JourneyDB/JourneyDB"] = Repository({"main": journeydb()}, token="mine")
    for token in ("", "another"):
        monkeypatch.setenv("HF_TOKEN", token)
        assert main(["collect", "jdb", str(tmp_path / "jdb"), "--subset", "small"]) == 1
        page = f"{server.url}/datasets/JourneyDB/JourneyDB"
        assert capsys.readouterr().err.splitlines()[-1] == (
            f"latentq: JourneyDB/JourneyDB is gated: accept its terms at {page}, and give a token of that account "
            "(HF_TOKEN, or hf auth login)"
        )
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert main(["collect", "jdb", str(tmp_path / "jdb"), "--subset", "small"]) == 0
    assert arrived(tmp_path / "jdb").items() >= journeydb().items()


def journeydb():
    names = [f"data/{split}/imgs/{number:03}.tgz" for split in ("train", "valid") for number in range(2)]
    names += ["data/train/train_anno_realease_repath.jsonl.tgz", "data/valid/valid_anno_repath.jsonl.tgz"]
    return {name: data_of(name, 9000) for name in names}


def test_an_unknown_data_set_is_named(server, tmp_path):
    with pytest.raises(LatentqError, match="has no dataset JourneyDB/JourneyDB, or hides it"):
        collect("jdb", tmp_path)


def test_a_full_disk_ends_the_run_and_the_error_says_what_to_do(server, tmp_path, monkeypatch):
    def full(path):
        if "0003" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(download, "sync", full)
        with pytest.raises(LatentqError, match=r"no space left for .*: make room, and run the same command again"):
            collect("cc12m", tmp_path, threads=1)
    server.sent.clear()
    assert collect("cc12m", tmp_path, ids=range(4), threads=1).failed == []
    assert server.sent == {}  # partial files were kept


def links(server, path, numbers, prefix="/links"):
    """Writes a list of links as on the page of Segment Anything."""
    lines = [f"sa_{number:06}.tar\t{server.url}{prefix}/{number}?sig=1%2F2\n" for number in numbers]
    path.write_text("file_name\tcdn_link\n" + "".join(lines))
    server.site |= {f"{prefix}/{number}": tar_of(number) for number in numbers}
    return str(path)


@pytest.fixture
def sa1b(server, tmp_path):
    captions = {"SA1B_caption.tar.gz": data_of("captions", 9000)}
    server.repositories["PixArt-alpha/SAM-LLaVA-Captions10M"] = Repository({"main": captions})
    return links(server, tmp_path / "links.tsv", range(20, 320))


def test_the_small_subset_is_the_first_percent_of_the_links(sa1b, tmp_path):
    assert main(["collect", "sa1b", str(tmp_path / "out"), "--links", sa1b, "--subset", "small"]) == 0
    expected = {f"sa_{number:06}.tar": tar_of(number) for number in (20, 21, 22)}
    assert arrived(tmp_path / "out") == expected | {"SA1B_caption.tar.gz": data_of("captions", 9000)}


@pytest.mark.parametrize("fault", [403, 404, "html"])
def test_expired_links_are_reported_and_a_newer_list_is_taken(server, sa1b, tmp_path, fault, capsys):
    server.faults["/links/21"] = [fault] * 9
    command = ["collect", "sa1b", str(tmp_path / "out")]
    assert main([*command, "--links", sa1b, "--ids", "20-22"]) == 1
    assert "download the list of links again from its page" in capsys.readouterr().err.splitlines()[-1]
    assert server.faults["/links/21"] == [fault] * 8  # requested once
    failed = (tmp_path / "out" / "failed.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in failed] == [["21", f"{server.url}/links/21?sig=1%2F2"]]
    newer = links(server, tmp_path / "newer.tsv", range(20, 320), "/newer")
    assert main([*command, "--links", newer, "--retry-failed"]) == 0
    assert server.sent["/newer/21"] == 50_000
    assert server.sent["/newer/20"] == 0


def test_a_file_that_is_not_a_list_of_links_is_refused(server, tmp_path):
    (tmp_path / "page.html").write_text("<html>\n<body>\n")
    for path, message in (
        ("page.html", "line 2: expected the name of a tar, a tab and its link"),
        (None, "--links FILE"),
    ):
        with pytest.raises((LatentqError, ValueError), match=message):
            collect("sa1b", tmp_path / "out", links=path and tmp_path / path)


COCO = {"/zips/val2014.zip": zip_of("val", 400_000), "/annotations/annotations_trainval2014.zip": zip_of("anno")}


def test_a_mirror_site_can_be_given(server, tmp_path):
    server.site |= {f"/mirror{path}": data for path, data in COCO.items()}
    assert main(["collect", "coco", str(tmp_path), "--site", f"{server.url}/mirror/"]) == 0
    assert arrived(tmp_path) == {path.rpartition("/")[2]: data for path, data in COCO.items()}


def test_parts_of_two_versions_of_a_file_are_never_joined(server, tmp_path):
    server.site |= COCO
    server.faults["/zips/val2014.zip"] = ["drop"] + [503] * 99
    assert len(collect("coco", tmp_path, site=server.url).failed) == 1
    server.site["/zips/val2014.zip"] = zip_of("another", 400_000)
    server.faults.clear()
    assert collect("coco", tmp_path, site=server.url).failed == []
    assert (tmp_path / "val2014.zip").read_bytes() == server.site["/zips/val2014.zip"]


@pytest.mark.parametrize("later", [400_000, 90_000])
def test_a_file_without_a_strong_validator_starts_again_from_byte_zero(server, tmp_path, later):
    server.site |= COCO
    server.headers["/zips/val2014.zip"] = {"ETag": 'W/"weak"'}
    server.faults["/zips/val2014.zip"] = ["drop"] * 2
    assert collect("coco", tmp_path, site=server.url).failed == []
    assert {asked for _, path, asked in server.log if path == "/zips/val2014.zip"} == {None}


def test_a_file_that_became_shorter_starts_again_from_byte_zero(server, tmp_path):
    server.site |= COCO
    server.headers["/zips/val2014.zip"] = {"ETag": '"careless"'}
    server.faults["/zips/val2014.zip"] = ["drop"] + [503] * 99
    collect("coco", tmp_path, site=server.url)
    server.site["/zips/val2014.zip"] = zip_of("shorter", 9000)
    server.faults.clear()
    assert collect("coco", tmp_path, site=server.url).failed == []
    assert (tmp_path / "val2014.zip").read_bytes() == server.site["/zips/val2014.zip"]


CHECKSUMS = {
    "Repr-Digest": lambda data: f"sha-256=:{base64.b64encode(hashlib.sha256(data).digest()).decode()}:",
    "Content-MD5": lambda data: base64.b64encode(hashlib.md5(data).digest()).decode(),
    "x-goog-hash": lambda data: f"crc32c=AAAAAA==,md5={base64.b64encode(hashlib.md5(data).digest()).decode()}",
    "x-amz-checksum-sha256": lambda data: base64.b64encode(hashlib.sha256(data).digest()).decode(),
    "x-amz-checksum-crc32": lambda data: base64.b64encode(zlib.crc32(data).to_bytes(4)).decode(),
}


@pytest.mark.parametrize("header", CHECKSUMS)
def test_checksums_that_a_site_sends_are_compared(server, tmp_path, header):
    server.site |= COCO
    path = "/zips/val2014.zip"
    server.headers[path] = {header: CHECKSUMS[header](COCO[path])}
    server.faults[path] = ["wrong"]
    assert collect("coco", tmp_path, site=server.url).failed == []
    assert (tmp_path / "val2014.zip").read_bytes() == COCO[path]
    assert server.sent[path] == 800_000


def test_small_files_on_the_hub_are_hashed_too(server, tmp_path):
    path = f"/datasets/{CC12M}/resolve/{server.repositories[CC12M].commit('main')}/_info.json"
    server.faults[path] = ["wrong"]
    assert collect("cc12m", tmp_path, ids=[0]).failed == []
    assert (tmp_path / "_info.json").read_bytes() == b"{}"


def test_textcaps_takes_its_own_parquet_files_or_the_converted_ones(server, tmp_path):
    names = ["default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"]
    converted = {name: data_of(name, 9000) for name in names}
    script = {"TextCaps.py": b"class TextCaps: pass", "README.md": b"#"}
    own = {f"data/{split}-00000-of-00001.parquet": data_of(split, 9000) for split in ("train", "validation", "test")}
    for number, revisions in enumerate(({"main": script, "refs/convert/parquet": converted}, {"main": script | own})):
        server.repositories["HuggingFaceM4/TextCaps"] = Repository(revisions)
        folder = tmp_path / str(number)
        assert collect("textcaps", folder).failed == []
        expected = (converted, own)[number]
        assert arrived(folder) == {name: data for name, data in expected.items() if "test" not in name}


def test_the_commit_is_recorded_and_pinned(server, tmp_path):
    collect("cc12m", tmp_path, ids=[0])
    commit = server.repositories[CC12M].commit("main")
    assert commit in (tmp_path / "collect.toml").read_text()
    server.log.clear()
    collect("cc12m", tmp_path, ids=[1])
    assert not any("/revision/" in path for _, path, _ in server.log)


def test_a_folder_takes_one_collection_and_one_process(server, tmp_path):
    collect("cc12m", tmp_path, ids=[0])
    with pytest.raises(MismatchError, match="holds cc12m; jdb needs a folder of its own"):
        collect("jdb", tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LatentqError, match="another latentq collect is working"):
        collect("cc12m", tmp_path, ids=[0])
    os.close(descriptor)


def test_an_existing_file_of_another_size_is_never_touched(server, tmp_path):
    (tmp_path / "cc12m-train-0000.tar").write_bytes(b"mine")
    [failure] = collect("cc12m", tmp_path, ids=[0]).failed
    assert "exists with 4 bytes instead of 300000: move it away" in failure.reason
    assert (tmp_path / "cc12m-train-0000.tar").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cc12m", "--ids", "2176"], "there is no archive 2176: they are 0 to 2175"),
        (["diffdb", "--ids", "0-3"], "there is no archive 0: they are 1 to 14000"),
        (["coco", "--ids", "1"], "coco takes no ids"),
        (["sa1b"], "sa1b needs its list of links, from the dataset's page: --links FILE"),
        (["cc12m", "--links", "a.tsv"], "cc12m takes no links"),
        (["jdb", "--site", "http://a"], "jdb takes no site"),
        (["jdb", "--threads", "0"], "threads must be at least 1, not 0"),
    ],
)
def test_invalid_arguments_are_refused(server, tmp_path, arguments, message, capsys):
    name, *options = arguments
    assert main(["collect", name, str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_huge_range_of_ids_is_refused_without_building_it(server, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["collect", "cc12m", str(tmp_path), "--ids", "1-20000000"])
    assert "more archives than any collection has" in capsys.readouterr().err


@pytest.mark.parametrize("site", ["127.0.0.1:80", "ftp://a", "http://"])
def test_an_invalid_address_is_not_retried(server, tmp_path, site):
    failed = collect("coco", tmp_path, site=site).failed
    assert [
        "is not an address: it must begin with http:// or https:// and a host" in each.reason for each in failed
    ] == [
        True,
        True,
    ]
    assert "given up" not in failed[0].reason


def test_without_an_answer_the_error_is_one_clear_line(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(LatentqError, match=r"does not answer for pixparse/cc12m-wds: no answer: \[Errno 111\]"):
        collect("cc12m", tmp_path, ids=[0])


def test_a_retry_after_that_is_not_a_number_is_ignored(server, tmp_path):
    assert download._retry_after("\u00b2") is None


@pytest.mark.parametrize("place", ["../../outside/train.parquet", "{}/outside/train.parquet"])
def test_file_names_from_the_hub_cannot_leave_the_folder(server, tmp_path, place):
    name, data = "HuggingFaceM4/TextCaps", data_of(1, 10)
    place = place.format(tmp_path)
    server.repositories[name] = Repository({"main": {place: data, "train.parquet": data}})
    done = collect("textcaps", tmp_path / "a" / "b")
    assert [failure.reason for failure in done.failed] == [f"{place} would lie outside {tmp_path / 'a' / 'b'}"]
    assert arrived(tmp_path / "a" / "b") == {"train.parquet": data} | {
        "failed.tsv": (tmp_path / "a" / "b" / "failed.tsv").read_bytes()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_list_of_links_may_have_no_header(server, sa1b, tmp_path):
    lines = (tmp_path / "links.tsv").read_bytes().splitlines()[1:3]
    (tmp_path / "bare.tsv").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines))
    assert collect("sa1b", tmp_path / "out", links=tmp_path / "bare.tsv").failed == []
    assert {"sa_000020.tar", "sa_000021.tar"} < set(arrived(tmp_path / "out"))


def test_a_failed_file_missing_from_the_new_list_stays_failed(server, sa1b, tmp_path, capsys):
    server.faults["/links/21"] = [404]
    command = ["collect", "sa1b", str(tmp_path / "out")]
    assert main([*command, "--links", sa1b, "--ids", "20", "21"]) == 1
    newer = links(server, tmp_path / "newer.tsv", [20])
    for _ in range(2):
        assert main([*command, "--links", newer, "--retry-failed"]) == 1
        assert "no longer among the files" in capsys.readouterr().err.splitlines()[-1]
        [line] = (tmp_path / "out" / "failed.tsv").read_text().splitlines()
        assert line.startswith("21\t")
        assert line.count("no longer") == 1
    assert main([*command, "--links", sa1b, "--retry-failed"]) == 0
    assert not (tmp_path / "out" / "failed.tsv").exists()


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_folder_or_broken_link_in_place_of_a_file_is_reported(server, tmp_path, kind):
    server.site |= COCO
    if kind == "folder":
        (tmp_path / "val2014.zip").mkdir()
    else:
        (tmp_path / "val2014.zip").symlink_to(tmp_path / "nowhere")
    [failure] = collect("coco", tmp_path, site=server.url).failed
    assert failure.reason == f"{tmp_path / 'val2014.zip'} exists and is not a file: move it away"


def test_a_web_page_in_place_of_a_hub_file_says_what_to_do(server, tmp_path):
    server.faults[bucket(server, "cc12m-train-0000.tar")] = ["html"]
    [failure] = collect("cc12m", tmp_path, ids=[0]).failed
    assert failure.reason.startswith(
        "the server sent a web page instead of the file: a proxy or a login page may be in between"
    )


def start(server, folder, home, *options):
    """Starts a process whose home, cache and temporary folders are all `home`."""
    places = {"HOME": home, "TMPDIR": home, "HF_HOME": home / "hf", "XDG_CACHE_HOME": home / "cache"}
    environment = os.environ | {name: str(path) for name, path in places.items()}
    command = [sys.executable, "-B", "-m", "latentq", "collect", "cc12m", str(folder), "--threads", "2", *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_run_killed_at_any_moment_and_started_again_gives_the_same_bytes(server, tmp_path):
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    server.rate = 500_000
    moments = random.Random(0)
    for _ in range(4):
        process = start(server, out, home, "--ids", "0-7")
        before, wanted = sum(server.sent.values()), moments.randrange(1, 500_000)
        while process.poll() is None and sum(server.sent.values()) < before + wanted:
            time.sleep(0.002)
        process.kill()
        process.wait()
    server.rate = 0
    assert start(server, out, home, "--ids", "0-7").wait() == 0
    assert arrived(out) == {name: files_of(server)[name] for name in arrived(out)}
    assert len(arrived(out)) == 9
    assert sum(server.sent.values()) < 8 * 300_000 + 4 * 2 * 200_000  # partial files were kept
    assert [*home.iterdir()] == []


def test_progress_shows_each_archive_and_the_total(server, tmp_path, monkeypatch):
    monkeypatch.setattr("latentq.system.progress._LINE_SECONDS", 0.0)
    monkeypatch.setattr("latentq.collect.pipeline._SHORTEST_NOTED_PAUSE", 0.0001)
    server.faults[bucket(server, "cc12m-train-0001.tar")] = [503]
    output = io.StringIO()
    collect("cc12m", tmp_path, ids=[0, 1], threads=1, progress=output)
    lines = output.getvalue().splitlines()
    assert lines[0].startswith("to download: 3 of 3 files, 600.0 kB; ")
    assert "cc12m-train-0001.tar: HTTP status 503; trying again in 0 s" in lines
    assert any("cc12m-train-0000.tar 43%" in line for line in lines)
    assert lines[-1].startswith("collect: 3 of 3 files, 600.0 kB of 600.0 kB, ")


def test_a_file_that_is_forbidden_is_listed_and_the_run_goes_on(server, tmp_path, capsys):
    commit = server.repositories[CC12M].commit("main")
    path = f"/datasets/{CC12M}/resolve/{commit}/cc12m-train-0001.tar"
    server.faults[path] = [403]
    folder = str(tmp_path)
    assert main(["collect", "cc12m", folder, "--ids", "0-2"]) == 1
    assert "1 file failed" in capsys.readouterr().err.splitlines()[-1]
    [line] = (tmp_path / "failed.tsv").read_text().splitlines()
    assert line.startswith("1\t")
    assert "HTTP status 403" in line
    assert {"cc12m-train-0000.tar", "cc12m-train-0002.tar"} < set(arrived(tmp_path))
    assert main(["collect", "cc12m", folder, "--retry-failed"]) == 0
    assert (tmp_path / "cc12m-train-0001.tar").read_bytes() == files_of(server)["cc12m-train-0001.tar"]


def test_an_error_that_ends_the_run_lists_every_file_that_is_missing(server, tmp_path, monkeypatch, capsys):
    server.repositories["JourneyDB/JourneyDB"] = Repository({"main": journeydb()}, token="mine")
    monkeypatch.setenv("HF_TOKEN", "another")
    command = ["collect", "jdb", str(tmp_path / "jdb")]
    assert main([*command, "--subset", "small"]) == 1
    lines = (tmp_path / "jdb" / "failed.tsv").read_text().splitlines()
    assert len(lines) == len(journeydb())
    assert all("is gated: accept its terms" in line for line in lines)
    monkeypatch.setenv("HF_TOKEN", "mine")
    assert main([*command, "--retry-failed"]) == 0
    assert arrived(tmp_path / "jdb") == journeydb()
    capsys.readouterr()
    assert main([*command, "--retry-failed"]) == 0
    assert "there is no failed.tsv: without --retry-failed" in capsys.readouterr().err


def test_progress_never_shows_a_negative_percentage(monkeypatch):
    monkeypatch.setattr("latentq.system.progress._LINE_SECONDS", 0.0)
    output = io.StringIO()
    with TransferProgress(output) as bar:
        bar.expect(2, 200)
        bar.begin("a.tar", 100)
        bar.begin("b.tar", 100)
        bar.at("a.tar", 0, 100)
        bar.at("a.tar", 50, 100)
    assert "a.tar 50%" in output.getvalue()
    assert "-" not in output.getvalue()


class HostileSite:
    """A site that sends `head`, and then `more` until the client hangs up."""

    def __init__(self, head, more):
        self._head, self._more = head, more
        self.sent = 0

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        try:
            connection.recv(1 << 16)
            connection.sendall(self._head)
            while self._more:
                connection.sendall(self._more)
                self.sent += len(self._more)
        except OSError:
            pass
        finally:
            connection.close()


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "headers": (OK, b"X: y\r\n" * 1000),
    "trailers": (OK + CHUNKED + b"4\r\nPK\3\4\r\n0\r\n", b"X: y\r\n" * 1000),
    "a chunk's size": (OK + CHUNKED, b"0" * 1000),
    "zeros of no length": (OK + b"\r\n", bytes(1 << 16)),
    "zeros in chunks": (OK + CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_a_server_sends_without_end_ends(tmp_path, monkeypatch, name):
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)
    with HostileSite(*ENDLESS[name]) as site:
        done = collect("coco", tmp_path, site=site.url)
        assert len(done.failed) == 2
        assert site.sent < 2 * 8 * (20 << 20)  # two files, eight attempts
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.zip*")) < 1 << 20


def test_a_body_of_no_known_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_MAX_UNSIZED_BYTES", 1 << 20)
    with HostileSite(OK + b"\r\nPK\3\4", bytes(1 << 16)) as site:
        done = collect("coco", tmp_path, site=site.url)
    assert [failure.reason for failure in done.failed] == [
        "the server gave no size and sent more than 1048576 bytes"
    ] * 2
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"collect.toml", "failed.tsv"}


def test_a_server_that_sends_content_too_slowly_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)
    monkeypatch.setattr("latentq.collect.guard._STALL_SECONDS", 0.3)

    class Dripping(HostileSite):
        def _answer(self, connection):
            try:
                connection.sendall(OK + b"Content-Length: 1000000\r\n\r\n")
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.05)
            except OSError:
                connection.close()

    with Dripping(b"", b"") as site:
        failed = collect("coco", tmp_path, site=site.url).failed
    assert ["the server sent no content for 0 s" in failure.reason for failure in failed] == [True, True]


@pytest.mark.parametrize("name", ["val2014.zip", "a.tar", "a.tgz", "a.parquet", "a.tar.gz"])
def test_the_beginning_of_a_file_is_compared_with_its_name(name):
    assert not download._begins_as_named(b"<html>" * 100, name)
    assert not download._begins_as_named(bytes(1), name)
    good = {"zip": zip_of(1), "tar": tar_of(1), "tgz": b"\x1f\x8b\x08", "parquet": b"PAR1", "gz": b"\x1f\x8b\x08"}
    assert download._begins_as_named(good[name.rpartition(".")[2]], name)
