"""Text encoders, compared with their libraries, batched and single."""

import os
import shutil
import sys

import pytest
import torch

from latentq import LatentqError
from latentq.models.text import load_text_encoder
from latentq.models.text.loading import _needed_files
from latentq.models.weights import weight_hash

CAPTIONS = ["a cat", "", "the small red picture of a large green tree on a photograph", "Ünïcode, 42!"]


def _by_open_clip(folder, captions):
    """Return the hidden states at all positions, by a hook on `encode_text`, no mask, and its result."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    states = []
    model.ln_final.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    pooled = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(captions))
    return states[0], None, pooled


def _by_clip(folder, captions, number=""):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    model = (CLIPTextModelWithProjection if number else CLIPTextModel).from_pretrained(folder / f"text_encoder{number}")
    tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
    tokens = tokenizer(captions, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    output = model(tokens.input_ids)
    return output.last_hidden_state, tokens.attention_mask, output.text_embeds if number else output.pooler_output


def _by_projected_clip(folder, captions):
    return _by_clip(folder, captions, "_2")


def _by_t5(folder, captions):
    from transformers import T5EncoderModel, T5Tokenizer

    tokens = T5Tokenizer.from_pretrained(folder)(
        captions, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
    )
    model = T5EncoderModel.from_pretrained(folder)
    return model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state, tokens.attention_mask, None


FAMILIES = {
    "open_clip": ("tiny_open_clip", "openclip:{}", {}, _by_open_clip, (77, 32, 24)),
    "clip": ("tiny_clip", "{}", {}, _by_clip, (16, 32, 32)),
    "projected clip": ("tiny_clip", "{}", {"subfolder": "text_encoder_2"}, _by_projected_clip, (16, 32, 24)),
    "t5": ("tiny_t5", "{}", {}, _by_t5, (20, 32, 0)),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    fixture, pattern, options, by_library, shape = FAMILIES[request.param]
    folder = request.getfixturevalue(fixture)
    with torch.no_grad():
        expected = by_library(folder, CAPTIONS)
    return load_text_encoder(pattern.format(folder), **options), expected, shape


def test_a_text_encoder_equals_its_library_batched_and_single(family):
    encoder, (states, mask, pooled), (length, width, pooled_width) = family
    assert (encoder.length, encoder.width, encoder.pooled_width) == (length, width, pooled_width)
    assert states.shape == (4, length, width)
    for embeddings, rows in ((encoder.encode(CAPTIONS), slice(None)), (encoder.encode(CAPTIONS[2:3]), slice(2, 3))):
        torch.testing.assert_close(embeddings.embedding, states[rows], rtol=0, atol=2e-6)
        assert embeddings.embedding.dtype == torch.float32
        assert (embeddings.mask is None) == (mask is None) == (not encoder.masked)
        if mask is not None:
            assert embeddings.mask.dtype == torch.uint8
            assert torch.equal(embeddings.mask, mask[rows].to(torch.uint8))
        assert (embeddings.pooled is None) == (pooled is None)
        if pooled is not None:
            torch.testing.assert_close(embeddings.pooled, pooled[rows], rtol=0, atol=2e-6)


def test_captions_can_be_truncated_further(tiny_open_clip, tiny_t5):
    short = load_text_encoder(f"openclip:{tiny_open_clip}", length=8)
    whole = load_text_encoder(f"openclip:{tiny_open_clip}")
    # The mask is causal: no position sees those after it.
    torch.testing.assert_close(short.encode(["a cat"]).embedding, whole.encode(["a cat"]).embedding[:, :8])
    with pytest.raises(ValueError, match="takes captions of 1 to 77 tokens, not 78"):
        load_text_encoder(f"openclip:{tiny_open_clip}", length=78)
    assert load_text_encoder(tiny_t5, length=40).encode(["a cat"]).embedding.shape == (1, 40, 32)


def test_an_unloadable_text_encoder_is_one_error_line(tiny_clip, tiny_vae, tiny_open_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsaved").mkdir()
    (tmp_path / "unsaved" / "open_clip_config.json").write_bytes(
        (tiny_open_clip / "open_clip_config.json").read_bytes()
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    for whole, file in (
        (tiny_open_clip, "open_clip_model.safetensors"),
        (tiny_clip, "text_encoder/model.safetensors"),
    ):
        short = tmp_path / f"short-{whole.name}"
        shutil.copytree(whole, short)
        (short / file).write_bytes((short / file).read_bytes()[:-1000])
    for name, text in (
        ("no-such", "no text encoder 'no-such': it is no folder and no Hub name"),
        ("owner/name", "'owner/name': the Hub cannot be reached"),
        ("openclip:hf-hub:owner/name", "'owner/name': the Hub cannot be reached"),
        (tmp_path / "empty", "holds no text encoder"),
        (f"openclip:{tmp_path / 'empty'}", "open_clip_config.json"),
        (f"openclip:{tmp_path / 'unsaved'}", "cannot load the text encoder 'openclip:unsaved'"),
        (f"openclip:{tmp_path / f'short-{tiny_open_clip.name}'}", "cannot load the text encoder 'openclip:short-"),
        (tmp_path / f"short-{tiny_clip.name}", "cannot load the text encoder '"),
        (tmp_path / "other", "is of type bert; the supported types are: clip, clip_text_model, t5"),
        (tiny_vae, "config.json: KeyError"),
        (tiny_clip / "text_encoder", "holds no tokenizer; name the whole pipeline"),
    ):
        with pytest.raises(LatentqError) as caught:
            load_text_encoder(name)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_install_command(tiny_open_clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.delitem(sys.modules, "latentq.models.text.open_clip", raising=False)
    with pytest.raises(
        LatentqError, match=r"needs open_clip, which is not installed: pip install 'open_clip_torch>=3'"
    ):
        load_text_encoder(f"openclip:{tiny_open_clip}")


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_clip, tiny_open_clip):
    """A hub with two repositories that hold more than is needed; yields the list of downloaded files."""
    folders = {"owner/pipeline": tiny_clip, "owner/open": tiny_open_clip}
    others = ["README.md", "unet/config.json", "text_encoder/pytorch_model.bin", "open_clip_pytorch_model.bin"]
    fetched = []

    def names(_api, name, revision=None):
        assert revision == "v1"
        folder = folders[name]
        return [*others, *(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())]

    def fetch(name, file, revision=None):
        assert revision == "v1"
        fetched.append(file)
        copy = tmp_path / "cache" / name / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folders[name] / file, copy)
        return str(copy)

    monkeypatch.setattr("latentq.models.hub._reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", names)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    return fetched


def test_only_the_encoder_and_its_tokenizer_are_downloaded(hub, tiny_clip, tiny_open_clip):
    for name, subfolder, local in (
        ("owner/pipeline", "", tiny_clip),
        ("owner/pipeline", "text_encoder_2", tiny_clip),
        ("openclip:hf-hub:owner/open", "", f"openclip:{tiny_open_clip}"),
    ):
        hub.clear()
        encoder = load_text_encoder(name, revision="v1", subfolder=subfolder)
        assert encoder.name == name
        assert weight_hash(encoder) == weight_hash(load_text_encoder(local, subfolder=subfolder))
        if name.startswith("openclip:"):
            assert hub == ["open_clip_config.json", "open_clip_model.safetensors"]
        else:
            number = "_2" if subfolder else ""
            assert hub[:2] == [f"text_encoder{number}/config.json", f"text_encoder{number}/model.safetensors"]
            assert len(hub) > 3
            assert all(file.startswith(f"tokenizer{number}/") for file in hub[2:])


def test_an_incomplete_repository_is_one_error_line(hub):
    for name, text in (
        ("openclip:hf-hub:owner/pipeline", "it has no open_clip_config.json of open_clip"),
        ("owner/open", "it has no config.json, and no text_encoder/config.json"),
    ):
        with pytest.raises(LatentqError, match=text):
            load_text_encoder(name, revision="v1")
        assert not hub


def test_weights_in_parts_are_downloaded_with_their_index():
    sharded = ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "spiece.model"]
    assert _needed_files(["README.md", *sharded], "") == sharded


class Harm:
    """Pickles as a call of `os.mkdir`."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_other_objects_in_weights_are_refused_without_torchs_advice(tiny_t5, tiny_open_clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_t5, tmp_path / "t5")
    (tmp_path / "t5" / "model.safetensors").unlink()
    torch.save({"x": Harm()}, tmp_path / "t5" / "pytorch_model.bin")
    shutil.copytree(tiny_open_clip, tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").unlink()
    torch.save({"x": Harm()}, tmp_path / "clip" / "open_clip_pytorch_model.bin")
    for name in (str(tmp_path / "t5"), f"openclip:{tmp_path / 'clip'}"):
        with pytest.raises(LatentqError, match="cannot load the text encoder") as caught:
            load_text_encoder(name)
        assert "weights_only" not in str(caught.value)
        assert "trusted source" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()
