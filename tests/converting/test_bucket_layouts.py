"""Layouts whose latents have many shapes: into a dataset with buckets, out and in again, equal to the bit."""

import re
import shutil
from dataclasses import replace
from pathlib import PurePath

import numpy as np
import pytest
import torch

import latentq
from conftest import paint
from latentq.cli.main import main
from latentq.converting import kohya, musubi, outgoing
from latentq.converting.pipeline import convert
from latentq.converting.work import Work
from latentq.format.normalization import Normalization
from support import foreign_making as made
from support.converted import IMAGES, by_key, files, latent, same

STEMS = [f"{'sub/' * (index % 2)}im_{index:02}" for index in range(len(IMAGES))]


def kohya_writes(folder, kind, channels, stride, *, suffixed, flip=False, mask=False):
    for index, (stem, (image, bucket)) in enumerate(zip(STEMS, IMAGES, strict=True)):
        path = folder / f"{stem}_{image[0]:04d}x{image[1]:04d}_{kind}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        one = latent(index, channels, bucket, stride)
        end = f"_{one.shape[1]}x{one.shape[2]}" if suffixed else ""
        mirrored = latent(index, channels, bucket, stride, seed=1) if flip else None
        alpha = np.ones((bucket[1], bucket[0]), np.float32) if mask else None
        made.kohya_saves(path, one, image, made.kohya_crop_ltrb(bucket, image), mirrored, alpha, end)


def test_how_a_tool_loaded_its_images_is_unknown(tmp_path, capsys):
    kohya_writes(tmp_path / "cache", "sd", 4, 8, suffixed=False)
    convert(tmp_path / "cache", tmp_path / "out")
    capsys.readouterr()
    assert main(["info", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^image +unknown: the latents are converted from another tool's$", text, re.MULTILINE)
    assert re.search(r"^buckets: \d+ by a list$", text, re.MULTILINE)


# How `shift_scale_latents` of *_train_network.py makes training values; the others' are cached.
TRAINED = {
    "sd": lambda x: x * 0.18215,
    "sdxl": lambda x: x * 0.13025,
    "sd3": lambda x: (x - 0.0609) * 1.5305,
    "hi": lambda x: x * 0.75289,
}


@pytest.mark.parametrize(
    ("kind", "channels", "stride", "suffixed", "flip"),
    [
        ("sd", 4, 8, False, False),
        ("sdxl", 4, 8, False, True),
        ("sd3", 16, 8, True, False),
        ("flux", 16, 8, True, True),
        ("lumina", 16, 8, True, False),
        ("hi", 64, 32, True, False),
        ("anima", 16, 8, True, False),
    ],
)
def test_kohya_is_equal_to_the_bit(kind, channels, stride, suffixed, flip, tmp_path):
    kohya_writes(tmp_path / "images", kind, channels, stride, suffixed=suffixed, flip=flip)
    assert convert(tmp_path / "images", tmp_path / "in") == len(IMAGES)
    card = latentq.Card.load(tmp_path / "in")
    assert card.recipe.bucket_sizes() == ((64, 64), (64, 96), (96, 64))
    expected = {stem: latent(i, channels, IMAGES[i][1], stride) for i, stem in enumerate(STEMS)}
    same(by_key(tmp_path / "in"), expected)
    dataset = latentq.LatentDataset(tmp_path / "in", columns=["latent", "key"], scale="scaled")
    x = expected[dataset[0]["key"]]
    np.testing.assert_allclose(dataset[0]["latent"].numpy(), TRAINED.get(kind, lambda x: x)(x), rtol=1e-6, atol=1e-6)
    convert(tmp_path / "in", tmp_path / "out", to_layout=f"kohya:{kind}")
    assert files(tmp_path / "out") == files(tmp_path / "images")
    for index, (stem, (image, bucket)) in enumerate(zip(STEMS, IMAGES, strict=True)):
        path = tmp_path / "out" / f"{stem}_{image[0]:04d}x{image[1]:04d}_{kind}.npz"
        found, original, crop, mirrored = made.kohya_loads(stride if suffixed else None, path, bucket)
        assert np.array_equal(found, expected[stem])
        assert (original, crop) == (list(image), list(made.kohya_crop_ltrb(bucket, image)))
        assert (mirrored is not None) == flip
        if flip:
            assert np.array_equal(mirrored, latent(index, channels, bucket, stride, seed=1))
    convert(tmp_path / "out", tmp_path / "again")
    same(by_key(tmp_path / "again"), expected)


def several_resolutions(folder):
    """Write two latents of each image into one file; return them by key."""
    folder.mkdir()
    expected = {}
    for index, (image, bucket) in enumerate(IMAGES):
        for scale in (1, 2):
            size = bucket[0] * scale, bucket[1] * scale
            one = latent(index, 16, size, seed=scale)
            path = folder / f"im_{index:02}_{image[0]:04d}x{image[1]:04d}_flux.npz"
            crop = made.kohya_crop_ltrb(size, image)
            made.kohya_saves(path, one, image, crop, key_reso_suffix=f"_{one.shape[1]}x{one.shape[2]}")
            expected[f"im_{index:02}#{one.shape[1]}x{one.shape[2]}"] = one
    return expected


def test_kohya_with_several_resolutions(tmp_path):
    expected = several_resolutions(tmp_path / "images")
    assert convert(tmp_path / "images", tmp_path / "in") == 2 * len(IMAGES)
    same(by_key(tmp_path / "in"), expected)
    convert(tmp_path / "in", tmp_path / "out", to_layout="kohya")
    for index, (image, bucket) in enumerate(IMAGES):
        for scale in (1, 2):
            size = bucket[0] * scale, bucket[1] * scale
            path = tmp_path / "out" / f"im_{index:02}_{image[0]:04d}x{image[1]:04d}_flux.npz"
            found, original, *_ = made.kohya_loads(8, path, size)
            assert np.array_equal(found, latent(index, 16, size, seed=scale))
            assert original == list(image)
    convert(tmp_path / "out", tmp_path / "again")
    same(by_key(tmp_path / "again"), expected)


@pytest.mark.parametrize("samples", [6, 12, 21])
def test_several_resolutions_survive_a_kill(samples, tmp_path, monkeypatch):
    """The work is copied at a record; what was begun after it is half written, or replaced as a whole."""
    expected = several_resolutions(tmp_path / "images")
    convert(tmp_path / "images", tmp_path / "in")
    monkeypatch.setattr(kohya, "_STEP", 3)
    monkeypatch.setattr(outgoing, "_MAX_BATCH", 3)
    record = Work.record

    def copied(self, done):
        record(self, done)
        if done == samples:
            shutil.copytree(self.folder, tmp_path / ".out2.converting")

    monkeypatch.setattr(Work, "record", copied)
    convert(tmp_path / "in", tmp_path / "out", to_layout="kohya")
    begun = tmp_path / ".out2.converting" / "result"
    there = files(begun)
    for name, data in files(tmp_path / "out").items():
        if name not in there:
            (begun / name).write_bytes(data[: len(data) // 2])
    convert(tmp_path / "in", tmp_path / "out2", to_layout="kohya")
    convert(tmp_path / "out2", tmp_path / "again")
    same(by_key(tmp_path / "again"), expected)
    assert not list(tmp_path.glob(".*"))


def test_old_files_of_kohya_and_what_is_not_converted(tmp_path, capsys):
    import sys

    kohya_writes(tmp_path / "images", "sdxl", 4, 8, suffixed=False, mask=True)
    for path in list((tmp_path / "images").rglob("*.npz")):
        path.rename(path.with_name("_".join(path.name.split("_")[:2]) + ".npz"))
    np.savez(tmp_path / "images" / "im_00_te_outputs.npz", hidden_state1=np.zeros(3))
    convert(tmp_path / "images", tmp_path / "in", autoencoder="sdxl", progress=sys.stderr)
    assert f"alpha_mask of {len(IMAGES)} files is not converted" in capsys.readouterr().err
    same(by_key(tmp_path / "in"), {stem: latent(i, 4, IMAGES[i][1]) for i, stem in enumerate(STEMS)})
    assert latentq.Card.load(tmp_path / "in").autoencoder.name == "stabilityai/sdxl-vae"
    convert(tmp_path / "in", tmp_path / "out", to_layout="kohya")
    assert (tmp_path / "out" / "im_00_0600x0400_sdxl.npz").exists()


def test_files_of_several_architectures_are_told_with_how_to_choose(tmp_path):
    kohya_writes(tmp_path / "images", "sdxl", 4, 8, suffixed=False)
    kohya_writes(tmp_path / "images", "flux", 16, 8, suffixed=True)
    with pytest.raises(latentq.MismatchError, match="choose by --from kohya:flux or --from kohya:sdxl"):
        convert(tmp_path / "images", tmp_path / "in")
    convert(tmp_path / "images", tmp_path / "in", from_layout="kohya:sdxl")
    same(by_key(tmp_path / "in"), {stem: latent(i, 4, IMAGES[i][1]) for i, stem in enumerate(STEMS)})


# By the end of a file's name: the name in the metadata, the dtype of most caches, C, axes, pixels a position, what else
# a file holds, and how `scale_shift_latents` of the trainer makes training values of a cached latent: None if it does
# not, since *_cache_latents.py did; True if that needs numbers of the checkpoint.
MUSUBI = {
    "qi": ("qwen_image", torch.bfloat16, 16, "CFHW", 8, ["latents_control_0"], None),
    "qie": ("qwen_image", torch.bfloat16, 16, "CFHW", 8, ["latents_control_0", "latents_control_1"], None),
    "qil": ("qwen_image", torch.bfloat16, 16, "CFHW", 8, [], None),
    "kr2": ("krea2", torch.bfloat16, 16, "CFHW", 8, [], None),
    "wan": ("wan", torch.float16, 16, "CFHW", 8, [], None),
    "fk": ("flux_kontext", torch.bfloat16, 16, "CHW", 8, ["latents_control"], None),
    "zi": ("z_image", torch.float32, 16, "CHW", 8, [], lambda x: (x - 0.1159) * 0.3611),
    "f2d": ("flux_2_dev", torch.bfloat16, 128, "CHW", 16, ["latents_control_0"], None),
    "f2k4b": ("flux_2_klein_4b", torch.bfloat16, 128, "CHW", 16, [], None),
    "f2k9b": ("flux_2_klein_9b", torch.bfloat16, 128, "CHW", 16, [], None),
    "i4": ("ideogram4", torch.bfloat16, 128, "CHW", 16, [], True),
    "hv": ("hunyuan_video", torch.float16, 16, "CFHW", 8, [], lambda x: x * 0.476986),
    "fp": ("framepack", torch.bfloat16, 16, "CFHW", 8, [], None),
    "k5": ("kandinsky5", torch.bfloat16, 16, "CFHW", 8, ["latents_image"], None),
    "hv15": ("hunyuan_video_1_5", torch.float16, 32, "CFHW", 16, [], lambda x: x * 1.03682),
}


@pytest.mark.parametrize("arch", MUSUBI)
def test_musubi_is_equal_to_the_bit(arch, tmp_path, capsys):
    import sys

    name, dtype, channels, axes, stride, others, scaling = MUSUBI[arch]
    framed = not arch.startswith("f2")
    (tmp_path / "cache").mkdir()
    expected = {}
    for index, (image, bucket) in enumerate(IMAGES):
        one = torch.from_numpy(latent(index, channels, bucket, stride)).to(dtype)
        path = tmp_path / "cache" / f"im_{index:02}_{image[0]:04d}x{image[1]:04d}_{arch}.safetensors"
        shaped = one[:, None] if axes == "CFHW" else one
        more = {content: torch.cat([shaped, shaped], 1) if arch == "k5" else shaped.clone() for content in others}
        made.musubi_saves(path, shaped, name, image, framed=framed, others=more)
        expected[f"im_{index:02}"] = one.float().numpy()
    assert convert(tmp_path / "cache", tmp_path / "in", progress=sys.stderr) == len(IMAGES)
    told = capsys.readouterr().err
    assert (f"{len(IMAGES)} files have further tensors" in told) == bool(others)
    same(by_key(tmp_path / "in"), expected)
    dataset = latentq.LatentDataset(tmp_path / "in", columns=["latent", "key"], scale="scaled")
    x = expected[dataset[0]["key"]]
    if scaling is not True:
        trained = x if scaling is None else scaling(x)
        np.testing.assert_allclose(dataset[0]["latent"].numpy(), trained, rtol=1e-6, atol=1e-6)
    assert latentq.Card.load(tmp_path / "in").recipe.columns["latent"].scaled == (scaling is None)
    convert(tmp_path / "in", tmp_path / "out", to_layout=f"musubi:{arch}")
    read, before = (made.musubi_reads(tmp_path / folder, arch) for folder in ("out", "cache"))
    assert read.keys() == before.keys()
    for key, tensors in read.items():
        assert torch.equal(tensors["latents"], before[key]["latents"])
        assert tensors["latents"].dtype == dtype
    if not others:
        assert {name: len(data) for name, data in files(tmp_path / "out").items()} == {
            name: len(data) for name, data in files(tmp_path / "cache").items()
        }
    convert(tmp_path / "out", tmp_path / "again")
    same(by_key(tmp_path / "again"), expected)


def test_raw_latents_in_bfloat16_are_rounded_when_they_are_scaled_for_musubi(tmp_path):
    (tmp_path / "cache").mkdir()
    latents = {}
    for index, (image, bucket) in enumerate(IMAGES):
        latents[f"im_{index:02}"] = one = torch.from_numpy(latent(index, 16, bucket)).to(torch.bfloat16)
        path = tmp_path / "cache" / f"im_{index:02}_{image[0]:04d}x{image[1]:04d}_zi.safetensors"
        made.musubi_saves(path, one, "z_image", image)
    convert(tmp_path / "cache", tmp_path / "in")
    convert(tmp_path / "in", tmp_path / "out", to_layout="musubi:fk")
    for (key, _), tensors in made.musubi_reads(tmp_path / "out", "fk").items():
        assert torch.equal(tensors["latents"], ((latents[key].float() - 0.1159) * 0.3611).to(torch.bfloat16))


def test_raw_latents_are_no_patches_for_musubi(encoded, tmp_path):
    """FLUX.2's autoencoder gives (32, h, w), and its normalization makes patches; Ideogram 4 caches raw patches."""
    dataset, _ = encoded
    card = latentq.Card.load(dataset)
    patched = replace(card.autoencoder, normalization=Normalization(patchify=2))
    (dataset / "latents.toml").write_bytes(replace(card, autoencoder=patched).to_toml())
    with pytest.raises(latentq.MismatchError, match="i4 caches raw latents, and no patches are made of raw ones"):
        convert(dataset, tmp_path / "out", to_layout="musubi:i4")
    convert(dataset, tmp_path / "out", to_layout="musubi:f2d")
    for tensors in made.musubi_reads(tmp_path / "out", "f2d").values():
        assert tensors["latents"].shape[0] == 4 * 16


def test_a_video_is_refused(tmp_path):
    (tmp_path / "cache").mkdir()
    path = tmp_path / "cache" / "clip_0600x0400_wan.safetensors"
    made.musubi_saves(path, torch.zeros(16, 5, 8, 8), "wan", (600, 400))
    with pytest.raises(latentq.FormatError, match="a latent of 5 frames is a video's, and a dataset holds images"):
        convert(tmp_path / "cache", tmp_path / "in")


@pytest.fixture
def encoded(tmp_path):
    """A dataset that latentq encoded, whose keys are the names of image files, and the size of each image."""
    sizes = {"a.png": (50, 40), "b#1.png": (60, 40), "sub/c.v2.jpg": (40, 60)}
    for index, (name, size) in enumerate(sizes.items()):
        paint(tmp_path / "images" / name, index, size)
    latentq.encode(
        tmp_path / "images", tmp_path / "in", autoencoder="dct-f8c16", buckets=[[32, 32], [32, 48], [48, 32]],
        conditioning=True,
    )  # fmt: skip
    return tmp_path / "in", sizes


@pytest.mark.parametrize(("layout", "ending"), [("kohya:flux", ".npz"), ("musubi:zi", ".safetensors")])
def test_files_of_an_encoded_dataset_are_where_the_tools_look_for_them(layout, ending, encoded, tmp_path):
    """sd-scripts: os.path.splitext(image)[0] + "_0050x0040_flux.npz"; musubi-tuner: in one folder, by its name."""
    dataset, sizes = encoded
    convert(dataset, tmp_path / "out", to_layout=layout)
    kind = layout.partition(":")[2]
    stems = {name: PurePath(name).with_suffix("") for name in sizes}
    if kind == "zi":
        stems = {name: stem.name for name, stem in stems.items()}
    expected = {f"{stems[name]}_{w:04d}x{h:04d}_{kind}{ending}" for name, (w, h) in sizes.items()}
    assert files(tmp_path / "out").keys() == expected
    again = tmp_path / "again"
    convert(tmp_path / "out", again)
    assert by_key(again).keys() == set(map(str, stems.values()))
    if kind == "zi":
        assert len(made.musubi_reads(tmp_path / "out", kind)) == len(sizes)


def test_images_that_differ_in_their_suffix_alone_are_refused(encoded, tmp_path):
    dataset, _ = encoded
    paint(tmp_path / "images" / "a.jpg", 5, (50, 40))
    latentq.encode(tmp_path / "images", dataset, update=True)
    for layout in ("kohya:flux", "musubi:zi"):
        with pytest.raises(latentq.MismatchError, match=r"two samples would be a_0050x0040_(flux|zi)"):
            convert(dataset, tmp_path / "out", to_layout=layout)
    assert not (tmp_path / "out").exists()


def test_a_refusal_is_not_forgotten_by_the_run_that_continues(encoded, tmp_path, monkeypatch):
    dataset, _ = encoded
    paint(tmp_path / "images" / "a.jpg", 5, (50, 40))
    latentq.encode(tmp_path / "images", dataset, update=True)
    monkeypatch.setattr(kohya, "_STEP", 1)
    monkeypatch.setattr(outgoing, "_MAX_BATCH", 1)
    for _ in range(2):
        with pytest.raises(latentq.MismatchError, match=r"two samples would be a_0050x0040_flux"):
            convert(dataset, tmp_path / "out", to_layout="kohya:flux")
        assert (tmp_path / ".out.converting" / "done.json").exists()


@pytest.mark.parametrize("layout", ["kohya:flux", "musubi:zi"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_two_images_of_one_name_are_refused_when_the_first_was_written_before_a_kill(
    layout, done, encoded, tmp_path, monkeypatch
):
    dataset, _ = encoded
    paint(tmp_path / "images" / "a.jpg", 5, (50, 40))
    latentq.encode(tmp_path / "images", dataset, update=True)
    monkeypatch.setattr(outgoing, "_MAX_BATCH", 1)
    for module in (kohya, musubi):
        monkeypatch.setattr(module, "_STEP", 1)
    record = Work.record

    def killed(self, samples):
        record(self, samples)
        if samples == done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Work, "record", killed)
        with pytest.raises((KeyboardInterrupt, latentq.MismatchError)) as first:
            convert(dataset, tmp_path / "out", to_layout=layout)
    # a.jpg was added, so it is last in the dataset: a run that is killed early has not seen both.
    assert first.type is KeyboardInterrupt or done > 1
    with pytest.raises(latentq.MismatchError, match="two samples would be a_0050x0040_"):
        convert(dataset, tmp_path / "out", to_layout=layout)
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_in_two_folders_are_refused_for_musubi(encoded, tmp_path):
    dataset, _ = encoded
    paint(tmp_path / "images" / "other" / "c.v2.png", 5, (40, 60))
    latentq.encode(tmp_path / "images", dataset, update=True)
    with pytest.raises(latentq.MismatchError, match=r"two samples would be c\.v2_0040x0060_zi.*: folders and suffixes"):
        convert(dataset, tmp_path / "out", to_layout="musubi:zi")
    convert(dataset, tmp_path / "out", to_layout="kohya:flux")


@pytest.mark.parametrize("options", [{"bits": 8}, {"codec": "trellis"}, {"bytes": 600}], ids=str)
def test_quantized_buckets_have_one_quantizer(tmp_path, options):
    kohya_writes(tmp_path / "images", "flux", 16, 8, suffixed=True)
    convert(tmp_path / "images", tmp_path / "in", **options)
    found = by_key(tmp_path / "in")
    for index, stem in enumerate(STEMS):
        error = np.abs(found[stem] - latent(index, 16, IMAGES[index][1]))
        assert np.median(error) < (0.1 if "bytes" in options else 0.02)
    assert latentq.verify(tmp_path / "in") == []
