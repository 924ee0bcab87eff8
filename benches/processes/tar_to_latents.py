"""WebDataset tars to a latent dataset: `latentq.encode` against webdataset + torchvision + MDSWriter.

    python benches/processes/tar_to_latents.py [--samples 400] [--rounds 2]

Both read the same tars, resize and crop alike, encode by the same transform (`dct-f8c16` at 256 x 256) in batches of 64
on the CPU, quantize to 8 bits by one fixed range, and write MDS shards of latent, key and caption; their codes are
compared. The rival decodes images in the workers of a DataLoader (none or two). Whole runs take turns after one that
brings the files into the page cache; the median counts. The time of latentq includes listing the archives and fsync,
which the rival does not do.
"""

import argparse
import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image
from streaming import MDSWriter
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from latentq import Recipe, encode, load_autoencoder, mds

BATCH = 64
SIZE = 256
TAR = 200  # samples in a tar
LOW, HIGH = -12.0, 12.0
RECIPE = Recipe.from_dict(
    {
        "name": "bench",
        "unit_size": TAR,
        "image": {"orient": False, "alpha": "drop", "icc": "ignore"},
        "columns": {
            "latent": {
                "from": "latent",
                "size": SIZE,
                "quantizer": {"kind": "uniform", "low": LOW, "high": HIGH, "bits": 8},
            },
            "key": {"from": "key", "encoding": "str"},
            "caption": {"from": "caption", "encoding": "str"},
        },
    }
)


def make_tars(folder: Path, samples: int) -> None:
    """Write tars of pictures with detail at every scale, 512 x 384, as JPEGs of quality 90, each with a caption."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(32):
        pixels = np.zeros((384, 512, 3), np.float32)
        for scale in (4, 16, 64, 256):
            noise = random.normal(0, 90 / scale**0.5, (-(-384 * scale // 512), scale, 3)).astype(np.float32)
            for channel in range(3):
                layer = Image.fromarray(noise[..., channel], "F").resize((512, 384), Image.Resampling.BICUBIC)
                pixels[..., channel] += np.asarray(layer)
        file = io.BytesIO()
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    for start in range(0, samples, TAR):
        with tarfile.open(folder / f"{start // TAR:04}.tar", "w") as tar:
            for number in range(start, min(start + TAR, samples)):
                members = (("jpg", pictures[number % 32]), ("txt", f"caption of picture {number}".encode()))
                for extension, data in members:
                    info = tarfile.TarInfo(f"{number:08}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


def ours(tars: Path, out: Path) -> None:
    encode(f"{tars}/*.tar", out, recipe=RECIPE, batch_size=BATCH)


class Prepare:
    """Turns a sample of webdataset into tensors, in a worker."""

    def __init__(self) -> None:
        steps = [Resize(SIZE, InterpolationMode.BICUBIC, antialias=True), CenterCrop(SIZE), PILToTensor()]
        self._transform = Compose(steps)

    def __call__(self, sample: dict) -> tuple[torch.Tensor, str, str]:
        picture = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
        return self._transform(picture), sample["__key__"], sample["txt"].decode()


def rival(tars: Path, out: Path, workers: int) -> None:
    network = load_autoencoder("dct-f8c16")
    low, high = network.pixel_range
    urls = sorted(str(path) for path in tars.iterdir())
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).map(Prepare()).batched(BATCH)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    shape = ",".join(map(str, network.latent_shape(SIZE)))
    columns = {"latent": f"ndarray:uint8:{shape}", "key": "str", "caption": "str"}
    with MDSWriter(out=str(out), columns=columns, hashes=["xxh3_64"]) as writer, torch.inference_mode():
        for pixels, keys, captions in loader:
            latents = network.encode(pixels.float() * ((high - low) / 255) + low)
            codes = ((latents.clamp(LOW, HIGH) - LOW) * (255 / (HIGH - LOW))).round().byte().numpy()
            for code, key, caption in zip(codes, keys, captions, strict=True):
                writer.write({"latent": code, "key": key, "caption": caption})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    contenders = {"latentq": ours, **{f"webdataset, {n} workers": lambda t, o, n=n: rival(t, o, n) for n in (0, 2)}}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tars").mkdir()
        make_tars(folder / "tars", options.samples)
        for turn in range(options.rounds + 1):
            for place, (contender, convert) in enumerate(contenders.items()):
                out = folder / f"out-{turn}-{place}"
                start = time.perf_counter()
                convert(folder / "tars", out)
                seconds = time.perf_counter() - start
                print(f"{'round' if turn else 'warming up'} {turn or ''}: {contender}: {seconds:.2f} s", flush=True)
                if turn:
                    times[contender].append(seconds)
        first, second = (mds.Reader(folder / f"out-0-{place}") for place in (0, 1))
        indices = np.arange(options.samples)
        assert first.gather(indices, "caption") == second.gather(indices, "caption")
        difference = np.abs(first.gather(indices, "latent").astype(int) - second.gather(indices, "latent"))
        share = np.mean(difference > 0)
        print(f"{options.samples} samples; codes that differ: {share:.4%}, by {difference.max()} at most")
    print("| | samples/s | all runs, s |\n| --- | --- | --- |")
    for contender, runs in times.items():
        rate = options.samples / statistics.median(runs)
        print(f"| {contender} | {rate:.0f} | {', '.join(f'{run:.2f}' for run in runs)} |")


if __name__ == "__main__":
    main()
