"""Vectors as codes of one bit a dimension: the codes of ``retrieval.bidr`` without a codebook.

A code holds the signs of a randomly rotated vector, so that each says as much as another, and has
a factor of its own: with it the signs' inner product with the rotated query estimates that of the
vectors (``core.codec``). Two steps find candidates. Counting unlike bits, one instruction for 64
of them, leaves the nearest few of a hundred; the estimates, from a table of what each byte of a
code is worth, leave those that ``ranking`` reads the vectors of.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from etude.core.codec import Codec, random_rotation

__all__ = ["ask", "encode"]

SEED = 384


@cache
def codec(dim: int) -> Codec:
    """The same everywhere; without a center, so that codes of all segments can be compared."""
    return Codec(random_rotation(dim, SEED), np.zeros(dim, np.float32))


def encode(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) vectors -> codes (N, ceil(D / 64)) uint64 and factors (N,) float32."""
    codes, factors = codec(vectors.shape[1]).encode(np.asarray(vectors))
    return codes.view(np.uint64), factors


def ask(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A query (D,) float32 -> its own code (W,) uint64, and the table (8 W, 256) float32."""
    table, signs, _ = codec(len(vector)).ask(vector)
    assert signs is not None
    return signs.view(np.uint64), np.ascontiguousarray(table, np.float32)
