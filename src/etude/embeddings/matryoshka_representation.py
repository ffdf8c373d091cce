r"""Matryoshka: train one embedding whose every prefix classifies, then cut it to the size at hand.

An embedding spreads what it knows over all its coordinates, so cutting it short loses more than
its share. Ask during training that the first 8 coordinates suffice, and the first 16, and so on
up to all d, and it learns from coarse to fine: the early coordinates are in every term. With z
the embedding, z_1:m its first m coordinates and M the sizes:

    loss = sum_{m in M} c_m CE(W^(m) z_1:m + b^(m), y)                                     (1)

summed, not averaged, over the sizes, with c_m = 1. Each size has a head of its own, or all share
one (MRL-E), of which size m uses the first m columns and the whole bias:

    W^(m) = W_{:, 1:m},   b^(m) = b                                                        (2)

At use, a short prefix searches the whole collection and longer ones reorder what it found:

    adaptive   the n_candidates nearest at short_dim, reordered at long_dim                (3)
    funnel     at each of the growing `dims`, reorder, then keep the next, smaller count   (4)

Distances are those of prefixes that were scaled to unit length after cutting.

Source: Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022, arXiv:2205.13147;
released code RAIVNLab/MRL (MRL.py, retrieval/reranking.ipynb).
Departures: the release's reranking scales the documents' prefixes but not the queries'; by L2
distance that changes no order, so one unit-length inner product serves both here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["MatryoshkaLoss", "MatryoshkaHead", "adaptive_retrieval", "funnel_retrieval"]

CARD = Card(
    slug="matryoshka_representation",
    family="embeddings",
    title="Matryoshka Representation Learning",
    year=2022,
    arxiv="2205.13147",
    move="add up the classification losses of nested prefixes of one embedding",
    task="train",
    claim="the first 8 of 64 coordinates, trained with all prefixes at once, classify more "
    "accurately than an embedding of 8 coordinates trained by itself",
    baseline="cross_entropy",
    metric="accuracy",
    better="higher",
    published="abstract: representations at least as accurate as independently trained "
    "low-dimensional ones, and up to 14 times smaller at the same ImageNet-1K accuracy",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="RAIVNLab/MRL",
    departs=(
        "The paper's cascade, which classifies by longer prefixes until one is confident, is left "
        "out.",
        "Queries, too, are scaled to unit length before a rerank; no order changes.",
    ),
    search={"tied": (False, True)},
    example={"dim": 8, "n_classes": 3, "sizes": (2, 4, 8)},
)


def _nested_sizes(dim: int, sizes: Sequence[int] | None) -> tuple[int, ...]:
    """The sizes M, growing, the last one `dim`; by default 8, 16, 32, ... and `dim`."""
    require(dim >= 1, "dim", "at least 1", dim)
    if sizes is None:
        powers = [2**i for i in range(3, dim.bit_length())]
        return (*(m for m in powers if m < dim), dim)
    chosen = tuple(sizes)
    growing = all(a < b for a, b in zip((0, *chosen), chosen, strict=False))
    require(
        growing and chosen[-1:] == (dim,), "sizes", f"positive, growing, the last one {dim}", sizes
    )
    return chosen


class MatryoshkaHead(nn.Module):
    """Linear heads on nested prefixes.

    Args:
        dim: width D of the embeddings.
        n_classes: number of classes K.
        sizes: M, growing, the last one `dim`; None takes 8, 16, 32, ... and `dim`.
        tied: share one head among the sizes, equation (2).
        generator: of the initial weights, uniform within 1 / sqrt(size), biases within
            1 / sqrt(dim).

    Raises:
        EtudeError: sizes that do not nest, or a value outside its range.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        sizes: Sequence[int] | None = None,
        tied: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        self.dim, self.n_classes, self.tied = dim, n_classes, tied
        self.sizes = _nested_sizes(dim, sizes)
        self.heads = nn.ModuleList(
            nn.Linear(m, n_classes) for m in (self.sizes[-1:] if tied else self.sizes)
        )
        with torch.no_grad():
            for weight in self.parameters():
                bound = 1 / math.sqrt(weight.shape[-1] if weight.ndim == 2 else dim)
                weight.uniform_(-bound, bound, generator=generator)

    def forward(self, embeddings: Tensor) -> list[Tensor]:
        """embeddings (B, D) -> one (B, K) logits a size, in the order of `sizes`."""
        return [self.logits_at(embeddings, m) for m in self.sizes]

    def logits_at(self, embeddings: Tensor, size: int) -> Tensor:
        """Logits (B, K) from the first `size` coordinates of embeddings (B, D' >= size).

        Raises:
            EtudeError: `size` is not one of the sizes, or the embeddings are narrower.
        """
        require(size in self.sizes, "size", f"one of {self.sizes}", size)
        wide = embeddings.ndim == 2 and embeddings.shape[1] >= size
        require(wide, "embeddings", f"(B, D) with D at least {size}", embeddings)
        head = self.heads[0 if self.tied else self.sizes.index(size)]
        assert isinstance(head, nn.Linear)
        return F.linear(embeddings[:, :size], head.weight[:, :size], head.bias)  # (2)


class MatryoshkaLoss(nn.Module):
    """Equation (1), with the heads that it trains.

    Args:
        dim: width D of the embeddings.
        n_classes: number of classes K.
        sizes: M, growing, the last one `dim`; None takes 8, 16, 32, ... and `dim`.
        tied: share one head among the sizes (MRL-E).
        weights: c_m, one a size; None takes 1 for each.
        generator: of the initial weights.

    Raises:
        EtudeError: sizes that do not nest, or a value outside its range.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        sizes: Sequence[int] | None = None,
        tied: bool = False,
        weights: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.tied = tied
        self.head = MatryoshkaHead(dim, n_classes, sizes=sizes, tied=tied, generator=generator)
        self.sizes = self.head.sizes
        self.weights = (1.0,) * len(self.sizes) if weights is None else tuple(weights)
        finite = all(0 <= c < math.inf for c in self.weights)
        fits = len(self.weights) == len(self.sizes) and finite
        require(fits, "weights", f"{len(self.sizes)} non-negative numbers", weights)

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """embeddings (B, D), target (B,) int64 -> sum over the sizes of mean losses, in nats."""
        require(target.shape == embeddings.shape[:1], "target", "(B,) class ids", target)
        logits = self.head(embeddings)
        if embeddings.dtype in (torch.float16, torch.bfloat16):
            logits = [one.float() for one in logits]
        losses = [F.cross_entropy(one, target) for one in logits]
        weighted = [c * loss for c, loss in zip(self.weights, losses, strict=True)]
        return torch.stack(weighted).sum()  # (1)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits (B, K) from all D coordinates."""
        return self.head.logits_at(embeddings, self.sizes[-1])

    def logits_at(self, embeddings: Tensor, size: int) -> Tensor:
        """Logits (B, K) from the first `size` coordinates of embeddings (B, D' >= size)."""
        return self.head.logits_at(embeddings, size)


def _unit_prefix(vectors: np.ndarray, size: int) -> np.ndarray:
    """The first `size` columns, scaled to unit length after cutting; rows of zeros stay."""
    cut = np.asarray(vectors[..., :size], dtype=np.float64)
    unit: np.ndarray = cut / np.maximum(np.linalg.norm(cut, axis=-1, keepdims=True), 1e-12)
    return unit


def _check_search(queries: np.ndarray, documents: np.ndarray) -> None:
    for name, value in (("queries", queries), ("documents", documents)):
        require(value.ndim == 2 and len(value) > 0, name, "(N, D) with rows", value)
    same = queries.shape[1] == documents.shape[1]
    require(same, "queries", f"as wide as documents, {documents.shape[1]}", queries)


def _nearest(similarity: np.ndarray, n: int) -> np.ndarray:
    """Columns of the `n` largest of each row, largest first; ties by column."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :n]


def funnel_retrieval(
    queries: np.ndarray,
    documents: np.ndarray,
    *,
    first_dim: int = 8,
    dims: Sequence[int] = (16, 32, 64, 128, 2048),
    n_kept: Sequence[int] = (200, 100, 50, 25, 10),
) -> tuple[np.ndarray, int]:
    """Equation (4): search at `first_dim`, then reorder ever fewer by ever longer prefixes.

    Args:
        queries: (B, D).
        documents: (N, D).
        first_dim: prefix that the whole collection is searched with.
        dims: prefixes that reorder, growing; those longer than D are cut to D.
        n_kept: how many of the best so far each of `dims` reorders, not growing.

    Returns:
        (B, min(n_kept[-1], N)) int64 row numbers, nearest first; and the multiplications that
        one query costs, those of the first search over all N documents included.

    Raises:
        EtudeError: shapes that do not fit, or steps that do not narrow.
    """
    _check_search(queries, documents)
    require(first_dim >= 1, "first_dim", "at least 1", first_dim)
    require(len(dims) == len(n_kept) > 0, "n_kept", f"{len(dims)} counts, one a dim", n_kept)
    steps = list(dims)
    growing = all(a <= b for a, b in zip([first_dim, *steps], steps, strict=False))
    require(growing, "dims", f"growing from first_dim = {first_dim}", dims)
    falling = all(a >= b for a, b in zip(n_kept, list(n_kept)[1:], strict=False))
    require(falling and n_kept[-1] >= 1, "n_kept", "positive and not growing", n_kept)
    width = documents.shape[1]
    start = min(first_dim, width)
    short = _unit_prefix(queries, start) @ _unit_prefix(documents, start).T
    found = _nearest(short, n_kept[0])
    cost = len(documents) * start
    for dim, n in zip((min(dim, width) for dim in steps), n_kept, strict=True):
        found = found[:, :n]
        candidates = _unit_prefix(documents[found], dim)  # (B, n, dim)
        near = np.einsum("bnd,bd->bn", candidates, _unit_prefix(queries, dim))
        found = np.take_along_axis(found, _nearest(near, n), axis=1)  # (4)
        cost += found.shape[1] * dim
    return found, cost


def adaptive_retrieval(
    queries: np.ndarray,
    documents: np.ndarray,
    *,
    short_dim: int = 16,
    long_dim: int | None = None,
    n_candidates: int = 200,
    top_k: int = 10,
) -> tuple[np.ndarray, int]:
    """Equation (3): shortlist by a short prefix, reorder the shortlist by a long one.

    Args:
        queries: (B, D).
        documents: (N, D).
        short_dim: prefix that the whole collection is searched with.
        long_dim: prefix that reorders; None takes all D.
        n_candidates: length of the shortlist.
        top_k: how many of it to return, at most `n_candidates`.

    Returns:
        (B, min(top_k, N)) int64 row numbers, nearest first; and the multiplications that one
        query costs, those of the search over all N documents included.

    Raises:
        EtudeError: shapes that do not fit, or a value outside its range.
    """
    _check_search(queries, documents)
    last = documents.shape[1] if long_dim is None else long_dim
    require(1 <= short_dim <= last, "short_dim", f"from 1 to long_dim = {last}", short_dim)
    require(1 <= top_k <= n_candidates, "top_k", f"from 1 to {n_candidates}", top_k)
    found, cost = funnel_retrieval(
        queries, documents, first_dim=short_dim, dims=(last,), n_kept=(n_candidates,)
    )  # (3)
    return found[:, :top_k], cost
