"""Search by inner product over rows of a matrix: exact, and a shortlist from compact codes.

Exact search returns the k best rows, equal scores by lowest row. One query reads every vector
once, so memory's speed is its limit; many queries share a reading by a matrix product in blocks.
Both score what may belong to the k best by one and the same loop, so a batch returns, bit for
bit, what its queries return one by one.

A shortlist reads codes of a byte for a few coordinates. Where the byte holds signs, counting
unlike bits finds the near rows first, eight bytes a machine word, and only these are scored.

The compiled loops are imported on first use, so that importing this module stays cheap.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TypeVar

import numpy as np

from etude.core.errors import require

__all__ = [
    "Exact",
    "alike",
    "as_vectors",
    "best",
    "highest",
    "in_threads",
    "inner_products",
    "shortlist",
]

WORK_BYTES = 16 * 2**20  # of the block of scores, whatever the number of vectors and queries
FEW = 3  # so many queries are faster one by one than by a matrix product
MOST_QUERIES = 1024  # that share a reading
FEW_WORDS = 12  # of a code: so many the compiler may unroll, more it had better loop over
UNIT = 2.0**-24  # rounding of float32
Found = TypeVar("Found")


def as_vectors(
    array: np.ndarray, name: str, dim: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The rows as contiguous float32 (no copy where they are), and their squared lengths (N,).

    Raises:
        EtudeError: not (N, D), of another width than `dim`, or not finite: with the first row.
    """
    wide = f"(N, {dim})" if dim is not None else "(N, D) with D of at least 1"
    fits = array.ndim == 2 and array.shape[1] >= 1 and dim in (None, array.shape[1])
    require(fits, name, f"an array of shape {wide}", array)
    require(array.dtype.kind in "fiu", name, "numbers", array)
    rows = np.ascontiguousarray(array, dtype=np.float32)
    squares = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), 65536):  # a memory map is not pulled in as a whole
        block = rows[start : start + 65536]
        np.einsum("nd,nd->n", block, block, out=squares[start : start + 65536])
    bad = np.flatnonzero(~np.isfinite(squares))
    if len(bad):
        require(False, f"{name}, row {bad[0]},", "finite, of a length that is", rows[bad[0]])
    return rows, squares


def alike(full: np.ndarray, other: np.ndarray | None, name: str) -> np.ndarray:
    """`other` checked as `as_vectors` does, and of the shape of `full`; None gives `full`."""
    if other is None:
        return full
    require(other.shape == full.shape, name, f"of shape {full.shape}", other)
    return as_vectors(other, name)[0]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="etude-scan")


os.register_at_fork(after_in_child=_pool.cache_clear)  # its threads stayed with the parent


def in_threads(work: Callable[[int, int], Found], n: int, n_threads: int) -> list[Found]:
    """work(first, last) over equal consecutive parts of range(n), one a thread, in order."""
    n_threads = max(1, min(n_threads, n))
    cuts = [n * part // n_threads for part in range(n_threads + 1)]
    parts = list(pairwise(cuts))
    waiting = [_pool().submit(work, *part) for part in parts[1:]]
    return [work(*parts[0]), *(one.result() for one in waiting)]


def best(scores: np.ndarray, ids: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k highest of scores (M,) with their ids, best first, equal scores by lowest id."""
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def highest(scores: np.ndarray, n: int) -> np.ndarray:
    """Ascending positions of the n highest of scores (M,), of equal ones the first; all if few."""
    if n >= len(scores):
        return np.arange(len(scores))
    bar = np.partition(scores, len(scores) - n)[len(scores) - n]
    above = np.flatnonzero(scores > bar)
    equal = np.flatnonzero(scores == bar)[: n - len(above)]
    return np.sort(np.concatenate([above, equal]))


class Exact:
    """Exact inner-product search over (N, D) vectors, kept by reference where float32.

    Beside the vectors a search takes at most WORK_BYTES (16 MiB) for scores, 12 bytes for each
    result, and a float32 copy of the queries where they are of another type.

    Args:
        vectors: (N, D), finite; a memory map is read block by block.
        n_threads: threads that share the loops; the matrix product has those of the BLAS.
    """

    def __init__(self, vectors: np.ndarray, *, n_threads: int = 1) -> None:
        require(n_threads >= 1, "n_threads", "at least 1", n_threads)
        self.vectors, squares = as_vectors(vectors, "vectors")
        self.n_threads = n_threads
        self.longest = float(np.sqrt(squares.max(initial=0)))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) -> row numbers (B, min(k, N)) int64 and float32 inner products, best first.

        Raises:
            EtudeError: k below 1, queries of another width or not finite.
        """
        require(k >= 1, "k", "at least 1", k)
        queries, squares = as_vectors(queries, "queries", self.vectors.shape[1])
        k = min(k, len(self.vectors))
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        ids = np.full(scores.shape, -1, dtype=np.int64)
        if k == 0 or len(queries) == 0:
            return ids, scores
        # Each of two summations errs by at most D * UNIT * |x| * |q|, whatever its order.
        slack = 2.02 * UNIT * self.vectors.shape[1] * self.longest * np.sqrt(squares)
        for start in range(0, len(queries), MOST_QUERIES):
            part = slice(start, start + MOST_QUERIES)
            search = self._one_by_one if len(queries[part]) <= FEW else self._together
            search(queries[part], slack[part], scores[part], ids[part])
        return ids, scores

    def _one_by_one(
        self, queries: np.ndarray, slack: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> None:
        from etude.core import scan

        for b in range(len(queries)):
            one = slice(b, b + 1)

            def part(first: int, last: int, one: slice = one) -> tuple[np.ndarray, np.ndarray]:
                found = np.full_like(scores[one], -np.inf), np.full_like(ids[one], -1)
                rough = np.empty((1, 16384), dtype=np.float32)
                for start in range(first, last, rough.shape[1]):
                    block = self.vectors[start : min(start + rough.shape[1], last)]
                    scan.dots(block, queries[one.start], rough[0])
                    scan.raise_best(
                        block, queries[one], rough[:, : len(block)], slack[one], start, *found
                    )
                return found

            parts = in_threads(part, len(self.vectors), self.n_threads)
            every = [np.concatenate([found[i][0] for found in parts]) for i in (0, 1)]
            used = every[1] >= 0
            ids[b], scores[b] = best(every[0][used], every[1][used], scores.shape[1])

    def _together(
        self, queries: np.ndarray, slack: np.ndarray, scores: np.ndarray, ids: np.ndarray
    ) -> None:
        from etude.core import scan

        n_rows = int(np.clip(WORK_BYTES // (4 * len(queries)), 256, 16384))
        rough = np.empty((len(queries), n_rows), dtype=np.float32)
        for start in range(0, len(self.vectors), n_rows):
            block = self.vectors[start : start + n_rows]
            some = rough[:, : len(block)]
            np.matmul(queries, block.T, out=some)

            def part(
                first: int, last: int, block: np.ndarray = block, some: np.ndarray = some,
                start: int = start,
            ) -> None:  # fmt: skip
                mine = slice(first, last)
                scan.raise_best(
                    block, queries[mine], some[mine], slack[mine], start, scores[mine], ids[mine]
                )

            in_threads(part, len(queries), self.n_threads)


def inner_products(vectors: np.ndarray, rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """(n,) float32 <vectors[rows[n]], query> without a copy of the rows."""
    from etude.core import scan

    read_ahead(vectors, rows)
    out = np.empty(len(rows), dtype=np.float32)
    scan.dots_at(vectors, rows, query, out)
    return out


def read_ahead(vectors: np.ndarray, rows: np.ndarray) -> None:
    """Ask the system for the rows of a memory map all at once, so that a disk that does not hold
    them in memory reads them side by side; touched in turn, each would wait for the one before,
    and bring 128 KB with it."""
    mapping, starts, sizes = pages(vectors, rows)
    if mapping is not None:
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            mapping.madvise(mmap.MADV_WILLNEED, start, size)


def pages(vectors: np.ndarray, rows: np.ndarray) -> tuple[mmap.mmap | None, np.ndarray, np.ndarray]:
    """The map that holds `vectors`, and where in it each row's pages start, and its bytes from
    there; None where there is none, or the system takes no advice."""
    owner: object = vectors
    while isinstance(owner, np.ndarray):
        owner = owner.base
    none = np.empty(0, dtype=np.int64)
    if not (isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_WILLNEED") and len(rows)):
        return None, none, none
    whole = np.frombuffer(owner, dtype=np.uint8)
    place = vectors.ctypes.data - whole.ctypes.data + rows * vectors.strides[0]
    starts = place // mmap.PAGESIZE * mmap.PAGESIZE
    return owner, starts, place + vectors.shape[1] * vectors.itemsize - starts


def shortlist(
    codes: np.ndarray,
    factors: np.ndarray,
    table: np.ndarray,
    *,
    n_kept: int,
    signs: np.ndarray | None = None,
    n_near: int = 0,
    n_threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose scores factors[i] * sum over p of table[p, codes[i, p]] are highest.

    Args:
        codes: (N, P) uint8, contiguous; with `signs` P is a multiple of 8.
        factors: (N,) float32.
        table: (P, 256) float32, the query's score of each code.
        n_kept: how many rows to return.
        signs: (P,) uint8, the query's own code: only the `n_near` rows with the fewest bits
            unlike it are scored, at an eighth of the time. None scores every row.

    Returns:
        min(n_kept, N) rows int64 in ascending order, and their scores.
    """
    from etude.core import scan

    n, table = len(codes), np.ascontiguousarray(table, dtype=np.float32)
    if signs is None:
        rows, scores = np.arange(n), np.empty(n, dtype=np.float32)
        in_threads(lambda a, b: scan.table_scores(codes[a:b], table, scores[a:b]), n, n_threads)
    else:
        words, asked = codes.view(np.uint64), signs.view(np.uint64)
        query = tuple(asked) if len(asked) <= FEW_WORDS else asked
        parts = in_threads(lambda a, b: scan.near_codes(words, query, a, b, n_near), n, n_threads)
        rows, far = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
        if len(rows) > n_near:  # each thread brought its own nearest
            rows = np.sort(rows[np.argsort(far, kind="stable")[:n_near]])
        scores = np.empty(len(rows), dtype=np.float32)
        scan.table_scores_at(codes, rows, table, scores)
    scores *= factors[rows]
    kept = highest(scores, n_kept)
    return rows[kept], scores[kept]
