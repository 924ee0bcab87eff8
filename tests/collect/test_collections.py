"""examples/collections.md as it stands: the six collections in small, from a server on loopback to a mixed loader."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from streaming import StreamingDataset

from conftest import contents
from latentq import LatentDataset, LatentqError, encode, verify
from latentq.cli.main import main
from latentq.collect import COLLECTIONS
from latentq.format.card import Card
from latentq.sharding.card import ShardsCard
from latentq.sharding.pipeline import shards
from support.collection_making import KEPT, REJECTS, serve_collections
from support.hub_server import Server

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "collection.sh"
PAGE, REFERENCE = ROOT / "examples" / "collections.md", ROOT / "docs" / "collect.md"


def blocks(language, page=PAGE):
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))


def commands(page, site):
    """The page's commands, COCO's site another."""
    for line in blocks("sh", page).splitlines():
        program, *arguments = shlex.split(line.replace("http://images.cocodataset.org", site))
        assert program == "latentq"
        yield arguments


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_vae, tiny_open_clip):
    """Where the page's commands were run, the networks replaced by tiny ones of the same classes."""
    place = tmp_path_factory.mktemp("prepared")
    networks = ["--autoencoder", str(tiny_vae), "--text-encoder", f"openclip:{tiny_open_clip}"]
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        (place / "sa1b_links.tsv").write_text(serve_collections(server))
        patch.chdir(place)
        patch.setenv("HF_ENDPOINT", server.url)
        patch.setenv("HF_TOKEN", "mine")
        for arguments in commands(PAGE, server.url):
            if arguments[:2] == ["collect", "coco"]:
                arguments += ["--site", server.url]
            if arguments[0] == "encode":
                arguments += [*networks, "--dtype", "float32", "--text-dtype", "float32"]
            assert main(arguments) == 0, arguments
    return place


def test_everything_is_in_the_folders_that_were_named(prepared):
    assert {path.name for path in prepared.iterdir()} == {"sa1b_links.tsv", "data", "mds", "latents"}
    for name in COLLECTIONS:
        assert not (prepared / "data" / name / "failed.tsv").exists()


@pytest.mark.parametrize("name", KEPT)
def test_samples_are_those_kept_and_those_rejected_for_a_reason(prepared, name):
    card = ShardsCard.load(prepared / "mds" / name)
    rejects = [line.split("\t") for line in (prepared / "mds" / name / "rejects.tsv").read_text().splitlines()]
    assert card.counts.samples == KEPT[name]
    assert Counter(stage for _, stage, _ in rejects) == REJECTS[name]
    assert all(reason for _, _, reason in rejects)
    assert card.source.samples == KEPT[name] + len(rejects)


@pytest.mark.parametrize("name", KEPT)
def test_a_stock_reader_finds_the_columns_of_the_source_system(streaming_alone, prepared, name):
    stock = StreamingDataset(local=str(prepared / "mds" / name), batch_size=1, shuffle=False)
    columns = {"jpg", "caption", "width", "height"}
    if name == "sa1b":
        columns = columns - {"caption"} | {"caption_syn_pixart_llava15"}
    elif name == "textcaps":
        columns |= {"image_id"}
    elif name == "coco":
        columns = {"jpg", "caption"}
    assert len(stock) == KEPT[name]
    for index in range(len(stock)):
        sample = stock[index]
        assert set(sample) == columns
        assert 256 <= min(sample["jpg"].size) <= 512
        if name != "coco":
            assert sample["jpg"].size == (sample["width"], sample["height"])


FIRST = {
    "jdb-train": "journey a",
    "jdb-valid": "journey c",
    "cc12m": "conceptual 0",
    "diffdb": "diffusion 1",
    "sa1b": "segment 1",
    "textcaps": "text 1",
    "coco": "coco 42",
}


@pytest.mark.parametrize("name", FIRST)
def test_every_sample_of_the_shards_has_its_latents(prepared, name):
    card = Card.load(prepared / "latents" / name)
    assert (card.counts.samples, card.counts.rejects) == (KEPT[name], 0)
    assert verify(prepared / "latents" / name) == []
    sample = LatentDataset(prepared / "latents" / name)[0]
    assert sample["caption"] == FIRST[name]
    assert (sample["latents_256"].shape, sample["latents_512"].shape) == ((4, 32, 32), (4, 64, 64))
    assert sample["caption_embedding"].shape == (1, 77, 32)
    for name in ("latents_256", "latents_512", "caption_embedding"):
        assert sample[name].isfinite().all()


def test_straight_from_archives_the_same_pictures_are_left_out(prepared, tmp_path):
    data = prepared / "data" / "diffdb"
    source, captions = data / "*" / "*.zip", str(data / "metadata-large.parquet")
    card = encode(source, tmp_path / "out", autoencoder="dct-f8c16", size=32, captions=captions, collection="diffdb")
    assert (card.counts.samples, card.counts.rejects) == (KEPT["diffdb"], sum(REJECTS["diffdb"].values()))
    rejects = [place / "rejects.tsv" for place in (tmp_path / "out", prepared / "mds" / "diffdb")]
    assert rejects[0].read_text() == rejects[1].read_text()
    with pytest.raises(LatentqError, match="limits on image_nsfw, prompt_nsfw need the file that holds them"):
        encode(source, tmp_path / "another", autoencoder="dct-f8c16", size=32, collection="diffdb")


def test_the_mixture_holds_all_six(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    place = {}
    exec(blocks("python"), place)
    seen = Counter(caption.split()[0] for batch in place["loader"] for caption in batch["caption"])
    assert seen == Counter(journey=3, conceptual=3, diffusion=2, segment=3, text=3, coco=2)


def test_every_block_of_the_reference_runs(tmp_path, monkeypatch, capsys):
    with Server() as server:
        (tmp_path / "sa1b_links.tsv").write_text(serve_collections(server))
        files = server.repositories["pixparse/cc12m-wds"].files["main"]
        files |= {f"cc12m-train-{number:04}.tar": b"a tar" for number in (23, 24, 30, 31, 32)}
        server.site["/sa1b/20"] = b"a tar"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for arguments in commands(REFERENCE, server.url):
            assert main(arguments) == 0, arguments
        capsys.readouterr()
        exec(blocks("python", REFERENCE), {})
    assert capsys.readouterr().out == "24 []\n"


def commands_as(folder, program):
    """An environment in which `latentq` is this text of a script."""
    file = folder / "latentq"
    file.write_text(f"#!/bin/sh\n{program}\n")
    file.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_one_command_does_what_the_page_does(tmp_path):
    environment = commands_as(tmp_path, f"printf '%s\\t' \"$@\" >> '{tmp_path}/said'; echo >> '{tmp_path}/said'")
    for name in COLLECTIONS:
        subprocess.run([SCRIPT, name, ".", "small"], env=environment, cwd=tmp_path, check=True)

    def plain(arguments):
        kept = [argument.removeprefix("./") for argument in arguments]
        return [argument for argument in kept if argument not in ("--subset", "small")]

    done = [plain(line.split("\t")[:-1]) for line in (tmp_path / "said").read_text().splitlines()]
    told = [plain(arguments) for arguments in commands(PAGE, "") if "mds/cc12m-512" not in arguments]
    assert sorted(done) == sorted(told)


def test_two_collections_prepared_at_once_do_not_meet(tmp_path):
    """Each has its folder, and all places that processes share by custom are of no use to them."""
    patterns = {"cc12m": "*.tar", "textcaps": "**/*.parquet"}
    home = tmp_path / "home"
    home.mkdir()
    with Server() as server:
        serve_collections(server)
        places = {name: str(home) for name in ("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME")}
        environment = commands_as(tmp_path, f"exec '{sys.executable}' -B -m latentq \"$@\"")
        environment |= places | {"HF_ENDPOINT": server.url, "OMP_NUM_THREADS": "1"}

        def start(name, folder):
            folder.mkdir()
            command = [SCRIPT, name, ".", "small", "--autoencoder", "dct-f8c16", "--size", "64"]
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)

        both = [start(name, tmp_path / name) for name in patterns]
        assert [process.wait() for process in both] == [0, 0]
    assert [*home.iterdir()] == []
    for name, pattern in patterns.items():
        folder = tmp_path / name
        assert {path.name for path in folder.iterdir()} == {"data", "mds", "latents"}
        shards(folder / "data" / name / pattern, folder / "alone", collection=name)
        encode(folder / "alone", folder / "encoded", autoencoder="dct-f8c16", size=64)
        assert contents(folder / "mds" / name) == contents(folder / "alone")
        assert contents(folder / "latents" / name) == contents(folder / "encoded")
