"""Samples that cannot be used are rejects with a reason, and faults of the machine end the run."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

import latentq
from conftest import contents, paint
from latentq import LatentqError, MismatchError
from latentq.inspect.pictures import pictures as decode_pictures
from support.images import failing_batch

SMALL = {"autoencoder": "dct-f8c16", "size": 64}


def test_images_below_min_size_are_rejected(pictures, tmp_path):
    (pictures / "ant" / "broken.jpg").write_bytes(b"no picture")
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, min_size=90)
    rows = [line.split("\t") for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    small = {str(path.relative_to(pictures)) for path in pictures.glob("*/[0-9]*") if min(Image.open(path).size) < 90}
    assert 0 < len(small) < 12
    assert {key for key, stage, _ in rows if stage == "size"} == small
    assert [key for key, stage, _ in rows if stage == "decode"] == ["ant/broken.jpg"]
    assert (card.counts.samples, card.counts.rejects) == (12 - len(small), len(small) + 1)
    assert ["ant/00.jpg", "size", "90 x 70 pixels, below 90"] in rows


def spoil(pictures: Path) -> None:
    (pictures / "ant" / "text.jpg").write_text("this is no picture")
    (pictures / "bee" / "empty.png").touch()
    whole = (pictures / "cat" / "05.png").with_name("half.jpg")
    paint(whole, 5, (300, 200))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def test_undecodable_images_are_rejected_and_the_rest_is_stored(pictures, tmp_path):
    clean = latentq.encode(pictures, tmp_path / "clean", **SMALL, calibration=1)
    spoil(pictures)
    card = latentq.encode(pictures, tmp_path / "out", **SMALL, calibration=1)
    lines = [line.split("\t") for line in (tmp_path / "out" / "rejects.tsv").read_text().splitlines()]
    assert [line[:2] for line in lines] == [
        ["ant/text.jpg", "decode"], ["bee/empty.png", "decode"], ["cat/half.jpg", "decode"]
    ]  # fmt: skip
    assert all(line[2] for line in lines)
    assert str(tmp_path) not in (tmp_path / "out" / "rejects.tsv").read_text()
    assert (card.counts.samples, card.counts.rejects, card.source.samples) == (12, 3, 15)
    assert card.latents["latent"] == clean.latents["latent"]
    assert latentq.verify(tmp_path / "out") == []


def test_strict_run_ends_at_the_first_reject_and_names_it(pictures, tmp_path):
    spoil(pictures)
    with pytest.raises(LatentqError, match=r"pictures/ant/text\.jpg: decode: "):
        latentq.encode(pictures, tmp_path / "out", **SMALL, strict=True)


def test_missing_file_of_a_table_is_rejected(pictures, tmp_path):
    table = tmp_path / "table.tsv"
    table.write_text("pictures/ant/00.jpg\nnowhere.png\n")
    latentq.encode(table, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "nowhere.png\tread\tNo such file or directory\n"


def test_reject_reasons_do_not_contain_the_path_of_the_source(tmp_path):
    folder = tmp_path / "two  spaces"
    paint(folder / "a.png", 1)
    for name in ("b  c.jpg", "n\nl.jpg", "u\u2028.jpg"):
        (folder / name).write_text("no")
    latentq.encode(folder, tmp_path / "out", **SMALL, calibration=1)
    text = (tmp_path / "out" / "rejects.tsv").read_text() + (tmp_path / "out" / "00000" / "unit.toml").read_text()
    assert "two" not in text
    right = decode_pictures(tmp_path / "out", [0], source=folder)[0]
    assert right[0].lines[0] == "a.png"


def test_file_that_is_not_regular_is_rejected(pictures, tmp_path):
    os.mkfifo(pictures / "ant" / "fifo.jpg")
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "ant/fifo.jpg\tread\tnot a regular file\n"


def test_source_that_is_missing_on_another_machine_ends_the_run(pictures, tmp_path):
    options = {**SMALL, "unit_size": 5, "world_size": 2}
    latentq.encode(pictures, tmp_path / "out", **options, rank=0)
    pictures.rename(tmp_path / "moved")
    pictures.mkdir()
    with pytest.raises(MismatchError, match=r"is listed with \d+ bytes and is not there now"):
        latentq.encode(pictures, tmp_path / "out", **options, rank=1)
    shutil.copytree(tmp_path / "moved", pictures, dirs_exist_ok=True)
    paint(pictures / "bee" / "04.png", 99, (30, 30))
    with pytest.raises(MismatchError, match=r"bee/04\.png is listed with \d+ bytes and has \d+ bytes now"):
        latentq.encode(pictures, tmp_path / "out", **options, rank=1)


MACHINE_FAULTS = [
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.EMFILE, "Too many open files"),
    MemoryError("12 bytes"),
    latentq.ImageError("x.png: there is no memory for 1300000000 bytes of pixels"),
    latentq.ImageError("x.jpg: JPEG: Insufficient memory (case 4)"),
]


@pytest.mark.parametrize("fault", MACHINE_FAULTS, ids=str)
def test_fault_of_the_machine_ends_the_run_and_is_not_a_reject(pictures, tmp_path, monkeypatch, fault):
    latentq.encode(pictures, tmp_path / "whole", **SMALL)
    monkeypatch.setattr(latentq._core, "ImageBatch", failing_batch(fault))
    with pytest.raises(OSError if isinstance(fault, OSError) else MemoryError) as raised:
        latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert str(fault) in str(raised.value)
    monkeypatch.undo()
    latentq.encode(pictures, tmp_path / "out", **SMALL)  # the same command continues
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_file_name_that_speaks_of_memory_is_no_fault_of_the_machine(tmp_path):
    paint(tmp_path / "photos" / "a.png", 0)
    (tmp_path / "photos" / "out of memory.png").write_bytes(b"not an image")
    card = latentq.encode(tmp_path / "photos", tmp_path / "out", **SMALL)
    assert (card.counts.samples, card.counts.rejects) == (1, 1)


def test_file_name_that_is_not_utf8_is_rejected(pictures, tmp_path):
    paint(pictures / "cat" / "plain.png", 3)
    (pictures / "cat" / "plain.png").rename(os.fsdecode(os.fsencode(pictures / "cat") + b"/\xff.png"))
    latentq.encode(pictures, tmp_path / "out", **SMALL)
    assert (tmp_path / "out" / "rejects.tsv").read_text() == "cat/\\\\udcff.png\tlist\tthe file's name is not UTF-8\n"


def test_source_without_usable_images_is_an_error(tmp_path):
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text("no")
    with pytest.raises(LatentqError, match=r"none of 2 samples can be encoded, the first is 'a\.jpg': decode: "):
        latentq.encode(tmp_path, tmp_path / "out", **SMALL)
