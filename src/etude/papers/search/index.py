"""An index of documents, searched by words (FTS5) and by meaning (vectors)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from threading import Lock

import numpy as np

from etude.core import require
from etude.papers.search.document import Document

__all__ = ["Index"]

Encode = Callable[[Sequence[str]], np.ndarray]


class Index:
    """Documents in memory; `encode` turns texts to unit vectors, None = by words only."""

    def __init__(self, encode: Encode | None = None) -> None:
        self.encode = encode
        self.documents: dict[str, Document] = {}
        self.vectors: dict[str, np.ndarray] = {}
        self._lock = Lock()
        self._table = sqlite3.connect(":memory:", check_same_thread=False)
        self._table.execute(
            "CREATE VIRTUAL TABLE d USING fts5(id UNINDEXED, title, text, authors, categories, "
            "tokenize='porter unicode61')"
        )

    def extend(self, documents: Iterable[Document], vectors: np.ndarray | None = None) -> None:
        """Add documents; one under a known id replaces the other."""
        new = {d.id: d for d in documents}
        if vectors is None and self.encode is not None and new:
            vectors = np.asarray(self.encode([d.encoded for d in new.values()]))
        with self._lock:
            for place, d in enumerate(new.values()):
                self._table.execute("DELETE FROM d WHERE id = ?", (d.id,))
                row = (d.id, d.title, d.text, " ".join(d.authors), " ".join(d.categories))
                self._table.execute("INSERT INTO d VALUES (?, ?, ?, ?, ?)", row)
                self.documents[d.id] = d
                if vectors is not None:
                    self.vectors[d.id] = vectors[place]

    def search(
        self, query: str, k: int = 10, *, first: str = "", last: str = "", family: str = "",
        runnable: bool | None = None,
    ) -> list[tuple[str, float]]:
        """(id, score) of the best `k`, best first."""
        query = " ".join(query.encode("utf-8", "replace").decode().split())
        require(bool(query), "query", "words", query)
        words = re.findall(r"[^\W_]+", query.casefold())[:50]
        scores: dict[str, float] = {}
        if words:
            expression = " OR ".join(f'"{w}"' for w in words)
            with self._lock:
                found = self._table.execute(
                    "SELECT id FROM d WHERE d MATCH ? ORDER BY bm25(d) LIMIT 200", (expression,)
                ).fetchall()
            for rank, (i,) in enumerate(found, 1):
                scores[i] = scores.get(i, 0.0) + 1 / (60 + rank)
        if self.encode is not None and self.vectors:
            vector = np.asarray(self.encode([query]))[0]
            near = sorted(self.vectors, key=lambda i: -float(self.vectors[i] @ vector))[:200]
            for rank, i in enumerate(near, 1):
                scores[i] = scores.get(i, 0.0) + 1 / (60 + rank)
        kept = [
            (i, s) for i, s in scores.items()
            if self._passes(self.documents[i], first, last, family, runnable)
        ]  # fmt: skip
        return sorted(kept, key=lambda pair: -pair[1])[:k]

    def _passes(self, d: Document, first: str, last: str, family: str, run: bool | None) -> bool:
        dated = (not first or d.date >= first) and (not last or "" < d.date <= last + "~")
        return dated and family in ("", d.family) and run in (None, d.runnable)

    def similar(self, id: str, k: int = 5) -> list[tuple[str, float]]:
        """(id, score) of the nearest in meaning, without itself."""
        if id not in self.vectors:
            return []
        own = self.vectors[id]
        near = [(i, float(v @ own)) for i, v in self.vectors.items() if i != id]
        return sorted(near, key=lambda pair: -pair[1])[:k]
