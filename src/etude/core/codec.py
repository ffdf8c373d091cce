"""Vectors to codes of a byte a part, and a query to the table of what each code is worth.

With a codebook this is a product quantizer: part p of the rotated vector gives the number of its
nearest row. Without one a part is eight coordinates and the byte their signs, most significant
first: a product quantizer, too, whose rows are the corners of a cube, but one that counting
unlike bits can search.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

__all__ = ["Codec", "random_rotation"]

BLOCK = 8192  # rows that are encoded at a time
BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
CORNERS = BITS.astype(np.float32) * 2 - 1  # (256, 8)


def random_rotation(dim: int, seed: int) -> np.ndarray:
    """(M, D) float32 with orthonormal columns, M = D rounded up to a multiple of 64."""
    noise = np.random.default_rng(seed).standard_normal((-(-dim // 64) * 64, dim))
    rotation: np.ndarray = np.linalg.qr(noise)[0].astype(np.float32)
    return rotation


@dataclass
class Codec:
    """rotation (M, D) or None for none, center (D,), codebook (P, K, M / P) or None for signs;
    all float32."""

    rotation: np.ndarray | None
    center: np.ndarray
    codebook: np.ndarray | None = None

    @property
    def code_bytes(self) -> int:
        """P."""
        return len(self._rotated_center) // 8 if self.codebook is None else len(self.codebook)

    def rotate(self, vectors: np.ndarray) -> np.ndarray:
        """(..., D) -> (..., M)."""
        return vectors if self.rotation is None else vectors @ self.rotation.T

    @cached_property
    def _rotated_center(self) -> np.ndarray:
        return self.rotate(self.center)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as the constructor takes them."""
        named = {"rotation": self.rotation, "center": self.center, "codebook": self.codebook}
        return {name: array for name, array in named.items() if array is not None}

    def encode(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) -> codes (N, P) uint8 and factors (N,) float32, by which a decoded row is
        multiplied so that its inner product with the rotated x - center is |x - center|^2;
        1 with a codebook, whose rows have their length."""
        codes = np.empty((len(vectors), self.code_bytes), dtype=np.uint8)
        factors = np.ones(len(vectors), dtype=np.float32)
        for start in range(0, len(vectors), BLOCK):
            part = slice(start, start + BLOCK)
            rotated = self.rotate(vectors[part] - self.center)
            if self.codebook is None:
                codes[part] = np.packbits(rotated > 0, axis=1)
                sums = np.abs(rotated).sum(axis=1)
                squares = np.einsum("nd,nd->n", rotated, rotated)
                factors[part] = squares / np.maximum(sums, np.finfo(np.float32).tiny)
            else:
                # argmin |v - c|^2 = argmax <v, c> - |c|^2 / 2
                parts = rotated.reshape(len(rotated), len(self.codebook), -1)
                near = np.einsum("npd,pkd->npk", parts, self.codebook, optimize=True)
                near -= 0.5 * (self.codebook**2).sum(axis=2)
                codes[part] = near.argmax(axis=2)
        return codes, factors

    def ask(self, query: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, float]:
        """(D,) -> table (P, K), the query's signs (P,) uint8 or None, and <query, center>.

        <query, x> is about factor * sum over p of table[p, code[p]] + <query, center>. The signs
        are those of query - center, as the documents' are.
        """
        rotated = self.rotate(query)
        offset = float(query @ self.center)
        if self.codebook is not None:
            parts = rotated.reshape(len(self.codebook), -1)
            return np.einsum("pd,pkd->pk", parts, self.codebook), None, offset
        table = rotated.reshape(-1, 8) @ CORNERS.T
        return table, np.packbits(rotated - self._rotated_center > 0), offset
