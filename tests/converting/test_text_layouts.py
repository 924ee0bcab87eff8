"""Layouts with captions and their embeddings, most with buckets: in, out and in again, equal to the bit."""

import sys

import numpy as np
import pytest
import torch

import latentq
from latentq.converting.outgoing import Outgoing
from latentq.converting.pipeline import convert
from support import foreign_making as made
from support.converted import IMAGES, by_key, files, latent, same

COUNT = len(IMAGES)


def embedding(index, *shape, dtype=torch.bfloat16):
    return torch.from_numpy(np.random.default_rng((9, index)).standard_normal(shape).astype(np.float32)).to(dtype)


def nemo_samples(*, variable=False):
    return [
        (
            f"/data/images/{index}.jpg",
            torch.from_numpy(latent(index, 16, bucket)).to(torch.float16),
            bucket,
            image,
            embedding(index, 1, 6 + variable * (index % 2), 8),
            embedding(index, 1, 5),
        )
        for index, (image, bucket) in enumerate(IMAGES)
    ]


@pytest.mark.parametrize("extension", ["meta", "pt"])
def test_nemo_is_equal_to_the_bit(extension, tmp_path):
    made.nemo_writes(tmp_path / "cache", nemo_samples(), extension)
    (tmp_path / "cache").rename(tmp_path / "moved")  # the lists have absolute paths
    assert convert(tmp_path / "moved", tmp_path / "in") == COUNT
    expected = {path: one.float().numpy() for path, one, *_ in nemo_samples()}
    same(by_key(tmp_path / "in"), expected)
    card = latentq.Card.load(tmp_path / "in")
    assert card.embeddings["caption_embedding"].shape == (1, 6, 8)
    assert card.autoencoder.name == "black-forest-labs/FLUX.1-schnell"
    convert(tmp_path / "in", tmp_path / "out", to_layout="nemo")
    before = {path: rest for path, *rest in nemo_samples()}
    samples = made.nemo_reads(tmp_path / "out")
    assert len(samples) == COUNT
    for sample in samples:
        one, bucket, image, embeds, pooled = before[sample["image_path"]]
        assert torch.equal(sample["latent"], one)
        assert sample["latent"].dtype == torch.float16
        assert sample["crop_resolution"].tolist() == list(bucket)
        assert sample["original_resolution"].tolist() == list(image)
        index = int(sample["prompt"].split()[-1])
        assert sample["image_path"] == f"/data/images/{index}.jpg"
        assert sample["crop_offset"].tolist() == [index, 2 * index]
        assert torch.equal(sample["prompt_embeds"], embeds.squeeze(0))
        assert torch.equal(sample["pooled_prompt_embeds"], pooled.squeeze(0))
    convert(tmp_path / "out", tmp_path / "again")
    same(by_key(tmp_path / "again"), expected)
    for content in ("caption_embedding", "pooled_embedding"):
        same(texts(tmp_path / "again", content), texts(tmp_path / "in", content))


def texts(dataset, content):
    outgoing = Outgoing(dataset, "test")
    name, key = outgoing.need(content), outgoing.need("key")
    found = {}
    for batch in outgoing.open([name, key]).batches():
        found |= dict(zip(batch.values[key], batch.values[name], strict=True))
    return found


def test_embeddings_of_flux2_in_nemo_have_no_axis_of_one(tmp_path, capsys):
    """processors/flux2.py squeezes them, unlike those of FLUX.1 and Qwen-Image; there are no pooled ones."""
    samples = [(path, one, b, image, embeds[0], None) for path, one, b, image, embeds, _ in nemo_samples()]
    made.nemo_writes(tmp_path / "cache", samples, "pt")
    convert(tmp_path / "cache", tmp_path / "in", progress=sys.stderr)
    assert "prompt_embeds is not converted" not in capsys.readouterr().err
    found = texts(tmp_path / "in", "caption_embedding")
    same(found, {path: embeds[None].float().numpy() for path, *_, embeds, _ in samples})
    convert(tmp_path / "in", tmp_path / "out", to_layout="nemo")
    before = {path: embeds for path, *_, embeds, _ in samples}
    for sample in made.nemo_reads(tmp_path / "out"):
        assert torch.equal(sample["prompt_embeds"], before[sample["image_path"]])


def test_embeddings_that_cannot_be_converted_are_told(tmp_path, capsys):
    samples = [(*sample[:4], sample[4][None], None) for sample in nemo_samples()]
    made.nemo_writes(tmp_path / "cache", samples)
    convert(tmp_path / "cache", tmp_path / "in", progress=sys.stderr)
    assert "prompt_embeds is not converted: it is not of shape" in capsys.readouterr().err
    assert not latentq.Card.load(tmp_path / "in").embeddings


def test_embeddings_of_several_shapes_are_left_out_and_told(tmp_path, capsys):
    import sys

    made.nemo_writes(tmp_path / "cache", nemo_samples(variable=True))
    convert(tmp_path / "cache", tmp_path / "in", progress=sys.stderr)
    told = capsys.readouterr().err
    assert "embeddings of captions have several shapes or are missing, and are not converted" in told
    assert "clip_tokens is not converted" in told
    assert not latentq.Card.load(tmp_path / "in").embeddings
    same(by_key(tmp_path / "in"), {path: one.float().numpy() for path, one, *_ in nemo_samples()})


def primus_samples(parts):
    samples = []
    for index, (_, bucket) in enumerate(IMAGES):
        one = torch.from_numpy(latent(index, 16, bucket)).to(torch.bfloat16)
        tensors = {
            "latents.pth": one,
            "mean.pth": one * 2,
            "logvar.pth": one * 3,
            "prompt_embeds.pth": embedding(index, 6, 8),
            "pooled_prompt_embeds.pth": embedding(index, 5, dtype=torch.float32),
            "caption.txt": f"näive caption {index}",
        }
        dropped = {"latents": ("mean.pth", "logvar.pth"), "moments": ("latents.pth",), "both": ()}[parts]
        samples.append({name: value for name, value in tensors.items() if name not in dropped})
    return samples


@pytest.mark.parametrize("parts", ["latents", "moments", "both"])
def test_primus_is_equal_to_the_bit(parts, tmp_path):
    made.primus_writes(tmp_path / "tars", primus_samples(parts), shard_size=5)
    assert convert(tmp_path / "tars", tmp_path / "in") == COUNT
    content = "moments" if parts == "moments" else "latent"
    convert(tmp_path / "in", tmp_path / "out", to_layout="energon")
    read = {sample["caption"]: sample for sample in made.primus_reads(tmp_path / "out")}
    for sample in primus_samples(parts):
        found = read[sample["caption.txt"]]
        assert found.keys() - {"caption"} == sample.keys() - {"caption.txt"}
        for name, value in found.items():
            if name != "caption":
                assert torch.equal(value, sample[name])
                assert value.dtype == sample[name].dtype
    # The index of Energon: where each sample begins, and where the last one ends.
    offsets = np.frombuffer((tmp_path / "out" / "000000.tar.idx").read_bytes(), "<u8")
    assert len(offsets) == COUNT + 1
    data = (tmp_path / "out" / "000000.tar").read_bytes()
    assert [data[offset : offset + 13].decode() for offset in offsets[:-1]] == [f"000000_{i:06d}" for i in range(COUNT)]
    assert offsets[-1] == len(data) - 1024
    convert(tmp_path / "out", tmp_path / "again")
    first, second = (
        {captions[key]: value for key, value in by_key(tmp_path / name, content=content).items()}
        for name in ("in", "again")
        for captions in [texts(tmp_path / name, "caption")]
    )
    same(second, first)


def test_primus_without_captions_keeps_its_embeddings(tmp_path):
    """EncodedPipeline of Primus writes no captions. Tensors are views of a batch, whose storage torch.save writes."""
    embeds = torch.stack([embedding(index, 6, 8) for index in range(COUNT)])
    samples = primus_samples("both")
    for sample, embeds_of_one in zip(samples, embeds, strict=True):
        del sample["caption.txt"]
        sample["prompt_embeds.pth"] = embeds_of_one
    made.primus_writes(tmp_path / "tars", samples, shard_size=5)
    convert(tmp_path / "tars", tmp_path / "in")
    assert "caption" not in latentq.Card.load(tmp_path / "in").columns
    assert not latentq.verify(tmp_path / "in")
    found = texts(tmp_path / "in", "caption_embedding")
    keys = [f"{index // 5:06}_{index % 5:06}" for index in range(COUNT)]
    same(found, {key: one[None].float().numpy() for key, one in zip(keys, embeds, strict=True)})
    convert(tmp_path / "in", tmp_path / "out", to_layout="energon")
    read = {sample["latents.pth"].float().numpy().tobytes(): sample for sample in made.primus_reads(tmp_path / "out")}
    for sample in samples:
        again = read[sample["latents.pth"].float().numpy().tobytes()]
        assert again.pop("caption") == ""
        assert again.keys() == sample.keys()
        assert all(torch.equal(again[name], sample[name]) for name in sample)


@pytest.mark.parametrize("layout", ["energon", "prx"])
def test_a_caption_that_is_missing_is_empty(layout, tmp_path):
    if layout == "energon":
        samples = primus_samples("latents")
        del samples[3]["caption.txt"]
        made.primus_writes(tmp_path / "src", samples, shard_size=5)
    else:
        samples = prx_samples(0)
        samples[3]["caption_long"] = ""
        made.prx_writes(tmp_path / "src", samples)
    convert(tmp_path / "src", tmp_path / "in")
    captions = texts(tmp_path / "in", "caption")
    assert captions.pop("000000_000003" if layout == "energon" else "3") == ""
    assert all("caption" in caption for caption in captions.values())
    assert not latentq.verify(tmp_path / "in")


def prx_samples(folder):
    """Return samples of one folder: PRX keeps the valid tokens of an embedding, and a mask of all."""
    samples = []
    for index in range(5):
        valid = 2 + index % 3
        moments = np.abs(latent(index, 32, (64, 96) if folder else (96, 64)))
        samples.append(
            {
                "img_latent": moments,
                "caption_long": f"caption {folder} {index}",
                "latent_caption_long_t5gemma2b-256-bf16": embedding(index, valid, 8),
                "attention_mask_caption_long_t5gemma2b-256-bf16": np.array([1] * valid + [0] * (6 - valid), np.uint8),
                "original_height": 100 + index,
                "original_width": 200 + index,
            }
        )
    return samples


def test_prx_is_read_with_its_bf16(tmp_path):
    for folder in range(2):
        made.prx_writes(tmp_path / "mds" / f"ar_{folder}", prx_samples(folder))
    assert convert(tmp_path / "mds", tmp_path / "in") == 10
    moments, embedded = by_key(tmp_path / "in", content="moments"), texts(tmp_path / "in", "caption_embedding")
    masks, sizes = texts(tmp_path / "in", "attention_mask"), texts(tmp_path / "in", "original_size")
    for folder in range(2):
        for index, sample in enumerate(prx_samples(folder)):
            key = f"ar_{folder}/{index}"
            assert np.array_equal(moments[key], sample["img_latent"])
            tokens = sample["latent_caption_long_t5gemma2b-256-bf16"]
            assert np.array_equal(embedded[key][0, : len(tokens)], tokens.float().numpy())
            assert not embedded[key][0, len(tokens) :].any()
            assert masks[key][0].tolist() == sample["attention_mask_caption_long_t5gemma2b-256-bf16"].tolist()
            assert sizes[key].tolist() == [100 + index, 200 + index]
    dataset = latentq.LatentDataset(tmp_path / "in", columns=["moments"])
    torch.manual_seed(0)
    drawn = dataset.batch([0])["latent"]
    torch.manual_seed(0)
    mean, std = torch.from_numpy(next(iter(moments.values()))).chunk(2)
    torch.testing.assert_close(drawn[0], mean + std * torch.randn_like(mean[None])[0])


def test_captions_of_prx_are_those_of_the_embedding_and_no_other_texts(tmp_path, capsys):
    samples = [{**sample, "caption": "short", "aesthetic_score": "5.1"} for sample in prx_samples(0)]
    made.prx_writes(tmp_path / "mds", samples)
    convert(tmp_path / "mds", tmp_path / "in", progress=sys.stderr)
    assert "not converted: aesthetic_score, caption\n" in capsys.readouterr().err
    assert texts(tmp_path / "in", "caption") == {f"{index}": f"caption 0 {index}" for index in range(5)}
    assert latentq.Card.load(tmp_path / "in").text.name == "t5gemma2b-256-bf16"
    texts_only = [
        {
            name: value
            for name, value in sample.items()
            if not name.startswith(("latent_", "attention_mask_", "caption"))
        }
        for sample in samples
    ]
    made.prx_writes(tmp_path / "scores", texts_only)
    convert(tmp_path / "scores", tmp_path / "without")
    assert "caption" not in latentq.Card.load(tmp_path / "without").columns
    prompts = [{**sample, "prompt": "a prompt"} for sample in texts_only]
    made.prx_writes(tmp_path / "prompts", prompts)
    convert(tmp_path / "prompts", tmp_path / "with")
    assert set(texts(tmp_path / "with", "caption").values()) == {"a prompt"}


def test_micro_diffusion_is_read(tmp_path):
    rng = np.random.default_rng(0)
    samples = [
        (
            f"caption {index}",
            rng.standard_normal((77, 1024)).astype(np.float16),
            rng.standard_normal((4, 32, 32)).astype(np.float16),
            rng.standard_normal((4, 64, 64)).astype(np.float16),
        )
        for index in range(5)
    ]
    made.micro_diffusion_writes(tmp_path / "mds", samples)
    assert convert(tmp_path / "mds", tmp_path / "in") == 5
    assert not latentq.verify(tmp_path / "in")
    dataset = latentq.LatentDataset(tmp_path / "in", scale="scaled")
    batch = dataset.batch(range(5))
    assert batch["caption"] == [caption for caption, *_ in samples]
    for name, position in (("latents_256", 2), ("latents_512", 3)):
        assert np.array_equal(batch[name].numpy(), np.stack([s[position] for s in samples]).astype(np.float32))
    assert np.array_equal(
        batch["caption_embedding"][:, 0].numpy(), np.stack([s[1] for s in samples]).astype(np.float32)
    )


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("as_dict", [False, True])
def test_simpletuner_is_read(compress, as_dict, tmp_path):
    ones = [torch.from_numpy(latent(i, 16, bucket)).to(torch.bfloat16) for i, (_, bucket) in enumerate(IMAGES)]
    saved = [{"latents": one, "metadata": {"crop": (0, 0)}} for one in ones] if as_dict else ones
    names = [f"{'sub/' * (index % 2)}im_{index:02}.pt" for index in range(COUNT)]
    made.simpletuner_writes(tmp_path / "cache", names, saved, compress=compress)
    assert convert(tmp_path / "cache", tmp_path / "in") == COUNT
    expected = {name.removesuffix(".pt"): one.float().numpy() for name, one in zip(names, ones, strict=True)}
    same(by_key(tmp_path / "in"), expected)
    assert latentq.Card.load(tmp_path / "in").recipe.columns["latent"].scaled
    # It can only be read.
    with pytest.raises(ValueError, match="simpletuner can only be read: name one of"):
        convert(tmp_path / "in", tmp_path / "out", to_layout="simpletuner")


def test_members_that_are_not_converted_are_told(tmp_path, capsys):
    samples = primus_samples("latents")
    for sample in samples[:3]:
        sample["timesteps.pth"] = torch.ones(1)
    samples[0]["mean.pth"] = samples[0]["latents.pth"]
    made.primus_writes(tmp_path / "tars", samples, shard_size=5)
    convert(tmp_path / "tars", tmp_path / "in", progress=sys.stderr)
    told = capsys.readouterr().err.splitlines()
    assert "timesteps.pth of 3 samples is not converted" in told
    assert "mean.pth of 1 sample is not converted" in told


def test_two_runs_write_the_same_bytes(tmp_path):
    made.primus_writes(tmp_path / "tars", primus_samples("both"), shard_size=5)
    for name in ("a", "b"):
        convert(tmp_path / "tars", tmp_path / f"in_{name}")
        convert(tmp_path / f"in_{name}", tmp_path / f"out_{name}", to_layout="energon")
    assert files(tmp_path / "in_a") == files(tmp_path / "in_b")
    assert files(tmp_path / "out_a") == files(tmp_path / "out_b")
