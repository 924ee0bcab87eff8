"""`latentq verify`: everything that makes a dataset differ from its card and its list is found."""

import json
import os
import shutil
import tomllib

import pytest

import latentq
from conftest import paint
from latentq.cli.main import main
from latentq.inspect.quality import sample_quality
from latentq.sharding.pipeline import shards

SMALL = {"size": 64, "unit_size": 5, "batch_size": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Twelve pictures in three class folders, with one file that cannot be decoded."""
    folder = tmp_path_factory.mktemp("source")
    for index in range(12):
        paint(folder / ["ant", "bee", "cat"][index % 3] / f"{index:02}.png", index, (90 + index, 70 + 3 * index))
    (folder / "cat" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    assert latentq.encode(source, out, **SMALL).counts.rejects == 1
    assert latentq.verify(out) == []
    return out


@pytest.fixture
def three_parts(source, tmp_path, monkeypatch):
    """The same pictures, with a unit in each part of the list."""
    monkeypatch.setattr("latentq.run.sample_list.MAX_PART", 5)
    out = tmp_path / "out"
    latentq.encode(source, out, **SMALL)
    assert sorted(part.name for part in (out / "list").iterdir()) == ["00000.tsv", "00001.tsv", "00002.tsv"]
    assert latentq.verify(out) == []
    return out


@pytest.fixture
def dataset(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "out")


def swap(folder, first="00000", second="00001"):
    (folder / first).rename(folder / "temporary")
    (folder / second).rename(folder / first)
    (folder / "temporary").rename(folder / second)


def edit(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def messages(folder):
    return [f"{finding.file}: {finding.message}" for finding in latentq.verify(folder)]


def test_swapped_units_are_found_even_after_another_run(source, dataset):
    swap(dataset)
    latentq.encode(source, dataset, **SMALL)
    found = messages(dataset)
    assert "00000/unit.toml: the unit was made from another part of the list" in found
    assert any("column key: holds 'bee/04.png', the list says 'ant/00.png'" in line for line in found), found
    assert not any(line.startswith("00002") for line in found)


def test_swapped_units_of_an_older_version_are_found_by_their_keys(source, dataset):
    for unit in ("00000", "00001", "00002"):
        lines = (dataset / unit / "unit.toml").read_text().splitlines(keepends=True)
        assert [line[:4] for line in lines[:2]] == ["card", "list"]
        (dataset / unit / "unit.toml").write_text("".join(lines[2:]))
    assert latentq.verify(dataset) == []
    swap(dataset)
    latentq.encode(source, dataset, **SMALL)
    assert any("column key: holds" in line for line in messages(dataset))


def test_swapped_units_without_keys_are_found_by_the_hash_of_their_list(source, tmp_path):
    recipe = latentq.Recipe.from_dict({"name": "bare", "columns": {"latent": {"from": "latent", "size": 64}}})
    latentq.encode(source, tmp_path / "out", recipe=recipe, unit_size=6)
    assert latentq.verify(tmp_path / "out") == []
    swap(tmp_path / "out")
    latentq.encode(source, tmp_path / "out", recipe=recipe, unit_size=6)
    assert "00000/unit.toml: the unit was made from another part of the list" in messages(tmp_path / "out")


def test_swapped_units_of_shards_are_found(source, tmp_path):
    shards(source, tmp_path / "out", min_size=1, unit_size=5)
    assert latentq.verify(tmp_path / "out") == []
    swap(tmp_path / "out")
    shards(source, tmp_path / "out", min_size=1, unit_size=5)
    assert "00000/unit.toml: the unit was made from another part of the list" in messages(tmp_path / "out")


def test_swapped_units_of_a_converted_dataset_are_found(tokens_tsv, tmp_path, monkeypatch):
    from latentq.converting import pipeline
    from latentq.format.recipe import Recipe

    load = Recipe.load
    small = staticmethod(lambda name: load(name).override(unit_size=16))
    monkeypatch.setattr("latentq.converting.vqgan.Recipe.load", small)
    pipeline.convert(tokens_tsv, tmp_path / "out")
    assert latentq.verify(tmp_path / "out") == []
    swap(tmp_path / "out")
    assert "00000/unit.toml: the unit was made from another part of the list" in messages(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor = 0.5", "factor = 0.25"),
        ('filter = "bicubic"', 'filter = "box"'),
        ('crop = "center"', 'crop = "random"'),
        ("seed = 0", "seed = 1"),
    ],
)
def test_an_edited_field_of_the_card_that_decides_meaning_is_found(dataset, old, new):
    text = (dataset / "latents.toml").read_text()
    assert old in text
    (dataset / "latents.toml").write_text(text.replace(old, new))
    assert messages(dataset), new


@pytest.mark.parametrize("table", ["quantizer.low", "statistics.mean"])
def test_an_edited_quantizer_or_statistic_is_found(dataset, table):
    text = (dataset / "latents.toml").read_text()
    group, name = table.split(".")
    number = repr(tomllib.loads(text)["latents"]["latent"][group][name][3])
    start = text.index(f"[latents.latent.{group}]")
    head, tail = text[:start], text[start:].replace(number, repr(float(number) + 0.5), 1)
    (dataset / "latents.toml").write_text(head + tail)
    assert any(line.startswith("latents.toml: ") for line in messages(dataset))


def test_versions_and_a_finish_by_another_run_are_no_edits(source, dataset):
    text = (dataset / "latents.toml").read_text()
    version = tomllib.loads(text)["versions"]["numpy"]
    edit(dataset / "latents.toml", f'numpy = "{version}"', 'numpy = "1.0"')
    assert messages(dataset) == []
    shutil.rmtree(dataset / "00001")
    with pytest.warns(UserWarning, match="numpy"):
        latentq.encode(source, dataset, **SMALL)
    assert messages(dataset) == []


def test_edited_labels_in_the_list_are_found(dataset):
    edit(dataset / "list" / "00000.tsv", "cat/02.png\t", "cat/02.jpg\t")
    found = messages(dataset)
    assert found[0] == "list/00000.tsv: is not the last part of the card's list: its hash differs"
    assert any("holds 'cat/02.png', the list says 'cat/02.jpg'" in line for line in found)
    assert "00001/unit.toml: the unit was made from another part of the list" in found


def test_an_edited_part_is_found_where_the_chain_breaks_and_in_its_units(three_parts):
    edit(three_parts / "list" / "00000.tsv", "bee/01.png\t", "bee/0l.png\t")
    found = messages(three_parts)
    assert found[0] == "list/00001.tsv: the part before it has another hash"
    assert any("holds 'bee/01.png', the list says 'bee/0l.png'" in line for line in found), found
    assert all(line.startswith(("list/00001.tsv", "00000")) for line in found), found


def test_a_missing_part_is_found(three_parts):
    (three_parts / "list" / "00001.tsv").unlink()
    assert messages(three_parts) == ["list/00001.tsv: missing"]
    (three_parts / "list" / "00000.tsv").unlink()
    assert messages(three_parts) == ["list/00000.tsv: missing"]
    shutil.rmtree(three_parts / "list")
    assert messages(three_parts) == ["list: missing"]


def test_a_missing_last_part_is_found(three_parts):
    (three_parts / "list" / "00002.tsv").unlink()
    assert messages(three_parts) == [
        "list/00001.tsv: is not the last part of the card's list: its hash differs",
        "list: has 2 units of 10 samples, the card 3 units of 13 samples",
    ]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (1, 2)])
def test_swapped_parts_are_found(three_parts, first, second):
    swap(three_parts / "list", f"{first:05}.tsv", f"{second:05}.tsv")
    assert f"list/{second:05}.tsv: the part before it has another hash" in messages(three_parts)


@pytest.mark.parametrize(
    ("part", "old", "new", "finding"),
    [
        (0, '"first_unit": 0', '"first_unit": 1', "list/00000.tsv: its header is not that of a first part"),
        (1, '"first_sample": 5', '"first_sample": 4', "list/00002.tsv: the part before it has another hash"),
        (0, '"units": [[5, ', '"units": [[4, ', "list/00001.tsv: the part before it has another hash"),
        (1, '"usable": 10', '"usable": 11', "list/00002.tsv: the part before it has another hash"),
        (
            2,
            '"usable": 13',
            '"usable": 12',
            "list/00002.tsv: is not the last part of the card's list: its hash differs",
        ),
        (1, '"previous": "', '"previous": "0', "list/00001.tsv: the part before it has another hash"),
        (1, '# {"first_unit"', '# {"first"', "list/00001.tsv: not a part of a list of samples"),
        (2, '# {"first_unit"', '# {"first"', "list/00002.tsv: not a part of a list of samples"),
    ],
)
def test_an_edited_header_is_found(three_parts, part, old, new, finding):
    edit(three_parts / "list" / f"{part:05}.tsv", old, new)
    assert finding in messages(three_parts)


def test_a_truncated_part_is_found(three_parts):
    file = three_parts / "list" / "00001.tsv"
    file.write_bytes(file.read_bytes()[:-1])
    assert any(line.startswith("list/00001.tsv: has ") for line in messages(three_parts))


def test_extra_files_in_the_list_are_found(three_parts):
    for name in ("notes.txt", "000001.tsv", ".hidden"):
        (three_parts / "list" / name).write_bytes(b"")
    assert messages(three_parts) == [
        "list/.hidden: is not a part of the dataset",
        "list/000001.tsv: is not a part of the dataset",
        "list/notes.txt: is not a part of the dataset",
    ]
    for name in ("notes.txt", "000001.tsv", ".hidden"):
        (three_parts / "list" / name).unlink()
    shutil.copy(three_parts / "list" / "00002.tsv", three_parts / "list" / "00003.tsv")
    assert "list/00003.tsv: the part before it has another hash" in messages(three_parts)


def test_edited_rejects_and_a_merged_index_with_other_bytes_are_found(three_parts):
    for name, message in (
        ("rejects.tsv", "does not hold the units' rejects"),
        ("index.json", "is not the units' indexes merged"),
    ):
        data = (three_parts / name).read_bytes()
        for edited in (data[:-1], data + b"\n", data[:-2] + b"x" + data[-1:], b""):
            (three_parts / name).write_bytes(edited)
            assert messages(three_parts) == [f"{name}: {message}"]
        (three_parts / name).unlink()
        assert messages(three_parts) == [f"{name}: missing"]
        (three_parts / name).write_bytes(data)
    assert messages(three_parts) == []


def test_units_that_are_missing_are_counted(three_parts):
    shutil.rmtree(three_parts / "00001")
    (three_parts / "00002" / "index.json").unlink()
    assert messages(three_parts) == ["latents.toml: not finished: 1 of 3 units; the first missing is 00001"]


def test_extra_units_and_files_are_found(dataset):
    shutil.copytree(dataset / "00001", dataset / "00003")
    (dataset / "notes.txt").write_text("mine")
    (dataset / "00001" / "notes.txt").write_text("mine")
    (dataset / "00002" / "shard.00001.mds").write_bytes((dataset / "00002" / "shard.00000.mds").read_bytes())
    (dataset / ".hidden").write_text("ignored")
    assert messages(dataset) == [
        "00003: is a unit that the card does not have",
        "notes.txt: is not a part of the dataset",
        "00001/notes.txt: is not a part of the dataset",
        "00002/shard.00001.mds: the index does not list the shard",
    ]


@pytest.mark.parametrize("name", ["latents.toml", "list/00000.tsv", "rejects.tsv", "00001/unit.toml"])
def test_a_file_that_is_a_fifo_is_found_at_once(source, dataset, name, capsys):
    (dataset / name).unlink()
    os.mkfifo(dataset / name)
    for command in (
        ["verify", str(dataset)],
        ["encode", str(source), str(dataset), "--size", "64", "--unit-size", "5"],
    ):
        if name == "rejects.tsv" and command[0] == "encode":  # written again, never read
            continue
        assert main(command) == 1
        printed = capsys.readouterr()
        assert f"{dataset / name}: not a regular file" in printed.out + printed.err


def test_decode_reports_psnr_and_clip_rate(source, dataset, capsys):
    quality = sample_quality(dataset, 6, source=source)
    assert (quality.decoded, quality.bad) == (6, ())
    assert 22 < quality.psnr < 26
    assert quality.lowest_psnr <= quality.psnr
    assert quality.lowest in (0, 2, 4, 6, 8, 10)
    clipped = sum(latentq.Card.load(dataset).latents["latent"].clipped)
    assert quality.clip_rate == clipped / (12 * 16 * 8 * 8)
    assert main(["verify", str(dataset), "--decode", "6", "--source", str(source)]) == 0
    printed = capsys.readouterr()
    assert f"6 samples decoded; mean PSNR {quality.psnr:.2f} dB" in printed.err
    assert printed.out == f"{dataset}: good\n"
    assert main(["verify", str(dataset), "--decode", "99", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert "12 samples decoded; no PSNR without --source" in printed.err
    assert main(["verify", str(dataset), "--decode", "0"]) == 2
    assert main(["verify", str(dataset), "--source", str(source)]) == 2
