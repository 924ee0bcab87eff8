"""Fixtures and helpers for tests of `latentq collect`: a server with collections, and the bytes of their files."""

import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import contents
from latentq.collect import download
from support.hub_server import Repository, Server

CC12M = "pixparse/cc12m-wds"


def data_of(seed: object, size: int = 300_000) -> bytes:
    return random.Random(seed).randbytes(size)


def zip_of(seed: object, size: int = 300_000) -> bytes:
    """Returns bytes that begin as a zip does."""
    return b"PK\3\4" + data_of(seed, size - 4)


def tar_of(seed: object, size: int = 50_000) -> bytes:
    """Returns bytes that begin as a tar does."""
    return tarfile.TarInfo(f"{seed}").tobuf() + data_of(seed, size - 512)


COCO = {"/zips/val2014.zip": zip_of("val", 400_000), "/annotations/annotations_trainval2014.zip": zip_of("anno")}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A Hub with 23 archives of CC12M, and a token in the environment."""
    files = {f"cc12m-train-{number:04}.tar": data_of(number) for number in range(23)}
    files["_info.json"] = b"{}"
    with Server({CC12M: Repository({"main": files})}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.setattr(download, "_FIRST_WAIT", 0.001)
        yield server


def files_of(server: Server, name: str = CC12M, revision: str = "main") -> dict[str, bytes]:
    return server.repositories[name].files[revision]


def arrived(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name != "collect.toml" and not name.endswith("/")}


def bucket(server: Server, path: str, name: str = CC12M) -> str:
    return f"/bucket/{name}/{server.repositories[name].commit('main')}/{path}"


def write_links(server: Server, path: Path, numbers: range, prefix: str = "/links") -> str:
    """Writes a list of links as on the page of Segment Anything, whose archives the server has; returns its path."""
    lines = [f"sa_{number:06}.tar\t{server.url}{prefix}/{number}?sig=1%2F2\n" for number in numbers]
    path.write_text("file_name\tcdn_link\n" + "".join(lines))
    server.site |= {f"{prefix}/{number}": tar_of(number) for number in numbers}
    return str(path)


@pytest.fixture
def sa1b(server: Server, tmp_path: Path) -> str:
    """The path of a list of 300 links to archives of Segment Anything."""
    captions = {"SA1B_caption.tar.gz": data_of("captions", 9000)}
    server.repositories["PixArt-alpha/SAM-LLaVA-Captions10M"] = Repository({"main": captions})
    return write_links(server, tmp_path / "links.tsv", range(20, 320))
