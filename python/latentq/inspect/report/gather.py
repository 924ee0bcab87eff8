"""Gathers the facts of a dataset from its card, its samples and its source."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from numpy.typing import NDArray

from latentq._core import LatentqError
from latentq.format.card import CARD, Card
from latentq.format.recipe import Recipe
from latentq.inspect.describe import LEVELED
from latentq.inspect.originals import Originals
from latentq.inspect.pictures import Picture, compared, decoded, latent_name
from latentq.inspect.report.channels import (
    Channels,
    Errors,
    Floats,
    estimated_errors,
    measure_channels,
    measured_errors,
    of_stored_channels,
)
from latentq.inspect.report.contents import (
    count_captions,
    count_classes,
    count_rejects,
    count_tokens,
)
from latentq.inspect.report.facts import ColumnFacts, DatasetFacts, Rates, SampleFacts
from latentq.inspect.report.spread import in_batches, spread, values_of
from latentq.inspect.storage import StorageRow, storage, storage_without_card
from latentq.models.match import autoencoder_for, autoencoder_of
from latentq.reading.columns import EmbeddingColumn, LatentColumn, TokenColumn
from latentq.reading.dataset import LatentDataset
from latentq.run.units import list_folder, sample_list
from latentq.system.progress import BriefProgress
from latentq.system.text import one_line

if TYPE_CHECKING:
    from latentq.models.autoencoders import Autoencoder
    from latentq.run.opened import OpenedDataset
    from latentq.sources import Source

_ENCODED_AGAIN = 64  # samples at most
_READ = 256  # samples whose reading is timed
_WORST = 4
_STATED = 1024  # units whose files' times are read, at most


class Gatherer:
    """Gathers the facts of one dataset.

    Args:
        dataset: The dataset, all of whose files are there.
        recipe: For a folder without a card: the recipe that made it, its name or its file.
        column: The column to decode; the first of latents, moments or tokens by default.
        source: The dataset's source.
        autoencoder: The autoencoder's name or folder, if the name in the card is not enough.
        device: The device to compute on.
        needs_source: False to note why originals cannot be shown, instead of raising the error.
        progress: The stream for progress, or None.

    Raises:
        LatentqError: The dataset cannot be read, or the autoencoder that was named cannot be loaded.
        OSError: A file cannot be read.
    """

    def __init__(
        self,
        dataset: OpenedDataset,
        *,
        recipe: str | os.PathLike[str] | Recipe | None = None,
        column: str | None = None,
        source: str | os.PathLike[str] | Source | None = None,
        autoencoder: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        needs_source: bool = True,
        progress: TextIO | None = None,
    ) -> None:
        path = dataset.folder
        self._progress, self._source, self._needs_source = progress, source, needs_source
        self._dataset: LatentDataset | None = None
        self._pictured: LatentDataset | None = None
        self._network: Autoencoder | None = None
        self._originals: Originals | None = None
        self._preview: Channels | None = None
        has_card = (path / CARD).exists()
        card = Card.load(path) if has_card else None
        if card is not None and card.counts is not None and not card.counts.samples:
            self.facts = DatasetFacts(path, dataset.name, card.recipe, card, 0)
            return
        self._dataset = columns = LatentDataset(path, recipe=None if has_card else recipe)
        self.facts = DatasetFacts(
            path, dataset.name, columns.layout.recipe, columns.card, len(columns), buckets=columns.buckets
        )
        if not self.facts.recipe.encoded():
            self.facts.notes.append("There are no pictures: no column holds latents or tokens.")
            return
        self._column = self._named(column)
        self._pictured = LatentDataset(path, columns=[self._column], recipe=None if has_card else recipe)
        self._network = self._load(autoencoder, device)
        try:
            self._originals = self._open_source(device)
        except (LatentqError, OSError) as error:
            if needs_source:
                raise
            self._note(f"There are no originals: {error}")

    def _named(self, column: str | None) -> str:
        if self.facts.card is not None:
            return latent_name(self.facts.path, self.facts.card, column)
        encoded = self.facts.recipe.encoded()
        return column or next(iter(encoded))

    def _note(self, text: str) -> None:
        self.facts.notes.append(one_line(text).replace(str(self.facts.path), self.facts.name))

    def _load(self, name: str | os.PathLike[str] | None, device: str) -> Autoencoder | None:
        """Loads the autoencoder; notes the reason if one that the user did not name cannot be loaded."""
        try:
            if self.facts.card is None:
                return autoencoder_of(self.facts.recipe, name, device=device)
            return autoencoder_for(self.facts.card, name, device=device)
        except (LatentqError, OSError, ValueError, ModuleNotFoundError) as error:
            if name is not None:
                raise
            self._note(f"Latents are not decoded: {error}")
            return None

    def _open_source(self, device: str) -> Originals | None:
        card = self.facts.card
        if self._source is None:
            return None
        if card is None:
            raise LatentqError(f"{self.facts.path} has no card and no list of its source, so that no original is found")
        if self._network is None:
            raise LatentqError(f"{self.facts.path}: without its autoencoder no original can be compared")
        originals = Originals(self.facts.path, card, self._column, self._source, self._network, device=device)
        if originals.fault:
            self._note(f"Latents are not compared with unquantized ones: {originals.fault}")
        return originals

    def keys(self, indices: NDArray[np.int64]) -> dict[int, str]:
        """Returns the keys of samples by their indices; empty without a column of keys."""
        return self._texts("key", indices)

    def find(self, keys: list[str]) -> list[int]:
        """Returns the indices of the samples with these keys, in their order; those that are missing are skipped."""
        if self._dataset is None or not self.keys(np.arange(1)):
            return []
        missing, found = set(keys), {}
        for start in range(0, len(self._dataset), 1 << 14):
            batch = np.arange(start, min(start + (1 << 14), len(self._dataset)))
            for index, key in self.keys(batch).items():
                if key in missing:
                    found[key] = index
                    missing.discard(key)
            if not missing:
                break
        return [found[key] for key in keys if key in found]

    def gather(self, shown: list[int]) -> DatasetFacts:
        """Gathers everything.

        Args:
            shown: The indices of the samples to show.
        """
        facts = self.facts
        facts.rejects = count_rejects(facts.path)
        if self._dataset is None:
            return facts
        facts.classes, facts.captions = count_classes(self._dataset), count_captions(self._dataset)
        started, exact, errors = time.perf_counter(), 0, None
        if self._originals is not None:
            try:
                errors, exact = self._compare(shown)
            except (LatentqError, OSError) as error:
                if self._needs_source:
                    raise
                self._note(f"There are no originals: {error}")
                self._originals = None
        seconds = time.perf_counter() - started
        facts.columns = self._columns(errors)
        self._show(shown, errors)
        facts.storage = self._storage()
        facts.rates = Rates(self._read_rate(), exact / seconds if exact else None, self._published_rate())
        return facts

    def _compare(self, shown: list[int]) -> tuple[Errors | None, int]:
        """Encodes samples again; returns the errors, and the number of samples. Tokens have no errors.

        Raises:
            LatentqError: An original is missing, or cannot be decoded.
            OSError: The same.
        """
        assert self._originals is not None
        assert self._pictured is not None
        self._originals.pixels(shown[:1])
        column = next(iter(self._pictured.layout.pictures.values()))
        if isinstance(column, TokenColumn) or self._originals.fault:
            return None, 0
        tried = np.union1d(spread(_ENCODED_AGAIN, len(self._pictured)), np.array(shown, np.int64))
        with BriefProgress(len(tried), "encode", self._progress) as bar:
            return measured_errors(self._pictured, self._originals, tried, bar), len(tried)

    def _columns(self, errors: Errors | None) -> list[ColumnFacts]:
        assert self._dataset is not None
        columns = []
        encoded = self._dataset.layout.encoded
        with BriefProgress(None, "read", self._progress, noun="sample") as bar:
            for name, column in encoded.items():
                content = self.facts.recipe.columns[column.shard_name].content
                described = self._described(column.shard_name)
                if isinstance(column, TokenColumn):
                    use = count_tokens(self._dataset, name, bar)
                    columns.append(ColumnFacts(column.shard_name, content, described or column.facts, tokens=use))
                elif isinstance(column, LatentColumn | EmbeddingColumn):
                    channels = measure_channels(self._dataset, name, bar)
                    is_shown = column.shard_name == self._shown_name
                    own = estimated_errors(channels)
                    if is_shown and errors is not None:
                        own = of_stored_channels(errors, channels, content)
                    if is_shown:
                        self._preview = channels
                    rates = _clip_rates(column.facts)
                    clipped = self._clipped(column, rates)
                    columns.append(
                        ColumnFacts(
                            column.shard_name,
                            content,
                            described or column.facts,
                            channels,
                            own,
                            rates,
                            clipped,
                            spread=self.facts.recipe.columns[column.shard_name].spread,
                        )
                    )
        return columns

    def _described(self, name: str) -> Any:
        """Returns the card's facts of a column, with the shapes of all buckets; None without a card."""
        card = self.facts.card
        return card and (card.latents.get(name) or card.tokens.get(name) or card.embeddings.get(name))

    @property
    def _shown_name(self) -> str:
        """The name in the shards of the column that is decoded."""
        return "" if self._pictured is None else next(iter(self._pictured.layout.shard_names.values()))

    def _clipped(self, column: LatentColumn | EmbeddingColumn, rates: Floats | None) -> float | None:
        if isinstance(column, LatentColumn):
            return None if rates is None else float(rates.mean())
        if column.facts.clipped is None or column.facts.quantizer.kind not in LEVELED:
            return None
        return float(column.facts.clipped / max(1, self.facts.samples * int(np.prod(column.facts.shape))))

    def _show(self, shown: list[int], errors: Errors | None) -> None:
        """Fills in the samples that are shown, and the worst."""
        worst = self._worst(errors)
        indices = np.unique(np.array([*shown, *worst], np.int64))
        texts = {content: self._texts(content, indices) for content in ("key", "label", "label_text", "caption")}
        rows: dict[int, list[Picture]] = {}
        with BriefProgress(len(indices), "decode", self._progress) as bar:
            for index in indices.tolist():
                rows[index] = self._pictures(index)
                bar.update(1)

        def facts(index: int, score: float | None = None) -> SampleFacts:
            key, label, name, caption = (texts[content].get(index, "") for content in texts)
            return SampleFacts(index, key, name or (label and f"label {label}"), caption, rows[index], score)

        self.facts.shown = [facts(index) for index in shown]
        self.facts.worst = [facts(index, score) for index, score in worst.items()]

    def _worst(self, errors: Errors | None) -> dict[int, float]:
        """Returns the samples of largest error with their SQNR, or those with the most values at the ends of ranges."""
        if errors is not None:
            ordered = sorted(errors.of_samples.items(), key=lambda item: item[1])
            return dict(item for item in ordered[:_WORST] if np.isfinite(item[1]))
        at_ends = {} if self._preview is None else self._preview.at_ends
        ordered = sorted(at_ends.items(), key=lambda item: -item[1])
        return dict(item for item in ordered[:_WORST] if item[1] > 0)

    def _pictures(self, index: int) -> list[Picture]:
        if self._pictured is None:
            return []
        if self._network is None:
            return self._previewed(index)
        if self._originals is None:
            return [decoded(self._pictured, index, self._network)]
        if self._originals.fault:
            pixels, latents = self._originals.pixels([index]), None
        else:
            pixels, latents = self._originals.encode([index])
        return compared(self._pictured, index, self._originals, pixels, latents)

    def _previewed(self, index: int) -> list[Picture]:
        """Returns a picture of a latent's first three channels, or of tokens, for a lack of an autoencoder.

        A latent of a single position has none.
        """
        assert self._pictured is not None
        values = self._pictured.decodable([index]).numpy()[0].astype(np.float64)
        if values[0].size == 1:
            return []
        if values.ndim == 2:  # tokens: colors that differ between neighbors
            channels, title = np.stack([values * step % 256 for step in (97, 57, 151)]), "tokens as colors"
        else:
            channels = values[[0, min(1, len(values) - 1), min(2, len(values) - 1)]]
            low, high = np.quantile(channels, (0.01, 0.99), axis=(1, 2))
            span = np.where(high > low, high - low, 1)
            channels = (channels - low[:, None, None]) / span[:, None, None] * 255
            title = "first three channels as red, green and blue"
        pixels = channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0)
        return [Picture(np.ascontiguousarray(pixels), "preview", title, name=f"#{index}")]

    def _texts(self, content: str, indices: NDArray[np.int64]) -> dict[int, str]:
        if self._dataset is None:
            return {}
        names, columns = self._dataset.layout.shard_names, self.facts.recipe.columns
        for key, name in names.items():
            if name in columns and columns[name].content == content:
                return {index: str(value) for index, value in values_of(self._dataset, key, indices).items()}
        return {}

    def _storage(self) -> list[StorageRow]:
        facts = self.facts
        if facts.card is not None and list_folder(facts.path, facts.card.source.revision).is_dir():
            source = self._source if self._originals is not None else None
            return storage(facts.path, source, progress=self._progress)
        latents = [column.facts for column in facts.columns if column.content in ("latent", "moments")]
        tokens = [column.facts for column in facts.columns if column.tokens is not None]
        return storage_without_card(facts.path, latents, tokens, facts.samples)

    def _read_rate(self) -> float:
        assert self._dataset is not None
        indices = spread(_READ, len(self._dataset))
        started = time.perf_counter()
        for batch, _ in in_batches(self._dataset, indices, 32):
            self._dataset.batch(batch)
        return len(indices) / max(time.perf_counter() - started, 1e-9)

    def _published_rate(self) -> float | None:
        card = self.facts.card
        if card is None or card.units < 2 or not list_folder(self.facts.path, card.source.revision).is_dir():
            return None
        names = [unit.name for unit in sample_list(self.facts.path, card).units() if unit.samples]
        chosen = [names[number] for number in spread(_STATED, len(names)).tolist()]
        files = [self.facts.path / name / "unit.toml" for name in chosen]
        times = sorted(file.stat().st_mtime for file in files if file.is_file())
        if len(times) < 2 or times[-1] - times[0] < 1:
            return None
        return float(self.facts.samples * (1 - 1 / len(times)) / (times[-1] - times[0]))


def _clip_rates(facts: Any) -> Floats | None:
    """Returns the share of values outside the range of each channel of latents; None without a range or a card."""
    statistics = getattr(facts, "statistics", None)
    if statistics is None or facts.clipped is None or facts.quantizer.kind not in LEVELED:
        return None
    rates: Floats = np.array(facts.clipped, np.float64) / np.maximum(1, np.array(statistics.count, np.float64))
    return rates
