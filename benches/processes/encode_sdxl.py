"""Encode with an `AutoencoderKL` of SDXL's configuration (random weights) at 256 pixels.

    python benches/processes/encode_sdxl.py [--images 16] [--batch 2] [--rounds 2] [--dtype float32] [--compile]
        [--source FOLDER]

In turns, by the median of the rounds:

- the network's forward pass alone, at the same batch size, dtype and compilation;
- `latentq.encode`, from images on disk to a published dataset;
- a loop like the one that made imagenet.int8: Pillow in DataLoader workers, the network, mosaicml's MDSWriter.

Then image loading alone, on all cores, and the profile of the last round, which shows where each stage waits. On a GPU
its idle share is what the network and the quantizer leave.
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from streaming import MDSWriter

import latentq
from latentq.encoding.stages import Profile
from latentq.format.recipe import Recipe
from latentq.models.autoencoders.kl import KLAutoencoder
from latentq.sources import Listing, Sample

SIZE = 256
RECIPE = {
    "name": "bench",
    "columns": {
        "latent": {
            "from": "latent",
            "size": SIZE,
            "quantizer": {"kind": "uniform", "low": -14.0, "high": 14.0},
        }
    },
}


class Repeated:
    """A source of `count` samples that repeats the same photographs."""

    kind = "repeated"

    def __init__(self, files: list[Path], count: int) -> None:
        self._files = [files[number % len(files)] for number in range(count)]
        self.start: float | None = None  # when the first image was asked for; what comes before is start-up

    def listing(self) -> Listing:
        return Listing(tuple(Sample(f"{i:06}", file.stat().st_size) for i, file in enumerate(self._files)), ())

    def data(self, sample: Sample) -> Path:
        self.start = self.start or time.perf_counter()
        return self._files[int(sample.key)]


def sdxl(device: str) -> KLAutoencoder:
    torch.manual_seed(0)
    module = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        scaling_factor=0.13025,
    )
    return KLAutoencoder(module, "sdxl-sized").to(device)


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def bare(network: Any, options: argparse.Namespace) -> float:
    """Images per second of the forward pass alone, on pixels in memory."""
    memory = torch.channels_last if options.device.startswith("cuda") else torch.contiguous_format
    pixels = torch.rand(options.batch, 3, SIZE, SIZE, device=options.device).contiguous(memory_format=memory) * 2 - 1
    forward = torch.compile(network.posterior) if options.compile else network.posterior
    dtype = getattr(torch, options.dtype)
    kind = torch.device(options.device).type
    with torch.no_grad(), torch.autocast(kind, dtype, enabled=dtype != torch.float32):
        if kind == "cuda":
            network.module.to(memory_format=memory)
            forward(pixels)
        synchronize(options.device)
        start = time.perf_counter()
        for _ in range(options.images // options.batch):
            forward(pixels)
        synchronize(options.device)
    return options.images // options.batch * options.batch / (time.perf_counter() - start)


def pipeline(network: Any, files: list[Path], options: argparse.Namespace, profile: Profile | None = None) -> float:
    """Images per second from reading the first image until the dataset is published."""
    source = Repeated(files, options.images)
    recipe = Recipe.from_dict(RECIPE).override(dtype=options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        latentq.encode(
            source,
            Path(folder) / "out",
            recipe=recipe,
            autoencoder=network,
            device=options.device,
            batch_size=options.batch,
            compiled=options.compile,
            profile=profile,
        )
        assert source.start is not None
        return options.images / (time.perf_counter() - source.start)


class Photographs(torch.utils.data.Dataset[torch.Tensor]):
    """Photographs prepared like those of imagenet.int8."""

    def __init__(self, files: list[Path], count: int) -> None:
        self._files, self._count = files, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> torch.Tensor:
        picture = Image.open(self._files[index % len(self._files)]).convert("RGB")
        width, height = picture.size
        short = min(width, height)
        picture = picture.resize((int(SIZE * width / short), int(SIZE * height / short)), Image.Resampling.BICUBIC)
        left, top = round((picture.width - SIZE) / 2), round((picture.height - SIZE) / 2)
        pixels = np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))
        return torch.from_numpy(pixels / np.float32(127.5) - 1).permute(2, 0, 1)


def reference_loop(network: Any, files: list[Path], options: argparse.Namespace) -> float:
    """Images per second of the loop of imagenet.int8 from its first batch on; it is float32 and not compiled."""
    workers = len(os.sched_getaffinity(0))
    loader = torch.utils.data.DataLoader(
        Photographs(files, options.images), batch_size=options.batch, num_workers=workers
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None), torch.no_grad():
        writer = MDSWriter(out=folder, columns={"vae_output": "ndarray:uint8:4,32,32"})
        batches = iter(loader)
        pixels = next(batches)
        start = time.perf_counter()
        with writer:
            while True:
                latents = network.module.encode(pixels.to(options.device)).latent_dist.sample()
                codes = ((latents.clip(-14, 14) / 28.0 + 0.5) * 255.0).to(torch.uint8).cpu().numpy()
                for sample in codes:
                    writer.write({"vae_output": sample})
                pixels = next(batches, None)
                if pixels is None:
                    break
        return options.images / (time.perf_counter() - start)


def main() -> None:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--images", type=int, default=16384 if gpu else 16)
    parser.add_argument("--batch", type=int, default=64 if gpu else 2)
    parser.add_argument("--dtype", default="bfloat16" if gpu else "float32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=gpu)
    parser.add_argument("--rounds", type=int, default=3 if gpu else 2)
    shared = Path(__file__).resolve().parents[3] / "shared" / "images"
    parser.add_argument("--source", type=Path, default=shared, help="a folder of photographs")
    options = parser.parse_args()
    files = sorted(file for file in options.source.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))

    network = sdxl(options.device)
    if gpu:
        pipeline(network, files, options)  # compiles
    rates: dict[str, list[float]] = {"bare forward": [], "latentq.encode": [], "a loop like imagenet.int8's": []}
    for _ in range(options.rounds):
        rates["bare forward"].append(bare(network, options))
        profile = Profile()
        rates["latentq.encode"].append(pipeline(network, files, options, profile))
        table = profile.table()
        rates["a loop like imagenet.int8's"].append(reference_loop(network, files, options))
    whole = statistics.median(rates["bare forward"])
    compiled = ", compiled" if options.compile else ""
    print(f"{options.device}, {options.dtype}{compiled}, {options.images} images in batches of {options.batch}\n")
    print("| | images/s | of the bare forward |\n|---|---:|---:|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.3f} | {statistics.median(values) / whole:.1%} |")

    cores = len(os.sched_getaffinity(0))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        latentq.image.load_batch(files, SIZE, threads=cores)
        seconds.append(time.perf_counter() - start)
    print(f"\nImage loading alone, {cores} cores: {len(files) / statistics.median(seconds):.0f} images/s\n")
    print("\n".join(table))
    if gpu:
        used = sum(profile.seconds[stage, "worked"] for stage in ("network", "quantize"))
        print(f"GPU busy for {used:.1f} s")


if __name__ == "__main__":
    main()
