"""Vectors as codes of one bit a dimension: the signs after a random rotation.

The rotation spreads what a vector says over all dimensions, so that each sign carries as much as
another; the share of signs in which two unit vectors differ then estimates their angle,

    E[differing / D] = angle / pi.                                          (1)

The nearest by code are candidates only: ``Index`` reads their vectors and ranks them by the
exact inner product.

Source of (1): M. Charikar, "Similarity estimation techniques from rounding algorithms", STOC
2002.
"""

from __future__ import annotations

from functools import cache

import numpy as np

__all__ = ["encode_bits"]


@cache
def rotation(dim: int) -> np.ndarray:
    """A (D, 64 ceil(D / 64)) float32 map with orthogonal rows, the same everywhere."""
    wide = -(-dim // 64) * 64
    noise = np.random.default_rng(384).standard_normal((wide, wide))
    q, r = np.linalg.qr(noise)
    # The signs of r's diagonal are LAPACK's choice; with them fixed q is unique.
    return (q * np.sign(np.diag(r)))[:dim].astype(np.float32)


def encode_bits(vectors: np.ndarray) -> np.ndarray:
    """(N, D) vectors -> (N, ceil(D / 64)) uint64 codes, in pieces that fit the cache."""
    n, dim = vectors.shape
    codes = np.empty((n, -(-dim // 64)), np.uint64)
    for start in range(0, n, 8192):
        turned = np.asarray(vectors[start : start + 8192], np.float32) @ rotation(dim)
        bits = np.packbits(turned > 0, axis=1, bitorder="little")
        codes[start : start + 8192] = bits.view(np.uint64)
    return codes
