"""The documents of an index at one moment: segments, what died in them, and the common facts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from mmap import MADV_DONTNEED
from typing import TypeVar

import numpy as np

from etude.papers.search.kernels import count_alive
from etude.papers.search.segment import Segment

__all__ = ["B", "K1", "Snapshot"]

K1 = 1.2  # how soon further occurrences of a word stop to count
B = 0.75  # how much a longer document needs more of them
MANY = 50_000  # documents from which on segments are searched by several threads
T = TypeVar("T")


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "etude-search")


@dataclass(frozen=True)
class Snapshot:
    """Immutable; a search works on one from its start to its end.

    `dead` holds a sorted int64 array of rows for each segment.
    """

    segments: tuple[Segment, ...] = ()
    dead: tuple[np.ndarray, ...] = ()
    alive: tuple[np.ndarray, ...] = field(init=False)  # (N,) bool, empty = all
    norms: tuple[np.ndarray, ...] = field(init=False)
    bases: np.ndarray = field(init=False)  # the number of each segment's first row
    n: int = field(init=False)

    def __post_init__(self) -> None:
        alive, total, n = [], 0, 0
        for segment, dead in zip(self.segments, self.dead, strict=True):
            mask = np.ones(len(segment) if len(dead) else 0, bool)
            mask[dead] = False
            alive.append(mask)
            n += len(segment) - len(dead)
            total += segment.total_length - int(segment["lengths"][dead].sum(dtype=np.int64))
        mean = max(total / n, 1.0) if n else 1.0
        norms = tuple(
            (K1 * (1 - B + B * (s["lengths"] / mean))).astype(np.float32) for s in self.segments
        )
        bases = np.cumsum([0, *map(len, self.segments)], dtype=np.int64)
        for name, value in (("alive", tuple(alive)), ("norms", norms), ("bases", bases), ("n", n)):
            object.__setattr__(self, name, value)

    def each(self, work: Callable[[int], T]) -> list[T]:
        """`work` of every segment's place, by several threads where there are many documents."""
        places = range(len(self.segments))
        if self.n < MANY or len(places) < 2:
            return [work(place) for place in places]
        return list(_pool().map(work, places))

    def frequency(self, word: int) -> int:
        """The number of living documents that hold a term in title or text."""
        total = 0
        for segment, alive in zip(self.segments, self.alive, strict=True):
            rows, _ = segment.postings(word)
            total += count_alive(rows, alive) if len(alive) else len(rows)
        return total

    def frequencies(self, words: np.ndarray) -> np.ndarray:
        """The documents that hold each of (M,) uint64 terms, those that died counted too."""
        total = np.zeros(len(words), np.int64)
        for segment in self.segments:
            terms = segment["terms"]
            if len(terms):
                at = np.minimum(np.searchsorted(terms, words), len(terms) - 1)
                total += np.where(
                    terms[at] == words, segment["starts"][at + 1] - segment["starts"][at], 0
                )
        return total

    def split(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The segments and rows of documents' numbers."""
        places = np.searchsorted(self.bases, numbers, side="right") - 1
        return places, numbers - self.bases[places]

    def gather(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """An array's rows of documents, in the order of their numbers."""
        places, rows = self.split(numbers)
        found: np.ndarray | None = None
        for place in np.unique(places):
            here = places == place
            values = self.segments[place][name]
            if found is None:
                found = np.empty((len(numbers), *values.shape[1:]), values.dtype)
            found[here] = values[rows[here]]
        return np.empty(0) if found is None else found

    def release(self) -> None:
        """Let go of the mapped pages of vectors and words; they stay in the system's cache.

        Each document that is looked at maps its neighbors too: without this, a process that
        answers many queries ends with all files in its memory.
        """
        for segment in self.segments:
            for mapped in segment.maps:
                mapped.madvise(MADV_DONTNEED)

    def ids(self, numbers: Sequence[int] | np.ndarray) -> list[str]:
        """The ids of documents' numbers."""
        places, rows = self.split(np.asarray(numbers, np.int64))
        pairs = zip(places, rows, strict=True)
        return [self.segments[place].id_of(int(row)) for place, row in pairs]

    def numbers(self, ids: Sequence[str]) -> np.ndarray:
        """The living documents' numbers, -1 where an id is unknown."""
        found = np.full(len(ids), -1, np.int64)
        for place, segment in enumerate(self.segments):
            rows = segment.rows_of(ids)
            known = rows >= 0
            if len(self.alive[place]):
                known &= self.alive[place][rows]
            found[known] = rows[known] + self.bases[place]
        return found
