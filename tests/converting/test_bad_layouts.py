"""Broken, hostile and unfitting files of other tools: a typed error that names the file, and nothing left behind."""

import contextlib
import gzip
import io
import json
import os
import pickle
import resource
import signal

import numpy as np
import pytest
import torch

import latentq
from latentq.converting import names
from latentq.converting.layouts import LAYOUTS
from latentq.converting.pipeline import convert
from latentq.converting.work import resumable
from support import foreign_making as made
from support.converted import files

COUNT = 6


def floats(seed, *shape):
    return np.random.default_rng(seed).standard_normal((COUNT, *shape)).astype(np.float32)


LABELS = np.arange(COUNT) % 3


def lightningdit(folder):
    made.lightningdit_writes(folder, floats(0, 4, 4, 4), floats(1, 4, 4, 4), LABELS, shard=4)
    return folder / "latents_rank00_shard001.safetensors"


def repa(folder):
    made.edm2_writes(folder, floats(0, 8, 4, 4), LABELS.tolist())
    return folder / "00000" / "img-mean-std-00000003.npy"


def repa_e(folder):
    made.repa_e_writes(folder, "moments", floats(0, 8, 4, 4), LABELS.tolist())
    return folder / "moments.h5"


def mar(folder):
    made.mar_writes(folder, [f"n{i % 2}/{i}.JPEG" for i in range(COUNT)], floats(0, 8, 4, 4), floats(1, 8, 4, 4))
    return folder / "n1" / "3.JPEG.npz"


def fast_dit(folder):
    made.fast_dit_writes(folder, floats(0, 4, 4, 4), LABELS)
    return folder / "imagenet256_features" / "3.npy"


def llamagen(folder):
    made.llamagen_writes(folder, np.arange(COUNT * 32).reshape(COUNT, 2, 16), LABELS)
    return folder / "imagenet256_codes" / "3.npy"


def rar(folder):
    folder.mkdir()
    made.rar_writes(folder / "tokens.jsonl", np.arange(COUNT * 16).reshape(COUNT, 16), LABELS.tolist())
    return folder / "tokens.jsonl"


def cosmos_imagenet(folder):
    folder.mkdir()
    made.cosmos_imagenet_writes(folder / "ci.safetensors", floats(0, 4, 4, 4).astype(np.int8), LABELS)
    return folder / "ci.safetensors"


def kohya(folder):
    folder.mkdir()
    for index, latent in enumerate(floats(0, 16, 4, 4)):
        crop = made.kohya_crop_ltrb((32, 32), (64, 64))
        made.kohya_saves(folder / f"{index}_0064x0064_flux.npz", latent, (64, 64), crop, key_reso_suffix="_4x4")
    return folder / "3_0064x0064_flux.npz"


def musubi(folder):
    folder.mkdir()
    for index, latent in enumerate(floats(0, 16, 1, 4, 4)):
        path = folder / f"{index}_0064x0064_qi.safetensors"
        made.musubi_saves(path, torch.from_numpy(latent), "qwen_image", (64, 64))
    return folder / "3_0064x0064_qi.safetensors"


def nemo(folder, *, image="/data/{}.jpg"):
    samples = [
        (image.format(i), torch.from_numpy(x).half(), (32, 32), (64, 64), torch.ones(1, 3, 4), None)
        for i, x in enumerate(floats(0, 16, 4, 4))
    ]
    made.nemo_writes(folder, samples)
    items = json.loads((folder / "metadata_shard_0000.json").read_text())
    return folder / "32x32" / os.path.basename(items[3]["cache_file"])  # noqa: PTH119


def energon(folder):
    samples = [{"latents.pth": torch.from_numpy(x), "caption.txt": f"{i}"} for i, x in enumerate(floats(0, 16, 4, 4))]
    made.primus_writes(folder, samples, shard_size=3)
    return folder / "000001.tar"


def simpletuner(folder):
    latents = map(torch.from_numpy, floats(0, 16, 4, 4))
    made.simpletuner_writes(folder, [f"{i}.pt" for i in range(COUNT)], latents, compress=False)
    return folder / "3.pt"


MAKERS = {
    "lightningdit": lightningdit,
    "repa": repa,
    "repa-e": repa_e,
    "mar": mar,
    "fast-dit": fast_dit,
    "llamagen": llamagen,
    "rar": rar,
    "cosmos-imagenet": cosmos_imagenet,
    "kohya": kohya,
    "musubi": musubi,
    "nemo": nemo,
    "energon": energon,
    "simpletuner": simpletuner,
}
ONE_FILE = ("rar", "cosmos-imagenet")


def source_of(layout, folder):
    """Make a layout; return what is converted, and one of its files."""
    file = MAKERS[layout](folder)
    return (file if layout in ONE_FILE else folder), file


def test_every_layout_has_its_name_and_what_it_needs():
    assert tuple(LAYOUTS) == names.NAMES
    for name, layout in LAYOUTS.items():
        assert name == layout.NAME
        assert hasattr(layout, "write") == (name in names.WRITTEN)


@pytest.mark.parametrize("layout", MAKERS)
def test_a_truncated_file_is_an_error_that_names_it(layout, tmp_path):
    source, file = source_of(layout, tmp_path / "src")
    whole = file.read_bytes()
    end = {"rar": len(whole) - 2, "energon": len(whole) // 2}.get(layout, len(whole) - 9)  # a tar ends with padding
    for length in (0, 7, len(whole) // 3, end):
        file.write_bytes(whole[:length])
        with pytest.raises((latentq.FormatError, latentq.MismatchError)) as caught:
            convert(source, tmp_path / "out", from_layout=layout)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    file.write_bytes(whole)
    assert convert(source, tmp_path / "out", from_layout=layout) == COUNT


@pytest.mark.parametrize("layout", MAKERS)
def test_flipped_bytes_are_an_error_or_other_values(layout, tmp_path):
    source, file = source_of(layout, tmp_path / "src")
    whole = bytearray(file.read_bytes())
    rng = np.random.default_rng(0)
    for number in range(6):
        spoiled = bytearray(whole)
        spoiled[rng.integers(min(len(whole), 400 if number % 2 else len(whole)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoiled)
        with contextlib.suppress(latentq.LatentqError):
            convert(source, tmp_path / f"out{number}", from_layout=layout)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("layout", ["repa", "mar", "fast-dit", "llamagen", "kohya", "musubi"])
@pytest.mark.parametrize("change", ["shape", "dtype"])
def test_a_file_unlike_the_first_is_an_error_that_names_it(layout, change, tmp_path):
    source, file = source_of(layout, tmp_path / "src")

    def changed(array):
        return np.concatenate([array, array]) if change == "shape" else array.astype(np.float64)

    if file.suffix == ".npy":
        np.save(file, changed(np.load(file)))
    elif file.suffix == ".npz":
        np.savez(file, **{name: changed(array) for name, array in np.load(file).items()})
    else:
        from safetensors.numpy import load_file, save_file

        save_file({name: changed(array) for name, array in load_file(file).items()}, file)
    with pytest.raises(latentq.FormatError) as caught:
        convert(source, tmp_path / "out", from_layout=layout)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("layout", ["lightningdit", "repa", "kohya"])
def test_a_nan_is_an_error_that_names_the_sample(layout, tmp_path):
    source, file = source_of(layout, tmp_path / "src")
    if layout == "lightningdit":
        latents = floats(0, 4, 4, 4)
        latents[5, 2, 1, 1] = np.nan
        for path in source.iterdir():
            path.unlink()
        source.rmdir()
        made.lightningdit_writes(source, latents, -latents, LABELS, shard=4)
        (source / "latents_stats.pt").unlink()
        name = "5"
    elif layout == "repa":
        np.save(file, np.full((8, 4, 4), np.inf, np.float32))
        name = "img-mean-std-00000003"
    else:
        np.savez(file, **(dict(np.load(file)) | {"latents_4x4": np.full((16, 4, 4), np.nan, np.float32)}))
        name = "3"
    for bits in (None, 8):
        with pytest.raises(latentq.LatentqError, match=r"NaN|infinit"):
            convert(source, tmp_path / "out", from_layout=layout, bits=bits)
    with pytest.raises(latentq.FormatError, match=name):
        convert(source, tmp_path / "out", from_layout=layout)


@pytest.mark.parametrize("length", [1 << 62, 1 << 40, 1 << 20])
@pytest.mark.parametrize("layout", ["lightningdit", "cosmos-imagenet", "musubi"])
def test_a_hostile_header_allocates_nothing(layout, length, tmp_path):
    source, file = source_of(layout, tmp_path / "src")
    file.write_bytes(length.to_bytes(8, "little") + b"{" + file.read_bytes()[9:])
    with pytest.raises(latentq.FormatError) as caught:
        convert(source, tmp_path / "out", from_layout=layout)
    assert str(file) in str(caught.value)


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("place", ["nemo", "energon", "simpletuner", "latents_stats.pt"])
def test_nothing_in_a_pickle_is_executed(place, tmp_path):
    buffer = io.BytesIO()
    torch.save({"latent": Hostile(tmp_path / "marker"), "mean": Hostile(tmp_path / "marker")}, buffer)
    layout = "lightningdit" if place == "latents_stats.pt" else place
    source, file = source_of(layout, tmp_path / "src")
    if place == "energon":
        import webdataset

        with webdataset.TarWriter(str(file)) as sink:
            sink.write({"__key__": "a", "latents.pth": buffer.getvalue()})
    else:
        target = source / place if place == "latents_stats.pt" else file
        target.write_bytes(buffer.getvalue())
    with pytest.raises(latentq.FormatError):
        convert(source, tmp_path / "out", from_layout=layout)
    assert not (tmp_path / "marker").exists()
    # A bare pickle, as np.save writes objects.
    if layout == "simpletuner":
        file.write_bytes(pickle.dumps(Hostile(tmp_path / "marker")))
        with pytest.raises(latentq.FormatError):
            convert(source, tmp_path / "out", from_layout=layout)
        assert not (tmp_path / "marker").exists()


def test_an_object_array_is_not_unpickled(tmp_path):
    source, file = source_of("fast-dit", tmp_path / "src")
    np.save(file, np.array([Hostile(tmp_path / "marker")], dtype=object), allow_pickle=True)
    with pytest.raises(latentq.FormatError, match="not numbers"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, ",  # a bracket is open
        "{'descr': '<04', 'fortran_order': False, 'shape': (4,), }",  # no dtype
        "{'descr': '<f4', 'fortran_order': False, 'shape': " + 9000 * "-" + "4, }",  # too deep for Python's parser
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    ],
)
def test_a_broken_header_of_npy_is_an_error_that_names_the_file(header, tmp_path):
    file = fast_dit(tmp_path / "in")
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    file.write_bytes(start + header.encode() + bytes(64))
    with pytest.raises(latentq.FormatError) as error:
        convert(tmp_path / "in", tmp_path / "out")
    message = str(error.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message


def test_a_zip_bomb_is_refused_by_its_size(tmp_path):
    source, file = source_of("mar", tmp_path / "src")
    np.savez_compressed(file, **dict(np.load(file)))
    data = bytearray(file.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (300 << 20).to_bytes(4, "little")  # the size of the first member in the directory
    file.write_bytes(data)
    with pytest.raises(latentq.FormatError, match=r"moments.npy has 314572800 bytes, more than"):
        convert(source, tmp_path / "out")


def test_a_compressed_npz_is_read(tmp_path):
    source, file = source_of("mar", tmp_path / "src")
    arrays = dict(np.load(file))
    np.savez_compressed(file, **arrays)
    assert convert(source, tmp_path / "out") == COUNT


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    source, file = source_of("simpletuner", tmp_path / "src")
    monkeypatch.setattr("latentq.converting.torch_tensors.MAX_MEMBER", 1 << 16)
    file.write_bytes(gzip.compress(bytes(1 << 20)))
    with pytest.raises(latentq.FormatError, match="it is more than"):
        convert(source, tmp_path / "out", from_layout="simpletuner")


def test_a_key_does_not_leave_the_folder(tmp_path):
    nemo(tmp_path / "src", image="../../evil{}")
    convert(tmp_path / "src", tmp_path / "in")
    with pytest.raises(latentq.MismatchError, match="is not a path in a folder"):
        convert(tmp_path / "in", tmp_path / "sub", to_layout="kohya")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "src"]
    convert(tmp_path / "in", tmp_path / "sub", to_layout="musubi:zi")
    assert len(list((tmp_path / "sub").glob("evil*_zi.safetensors"))) == COUNT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "src", "sub"]


def test_a_listed_file_outside_the_folder_is_refused(tmp_path):
    nemo(tmp_path / "src")
    (tmp_path / "secret.meta").write_bytes(b"")
    shard = tmp_path / "src" / "metadata_shard_0000.json"
    entries = json.loads(shard.read_text())
    entries[0]["cache_file"] = "../secret.meta"
    shard.write_text(json.dumps(entries))
    with pytest.raises(latentq.FormatError, match=r"secret.meta is not in"):
        convert(tmp_path / "src", tmp_path / "in")


@contextlib.contextmanager
def no_more_than(size):
    """Let no file grow beyond a size, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_an_error_and_the_same_command_completes(tmp_path):
    latents = np.random.default_rng(0).standard_normal((40, 16, 16, 16)).astype(np.float32)
    made.lightningdit_writes(tmp_path / "src", latents, -latents, np.arange(40), shard=40)
    with no_more_than(300_000), pytest.raises(OSError, match="File too large"):
        convert(tmp_path / "src", tmp_path / "in")
    assert not (tmp_path / "in").exists()
    convert(tmp_path / "src", tmp_path / "in")
    convert(tmp_path / "src", tmp_path / "same")
    assert files(tmp_path / "in") == files(tmp_path / "same")
    for layout in ("lightningdit", "fast-dit"):
        with no_more_than(10_000), pytest.raises(OSError, match="File too large") as error:
            convert(tmp_path / "in", tmp_path / "out", to_layout=layout)
        assert str(tmp_path) in str(error.value.filename)
        assert not (tmp_path / "out").exists()
    convert(tmp_path / "in", tmp_path / "out", to_layout="lightningdit")
    shard = "latents_rank00_shard000.safetensors"
    assert (tmp_path / "out" / shard).stat().st_size == (tmp_path / "src" / shard).stat().st_size


@pytest.mark.parametrize("size", [0, 3000, 20_000, 70_000])
def test_a_full_disk_does_not_crash_hdf5(size, tmp_path):
    moments = np.abs(np.random.default_rng(0).standard_normal((60, 8, 8, 8)).astype(np.float32))
    made.edm2_writes(tmp_path / "many", moments, [0] * 60)
    convert(tmp_path / "many", tmp_path / "more", from_layout="edm2")
    with no_more_than(size), pytest.raises(OSError, match="File too large") as error:
        convert(tmp_path / "more", tmp_path / "out", to_layout="repa-e")
    assert str(tmp_path) in str(error.value.filename)
    convert(tmp_path / "more", tmp_path / "out", to_layout="repa-e")
    convert(tmp_path / "out", tmp_path / "again")
    assert latentq.verify(tmp_path / "again") == []


def test_a_second_process_leaves_the_work_of_the_first_alone(tmp_path):
    """It removed it, as long as no unit was done, and then neither came to an end."""
    made.rar_writes(tmp_path / "tokens.jsonl", np.zeros((COUNT, 16), np.int64), LABELS.tolist())
    out = tmp_path / "out"
    with resumable(out, {"source": "another"}) as work:
        with pytest.raises(latentq.MismatchError, match="another process is converting to it"):
            convert(tmp_path / "tokens.jsonl", out)
        assert (work.folder / "job.json").exists()
        work.result.mkdir()
    assert out.is_dir()


def test_a_conversion_does_not_write_into_its_source(tmp_path):
    mar(tmp_path / "src")
    before = files(tmp_path / "src")
    with pytest.raises(latentq.LatentqError, match=r"would be in .*src, which is converted: choose a place outside"):
        convert(tmp_path / "src", tmp_path / "src" / "out")
    assert files(tmp_path / "src") == before


def test_the_source_may_not_change_while_a_conversion_is_unfinished(tmp_path, monkeypatch):
    from latentq.converting import to_dataset

    fast_dit(tmp_path / "src")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(to_dataset, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "src", tmp_path / "in")
    np.save(tmp_path / "src" / "imagenet256_labels" / "2.npy", np.array([77]))
    with pytest.raises(latentq.MismatchError, match="is not the list of the source any more"):
        convert(tmp_path / "src", tmp_path / "in")
