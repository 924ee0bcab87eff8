"""Photographs to a latent dataset, through a training epoch, and back to pictures. `make demo` runs this.

It needs no network: the photographs are in scikit-image's wheel, and the autoencoder is built in. Everything is written
into `demo/`.
"""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
FOLDER = Path(__file__).resolve().parents[1] / "demo"
PHOTOGRAPHS = {
    "animals": ["chelsea.png"],
    "people": ["astronaut.png", "camera.png"],
    "science": ["cell.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg"],
    "things": ["coffee.png", "coins.png", "motorcycle_left.png", "rocket.jpg"],
}

seconds: dict[str, float] = {}


def timed(stage: str, work: Callable[[], T]) -> T:
    """Run one stage and record its time."""
    start = time.perf_counter()
    result = work()
    seconds[stage] = time.perf_counter() - start
    return result


def latentq(*arguments: str) -> str:
    """Run one `latentq` command, print it and its output, and end the demo if it fails."""
    print(f"\n$ latentq {' '.join(arguments)}", flush=True)
    command = [str(Path(sys.executable).with_name("latentq")), *arguments]
    done = subprocess.run(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"latentq {arguments[0]} failed")
    return done.stdout


def collect_photographs() -> int:
    """Copy the photographs into class folders. Returns their size in bytes."""
    import skimage

    data = Path(skimage.__file__).parent / "data"
    for folder, names in PHOTOGRAPHS.items():
        (FOLDER / "photos" / folder).mkdir(parents=True)
        for name in names:
            shutil.copy(data / name, FOLDER / "photos" / folder / name)
    return sum(file.stat().st_size for file in (FOLDER / "photos").rglob("*.*"))


def train_one_epoch() -> int:
    """Read one epoch as a training script does: shuffled, two workers. Returns the number of samples."""
    from torch.utils.data import DataLoader

    from latentq import LatentDataset

    seen = 0
    for batch in DataLoader(LatentDataset(FOLDER / "latents"), batch_size=4, shuffle=True, num_workers=2):
        assert batch["latent"].shape[1:] == (16, 32, 32)
        seen += len(batch["label"])
    return seen


def compare_with_streaming() -> int:
    """Read the same folder with a plain StreamingDataset and compare every sample. Returns the number of samples."""
    import numpy as np
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    from latentq import LatentDataset

    clean_stale_shared_memory()  # left by an earlier StreamingDataset that was interrupted
    ours = LatentDataset(FOLDER / "latents")
    quantizer = ours.card.latents["latent"].quantizer
    stock = StreamingDataset(local=str(FOLDER / "latents"), batch_size=1)
    for index in range(len(ours)):
        theirs, sample = stock[index], ours[index]
        latent = quantizer.dequantize(np.asarray(theirs["latent"])[None])[0]
        assert np.array_equal(latent, sample["latent"].numpy())
        assert (theirs["key"], theirs["label"]) == (sample["key"], sample["label"])
    return len(ours)


def main() -> None:
    """Run every stage and print a summary."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    image_bytes = timed("photographs", collect_photographs)
    count = sum(map(len, PHOTOGRAPHS.values()))
    timed("encode", lambda: latentq("encode", "photos", "latents", "--autoencoder", "dct-f8c16", "--size", "256"))
    timed("info", lambda: latentq("info", "latents"))
    timed("verify", lambda: latentq("verify", "latents"))
    print("\none epoch through a torch DataLoader with two workers")
    assert timed("DataLoader", train_one_epoch) == count
    print("the same samples through a plain mosaicml StreamingDataset")
    assert timed("StreamingDataset", compare_with_streaming) == count
    print(f"{count} samples, equal to the last bit")
    indices = [str(index) for index in range(count)]
    output = timed(
        "decode",
        lambda: latentq("decode", "latents", "--source", "photos", "--index", *indices, "-o", "comparison.png"),
    )
    dataset_bytes = sum(file.stat().st_size for file in (FOLDER / "latents").rglob("*") if file.is_file())
    rows = [
        ("images", f"{count}"),
        ("bytes of the images", f"{image_bytes:,}"),
        ("bytes of the dataset", f"{dataset_bytes:,}"),
        ("mean PSNR as stored", output.rsplit("PSNR as stored ", 1)[-1].strip()),
        *((f"{stage}, seconds", f"{value:.1f}") for stage, value in seconds.items()),
    ]
    print(f"\nthe picture: {FOLDER / 'comparison.png'}\n")
    for name, value in rows:
        print(f"{name:<28}{value:>12}")


if __name__ == "__main__":
    main()
