"""Which documents a query's conditions and filters leave over."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from etude.core import refuse
from etude.papers.search.kernels import TITLE, phrase_rows
from etude.papers.search.query import Clause
from etude.papers.search.segment import AUTHOR, CATEGORY, FAMILY, Segment, days
from etude.papers.search.words import term

__all__ = ["Filter", "allowed"]

DATE = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")
VERSION = re.compile(r"(?:arxiv:)?(.+?)(?:v\d+)?", re.I)


@dataclass(frozen=True)
class Filter:
    """Conditions: clauses of the query, the first and last day, the family, whether it runs.

    Raises:
        EtudeError: a date that is none.
    """

    clauses: tuple[Clause, ...] = ()
    first: str = ""
    last: str = ""
    family: str = ""
    runnable: bool | None = None

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = getattr(self, name)
            if value and not DATE.fullmatch(value):
                refuse(name, "a date: YYYY-MM-DD, YYYY-MM or YYYY", value)

    @property
    def passes_all(self) -> bool:
        """Whether nothing is asked."""
        return self == Filter()


def allowed(segment: Segment, alive: np.ndarray, wanted: Filter) -> np.ndarray:
    """(N,) bool of the rows that are alive and pass; empty where all do."""
    if wanted.passes_all:
        return alive
    mask = alive.copy() if len(alive) else np.ones(len(segment), bool)
    if wanted.first:
        mask &= segment["low"] >= days(wanted.first)[0]
    if wanted.last:
        low, high = days(wanted.last)
        # The last day of a month or year is any of its days.
        high = low if wanted.last.count("-") == 2 else high // 100 * 100 + 31
        mask &= (segment["high"] <= high) & (segment["low"] > 0)
    if wanted.family:
        mask &= segment["family"] == np.uint64(term(wanted.family, FAMILY))
    if wanted.runnable is not None:
        mask &= segment["runnable"] == wanted.runnable
    for clause in wanted.clauses:
        held = _held(segment, clause, mask)
        mask &= ~held if clause.no else held
    return mask


def _held(segment: Segment, clause: Clause, mask: np.ndarray) -> np.ndarray:
    """(N,) bool of the rows that hold a clause; those outside of the mask may say no."""
    held: np.ndarray = np.zeros(len(segment), bool)
    if clause.field == "id":
        whole = VERSION.fullmatch(clause.words[0])
        ids = [clause.words[0], whole[1].lower() if whole else clause.words[0]]
        rows = segment.rows_of(ids)
        held[rows[rows >= 0]] = True
        return held
    kind = {"cat": CATEGORY, "au": AUTHOR}.get(clause.field, "")
    words = [term(word, kind) for word in clause.words]
    counts = np.zeros(len(segment), np.uint8) if len(words) < 256 else np.zeros(len(segment), int)
    for word in dict.fromkeys(words):
        rows, marks = segment.postings(word)
        counts[rows[marks >= TITLE] if clause.field == "ti" else rows] += 1
    held = counts == len(set(words))
    if clause.phrase and len(words) > 1 and held.any():
        first, last = {"ti": (0, 0), "au": (2, 2)}.get(clause.field, (0, 1))
        phrase = np.array([segment.place(word) for word in words], np.int64)
        held &= mask
        phrase_rows(segment["tokens"], segment["offsets"], 4, first, last, phrase, held)
    return held
