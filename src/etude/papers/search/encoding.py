"""The vectors of new documents: given, kept from before, or encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from etude.core import require
from etude.papers.search.document import Document
from etude.papers.search.snapshot import Snapshot

__all__ = ["Encode", "Tell", "vectors_for"]

Encode = Callable[[Sequence[str]], np.ndarray]
Tell = Callable[[int, int], None]
DIM = 384  # of the vectors, where there are none yet
BATCH = 64  # texts that are encoded between two words of progress


def vectors_for(
    now: Snapshot, chosen: list[Document], old: np.ndarray, given: np.ndarray | None,
    encode: Encode | None, tell: Tell | None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(N, D) vectors of documents, and (N,) bool which have one.

    old (N,) are the numbers of the documents that they replace, or -1: where the text is the
    same, so is the vector, and nothing is encoded.
    """
    n = len(chosen)
    dim = int(now.segments[0]["vectors"].shape[1]) if now.segments else None
    if given is not None:
        _fits(given, n, dim)
        return given, np.ones(n, bool)
    have = np.zeros(n, bool)
    vectors: np.ndarray | None = None
    was = np.flatnonzero(old >= 0)
    if len(was):
        sums = np.array([list(chosen[place].sum) for place in was], np.uint8)
        same = (now.gather("sums", old[was]) == sums).all(axis=1)
        was = was[same & now.gather("encoded", old[was])]
    if len(was):
        vectors = np.zeros((n, dim or DIM), np.float32)
        vectors[was], have[was] = now.gather("vectors", old[was]), True
    missing = np.flatnonzero(~have) if encode is not None else np.empty(0, np.int64)
    if tell:
        tell(n - len(missing), n)
    for start in range(0, len(missing), BATCH):
        places = missing[start : start + BATCH]
        assert encode is not None
        new = np.asarray(encode([chosen[place].encoded for place in places]), np.float32)
        _fits(new, len(places), dim)
        if vectors is None:
            vectors = np.zeros((n, new.shape[1]), np.float32)
        vectors[places], have[places] = new, True
        if tell:
            tell(n - len(missing) + start + len(places), n)
    return np.zeros((n, dim or DIM), np.float16) if vectors is None else vectors, have


def _fits(vectors: np.ndarray, n: int, dim: int | None) -> None:
    wide = f"({n}, {dim or 'D'}), one a document"
    fits = vectors.ndim == 2 and len(vectors) == n and dim in (None, vectors.shape[1])
    require(fits, "vectors", f"of shape {wide}", vectors)
