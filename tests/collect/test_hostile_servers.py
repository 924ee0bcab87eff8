"""Servers that send without end, too slowly or something else than the file."""

import socket
import threading
import time

import pytest

from latentq.cli.main import main
from latentq.collect import collect, download
from support.collect_fixtures import tar_of, zip_of


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
def test_a_response_without_end_is_given_up(tmp_path, monkeypatch, name):
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


def test_control_characters_of_a_servers_reason_do_not_reach_the_terminal(tmp_path, capsys):
    with HostileSite(b"HTTP/1.1 404 \x1b[2J\x9b31m gone\r\nContent-Length: 0\r\n\r\n", b"") as site:
        assert main(["collect", "coco", str(tmp_path), "--site", site.url]) == 1
    printed = capsys.readouterr()
    texts = printed.out + printed.err, (tmp_path / "failed.tsv").read_text()
    for text in texts:
        assert not {"\x1b", "\x9b"} & set(text)
        assert "HTTP status 404 \\x1b[2J\\x9b31m gone" in text.replace("\\\\", "\\")


@pytest.mark.parametrize("name", ["val2014.zip", "a.tar", "a.tgz", "a.parquet", "a.tar.gz"])
def test_the_beginning_of_a_file_is_compared_with_its_name(name):
    assert not download._begins_as_named(b"<html>" * 100, name)
    assert not download._begins_as_named(bytes(1), name)
    good = {"zip": zip_of(1), "tar": tar_of(1), "tgz": b"\x1f\x8b\x08", "parquet": b"PAR1", "gz": b"\x1f\x8b\x08"}
    assert download._begins_as_named(good[name.rpartition(".")[2]], name)
