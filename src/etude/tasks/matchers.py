"""What the task `match` compares: queries and items as vectors whose inner product ranks items.

Every class has ``fit(queries, items)`` on pairs, row by row, then ``encode_queries`` and
``encode_items``. All but the relative coordinates join both spaces by one linear map; what they
then take off an item's score, as a hub near to many queries, is a further coordinate of it.
"""

from __future__ import annotations

import numpy as np
import torch

from etude.core import require
from etude.embeddings.relative_representation import RelativeProjection, anchor_select
from etude.retrieval.dbnorm import hub_offset
from etude.tasks.measures import unit

__all__ = [
    "Csls", "DualBank", "LinearMap", "RelativeCoordinates", "distinct", "inverted_softmax",
    "learn_map",
]  # fmt: skip

MOST_IN_BANK = 10_000  # pairs that a bank holds
SCORES = 8_000_000  # numbers in memory


def distinct(items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row number of each different item's first row (G,), and every row's place in it (N,)."""
    plain = np.ascontiguousarray(items)
    whole = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    _, first, group = np.unique(whole, return_index=True, return_inverse=True)
    return first, group.ravel()


def learn_map(queries: np.ndarray, items: np.ndarray, penalty: float) -> np.ndarray:
    """(D + 1, E) ridge regression from unit queries to unit items, its intercept in the last row.

    Shrunk toward the identity where both spaces have one width, so that a large `penalty` leaves
    queries as they are, up to the difference of the means; else toward zero. It counts in
    multiples of the mean eigenvalue of the queries' covariance.
    """
    require(penalty > 0, "penalty", "positive", penalty)
    asked, wanted = unit(queries).astype(np.float64), unit(items).astype(np.float64)
    center, middle = asked.mean(axis=0), wanted.mean(axis=0)
    asked, wanted = asked - center, wanted - middle
    dim, width = asked.shape[1], wanted.shape[1]
    start = np.eye(dim) if dim == width else np.zeros((dim, width))
    gram = asked.T @ asked
    weight = penalty * max(float(np.trace(gram)) / dim, 1e-12)
    solved = np.linalg.solve(gram + weight * np.eye(dim), asked.T @ wanted + weight * start)
    return np.vstack([solved, middle - center @ solved]).astype(np.float32)


def _mapped(queries: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return unit(unit(queries) @ matrix[:-1] + matrix[-1])


class LinearMap:
    """A ridge regression from queries to items, then the cosine: the plain way to match."""

    def __init__(self, *, penalty: float = 1.0) -> None:
        self.penalty = penalty

    def fit(self, queries: np.ndarray, items: np.ndarray) -> None:
        """queries (N, D), items (N, E)."""
        self.map_ = learn_map(queries, items, self.penalty)

    def encode_queries(self, queries: np.ndarray) -> np.ndarray:
        """(B, D) -> (B, E)."""
        return _mapped(queries, self.map_)

    def encode_items(self, items: np.ndarray) -> np.ndarray:
        """(M, E) -> (M, E)."""
        return unit(items)


class DualBank:
    """The map, then the dual inverted softmax of `retrieval.dbnorm` over the training pairs."""

    def __init__(
        self, *, penalty: float = 1.0, query_scale: float = 12.0, gallery_scale: float = 4.0
    ) -> None:
        require(query_scale + gallery_scale > 0, "scales", "not both 0", query_scale)
        self.penalty, self.query_scale, self.gallery_scale = penalty, query_scale, gallery_scale

    def fit(self, queries: np.ndarray, items: np.ndarray) -> None:
        """queries (N, D), items (N, E)."""
        self.map_ = learn_map(queries, items, self.penalty)
        some = _bank(len(queries))
        stored = items[some]
        first, _ = distinct(stored)  # what many queries want is one item of the gallery's bank
        self.asked_, self.stored_ = _mapped(queries[some], self.map_), unit(stored[first])

    def encode_queries(self, queries: np.ndarray) -> np.ndarray:
        """(B, D) -> (B, E + 1)."""
        return np.pad(_mapped(queries, self.map_), ((0, 0), (0, 1)), constant_values=1)

    def encode_items(self, items: np.ndarray) -> np.ndarray:
        """(M, E) -> (M, E + 1), the last one minus the item's offset over the sum of scales."""
        offsets = []
        for some in _blocks(unit(items), len(self.asked_)):
            stored = self.stored_ @ some.T
            same = stored > 1 - 1e-5  # an item is no neighbor of itself
            stored[same & ~same.all(axis=0)] = -np.inf
            offsets.append(
                hub_offset(
                    self.asked_ @ some.T, stored, query_scale=self.query_scale,
                    gallery_scale=self.gallery_scale,
                )
            )  # fmt: skip
        taken = np.concatenate(offsets) / (self.query_scale + self.gallery_scale)
        return np.column_stack([unit(items), -taken]).astype(np.float32)


def inverted_softmax(*, penalty: float = 1.0, query_scale: float = 12.0) -> DualBank:
    """The bank of queries alone (Smith et al., arXiv:1702.03859)."""
    return DualBank(penalty=penalty, query_scale=query_scale, gallery_scale=0.0)


class Csls:
    """The map, then cosines less the item's mean to its k nearest training queries.

    Cross-domain similarity local scaling (Conneau et al., arXiv:1710.04087).
    """

    def __init__(self, *, penalty: float = 1.0, k: int = 10) -> None:
        require(k >= 1, "k", "at least 1", k)
        self.penalty, self.k = penalty, k

    def fit(self, queries: np.ndarray, items: np.ndarray) -> None:
        """queries (N, D), items (N, E)."""
        self.map_ = learn_map(queries, items, self.penalty)
        self.asked_ = _mapped(queries[_bank(len(queries))], self.map_)

    def encode_queries(self, queries: np.ndarray) -> np.ndarray:
        """(B, D) -> (B, E + 1)."""
        return np.pad(_mapped(queries, self.map_), ((0, 0), (0, 1)), constant_values=1)

    def encode_items(self, items: np.ndarray) -> np.ndarray:
        """(M, E) -> (M, E + 1), the last one minus half the mean cosine."""
        k = min(self.k, len(self.asked_))
        near = [
            np.sort(self.asked_ @ some.T, axis=0)[-k:].mean(axis=0)
            for some in _blocks(unit(items), len(self.asked_))
        ]
        return np.column_stack([unit(items), -0.5 * np.concatenate(near)]).astype(np.float32)


class RelativeCoordinates:
    """Both sides by their cosines to their own halves of `n_anchors` training pairs; no map."""

    def __init__(self, *, n_anchors: int = 300, bin_size: float = 0.0, seed: int = 0) -> None:
        require(n_anchors >= 1, "n_anchors", "at least 1", n_anchors)
        self.n_anchors, self.bin_size, self.seed = n_anchors, bin_size, seed

    def fit(self, queries: np.ndarray, items: np.ndarray) -> None:
        """queries (N, D), items (N, E)."""
        n = min(self.n_anchors, len(items))
        rows = anchor_select(items, n, strategy="random", seed=self.seed)
        self.asked_, self.stored_ = queries[rows], items[rows]

    def encode_queries(self, queries: np.ndarray) -> np.ndarray:
        """(B, D) -> (B, n_anchors)."""
        return self._relative(queries, self.asked_)

    def encode_items(self, items: np.ndarray) -> np.ndarray:
        """(M, E) -> (M, n_anchors)."""
        return self._relative(items, self.stored_)

    def _relative(self, rows: np.ndarray, anchors: np.ndarray) -> np.ndarray:
        project = RelativeProjection(bin_size=self.bin_size)
        found: np.ndarray = project(torch.from_numpy(rows), torch.from_numpy(anchors)).numpy()
        return unit(found)


def _bank(n: int) -> np.ndarray:
    """Row numbers of the pairs in the bank: all, or as many as it holds."""
    return np.sort(np.random.default_rng(0).permutation(n)[:MOST_IN_BANK])


def _blocks(items: np.ndarray, n_bank: int) -> list[np.ndarray]:
    step = max(1, SCORES // n_bank)
    return [items[start : start + step] for start in range(0, len(items), step)]
