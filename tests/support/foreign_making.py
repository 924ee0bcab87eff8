"""Folders and files as other tools write them, and their own code that reads them, re-enacted."""

import io
import json
import os
from glob import glob
from pathlib import Path

import numpy as np


def lightningdit_writes(folder, latents, flipped, labels, shard):
    """Write safetensors shards as extract_features.py of hustvl/LightningDiT does."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    for saved_files, start in enumerate(range(0, len(latents), shard)):
        save_dict = {
            "latents": torch.from_numpy(latents[start : start + shard]),
            "latents_flip": torch.from_numpy(flipped[start : start + shard]),
            "labels": torch.from_numpy(labels[start : start + shard]),
        }
        z = save_dict["latents"]
        metadata = {"total_size": f"{z.shape[0]}", "dtype": f"{z.dtype}", "device": f"{z.device}"}
        save_file(save_dict, folder / f"latents_rank{0:02d}_shard{saved_files:03d}.safetensors", metadata=metadata)
    z = torch.from_numpy(latents)
    stats = {"mean": z.mean(dim=[0, 2, 3], keepdim=True), "std": z.std(dim=[0, 2, 3], keepdim=True)}
    torch.save(stats, folder / "latents_stats.pt")
    return stats


def lightningdit_reads(data_dir, index, key):
    """Read a sample as ImgLatentDataset of hustvl/LightningDiT does, with one of its two keys."""
    import torch
    from safetensors import safe_open

    img_to_file = {}
    for safe_file in sorted(glob(os.path.join(data_dir, "*.safetensors"))):
        with safe_open(safe_file, framework="pt", device="cpu") as f:
            num_imgs = f.get_slice("labels").get_shape()[0]
            cur_len = len(img_to_file)
            for i in range(num_imgs):
                img_to_file[cur_len + i] = {"safe_file": safe_file, "idx_in_file": i}
    stats = torch.load(os.path.join(data_dir, "latents_stats.pt"))
    info = img_to_file[index]
    with safe_open(info["safe_file"], framework="pt", device="cpu") as f:
        feature = f.get_slice(key)[info["idx_in_file"] : info["idx_in_file"] + 1]
        label = f.get_slice("labels")[info["idx_in_file"] : info["idx_in_file"] + 1]
    return len(img_to_file), ((feature - stats["mean"]) / stats["std"] * 1.0).squeeze(0), label.squeeze(0)


def edm2_opens_dest(dest):
    """Open an output as `open_dest` of EDM2's and REPA's dataset_tools.py does."""
    import zipfile

    if str(dest).endswith(".zip"):
        archive = zipfile.ZipFile(file=dest, mode="w", compression=zipfile.ZIP_STORED)
        return "", lambda name, data: archive.writestr(name, data), archive.close

    def folder_write_bytes(name, data):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        with open(name, "wb") as out:
            out.write(data.encode() if isinstance(data, str) else data)

    return str(dest), folder_write_bytes, lambda: None


def edm2_writes(dest, mean_std, labels):
    """Write moments as `encode` of EDM2's and REPA's dataset_tools.py does."""
    root, save_bytes, close_dest = edm2_opens_dest(dest)
    entries = []
    for idx, moments in enumerate(mean_std):
        idx_str = f"{idx:08d}"
        name = f"{idx_str[:5]}/img-mean-std-{idx_str}.npy"
        f = io.BytesIO()
        np.save(f, moments)
        save_bytes(os.path.join(root, name), f.getvalue())
        entries.append([name, labels[idx]] if labels is not None else None)
    metadata = {"labels": entries if all(x is not None for x in entries) else None}
    save_bytes(os.path.join(root, "dataset.json"), json.dumps(metadata))
    close_dest()


def repa_reads(features_dir):
    """Read features and labels as CustomDataset of sihyun-yu/REPA does."""
    names = sorted(
        name
        for name in (
            os.path.relpath(os.path.join(root, fname), start=features_dir)
            for root, _dirs, files in os.walk(features_dir)
            for fname in files
        )
        if os.path.splitext(name)[1] == ".npy"
    )
    with open(os.path.join(features_dir, "dataset.json"), "rb") as f:
        labels = dict(json.load(f)["labels"])
    labels = np.array([labels[name.replace("\\", "/")] for name in names])
    labels = labels.astype({1: np.int64, 2: np.float32}[labels.ndim])
    return [np.load(os.path.join(features_dir, name)) for name in names], labels


def edm2_reads_zip(path):
    """Read arrays and labels of a zip as ImageFolderDataset of NVlabs/edm2 does."""
    import zipfile

    archive = zipfile.ZipFile(path)
    names = sorted(name for name in archive.namelist() if os.path.splitext(name)[1] == ".npy")
    labels = json.load(archive.open("dataset.json"))["labels"]
    labels = np.array([dict(labels)[name] for name in names])
    return [np.load(io.BytesIO(archive.read(name))) for name in names], labels


def mar_writes(cached_path, names, moments, flipped):
    """Write moments as `cache_latents` of LTH14/mar does: `np.savez` for each image, by its path in ImageFolder."""
    for name, one, other in zip(names, moments, flipped, strict=True):
        save_path = os.path.join(cached_path, name + ".npz")
        os.makedirs(os.path.dirname(save_path), exist_ok=True)
        np.savez(save_path, moments=one, moments_flip=other)


def mar_reads(root):
    """Read a folder as CachedFolder of LTH14/mar does: a list of (path, moments, flipped, target)."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    found = []
    for target, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(os.path.join(root, name), followlinks=True)):
            for file in sorted(files):
                if file.lower().endswith(".npz"):
                    data = np.load(os.path.join(folder, file))
                    path = str(Path(folder, file).relative_to(root))
                    found.append((path, data["moments"], data["moments_flip"], target))
    return found
