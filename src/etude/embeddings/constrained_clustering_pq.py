r"""RepCONC: product-quantized document codes learned with the ranking, every code used equally.

Codes that are trained for ranking alone collapse: a few centroids attract all documents and the
bytes carry little. So the assignment in training is a clustering under a constraint, every
centroid gets the same mass, solved a batch at a time and for each of the M parts alone:

    d_ik = ||(R x_i)_m - c_mk||^2                                                         (1)
    d'   = (d - middle) / (half range of d + 1e-5), so that d' lies in [-1, 1]            (2)
    Q    = argmin_Q sum_ik Q_ik d'_ik - eps H(Q),  rows sum to 1, columns to B / K        (3)
           by Sinkhorn's rounds on exp(-d' / eps), float64, samples last
    code of part m = argmax_k Q_ik;  x' = the concatenated centroids of the codes         (4)
    loss = CE(<R q, x'> / temperature) + mse_weight mean_i ||x'_i - R x_i||^2             (5)

R is the rotation of the OPQ from which the centroids c start, and stays fixed; q is never
quantized. No gradient passes through (3); the gradient of the ranking with respect to x' goes to
the centroids of the codes and, unchanged, to the document's own vector (straight through). The
cross-entropy is over all documents of the batch and hard negatives, each document once. Outside
of training a document gets its nearest centroids, without the constraint. A second stage keeps
those codes and trains query encoder and centroids only.                              (6)

Source: Zhan, Mao, Liu, Guo, Zhang, Ma, "Learning Discrete Representations via Constrained
Clustering for Effective and Efficient Dense Retrieval", WSDM 2022, arXiv:2110.05789; released
code at 64f3f8a. OPQ: Ge, He, Ke, Sun, "Optimized Product Quantization", CVPR 2013.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["ConstrainedPQ", "RepCONCTrainer", "ivf_pq_search"]

CARD = Card(
    slug="constrained_clustering_pq",
    family="embeddings",
    title="Learning Discrete Representations via Constrained Clustering for Effective and "
    "Efficient Dense Retrieval",
    year=2022,
    arxiv="2110.05789",
    move="Assign documents to product codes so that every code is used equally, while encoder and "
    "codebooks are trained for ranking.",
    task="experiment",
    claim="With 4 codes a document, training with the constraint ranks the wanted document among "
    "the first ten more often than the same training with nearest centroids.",
    baseline="nearest_codes",
    metric="recall_at_10",
    better="higher",
    published="",
    fidelity="full",
    cost="M",
    data=("two_towers",),
    code="jingtaozhan/RepCONC",
    departs=(
        "k-means of the start draws its first centroids from the data; a centroid that loses all "
        "its vectors is put beside the one with the most.",
        "A query row has one known positive; ivf_pq_search clusters the quantized vectors, where "
        "the release calls a library.",
        "Stage 1 draws one hard negative a query and keeps all of the batch; the released runs "
        "draw 11, keep each query's 11 hardest, and count mse_weight once a chunk of 64 documents.",
        "Stage 2 takes its negatives from the batch unless n_mined is set; the release searches "
        "for 200 a query at every step, and a positive that it finds again counts as a negative.",
    ),
    example={"dim": 8, "n_parts": 2, "n_codes": 4},
)


class ConstrainedPQ(nn.Module):
    """Codes of M parts with K centroids each, behind a rotation; (1) to (4).

    Args:
        dim: width D, a multiple of `n_parts`.
        n_parts: parts M; a code of at most 256 centroids takes M bytes.
        n_codes: centroids K a part; a batch should hold at least 8 vectors a centroid.
        eps: of (3); small, or the plan is soft and its argmax unbalanced.
        n_steps: Sinkhorn rounds.

    Raises:
        EtudeError: dim no multiple of n_parts, or a number out of its range.
    """

    def __init__(self, dim: int, *, n_parts: int = 8, n_codes: int = 256, eps: float = 0.003,
                 n_steps: int = 100) -> None:  # fmt: skip
        super().__init__()
        require(n_parts >= 1 and dim >= 1, "n_parts", "at least 1", n_parts)
        require(dim % n_parts == 0, "dim", f"a multiple of n_parts = {n_parts}", dim)
        require(2 <= n_codes <= 65536, "n_codes", "in 2..65536", n_codes)
        require(0 < eps < float("inf"), "eps", "positive", eps)
        require(n_steps >= 1, "n_steps", "at least 1", n_steps)
        self.dim, self.n_parts, self.n_codes = dim, n_parts, n_codes
        self.eps, self.n_steps = eps, n_steps
        self.register_buffer("rotation", torch.eye(dim))
        shape, generator = (n_parts, n_codes, dim // n_parts), torch.Generator().manual_seed(0)
        self.centroids = nn.Parameter(torch.randn(shape, generator=generator))

    @torch.no_grad()
    def initialize(self, vectors: Tensor, *, n_rounds: int = 50, seed: int = 0) -> None:
        """Set rotation and centroids to OPQ's of (N, D) `vectors`; 0 rounds give plain PQ.

        A round is one k-means step and the best rotation for its codes (Procrustes); 10 k-means
        steps precede and follow.
        """
        require(len(vectors) >= self.n_codes, "vectors", f"at least {self.n_codes}", vectors)
        generator = torch.Generator().manual_seed(seed)
        x = vectors.detach().to(self.centroids.dtype)
        self.rotation.copy_(torch.eye(self.dim))
        rows = torch.randperm(len(x), generator=generator)[: self.n_codes]
        self.centroids.copy_(self._parts(x[rows]))
        self._cluster(x, 10)
        for _ in range(n_rounds):
            u, _, v = torch.linalg.svd(self.decode(self._cluster(x @ self.rotation.T, 1)).T @ x)
            self.rotation.copy_(u @ v)
        self._cluster(x @ self.rotation.T, 10)

    def rotate(self, vectors: Tensor) -> Tensor:
        """(B, D) R x of queries or documents."""
        return vectors @ self.rotation.T

    @torch.no_grad()
    def assign(self, rotated: Tensor, *, balanced: bool = False) -> Tensor:
        """(B, D) rotated vectors -> (B, M) int64 codes: nearest, or `balanced` by (3)."""
        parts, c = self._parts(rotated), self.centroids
        if balanced:
            return self.plan(torch.cdist(parts, c) ** 2).argmax(dim=-1).T  # (1), (4)
        half = c.square().sum(dim=-1)[:, None] / 2  # |x|^2 / 2 is the same for all
        blocks = [torch.baddbmm(-half, x, c.mT).argmax(dim=-1) for x in parts.split(512, dim=1)]
        return torch.cat(blocks, dim=1).T

    def plan(self, distances: Tensor) -> Tensor:
        """(M, B, K) distances -> (M, B, K) float64 plan Q of (3), its rows summing to 1."""
        d = distances.double()
        high, low = d.amax((1, 2), keepdim=True), d.amin((1, 2), keepdim=True)
        middle = (high + low) / 2
        q = -(d - middle) / (high - middle + 1e-5) / self.eps  # (2)
        # the first round in logarithms: no row or column can vanish after it, however small eps
        q = (q - q.logsumexp(dim=1, keepdim=True)).softmax(dim=2)
        for _ in range(self.n_steps - 1):
            q = q / q.sum(dim=1, keepdim=True)  # times B / K, which the rows take out again
            q = q / q.sum(dim=2, keepdim=True)
        return q

    def decode(self, codes: Tensor) -> Tensor:
        """(B, M) codes -> (B, D) quantized vectors, in the rotated space."""
        return self.centroids[torch.arange(self.n_parts), codes].flatten(1)

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) documents -> (B, D) quantized by (1) to (4), gradients straight through."""
        rotated = self.rotate(vectors)
        return self.straight_through(rotated, self.assign(rotated, balanced=True))

    def straight_through(self, rotated: Tensor, codes: Tensor) -> Tensor:
        """Value and gradient of the decoded codes, the same gradient for `rotated`."""
        return self.decode(codes) + rotated - rotated.detach()

    def _parts(self, vectors: Tensor) -> Tensor:
        return vectors.unflatten(1, (self.n_parts, -1)).transpose(0, 1)

    def _cluster(self, rotated: Tensor, n_rounds: int) -> Tensor:
        """Lloyd's steps in every part; the codes of the last centroids."""
        parts = self._parts(rotated)
        for _ in range(n_rounds):
            for m, codes in enumerate(self.assign(rotated).T):
                counts = torch.bincount(codes, minlength=self.n_codes)
                sums = torch.zeros_like(self.centroids[m]).index_add_(0, codes, parts[m])
                means = sums / counts.clamp(min=1)[:, None]
                means[counts == 0] = means[counts.argmax()] * (1 + 1e-4)
                self.centroids[m].copy_(means)
        return self.assign(rotated)


class RepCONCTrainer:
    """Train encoders and quantizer by (5), then queries and centroids alone by (6).

    Args:
        quantizer: initialized on the documents' vectors.
        query_encoder, document_encoder: modules to (B, D); may be one and the same.
        lr, centroid_lr: learning rates of encoders and centroids (AdamW).
        mse_weight: of (5).
        temperature: of (5).
        balanced: with False codes are the nearest centroids, to see what the constraint does.
        seed: draws the batches.
    """

    def __init__(
        self, quantizer: ConstrainedPQ, query_encoder: nn.Module, document_encoder: nn.Module, *,
        lr: float = 1e-4, centroid_lr: float = 5e-4, mse_weight: float = 1e-4,
        temperature: float = 1.0, balanced: bool = True, batch_size: int = 1024, seed: int = 0,
    ) -> None:  # fmt: skip
        for name, value in (("lr", lr), ("centroid_lr", centroid_lr), ("temperature", temperature)):
            require(value > 0, name, "positive", value)
        require(batch_size >= 2, "batch_size", "at least 2", batch_size)
        require(mse_weight >= 0, "mse_weight", "at least 0", mse_weight)
        self.quantizer, self.balanced = quantizer, balanced
        self.query_encoder, self.document_encoder = query_encoder, document_encoder
        self.lr, self.centroid_lr, self.mse_weight = lr, centroid_lr, mse_weight
        self.temperature, self.batch_size, self.seed = temperature, batch_size, seed

    def fit(self, queries: Tensor, documents: Tensor, positive: Tensor, *, n_steps: int,
            negatives: Tensor | None = None) -> None:  # fmt: skip
        """Stage 1, (5), on `queries` (B, ...) and `documents` (N, ...) as the encoders read them.

        `positive` (B,): the row of `documents` that each query wants; `negatives` (B, H): rows of
        hard negatives, of which a batch draws one a query.
        """
        require(len(queries) == len(positive), "positive", f"({len(queries)},)", positive)

        def loss(rows: Tensor, columns: Tensor) -> Tensor:
            rotated = self.quantizer.rotate(self.document_encoder(documents[columns]))
            codes = self.quantizer.assign(rotated, balanced=self.balanced)
            error = (self.quantizer.decode(codes) - rotated).square().sum(dim=1).mean()
            quantized = self.quantizer.straight_through(rotated, codes)
            return self._ranking(queries[rows], columns, quantized) + self.mse_weight * error  # (5)

        self._train([self.query_encoder, self.document_encoder], positive, negatives, loss, n_steps)

    def fit_queries(self, queries: Tensor, documents: Tensor, positive: Tensor, *, n_steps: int,
                    negatives: Tensor | None = None, n_mined: int = 0) -> Tensor:  # fmt: skip
        """Stage 2, (6); returns the fixed (N, M) nearest codes of all documents.

        With `n_mined` (released: 200) a query's negatives are not the batch's but the documents
        that all codes together now rank first for it.
        """
        require(len(queries) == len(positive), "positive", f"({len(queries)},)", positive)
        require(0 <= n_mined < len(documents), "n_mined", f"in 0..{len(documents) - 1}", n_mined)
        with torch.no_grad():
            codes = self.quantizer.assign(self.quantizer.rotate(self.document_encoder(documents)))

        def loss(rows: Tensor, columns: Tensor) -> Tensor:
            if n_mined == 0:
                return self._ranking(queries[rows], columns, self.quantizer.decode(codes[columns]))
            scores = self._scores(queries[rows], self.quantizer.decode(codes))
            wanted = positive[rows, None]
            first = scores.detach().scatter(1, wanted, float("inf")).topk(1 + n_mined).indices
            return F.cross_entropy(scores.gather(1, first), torch.zeros_like(wanted[:, 0]))

        self._train([self.query_encoder], positive, negatives, loss, n_steps)
        return codes

    def _scores(self, queries: Tensor, quantized: Tensor) -> Tensor:
        return self.quantizer.rotate(self.query_encoder(queries)) @ quantized.T / self.temperature

    def _ranking(self, queries: Tensor, columns: Tensor, quantized: Tensor) -> Tensor:
        """The cross-entropy of (5); query i wants document `columns[i]`."""
        own = torch.eye(len(queries), len(columns), dtype=torch.bool)
        # the same document in another column is no negative, and counts once as one
        same = columns[:, None] == columns
        copies = same.int().argmax(dim=1) != torch.arange(len(columns))
        hidden = (same[: len(queries)] | copies) & ~own
        logits = self._scores(queries, quantized).masked_fill(hidden, float("-inf"))
        return F.cross_entropy(logits, torch.arange(len(queries)))

    def _train(self, encoders: list[nn.Module], positive: Tensor, negatives: Tensor | None,
               loss: Callable[[Tensor, Tensor], Tensor], n_steps: int) -> None:  # fmt: skip
        weights = list(dict.fromkeys(p for module in encoders for p in module.parameters()))
        groups = [{"params": [self.quantizer.centroids], "lr": self.centroid_lr}]
        groups += [{"params": weights, "lr": self.lr}] if weights else []
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(n_steps):
            rows = torch.randperm(len(positive), generator=generator)[: self.batch_size]
            columns = positive[rows]
            if negatives is not None:
                drawn = torch.randint(negatives.shape[1], (len(rows),), generator=generator)
                columns = torch.cat([columns, negatives[rows, drawn]])
            optimizer.zero_grad()
            loss(rows, columns).backward()
            optimizer.step()


@torch.no_grad()
def ivf_pq_search(quantizer: ConstrainedPQ, codes: Tensor, queries: Tensor, *, k: int = 10,
                  n_lists: int = 1, n_probes: int = 1,
                  seed: int = 0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """((B, k) scores, (B, k) ids) of the best inner products <R q, x'>, from codes alone.

    The decoded documents are clustered into `n_lists` anew at each call and the `n_probes`
    nearest lists of a query are read; one list reads all. Where those hold fewer than `k`, the
    scores of the rest are -infinity. B * N scores in memory. `codes` (N, M) are those of
    ``quantizer.assign``, `queries` (B, D) encoded, not rotated.
    """
    require(1 <= k <= len(codes), "k", f"in 1..{len(codes)}", k)
    require(1 <= n_probes <= n_lists <= len(codes), "n_probes", "in 1..n_lists", n_probes)
    rotated = quantizer.rotate(queries)
    tables = quantizer._parts(rotated) @ quantizer.centroids.transpose(1, 2)  # (M, B, K)
    scores = torch.zeros(len(queries), len(codes), dtype=rotated.dtype)
    for table, column in zip(tables, codes.T, strict=True):
        scores += table[:, column]
    if n_lists > 1:
        lists = ConstrainedPQ(quantizer.dim, n_parts=1, n_codes=n_lists).to(rotated.dtype)
        lists.initialize(quantizer.decode(codes), n_rounds=0, seed=seed)
        member = lists.assign(quantizer.decode(codes))[:, 0]
        probed = (rotated @ lists.centroids[0].T).topk(n_probes, dim=1).indices
        hidden = (member[None, :, None] != probed[:, None, :]).all(dim=2)
        scores = scores.masked_fill(hidden, float("-inf"))
    found = scores.topk(k, dim=1)
    return found.values, found.indices
