"""``Index``: any documents, found by words and by meaning; in memory or in a folder."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from etude.core import require
from etude.papers.search import folder as disk
from etude.papers.search import keeping
from etude.papers.search.conditions import Filter
from etude.papers.search.document import Document
from etude.papers.search.encoding import Encode, Tell, vectors_for
from etude.papers.search.fusion import RECIPE
from etude.papers.search.milvus import Milvus
from etude.papers.search.query import parse
from etude.papers.search.ranking import nearest, ranked
from etude.papers.search.segment import Segment, join, make_segment
from etude.papers.search.snapshot import Snapshot

__all__ = ["Index"]

CHUNK = 131_072  # documents of one segment at most
MOST_SMALL = 16  # segments that are not full, before some are joined
WINDOW = 8  # segments that are joined at once


class Index:
    """Documents, searched by words and by meaning.

    Made by ``build``, ``load`` or, empty and in memory, ``Index()``. `encode` turns texts into
    unit vectors (N, D); without one the search is by words only. Threads may share an index.
    Processes may share a folder: who writes takes its lock, ``refresh`` reads what others wrote.
    """

    def __init__(self, encode: Encode | None = None) -> None:
        self.encode = encode
        self.recipe = RECIPE
        self.path: Path | None = None
        self.milvus: Milvus | None = None  # finds the candidates by meaning, of a folder's index
        self.state: dict[str, Any] = {}
        self._snapshot = Snapshot()
        self._stamp: tuple[int, int, int] | None = None
        self._lock = RLock()

    @classmethod
    def build(
        cls, documents: Iterable[Document], path: str | Path | None = None,
        encode: Encode | None = None, vectors: np.ndarray | None = None, *,
        tell: Tell | None = None,
    ) -> Index:  # fmt: skip
        """An index of documents; in the folder `path`, or in memory.

        Args:
            documents: any number, read one after the other; of two of one id the last one stays.
            path: a folder, made anew: an index that is in it is replaced.
            encode: texts to unit vectors (N, D), for the documents and later for queries.
            vectors: (N, D) unit vectors of the documents, which are then not encoded.
            tell: called with the number of documents that are indexed, and of all (0: unknown).

        Raises:
            EtudeError: vectors of another number than documents, or the folder cannot be written.
        """
        index = cls(encode)
        total = len(documents) if isinstance(documents, Sequence) else 0
        if path is not None:
            index.path = Path(path)
            with index._writing(anew=True):
                index._write()
        rest, done = iter(documents), 0
        while chunk := list(itertools.islice(rest, CHUNK)):
            given = None if vectors is None else vectors[done : done + len(chunk)]
            index.extend(chunk, given, tell=_from(tell, done, total))
            done += len(chunk)
        if vectors is not None:
            require(len(vectors) == done, "vectors", f"{done} as documents", len(vectors))
        return index

    @classmethod
    def load(cls, path: str | Path, encode: Encode | None = None) -> Index:
        """The index in a folder.

        Raises:
            EtudeError: there is none, or a file of it is missing, truncated or altered.
        """
        index = cls(encode)
        index.path = Path(path)
        index._read()
        return index

    def save(self, path: str | Path) -> None:
        """Write the index to a folder, in place of one that is there, and keep it there."""
        with self._lock:
            self.path = Path(path)
            with self._writing(anew=True):
                self._write()

    @property
    def snapshot(self) -> Snapshot:
        """The documents as they are now, for those who look inside."""
        return self._snapshot

    def __len__(self) -> int:
        return self._snapshot.n

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and bool(self._snapshot.numbers([id])[0] >= 0)

    def search(
        self, query: str, k: int = 10, *, first: str = "", last: str = "", family: str = "",
        runnable: bool | None = None,
    ) -> list[tuple[str, float]]:  # fmt: skip
        """(id, score) of the best `k` documents, best first; scores compare within one answer.

        Args:
            query: see ``etude.papers.search.query``.
            first, last: days ("YYYY-MM-DD"), months or years between which a date must lie.
            family, runnable: what a document must have, unless "" and None.

        Raises:
            EtudeError: a query without words or too long, k < 1, or a date that is none.
        """
        require(k >= 1, "k", "at least 1", k)
        read = parse(query)
        wanted = Filter(read.clauses, first, last, family, runnable)
        now = self._snapshot
        vector = None
        if self.encode is not None and read.text and now.n:
            vector = np.asarray(self.encode([read.text]), np.float32)[0]
        near = None
        if self.milvus is not None and self.path is not None:
            near = partial(self.milvus.near, self.path)
        numbers, scores = ranked(now, read, vector, wanted, k, self.recipe, near)
        return list(zip(now.ids(numbers), map(float, scores), strict=True))

    def similar(self, id: str, k: int = 5) -> list[tuple[str, float]]:
        """(id, cosine) of the `k` nearest in meaning without itself; [] if it is unknown."""
        require(k >= 1, "k", "at least 1", k)
        now = self._snapshot
        number = now.numbers([id])[0]
        if number < 0 or not now.gather("encoded", np.array([number]))[0]:
            return []
        vector = now.gather("vectors", np.array([number]))[0].astype(np.float32)
        numbers, scores = nearest(now, vector, k + 1)
        kept = numbers != number
        return list(zip(now.ids(numbers[kept][:k]), map(float, scores[kept]), strict=False))

    def extend(
        self, documents: Iterable[Document], vectors: np.ndarray | None = None, *,
        tell: Tell | None = None, state: dict[str, Any] | None = None,
    ) -> int:  # fmt: skip
        """Add documents, in place of those with the same ids; the number of them.

        A document whose text is as before keeps its vector. `state`, any JSON values, is kept
        with the index as ``index.state``, written together with the documents.
        """
        every = list(documents)
        require(
            vectors is None or len(vectors) == len(every), "vectors",
            f"{len(every)} as documents", None if vectors is None else len(vectors),
        )  # fmt: skip
        last = {document.id: place for place, document in enumerate(every)}
        places = sorted(last.values())
        given = None if vectors is None else np.asarray(vectors)[places]
        chosen = [every[place] for place in places]
        with self._writing():
            if chosen:
                old = self._snapshot.numbers([d.id for d in chosen])
                found, has = vectors_for(self._snapshot, chosen, old, given, self.encode, tell)
                self._add(make_segment(chosen, found, has), old[old >= 0])
            self.state = self.state if state is None else dict(state)
            self._write()
        return len(chosen)

    def upload(self, tell: Tell | None = None) -> None:
        """Bring the Milvus server in step, where there is one; else a search does it."""
        if self.milvus is not None and self.path is not None and self._snapshot.segments:
            self.milvus.follow(self.path, self._snapshot, tell)

    def remove(self, ids: Iterable[str]) -> int:
        """Take documents out; the number of those that were there."""
        with self._writing():
            numbers = self._snapshot.numbers(list(dict.fromkeys(ids)))
            numbers = numbers[numbers >= 0]
            if len(numbers):
                self._bury(numbers)
                self._write()
            return len(numbers)

    def refresh(self) -> bool:
        """Read what other processes wrote to the folder; whether there was anything.

        Never waits: while another thread writes to this index, nothing is read.
        """
        if self.path is None or disk.stamp(self.path) == self._stamp:
            return False
        if not self._lock.acquire(blocking=False):
            return False
        try:
            self._read()
        finally:
            self._lock.release()
        return True

    def _add(self, segment: Segment, replaced: np.ndarray) -> None:
        if len(replaced):
            self._bury(replaced)
        now = self._snapshot
        self._snapshot = Snapshot((*now.segments, segment), (*now.dead, np.empty(0, np.int64)))
        small = [len(s) < CHUNK for s in self._snapshot.segments]
        if sum(small) > MOST_SMALL:
            self._join_some()

    def _bury(self, numbers: np.ndarray) -> None:
        now = self._snapshot
        places, rows = now.split(numbers)
        dead = list(now.dead)
        for place in np.unique(places):
            dead[place] = np.union1d(dead[place], rows[places == place])
        self._snapshot = Snapshot(now.segments, tuple(dead))
        for place in range(len(dead) - 1, -1, -1):
            if 2 * len(dead[place]) > len(now.segments[place]):
                self._join(place, place + 1)

    def _join_some(self) -> None:
        """Join the neighbors that are the fewest documents together: order is kept."""
        sizes = np.array([len(s) - len(d) for s, d in zip(
            self._snapshot.segments, self._snapshot.dead, strict=True)])  # fmt: skip
        sums = np.convolve(sizes, np.ones(WINDOW, int), "valid")
        start = int(sums.argmin())
        if sums[start] <= CHUNK:
            self._join(start, start + WINDOW)

    def _join(self, start: int, stop: int) -> None:
        now = self._snapshot
        parts = now.segments[start:stop]
        alive = [
            mask if len(mask) else np.ones(len(part), bool)
            for part, mask in zip(parts, now.alive[start:stop], strict=True)
        ]
        new = [join(parts, alive)] if any(mask.any() for mask in alive) else []
        self._snapshot = Snapshot(
            (*now.segments[:start], *new, *now.segments[stop:]),
            (*now.dead[:start], *[np.empty(0, np.int64)] * len(new), *now.dead[stop:]),
        )

    @contextmanager
    def _writing(self, anew: bool = False) -> Iterator[None]:
        """Alone in the folder, on what it holds now; a change that fails leaves no trace."""
        with self._lock, disk.locked(self.path) if self.path else nullcontext():
            if self.path and not anew and disk.stamp(self.path) != self._stamp:
                self._read()
            before = self._snapshot, self.state
            try:
                yield
            except BaseException:
                self._snapshot, self.state = before
                raise

    def _write(self) -> None:
        if self.path is not None:
            self._snapshot = keeping.write(self.path, self._snapshot, self.state)
            self._stamp = disk.stamp(self.path)

    def _read(self) -> None:
        assert self.path is not None
        found = disk.stamp(self.path)  # before the reading: a later change is seen again
        self._snapshot, self.state = keeping.read(self.path, self._snapshot.segments)
        self._stamp = found


def _from(tell: Tell | None, done: int, total: int) -> Tell | None:
    """Progress of one piece as progress of the whole."""
    return None if tell is None else lambda here, _: tell(done + here, total)
