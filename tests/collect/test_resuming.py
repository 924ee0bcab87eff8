"""Interrupted downloads are resumed, and their content is verified: no two versions are ever joined."""

import base64
import hashlib
import os
import random
import subprocess
import sys
import time
import zlib

import pytest

from latentq.collect import collect, download
from support.collect_fixtures import CC12M, COCO, arrived, bucket, data_of, files_of, zip_of


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


def test_retries_end_if_the_content_is_always_wrong(server, tmp_path):
    path = bucket(server, "cc12m-train-0000.tar")
    server.faults[path] = ["drop", "wrong"] * 99
    [failure] = collect("cc12m", tmp_path, ids=[0]).failed
    assert "its sha256 is" in failure.reason
    assert server.sent[path] < 4 * 300_000


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


def test_an_existing_file_of_another_size_is_never_touched(server, tmp_path):
    (tmp_path / "cc12m-train-0000.tar").write_bytes(b"mine")
    [failure] = collect("cc12m", tmp_path, ids=[0]).failed
    assert "exists with 4 bytes instead of 300000: move it away" in failure.reason
    assert (tmp_path / "cc12m-train-0000.tar").read_bytes() == b"mine"


def test_a_retry_after_that_is_not_a_number_is_ignored(server, tmp_path):
    assert download._retry_after("\u00b2") is None


def start_collecting(server, folder, home, *options):
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
        process = start_collecting(server, out, home, "--ids", "0-7")
        before, wanted = sum(server.sent.values()), moments.randrange(1, 500_000)
        while process.poll() is None and sum(server.sent.values()) < before + wanted:
            time.sleep(0.002)
        process.kill()
        process.wait()
    server.rate = 0
    assert start_collecting(server, out, home, "--ids", "0-7").wait() == 0
    assert arrived(out) == {name: files_of(server)[name] for name in arrived(out)}
    assert len(arrived(out)) == 9
    assert sum(server.sent.values()) < 8 * 300_000 + 4 * 2 * 200_000  # partial files were kept
    assert [*home.iterdir()] == []
