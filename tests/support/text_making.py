"""Make tiny text encoders of the real classes with random weights, saved as their libraries save them."""

import json
import re
from pathlib import Path

WORDS = "a an the of on in picture photograph cat dog bee ant tree red green blue small large"


def save_open_clip(folder, *, width=32, **text):
    """Save `open_clip_config.json` and `open_clip_model.safetensors`; the tokenizer is open_clip's built-in one."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "heads": 2, "layers": 2} | text
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    model = open_clip.CLIP(**config)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return folder


def save_clip(folder, *, seed=0, projected=False, number=""):
    """Save the `text_encoder` and `tokenizer` of a diffusers pipeline, with a vocabulary of single letters."""
    import torch
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "c a", "a t</w>", "<start>", "<end>"]
    vocabulary = [token.replace(" ", "") for token in vocabulary]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\na t</w>\n")
    special = {"bos_token": "<start>", "eos_token": "<end>", "unk_token": "<end>", "pad_token": "<end>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder / f"tokenizer{number}")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    torch.manual_seed(seed)
    ids = {
        "bos_token_id": len(vocabulary) - 2,
        "eos_token_id": len(vocabulary) - 1,
        "pad_token_id": len(vocabulary) - 1,
    }
    config = CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=24,
        **ids,
    )
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    model.save_pretrained(folder / f"text_encoder{number}")
    return folder


def save_t5(folder, *, seed=0):
    """Save a `T5EncoderModel` and, as in DeepFloyd's repository, the sentencepiece model of its tokenizer."""
    import sentencepiece
    import torch
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    folder.mkdir(parents=True)
    text = folder / "words.txt"
    text.write_text("\n".join([WORDS, *re.findall(r"\w+", WORDS)] * 4))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 20}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name in ("words.txt", "spiece.vocab"):
        Path(folder / name).unlink()
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    T5EncoderModel(config).save_pretrained(folder)
    return folder
