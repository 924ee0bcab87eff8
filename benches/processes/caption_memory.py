"""Memory and rate of encoding with caption embeddings of the size of DFN5B-CLIP-ViT-H-14, (1, 77, 1024) in float16.

    python benches/processes/caption_memory.py [--samples 10000] [--batch 32]

A tar of generated pictures with captions, half of them repeated, goes through `latentq.encode` with an open_clip text
tower of that width, one thin layer deep, with random weights. Prints the peak memory of three processes: one that only
loads the model and embeds one batch, one that encodes a tenth of the samples, and one that encodes them all; then each
stage's share of the time.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import latentq

WIDTH = 1024
CODE = """
import resource, sys, time
from latentq import encode
from latentq.format.recipe import Recipe
from latentq.encoding.stages import Profile
from latentq.models.text import load_text_encoder
model, source, out, batch, recipe = sys.argv[1:]
start = time.perf_counter()
if source:
    profile = Profile()
    card = encode(source, out, recipe=recipe, text_encoder=model, batch_size=int(batch), profile=profile)
    print(f"{card.counts.samples} samples, {card.counts.rejects} rejects, {time.perf_counter() - start:.1f} s")
    print("\\n".join(profile.table()))
else:
    load_text_encoder(model).encode(["a caption"] * int(batch))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
RECIPE = """
name = "bench"
[columns.latent]
from = "latent"
size = 64
quantizer = { kind = "float16" }
[columns.caption]
from = "caption"
encoding = "str"
[columns.caption_embedding]
from = "caption_embedding"
[text]
model = "named by the caller"
"""


def save_model(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 16, "layers": 1, "mlp_ratio": 0.25}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


def save_tar(path: Path, samples: int) -> None:
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for number in range(samples):
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (72, 80, 3), np.uint8)).save(file, "JPEG")
            caption = f"a generated picture, the {rng.integers(samples // 2)}th of its kind".encode()
            for extension, data in (("jpg", file.getvalue()), ("txt", caption)):
                member = tarfile.TarInfo(f"{number:06}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_model(folder / "model")
        (folder / "recipe.toml").write_text(RECIPE)
        peaks = {}
        for samples in (0, options.samples // 10, options.samples):
            source = folder / f"{samples}.tar" if samples else ""
            if samples:
                save_tar(source, samples)
            out = folder / f"out-{samples}"
            arguments = [f"openclip:{folder / 'model'}", source, out, options.batch, folder / "recipe.toml"]
            done = subprocess.run(
                [sys.executable, "-c", CODE, *map(str, arguments)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stderr[-2000:])
            *report, peak = done.stdout.splitlines()
            peaks[samples] = int(peak)
            print("\n".join([f"{samples:,} samples, peak {peak} MiB", *report]), flush=True)
        batch = latentq.LatentDataset(out).batch(range(4))
        assert batch["caption_embedding"].shape == (4, 1, 77, WIDTH)
        print(f"{peaks[options.samples] - peaks[0]} MiB above the model's own")


if __name__ == "__main__":
    main()
