"""`info`, `verify`, `decode` and `measure` on a dataset at a URL say what they say of the folder."""

import html
import json

import pytest

import latentq
from latentq.cli.main import main
from latentq.store.objects import ObjectStore


@pytest.fixture
def out(pictures, tmp_path):
    latentq.encode(pictures, tmp_path / "out", autoencoder="dct-f8c16", size=64, unit_size=5, progress=None)
    return tmp_path / "out"


@pytest.fixture
def url(out, s3):
    store = ObjectStore(f"{s3}/set")
    for file in sorted(out.rglob("*")):
        if file.is_file():
            store.put(file.relative_to(out).as_posix(), file)
    return store.url


def run(capsys, *arguments, code=0):
    assert main([*map(str, arguments)]) == code
    return capsys.readouterr()


def test_commands_print_the_same_of_a_url_and_of_a_folder(out, url, pictures, capsys, tmp_path):
    for command in (["info"], ["info", "--json"], ["verify"], ["measure", "--bits", "4", "--source", pictures]):
        of_folder = run(capsys, command[0], out, *command[1:], "--quiet").out
        of_url = run(capsys, command[0], url, *command[1:], "--quiet").out
        assert of_url.replace(url, str(out)) == of_folder
    for options in ([], ["--index", 3, -1], ["--source", pictures]):
        run(capsys, "decode", out, *options, "-o", tmp_path / "a.png", "--quiet")
        run(capsys, "decode", url, *options, "-o", tmp_path / "b.png", "--quiet")
        assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_decode_downloads_the_shards_of_its_samples_alone(url, capsys, tmp_path):
    cache = tmp_path / "cache"
    run(capsys, "decode", url, "--index", 6, "-o", tmp_path / "a.png", "--cache", cache)
    assert [file.parent.name for file in cache.rglob("*.mds")] == ["00001"]
    run(capsys, "info", url, "--cache", tmp_path / "other")
    assert not list((tmp_path / "other").rglob("*.mds"))


def test_verify_finds_damage_at_a_url(out, url, capsys):
    store = ObjectStore(url)
    store.put("rejects.tsv", b"a\tb\tc\n")
    assert f"{url}: " in run(capsys, "verify", url, code=1).out
    data = bytearray(store.get("00001/shard.00000.mds"))
    data[-1] ^= 1
    store.put("00001/shard.00000.mds", bytes(data))
    error = run(capsys, "verify", url, "--quiet", code=1).err
    assert f"{url}/00001/shard.00000.mds: its hash is" in error
    assert len(error.splitlines()) == 1


def test_options_of_urls(out, url, s3_server, monkeypatch, capsys):
    assert "are for URLs" in run(capsys, "info", out, "--cache", "x", code=2).err
    assert "no such folder" in run(capsys, "info", out.parent / "none", code=2).err
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = ["--storage-option", f"endpoint={s3_server}", "--storage-option", "allow_http=true"]
    assert json.loads(run(capsys, "info", url, "--json", *options).out)["complete"]
    assert "no finished dataset" in run(capsys, "info", f"{url}/none", *options, code=1).err


def test_report_of_a_url_names_the_url(out, url, capsys, tmp_path):
    page, cache = tmp_path / "report.html", tmp_path / "cache"
    run(capsys, "report", url, "--compare", out, "--cache", cache, "-o", page, "--quiet")
    text = page.read_text()
    assert f"latentq verify {url}" in text
    assert f"latentq.LatentDataset('{url}', cache=\"cache\")" in html.unescape(text)
    assert f"latentq.LatentDataset('{out}')" in html.unescape(text)
    for number, name in enumerate((url, str(out))):
        assert name.rpartition("/")[2] in text.split("<h1")[1].split("</h1>")[0].split(" and ")[number]
    assert str(cache) not in text


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("convert", "hf://datasets/me/photos", "out"), "download it first"),
        (("convert", ".", "s3://me/out"), "name a path of this machine, and copy the result"),
        (("prune", "s3://me/set"), "download it first"),
        (("repair", "gs://me/set"), "download it first"),
        (("push", "s3://me/set", "hf:me/photos"), "download it first"),
        (("collect", "coco", "s3://me/coco"), "name a folder of this machine"),
        (("decode", "s3://me/set", "-o", "s3://me/a.png"), "name a file of this machine"),
        (("report", "s3://me/set", "-o", "s3://me/a.html"), "name a file of this machine"),
    ],
)
def test_commands_of_this_machine_say_that_they_take_no_url(tmp_path, monkeypatch, capsys, arguments, advice):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    urls = [argument for argument in arguments if "://" in argument]
    said = f"{urls[-1]}: this command works on files of this machine, not at a URL: {advice}\n"
    assert capsys.readouterr().err.removeprefix("latentq: ").removeprefix("-o ") == said
    assert not any(tmp_path.iterdir())
