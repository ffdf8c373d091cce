"""Indexes that the task `encode` compares, each with its settings; codes alone: `tasks.codes`.

Every class has ``fit(vectors)`` on unit rows, `rungs` (its settings, cheapest first),
``turn(rung)`` to take another one, ``search(queries, k)`` -> row numbers (B, k) best first, and
`n_bytes`, what a vector takes in memory. Attributes that end in "_" are its state; all else is
made again from them. Those that verify by the full vectors read them where they lie, on disk if
they are a memory map, and count their codes alone.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from etude.core.funnel import Funnel
from etude.core.nearest import Exact
from etude.retrieval import BiGranularIndex
from etude.tasks.codes import components

__all__ = ["ExactSearch", "FaissIndex", "PrefixFunnel", "SignsVerified", "has_faiss"]


class ExactSearch:
    """All vectors in float32, every one read."""

    rungs: tuple[dict[str, Any], ...] = ({},)

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self.vectors_ = vectors

    def turn(self, rung: int) -> None:
        """There is but one setting."""

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        return Exact(self.vectors_).search(queries, k)[0]

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return 4.0 * self.vectors_.shape[1]


class SignsVerified:
    """Signs find candidates, full vectors decide: the index of `retrieval.bidr`."""

    rungs: tuple[dict[str, Any], ...] = tuple(
        {"n_near": near, "n_verified": verified}
        for near, verified in (
            (100, 30), (200, 50), (500, 100), (1000, 200), (2000, 300), (4000, 600), (8000, 1000)
        )
    )  # fmt: skip

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self.vectors_ = vectors
        self.turn(0)

    def turn(self, rung: int) -> None:
        """Take and verify so many candidates."""
        self.n_near_, self.n_verified_ = self.rungs[rung].values()

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        index = self._made()
        index.n_near, index.n_verified = self.n_near_, self.n_verified_
        return index.search(queries, k)[0]

    def _made(self) -> BiGranularIndex:
        if not hasattr(self, "_index"):
            self._index = BiGranularIndex(self.vectors_.shape[1]).add(self.vectors_)
        return self._index

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return self._made().memory_bytes / len(self.vectors_)


class PrefixFunnel:
    """A byte each of the first components, then of more, and full vectors decide."""

    rungs: tuple[dict[str, Any], ...] = tuple(
        {"n_first": first, "n_verified": verified}
        for first, verified in (
            (100, 20), (200, 40), (500, 60), (1000, 100), (2000, 200), (4000, 400), (8000, 600),
            (16_000, 1000),
        )
    )  # fmt: skip

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self.directions_ = components(vectors)
        self.vectors_ = vectors @ self.directions_
        self.turn(0)

    def turn(self, rung: int) -> None:
        """Keep so many after the first pass, and after the second."""
        self.n_first_, self.n_verified_ = self.rungs[rung].values()

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k)."""
        index = self._made()
        index.n_kept = (self.n_first_, self.n_verified_)
        return index.search(queries @ self.directions_, k)[0]

    def _made(self) -> Funnel:
        if not hasattr(self, "_index"):
            dim = self.vectors_.shape[1]
            sizes = (max(1, dim // 6), max(1, dim // 3)) if dim > 5 else (1,)
            n_kept = (100, 20)[: len(sizes)]
            self._index = Funnel(self.vectors_, sizes=sizes, n_kept=n_kept)
        return self._index

    @property
    def n_bytes(self) -> float:
        """Of one vector."""
        return self._made().memory_bytes / max(1, len(self.vectors_))


class FaissIndex:
    """A graph ("hnsw") or inverted lists ("ivf") of faiss over full vectors."""

    def __init__(self, *, kind: str = "hnsw") -> None:
        self.kind = kind
        steps = (16, 32, 64, 128, 256, 512) if kind == "hnsw" else (1, 2, 4, 8, 16, 32, 64, 128)
        self.rungs = tuple({"ef" if kind == "hnsw" else "n_probes": step} for step in steps)

    def fit(self, vectors: np.ndarray) -> None:
        """vectors (N, D)."""
        self.vectors_ = vectors
        self.turn(0)
        self._made()

    def turn(self, rung: int) -> None:
        """Look at so many nodes or lists."""
        self.effort_ = next(iter(self.rungs[rung].values()))

    def search(self, queries: np.ndarray, k: int) -> np.ndarray:
        """(B, D) -> (B, k); -1 where it found fewer."""
        index = self._made()
        if self.kind == "hnsw":
            index.hnsw.efSearch = self.effort_
        else:
            index.nprobe = min(self.effort_, index.nlist)
        found: np.ndarray = index.search(np.ascontiguousarray(queries), k)[1]
        return found

    def _made(self) -> Any:
        if not hasattr(self, "_index"):
            import faiss

            rows = np.ascontiguousarray(self.vectors_)
            lists = max(1, min(int(4 * len(rows) ** 0.5), len(rows) // 39))
            key = "HNSW16,Flat" if self.kind == "hnsw" else f"IVF{lists},Flat"
            self._index = faiss.index_factory(rows.shape[1], key, faiss.METRIC_INNER_PRODUCT)
            self._index.train(rows)
            self._index.add(rows)
        return self._index

    @property
    def n_bytes(self) -> float:
        """Of one vector: its numbers, and 32 links and more of 4 bytes, or an id of 8."""
        return 4.0 * self.vectors_.shape[1] + (136 if self.kind == "hnsw" else 8)


def has_faiss() -> bool:
    """Whether the peer is installed."""
    return importlib.util.find_spec("faiss") is not None
