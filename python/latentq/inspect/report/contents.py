"""Classes, captions, tokens and rejects of a dataset, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from latentq.format.files import REJECTS
from latentq.format.tsv import tsv_values
from latentq.inspect.report.spread import in_batches, spread, values_of
from latentq.system.text import reject_group

if TYPE_CHECKING:
    from latentq.reading.dataset import LatentDataset
    from latentq.system.progress import Progress

_LABELS = 1 << 20  # samples whose labels are read, at most
_CAPTIONS = 1 << 14  # samples whose captions are read, at most
_TOKENS = 1024  # samples whose tokens are read, at most
_NAMED = 12  # classes that are named, at most
_EXAMPLES = 3  # rejected samples that are named for each reason
_MAX_REASONS = 1000  # that are told apart


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of a dataset.

    Attributes:
        samples: The number of samples whose labels were read.
        counts: The number of those samples in each class, most first.
        names: The names of the first classes.
    """

    samples: int
    counts: NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Captions:
    """The captions of a dataset.

    Attributes:
        samples: The number of samples whose captions were read.
        words: The number of words of each caption.
        tokens: The number of tokens of each caption, as the text encoder counts them, by the stored attention mask;
            None without masks.
        limit: The number of tokens that a caption is padded or cut to; 0 without masks.
        examples: A short, a medium and a long caption.
    """

    samples: int
    words: NDArray[np.int64]
    tokens: NDArray[np.int64] | None
    limit: int
    examples: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TokenUse:
    """How often the tokens of a column occur.

    Attributes:
        samples: The number of samples that were read.
        codebook_size: The number of tokens there are.
        tokens: The tokens that occur, most frequent first.
        counts: How often each of those occurs.
        entropy: The entropy of the tokens in bits.
    """

    samples: int
    codebook_size: int
    tokens: NDArray[np.int64]
    counts: NDArray[np.int64]
    entropy: float


@dataclass(frozen=True)
class RejectGroup:
    """Rejects whose reasons differ in numbers only.

    Attributes:
        stage: The stage that rejected them.
        reason: The reason of the first one.
        count: The number of samples.
        keys: The keys of the first ones.
    """

    stage: str
    reason: str
    count: int
    keys: tuple[str, ...]


def count_classes(dataset: LatentDataset) -> Classes | None:
    """Counts the samples of each class; None for a dataset without labels. At most 2^20 samples are read."""
    number = _key(dataset, "label")
    text = _key(dataset, "label_text")
    if number is None and text is None:
        return None
    indices = spread(_LABELS, len(dataset))
    values = values_of(dataset, number or text or "", indices)
    counts = Counter(values.values()).most_common()
    first = {value: index for index, value in reversed(values.items())}
    named = [value for value, _ in counts[:_NAMED]]
    names = [str(value) for value in named]
    if number and text:
        where = np.array(sorted(first[value] for value in named), np.int64)
        texts = values_of(dataset, text, where)
        names = [f"{value}: {texts[first[value]]}" for value in named]
    return Classes(len(indices), np.array([count for _, count in counts], np.int64), tuple(names))


def count_captions(dataset: LatentDataset) -> Captions | None:
    """Counts the words and tokens of captions; None for a dataset without. At most 16,384 samples are read."""
    from latentq.reading.columns import MaskColumn

    key = _key(dataset, "caption") or _key(dataset, "captions")
    masks = [name for name, column in dataset.layout.encoded.items() if isinstance(column, MaskColumn)]
    if key is None and not masks:
        return None
    indices = spread(_CAPTIONS, len(dataset))
    captions: list[str] = []
    if key is not None:
        for value in values_of(dataset, key, indices).values():
            captions += [value] if isinstance(value, str) else map(str, value)
    tokens, limit = None, 0
    if masks:
        column: Any = dataset.layout.encoded[masks[0]]
        limit = column.shape[-1]
        parts = [
            column.decode(dataset.read(batch, names=masks[:1])[masks[0]]) for batch, _ in in_batches(dataset, indices)
        ]
        tokens = np.concatenate([part.sum(-1).flatten().numpy().astype(np.int64) for part in parts])
    words = np.array([len(caption.split()) for caption in captions], np.int64)
    order = np.argsort(words, kind="stable")
    chosen = order[[0, len(order) // 2, -1]].tolist() if len(order) else []
    return Captions(len(indices), words, tokens, limit, tuple(captions[index] for index in dict.fromkeys(chosen)))


def count_tokens(dataset: LatentDataset, name: str, progress: Progress) -> TokenUse:
    """Counts the tokens of a column in at most 1,024 samples.

    Args:
        dataset: The dataset.
        name: The column's key in samples.
        progress: Counts the samples that are read.
    """
    indices = spread(_TOKENS, len(dataset))
    counts: Counter[int] = Counter()
    size = 0
    for batch, bucket in in_batches(dataset, indices, 64):
        column: Any = dataset.layouts[bucket].encoded[name]
        size = column.facts.codebook_size
        found, often = np.unique(column.decode(dataset.read(batch, names=[name])[name]).numpy(), return_counts=True)
        counts.update(dict(zip(found.tolist(), often.tolist(), strict=True)))
        progress.update(len(batch))
    tokens, often = (np.array(part, np.int64) for part in zip(*counts.most_common(), strict=True))
    share = often / often.sum()
    return TokenUse(len(indices), size, tokens, often, abs(float((share * np.log2(share)).sum())))


def count_rejects(path: Path) -> list[RejectGroup]:
    """Counts a dataset's rejects by reason, most first. Reasons that differ in numbers only are one.

    Args:
        path: The dataset.

    Raises:
        OSError: Its list of rejects cannot be read.
    """
    file = path / REJECTS
    groups: dict[str, RejectGroup] = {}
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            key, stage, reason, *_ = (*tsv_values(line.rstrip("\n")), "", "")
            name = reject_group(stage, reason)
            if name not in groups and len(groups) >= _MAX_REASONS:
                name, stage, reason = "", "", "other reasons"
            group = groups.get(name) or RejectGroup(stage, reason, 0, ())
            keys = (*group.keys, key)[:_EXAMPLES]
            groups[name] = RejectGroup(group.stage, group.reason, group.count + 1, keys)
    return sorted(groups.values(), key=lambda group: -group.count)


def _key(dataset: LatentDataset, content: str) -> str | None:
    """Returns the key in samples of the first column with a content, or None."""
    columns = dataset.layout.recipe.columns
    named = dataset.layout.shard_names.items()
    return next((key for key, name in named if name in columns and columns[name].content == content), None)
