"""The documents of an index at one moment: segments, what died in them, and the common facts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from mmap import MADV_DONTNEED, PAGESIZE
from typing import TypeVar

import numpy as np

from etude.core.nearest import in_threads
from etude.papers.search.kernels import count_alive
from etude.papers.search.segment import Segment

__all__ = ["B", "K1", "Snapshot"]

K1 = 1.2  # how soon further occurrences of a word stop to count
B = 0.75  # how much a longer document needs more of them
MANY = 50_000  # documents from which on segments are searched by several threads
MOST_THREADS = 8
MOST_MAPPED = 1_500_000_000  # bytes of files in memory, beside some 350 MB of the process itself
T = TypeVar("T")


def _mapped() -> float:
    """Bytes of files that are in this process's memory; without an answer, as if too many."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[2]) * PAGESIZE
    except (OSError, ValueError, IndexError):
        return math.inf


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
        n = len(self.segments)
        n_threads = 1 if self.n < MANY else min(MOST_THREADS, os.cpu_count() or 1)
        found = in_threads(lambda a, b: [work(place) for place in range(a, b)], n, n_threads)
        return [one for part in found for one in part]

    def each_of(
        self, numbers: np.ndarray, work: Callable[[int, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """(N,) float32 of documents' numbers: work(place, rows) of every segment with some."""
        found = np.empty(len(numbers), np.float32)
        # A stable order by number keeps each segment's rows together, whatever order they have.
        order = np.argsort(numbers, kind="stable")
        ends = np.searchsorted(numbers[order], self.bases)
        for place in np.flatnonzero(np.diff(ends)):
            here = order[ends[place] : ends[place + 1]]
            found[here] = work(int(place), numbers[here] - self.bases[place])
        return found

    def places(self, words: np.ndarray) -> list[np.ndarray]:
        """Where each of (M,) uint64 terms is in each segment, or -1."""
        return [segment.places(words) for segment in self.segments]

    def frequencies(
        self, words: np.ndarray, places: list[np.ndarray] | None = None, *, living: bool = True
    ) -> np.ndarray:
        """(M,) int64: the documents that hold each of (M,) uint64 terms in title or text.

        With `living` those that died are left out, which takes a look at each. `places` are
        those of the terms, where they are known.
        """
        total = np.zeros(len(words), np.int64)
        for place, at in enumerate(self.places(words) if places is None else places):
            segment, alive = self.segments[place], self.alive[place]
            if living and len(alive):
                total += [count_alive(segment.postings_at(p)[0], alive) for p in at]
            elif len(segment["terms"]):
                starts = segment["starts"]
                total += np.where(at >= 0, starts[at + 1] - starts[at], 0)
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
        """Let go of the mapped pages once they are many; they stay in the system's cache.

        Each document that is looked at maps its neighbors too: without this, a process that
        answers many queries ends with all files in its memory.
        """
        for kind in ("seldom", "often"):  # as long as the first will do, the second stay
            if _mapped() <= MOST_MAPPED:
                break
            for segment in self.segments:
                for mapped in segment.maps.get(kind, ()):
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
