"""The page of a dataset on the Hub: a README.md written from the card."""

from __future__ import annotations

import json
import re
from math import prod

from latentq.format.card import Card
from latentq.format.files import INDEX, LIST, NORMALIZATION, PICTURES, REJECTS
from latentq.format.options import FLOATS
from latentq.inspect.describe import channel_names, image_text, is_converted, spread_text
from latentq.quantizer import AnyQuantizer, Transform
from latentq.system.text import counted, one_line, size_text

MARK = "<!-- written by latentq push, which replaces this page; remove this line to keep your own changes -->"
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SIZES = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
          (10**8, "10M<n<100M"), (10**9, "100M<n<1B")]  # fmt: skip


def check_license(name: str | None) -> str | None:
    """Returns the name of a license.

    Raises:
        ValueError: It is no identifier such as `cc-by-4.0`.
    """
    if name is not None and not _LICENSE.fullmatch(name):
        raise ValueError(f"a license is an identifier of the Hub, such as cc-by-4.0, apache-2.0 or other, not {name!r}")
    return name


def page(card: Card, repository: str, *, nbytes: int, license: str | None, revision: str | None, lines: str) -> str:
    """Returns the text of README.md.

    Args:
        card: The card of a finished dataset.
        repository: OWNER/NAME.
        nbytes: The bytes of all files.
        license: The license's identifier on the Hub; None if the user gave none.
        revision: The branch, or None for the default one.
        lines: What the pictures show, if there are pictures; else empty.
    """
    assert card.counts is not None
    where = f"hf://datasets/{repository}" + (f"@{revision}" if revision else "")
    kinds = "tokens" if card.tokens and not card.latents else "latents"
    header = {
        **({"license": license} if license else {}),
        "pretty_name": f"{repository.partition('/')[2]}: {kinds} of {card.autoencoder.name}",
        "tags": ["latentq", "latents", "mds", "mosaicml-streaming"],
        "size_categories": [next((name for most, name in _SIZES if card.counts.samples < most), "n>1B")],
    }
    parts = [
        "---\n" + "".join(f"{name}: {json.dumps(value)}\n" for name, value in header.items()) + "---",
        f"# {repository.partition('/')[2]}",
        f"{counted(card.counts.samples, 'image')} as {kinds} of the autoencoder `{_code(card.autoencoder.name)}`, made "
        f"with latentq: {size_text(nbytes)} of MDS shards with a card that records how they were made.",
        *([f"![{lines}]({PICTURES})\n\n*{lines}*"] if lines else []),
        _loading(card, where, repository, revision),
        _contents(card),
        _making(card),
        _files(card),
        "## License\n\n" + (f"`{license}`." if license else "No license was given: ask the owner of this repository."),
        MARK,
    ]
    return "\n\n".join(parts) + "\n"


def _loading(card: Card, where: str, repository: str, revision: str | None) -> str:
    encoded = [*card.latents, *card.tokens]
    name = _sample_name(card)
    at = f', revision="{revision}"' if revision else ""
    bucketed = "  # the samples of a batch are of one bucket, and so of one shape" if card.buckets else ""
    quantizer = card.latents[encoded[0]].quantizer if card.latents else None
    is_code = quantizer is not None and quantizer.kind not in ("float32", "float16")
    facts = f"latentq.Card.load(folder).latents[{encoded[0]!r}]"
    hint = f"  # codes; {facts}.quantizer makes floats of them" if is_code else ""
    if isinstance(quantizer, Transform):
        hint = f"""  # encoded
facts = {facts}
facts.quantizer.decode([bytes(sample["{encoded[0]}"])], facts.shape)[0]  # floats"""
    return f"""## Loading

```sh
pip install "latentq[torch,hub]"
```

```python
import latentq

dataset = latentq.LatentDataset("{where}", cache="cache")
for batch in dataset.loader(batch_size=4, shuffle=True):{bucketed}
    batch["{name}"]
```

mosaicml-streaming, streaming-community and neprr-streaming read the shards too, and give what is stored:

```python
from huggingface_hub import snapshot_download
from streaming import StreamingDataset

folder = snapshot_download("{repository}", repo_type="dataset"{at})
sample = StreamingDataset(local=folder, batch_size=1)[0]
sample["{encoded[0]}"]{hint}
```"""


def _sample_name(card: Card) -> str:
    """Returns the name that samples have for the first column of latents or tokens: a single one is `latent`."""
    content, columns = ("latent", [*card.latents]) if card.latents else ("tokens", [*card.tokens])
    return content if len(columns) == 1 else columns[0]


def _contents(card: Card) -> str:
    rows = [f"| `{_code(name)}` | `{encoding}` | {_meaning(card, name)} |" for name, encoding in card.columns.items()]
    sizes = card.recipe.bucket_sizes()
    lines = ["## Samples", "| column | stored as | holds |\n|---|---|---|\n" + "\n".join(rows)]
    if sizes and card.counts is not None:
        counts = zip(sizes, card.counts.buckets, strict=True)
        buckets = [f"| {height} x {width} | {count} |" for (height, width), count in counts if count]
        lines.append("Buckets, in pixels:\n\n| height x width | samples |\n|---|---|\n" + "\n".join(buckets))
    return "\n\n".join(lines)


def _meaning(card: Card, name: str) -> str:
    column = card.recipe.columns[name]
    if name in card.latents:
        facts = card.latents[name]
        shapes = dict.fromkeys(" x ".join(map(str, shape)) for shape in (facts.shapes or (facts.shape,)))
        what = f"means and {spread_text(column.spread)}s" if column.content == "moments" else "latents"
        flip = ", of the mirrored image" if column.flip else ""
        return f"{what} of shape {', '.join(shapes)}{flip}; {_storage(facts.quantizer, prod(facts.shape))}"
    if name in card.tokens:
        tokens = card.tokens[name]
        shapes = dict.fromkeys(" x ".join(map(str, shape)) for shape in (tokens.shapes or (tokens.shape,)))
        return f"tokens of a codebook of {tokens.codebook_size}, {', '.join(shapes)}"
    if name in card.embeddings:
        embedding = card.embeddings[name]
        return (
            f"{column.content.replace('_', ' ')}, {' x '.join(map(str, embedding.shape))}; {embedding.quantizer.kind}"
        )
    return column.content.replace("_", " ")


def _storage(quantizer: AnyQuantizer, elements: int) -> str:
    if isinstance(quantizer, Transform):
        size = quantizer.sample_bytes
        return "transform codec" + (f", {8 * size / elements:.2f} bits a value" if size else "")
    return quantizer.kind if quantizer.kind in FLOATS else f"{quantizer.kind} quantizer, {quantizer.bits} bits a value"


def _making(card: Card) -> str:
    assert card.counts is not None
    recipe, autoencoder = card.recipe, card.autoencoder
    image, known = recipe.image, not is_converted(card)
    size = next((column.size for column in recipe.encoded().values()), None)
    pixels = "at the nearest bucket's size" if recipe.buckets is not None else f"at size {_size(size)}"
    changed = f", with {', '.join(recipe.changed)} changed" if recipe.changed else ""
    rows = [
        ("recipe", f"`{_code(recipe.name)}`{changed}"),
        ("source", f"{card.source.samples} samples ({card.source.kind}), {counted(card.counts.rejects, 'reject')}"),
        ("images", f"{pixels}, crop {image.crop}, filter {image.filter}" if known else image_text(recipe, card)),
        ("autoencoder", f"`{_code(autoencoder.name)}` ({autoencoder.family}, {recipe.autoencoder.dtype})"),
        ("weights", f"`{autoencoder.weights or 'none'}`"),
    ]
    if card.latents:
        mean = (
            f"; mean and std of each position are in `{NORMALIZATION}`" if autoencoder.normalization.positions else ""
        )
        rows.append(("scaled latents", f"`{autoencoder.normalization.formula}` of raw latents `z`{mean}"))
    if card.text is not None:
        rows.append(("text encoder", f"`{_code(card.text.name)}` ({card.text.family}), {card.text.length} tokens"))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items()) or "unknown"))
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    statistics = [_statistics(name, card) for name in card.latents]
    return "\n\n".join([f"## Making\n\n| | |\n|---|---|\n{table}", *filter(None, statistics)])


def _size(size: object) -> str:
    return " x ".join(map(str, size)) if isinstance(size, tuple) else str(size)


def _statistics(name: str, card: Card) -> str:
    statistics = card.latents[name].statistics
    if statistics is None:
        return ""
    column = card.recipe.columns[name]
    names = channel_names(column.content, column.spread, len(statistics.mean))
    columns = zip(names, statistics.mean, statistics.std, statistics.min, statistics.max, strict=True)
    rows = [f"| {channel} | " + " | ".join(f"{v:.4f}" for v in values) + " |" for channel, *values in columns]
    head = ["| channel | mean | std | min | max |", "|---|---|---|---|---|"]
    return f"Stored values of `{_code(name)}` in each channel:\n\n" + "\n".join([*head, *rows])


def _files(card: Card) -> str:
    name = f"{LIST}.{card.source.revision}" if card.source.revision else LIST
    return f"""## Files

| | |
|---|---|
| `latents.toml` | the card: recipe, autoencoder, quantizers, statistics |
| `00000/` ... | {counted(card.units, "unit")} of shards, each shard with an xxh3_64 hash |
| `{INDEX}` | the index of all shards |
| `{name}/` | the keys of the images, in order |
| `{REJECTS}` | the images that could not be used, with the reason |

`latentq verify` checks every byte of a copy."""


def _code(text: str) -> str:
    """Returns a name that ends neither its backticks nor its table cell."""
    return one_line(text).replace("`", "'").replace("|", "/")
