"""Nothing on the hot paths waits for the device: torch raises an error where it would, in a debug mode."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from gpu import shards
from gpu.harness import Run
from gpu.measure import hold, wait
from gpu.networks import quantizers, tiny, tokenizer
from gpu.pictures import recipe
from latentq import LatentDataset, Quantizer
from latentq.encoding.captions import CaptionEncoder
from latentq.encoding.latents import LatentEncoder
from latentq.format.options import TextOptions
from latentq.models.device import send
from latentq.models.text import Embeddings

BUSY = 2e8  # cycles, about 0.1 s
COUNT = 16  # images


def work(run: Run) -> None:
    """Checks encoding, captions and reading."""
    network, count = tiny(run), run.size(COUNT, 4)
    for name, q in quantizers().items():
        for label, positions in (("", range(count)), (", one failed", [0, 1, *range(3, count)])):
            _check(run, f"encode {name}{label}", partial(_encoding, run, network, q, positions), 0.020)
    for store in ("sample", "moments", "tokens"):
        channels = 8 if store == "moments" else 4
        q = None if store == "tokens" else Quantizer.uniform(-14, 14, channels=channels)
        used = tokenizer(run) if store == "tokens" else network
        _check(run, f"encode {store}", partial(_encoding, run, used, q, range(count), store), 0.020)
    for q in (Quantizer.uniform(-5, 6, channels=64), Quantizer.floating("float16", channels=64)):
        _check(run, f"captions {q.kind}", partial(_captions, run, q), 0.020)
    for kind in shards.KINDS:
        with run.attempt(f"read {kind}"):
            _reading(run, kind)


def _check(run: Run, name: str, prepare: Callable[[], Callable[[], object]], limit: float) -> None:
    """Checks that work does not wait: by the debug mode, and by the clock while the device is busy.

    Args:
        run: The run.
        name: The name of the check.
        prepare: Returns the work. Its first call copies constants, and is not checked.
        limit: Seconds in which the work returns.
    """
    with run.attempt(name):
        step = prepare()
        step()
        wait(run)
        kept = []  # what the device still works on
        with run.attempt(name, passes=True), _forbidden(run):
            kept.append(step())
        wait(run)
        hold(run, BUSY)
        start = time.perf_counter()
        kept.append(step())
        seconds = time.perf_counter() - start
        wait(run)
        run.check(f"{name} returns", seconds < limit, seconds, f"< {limit} s", card_only=True)


@contextlib.contextmanager
def _forbidden(run: Run) -> Iterator[None]:
    """Makes waiting for the device an error."""
    if run.dry:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _encoding(run: Run, network: Any, q: Quantizer | None, positions: Any, store: str = "mean") -> Callable[[], object]:
    """Returns a function that starts to encode a batch, of which some places are good."""
    content = store if store in ("moments", "tokens") else "latent"
    size, count = (64, COUNT) if not run.dry else (32, 4)
    drawn_recipe = recipe(
        size,
        content=content,
        dtype="bfloat16" if not run.dry else "float32",
        store=store if content == "latent" else "mean",
    )
    encoder = LatentEncoder(network, drawn_recipe.autoencoder, run.device)
    columns = drawn_recipe.encoded()
    chosen = {} if q is None else dict.fromkeys(columns, q)
    pixels = {(size, size): encoder.host_buffer((count, 3, size, size))}
    return lambda: encoder.start(pixels, columns, chosen, list(range(count)), positions)


class Words:
    """A text encoder of two layers."""

    name, length, width, pooled_width, masked = "words", 7, 64, 64, True

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.module = torch.nn.Sequential(torch.nn.Embedding(256, 64), torch.nn.Linear(64, 64)).to(device)

    def encode(self, captions: list[str]) -> Embeddings:
        """Embeds captions by their bytes."""
        rows = [caption.encode()[:7].ljust(7, b"\0") for caption in captions]
        tokens = send(torch.tensor([list(row) for row in rows]), self.device)
        values = self.module(tokens).float()
        return Embeddings(values, (tokens > 0).to(torch.uint8), values[:, 0])


def _captions(run: Run, q: Quantizer) -> Callable[[], object]:
    columns: Any = {name: SimpleNamespace(content=name) for name in ("caption_embedding", "attention_mask")}
    encoder = CaptionEncoder(Words(run.device), TextOptions(), run.device, columns)
    return lambda: encoder.start(["a cat", "a dog"] * 8, {"caption_embedding": q})


def _reading(run: Run, kind: str) -> None:
    """Checks the loader and the resident loader of a dataset, raw and scaled."""
    path = shards.make(run.folder / kind, kind, run.size(256 * 12, 64))
    batch = run.size(256, 8)
    for scale in ("raw",) if kind == "tokens" else ("raw", "scaled"):
        dataset = LatentDataset(path, scale=scale, dtype=torch.bfloat16)
        loaders = {"loader": dataset.loader(batch, device=run.device)}
        with run.attempt(f"read {kind} {scale}, resident, copied"):
            loaders["resident"] = dataset.to_device(run.device).loader(batch)
        for name, loader in loaders.items():
            iterator = iter(loader)
            try:
                _check(run, f"read {kind} {scale}, {name}", lambda iterator=iterator: lambda: next(iterator), 0.005)
            finally:
                iterator.close()
