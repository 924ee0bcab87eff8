"""`latentq info`, `verify`, `repair` and `recipes`."""

import json
import sys

import pytest

import latentq
from conftest import contents
from latentq.cli.main import main
from latentq.system.progress import Progress


def test_info_as_json_is_the_card(small_dataset, capsys):
    assert main(["info", str(small_dataset), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["counts"] == {"samples": 12, "rejects": 0, "redone": 0}
    assert data["bytes"] == sum(map(len, contents(small_dataset).values()))


def test_info_tells_units_from_samples(small_dataset, capsys):
    assert main(["info", str(small_dataset)]) == 0
    assert "1, each of up to 4096 samples\n" in capsys.readouterr().out


def test_info_of_shards_without_a_card(small_dataset, tmp_path, capsys):
    assert main(["info", str(small_dataset / "00000")]) == 0
    output = capsys.readouterr().out
    assert "no card" in output
    assert "ndarray:uint8:16,8,8" in output


def test_verify_exits_with_1_if_a_bit_is_wrong(small_dataset, capsys):
    shard = small_dataset / "00000" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-5] ^= 4
    shard.write_bytes(data)
    assert main(["verify", str(small_dataset)]) == 1
    assert "shard.00000.mds" in capsys.readouterr().out
    assert main(["verify", str(small_dataset), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["file"].endswith("shard.00000.mds")


def test_what_may_take_long_shows_progress(small_dataset, pictures, tmp_path, monkeypatch):
    bars = []
    init = Progress.__init__

    def record(self, total, label, stream, **options):
        init(self, total, label, stream, **options)
        bars.append(self)

    monkeypatch.setattr(Progress, "__init__", record)
    dataset, source = str(small_dataset), ["--source", str(pictures)]
    for command, labels in (
        (
            ["verify", dataset, "--decode", "3"],
            {"verify the list": 1, "verify": 12, "verify the index": 1, "decode": 3},
        ),
        (["info", dataset, "--storage", *source], {"sizes": 12, "JPEG": 12}),
        (["repair", dataset], {"repair": 1}),
        (["measure", dataset, *source], {"encode": 12, "measure": None}),
        (["decode", dataset, "--index", "0", "1", "-o", str(tmp_path / "x.png")], {"decode": 2}),
    ):
        assert main(command) == 0
        assert {bar._label for bar in bars} == set(labels), command
        for bar in bars:
            assert bar._stream is sys.stderr
            assert bar._done == bar._total == (labels[bar._label] or bar._total) > 0
        bars.clear()


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_info_shows_progress_while_it_adds_up_a_dataset_of_many_units(small_dataset, monkeypatch, capsys, options):
    bars = []
    init = Progress.__init__

    def record(self, total, label, stream, **named):
        init(self, total, label, stream, **named)
        bars.append(self)

    monkeypatch.setattr(Progress, "__init__", record)
    assert main(["info", str(small_dataset), *options]) == 0
    assert [(bar._label, bar._stream, bar._done) for bar in bars] == [
        ("add up", sys.stderr, len([*small_dataset.iterdir()]))
    ]


def test_repair_rebuilds_a_lost_index(small_dataset, capsys):
    unit = small_dataset / "00000"
    index = (unit / "index.json").read_bytes()
    (unit / "index.json").unlink()
    assert main(["repair", str(unit)]) == 0
    assert "1 shard, 12 samples" in capsys.readouterr().out
    assert (unit / "index.json").read_bytes() == index
    assert latentq.verify(small_dataset) == []


def test_recipes_are_listed_and_can_be_copied(tmp_path, capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == latentq.Recipe.names()
    assert all(len(line.split()) > 5 for line in lines)
    for name in latentq.Recipe.names():
        assert main(["recipes", name]) == 0
        (tmp_path / "copy.toml").write_text(capsys.readouterr().out)
        assert latentq.Recipe.load(tmp_path / "copy.toml") == latentq.Recipe.load(name)
    assert main(["recipes", "nosuch"]) == 2
    assert "no recipe 'nosuch'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_path_that_is_no_dataset_is_refused_with_the_reason(pictures, capsys, command):
    assert main([command, str(pictures)]) == 1
    reason = "neither a dataset nor a folder of MDS shards: it has no latents.toml and no index.json "
    reason += "(latentq convert makes a dataset of other tools' latents)"
    assert capsys.readouterr().err == f"latentq: {pictures} is {reason}\n"
    file = pictures / "ant" / "00.jpg"
    assert main([command, str(file)]) == 2
    assert capsys.readouterr().err == f"latentq: {file} is a file, not a dataset's folder\n"


@pytest.mark.parametrize("name", ["latents.toml", "index.json"])
def test_the_dataset_of_a_card_or_index_is_named(small_dataset, capsys, name):
    assert main(["info", str(small_dataset / name)]) == 2
    problem = f"{small_dataset / name} is a file, not a dataset's folder"
    assert capsys.readouterr().err == f"latentq: {problem}; its dataset is {small_dataset}\n"


def test_a_folder_that_holds_datasets_is_not_repaired_itself(pictures, capsys):
    """An index.json would make a source of shards out of a folder of photographs."""
    latentq.encode(pictures, pictures / "out", autoencoder="dct-f8c16", size=64)
    before = contents(pictures)
    assert main(["repair", str(pictures)]) == 1
    assert f"{pictures / 'out'} is a dataset of its own: repair it" in capsys.readouterr().err
    assert contents(pictures) == before
    assert main(["repair", str(pictures / "out")]) == 0


def test_a_card_prints_itself_on_one_short_line(small_dataset):
    assert repr(latentq.Card.load(small_dataset)) == (
        "<Card: recipe default, autoencoder dct-f8c16, 12 samples, 0 rejects>"
    )


def test_control_characters_of_column_names_do_not_reach_the_terminal(tmp_path, capsys):
    with latentq.mds.Writer(tmp_path / "out", {"\x1b[31m": "int"}) as writer:
        writer.write({"\x1b[31m": 1})
    assert main(["info", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "column \\x1b[31m  int" in printed


def test_a_recipes_file_is_printed_without_control_characters(tmp_path, capsys):
    (tmp_path / "x.toml").write_text("# \x1b[2J\n\tname = 1\n")
    assert main(["recipes", str(tmp_path / "x.toml")]) == 0
    assert capsys.readouterr().out == "# \\x1b[2J\n\tname = 1\n"
