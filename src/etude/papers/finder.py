"""Search of the stored papers: an index kept in step with the store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock

import numpy as np

from etude.core import EtudeError, cards, require
from etude.papers.catalogue import Paper, papers
from etude.papers.entry import Entry
from etude.papers.search import Document, Index
from etude.papers.store import Store
from etude.papers.vectors import text_of, vectors

__all__ = ["Finder", "Found"]

INSTALL = 'pip install "etude[text]"'
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """Papers, best first, their scores, and what the search had to do without, or ""."""

    entries: list[Entry]
    scores: list[float]
    note: str = ""


@cache
def _catalogue() -> dict[str, Paper]:
    return {paper.key: paper for paper in papers()}


def document(entry: Entry) -> Document:
    """What the index holds of a paper; one without an abstract is searched by its move."""
    paper = _catalogue().get(entry.slug)
    text = entry.abstract
    if not text and paper:
        text = text_of(paper).removeprefix(f"{paper.title}. ")
    return Document(
        id=entry.id, title=entry.title, text=text, authors=entry.authors,
        categories=entry.categories, date=entry.date, family=entry.slug.partition(".")[0],
        runnable=entry.slug in cards(),
    )  # fmt: skip


class Finder:
    """Finds papers of a store; `folder` keeps the index, by default ``~/.etude/index``."""

    def __init__(self, store: Store, folder: Path | None = None) -> None:
        self.store = store
        self.folder = folder or Path("~/.etude/index").expanduser()
        self._lock = RLock()
        self._seen = 0
        self._index = Index(_encode)

    def sync(self, tell: Tell | None = None) -> int:
        """Index what the store changed since; the number of papers that were read."""
        with self._lock:
            total = 0
            while rows := self.store.since(self._seen, 500):
                total += len(rows)
                self._index.extend([document(entry) for _, entry in rows])
                self._seen = rows[-1][0]
                if tell:
                    tell(total, self.store.count())
            return total

    def search(
        self, query: str, k: int = 50, *, start: int = 0, first: str = "", last: str = "",
        family: str = "", runnable: bool | None = None,
    ) -> Found:
        """Papers for a query, best first, from place `start`.

        Raises:
            EtudeError: an empty query, k < 1 or start < 0.
        """
        require(k >= 1, "k", "at least 1", k)
        require(start >= 0, "start", "at least 0", start)
        if self.store.changed() != self._seen:
            self.sync()
        hits = self._index.search(
            query, start + k, first=first, last=last, family=family, runnable=runnable
        )[start:]
        known = {entry.id: entry for entry in self.store.many([i for i, _ in hits])}
        kept = [(known[i], score) for i, score in hits if i in known]
        note = "" if self._index.encode else f"found by words only: {INSTALL}"
        return Found([entry for entry, _ in kept], [score for _, score in kept], note)

    def similar(self, id: str, k: int = 5) -> list[Entry]:
        """The papers nearest in meaning."""
        if self.store.changed() != self._seen:
            self.sync()
        return self.store.many([i for i, _ in self._index.similar(id, k)])


@cache
def _shipped() -> dict[str, np.ndarray]:
    """Vectors that come with the package, by the text that they were made from."""
    try:
        return dict(zip(map(text_of, papers()), vectors(), strict=True))
    except EtudeError:  # missing or of another catalogue: they are made anew
        return {}


def _encode(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of texts; what the package ships is not encoded again."""
    known = _shipped()
    unknown = [text for text in dict.fromkeys(texts) if text not in known]
    if unknown:
        try:
            from etude.nets.minilm import encode
        except ImportError:
            raise EtudeError(f"search by meaning needs {INSTALL}") from None
        known = known | dict(zip(unknown, np.asarray(encode(unknown)), strict=True))
    return np.stack([known[text] for text in texts])
