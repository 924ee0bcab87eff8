"""`latentq push`: a dataset on the Hub, whole or not at all, with a page whose code works."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import latentq
from conftest import contents, paint
from latentq import Card, LatentDataset, LatentqError, MismatchError, mds
from latentq.cli.main import main
from latentq.converting.pipeline import convert
from latentq.publishing.page import MARK, page
from latentq.system.extras import MissingPackageError
from latentq.system.text import size_text
from support import foreign_making as made_by_others
from support.bucket_making import make_buckets
from support.hub_server import Repository, Server

OPTIONS = {"autoencoder": "dct-f8c16", "size": 64, "unit_size": 4, "progress": None}
NAME = "me/photos"
URL = f"hf://datasets/{NAME}"


def encode(source, out, **options):
    latentq.encode(source, out, **OPTIONS, **options)
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(10):
        paint(folder / f"{number % 2}" / f"{number}.png", number, (90, 70))
    return folder


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    return encode(source, tmp_path_factory.mktemp("made") / "out")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home of the Hub's client without a token and a cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def use_hub(patch, server):
    """Make a server the Hub of this process, and give it a token of the user `me`."""
    from huggingface_hub import constants, file_download

    patch.setenv("HF_ENDPOINT", server.url)
    patch.setenv("HF_TOKEN", "secret")
    # The client keeps what HF_ENDPOINT was when it was imported.
    patch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):
        patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


@pytest.fixture(scope="module")
def pushed(source, made, tmp_path_factory):
    """A Hub to which the dataset was pushed, by a user who edited nothing."""
    from huggingface_hub import constants

    with Server(users={"secret": "me"}) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
        use_hub(patch, hub)
        assert latentq.push(made, f"hf:{NAME}", license="cc-by-4.0", source=source, progress=None) == URL
        yield hub


@pytest.fixture
def hub(pushed, monkeypatch):
    """That Hub, and a user with a token."""
    use_hub(monkeypatch, pushed)
    return pushed


@pytest.fixture
def empty(monkeypatch):
    """A Hub without repositories, and a user with a token."""
    with Server(users={"secret": "me"}) as server:
        use_hub(monkeypatch, server)
        yield server


def files(folder):
    return {name: data for name, data in contents(folder).items() if not name.endswith("/")}


def assert_same_samples(first, second):
    assert len(first) == len(second)
    for index in range(len(first)):
        a, b = first[index], second[index]
        assert a.keys() == b.keys()
        assert all(torch.equal(a[n], b[n]) if torch.is_tensor(a[n]) else a[n] == b[n] for n in a)


def test_repository_has_the_dataset_and_index_card_and_page_came_last(pushed, made):
    repository = pushed.repositories[NAME]
    there = dict(repository.files["main"])
    extra = {name: there.pop(name) for name in ("README.md", "pictures.jpg", ".gitattributes")}
    assert there == files(made)
    assert repository.commits[-1] == ["README.md", "index.json", "latents.toml", "pictures.jpg"]
    assert all("index.json" not in names for names in repository.commits[:-1])
    assert extra["pictures.jpg"].startswith(b"\xff\xd8")
    assert files(made) == {name: data for name, data in files(made).items() if not name.startswith(".cache")}


def test_page_describes_the_dataset(pushed, made):
    text = pushed.repositories[NAME].files["main"]["README.md"].decode()
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "cc-by-4.0",
        "pretty_name": "photos: latents of dct-f8c16",
        "tags": ["latentq", "latents", "mds", "mosaicml-streaming"],
        "size_categories": ["n<1K"],
    }
    card = Card.load(made)
    for words in (
        "8 samples, each as its original and in several forms, the last as stored",
        "10 images",
        "dct-f8c16",
        "`ndarray:uint8:16,8,8`",
        card.autoencoder.normalization.formula,
        MARK,
    ):
        assert words in body
    assert f"| 3 | {card.latents['latent'].statistics.mean[3]:.4f} |" in body


def test_code_of_the_page_loads_the_dataset(hub, made, monkeypatch, tmp_path):
    text = hub.repositories[NAME].files["main"]["README.md"].decode()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert_same_samples(names["dataset"], LatentDataset(made))
    assert names["batch"]["latent"].shape[1:] == (16, 8, 8)


def test_code_of_the_documentation_loads_a_dataset(hub, monkeypatch, tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "hub.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setitem(hub.repositories, "me/photos-sdxl", hub.repositories[NAME])
    monkeypatch.chdir(tmp_path)
    exec(code, {})


@pytest.mark.long
def test_code_for_stock_readers_reads_the_codes(hub, made, tmp_path):
    text = hub.repositories[NAME].files["main"]["README.md"].decode()
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[1]
    check = "\nfrom latentq import mds\nimport numpy as np\nassert np.array_equal(sample['latent'], "
    code += f"{check}mds.Reader({str(made)!r})[0]['latent'])\n"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_dataset_is_read_at_the_commit_that_it_was_opened_at(hub, made, tmp_path, monkeypatch):
    repository = hub.repositories[NAME]
    monkeypatch.setattr(repository, "files", {name: dict(held) for name, held in repository.files.items()})
    monkeypatch.setattr(repository, "commits", list(repository.commits))
    commit = repository.commit("main")
    dataset = LatentDataset(URL, cache=tmp_path / "cache")
    changed = {name: b"changed" for name in repository.files["main"] if name.endswith(".mds")}
    repository.change("main", changed)
    assert_same_samples(dataset, LatentDataset(made))
    assert_same_samples(LatentDataset(f"{URL}@{commit}", cache=tmp_path / "other"), LatentDataset(made))
    with pytest.raises(latentq.FormatError, match=r"00000/shard\.00000\.mds: 7 bytes arrived"):
        LatentDataset(URL, cache=tmp_path / "new")[0]


def test_update_uploads_what_is_new_and_keeps_an_edited_page(hub, source, made, tmp_path, monkeypatch):
    import shutil

    repository = hub.repositories[NAME]
    before = {name: dict(held) for name, held in repository.files.items()}
    monkeypatch.setattr(repository, "files", {name: dict(held) for name, held in before.items()})
    repository.files["main"]["README.md"] = b"# My own words"
    shutil.copytree(source, tmp_path / "source")
    shutil.copytree(made, tmp_path / "out")
    paint(tmp_path / "source" / "0" / "new.png", 77, (90, 70))
    encode(tmp_path / "source", tmp_path / "out", update=True)
    begun = len(hub.log)
    latentq.push(tmp_path / "out", f"hf:{NAME}", pictures=False, progress=None)
    assert sum(method == "PUT" for method, *_ in hub.log[begun:]) <= 4  # a shard, the list, and index or card
    assert repository.files["main"]["README.md"] == b"# My own words"
    assert_same_samples(LatentDataset(URL, cache=tmp_path / "cache"), LatentDataset(tmp_path / "out"))
    hub.repositories[NAME].commits.pop()


def test_branch_and_private_repository(empty, made, tmp_path):
    place = latentq.push(made, "hf:me/secret", private=True, revision="v1", pictures=False, progress=None)
    assert place == "hf://datasets/me/secret@v1"
    repository = empty.repositories["me/secret"]
    assert repository.private
    assert "index.json" in repository.files["v1"]
    assert "index.json" not in repository.files["main"]
    assert "No license was given" in repository.files["v1"]["README.md"].decode()
    assert_same_samples(LatentDataset(place, cache=tmp_path / "cache"), LatentDataset(made))


def test_the_command_ends_with_files_bytes_and_time(empty, made, capsys):
    sizes = [len(data) for data in files(made).values()]
    arguments = ["push", str(made), f"hf:{NAME}", "--no-pictures", "--quiet"]
    assert main(arguments) == 0
    line = capsys.readouterr().out
    text = re.escape(f"{made}: pushed {len(sizes)} files, {size_text(sum(sizes))}, in ")
    assert re.match(rf"{text}\d:\d\d; read it with latentq\.LatentDataset\('{URL}', cache=\.\.\.\)\n$", line)
    assert main([*arguments, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["url"], facts["files"], facts["bytes"]) == (URL, len(sizes), sum(sizes))
    assert facts["seconds"] > 0


@pytest.mark.long
def test_killed_push_is_continued(empty, made, tmp_path):
    """After kill -9 there is no index, nobody uploads any more, and the next push uploads only what is missing."""
    empty.rate = 20_000  # bytes a second
    command = [sys.executable, "-m", "latentq", "push", str(made), f"hf:{NAME}", "--no-pictures", "--quiet"]
    process = subprocess.Popen(command)
    while not (NAME in empty.repositories and len(empty.repositories[NAME].blobs) >= 2):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1.5)
    puts = [path for method, path, _ in empty.log if method == "PUT"]
    time.sleep(1.5)
    assert puts == [path for method, path, _ in empty.log if method == "PUT"]
    assert "index.json" not in empty.repositories[NAME].files["main"]
    done = set(empty.repositories[NAME].blobs)
    empty.rate, begun = 0, len(empty.log)
    latentq.push(made, f"hf:{NAME}", pictures=False, progress=None)
    again = {path.rpartition("/")[2] for method, path, _ in empty.log[begun:] if method == "PUT"}
    assert not again & done
    assert_same_samples(LatentDataset(URL, cache=tmp_path / "cache"), LatentDataset(made))


def test_failing_uploads_are_repeated(empty, made, tmp_path):
    empty.faults[f"/datasets/{NAME}.git/info/lfs/objects/batch"] = [500]
    empty.faults[f"/api/datasets/{NAME}/commit/main"] = [502]
    latentq.push(made, f"hf:{NAME}", pictures=False, progress=None)
    assert not any(empty.faults.values())
    assert_same_samples(LatentDataset(URL, cache=tmp_path / "cache"), LatentDataset(made))


def test_refused_upload_ends_at_once(empty, made):
    empty.faults[f"/datasets/{NAME}.git/info/lfs/objects/batch"] = [403] * 50
    with pytest.raises(LatentqError, match="403 Forbidden") as error:
        latentq.push(made, f"hf:{NAME}", pictures=False, progress=None)
    assert "\n" not in str(error.value)


def check_line(capsys, code, expected, *arguments):
    assert main([*map(str, arguments)]) == code
    lines = capsys.readouterr().err.splitlines()
    assert re.search(expected, lines[-1]), lines
    assert len(lines) == 1


@pytest.mark.parametrize(
    "to", ["me/photos", "hf:photos", "hf://datasets/me/photos", "hf:me/a--b", "hf:me/x/y", "hf:/x"]
)
def test_malformed_place_is_an_error(made, capsys, to):
    check_line(capsys, 2, r"OWNER/NAME", "push", made, to)


def test_push_without_a_token_is_an_error(empty, made, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    check_line(capsys, 1, "no token for the Hub: set HF_TOKEN", "push", made, f"hf:{NAME}", "--no-pictures")
    assert not empty.repositories


def test_push_into_another_namespace_is_an_error(empty, made, capsys):
    check_line(capsys, 1, "does not let you do this in you/photos", "push", made, "hf:you/photos")
    empty.repositories["you/photos"] = Repository({"main": {}})
    check_line(capsys, 1, "does not let you do this in you/photos", "push", made, "hf:you/photos")


def test_invalid_token_is_an_error(empty, made, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    check_line(capsys, 1, "set HF_TOKEN to a token that may", "push", made, f"hf:{NAME}")


def test_repository_with_another_dataset_is_refused(hub, source, tmp_path):
    latentq.encode(source, tmp_path / "out", **OPTIONS | {"size": 32})
    before = dict(hub.repositories[NAME].files["main"])
    with pytest.raises(MismatchError, match="holds another dataset"):
        latentq.push(tmp_path / "out", f"hf:{NAME}", pictures=False, progress=None)
    assert hub.repositories[NAME].files["main"] == before


def test_what_is_no_finished_dataset_is_refused(hub, source, made, tmp_path, capsys):
    with latentq.mds.Writer(tmp_path / "shards", {"a": "int"}) as writer:
        writer.write({"a": 1})
    check_line(capsys, 1, "has no card", "push", tmp_path / "shards", f"hf:{NAME}")
    encode(source, tmp_path / "part", rank=0, world_size=2)
    check_line(capsys, 1, "is not finished", "push", tmp_path / "part", f"hf:{NAME}")
    check_line(capsys, 2, "no such folder", "push", tmp_path / "none", f"hf:{NAME}")
    check_line(capsys, 2, "license is an identifier", "push", made, f"hf:{NAME}", "--license", "CC BY")


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("hf://datasets/me/none", LatentqError, "has no dataset me/none"),
        (f"{URL}@v9", LatentqError, "no such revision"),
        ("hf://me/photos", ValueError, "hf://datasets/OWNER/NAME"),
        ("hf://datasets/photos", ValueError, "hf://datasets/OWNER/NAME"),
        ("hf://datasets/me/../x", ValueError, "hf://datasets/OWNER/NAME"),
    ],
)
def test_urls_that_cannot_be_read(hub, tmp_path, url, error, message):
    with pytest.raises(error, match=message) as raised:
        LatentDataset(url, cache=tmp_path)
    assert "\n" not in str(raised.value)


def test_url_needs_a_cache_and_a_folder_takes_none(hub, made, tmp_path):
    with pytest.raises(ValueError, match=r"cache=\.\.\."):
        LatentDataset(URL)
    with pytest.raises(ValueError, match="are for URLs"):
        LatentDataset(made, cache=tmp_path)
    with pytest.raises(ValueError, match="HF_TOKEN"):
        LatentDataset(URL, cache=tmp_path, storage_options={"region": "x"})


def test_without_the_extra_the_error_names_the_package(made, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (
        lambda: latentq.push(made, f"hf:{NAME}", progress=None),
        lambda: LatentDataset(URL, cache=tmp_path),
    ):
        with pytest.raises(MissingPackageError, match=r"pip install .*huggingface-hub"):
            call()


def test_damaged_download_is_repeated_and_then_an_error(hub, made, tmp_path):
    commit = hub.repositories[NAME].commit("main")
    blob = f"/bucket/{NAME}/{commit}/00000/shard.00000.mds"
    hub.faults[blob] = ["wrong"]
    assert_same_samples(LatentDataset(URL, cache=tmp_path / "cache"), LatentDataset(made))
    hub.faults[blob] = ["wrong"] * 3
    with pytest.raises(latentq.FormatError, match=r"00000/shard\.00000\.mds: its hash is"):
        LatentDataset(URL, cache=tmp_path / "other")[0]
    hub.faults.clear()


def test_page_of_buckets_tokens_and_hostile_names(tmp_path):
    made = make_buckets(tmp_path / "out", tokens=True)
    text = page(made.card, "me/set", nbytes=10**9, license=None, revision="v2", lines="")
    assert "3 x 4 x 4" in text
    assert "| 32 x 32 | 22 |" in text
    assert '"hf://datasets/me/set@v2"' in text
    assert 'revision="v2"' in text
    assert yaml.safe_load(text.split("---\n")[1])["size_categories"] == ["n<1K"]
    assert json.dumps(yaml.safe_load(text.split("---\n")[1])["pretty_name"])


def page_of_converted(tmp_path, **options):
    convert(tmp_path / "source", tmp_path / "out", **options)
    return page(Card.load(tmp_path / "out"), "me/set", nbytes=1, license=None, revision=None, lines="")


def test_page_of_converted_moments_tells_what_they_are_and_nothing_unknown(tmp_path):
    made_by_others.edm2_writes(tmp_path / "source", np.ones((3, 8, 4, 4), np.float32), [0, 1, 2])
    text = page_of_converted(tmp_path, from_layout="repa")
    assert "means and standard deviations of shape 8 x 4 x 4; float32" in text
    assert "| standard deviation 3 | 1.0000 |" in text
    assert "| images | unknown: the latents are converted from another tool's |" in text
    assert "crop" not in text
    assert "# codes" not in text


def test_page_of_a_codec_says_how_a_stock_readers_sample_is_decoded(tmp_path):
    latents = np.random.default_rng(0).normal(size=(6, 4, 8, 8)).astype(np.float32)
    made_by_others.lightningdit_writes(tmp_path / "source", latents, -latents, np.arange(6), shard=6)
    text = page_of_converted(tmp_path, bytes=200)
    assert "transform codec, 6.25 bits a value" in text
    (lines,) = re.findall(r"batch_size=1\)\[0\]\n(.*?)```", text, re.DOTALL)
    names = {"latentq": latentq, "folder": tmp_path / "out", "sample": mds.Reader(tmp_path / "out")[0]}
    *before, last = lines.strip().splitlines()
    exec("\n".join(before), names)
    expected = LatentDataset(tmp_path / "out")[0]["latent"].numpy()
    np.testing.assert_array_equal(eval(last, names), expected)


def test_page_of_several_columns_of_tokens_loads_the_first(tmp_path):
    codes = np.random.default_rng(0).integers(0, 16384, (5, 10, 16))
    made_by_others.llamagen_writes(tmp_path / "source", codes, np.arange(5))
    text = page_of_converted(tmp_path)
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    code = code.replace('"hf://datasets/me/set", cache="cache"', repr(str(tmp_path / "out")))
    names = {}
    exec(code, names)
    assert names["batch"]["tokens_0"].shape[1:] == (4, 4)


def test_commands_take_the_url(hub, made, capsys):
    assert main(["verify", URL, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{URL}: good\n"
    assert main(["info", URL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    files_there = hub.repositories[NAME].files["main"]
    assert found["bytes"] == sum(map(len, files_there.values()))
    assert found["counts"]["samples"] == 10
