"""A dataset on an object store, made through a local folder that has its small files.

A run works in the folder as in any other. What it publishes there is then published on the store:

- A file that the first process decides (the card, a part of the list) by a conditional put. If another process was
  first, its file replaces the folder's.
- A unit file by file: its shards first and its `index.json` last, by a conditional put. Nothing is overwritten: a file
  whose name an attempt of other bytes has taken gets another name, a shard as `shard.HASH.mds` (of a bucket
  `shard.003.HASH.mds`) with the xxh3_64 of its bytes in decimal digits in place of its number, a file that no index
  names as `NAME.HASH` with the xxh3_64 of the unit's index. So the index of a unit names shards whose hashes it holds,
  whichever attempt wins, and its other files are those of the same attempt.
- The dataset's index last of all.

A unit that is published is kept in the folder as its index and facts alone; one that only the store has is an empty
index there until `fetch_units` brings its files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from latentq._core import LatentqError, MismatchError, image_hash
from latentq.format.card import CARD, NEXT_CARD, Card, next_card_bytes
from latentq.format.files import CONTENT_HASHES, EMPTY_CAPTION, INDEX, LIST, NORMALIZATION, PLACES, REJECTS, UNIT
from latentq.run.units import UnitCard, list_folder, unit_names
from latentq.store.local import make_folder, replace_file
from latentq.store.objects import ObjectStore, is_url

_CONNECTIONS = 16  # requests at the same time
_FACTS = (INDEX, UNIT, CONTENT_HASHES)  # a unit's files that stay in the folder
_UNIT_FILE = re.compile(  # longer names are those of other attempts
    r"\d{5,}(\.\d+)?/"
    rf"(shard\.[\d.]+\.mds(\.\w+)?|({'|'.join(map(re.escape, (*_FACTS, PLACES)))})(\.[0-9a-f]{{16}})?)"
)
_ANY_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_LOCK = "lock"  # of a temporary folder, held while its process lives
_DECIDED_ONCE = (EMPTY_CAPTION, NORMALIZATION)


class Mirror:
    """A dataset on an object store and its local folder.

    Args:
        store: The store.
        folder: The local folder, of this process alone.
        card: The file name of the dataset's card.

    Attributes:
        folder: The local folder.
        store: The store.
    """

    def __init__(self, store: ObjectStore, folder: Path, card: str) -> None:
        self.store = store
        self.folder = folder
        self._card = card
        self._listed: set[str] = set()  # parts of lists that came from the store

    def fetch(self) -> None:
        """Takes what is published into the folder: small files, and which units there are.

        Only lists that a card names are whole: a killed process may have left the first parts of another one.

        Raises:
            MismatchError: The store has objects at this place, and they are no dataset.
            OSError: The store cannot be read.
        """
        parts, others = [], []
        for name, _ in self.store.files():
            first = name.partition("/")[0]
            if _UNIT_FILE.fullmatch(name):
                self._note_unit(name)
            elif first == LIST or first.startswith(f"{LIST}."):
                parts.append(name)
            elif name in (INDEX, self._card, NEXT_CARD, *_DECIDED_ONCE):
                self._fetch(name)
            elif name != REJECTS:
                others.append(name)
        if others and not (self.folder / self._card).exists():
            raise MismatchError(f"{self.store.url} holds something else ({others[0]}): name a place that is empty")
        lists = {list_folder(self.folder, revision).name for revision in self._revisions()}
        self._listed = {name for name in parts if name.partition("/")[0] in lists}
        with self._threads() as pool:
            for _ in pool.map(self._fetch, sorted(self._listed)):
                pass

    def fetch_list(self, revision: int) -> None:
        """Takes a list that is known to be whole, although no card names it yet, into the folder.

        Args:
            revision: How often the dataset was updated with it.

        Raises:
            OSError: The store cannot be read.
        """
        folder = list_folder(self.folder, revision).name
        for name in (stored.name for stored in self.store.list()):
            if name.partition("/")[0] == folder and not (self.folder / name).exists():
                self._fetch(name)
                self._listed.add(name)

    def find_units(self) -> None:
        """Notes in the folder which units other processes have published since.

        Raises:
            OSError: The store cannot be read.
        """
        for name, _ in self.store.files():
            self._note_unit(name)

    def publish_plan(self) -> bool:
        """Publishes the list and the card that are in the folder, and the files that go with them.

        Returns:
            False if another process had published another card: that one is in the folder now.

        Raises:
            MismatchError: Another list is published.
            OSError: The store cannot be written.
        """
        self.publish_list()
        return self.publish_once(self._card)

    def publish_list(self) -> None:
        """Publishes the lists that are in the folder.

        Raises:
            MismatchError: Another list is published.
            OSError: The store cannot be written.
        """
        for folder in sorted(self.folder.glob(f"{LIST}*")):
            for part in sorted(folder.iterdir()):
                name = f"{folder.name}/{part.name}"
                if name not in self._listed and not self.store.put_once(name, part):
                    raise MismatchError(f"{self.store.url}/{name} is another list than that of this source")

    def publish_once(self, name: str) -> bool:
        """Publishes a file of the folder. If another process was first, takes its file and returns False."""
        path = self.folder / name
        if self.store.put_once(name, path):
            return True
        replace_file(path, self.store.get(name))
        return False

    def publish_decided(self) -> None:
        """Publishes the files that the first process decides, other than list and card."""
        for name in _DECIDED_ONCE:
            if (self.folder / name).exists():
                self.publish_once(name)

    def publish_unit(self, name: str) -> bool:
        """Publishes a unit of the folder. If another process was first, its unit is taken instead.

        The folder keeps the unit's index and facts, and no shards.

        Returns:
            False if the unit of another process was taken in place of the folder's.

        Raises:
            OSError: The store cannot be written, or the folder cannot be read.
        """
        unit = self.folder / name
        index = (unit / INDEX).read_bytes()
        if index:
            names = sorted(entry.name for entry in unit.iterdir() if entry.name != INDEX)
            shards = [shard for shard in names if shard.endswith(".mds")]
            with self._threads() as pool:
                placed = dict(zip(shards, pool.map(lambda shard: self._put_shard(unit, shard), shards), strict=True))
            index = _with_names(index, placed)
            for other in names:
                if other not in placed and not self.store.put_once(f"{name}/{other}", unit / other):
                    self.store.put_once(f"{name}/{_alternative(other, index)}", unit / other)
            for shard in shards:
                (unit / shard).unlink()
            replace_file(unit / INDEX, index)
            if not self.store.put_once(f"{name}/{INDEX}", index):
                self._fetch_unit(name)
                return False
        return True

    def fetch_units(self, names: Iterable[str]) -> None:
        """Brings the index and facts of units that only the store has.

        Args:
            names: Names of units.

        Raises:
            OSError: The store cannot be read.
        """

        def fetch(name: str) -> None:
            if not (self.folder / name / INDEX).stat().st_size:
                self._fetch_unit(name)

        with self._threads() as pool:
            for _ in pool.map(fetch, names):
                pass

    def publish_finish(self) -> None:
        """Publishes what finishing wrote into the folder: rejects, card, and last of all the index."""
        for name in (REJECTS, self._card, INDEX):
            data = (self.folder / name).read_bytes()
            if not self._holds(name, data):  # a finished dataset is not written again
                self.store.put(name, data)

    def stored_bytes(self) -> int:
        """Returns the size of all objects in bytes. Raises as `find_units`."""
        return sum(size for _, size in self.store.files())

    def publish_update(self) -> None:
        """Publishes what finishing an update wrote: the dataset is the old one until its index is replaced.

        Raises:
            MismatchError: Another update is being finished.
        """
        index = (self.folder / INDEX).read_bytes()
        next_card = next_card_bytes(Card.load(self.folder), hashlib.sha256(index).hexdigest())
        if not self.store.put_once(NEXT_CARD, next_card):
            raise MismatchError(f"{self.store.url}: another update is being finished: run the same command again")
        for name in (INDEX, REJECTS, CARD):
            self.store.put(name, self.folder / name)
        self.store.delete(NEXT_CARD)

    def fetch_next_units(self) -> None:
        """Brings the units of an update whose finish was killed, if there is one. Raises as `fetch_units`."""
        if (self.folder / NEXT_CARD).exists():
            self.fetch_units(unit_names(self.folder, Card.load(self.folder / NEXT_CARD)))

    def _put_shard(self, unit: Path, shard: str) -> str:
        """Puts a shard, and returns the name that it has on the store."""
        data = (unit / shard).read_bytes()
        if not self.store.put_once(f"{unit.name}/{shard}", data):
            # Digits, as the number has, so that a reader finds the bucket in the name.
            shard = f"{shard.removesuffix('.mds').rpartition('.')[0]}.{image_hash(data):020}.mds"
            self.store.put_once(f"{unit.name}/{shard}", data)
        return shard

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.store.get(name) == data
        except FileNotFoundError:
            return False

    def _fetch_unit(self, name: str) -> None:
        index = self.store.get(f"{name}/{INDEX}")
        folder = self.folder / name
        for file in _FACTS[1:]:
            data = self._get_any(f"{name}/{_alternative(file, index)}", f"{name}/{file}")
            if data is not None:  # shards of images have no hashes of their content
                replace_file(folder / file, data)
        replace_file(folder / INDEX, index)

    def _get_any(self, *names: str) -> bytes | None:
        """Returns the first of some objects that exists, or None."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                return self.store.get(name)
        return None

    def _fetch(self, name: str) -> None:
        path = self.folder / name
        make_folder(path.parent)
        replace_file(path, self.store.get(name))

    def _note_unit(self, name: str) -> None:
        """Makes an empty index in the folder if an object is the index of a unit that the folder does not have."""
        path = self.folder / name
        if path.name == INDEX and _UNIT_FILE.fullmatch(name) and not path.exists():
            make_folder(path.parent)
            path.touch()

    def _revisions(self) -> Iterator[int]:
        """Yields how often the dataset was updated, by its card and by that of an update that is being finished."""
        for name in (self._card, NEXT_CARD):
            with contextlib.suppress(FileNotFoundError):
                yield int(tomllib.loads((self.folder / name).read_text()).get("source", {}).get("revision", 0))

    @staticmethod
    def _threads() -> ThreadPoolExecutor:
        return ThreadPoolExecutor(_CONNECTIONS, "latentq: store")


@contextlib.contextmanager
def finished_on_store(mirror: Mirror | None, card: UnitCard) -> Iterator[None]:
    """Brings all units into a mirror's folder, in which the block finishes the dataset, and publishes the result.

    Args:
        mirror: The mirror; None if the dataset is in a folder, where there is nothing to do.
        card: The card, which names the list of the units.
    """
    if mirror is None:
        yield
        return
    mirror.fetch_units(unit_names(mirror.folder, card))
    yield
    mirror.publish_finish()


@contextlib.contextmanager
def mirrored(
    path: str | os.PathLike[str],
    options: Mapping[str, str] | None = None,
    card: str = CARD,
    *,
    inputs: Iterable[object] = (),
) -> Iterator[tuple[Path, Mirror | None]]:
    """Opens a dataset that may be on an object store.

    Args:
        path: A folder, or the URL of a dataset on an object store.
        options: For URLs: see `ObjectStore`.
        card: The file name of the dataset's card.
        inputs: What the run reads, such as its source: the options may be for URLs among these alone.

    Yields:
        The folder and None; or, for a URL, a temporary folder with what is published, and its mirror. Errors name the
        URL in place of that folder.

    Raises:
        MismatchError: The store has objects at this place, and they are no dataset.
        OSError: The store cannot be read.
        ValueError: The path is a URL of another kind; or options are given without a URL, or not valid.
    """
    if not is_url(path):
        if _ANY_SCHEME.match(os.fspath(path)):
            raise ValueError(
                f"{os.fspath(path)} cannot be written to: name a folder, or a URL of s3://, gs:// or az://"
            )
        if options and not any(map(is_url, inputs)):
            raise ValueError(f"storage options are for URLs, and {os.fspath(path)} is a folder")
        yield Path(path), None
        return
    store = ObjectStore(str(path), options)
    # Other machines may have the same temporary folder, and their locks may not be seen here.
    host = hashlib.sha256(f"{socket.gethostname()} {store.url}".encode()).hexdigest()[:16]
    base = Path(tempfile.gettempdir())
    _remove_dead(base, f"latentq-{host}-")
    with (
        tempfile.TemporaryDirectory(prefix=f"latentq-{host}-", dir=base) as temporary,
        (Path(temporary) / _LOCK).open("wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(temporary) / "dataset"
        mirror = Mirror(store, folder, card)
        try:
            mirror.fetch()
            yield folder, mirror
        except LatentqError as error:
            error.args = tuple(
                part.replace(str(folder), store.url) if isinstance(part, str) else part for part in error.args
            )
            raise


def _alternative(file: str, index: bytes) -> str:
    """Returns the name of a file that no index names, if another attempt took its own name."""
    return f"{file}.{image_hash(index):016x}"


def _with_names(index: bytes, placed: Mapping[str, str]) -> bytes:
    """Returns a unit's index with the names that its shards have on the store."""
    for shard, name in placed.items():
        if shard != name:
            index = index.replace(json.dumps(shard).encode(), json.dumps(name).encode())
    return index


def _remove_dead(base: Path, prefix: str) -> None:
    """Removes the folders that killed processes left: those whose lock nobody holds."""
    for folder in base.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
