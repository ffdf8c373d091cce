r"""Furniture sets: look up each piece of a room by its view, and let the other pieces judge.

A photo shows several pieces, often half hidden; wanted is the set of catalog identities. Each is
found by a learned embedding of its view; what usually stands together settles doubtful matches.

Embedding f. A Siamese network learns from pairs of views (a, b) by two networks
on top. One classifies each view into a pseudo attribute, the group g of its identity in a
clustering (k-means) of the training identities' own features. One tells from the difference
whether both views show the same identity:

    loss = CE(c(f(a)), g_a) + CE(c(f(b)), g_b) + weight * BCE(v(|f(a) - f(b)|), [a is b])  (1)

so that v is symmetric in the pair. Search takes for piece i the k identities of the highest

    s_i(x) = max over the catalog's views of x of cos(f(piece), f(view))                   (2)

Context. Vectors u, w of identities are learned from which of them share a room, against negative
samples n drawn by frequency to the power 3/4 (skip-gram):

    loss = -log sigmoid(u_a . w_b) - sum_n log sigmoid(-u_a . w_n)                         (3)

Beginning with the best by view as each piece's choice c_i, a few rounds re-rank each piece's
candidates, all pieces of a room at once; none is added:

    r_i(x) = s_i(x) + weight * mean over the other pieces j of cos(u_x, u_(c_j))           (4)

Source: Liu, Zhang, Zhang, Zhang, Yu, Zhou, "Furnishing Your Room by What You See: An End-to-End
Furniture Set Retrieval Framework with Rich Annotated Benchmark Dataset", 2019, arXiv:1911.09299.
Only abstract, introduction and first figure were at hand. The steps are the paper's. Not found in
the paper: the forms of (1), (3) and (4), which are ours, its weights and its number of groups.
Departure: detection (a Mask R-CNN with a classifier on the mask) is left out; pieces are given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from etude.core import Card, require

__all__ = [
    "FurnitureSetRetriever",
    "ContextReranker",
    "SiameseMultiTask",
    "make_room_sets",
    "pseudo_attributes",
]

CARD = Card(
    slug="furniture_set_retrieval",
    family="retrieval",
    title="Furnishing Your Room by What You See: An End-to-End Furniture Set Retrieval Framework "
    "with Rich Annotated Benchmark Dataset",
    year=2019,
    arxiv="1911.09299",
    move="Find each piece of a room by a learned embedding of its view, then re-rank its "
    "candidates by how well they go with those of the other pieces.",
    task="experiment",
    claim="On rooms of largely hidden garments in styles, re-ranking by the other pieces finds the "
    "identity first more often than the view and how often an identity is placed at all.",
    baseline="popularity",
    metric="recall_at_1",
    better="higher",
    published="abstract: each module effective, on 24 thousand images with 170 thousand pieces of "
    "20 thousand identities; no single figure",
    fidelity="protocol",
    cost="M",
    data=("fashion_mnist_rooms",),
    departs=(
        "Detection is left out: the pieces of a room are given.",
        "The forms of the losses and of the context score are ours.",
    ),
)


class FurnitureSetRetriever:
    """Search by view (2), then context (4).

    Args:
        context: a fitted ``ContextReranker``, or None for the order by view.
        k: candidates of a piece, at least 1.
        weight: of context in (4), at least 0; with 0 the order is that by view.
        n_rounds: rounds of (4), at least 1.
    """

    def __init__(
        self, context: ContextReranker | None = None, *, k: int = 10, weight: float = 0.5,
        n_rounds: int = 3,
    ) -> None:  # fmt: skip
        require(k >= 1, "k", "at least 1", k)
        require(0 <= weight < np.inf, "weight", "at least 0", weight)
        require(n_rounds >= 1, "n_rounds", "at least 1", n_rounds)
        self.context, self.k, self.weight, self.n_rounds = context, k, weight, n_rounds

    def fit(self, vectors: np.ndarray, labels: np.ndarray) -> FurnitureSetRetriever:
        """Keep the catalog: (N, D) embedded views and (N,) their identities 0..M-1, all shown."""
        self.vectors_, self.labels_ = _unit("vectors", vectors), np.asarray(labels)
        require(self.labels_.shape == (len(vectors),), "labels", f"({len(vectors)},)", labels)
        shown = np.unique(self.labels_)
        every = np.array_equal(shown, np.arange(len(shown)))
        require(every, "labels", "0..M-1, each at least once", labels)
        return self

    def retrieve(self, queries: np.ndarray, rooms: np.ndarray) -> np.ndarray:
        """(B, D) embedded pieces, (B,) ids of their rooms -> (B, k) identities, best first.

        Raises:
            EtudeError: not fitted, widths or lengths that differ, values that are not finite.
        """
        require(hasattr(self, "vectors_"), "FurnitureSetRetriever", "fitted first", "no catalog")
        queries, rooms = _unit("queries", queries), np.asarray(rooms)
        wide = self.vectors_.shape[1]
        require(queries.shape[1] == wide, "queries", f"{wide} wide", queries)
        require(rooms.shape == (len(queries),), "rooms", f"({len(queries)},)", rooms)
        scores = np.full((len(queries), int(self.labels_.max()) + 1), -np.inf)
        np.maximum.at(scores.T, self.labels_, self.vectors_ @ queries.T)  # (2)
        found = np.argsort(-scores, axis=1, kind="stable")[:, : self.k]
        if self.context is None:
            return found
        seen = np.take_along_axis(scores, found, axis=1)
        for _ in range(self.n_rounds):
            fits = self.context.compatibility(found, found[:, 0], rooms)
            order = np.argsort(-(seen + self.weight * fits), axis=1, kind="stable")  # (4)
            found, seen = (np.take_along_axis(a, order, axis=1) for a in (found, seen))
        return found


class SiameseMultiTask(nn.Module):
    """The embedding with its two tasks, equation (1).

    Args:
        dim: width D of a view's features.
        n_classes: number of pseudo attributes.
        hidden_dim: width of the hidden layers; half of it is the embedding's.
        weight: of verification in (1), at least 0.
        attribute_weight: of the two classification terms, 1 in (1); 0 leaves verification.
    """

    def __init__(
        self, dim: int, n_classes: int, *, hidden_dim: int = 128, weight: float = 1.0,
        attribute_weight: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = {"dim": dim, "n_classes": n_classes, "hidden_dim": hidden_dim // 2}
        for name, size in sizes.items():
            require(size >= 1, name, "at least 1 (hidden_dim 2)", size)
        require(0 <= weight < np.inf, "weight", "at least 0", weight)
        require(0 <= attribute_weight < np.inf, "attribute_weight", "at least 0", attribute_weight)
        self.weight, self.attribute_weight = weight, attribute_weight
        half = hidden_dim // 2
        self.embed = nn.Sequential(
            nn.Linear(dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, half)
        )
        self.classify = nn.Linear(half, n_classes)
        self.compare = nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Linear(half, 1))

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, hidden_dim // 2) embeddings; search compares them by the cosine."""
        return self.embed(features)

    def verify(self, anchor: Tensor, positive: Tensor) -> Tensor:
        """(B,) log-odds that two embeddings show one identity; symmetric."""
        odds: Tensor = self.compare((anchor - positive).abs())[:, 0]
        return odds

    def loss(self, pairs: Tensor, groups: Tensor, same: Tensor) -> Tensor:
        """Mean of (1): pairs (B, 2, D), groups (B, 2) int64, same (B,) bool."""
        require(pairs.ndim == 3 and pairs.shape[1] == 2, "pairs", "(B, 2, D)", pairs)
        require(groups.shape == pairs.shape[:2], "groups", f"({len(pairs)}, 2)", groups)
        require(same.shape == groups.shape[:1], "same", f"({len(pairs)},)", same)
        first, second = self(pairs[:, 0]), self(pairs[:, 1])
        named = F.cross_entropy(self.classify(first), groups[:, 0])
        named = named + F.cross_entropy(self.classify(second), groups[:, 1])
        told = F.binary_cross_entropy_with_logits(self.verify(first, second), same.to(first.dtype))
        return self.attribute_weight * named + self.weight * told  # (1)


def pseudo_attributes(
    vectors: np.ndarray, labels: np.ndarray, *, n_groups: int = 16, seed: int = 0
) -> np.ndarray:
    """(M,) int64: the group of each identity 0..M-1, by k-means of the means of its views.

    Of vectors (N, D) and their identities labels (N,). Raises EtudeError for fewer identities
    than groups or values that are not finite.
    """
    vectors, labels = np.asarray(vectors, dtype=np.float64), np.asarray(labels)
    require(vectors.ndim == 2 and bool(np.isfinite(vectors).all()), "vectors", "(N, D)", vectors)
    require(labels.shape == vectors.shape[:1], "labels", f"({len(vectors)},)", labels)
    counts = np.bincount(labels)
    require(bool((counts > 0).all()), "labels", "0..M-1, each at least once", labels)
    require(1 <= n_groups <= len(counts), "n_groups", f"in 1..{len(counts)}", n_groups)
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, labels, vectors)
    means /= counts[:, None]
    rng = np.random.default_rng(seed)
    start, far = [int(rng.integers(len(means)))], np.full(len(means), np.inf)
    while len(start) < n_groups:  # the next one in proportion to the squared distance
        far = np.minimum(far, ((means - means[start[-1]]) ** 2).sum(axis=1) + 1e-12)
        start.append(int(rng.choice(len(means), p=far / far.sum())))
    found: np.ndarray = kmeans2(means, means[start], iter=20, minit="matrix")[1]
    return found.astype(np.int64)


class ContextReranker(nn.Module):
    """Identities' vectors u from which of them share a room, equation (3).

    Args:
        n_identities: M, at least 2.
        dim: width of u and w.
        generator: of the initial vectors.
    """

    def __init__(
        self, n_identities: int, *, dim: int = 32, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        require(n_identities >= 2, "n_identities", "at least 2", n_identities)
        require(dim >= 1, "dim", "at least 1", dim)
        start = torch.randn(2, n_identities, dim, generator=generator) * dim**-0.5
        self.u, self.w = nn.Parameter(start[0]), nn.Parameter(start[1])

    def fit(
        self, sets: Sequence[np.ndarray], *, n_steps: int = 400, lr: float = 0.03,
        n_negatives: int = 5, seed: int = 0,
    ) -> ContextReranker:  # fmt: skip
        """Learn from rooms, each an array of identities; 256 pairs a step, AdamW."""
        pairs = np.array([(a, b) for s in sets for a in s for b in s if a != b], dtype=np.int64)
        require(len(pairs) > 0, "sets", "rooms of two pieces or more", sets)
        require(min(n_steps, n_negatives) >= 1, "n_steps, n_negatives", "at least 1", n_steps)
        m = len(self.u)
        require(pairs.min() >= 0 and pairs.max() < m, "sets", f"identities in 0..{m - 1}", sets)
        frequency = torch.from_numpy(np.bincount(pairs[:, 0], minlength=m)) ** 0.75
        generator, known = torch.Generator().manual_seed(seed), torch.from_numpy(pairs)
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=1e-2)
        for _ in range(n_steps):
            a, b = known[torch.randint(len(known), (256,), generator=generator)].T
            n = torch.multinomial(frequency, 256 * n_negatives, True, generator=generator)
            optimizer.zero_grad()
            self.loss(a, b, n.reshape(256, -1)).backward()
            optimizer.step()
        return self

    def loss(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """Mean of (3): ids (B,), (B,) and (B, n)."""
        near = (self.u[anchor] * self.w[positive]).sum(dim=1)
        far = (self.u[anchor][:, None] * self.w[negative]).sum(dim=2)
        return -(F.logsigmoid(near) + F.logsigmoid(-far).sum(dim=1)).mean()  # (3)

    @torch.no_grad()
    def compatibility(
        self, candidates: np.ndarray, choices: np.ndarray, rooms: np.ndarray
    ) -> np.ndarray:
        """(B, k): the mean of (4) for candidates (B, k), given all pieces' choices (B,); a piece
        alone in its room has 0."""
        u = F.normalize(self.u).double().numpy()
        where, room = np.unique(rooms, return_inverse=True)
        total = np.zeros((len(where), u.shape[1]))
        np.add.at(total, room, u[choices])
        others = np.bincount(room)[room] - 1
        context = (total[room] - u[choices]) / np.maximum(others, 1)[:, None]
        context[others == 0] = 0.0
        return np.asarray(np.einsum("bkd,bd->bk", u[candidates], context))


def make_room_sets(
    categories: np.ndarray, *, n_rooms: int = 200, n_pieces: int = 5, n_styles: int = 6,
    purity: float = 0.85, seed: int = 0, room_seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Identities (P,) and rooms (P,) of all pieces, for identities with `categories` (M,).

    Each identity has a style at random. A room has `n_pieces` of different categories, each of
    the room's style with probability `purity` (where the category has it), else of any. Another
    `room_seed` draws other rooms of the same styles.
    """
    kinds = np.unique(categories)
    require(1 <= n_pieces <= len(kinds), "n_pieces", f"in 1..{len(kinds)}", n_pieces)
    require(min(n_rooms, n_styles) >= 1, "n_rooms, n_styles", "at least 1", (n_rooms, n_styles))
    require(0 <= purity <= 1, "purity", "in [0, 1]", purity)
    styles = np.random.default_rng([seed, 69]).integers(0, n_styles, len(categories))
    rng = np.random.default_rng([seed, 69, room_seed])
    found = []
    for _ in range(n_rooms):
        style = rng.integers(n_styles)
        for kind in rng.permutation(kinds)[:n_pieces]:
            able = np.flatnonzero(categories == kind)
            alike = able[styles[able] == style]
            found.append(rng.choice(alike if len(alike) and rng.random() < purity else able))
    return np.array(found), np.repeat(np.arange(n_rooms), n_pieces)


def _unit(name: str, values: np.ndarray) -> np.ndarray:
    rows = np.asarray(values, dtype=np.float64)
    require(rows.ndim == 2 and rows.size > 0, name, "(N, D), not empty", rows)
    require(bool(np.isfinite(rows).all()), name, "finite", rows)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
