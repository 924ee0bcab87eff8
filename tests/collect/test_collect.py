"""`latentq collect`: each file arrives intact or is listed as failed, with advice on what to do."""

import errno
import fcntl
import io
import os
import re

import pytest

from conftest import contents
from latentq import FormatError, LatentqError, MismatchError
from latentq.cli.main import main
from latentq.collect import collect, download
from latentq.system.progress import TransferProgress
from support.collect_fixtures import CC12M, COCO, arrived, bucket, data_of, files_of
from support.hub_server import Repository


def test_the_small_subset_arrives_complete(server, tmp_path, capsys):
    assert main(["collect", "cc12m", str(tmp_path / "cc12m"), "--subset", "small"]) == 0
    assert arrived(tmp_path / "cc12m") == files_of(server)
    assert "24 files, 6.9 MB" in capsys.readouterr().out


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


def test_failed_tsv_is_removed_once_nothing_has_failed(server, tmp_path):
    server.faults[bucket(server, "cc12m-train-0000.tar")] = [410]
    assert len(collect("cc12m", tmp_path, ids=[0]).failed) == 1
    assert collect("cc12m", tmp_path, ids=[0], retry_failed=True).failed == []
    assert sorted(contents(tmp_path)) == ["_info.json", "cc12m-train-0000.tar", "collect.toml"]


def test_the_error_for_a_gated_dataset_says_what_to_do(server, tmp_path, monkeypatch, capsys):
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


def test_an_unknown_dataset_is_named(server, tmp_path):
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


def test_a_mirror_site_can_be_given(server, tmp_path):
    server.site |= {f"/mirror{path}": data for path, data in COCO.items()}
    assert main(["collect", "coco", str(tmp_path), "--site", f"{server.url}/mirror/"]) == 0
    assert arrived(tmp_path) == {path.rpartition("/")[2]: data for path, data in COCO.items()}


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


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("collect.toml", "collection = ", "collect.toml: not what latentq collect wrote: "),
        ("failed.tsv", "one\n", "failed.tsv: not lines of id, address and reason"),
    ],
)
def test_a_broken_record_is_an_error_that_names_it(server, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(FormatError, match=re.escape(f"{tmp_path}/{message}")):
        collect("cc12m", tmp_path, ids=[0])


def test_a_folder_takes_one_collection_and_one_process(server, tmp_path):
    collect("cc12m", tmp_path, ids=[0])
    with pytest.raises(MismatchError, match="holds cc12m; jdb needs a folder of its own"):
        collect("jdb", tmp_path)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LatentqError, match="another latentq collect is working"):
        collect("cc12m", tmp_path, ids=[0])
    os.close(descriptor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cc12m", "--ids", "2176"], "there is no archive 2176: they are 0 to 2175"),
        (["diffdb", "--ids", "0-3"], "there is no archive 0: they are 1 to 14000"),
        (["coco", "--ids", "1"], "coco takes no ids"),
        (["sa1b"], "sa1b needs its list of links, from the dataset's page: --links FILE"),
        (["cc12m", "--links", "a.tsv"], "cc12m takes no links"),
        (["jdb", "--site", "http://a"], "jdb takes no site"),
        (["jdb", "--threads", "0"], "--threads must be at least 1, not 0"),
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
