"""The image side of a run: threads that outlive batches, files read once, memory that is reused and released."""

import ctypes
import io
import os
import random
import struct
import sys
import threading
import time
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import latentq
from conftest import contents, paint
from latentq import LatentqError, MismatchError, mds
from latentq.encoding import batches, images, write
from latentq.encoding.latents import LatentEncoder
from latentq.encoding.stages import Profile, background_consumer
from latentq.sources import Listing, Sample
from support.archive_making import make_tar

SMALL = {"size": 32, "unit_size": 16, "batch_size": 4}
WAIT = 60  # seconds after which a test has failed


def encoded(seed, format="PNG", size=(50, 40), **options):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, format, **options)
    return file.getvalue()


class Deferred:
    """A source of files in memory whose samples any thread may read; `before` is called in that thread."""

    kind = "deferred"

    def __init__(self, files, before=lambda _: None):
        self.files = files
        self.before = before

    def listing(self):
        samples = (Sample(key, len(data), archive="memory") for key, data in self.files.items())
        return Listing(tuple(samples), ("archive",))

    def data(self, _):
        raise AssertionError("read in order")

    def deferred(self, sample):
        def read():
            self.before(sample.key)
            if self.files[sample.key] == b"unreadable":
                raise LatentqError("cannot be read")
            return self.files[sample.key]

        return read


@pytest.fixture(scope="module")
def mixed():
    """Forty files: pictures of several formats and sizes, a large one, and broken, cut and small ones."""
    files = {}
    for index in range(40):
        format = ("PNG", "JPEG", "WEBP", "AVIF")[index % 4]
        size = (1500, 1200) if index == 9 else (50 + index, 90 - index)
        files[f"{index:02}"] = encoded(index, format, size)
    files["03"] = b"no image"
    files["10"] = files["10"][:100]
    files["17"] = b"unreadable"
    files["22"] = encoded(22, "PNG", (20, 90))
    files["31"] = encoded(31, "AVIF", (20, 90))
    return files


def test_bytes_do_not_depend_on_threads_ranks_or_slow_images(mixed, tmp_path):
    def sometimes_slow(key):
        time.sleep(random.Random(key).choice([0, 0, 0.02]))

    options = {**SMALL, "min_size": 30}
    latentq.encode(Deferred(mixed), tmp_path / "one", **options, threads=1)
    rejects = (tmp_path / "one" / "rejects.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in rejects] == [
        ["03", "decode"], ["10", "decode"], ["17", "read"], ["22", "size"], ["31", "size"]
    ]  # fmt: skip
    assert rejects[3:] == ["22\tsize\t20 x 90 pixels, below 30", "31\tsize\t20 x 90 pixels, below 30"]
    for threads in (2, 5):
        out = tmp_path / f"{threads}"
        latentq.encode(Deferred(mixed, sometimes_slow), out, **options, threads=threads)
        assert contents(out) == contents(tmp_path / "one")
    out = tmp_path / "ranks"
    latentq.encode(Deferred(mixed), out, **options, threads=3, rank=1, world_size=2)
    latentq.encode(Deferred(mixed, sometimes_slow), out, **options, threads=2, rank=0, world_size=2)
    assert contents(out) == contents(tmp_path / "one")


def test_two_encodes_in_threads_of_one_process_do_not_disturb_each_other(mixed, tmp_path):
    good = {key: data for key, data in mixed.items() if key not in ("03", "10", "17")}
    latentq.encode(Deferred(mixed), tmp_path / "mixed", **SMALL)
    latentq.encode(Deferred(good), tmp_path / "good", **SMALL, dtype="bfloat16")
    together = threading.Barrier(2)
    errors = []

    def encode(files, out, **options):
        try:
            together.wait(WAIT)
            latentq.encode(Deferred(files), out, **SMALL, **options, threads=2)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=encode, args=(mixed, tmp_path / "a")),
        threading.Thread(target=encode, args=(good, tmp_path / "b"), kwargs={"dtype": "bfloat16"}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert contents(tmp_path / "a") == contents(tmp_path / "mixed")
    assert contents(tmp_path / "b") == contents(tmp_path / "good")


def test_slow_image_does_not_hold_up_those_of_later_batches(tmp_path):
    files = {f"{index:02}": encoded(index) for index in range(16)}
    others, order = threading.Event(), []

    def before(key):
        if key == "01":
            assert others.wait(WAIT), "not all others were read"
        order.append(key)
        if len(order) == 15:
            others.set()

    latentq.encode(Deferred(files, before), tmp_path / "out", **SMALL, threads=2, recipe=uncalibrated())
    assert order[-1] == "01"
    keys = [sample["key"] for sample in map(mds.Reader(tmp_path / "out").__getitem__, range(16))]
    assert keys == list(files)


def test_batches_ahead_are_bounded_in_bytes(tmp_path, monkeypatch):
    files = {f"{index:02}": encoded(index) for index in range(32)}
    options = {**SMALL, "unit_size": 32, "threads": 2, "recipe": uncalibrated()}
    release, seen = threading.Event(), set()

    def before(key):
        if key == "00":
            assert release.wait(WAIT)
        seen.add(key)

    def most_ahead(bound):
        """Reads until nothing happens for a while, and returns the number of images that were read."""
        monkeypatch.setattr(images, "AHEAD_BYTES", bound)
        release.clear()
        seen.clear()
        thread = threading.Thread(
            target=latentq.encode, args=(Deferred(files, before), tmp_path / f"{bound}"), kwargs=options
        )
        thread.start()
        count, quiet = -1, 0
        while quiet < 10:
            time.sleep(0.05)
            quiet = quiet + 1 if len(seen) == count else 0
            count = len(seen)
        release.set()
        thread.join()
        return count

    batch = 4 * 3 * 32 * 32
    assert most_ahead(1) == 7  # all of the first two batches but the slow image
    assert most_ahead(4 * batch) == 15
    assert contents(tmp_path / "1") == contents(tmp_path / f"{4 * batch}")


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), MismatchError("another file")])
def test_fault_in_a_reading_thread_ends_the_run(tmp_path, error):
    files = {f"{index:02}": encoded(index) for index in range(16)}

    def before(key):
        if key == "06":
            raise error

    running = threading.active_count()
    with pytest.raises(type(error)) as raised:
        latentq.encode(Deferred(files, before), tmp_path / "out", **SMALL, threads=2)
    assert raised.value is error
    assert threading.active_count() == running
    latentq.encode(Deferred(files), tmp_path / "out", **SMALL)
    latentq.encode(Deferred(files), tmp_path / "other", **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


class Opens:
    """Counts how often each file of a folder is opened, by whatever code: Linux's inotify."""

    def __init__(self, folder):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._descriptor >= 0
        assert self._libc.inotify_add_watch(self._descriptor, os.fsencode(folder), 0x20) >= 0

    def counts(self):
        data, counts = os.read(self._descriptor, 1 << 16), {}
        while data:
            _, _, _, length = struct.unpack_from("iIII", data)
            name = os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))
            if name:  # else the folder itself
                counts[name] = counts.get(name, 0) + 1
            data = data[16 + length :]
        os.close(self._descriptor)
        return counts


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
@pytest.mark.parametrize("options", [{}, {"min_size": 20}, {"min_size": 20, "image": True}], ids=str)
def test_file_is_opened_once(tmp_path, options):
    folder = tmp_path / "photos"
    for index in range(6):
        paint(folder / f"{index}.{('png', 'jpg', 'webp')[index % 3]}", index)
    (folder / "6.jpg").write_bytes(b"no image")
    paint(folder / "7.png", 7, (10, 40))
    opens = Opens(folder)
    latentq.encode(folder, tmp_path / "out", **SMALL, **options, threads=2, recipe=uncalibrated())
    counts = opens.counts()
    assert counts.pop("6.jpg") == (1 if "image" in options else 2)  # Pillow opens what the core does not know
    assert counts == {path.name: 1 for path in folder.iterdir() if path.name != "6.jpg"}


def uncalibrated():
    data = latentq.Recipe.load("default").to_dict()
    data["columns"]["latent"]["quantizer"] = {"kind": "uniform", "low": -14.0, "high": 14.0}
    return latentq.Recipe.from_dict(data)


def test_rows_of_rejects_and_padding_are_zero_in_memory_that_is_not(tmp_path, monkeypatch):
    files = {f"{index:02}": encoded(index) for index in range(10)}
    files |= {"03": b"no image", "08": b"unreadable", "06": encoded(6, size=(20, 20))}
    given = []

    class Network:
        name = family = "network"
        pixel_range = (0.0, 255.0)

        def latent_shape(self, size):
            return 3, size // 8, size // 8

        def encode(self, pixels):
            given.append(pixels.clone())
            return torch.nn.functional.avg_pool2d(pixels, 8)

    def dirty(encoder, shape):
        return torch.full(shape, 255, dtype=torch.uint8)

    options = {**SMALL, "recipe": uncalibrated(), "min_size": 30}
    latentq.encode(Deferred(files), tmp_path / "clean", **options, autoencoder=Network())
    given.clear()
    monkeypatch.setattr(LatentEncoder, "host_buffer", dirty)
    latentq.encode(Deferred(files), tmp_path / "dirty", **options, autoencoder=Network())
    rows = torch.cat(given)
    assert [place for place, row in enumerate(rows) if not row.any()] == [3, 6, 8, 10, 11]
    assert contents(tmp_path / "clean") == contents(tmp_path / "dirty")


def test_pixels_are_released_before_a_batch_is_written(tmp_path, monkeypatch):
    files = {f"{index:02}": encoded(index) for index in range(16)}
    buffers, alive = [], []
    allocate, write_batch = LatentEncoder.host_buffer, write.write_batch

    def host_buffer(encoder, shape):
        buffer = allocate(encoder, shape)
        buffers.append(weakref.ref(buffer))
        return buffer

    def written(run, encoded, writer):
        alive.append(buffers[len(alive)]() is not None)
        return write_batch(run, encoded, writer)

    monkeypatch.setattr(LatentEncoder, "host_buffer", host_buffer)
    monkeypatch.setattr(write, "write_batch", written)
    latentq.encode(Deferred(files), tmp_path / "out", **SMALL, recipe=uncalibrated())
    assert alive == [False] * 4


def test_network_goes_on_while_a_unit_is_synced():
    synced, sent = threading.Event(), []

    def consume(items):
        for item in items:
            if item == 0:
                assert synced.wait(WAIT)

    with background_consumer(consume, 100, Profile(), "write", "network", weigh=lambda _: 10) as send:
        for item in range(11):  # the first is being consumed
            send(item)
            sent.append(item)
        synced.set()
    assert sent == list(range(11))


def test_queue_of_the_writer_is_bounded_by_the_weight_of_its_items():
    taken, release, most = [], threading.Event(), []

    def consume(items):
        for item in items:
            assert release.wait(WAIT)
            taken.append(item)

    sent = []
    with background_consumer(consume, 100, Profile(), "write", "network", weigh=lambda item: item) as send:

        def produce():
            for item in (1, 60, 60, 1, 1):
                send(item)
                sent.append(item)

        thread = threading.Thread(target=produce)
        thread.start()
        time.sleep(0.5)
        most = list(sent)
        release.set()
        thread.join()
    assert most == [1, 60, 60]  # 120 wait, or 121 if the first is not taken yet
    assert taken == [1, 60, 60, 1, 1]


def test_units_of_a_run_are_written_in_larger_queues_than_batches():
    codes = {"latent": np.zeros((64, 4, 32, 32), np.uint8)}
    batch = SimpleNamespace(images=[b"12", b"345"])
    encoded_batch = batches.EncodedBatch(batch, range(64), codes, {}, 0)
    assert encoded_batch.nbytes() == 64 * 4096 + 5
    assert 100 * encoded_batch.nbytes() < write.QUEUE_BYTES


def test_members_of_an_archive_are_read_by_several_threads(tmp_path, monkeypatch):
    from latentq.store.blocks import FileBytes

    members = {f"{index:02}.png": encoded(index) for index in range(8)}
    make_tar(tmp_path / "a.tar", members.items())
    make_tar(tmp_path / "b.tar", members.items())
    readers, read = threading.Barrier(2), FileBytes.read

    def together(self, offset, count):
        # Whoever opens an archive, which others wait for, reads two bytes to see whether it is gzip.
        if count > 2 and threading.current_thread().name.startswith("latentq: read"):
            readers.wait(WAIT)  # until another thread reads too
        return read(self, offset, count)

    latentq.encode(f"{tmp_path}/*.tar", tmp_path / "plain", **SMALL, threads=1)
    monkeypatch.setattr(FileBytes, "read", together)
    latentq.encode(f"{tmp_path}/*.tar", tmp_path / "together", **SMALL, threads=2)
    assert contents(tmp_path / "plain") == contents(tmp_path / "together")


def test_archive_stays_open_until_its_deferred_reads_are_done(tmp_path):
    for name in ("a.tar", "b.tar"):
        make_tar(tmp_path / name, [("0.png", encoded(ord(name[0])))])
    source = latentq.open_source(f"{tmp_path}/*.tar")
    first, second = source.listing().samples
    read = source.deferred(first)
    open_files = descriptors()
    assert source.data(second) == encoded(ord("b"))
    assert read() == encoded(ord("a"))
    del read
    assert descriptors() == open_files  # b.tar for a.tar


def descriptors():
    return len([*Path("/proc/self/fd").iterdir()]) if sys.platform == "linux" else 0


class FakeCuda:
    """Counts what allocates pinned memory, by the GPU that is current in the thread that does."""

    def __init__(self, monkeypatch):
        self.allocations = []
        self._current = threading.local()
        empty = torch.empty

        def allocate(*shape, pin_memory=False, **options):
            if pin_memory:
                self.allocations.append((threading.current_thread().name, self.current()))
            return empty(*shape, **options)

        monkeypatch.setattr(torch, "empty", allocate)
        monkeypatch.setattr(torch.cuda, "device", self.device)
        monkeypatch.setattr(torch.cuda, "current_device", self.current)

    def current(self):
        return getattr(self._current, "index", 0)

    def device(self, device):
        return FakeDevice(self._current, torch.device(device).index if not isinstance(device, int) else device)


class FakeDevice:
    def __init__(self, current, index):
        self._current, self._index = current, index

    def __enter__(self):
        self._before = getattr(self._current, "index", 0)
        self._current.index = self._index

    def __exit__(self, *_):
        self._current.index = self._before


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


def test_pinned_pixels_belong_to_the_gpu_of_the_rank(tmp_path, cuda):
    start = batches.decoded_batches

    def on_gpu(encoding_run, units):
        gpu = SimpleNamespace(_gpu=True, device=torch.device("cuda", 3))
        encoder = SimpleNamespace(
            device=torch.device("cuda", 3), host_buffer=lambda shape: LatentEncoder.host_buffer(gpu, shape)
        )
        return start(replace(encoding_run, encoder=encoder), units)

    folder = tmp_path / "photos"
    for index in range(8):
        paint(folder / f"{index}.png", index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "decoded_batches", on_gpu)
        latentq.encode(folder, tmp_path / "out", **SMALL, recipe=uncalibrated())
    assert cuda.allocations == [("latentq: read, decode", 3)] * 2


def test_run_works_on_the_gpu_of_the_rank(pictures, tmp_path, monkeypatch):
    from latentq.encoding import pipeline

    entered = []

    class Recorded:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    monkeypatch.setattr(pipeline, "current_device", Recorded)
    network = latentq.load_autoencoder("dct-f8c16")
    encode = network.encode

    def checked(pixels):
        assert entered == [torch.device("cpu")]
        return encode(pixels)

    network.encode = checked
    latentq.encode(pictures, tmp_path / "out", size=32, autoencoder=network)
    assert entered == [torch.device("cpu"), None]


def test_memory_that_is_pinned_in_other_threads_belongs_to_the_loaders_gpu(cuda):
    from latentq.models.device import current_device
    from latentq.reading.buffers import pinned_for

    with current_device(torch.device("cuda", 2)):
        allocators = [pinned_for(None), pinned_for(torch.device("cuda")), pinned_for(torch.device("cuda", 1))]
    thread = threading.Thread(target=lambda: [allocate((2,), torch.uint8) for allocate in allocators])
    thread.start()
    thread.join()
    assert [device for _, device in cuda.allocations] == [2, 2, 1]
    assert cuda.current() == 0
