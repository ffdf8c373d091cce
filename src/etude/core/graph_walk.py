"""The compiled loops of a navigable graph. Import this inside functions only: numba takes time.

Sums may be added in any order here, which is what lets the compiler use vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["beam", "choose"]

compiled = njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})


@compiled
def beam(
    vectors: np.ndarray,
    links: np.ndarray,
    query: np.ndarray,
    entries: np.ndarray,
    ef: int,
    seen: np.ndarray,
    stamp: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The `ef` nearest that a walk from `entries` finds: ids and squared distances, in order.

    `vectors` (N, D), `links` (N, M) ids filled up by -1, `query` (D,), `entries` int64 ids.
    `seen` (N,) int64 holds the stamp of the last walk that came by a point.

    One sorted pool does what two heaps do elsewhere: the nearest point not yet opened is opened
    next, and once all of the pool are open no neighbor can enter it any more.
    """
    ids = np.empty(ef, np.int64)
    far = np.empty(ef, np.float64)
    opened = np.zeros(ef, np.bool_)
    size = 0
    todo = entries
    while True:
        for j in range(len(todo)):
            i = todo[j]
            if i < 0:
                break
            if seen[i] == stamp:
                continue
            seen[i] = stamp
            d = 0.0
            for c in range(len(query)):
                d += (vectors[i, c] - query[c]) ** 2
            if size == ef and d >= far[ef - 1]:
                continue
            place = min(size, ef - 1)
            while place > 0 and far[place - 1] > d:
                ids[place], far[place] = ids[place - 1], far[place - 1]
                opened[place] = opened[place - 1]
                place -= 1
            ids[place], far[place], opened[place] = i, d, False
            size = min(size + 1, ef)
        at = 0
        while at < size and opened[at]:
            at += 1
        if at == size:
            return ids[:size], far[:size]
        opened[at] = True
        todo = links[ids[at]]


@compiled
def choose(
    vectors: np.ndarray, point: int, ids: np.ndarray, most: int, diverse: bool
) -> np.ndarray:
    """At most `most` of `ids` as neighbors of `point`, the nearest first.

    Where `diverse`, a candidate that is closer to a neighbor kept so far than to the point is
    left out: the walk reaches it through that neighbor. A list that fits is kept whole.
    """
    n, dim = len(ids), vectors.shape[1]
    far = np.zeros(n, np.float64)
    for j in range(n):
        for c in range(dim):
            far[j] += (vectors[ids[j], c] - vectors[point, c]) ** 2
    order = np.argsort(far, kind="mergesort")
    kept = np.empty(min(n, most), np.int64)
    size = 0
    for j in order:
        good = True
        if diverse and n > most:
            for other in range(size):
                d = 0.0
                for c in range(dim):
                    d += (vectors[ids[j], c] - vectors[kept[other], c]) ** 2
                if d < far[j]:
                    good = False
                    break
        if good:
            kept[size] = ids[j]
            size += 1
            if size == most:
                break
    return kept[:size]
