"""Read and decode the images of a run, in threads that live as long as the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from latentq import _core
from latentq._core import ImageError, LatentqError
from latentq.encoding.placing import PlacedSample, Refusal
from latentq.encoding.run import EncodingRun
from latentq.format.options import CONDITIONING
from latentq.image import MAX_PIXELS, crop_window
from latentq.image_fallback import header, is_unknown_format, load_by_pillow
from latentq.models.device import current_device
from latentq.sources import Sample
from latentq.sources.listing import connections_of, deferred_read, read_sample
from latentq.system.faults import raise_machine_fault
from latentq.system.text import size_text

if TYPE_CHECKING:
    import torch

    from latentq.encoding.captions import UnitCaptions

Loaded: TypeAlias = tuple[Exception | None, tuple[int, int] | None, int | None]
"""An image's error, or None; the width and height of the upright image, if they are needed and can be read; and the
xxh3_64 of its file."""

AHEAD_BYTES = 1 << 27
"""The maximum bytes of pixels, and of image files to store, of batches that are being loaded, if there are over two."""
_MAX_INT32 = 2**31 - 1
READ_BYTES = 1 << 28
"""The maximum bytes of image files from archives that are in memory before they are decoded."""
STORED_BYTES = 1 << 30
"""The maximum bytes of image files of one batch that are in memory before they are stored."""


@dataclass(frozen=True)
class PlannedBatch:
    """A batch to load.

    Attributes:
        indices: Numbers of the n samples in the list, all of one unit.
        samples: The samples.
        length: Rows of the batch, at least n.
        captions: Embeds the unit's captions, if the recipe stores embeddings.
        last: True for the last batch of a unit.
        bucket: The number of the bucket of all samples, if the recipe has buckets.
        places: With buckets, how each sample is read; empty without buckets.
    """

    indices: Sequence[int]
    samples: Sequence[Sample]
    length: int
    captions: UnitCaptions | None
    last: bool
    bucket: int | None
    places: Sequence[PlacedSample]


@dataclass(frozen=True)
class DecodedBatch(PlannedBatch):
    """A planned batch with its images.

    Attributes:
        pixels: Maps (H, W) to (B, 3, H, W) uint8 with B = `length`, in a `host_buffer` of the encoder; empty once the
            device has the pixels. Rows of rejected samples, and rows after the first n, are zero.
        rejected: The rejected samples, by position in the batch.
        images: The image files, if the recipe stores them.
        hashes: (n,) uint64, the xxh3_64 of each image file, or 0 if it was not read.
        sizes: The (width, height) of each upright image, if the recipe needs them; None where it cannot be read.
    """

    pixels: dict[tuple[int, int], torch.Tensor]
    rejected: dict[int, Refusal]
    images: Sequence[bytes]
    hashes: NDArray[np.uint64]
    sizes: Sequence[tuple[int, int] | None]


class ImageLoader:
    """Loads batches of images. While an image of a batch is not done, those of later batches are begun.

    The core's threads decode images, and read those that are files of their own. Files in archives are read by Python
    threads, or, if the source must be read in order, by the thread that iterates over the batches.

    Args:
        run: The run.
    """

    def __init__(self, run: EncodingRun) -> None:
        self._run = run
        self._threads = _core.Threads(run.threads)
        self._readers = ThreadPoolExecutor(run.threads, "latentq: read")
        connections = connections_of(run.source)
        self._fetchers = ThreadPoolExecutor(connections, "latentq: fetch") if connections else self._readers
        self._undecoded: deque[tuple[_LoadingBatch, int, int]] = deque()  # batch, position and bytes of files in memory
        self._undecoded_bytes = 0

    def close(self) -> None:
        """Ends the threads. Images that are not begun are dropped, and a thread that waits for one gets an error."""
        self._threads.shutdown()
        self._readers.shutdown(cancel_futures=True)
        self._fetchers.shutdown(cancel_futures=True)

    def batches(self, plans: Iterable[PlannedBatch]) -> Iterator[DecodedBatch]:
        """Yields the batches in order, each once all of its images are done."""
        if self._run.encoder.device.type == "cpu":
            _curb_spinning()
        loading: deque[_LoadingBatch] = deque()
        with current_device(self._run.encoder.device):  # pinned memory belongs to the current device
            for plan in plans:
                while loading and (loading[0].is_done() or _is_far_ahead(loading)):
                    yield self._finished(loading.popleft())
                loading.append(_LoadingBatch(self._run, plan, self._threads, self._readers, self._fetchers))
                self._begin(loading[-1])
            while loading:
                yield self._finished(loading.popleft())

    def _begin(self, batch: _LoadingBatch) -> None:
        """Begins to load the images of a batch, at most `READ_BYTES` of files and one image ahead of decoding."""
        for position in range(len(batch.samples)):
            size = batch.begin(position)
            if size:
                self._undecoded.append((batch, position, size))
                self._undecoded_bytes += size
            while self._undecoded_bytes >= READ_BYTES:
                oldest, oldest_position, _ = self._undecoded[0]
                oldest.wait(oldest_position)
                self._forget_oldest()

    def _finished(self, batch: _LoadingBatch) -> DecodedBatch:
        finished = batch.finished()
        while self._undecoded and self._undecoded[0][0] is batch:
            self._forget_oldest()
        return finished

    def _forget_oldest(self) -> None:
        _, _, size = self._undecoded.popleft()
        self._undecoded_bytes -= size


def _curb_spinning() -> None:
    """Makes torch's threads on the CPU sleep instead of spin while they wait for each other.

    GNU's OpenMP spins for milliseconds unless it knows of more threads than processors. It does not know of the threads
    that decode. A parallel operation in this thread gives it a second team of threads, as long as this thread lives.
    """
    import torch

    torch.zeros(1 << 20, dtype=torch.uint8, device="cpu")


def _is_far_ahead(loading: Sequence[_LoadingBatch]) -> bool:
    """True if enough batches are being loaded. One batch beyond the first is never too far."""
    return len(loading) > 1 and sum(batch.nbytes() for batch in loading) >= AHEAD_BYTES


@dataclass
class _LoadingImage:
    """The state of an image.

    Attributes:
        reading: Gives the file and the refusal, if a Python thread reads it.
        data: The file, as bytes or a path.
        refusal: The refusal, if the image has one.
        loaded: The outcome of decoding.
        by_pillow: Gives the outcome of decoding if the core does not know the format.
        done: True once `refusal` is final.
    """

    reading: Future[tuple[bytes | Path, Refusal | None]] | None = None
    data: bytes | Path = b""
    refusal: Refusal | None = None
    loaded: Loaded | None = None
    by_pillow: Future[Loaded] | None = None
    done: bool = False


class _LoadingBatch:
    """A batch whose images are being loaded. One thread calls its methods.

    Args:
        run: The run.
        plan: The batch.
        threads: The threads that decode.
        readers: The threads that read files, and decode by Pillow.
        fetchers: The threads that read samples that the source defers.
    """

    def __init__(
        self,
        run: EncodingRun,
        plan: PlannedBatch,
        threads: _core.Threads,
        readers: ThreadPoolExecutor,
        fetchers: ThreadPoolExecutor,
    ) -> None:
        self._plan = plan
        self._source = run.source
        self._recipe = run.card.recipe
        self._readers = readers
        self._fetchers = fetchers
        self.samples = plan.samples
        self._images = [_LoadingImage() for _ in self.samples]
        self._keeps_files = any(column.content == "image" for column in self._recipe.columns.values())
        self._kept_bytes = 0
        sizes = sorted({column.pixels for column in self._recipe.sized(plan.bucket).values()})
        self._pixels = {size: run.encoder.host_buffer((plan.length, 3, *size)) for size in sizes}
        for buffer in self._pixels.values():
            buffer[len(self.samples) :].zero_()
        self._rows = [
            buffer.numpy().reshape(plan.length, 3 * height * width) for (height, width), buffer in self._pixels.items()
        ]
        self._options: _core._ImageOptions = {
            **self._recipe.image.options(),
            "layout": "chw",
            "max_pixels": MAX_PIXELS,
        }
        contents = {column.content for column in self._recipe.columns.values()}
        self._measures = self._recipe.image.min_size > 0 or not contents.isdisjoint(CONDITIONING)
        self._cropped_to = sizes[0] if "crop_top_left" in contents else None
        self._core = _core.ImageBatch(threads, sizes, self._rows, self._options, self._measures)

    def begin(self, position: int) -> int:
        """Begins to load an image. Returns the bytes of its file that are in memory until it is decoded."""
        sample, image = self.samples[position], self._images[position]
        if self._plan.places:
            return self._begin_placed(position, self._plan.places[position])
        read = deferred_read(self._source, sample)
        if read is None:
            image.data, image.refusal = read_sample(self._source, sample)
            if image.refusal is not None:
                return 0
            if not self._keeps_files or isinstance(image.data, bytes):
                self._start(position, image.data)
                return len(image.data) if isinstance(image.data, bytes) else 0
            image.reading = self._readers.submit(self._read, position, image.data.read_bytes)
        else:
            image.reading = self._fetchers.submit(self._read, position, read)
        return sample.bytes or 0

    def _begin_placed(self, position: int, place: PlacedSample) -> int:
        """Does what `begin` does for a sample that was placed in a bucket."""
        sample, image = self.samples[position], self._images[position]
        if place.read is None:
            image.refusal = place.refusal
            return 0
        if place.is_file and not self._keeps_files:
            image.data, image.refusal = read_sample(self._source, sample, place.read)
            if image.refusal is None:
                self._start(position, image.data)
            return 0
        image.reading = self._readers.submit(self._read, position, place.read)
        return sample.bytes or 0

    def _read(self, position: int, read: Callable[[], bytes | Path]) -> tuple[bytes | Path, Refusal | None]:
        """Reads an image's file and starts to decode it, on a thread of its own."""
        sample = self.samples[position]
        try:
            data, refusal = read_sample(self._source, sample, read)
            if refusal is None and self._keeps_files and isinstance(data, Path):
                data = data.read_bytes()
        except OSError as error:
            raise_machine_fault(error, sample.text)
            return b"", ("read", error)
        if refusal is None:
            self._start(position, data)
        return data, refusal

    def _start(self, position: int, data: bytes | Path) -> None:
        self._core.start(position, data if isinstance(data, bytes) else str(data))

    def is_done(self) -> bool:
        """True if no image has to be waited for, except for one that Pillow decodes."""
        return all(image.reading is None or image.reading.done() for image in self._images) and self._core.is_done()

    def nbytes(self) -> int:
        """Returns the bytes of the pixels, and of the image files that are kept so far."""
        return sum(rows.nbytes for rows in self._rows) + self._kept_bytes

    def finished(self) -> DecodedBatch:
        """Waits for every image.

        Raises:
            MismatchError: A file or archive is not the one that was listed.
            MemoryError: There is too little memory.
            OSError: The machine cannot read.
            LatentqError: The image files to store take more than `STORED_BYTES`.
        """
        for position in range(len(self.samples)):
            self._try_core(position)  # so that Pillow's images are decoded at the same time
        for position in range(len(self.samples)):
            self.wait(position)
        rejected = {position: image.refusal for position, image in enumerate(self._images) if image.refusal is not None}
        labels = {column.content for column in self._recipe.columns.values()} & {"label", "label_text"}
        for position, sample in enumerate(self.samples):
            try:
                sample.key.encode()
            except UnicodeEncodeError:
                rejected[position] = ("list", LatentqError("the file's name is not UTF-8"))
            if missing := [label for label in sorted(labels) if getattr(sample, label) in (None, "")]:
                rejected.setdefault(position, ("list", LatentqError(f"no {missing[0]}")))
        files = [image.data for image in self._images if isinstance(image.data, bytes)] if self._keeps_files else []
        loaded = [image.loaded or (None, None, None) for image in self._images]
        known = [place.content_hash for place in self._plan.places] or [0] * len(loaded)
        hashes = np.array([outcome[2] or other for outcome, other in zip(loaded, known, strict=True)], np.uint64)
        sizes = [outcome[1] for outcome in loaded]
        return DecodedBatch(
            **vars(self._plan), pixels=self._pixels, rejected=rejected, images=files, hashes=hashes, sizes=sizes
        )

    def wait(self, position: int) -> None:
        """Waits for an image, and decides whether it is refused."""
        self._try_core(position)
        sample, image = self.samples[position], self._images[position]
        if image.done:
            return
        if image.by_pillow is not None:
            image.loaded = image.by_pillow.result()
        if image.loaded is not None:
            error, size, _ = image.loaded
            smallest = self._recipe.image.min_size
            if size is not None and min(size) < smallest:
                image.refusal = ("size", LatentqError(f"{size[0]} x {size[1]} pixels, below {smallest}"))
            elif size is not None and self._crops_beyond_int32(size):
                reason = f"{size[0]} x {size[1]} pixels: its crop_top_left does not fit in 32 bits"
                image.refusal = ("size", LatentqError(reason))
            elif error is not None:
                raise_machine_fault(error, sample.text)
                image.refusal = ("read" if isinstance(error, OSError) else "decode", error)
            elif size is None and self._measures:
                image.refusal = ("decode", LatentqError("its header does not give its size"))
        if image.refusal is not None:
            for rows in self._rows:
                rows[position : position + 1] = 0  # a batch of refused samples has no rows
        if image.refusal is not None or not self._keeps_files:
            image.data = b""
        image.done = True
        if isinstance(image.data, bytes):
            self._kept_bytes += len(image.data)
            self._check_kept()

    def _crops_beyond_int32(self, size: tuple[int, int]) -> bool:
        """True if the top or left of the crop of an image (width, height) is stored, and is too large to be."""
        if self._cropped_to is None:
            return False
        window = crop_window(size[1], size[0], self._cropped_to, crop=self._recipe.image.crop)
        return max(window.top, window.left) > _MAX_INT32

    def _try_core(self, position: int) -> None:
        """Waits until the core has loaded an image; gives it to Pillow if the core does not know the format."""
        image = self._images[position]
        if image.done or image.loaded is not None:
            return
        if image.reading is not None:
            image.data, image.refusal = image.reading.result()
            image.reading = None
        if image.refusal is None:
            image.loaded = self._core.result(position)
            error = image.loaded[0]
            if is_unknown_format(error):
                image.by_pillow = self._readers.submit(self._load_by_pillow, position, image.data, image.loaded)

    def _load_by_pillow(self, position: int, data: bytes | Path, by_core: Loaded) -> Loaded:
        """Loads an image of a format that the core does not know, on a thread of its own."""
        error, size, content_hash = by_core
        assert error is not None
        try:
            data = data if isinstance(data, bytes) else data.read_bytes()
            if self._measures:
                _, width, height, _, orientation = header(data, error)
                turned = self._recipe.image.orient and orientation >= 5
                size = (height, width) if turned else (width, height)
        except (OSError, ImageError) as reason:
            return reason, None, content_hash
        rows = [array[position] for array in self._rows]
        return load_by_pillow(data, error, list(self._pixels), rows, self._options), size, content_hash

    def _check_kept(self) -> None:
        """Refuses a batch whose image files, which are to be stored, take more than `STORED_BYTES` of memory."""
        if self._kept_bytes <= STORED_BYTES:
            return
        sizes = [len(image.data) if isinstance(image.data, bytes) and image.done else 0 for image in self._images]
        largest = max(range(len(sizes)), key=sizes.__getitem__)
        raise LatentqError(
            f"{self.samples[largest].text}: the image files of a batch of {len(sizes)} take more than "
            f"{size_text(STORED_BYTES)} of memory, this one {size_text(sizes[largest])}: "
            "use a smaller batch size, or do not store the files"
        )
