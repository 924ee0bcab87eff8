"""Segment Anything is downloaded by a list of links, which expire."""

import pytest

from latentq import LatentqError
from latentq.cli.main import main
from latentq.collect import collect
from support.collect_fixtures import arrived, data_of, tar_of, write_links


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
    newer = write_links(server, tmp_path / "newer.tsv", range(20, 320), "/newer")
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


def test_a_list_of_links_may_have_no_header(server, sa1b, tmp_path):
    lines = (tmp_path / "links.tsv").read_bytes().splitlines()[1:3]
    (tmp_path / "bare.tsv").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(lines))
    assert collect("sa1b", tmp_path / "out", links=tmp_path / "bare.tsv").failed == []
    assert {"sa_000020.tar", "sa_000021.tar"} < set(arrived(tmp_path / "out"))


def test_a_failed_file_missing_from_the_new_list_stays_failed(server, sa1b, tmp_path, capsys):
    server.faults["/links/21"] = [404]
    command = ["collect", "sa1b", str(tmp_path / "out")]
    assert main([*command, "--links", sa1b, "--ids", "20", "21"]) == 1
    newer = write_links(server, tmp_path / "newer.tsv", [20])
    for _ in range(2):
        assert main([*command, "--links", newer, "--retry-failed"]) == 1
        assert "no longer among the files" in capsys.readouterr().err.splitlines()[-1]
        [line] = (tmp_path / "out" / "failed.tsv").read_text().splitlines()
        assert line.startswith("21\t")
        assert line.count("no longer") == 1
    assert main([*command, "--links", sa1b, "--retry-failed"]) == 0
    assert not (tmp_path / "out" / "failed.tsv").exists()
