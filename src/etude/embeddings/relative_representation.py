r"""Relative representations: say where a sample lies by its cosines to a few fixed samples.

Two encoders trained apart on the same data, or one encoder with two seeds, give latent spaces
that cannot be mixed, although the angles inside each of them are nearly the same: mostly they
differ by a map that keeps angles. So fix a set of anchors, training samples a_1 ... a_k, the same
and in the same order for all encoders, and describe each sample by its angles to them,

    r(x)_j = <E(x), E(a_j)> / ( |E(x)| |E(a_j)| ),   j = 1 ... k                           (1)

For orthogonal Q and c > 0 the encoder c Q E has the very same r, so a decoder or classifier that
was trained on r of one encoder works on r of another one, without any training: stitching,

    head_2( r_1(x) ),   r_1 from encoder 1 and the anchors as encoder 1 sees them          (2)

A translation E + t is not undone by (1), and neither is a stretch of single directions. Rounding
the cosines to multiples of a bin trades accuracy for more invariance,

    r' = bin_size * round(r / bin_size),   with the gradient of r                          (3)

Trained end to end, the anchors are encoded by the encoder as it is at that step, without
gradient: gradients reach it through the samples alone. Vectors of zeros have r = 0.

Source: Moschella, Maiorca, Fumero, Norelli, Locatello, Rodolà, "Relative representations enable
zero-shot latent space communication", ICLR 2023, arXiv:2209.15430; release lucmos/relreps at
627ed13, which lets a LayerNorm over the k cosines follow in the image models: give the head one.
Farthest points and k-means are those of its notebook encoding_analysis: both on unit vectors, one
cluster an anchor, the row of the largest cosine to each cluster's mean.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["RelativeProjection", "anchor_select", "stitch"]

CARD = Card(
    slug="relative_representation",
    family="embeddings",
    title="Relative representations enable zero-shot latent space communication",
    year=2023,
    arxiv="2209.15430",
    move="Describe each sample by its cosines to a fixed set of anchor samples, so that encoders "
    "trained apart have one common language.",
    task="experiment",
    claim="A head trained with one encoder and put on another one, unchanged, is right more often "
    "when both speak in cosines to common anchors than in their own coordinates.",
    baseline="absolute",
    metric="accuracy",
    better="higher",
    published="release's notebook, FastText to Word2Vec with random anchors: mean reciprocal rank "
    "of the same word 0.93 (absolute 0.00), the reverse 0.97 (0.00)",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="lucmos/relreps",
    departs=(
        "k-means anchors: clusters start at farthest points, where the release draws them by "
        "k-means++, and a row near to two means is taken once, where there it stands twice.",
        "Of the release's quantizations only the rounding of cosines; not that of latents, nor "
        "clusters of either.",
    ),
    search={"bin_size": (0.0, 0.05, 0.1)},
)

STRATEGIES = ("random", "farthest", "kmeans")
N_ROUNDS = 25  # of Lloyd's iteration


class RelativeProjection(nn.Module):
    """Equations (1) and (3); it has no parameters.

    Args:
        bin_size: what the cosines are rounded to multiples of; 0 leaves them as they are.

    Raises:
        EtudeError: a bin below 0 or above 2.
    """

    def __init__(self, *, bin_size: float = 0.0) -> None:
        super().__init__()
        require(0 <= bin_size <= 2, "bin_size", "in 0..2", bin_size)
        self.bin_size = bin_size

    def forward(self, embeddings: Tensor, anchors: Tensor) -> Tensor:
        """embeddings (B, D), anchors (A, D) by the same encoder -> cosines (B, A).

        No gradient reaches the anchors.

        Raises:
            EtudeError: no anchors, or another width than the embeddings have.
        """
        require(embeddings.ndim == 2, "embeddings", "(B, D)", embeddings)
        fits = anchors.ndim == 2 and anchors.shape[1] == embeddings.shape[1] and len(anchors) > 0
        require(fits, "anchors", f"(A, {embeddings.shape[1]}) with A at least 1", anchors)
        unit = F.normalize(embeddings, dim=1)
        cosines = unit @ F.normalize(anchors.detach(), dim=1).T  # (1)
        if self.bin_size == 0:
            return cosines
        rounded = torch.round(cosines / self.bin_size) * self.bin_size
        return cosines + (rounded - cosines).detach()  # (3)


def anchor_select(
    vectors: np.ndarray,
    n_anchors: int,
    *,
    strategy: str = "random",
    labels: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """(n_anchors,) int64 row numbers, ascending, none twice.

    Args:
        vectors: (N, D) training samples or their latents; of "random" only N matters.
        n_anchors: how many, at most N.
        strategy: "random"; "farthest", each the row whose nearest anchor so far is least alike,
            the first one drawn; or "kmeans", the rows most alike to the means of clusters.
        labels: (N,) class ids; "random" then draws from each class as evenly as sizes permit.
        seed: of the draws.

    Raises:
        EtudeError: more anchors than rows, or an unknown strategy.
    """
    rows = np.asarray(vectors)
    require(rows.ndim == 2 and len(rows) > 0, "vectors", "(N, D) with rows", rows)
    require(1 <= n_anchors <= len(rows), "n_anchors", f"in 1..{len(rows)}", n_anchors)
    require(strategy in STRATEGIES, "strategy", f"one of {', '.join(STRATEGIES)}", strategy)
    require(seed >= 0, "seed", "at least 0", seed)
    rng = np.random.default_rng(seed)
    if strategy == "random":
        order = rng.permutation(len(rows))
        if labels is not None:
            ids = np.asarray(labels)
            require(ids.shape == (len(rows),), "labels", f"({len(rows)},)", ids)
            # the n-th of its class comes before any (n + 1)-th one: rounds through the classes
            rank = np.empty(len(rows), dtype=np.int64)
            for label in np.unique(ids):
                own = np.flatnonzero(ids[order] == label)
                rank[own] = np.arange(len(own))
            order = order[np.argsort(rank, kind="stable")]
        return np.sort(order[:n_anchors])
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    chosen = [int(rng.integers(len(rows)))]
    nearest = unit @ unit[chosen[0]]
    nearest[chosen[0]] = np.inf
    while len(chosen) < n_anchors:
        chosen.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, unit @ unit[chosen[-1]])
        nearest[chosen[-1]] = np.inf  # never again, even where rows repeat
    if strategy == "kmeans":
        chosen = _near_means(unit, unit[chosen])
    return np.sort(np.asarray(chosen, dtype=np.int64))


def _near_means(unit: np.ndarray, means: np.ndarray) -> list[int]:
    """Row numbers most alike to the means that Lloyd's iteration ends with, none twice."""
    for _ in range(N_ROUNDS):
        cluster = (unit @ means.T - 0.5 * (means**2).sum(axis=1)).argmax(axis=1)
        counts = np.bincount(cluster, minlength=len(means))
        sums = np.zeros_like(means)
        np.add.at(sums, cluster, unit)
        means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], means)
    free, found = np.ones(len(unit), dtype=bool), []
    for alike in means @ unit.T:
        found.append(int(np.where(free, alike, -np.inf).argmax()))
        free[found[-1]] = False
    return found


class _Stitched(nn.Module):
    def __init__(
        self, encoder: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor],
        anchors: Tensor, bin_size: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.head = encoder, head
        self.relative = RelativeProjection(bin_size=bin_size)
        self.register_buffer("anchors", anchors)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> what the head says."""
        with torch.no_grad():
            anchors = self.encoder(self.anchors)  # at every call, for the encoder may have moved
        out: Tensor = self.head(self.relative(self.encoder(x), anchors))  # (2)
        return out


def stitch(
    encoder: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    anchors: Tensor,
    *,
    bin_size: float = 0.0,
) -> nn.Module:
    """A module x (B, ...) -> head(r(x)), equation (2), in evaluation mode.

    With an encoder and a head that never met it is zero-shot stitching; with new ones it is what
    to train end to end (after ``.train()``). Both parts are kept by reference.

    Args:
        encoder: samples (B, ...) -> latents (B, D).
        head: relative latents (B, A) -> anything; what it learned is bound to the order of the
            anchors.
        anchors: (A, ...) raw samples, as the encoder takes them.
        bin_size: as ``RelativeProjection`` has it.
    """
    require(len(anchors) > 0, "anchors", "at least one sample", anchors)
    return _Stitched(encoder, head, anchors, bin_size).eval()
