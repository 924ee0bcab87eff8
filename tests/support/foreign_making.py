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


def fast_dit_writes(features_path, latents, labels):
    """Write features and labels as extract_features.py of chuanyangjin/fast-DiT does, with batches of one."""
    os.makedirs(os.path.join(features_path, "imagenet256_features"))
    os.makedirs(os.path.join(features_path, "imagenet256_labels"))
    for train_steps, (x, y) in enumerate(zip(latents, labels, strict=True)):
        np.save(f"{features_path}/imagenet256_features/{train_steps}.npy", x[None])
        np.save(f"{features_path}/imagenet256_labels/{train_steps}.npy", np.array([y]))


def fast_dit_reads(features_path):
    """Read features and labels as CustomDataset of chuanyangjin/fast-DiT does."""
    features_dir, labels_dir = f"{features_path}/imagenet256_features", f"{features_path}/imagenet256_labels"
    feature_files, label_files = sorted(os.listdir(features_dir)), sorted(os.listdir(labels_dir))
    assert len(feature_files) == len(label_files)
    features = [np.load(os.path.join(features_dir, name)) for name in feature_files]
    return feature_files, features, [np.load(os.path.join(labels_dir, name)) for name in label_files]


def llamagen_writes(code_path, codes, labels):
    """Write codes and labels as extract_codes_c2i.py of FoundationVision/LlamaGen does: codes (N, augmentations, T)."""
    os.makedirs(os.path.join(code_path, "imagenet256_codes"))
    os.makedirs(os.path.join(code_path, "imagenet256_labels"))
    for train_steps, (indices, y) in enumerate(zip(codes, labels, strict=True)):
        x = indices.reshape(1, len(indices), -1)
        np.save(f"{code_path}/imagenet256_codes/{train_steps}.npy", x)
        np.save(f"{code_path}/imagenet256_labels/{train_steps}.npy", np.array([y]))


def llamagen_reads(code_path, count):
    """Read codes and labels as CustomDataset of FoundationVision/LlamaGen does, but all augmentations."""
    feature_dir, label_dir = f"{code_path}/imagenet256_codes", f"{code_path}/imagenet256_labels"
    files = [f"{i}.npy" for i in range(count)]
    return [np.load(f"{feature_dir}/{name}") for name in files], [np.load(f"{label_dir}/{name}") for name in files]


def rar_writes(path, tokens, labels):
    """Write JSON lines as scripts/pretokenization.py of bytedance/1d-tokenizer does."""
    processed = [{"class_id": label, "tokens": row.tolist()} for row, label in zip(tokens, labels, strict=True)]
    with open(path, "w") as outfile:
        for item in json.loads(json.dumps(processed)):
            json.dump(item, outfile)
            outfile.write("\n")


def rar_reads(path):
    """Read all lines as PretoeknizedDataSetJSONL of bytedance/1d-tokenizer does."""
    import linecache

    import torch

    with open(path) as file:
        num_lines = sum(1 for _ in file)
    linecache.checkcache(str(path))
    found = []
    for idx in range(num_lines):
        data = json.loads(linecache.getline(str(path), idx + 1).strip())
        found.append((torch.tensor(data["class_id"]), torch.tensor(data["tokens"])))
    return found


def repa_e_writes(output_dir, name, mean_std, labels):
    """Write an HDF5 as cache_latents.py of End2End-Diffusion/REPA-E does."""
    import h5py

    def create_dataset_in_group(h5file, full_path, data):
        parts = full_path.strip("/").split("/")
        if len(parts) == 1:
            h5file.create_dataset(full_path, data=data)
            return
        grp = h5file
        for part in parts[:-1]:
            grp = grp.create_group(part) if part not in grp else grp[part]
        grp.create_dataset(parts[-1], data=data)

    os.makedirs(output_dir, exist_ok=True)
    metadata_labels, metadata_filenames = [], []
    h5f = h5py.File(os.path.join(output_dir, f"{name}.h5"), "w")
    for idx, (latent, label) in enumerate(zip(mean_std, labels, strict=True)):
        idx_str = f"{idx:08d}"
        fname = f"{idx_str[:5]}/img{idx_str}.png"
        archive_fname = fname.replace("img", "img-mean-std-").replace(".png", ".npy")
        create_dataset_in_group(h5f, archive_fname, latent)
        metadata_labels.append((archive_fname, label))
        metadata_filenames.append(archive_fname)
    dataset_json = np.array(json.dumps({"labels": metadata_labels}).encode("utf-8"), dtype="S")
    create_dataset_in_group(h5f, "dataset.json", dataset_json)
    metadata_filenames.append("dataset.json")
    h5f.close()
    with open(os.path.join(output_dir, f"{name}_h5.json"), "w") as f:
        json.dump(metadata_filenames, f, indent=2)


def repa_e_reads(data_dir, name):
    """Read features and labels as CustomH5Dataset of End2End-Diffusion/REPA-E does."""
    import h5py

    with h5py.File(os.path.join(data_dir, f"{name}.h5"), "r") as features_h5:
        with open(os.path.join(data_dir, f"{name}_h5.json")) as f:
            names = sorted(fname for fname in set(json.load(f)) if os.path.splitext(fname)[1].lower() == ".npy")
        labels = json.loads(np.array(features_h5["dataset.json"]).tobytes().decode("utf-8"))["labels"]
        labels = np.array([dict(labels)[fname] for fname in names])
        return [np.array(features_h5[fname]) for fname in names], labels.astype(np.int64)


def cosmos_imagenet_writes(path, latents, labels):
    """Write a safetensors file as fal's cosmos-imagenet is: int8 latents, or int16 bits of uint16 tokens."""
    import torch
    from safetensors.torch import save_file

    save_file({"latents": torch.from_numpy(latents), "labels": torch.from_numpy(labels)}, path)


def cosmos_imagenet_reads(path, tokenizer_type):
    """Read a file as the card of fal/cosmos-imagenet says."""
    import torch
    from safetensors.torch import safe_open

    with safe_open(path, framework="pt") as f:
        if tokenizer_type == "continuous":
            data = f.get_tensor("latents").to(torch.bfloat16) * 16.0 / 255.0
        else:
            data = f.get_tensor("latents").to(torch.uint16)
        return data, f.get_tensor("labels"), f.get_tensor("latents")


def kohya_crop_ltrb(bucket_reso, image_size):
    """Return the part that an image covers, as BucketManager.get_crop_ltrb of kohya-ss/sd-scripts."""
    bucket_ar = bucket_reso[0] / bucket_reso[1]
    image_ar = image_size[0] / image_size[1]
    if bucket_ar > image_ar:
        resized_width = bucket_reso[1] * image_ar
        resized_height = bucket_reso[1]
    else:
        resized_width = bucket_reso[0]
        resized_height = bucket_reso[0] / image_ar
    crop_left = (bucket_reso[0] - resized_width) // 2
    crop_top = (bucket_reso[1] - resized_height) // 2
    return crop_left, crop_top, crop_left + resized_width, crop_top + resized_height


def kohya_saves(npz_path, latents, original_size, crop_ltrb, flipped=None, alpha_mask=None, key_reso_suffix=""):
    """Save latents as save_latents_to_disk of kohya-ss/sd-scripts does, into an .npz that may exist."""
    import torch

    kwargs = {}
    if os.path.exists(npz_path):
        npz = np.load(npz_path)
        for key in npz.files:
            kwargs[key] = npz[key]
    kwargs["latents" + key_reso_suffix] = torch.from_numpy(latents).float().cpu().numpy()
    kwargs["original_size" + key_reso_suffix] = np.array(original_size)
    kwargs["crop_ltrb" + key_reso_suffix] = np.array(crop_ltrb)
    if flipped is not None:
        kwargs["latents_flipped" + key_reso_suffix] = flipped
    if alpha_mask is not None:
        kwargs["alpha_mask" + key_reso_suffix] = alpha_mask
    np.savez(npz_path, **kwargs)


def kohya_loads(latents_stride, npz_path, bucket_reso):
    """Load latents as _default_load_latents_from_disk of kohya-ss/sd-scripts does."""
    if latents_stride is None:
        key_reso_suffix = ""
    else:
        latents_size = (bucket_reso[1] // latents_stride, bucket_reso[0] // latents_stride)
        key_reso_suffix = f"_{latents_size[0]}x{latents_size[1]}"
    npz = np.load(npz_path)
    if "latents" + key_reso_suffix not in npz:
        raise ValueError(f"latents{key_reso_suffix} not found in {npz_path}")
    latents = npz["latents" + key_reso_suffix]
    original_size = npz["original_size" + key_reso_suffix].tolist()
    crop_ltrb = npz["crop_ltrb" + key_reso_suffix].tolist()
    has_flipped = "latents_flipped" + key_reso_suffix in npz
    flipped_latents = npz["latents_flipped" + key_reso_suffix] if has_flipped else None
    return latents, original_size, crop_ltrb, flipped_latents


def musubi_saves(path, latent, arch_fullname, original_size, *, framed=True, others=None):
    """Save a latent as save_latent_cache_* of kohya-ss/musubi-tuner do, with others by what their keys begin with.

    latent: (C, F, H, W), or (C, H, W) as of FLUX.1 Kontext, FLUX.2 (whose keys have no frames), Z-Image and Ideogram 4.
    """
    from safetensors.torch import save_file

    sd = {}
    for content, tensor in {"latents": latent, **(others or {})}.items():
        height, width = tensor.shape[-2:]
        frames = tensor.shape[1] if tensor.dim() == 4 else 1
        dtype_str = str(tensor.dtype).split(".")[-1]
        sd[f"{content}_{f'{frames}x' * framed}{height}x{width}_{dtype_str}"] = tensor.detach().cpu().contiguous()
    metadata = {
        "architecture": arch_fullname,
        "width": f"{original_size[0]}",
        "height": f"{original_size[1]}",
        "format_version": "1.0.1",
    }
    save_file(sd, path, metadata=metadata)


def musubi_reads(cache_directory, architecture):
    """Read latents by file as BucketBatchManager of kohya-ss/musubi-tuner does: (item key, image size) -> tensors."""
    from safetensors.torch import load_file

    found = {}
    for cache_file in glob(os.path.join(cache_directory, f"*_{architecture}.safetensors")):
        tokens = os.path.basename(cache_file).split("_")
        image_size = tuple(map(int, tokens[-2].split("x")))
        tensors = {}
        for key, value in load_file(cache_file).items():
            content_key = key.rsplit("_", 1)[0]
            if content_key.startswith("latents_"):
                content_key = content_key.rsplit("_", 1)[0]
            tensors[content_key] = value
        found["_".join(tokens[:-2]), image_size] = tensors
    return found


def nemo_writes(output_dir, samples, extension="meta"):
    """Write torch files and lists as tools/diffusion/preprocessing_multiprocess.py of NeMo AutoModel does.

    Each sample is (image path, latent, bucket (width, height), original (width, height), embeddings, pooled).
    """
    import hashlib

    import torch

    all_metadata = []
    for number, (image_path, latent, bucket, original, embeds, pooled) in enumerate(samples):
        resolution = f"{bucket[0]}x{bucket[1]}"
        cache_subdir = Path(output_dir) / resolution
        cache_subdir.mkdir(parents=True, exist_ok=True)
        cache_hash = hashlib.md5(f"{image_path}_{resolution}".encode()).hexdigest()
        cache_file = cache_subdir / f"{cache_hash}.{extension}"
        metadata = {
            "original_resolution": original,
            "bucket_resolution": bucket,
            "crop_offset": (number, 2 * number),
            "prompt": f"a picture of {number}",
            "image_path": image_path,
            "bucket_id": number % 3,
            "aspect_ratio": bucket[0] / bucket[1],
        }
        cache_data = {"latent": latent, "clip_tokens": torch.zeros(1, 77, dtype=torch.int64)}
        if pooled is not None:
            cache_data["pooled_prompt_embeds"] = pooled
        cache_data |= {"prompt_embeds": embeds, **metadata, "model_type": "flux"}
        torch.save(cache_data, cache_file)
        all_metadata.append(
            {
                "cache_file": str(cache_file),
                "image_path": image_path,
                "bucket_resolution": list(bucket),
                "original_resolution": list(original),
                "prompt": metadata["prompt"],
                "bucket_id": metadata["bucket_id"],
                "aspect_ratio": metadata["aspect_ratio"],
                "pixels": bucket[0] * bucket[1],
                "model_type": "flux",
            }
        )
    shard_files = []
    for shard_idx in range(0, len(all_metadata), 5):
        shard_file = Path(output_dir) / f"metadata_shard_{shard_idx // 5:04d}.json"
        shard_file.write_text(json.dumps(all_metadata[shard_idx : shard_idx + 5], indent=2))
        shard_files.append(shard_file.name)
    metadata = {"processor": "flux", "total_items": len(all_metadata), "shards": shard_files}
    (Path(output_dir) / "metadata.json").write_text(json.dumps(metadata, indent=2))


def nemo_reads(cache_dir):
    """Read all samples as TextToImageDataset of NeMo AutoModel does."""
    import torch

    data = json.loads((Path(cache_dir) / "metadata.json").read_text())
    items = []
    for shard_name in data["shards"]:
        items.extend(json.loads((Path(cache_dir) / shard_name).read_text()))
    found = []
    for item in items:
        cache_file = Path(item["cache_file"]).resolve()
        cache_file.relative_to(Path(cache_dir).resolve())
        loaded = torch.load(cache_file, map_location="cpu", weights_only=True)
        output = {
            "latent": loaded["latent"],
            "crop_resolution": torch.tensor(item["bucket_resolution"]),
            "original_resolution": torch.tensor(item["original_resolution"]),
            "crop_offset": torch.tensor(loaded["crop_offset"]),
            "prompt": loaded["prompt"],
            "image_path": loaded["image_path"],
            "bucket_id": item["bucket_id"],
            "aspect_ratio": item.get("aspect_ratio", 1.0),
        }
        for key in ("clip_hidden", "pooled_prompt_embeds", "prompt_embeds"):
            if key in loaded:
                output[key] = loaded[key].squeeze(0)
        found.append(output)
    return found


def primus_writes(output_dir, samples, shard_size):
    """Write tars as save_to_webdataset of AMD-AGI/Primus does. Each sample maps extensions to tensors or text."""
    import torch
    import webdataset as wds

    os.makedirs(output_dir, exist_ok=True)
    for shard_num, start_idx in enumerate(range(0, len(samples), shard_size)):
        with wds.TarWriter(os.path.join(output_dir, f"{shard_num:06d}.tar")) as sink:
            for sample_idx, sample in enumerate(samples[start_idx : start_idx + shard_size]):
                wds_sample = {"__key__": f"{shard_num:06d}_{sample_idx:06d}"}
                for ext, data in sample.items():
                    if isinstance(data, str):
                        wds_sample[ext] = data.encode("utf-8")
                    else:
                        buffer = io.BytesIO()
                        torch.save(data, buffer)
                        wds_sample[ext] = buffer.getvalue()
                sink.write(wds_sample)


def primus_reads(output_dir):
    """Read all samples as webdataset groups them and cook_preencoded_diffusion of AMD-AGI/Primus loads them."""
    import torch
    import webdataset as wds

    info = json.loads((Path(output_dir) / ".nv-meta" / ".info.json").read_text())
    found = []
    for shard in info["shard_counts"]:
        dataset = wds.WebDataset(os.path.join(output_dir, shard), shardshuffle=False)
        samples = list(dataset)
        assert len(samples) == info["shard_counts"][shard]
        for sample in samples:
            tensors = {key: data for key, data in sample.items() if key.endswith(".pth")}
            loaded = {key: torch.load(io.BytesIO(data), map_location="cpu") for key, data in tensors.items()}
            found.append(loaded | {"caption": sample.get("caption.txt", b"").decode("utf-8")})
    return found


def prx_bf16_encode(obj):
    """Encode a tensor as BFloat16TensorEncoding of Photoroom/PRX does."""
    import torch

    shape = np.array(obj.shape, dtype=np.int32)
    ndim = np.uint32(len(shape))
    return ndim.tobytes() + shape.tobytes() + obj.view(torch.uint16).numpy().tobytes()


def prx_writes(folder, samples):
    """Write an MDS as PRX's scripts do, with its encoding `bf16` registered in mosaicml-streaming."""
    from streaming import MDSWriter
    from streaming.base.format.mds.encodings import Encoding, _encodings

    class BFloat16TensorEncoding(Encoding):
        def encode(self, obj):
            return prx_bf16_encode(obj)

        def decode(self, data):
            raise NotImplementedError

    _encodings["bf16"] = BFloat16TensorEncoding
    try:
        columns = {
            "img_latent": "ndarray:float32",
            "caption_long": "str",
            "latent_caption_long_t5gemma2b-256-bf16": "bf16",
            "attention_mask_caption_long_t5gemma2b-256-bf16": "ndarray:uint8",
            "original_height": "int",
            "original_width": "int",
        }
        columns |= dict.fromkeys(samples[0].keys() - columns.keys(), "str")
        with MDSWriter(out=str(folder), columns={name: columns[name] for name in samples[0]}) as out:
            for sample in samples:
                out.write(sample)
    finally:
        del _encodings["bf16"]


def micro_diffusion_writes(folder, samples):
    """Write an MDS as precompute.py of SonyResearch/micro_diffusion does."""
    from streaming import MDSWriter

    columns = {"caption": "str", "caption_latents": "bytes", "latents_256": "bytes", "latents_512": "bytes"}
    writer = MDSWriter(out=str(folder), columns=columns, compression=None, size_limit=256 * (2**20))
    for caption, conditioning, latents_256, latents_512 in samples:
        writer.write(
            {
                "caption": caption,
                "caption_latents": np.reshape(conditioning, -1).tobytes(),
                "latents_256": latents_256.tobytes(),
                "latents_512": latents_512.tobytes(),
            }
        )
    writer.finish()


def simpletuner_writes(cache_dir, names, latents, *, compress):
    """Write .pt files as the local data backend of bghira/SimpleTuner does, compressed or not."""
    import gzip

    import torch

    for name, latent in zip(names, latents, strict=True):
        path = os.path.join(cache_dir, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not compress:
            torch.save(latent, path)
            continue
        output_data_container = io.BytesIO()
        torch.save(latent, output_data_container)
        with io.BytesIO() as compressed_output:
            with gzip.GzipFile(fileobj=compressed_output, mode="wb") as file:
                file.write(output_data_container.getvalue())
            Path(path).write_bytes(compressed_output.getvalue())
