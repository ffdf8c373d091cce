"""Search by prefixes: the first coordinates of every vector, then more of fewer, then all.

For vectors whose early coordinates tell most (Matryoshka embeddings, principal components). Each
piece of a prefix lies by itself in memory, eight bits a number on one scale for all, so that the
first pass reads `sizes[0]` bytes a vector and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from etude.core.errors import require
from etude.core.nearest import as_vectors, best, highest, in_threads, inner_products

__all__ = ["Funnel"]

SAMPLE = 16384  # rows or scores that scale and first cut are estimated from


class Funnel:
    """Inner-product search over (N, D) vectors; memory sizes[-1] bytes each beside the vectors.

    Args:
        vectors: (N, D), kept by reference where float32; a memory map stays on disk.
        sizes: growing lengths of the prefixes, the last at most D.
        n_kept: how many rows are left after each prefix, not growing; the last are verified in
            full. The first cut is estimated from a sample of the scores and may leave fewer.
        n_threads: threads that share a search.
    """

    def __init__(
        self, vectors: np.ndarray, *, sizes: Sequence[int] = (64, 128),
        n_kept: Sequence[int] = (16_000, 1_000), n_threads: int = 1,
    ) -> None:  # fmt: skip
        require(n_threads >= 1, "n_threads", "at least 1", n_threads)
        self.vectors, _ = as_vectors(vectors, "vectors")
        dim = self.vectors.shape[1]
        grows = len(sizes) > 0 and all(a < b for a, b in pairwise([0, *sizes, dim + 1]))
        require(grows, "sizes", f"growing, from 1 to {dim}", sizes)
        falls = len(n_kept) == len(sizes) and all(a >= b for a, b in pairwise([*n_kept, 1]))
        require(falls, "n_kept", "as many as sizes, positive and not growing", n_kept)
        self.sizes, self.n_kept, self.n_threads = tuple(sizes), tuple(n_kept), n_threads
        # One scale keeps products comparable; the widest coordinate is clipped at 5 deviations.
        some = self.vectors[:: len(self.vectors) // SAMPLE + 1, : sizes[-1]]
        spread = 5 * float(np.sqrt((some**2).mean(axis=0).max())) if len(some) else 0.0
        self._scale = 127 / spread if spread else 1.0
        self._pieces = [self._coded(self.vectors, *ends) for ends in pairwise([0, *sizes])]

    def _coded(self, vectors: np.ndarray, first: int, last: int) -> np.ndarray:
        codes = np.empty((len(vectors), last - first), dtype=np.int8)
        for start in range(0, len(vectors), 65536):
            part = slice(start, start + 65536)
            codes[part] = np.rint(vectors[part, first:last] * self._scale).clip(-127, 127)
        return codes

    @property
    def memory_bytes(self) -> int:
        """Bytes of the prefixes."""
        return sum(piece.nbytes for piece in self._pieces)

    def search(self, queries: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) -> row numbers (B, min(k, N)) int64 and float32 products, best first.

        Equal ones come by row. Raises EtudeError for k below 1, another width or values not
        finite.
        """
        require(k >= 1, "k", "at least 1", k)
        queries, _ = as_vectors(queries, "queries", self.vectors.shape[1])
        shape = (len(queries), min(k, len(self.vectors)))
        ids, scores = np.empty(shape, np.int64), np.empty(shape, np.float32)
        alone = len(queries) < self.n_threads  # then threads share a query's scan

        def answer(first: int, last: int) -> None:
            for b in range(first, last):
                rows = self._shortlist(queries[b], k, self.n_threads if alone else 1)
                found = inner_products(self.vectors, rows, queries[b])
                ids[b], scores[b] = best(found, rows, k)

        if ids.size:
            in_threads(answer, len(queries), 1 if alone else self.n_threads)
        return ids, scores

    def _shortlist(self, query: np.ndarray, k: int, n_threads: int) -> np.ndarray:
        from etude.core import scan

        # the query's own scale changes no order and uses all eight bits
        widest = np.abs(query[: self.sizes[-1]]).max() or 1.0
        small = np.rint(query[: self.sizes[-1]] * (127 / widest)).astype(np.int8)
        pieces = [small[first:last] for first, last in pairwise([0, *self.sizes])]
        head = self._pieces[0]
        scores = np.empty(len(head), dtype=np.int32)
        in_threads(
            lambda a, b: scan.small_dots(head[a:b], pieces[0], scores[a:b]), len(head), n_threads
        )
        n_kept = max(self.n_kept[0], k)
        if n_kept >= len(head):
            rows = np.arange(len(head))
        else:
            sample = scores[:: max(1, len(scores) // SAMPLE)]
            place = len(sample) - max(1, round(1.05 * n_kept * len(sample) / len(scores)))
            rows = np.flatnonzero(scores >= np.partition(sample, max(place, 0))[max(place, 0)])
            if len(rows) < k:  # the sample missed: all scores decide
                rows = highest(scores, n_kept)
        kept = scores[rows]
        for n, piece in enumerate(self._pieces):
            if n > 0:
                scan.small_dots_at(piece, rows, pieces[n], kept)
            chosen = highest(kept, max(self.n_kept[n], k))
            rows, kept = rows[chosen], kept[chosen]
        return rows
