"""Make small copies of the six public collections, in their real layouts, from generated pictures."""

import io
import json
import tarfile
import zipfile
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from support.hub_server import Repository

# Samples kept and rejected in each collection's small subset.
KEPT = {"jdb-train": 3, "jdb-valid": 2, "cc12m": 3, "cc12m-512": 1, "diffdb": 2, "sa1b": 3, "textcaps": 3, "coco": 2}
REJECTS = {
    "jdb-train": Counter(size=1, decode=1),
    "jdb-valid": Counter(list=1),
    "cc12m": Counter(size=19, list=1),
    "cc12m-512": Counter(size=21, list=1),
    "diffdb": Counter(list=138),
    "sa1b": Counter(list=1),
    "textcaps": Counter(read=1),
    "coco": Counter(list=1),
}


def picture(seed, size=(300, 280), form="JPEG"):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(file, form)
    return file.getvalue()


def tar(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def parquet(columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def journeydb():
    pictures = {
        ("train", 0): {"a": picture(1), "b": picture(2, (320, 300)), "small": picture(3, (200, 300))},
        ("train", 1): {"large": picture(4, (700, 600)), "broken": b"no picture"},
        ("valid", 0): {"c": picture(5), "bare": picture(6)},
        ("valid", 1): {"d": picture(7)},
    }
    files = {}
    rows = {"train": [], "valid": []}
    for (split, number), named in pictures.items():
        members = [(f"{number:03}/{name}.jpg", data) for name, data in named.items()]
        files[f"data/{split}/imgs/{number:03}.tgz"] = tar(members, "w:gz")
        for name in named:
            if name != "bare":
                rows[split].append({"prompt": f"journey {name}", "img_path": f"./{number:03}/{name}.jpg"})
    for split, name in (("train", "train_anno_realease_repath.jsonl"), ("valid", "valid_anno_repath.jsonl")):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows[split]).encode()
        files[f"data/{split}/{name}.tgz"] = tar([(name, lines)], "w:gz")
    return files


def cc12m():
    files = {"_info.json": b"{}"}
    for number in range(23):
        size = (640, 530) if number == 0 else (300, 280) if number < 4 else (90, 80)
        name = f"{number:09}"
        members = [(f"{name}.jpg", picture(number, size)), (f"{name}.json", b"{}")]
        members += [(f"{name}.txt", f"conceptual {number}".encode())] if number != 3 else []
        files[f"cc12m-train-{number:04}.tar"] = tar(members)
    return files


def diffusiondb():
    kinds = [picture(seed, (300 + seed, 290), "WEBP") for seed in range(4)]
    files = {}
    for number in range(1, 141):
        members = [(f"{number:03}-x.webp", kinds[number % 4]), (f"part-{number:06}.json", b"{}")]
        files[f"diffusiondb-large-part-1/part-{number:06}.zip"] = zipped(members)
    numbers = range(1, 200)  # also for archives that are not in the small subset
    files["metadata-large.parquet"] = parquet(
        {
            "image_name": [f"{number:03}-x.webp" for number in numbers],
            "prompt": [f"diffusion {number}" for number in numbers],
            "part_id": list(numbers),
            "image_nsfw": [0.1 if number <= 4 else 0.7 for number in numbers],
            "prompt_nsfw": [0.2 if number <= 2 else 0.21 for number in numbers],
        }
    )
    return files


def textcaps():
    def rows(numbers):
        images = [{"bytes": picture(n) if n else None, "path": f"{n}.jpg"} for n in numbers]
        texts = [[f"text {number}", "another"] for number in numbers]
        names = [f"id{number}" for number in numbers]
        return parquet({"image": images, "image_id": names, "image_width": [300] * len(names), "reference_strs": texts})

    script = {"TextCaps.py": b"import datasets", "README.md": b"# TextCaps"}
    names = ("train", range(3)), ("validation", range(3, 4)), ("test", range(4, 6))
    return {"main": script, "refs/convert/parquet": {f"default/{s}/0000.parquet": rows(n) for s, n in names}}


def coco():
    names = [f"COCO_val2014_{number:012}.jpg" for number in (42, 73, 99)]
    images = [("val2014/", b""), *((f"val2014/{name}", picture(n)) for n, name in enumerate(names))]
    captions = [{"image_id": 42, "caption": "coco 42"}, {"image_id": 42, "caption": "another"}]
    captions += [{"image_id": 73, "caption": "coco 73"}]
    listed = [{"id": int(name[13:25]), "file_name": name} for name in names]
    annotations = [
        ("annotations/instances_val2014.json", b"not for us"),
        ("annotations/captions_val2014.json", json.dumps({"images": listed, "annotations": captions}).encode()),
    ]
    return {"/zips/val2014.zip": zipped(images), "/annotations/annotations_trainval2014.zip": zipped(annotations)}


def serve_collections(server):
    """Serve all six collections; returns Segment Anything's list of links, as its page gives it."""
    server.repositories |= {
        "JourneyDB/JourneyDB": Repository({"main": journeydb()}, token="mine"),
        "pixparse/cc12m-wds": Repository({"main": cc12m()}),
        "poloclub/diffusiondb": Repository({"main": diffusiondb()}),
        "HuggingFaceM4/TextCaps": Repository(textcaps()),
    }
    captions = [(f"sa_{number}.txt", f"segment {number}".encode()) for number in (1, 2, 4, 5)]
    llava = {"SA1B_caption.tar.gz": tar(captions, "w:gz")}
    server.repositories["PixArt-alpha/SAM-LLaVA-Captions10M"] = Repository({"main": llava})
    for number in range(2):
        members = []
        for image in (2 * number + 1, 2 * number + 2):
            members += [(f"./sa_{image}.jpg", picture(image, (560, 300))), (f"./sa_{image}.json", b"{}")]
        server.site[f"/sa1b/{number}"] = tar(members)
    server.site |= coco()
    links = "".join(f"sa_{number:06}.tar\t{server.url}/sa1b/{number}?signed=1\n" for number in range(150))
    return f"file_name\tcdn_link\n{links}"
