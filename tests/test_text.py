"""Text encoders: what the libraries themselves give, from a folder, batched and single."""

import sys

import pytest
import torch

from latentq import LatentqError
from latentq.text import load_text_encoder

CAPTIONS = ["a cat", "", "the small red picture of a large green tree on a photograph", "Ünïcode, 42!"]


def _open_clip_says(folder, captions):
    """Hidden states at all positions, by a hook on the library's own `encode_text`; and what it returns."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    states = []
    model.ln_final.register_forward_hook(lambda _module, _inputs, output: states.append(output))
    pooled = model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(captions))
    return states[0], None, pooled


def _clip_says(folder, captions, number=""):
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    model = (CLIPTextModelWithProjection if number else CLIPTextModel).from_pretrained(folder / f"text_encoder{number}")
    tokenizer = CLIPTokenizer.from_pretrained(folder / f"tokenizer{number}")
    tokens = tokenizer(captions, padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    output = model(tokens.input_ids)
    return output.last_hidden_state, tokens.attention_mask, output.text_embeds if number else output.pooler_output


def _projected_clip_says(folder, captions):
    return _clip_says(folder, captions, "_2")


def _t5_says(folder, captions):
    from transformers import T5EncoderModel, T5Tokenizer

    tokens = T5Tokenizer.from_pretrained(folder)(
        captions, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
    )
    model = T5EncoderModel.from_pretrained(folder)
    return model(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state, tokens.attention_mask, None


FAMILIES = {
    "open_clip": ("tiny_open_clip", "openclip:{}", {}, _open_clip_says, (77, 32, 24)),
    "clip": ("tiny_clip", "{}", {}, _clip_says, (16, 32, 32)),
    "projected clip": ("tiny_clip", "{}", {"subfolder": "text_encoder_2"}, _projected_clip_says, (16, 32, 24)),
    "t5": ("tiny_t5", "{}", {}, _t5_says, (20, 32, 0)),
}


@pytest.fixture(params=FAMILIES)
def family(request):
    fixture, pattern, options, says, shape = FAMILIES[request.param]
    folder = request.getfixturevalue(fixture)
    with torch.no_grad():
        expected = says(folder, CAPTIONS)
    return load_text_encoder(pattern.format(folder), **options), expected, shape


def test_a_text_encoder_gives_what_its_library_gives_batched_and_single(family):
    encoder, (states, mask, pooled), (length, width, pooled_width) = family
    assert (encoder.length, encoder.width, encoder.pooled_width) == (length, width, pooled_width)
    assert states.shape == (4, length, width)
    for made, rows in ((encoder.encode(CAPTIONS), slice(None)), (encoder.encode(CAPTIONS[2:3]), slice(2, 3))):
        torch.testing.assert_close(made.embedding, states[rows], rtol=0, atol=2e-6)
        assert made.embedding.dtype == torch.float32
        assert (made.mask is None) == (mask is None) == (not encoder.masked)
        if mask is not None:
            assert made.mask.dtype == torch.uint8
            assert torch.equal(made.mask, mask[rows].to(torch.uint8))
        assert (made.pooled is None) == (pooled is None)
        if pooled is not None:
            torch.testing.assert_close(made.pooled, pooled[rows], rtol=0, atol=2e-6)


def test_captions_can_be_cut_shorter(tiny_open_clip, tiny_t5):
    short = load_text_encoder(f"openclip:{tiny_open_clip}", length=8)
    whole = load_text_encoder(f"openclip:{tiny_open_clip}")
    # The mask is causal: no position knows of what comes after it.
    torch.testing.assert_close(short.encode(["a cat"]).embedding, whole.encode(["a cat"]).embedding[:, :8])
    with pytest.raises(ValueError, match="takes captions of 1 to 77 tokens, not 78"):
        load_text_encoder(f"openclip:{tiny_open_clip}", length=78)
    assert load_text_encoder(tiny_t5, length=40).encode(["a cat"]).embedding.shape == (1, 40, 32)


def test_what_cannot_be_loaded_gives_one_line(tiny_clip, tiny_vae, tiny_open_clip, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unsaved").mkdir()
    (tmp_path / "unsaved" / "open_clip_config.json").write_bytes(
        (tiny_open_clip / "open_clip_config.json").read_bytes()
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    for name, text in (
        ("no-such", "no text encoder 'no-such': it is no folder and no hub name"),
        ("owner/name", "'owner/name': the hub cannot be reached"),
        ("openclip:hf-hub:owner/name", "'owner/name': the hub cannot be reached"),
        (tmp_path / "empty", "holds no text encoder"),
        (f"openclip:{tmp_path / 'empty'}", "open_clip_config.json"),
        (f"openclip:{tmp_path / 'unsaved'}", "cannot load the text encoder 'openclip:unsaved'"),
        (tmp_path / "other", "is of type bert; the types that can be loaded are: clip, clip_text_model, t5"),
        (tiny_vae, "config.json: KeyError"),
        (tiny_clip / "text_encoder", "holds no tokenizer; name the whole pipeline"),
    ):
        with pytest.raises(LatentqError) as caught:
            load_text_encoder(name)
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_what_installs_it(tiny_open_clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    monkeypatch.delitem(sys.modules, "latentq.text.open_clip", raising=False)
    with pytest.raises(LatentqError, match=r"needs open_clip: pip install 'latentq\[text\]'"):
        load_text_encoder(f"openclip:{tiny_open_clip}")


def test_of_a_repository_only_the_encoder_and_its_tokenizer_are_fetched():
    from latentq.text.loading import _wanted

    pipeline = [
        "model_index.json", "text_encoder/config.json", "text_encoder/model.safetensors",
        "text_encoder/pytorch_model.bin", "text_encoder_2/config.json", "text_encoder_2/model.safetensors",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "tokenizer_2/vocab.json",
        "unet/config.json",
    ]  # fmt: skip
    assert _wanted(pipeline, "") == [
        "text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json", "tokenizer/merges.txt",
    ]  # fmt: skip
    assert _wanted(pipeline, "text_encoder_2") == [
        "text_encoder_2/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/vocab.json"
    ]  # fmt: skip
    sharded = ["config.json", "pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin", "spiece.model"]
    assert _wanted(sharded, "") == sharded
