"""Search of the catalogue for a need in plain words: by words and by meaning, fused.

Words: SQLite's full-text index (FTS5, Porter stems, BM25) over slug, title, move and keywords.
Meaning: the dot product of all-MiniLM-L6-v2 vectors. The two rankings are fused by reciprocal
ranks, score = sum over rankings of 1 / (60 + rank), which needs no common scale of scores.

Source of the fusion: Cormack, Clarke, Büttcher, "Reciprocal rank fusion outperforms Condorcet
and individual rank learning methods", SIGIR 2009.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from threading import Lock

from etude.core import EtudeError, require
from etude.papers.catalogue import Paper, card_for, papers

__all__ = ["INSTALL", "LONGEST", "Hit", "Hits", "find", "similar"]

LONGEST = 500  # characters of a query
DEPTH = 100  # papers of each ranking that take part in the fusion
CALM = 60.0  # the constant of the reciprocal ranks: how little the first places stand out
INSTALL = 'pip install "etude[text]"'
# Words of a question that say nothing about the need; FTS5 has no list of its own.
EMPTY = frozenset(
    re.findall(
        r"\w+",
        """
        a about all am an and any are as at be been but by can could do does for from get give
        had has have how i if in into is it its just like make may me more most much my need
        needs no not of on only or our out over some so such than that the their them then there
        these they this to too up use using very want was we what when where which who why will
        with without would you your
        """,
    )
)
_LOCK = Lock()


@dataclass(frozen=True)
class Hit:
    """A paper that was found; `words` and `meaning` are its ranks there, from 1, or None."""

    paper: Paper
    score: float
    words: int | None
    meaning: int | None

    @property
    def runnable(self) -> bool:
        """Whether a module plays the paper here."""
        return card_for(self.paper) is not None


class Hits(list[Hit]):
    """Hits, best first. `note` says what the search had to do without, or is ""."""

    query: str = ""
    note: str = ""


@cache
def _index() -> sqlite3.Connection:
    index = sqlite3.connect(":memory:", check_same_thread=False)
    index.execute(
        "CREATE VIRTUAL TABLE paper USING fts5(slug, title, move, keywords, "
        "tokenize='porter unicode61')"
    )
    index.executemany(
        "INSERT INTO paper(rowid, slug, title, move, keywords) VALUES (?, ?, ?, ?, ?)",
        [(i, p.key, p.title, p.move, "; ".join(p.keywords)) for i, p in enumerate(papers())],
    )
    return index


def _expression(query: str) -> str:
    """The query as an FTS5 expression: its words, each quoted, any of them; "" if none.

    Only letters and digits pass, so that no operator or quote of the query's own is left.
    """
    words = list(dict.fromkeys(re.findall(r"[^\W_]+", query.casefold())))
    telling = [word for word in words if word not in EMPTY] or words
    return " OR ".join(f'"{word}"' for word in telling)


def by_words(query: str) -> list[int]:
    """Positions of the papers that share a word with the query, best first."""
    expression = _expression(query)
    if not expression:
        return []
    with _LOCK:  # one connection for all threads
        rows = _index().execute(
            "SELECT rowid FROM paper WHERE paper MATCH ? "
            "ORDER BY bm25(paper, 2.0, 2.0, 1.0, 2.0), rowid",
            (expression,),
        )
        return [row[0] for row in rows]


def by_meaning(query: str) -> list[int]:
    """Positions of all papers, nearest in meaning first.

    Raises:
        EtudeError: no vectors, or no encoder (then it names the install line).
    """
    import numpy as np

    from etude.papers.query_vector import query_vector
    from etude.papers.vectors import vectors

    known = vectors()
    try:
        vector = query_vector(query)
    except ImportError:
        raise EtudeError(f"search by meaning needs {INSTALL}") from None
    return [int(i) for i in np.argsort(-(known @ vector), kind="stable")]


def fuse(rankings: Sequence[Sequence[int]]) -> dict[int, float]:
    """Reciprocal-rank scores by position, best first; equal scores in the order found."""
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, position in enumerate(ranking[:DEPTH], 1):
            scores[position] = scores.get(position, 0.0) + 1.0 / (CALM + rank)
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def find(query: str, k: int = 10, *, runnable: bool = False) -> Hits:
    """The `k` papers that answer a need best; with `runnable` only those that run here.

    Without the extra etude[text] the search is by words only, and the result's `note` says so.

    Raises:
        EtudeError: an empty or too long query, or k < 1.
    """
    # a command line may hand over bytes that are not UTF-8 as lone surrogates
    query = " ".join(query.encode("utf-8", "replace").decode().split())
    require(bool(query), "query", "a need in words, such as 'smaller embeddings'", query)
    require(len(query) <= LONGEST, "query", f"at most {LONGEST} characters", query)
    require(k >= 1, "k", "at least 1", k)
    hits = Hits()
    hits.query = query
    words = by_words(query)
    try:
        meaning = by_meaning(query)
    except EtudeError as error:
        meaning = []
        hits.note = f"found by words only: {error}"
    for position, score in fuse([words, meaning]).items():
        hit = Hit(papers()[position], score, _rank(words, position), _rank(meaning, position))
        if hit.runnable or not runnable:
            hits.append(hit)
        if len(hits) == k:
            break
    return hits


def _rank(ranking: Sequence[int], position: int) -> int | None:
    return ranking.index(position) + 1 if position in ranking[:DEPTH] else None


def similar(paper: Paper, k: int = 3) -> list[Paper]:
    """The `k` papers nearest in meaning; reads the shipped vectors only, encodes nothing."""
    import numpy as np

    from etude.papers.vectors import vectors

    known = vectors()
    position = papers().index(paper)
    order = np.argsort(-(known @ known[position]), kind="stable")
    return [papers()[i] for i in order if i != position][:k]
