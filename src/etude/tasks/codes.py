"""Codes alone: what is kept of a vector is all that a search reads; see `etude.tasks.indexes`."""

from __future__ import annotations

from typing import Any

import numpy as np

from etude.core.codec import Codec, random_rotation
from etude.core.nearest import Exact, highest, shortlist

__all__ = ["EightBits", "OneBit", "Prefixes", "ProductCodes", "components"]

SAMPLE = 10_000  # rows that directions and centroids are learned from


class EightBits:
    """Every coordinate as one byte, on one scale for all; the query alike."""

    rungs: tuple[dict[str, Any], ...] = ({},)

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        widest = max(float(np.abs(vectors).max()), 1e-12)
        self.codes_ = np.rint(vectors * (127 / widest)).astype(np.int8)

    def turn(self, rung: int) -> None:
        """There is but one setting."""

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        from etude.core import scan

        scores, found = np.empty(len(self.codes_), np.int32), []
        for query in queries:
            small = np.rint(query * (127 / max(float(np.abs(query).max()), 1e-12)))
            scan.small_dots(self.codes_, small.astype(np.int8), scores)
            found.append(_best(scores, k))
        return np.stack(found)

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return float(self.codes_.shape[1])


class OneBit:
    """Signs after a random rotation, weighed by the query's exact coordinates."""

    rungs: tuple[dict[str, Any], ...] = ({},)

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self.rotation_, self.center_ = random_rotation(vectors.shape[1], 0), vectors.mean(axis=0)
        self.codes_, self.factors_ = Codec(self.rotation_, self.center_).encode(vectors)

    def turn(self, rung: int) -> None:
        """There is but one setting."""

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        codec = Codec(self.rotation_, self.center_)
        return np.stack(
            [_listed(self.codes_, self.factors_, codec.ask(query)[0], k) for query in queries]
        )

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return self.codes_.shape[1] + 4.0


class Prefixes:
    """The first coordinates alone, as Matryoshka embeddings are made for; or components.

    Principal components are uncentered, since inner products are to be kept.
    """

    sizes = (16, 32, 64, 128, 256, 512)

    def __init__(self, *, principal: bool = False) -> None:
        self.principal = principal

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self._vectors, dim = vectors, vectors.shape[1]
        self.rungs = tuple({"n_components": size} for size in self.sizes if size < dim)
        self.rungs = self.rungs or ({"n_components": max(1, dim // 2)},)
        self._directions = components(vectors) if self.principal else np.eye(dim, dtype=np.float32)
        self.turn(0)

    def turn(self, rung: int) -> None:
        """Keep as many directions as the setting says."""
        self.kept_ = self._directions[:, : self.rungs[rung]["n_components"]]
        self.reduced_ = self._vectors @ self.kept_

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        return Exact(self.reduced_).search(queries @ self.kept_, k)[0]

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return 4.0 * self.reduced_.shape[1]


class ProductCodes:
    """A byte for each part of the rotated vector: OPQ as `constrained_clustering_pq` starts it."""

    parts = (8, 16, 32, 48, 96)

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self._vectors, dim = vectors, vectors.shape[1]
        few = tuple(n for n in self.parts if 2 * n <= dim)
        self.rungs = tuple({"n_parts": n} for n in few or (1,))
        self.turn(0)

    def turn(self, rung: int) -> None:
        """Learn codes of so many parts."""
        import torch

        from etude.embeddings import ConstrainedPQ

        rows, n_parts = self._vectors, self.rungs[rung]["n_parts"]
        some = np.random.default_rng(0).permutation(len(rows))[:SAMPLE]
        width = -(-rows.shape[1] // n_parts) * n_parts  # zeros make it a multiple
        n_codes = int(min(256, max(2, len(some) // 4)))
        quantizer = ConstrainedPQ(width, n_parts=n_parts, n_codes=n_codes)
        quantizer.initialize(torch.from_numpy(_padded(rows[some], width)), n_rounds=5)
        self.rotation_ = quantizer.get_buffer("rotation").numpy().copy()
        self.centroids_ = quantizer.centroids.detach().numpy().copy()
        codec = Codec(self.rotation_, np.zeros(width, np.float32), self.centroids_)
        self.codes_ = codec.encode(_padded(rows, width))[0]

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        codec = Codec(self.rotation_, np.zeros(len(self.rotation_), np.float32), self.centroids_)
        ones = np.ones(len(self.codes_), np.float32)
        asked = _padded(queries, len(self.rotation_))
        return np.stack([_listed(self.codes_, ones, codec.ask(query)[0], k) for query in asked])

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return float(self.codes_.shape[1])


def components(vectors: np.ndarray) -> np.ndarray:
    """(D, D) principal directions, the strongest first, from a sample of the rows."""
    some = vectors[:: len(vectors) // SAMPLE + 1].astype(np.float64)
    _, directions = np.linalg.eigh(some.T @ some)
    return np.ascontiguousarray(directions[:, ::-1], dtype=np.float32)


def _best(scores: np.ndarray, k: int) -> np.ndarray:
    rows = highest(scores, k)
    return rows[np.argsort(-scores[rows], kind="stable")]


def _listed(codes: np.ndarray, factors: np.ndarray, table: np.ndarray, k: int) -> np.ndarray:
    rows, scores = shortlist(codes, factors, table, n_kept=k)
    return rows[np.argsort(-scores, kind="stable")]


def _padded(rows: np.ndarray, width: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
