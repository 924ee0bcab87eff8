"""The encoding loop: NaN guards, out of memory, threads that end, and profiles."""

import io
import re
import threading
import time

import numpy as np
import pytest
import torch
import torch._inductor.config as inductor

import latentq
from conftest import contents
from latentq import Card, LatentqError, Quantizer, Recipe, Transform, mds
from latentq.encoding.stages import Profile, background_consumer, prefetched


class Blocks:
    """A user's own autoencoder: the mean of blocks of pixels. Tests override its methods."""

    name = family = "blocks"
    pixel_range = (0.0, 1.0)

    def latent_shape(self, size):
        return (3, size // 8, size // 8)

    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels, 8)

    def decode(self, latents):
        return torch.nn.functional.interpolate(latents, scale_factor=8)


class Fragile(Blocks):
    """Gives, in half precision, NaN and infinity for bright images, and other numbers for the rest."""

    threshold = 0.5

    def encode(self, pixels):
        latents = super().encode(pixels)
        if torch.is_autocast_enabled("cpu"):
            latents = latents.half().float() + 1
            latents[latents.mean((1, 2, 3)) > self.threshold + 1, 0, 0, 0] = torch.nan
            latents[latents[:, 1].mean((1, 2)) > self.threshold + 1, 1, 0, 0] = torch.inf
        return latents


class Hopeless(Fragile):
    """Gives NaN for the same images in float32 as well."""

    def encode(self, pixels):
        latents = super().encode(pixels)
        latents[Blocks.encode(self, pixels).mean((1, 2, 3)) > self.threshold] = torch.nan
        return latents


class Greedy(Blocks):
    """Runs out of memory for more than three images."""

    def __init__(self):
        self.batches = []

    def encode(self, pixels):
        self.batches.append(len(pixels))
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().encode(pixels)


def recipe(kind="float32", **options):
    data = Recipe.load("default").to_dict()
    data["columns"]["latent"] |= {"quantizer": {"kind": kind}, "size": 32}
    return Recipe.from_dict(data).override(**options)


def pixels_of(folder):
    return torch.from_numpy(latentq.image.load_batch(sorted(folder.iterdir()), 32)[0]).float() * (1 / 255)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_nonfinite_samples_are_redone_in_float32_and_others_are_untouched(photos, tmp_path, dtype, batch_size):
    pixels, network = pixels_of(photos), Fragile()
    exact = network.encode(pixels)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.encode(pixels)
    broken = ~half.isfinite().flatten(1).all(1)
    assert 2 <= broken.sum() <= 10
    out = tmp_path / "out"
    card = latentq.encode(
        photos, out, recipe=recipe(dtype=dtype), autoencoder=network, batch_size=batch_size, flip=True
    )
    assert (card.counts.samples, card.counts.rejects, card.counts.redone) == (12, 0, broken.sum())
    stored = torch.from_numpy(mds.Reader(out).gather(range(12), "latent"))
    assert torch.equal(stored[broken], exact[broken])
    assert torch.equal(stored[~broken], half[~broken])
    assert Card.load(out).counts == card.counts
    assert latentq.verify(out) == []


def test_calibration_redoes_nonfinite_samples(photos, tmp_path):
    data = Recipe.load("default").override(dtype="bfloat16", size=32, calibrate="minmax").to_dict()
    data["columns"]["latent"]["quantizer"] = {"kind": "affine", "method": "minmax"}
    network = Fragile()
    card = latentq.encode(photos, tmp_path / "out", recipe=Recipe.from_dict(data), autoencoder=network)
    with torch.autocast("cpu", torch.bfloat16):
        half = network.encode(pixels_of(photos))
    broken = ~half.isfinite().flatten(1).all(1)
    values = torch.where(broken[:, None, None, None], network.encode(pixels_of(photos)), half)
    np.testing.assert_allclose(card.latents["latent"].quantizer.low, values.amin((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sample_that_stays_nonfinite_is_rejected(photos, tmp_path, dtype):
    out = tmp_path / "out"
    card = latentq.encode(photos, out, recipe=recipe("affine", dtype=dtype), autoencoder=Hopeless(), batch_size=5)
    hopeless = Blocks().encode(pixels_of(photos)).mean((1, 2, 3)) > Fragile.threshold
    assert card.counts.rejects == hopeless.sum()
    assert card.counts.samples == 12 - hopeless.sum()
    assert (card.counts.redone >= card.counts.rejects) == (dtype == "bfloat16")
    lines = (out / "rejects.tsv").read_text().splitlines()
    assert lines == [
        f"{file.name}\tencode\tits latent holds NaN or infinity"
        for file, bad in zip(sorted(photos.iterdir()), hopeless, strict=True)
        if bad
    ]
    assert latentq.verify(out) == []


class FragileTokens(Blocks):
    """Gives, in half precision, no tokens for bright images."""

    codebook_size = 100

    def tokens(self, pixels):
        tokens = (self.encode(pixels).mean(1) * 99).round().long()
        if torch.is_autocast_enabled("cpu"):
            tokens[pixels.mean((1, 2, 3)) > Fragile.threshold] = -1
        return tokens


def test_missing_tokens_are_redone_in_float32(photos, tmp_path):
    options = {"autoencoder": FragileTokens(), "size": 32, "store": "tokens", "batch_size": 5}
    card = latentq.encode(photos, tmp_path / "half", **options, dtype="bfloat16")
    assert card.counts.rejects == 0
    assert card.counts.redone == (pixels_of(photos).mean((1, 2, 3)) > Fragile.threshold).sum() > 0
    latentq.encode(photos, tmp_path / "full", **options)
    half, full = (mds.Reader(tmp_path / name).gather(range(12), "tokens") for name in ("half", "full"))
    np.testing.assert_array_equal(half, full)


def test_compiled_run_computes_in_the_recipes_dtype_and_leaves_no_trace(photos, tmp_path, monkeypatch):
    calls = []

    def compiling(function, *, dynamic, options):
        assert dynamic is False
        assert options == ({"deterministic": True} if hasattr(inductor, "deterministic") else None)

        def compiled(pixels):
            calls.append((function.__name__, len(pixels), torch.is_autocast_enabled("cpu")))
            return function(pixels)

        return compiled

    monkeypatch.setattr(torch, "compile", compiling)
    options = {"recipe": recipe(dtype="bfloat16"), "autoencoder": Fragile(), "batch_size": 6}
    latentq.encode(photos, tmp_path / "compiled", **options, compiled=True)
    assert calls == [("encode", 6, True)] * 2
    latentq.encode(photos, tmp_path / "plain", **options)
    assert contents(tmp_path / "compiled") == contents(tmp_path / "plain")


def test_autocast_uses_the_recipes_dtype_and_weights_keep_theirs(photos, tmp_path, tiny_vae):
    cards = {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / dtype
        cards[dtype] = latentq.encode(photos, out, recipe=recipe(dtype=dtype, store="mean"), autoencoder=tiny_vae)
    assert cards["float32"].autoencoder == cards["bfloat16"].autoencoder
    network = latentq.load_autoencoder(tiny_vae)
    pixels = pixels_of(photos) * 2 - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network.encode(pixels)
    stored = torch.from_numpy(mds.Reader(tmp_path / "bfloat16").gather(range(12), "latent"))
    torch.testing.assert_close(stored, expected, atol=0.05, rtol=0.05)
    exact = torch.from_numpy(mds.Reader(tmp_path / "float32").gather(range(12), "latent"))
    assert not torch.equal(stored, exact)


def test_batch_is_halved_when_the_device_runs_out_of_memory(photos, tmp_path):
    lines = []

    class Lines:
        isatty = staticmethod(lambda: False)
        flush = staticmethod(lambda: None)
        write = staticmethod(lines.append)

    network = Greedy()
    card = latentq.encode(
        photos, tmp_path / "out", recipe=recipe("affine", unit_size=8), autoencoder=network, batch_size=64,
        progress=Lines(),
    )  # fmt: skip
    assert card.counts.samples == 12
    assert "retrying with batch size 2\n" in "".join(lines)
    assert "calibrate: 12 of 12 images" in "".join(lines)  # not those of the failed attempts as well
    assert "encode: 12 of 12 images" in "".join(lines)
    latentq.encode(photos, tmp_path / "two", recipe=recipe("affine", unit_size=8), autoencoder=Blocks(), batch_size=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "two")


def test_items_that_are_no_longer_needed_are_closed_in_the_thread_that_made_them():
    """A context that they have entered, such as a current device, belongs to this thread."""
    threads = []

    def items():
        threads.append(threading.current_thread())
        try:
            while True:
                yield 1
        finally:
            threads.append(threading.current_thread())

    made = prefetched(items(), 1, Profile(), "read", "network")
    next(made)
    made.close()
    assert len(threads) == 2
    assert threads[0] is threads[1] is not threading.current_thread()


def test_bar_moves_during_calibration(photos, tmp_path):
    class Terminal(io.StringIO):
        isatty = staticmethod(lambda: True)

    class Slow(Blocks):
        def encode(self, pixels):
            time.sleep(0.15)  # longer than tqdm waits between two changes of its bar
            return super().encode(pixels)

    terminal = Terminal()
    latentq.encode(
        photos, tmp_path / "out", recipe=recipe("affine"), autoencoder=Slow(), batch_size=3, progress=terminal
    )
    bars = re.findall(r"(calibrate|encode): +\d+%\|.*?\| (\d+)/12 \[", terminal.getvalue())
    calibrating = [int(count) for name, count in bars if name == "calibrate"]
    assert len(set(calibrating)) > 2  # the last batches may come too close together to be drawn
    assert calibrating == sorted(calibrating)
    assert bars[-1] == ("encode", "12")


def test_out_of_memory_for_one_image_is_an_error(photos, tmp_path):
    class Hungry(Blocks):
        def encode(self, pixels):
            raise torch.OutOfMemoryError(f"CUDA out of memory for {len(pixels)}")

    with pytest.raises(torch.OutOfMemoryError):
        latentq.encode(photos, tmp_path / "out", recipe=recipe(), autoencoder=Hungry())
    assert not list((tmp_path / "out").glob(".0*"))


@pytest.mark.parametrize("stage", ["read", "network", "write"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, LatentqError])
def test_failure_of_any_stage_leaves_no_thread_and_no_temporary(photos, tmp_path, monkeypatch, stage, error):
    calls = 0

    def fail(*_, **__):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise error("enough")

    def failing(function):
        def wrapped(*arguments, **options):
            fail()
            return function(*arguments, **options)

        return wrapped

    network = Blocks()
    if stage == "read":
        monkeypatch.setattr(latentq._core, "ImageBatch", failing(latentq._core.ImageBatch))
    elif stage == "network":
        network.encode = failing(network.encode)
    else:
        monkeypatch.setattr(mds.Writer, "write_batch", failing(mds.Writer.write_batch))
    before = threading.active_count()
    with pytest.raises(error):
        latentq.encode(photos, tmp_path / "out", recipe=recipe(unit_size=7), autoencoder=network, batch_size=2)
    assert threading.active_count() == before
    assert not list((tmp_path / "out").glob(".0*"))
    monkeypatch.undo()
    latentq.encode(photos, tmp_path / "out", recipe=recipe(unit_size=7), autoencoder=Blocks(), batch_size=2)
    latentq.encode(photos, tmp_path / "other", recipe=recipe(unit_size=7), autoencoder=Blocks(), batch_size=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_stages_overlap_within_their_queue_depths():
    produced, most = [], 0
    profile = Profile()

    def make():
        for item in range(8):
            time.sleep(0.01)
            produced.append(item)
            yield item

    consumed = []

    def consume(items):
        nonlocal most
        for item in items:
            most = max(most, len(produced) - item)
            time.sleep(0.03)
            consumed.append(item)

    with background_consumer(consume, 2, profile, "write", "network") as hand_over:
        for item in prefetched(make(), 2, profile, "read, decode", "network"):
            hand_over(item)
    assert consumed == list(range(8))
    assert most <= 2 + 2 + 3  # two queues, and one in each hand
    assert profile.seconds["write", "worked"] > 0.2
    assert profile.seconds["network", "blocked"] > 0.05
    assert profile.seconds["write", "starved"] < 0.1


def test_profile_prints_the_share_of_each_stage(photos, tmp_path, capsys):
    from latentq.cli.main import main

    class Slow(Blocks):
        def encode(self, pixels):
            time.sleep(0.05)
            return super().encode(pixels)

    profile = Profile()
    latentq.encode(photos, tmp_path / "out", recipe=recipe("affine"), autoencoder=Slow(), batch_size=2, profile=profile)
    seconds = profile.seconds
    assert seconds["network", "worked"] >= 12 * 0.05  # six batches, twice: they are calibrated on too
    assert seconds["read, decode", "blocked"] > seconds["network", "starved"]
    assert main(["encode", str(photos), str(tmp_path / "cli"), "--size", "32", "--profile"]) == 0
    lines = capsys.readouterr().err.splitlines()
    start = next(number for number, line in enumerate(lines) if " worked " in line)
    table = lines[start : start + 7]
    assert [line[:13].strip() for line in table[1:]] == [
        "list", "read, decode", "copy", "network", "quantize", "write"
    ]  # fmt: skip


@pytest.mark.parametrize("codec", ["trellis", "transform"])
def test_a_codec_of_the_cpu_runs_while_the_network_computes_the_next_batches(photos, tmp_path, monkeypatch, codec):
    calls, seen = threading.Condition(), []

    class Counted(Blocks):
        def encode(self, pixels):
            with calls:
                seen.append(threading.current_thread())
                calls.notify_all()
            return super().encode(pixels)

    def waiting(function):
        def wrapped(self, *arguments, **options):
            # Six batches are calibrated on, at the end of which some are encoded to try the codec.
            if getattr(self, "kind", "transform") == codec and len(seen) > 6:
                with calls:  # so the first is encoded here while the third is computed
                    assert calls.wait_for(lambda: len(seen) >= 6 + 3, timeout=30)
            return function(self, *arguments, **options)

        return wrapped

    monkeypatch.setattr(Quantizer, "quantize_counted", waiting(Quantizer.quantize_counted))
    monkeypatch.setattr(Transform, "encode_counted", waiting(Transform.encode_counted))
    profile = Profile()
    options = {"size": 80, "codec": codec, "bits": 4, "batch_size": 2, "profile": profile}
    latentq.encode(photos, tmp_path / "out", autoencoder=Counted(), **options)
    assert len(seen) == 12
    assert profile.seconds["codec", "worked"] > 0
    assert any(line.startswith("codec ") for line in profile.table())
