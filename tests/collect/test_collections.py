"""The commands of examples/collections.md on small versions of the six collections, from a local server to a loader."""

import os
import re
import shlex
import subprocess
import sys
import tarfile
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
    """Yields the commands of a page, with another site for COCO."""
    for line in blocks("sh", page).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line.replace("http://images.cocodataset.org", site))
        assert program == "latentq"
        yield arguments


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, tiny_vae, tiny_open_clip):
    """A folder where the page's commands were run, with tiny networks of the same classes."""
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


def test_nothing_is_written_outside_the_named_folders(prepared):
    assert {path.name for path in prepared.iterdir()} == {"sa1b_links.tsv", "data", "mds", "latents"}
    for name in COLLECTIONS:
        assert not (prepared / "data" / name / "failed.tsv").exists()


@pytest.mark.parametrize("name", KEPT)
def test_every_sample_is_kept_or_rejected_with_a_reason(prepared, name):
    card = ShardsCard.load(prepared / "mds" / name)
    rejects = [line.split("\t") for line in (prepared / "mds" / name / "rejects.tsv").read_text().splitlines()]
    assert card.counts.samples == KEPT[name]
    assert Counter(stage for _, stage, _ in rejects) == REJECTS[name]
    assert all(reason for _, _, reason in rejects)
    assert card.source.samples == KEPT[name] + len(rejects)


@pytest.mark.parametrize("name", KEPT)
def test_a_stock_reader_finds_micro_diffusions_columns(streaming_alone, prepared, name):
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


def test_encoding_straight_from_archives_rejects_the_same_images(prepared, tmp_path):
    data = prepared / "data" / "diffdb"
    source, captions = data / "*" / "*.zip", str(data / "metadata-large.parquet")
    card = encode(source, tmp_path / "out", autoencoder="dct-f8c16", size=32, captions=captions, collection="diffdb")
    assert (card.counts.samples, card.counts.rejects) == (KEPT["diffdb"], sum(REJECTS["diffdb"].values()))
    rejects = [place / "rejects.tsv" for place in (tmp_path / "out", prepared / "mds" / "diffdb")]
    assert rejects[0].read_text() == rejects[1].read_text()
    with pytest.raises(
        LatentqError, match="limits on image_nsfw, prompt_nsfw need a file of captions with those columns: --captions"
    ):
        encode(source, tmp_path / "another", autoencoder="dct-f8c16", size=32, collection="diffdb")


def test_the_mixture_has_samples_of_all_six(prepared, monkeypatch):
    monkeypatch.chdir(prepared)
    place = {}
    exec(blocks("python"), place)
    seen = Counter(caption.split()[0] for batch in place["loader"] for caption in batch["caption"])
    assert seen == Counter(journey=3, conceptual=3, diffusion=2, segment=3, text=3, coco=2)


def test_every_code_block_of_the_reference_runs(tmp_path, monkeypatch, capsys):
    with Server() as server:
        (tmp_path / "sa1b_links.tsv").write_text(serve_collections(server))
        files = server.repositories["pixparse/cc12m-wds"].files["main"]
        files |= {f"cc12m-train-{number:04}.tar": b"a tar" for number in (23, 24, 30, 31, 32)}
        server.site["/sa1b/20"] = tarfile.TarInfo("a").tobuf()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        for arguments in commands(REFERENCE, server.url):
            assert main(arguments) == 0, arguments
        capsys.readouterr()
        exec(blocks("python", REFERENCE), {})
    assert capsys.readouterr().out == "24 []\n"


def commands_as(folder, program):
    """Returns an environment in which `latentq` is a script with this text."""
    file = folder / "latentq"
    file.write_text(f"#!/bin/sh\n{program}\n")
    file.chmod(0o755)
    return os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_the_script_runs_the_commands_of_the_page(tmp_path):
    environment = commands_as(tmp_path, f"printf '%s\\t' \"$@\" >> '{tmp_path}/said'; echo >> '{tmp_path}/said'")
    for name in COLLECTIONS:
        subprocess.run([SCRIPT, name, ".", "small"], env=environment, cwd=tmp_path, check=True)

    def plain(arguments):
        kept = [argument.removeprefix("./") for argument in arguments]
        return [argument for argument in kept if argument not in ("--subset", "small")]

    done = [plain(line.split("\t")[:-1]) for line in (tmp_path / "said").read_text().splitlines()]
    output = [plain(arguments) for arguments in commands(PAGE, "") if "mds/cc12m-512" not in arguments]
    assert sorted(done) == sorted(output)


def test_two_collections_can_be_prepared_at_once(tmp_path):
    """They share no folder: home, cache and temporary folders stay empty."""
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
