"""The compiled loops of vector search. Import this inside functions only: numba takes time.

Every loop runs on one core without the interpreter's lock, so threads may share the work; none
uses numba's own threads, which neither forked servers nor several callers at once can share.
What was compiled is kept beside the .pyc files (in the user's cache folder where those cannot
be written) and is trusted as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

__all__ = [
    "bits_set", "dots", "dots_at", "near_codes", "raise_best", "small_dots", "small_dots_at",
    "table_scores", "table_scores_at",
]  # fmt: skip

Loop = TypeVar("Loop", bound=Callable[..., Any])


def _compiled(loop: Loop) -> Loop:
    # fastmath: a sum may be reordered, which is what lets it use vector registers. Not "nnan"
    # and "ninf": the lists of the best start at minus infinity.
    compiled: Any = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
    found: Loop = compiled(loop)
    return found


def _population(typing: Any, word: Any) -> Any:
    """One machine instruction where there is one: the number of bits set."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


bits_set: Any = intrinsic(_population)  # of a uint64, for compiled loops


@_compiled
def dots(vectors: np.ndarray, query: np.ndarray, out: np.ndarray) -> None:
    """out[i] = <vectors[i], query>, in some order of summation."""
    for i in range(vectors.shape[0]):
        total = np.float32(0)
        for d in range(vectors.shape[1]):
            total += vectors[i, d] * query[d]
        out[i] = total


@_compiled
def dots_at(vectors: np.ndarray, rows: np.ndarray, query: np.ndarray, out: np.ndarray) -> None:
    """out[n] = <vectors[rows[n]], query>."""
    for n in range(rows.shape[0]):
        i = rows[n]
        total = np.float32(0)
        for d in range(vectors.shape[1]):
            total += vectors[i, d] * query[d]
        out[n] = total


@_compiled
def raise_best(
    vectors: np.ndarray, queries: np.ndarray, rough: np.ndarray, slack: np.ndarray, first: int,
    scores: np.ndarray, ids: np.ndarray,
) -> None:  # fmt: skip
    """Bring the lists of the best up to date with one block of vectors.

    `rough` (B, n) are inner products with the block's n vectors, each within slack[b] of
    what this loop computes itself; the row numbers start at `first`. `scores` and `ids` (B, k)
    are sorted by score, best first, then by id; unused places hold minus infinity. Only a
    vector whose rough score comes within the slack of the list is scored again, always by this
    very loop, so that how the rough scores came about cannot be seen in the result.
    """
    k = scores.shape[1]
    for b in range(rough.shape[0]):
        bar = scores[b, k - 1] - slack[b]
        for start in range(0, rough.shape[1], 64):
            stop, above = min(start + 64, rough.shape[1]), 0
            for i in range(start, stop):  # vector registers: most stretches hold nothing
                above += rough[b, i] >= bar
            if above == 0:
                continue
            for i in range(start, stop):
                if rough[b, i] < bar:
                    continue
                total = np.float32(0)
                for d in range(vectors.shape[1]):
                    total += vectors[i, d] * queries[b, d]
                if total <= scores[b, k - 1] and ids[b, k - 1] >= 0:
                    continue  # ids come in ascending order, so an equal score is a later id
                place = k - 1
                while place > 0 and (ids[b, place - 1] < 0 or scores[b, place - 1] < total):
                    scores[b, place], ids[b, place] = scores[b, place - 1], ids[b, place - 1]
                    place -= 1
                scores[b, place], ids[b, place] = total, first + i
                bar = scores[b, k - 1] - slack[b]


@_compiled
def near_codes(
    codes: np.ndarray, query: tuple[Any, ...] | np.ndarray, first: int, last: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows in [first, last) with the fewest bits unlike the query's, ascending.

    codes (N, W) uint64; query W words, a tuple or an array: of a tuple the compiler knows W and
    unrolls the sum, over an array it loops in vector registers, which pays from about W = 13 on.
    Of rows at the same distance the first are taken. Returns rows int64 and distances.
    """
    room = 4 * count + 64
    rows, far = np.empty(room, np.int64), np.empty(room, np.int64)
    seen = np.zeros(64 * len(query) + 2, np.int64)
    radius, held, within = 64 * len(query), 0, 0  # within: how many held have distance <= radius
    bound = radius + 1
    for i in range(first, last):
        unlike = np.uint64(0)
        for w in range(len(query)):
            unlike += bits_set(codes[i, w] ^ query[w])
        distance = np.int64(unlike)
        if distance < bound:
            rows[held], far[held] = i, distance
            held += 1
            seen[distance] += 1
            within += 1
            while within - seen[radius] >= count:
                within -= seen[radius]
                radius -= 1
            bound = radius if within >= count else radius + 1
            if held == room:  # at most 2 * count of them lie within the radius
                kept = 0
                for n in range(held):
                    if far[n] <= radius:
                        rows[kept], far[kept] = rows[n], far[n]
                        kept += 1
                held = kept
    spare = count - (within - seen[radius])  # places for those exactly at the radius
    kept = 0
    for n in range(held):
        if far[n] < radius or (far[n] == radius and spare > 0):
            spare -= far[n] == radius
            rows[kept], far[kept] = rows[n], far[n]
            kept += 1
    return rows[:kept].copy(), far[:kept].copy()


@_compiled
def table_scores(codes: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """out[i] = sum over p of table[p, codes[i, p]]; codes (N, P) uint8, table (P, 256)."""
    for i in range(codes.shape[0]):
        total = np.float32(0)
        for p in range(codes.shape[1]):
            total += table[p, codes[i, p]]
        out[i] = total


@_compiled
def table_scores_at(
    codes: np.ndarray, rows: np.ndarray, table: np.ndarray, out: np.ndarray
) -> None:
    """`table_scores` of some rows: out[n] belongs to codes[rows[n]]."""
    for n in range(rows.shape[0]):
        total = np.float32(0)
        for p in range(codes.shape[1]):
            total += table[p, codes[rows[n], p]]
        out[n] = total


@_compiled
def small_dots(codes: np.ndarray, query: np.ndarray, out: np.ndarray) -> None:
    """out[i] = <codes[i], query>; codes (N, D) int8, query (D,) int8, out int32."""
    for i in range(codes.shape[0]):
        total = np.int32(0)
        for d in range(codes.shape[1]):
            total += np.int32(codes[i, d]) * np.int32(query[d])
        out[i] = total


@_compiled
def small_dots_at(codes: np.ndarray, rows: np.ndarray, query: np.ndarray, out: np.ndarray) -> None:
    """out[n] += <codes[rows[n]], query>."""
    for n in range(rows.shape[0]):
        i = rows[n]
        total = np.int32(0)
        for d in range(codes.shape[1]):
            total += np.int32(codes[i, d]) * np.int32(query[d])
        out[n] += total
