r"""Stationary representations: a classifier that never moves keeps successive models comparable.

An index holds features of an old model; queries come from its successor. If the classifier is
trained, each model is free to turn its feature space, and the index must be computed anew. So do
not train it: fix its weights, once and for all models, to the d + 1 corners of a regular simplex
in d dimensions, more corners than there are classes yet. With e_1 ... e_d the unit vectors,

    w_k = normalize( v_k - mean(v) ),   v_k = e_k,   v_(d+1) = (1 - sqrt(1 + d)) / d * (1..1)  (1)
    |w_k| = 1,  <w_k, w_l> = -1 / d for k != l,  sum_k w_k = 0                                  (2)
    logits = W z,  no bias, z not normalized                                                    (3)

Features of class k are drawn to the ray of w_k by every model that ever learns class k, whatever
else it learns. Cross-entropy lines up the classes' means; to line up single samples with those of
the frozen model o that training starts from, both normalized, with the labels y,

    HOC = mean_i( -mu <o_i, n_i> + log sum_(j: y_j != y_i) exp(mu <o_i, n_j>) )                 (4)
    loss = lam * cross-entropy + (1 - lam) * HOC,   lam = 0.1, mu = 10                          (5)

A better network trained elsewhere may replace the model, if it was trained on the same simplex:
classes from elsewhere take the first corners, local ones count from the end (y -> d - y).

With M[i, j] the share of queries, by model i, whose nearest gallery item, by model j, has their
label, the average compatibility is the share of pairs i > j with M[i, j] > M[j, j].            (6)

Source: Biondi, Pernici, Ricci, Del Bimbo, "Stationary Representations: Optimally Approximating
Compatibility and Implications for Improved Model Replacements", CVPR 2024, arXiv:2405.02581;
release miccunifi/iamcl2r at 18495ac, whose comments number (5) as Eq. 3 and (4) as Eq. 4.
Not found: the paper's own print of (4). Which terms its sum has is read from those comments,
that similarities of the same class are masked; the code does something else, see the card.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["DSimplexClassifier", "HOCLoss", "average_compatibility", "compatibility_matrix"]

CARD = Card(
    slug="stationary_compatible",
    family="embeddings",
    title="Stationary Representations: Optimally Approximating Compatibility and Implications "
    "for Improved Model Replacements",
    year=2024,
    arxiv="2405.02581",
    move="Fix the classifier to the corners of a regular simplex with room for later classes, so "
    "that features of successive models stay comparable.",
    task="experiment",
    claim="Over five models of which one was replaced by a better pre-trained one, search with "
    "later models in earlier models' galleries is right more often than with a trained classifier.",
    baseline="trained_classifier",
    metric="precision_at_1",
    better="higher",
    published="",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="miccunifi/iamcl2r",
    departs=(
        "Samples of the same class are left out of the sum of (4), as the release's comments have "
        "it; its code multiplies their similarities by 0, so that each adds exp(0) = 1: "
        "HOCLoss(zero_mask=True).",
    ),
    example={"dim": 8},
)


MOST_QUERIES = 512  # whose cosines to a whole gallery are held at once


def _simplex(dim: int) -> Tensor:
    """(dim + 1, dim) float64, the rows of (1)."""
    v = torch.eye(dim + 1, dim, dtype=torch.float64)
    v[dim] = (1 - math.sqrt(1 + dim)) / dim
    return F.normalize(v - v.mean(dim=0), dim=1)


class DSimplexClassifier(nn.Module):
    """Equation (3): dim + 1 fixed prototypes, no parameters.

    Args:
        dim: width d of the embeddings; there is room for d + 1 classes. It must never change, or
            models can no longer be compared.

    Raises:
        EtudeError: dim below 1.
    """

    prototypes: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        self.dim = dim
        self.register_buffer("prototypes", _simplex(dim).to(torch.get_default_dtype()))

    def forward(self, embeddings: Tensor) -> Tensor:
        """embeddings (B, d), not normalized -> logits (B, d + 1)."""
        fits = embeddings.ndim == 2 and embeddings.shape[1] == self.dim
        require(fits, "embeddings", f"(B, {self.dim})", embeddings)
        return F.linear(embeddings, self.prototypes.to(embeddings.dtype))  # (3)


class HOCLoss(nn.Module):
    """Equation (4), the contrast of new features with the frozen model's.

    Args:
        scale: mu, above 0.
        zero_mask: the release's mask, which counts each sample of the same class (itself, too)
            as exp(0) instead of leaving it out.

    Raises:
        EtudeError: a scale that is not above 0.
    """

    def __init__(self, *, scale: float = 10.0, zero_mask: bool = False) -> None:
        super().__init__()
        require(0 < scale < math.inf, "scale", "above 0", scale)
        self.scale, self.zero_mask = scale, zero_mask

    def forward(self, embeddings: Tensor, old_embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings (B, d) and old_embeddings (B, d) of the same samples, labels (B,) -> mean.

        Both are normalized here; no gradient reaches the old ones.

        Raises:
            EtudeError: unequal shapes, or, without `zero_mask`, a batch of one class only.
        """
        same = embeddings.ndim == 2 and embeddings.shape == old_embeddings.shape
        require(same, "old_embeddings", f"{tuple(embeddings.shape)}", old_embeddings)
        require(labels.shape == embeddings.shape[:1], "labels", "(B,) class ids", labels)
        old, new = F.normalize(old_embeddings.detach(), dim=1), F.normalize(embeddings, dim=1)
        alike = self.scale * old @ new.T
        positive = alike.diagonal()
        own = labels[:, None] == labels[None, :]
        if self.zero_mask:
            negatives = alike.masked_fill(own, 0.0)
        else:
            require(not bool(own.all()), "labels", "of at least two classes", labels)
            negatives = alike.masked_fill(own, -math.inf)
        return (negatives.logsumexp(dim=1) - positive).mean()  # (4)


def compatibility_matrix(
    queries: Sequence[np.ndarray],
    galleries: Sequence[np.ndarray],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
) -> np.ndarray:
    """(T, T) M of (6) by cosine, NaN above the diagonal, where the gallery is the newer one.

    Args:
        queries: T arrays (Q, D), the same query samples by model 1, 2, ..., T.
        galleries: T arrays (G, D), the same gallery samples; no query among them.
        query_labels: (Q,) class ids.
        gallery_labels: (G,) class ids.

    Raises:
        EtudeError: unequal numbers of models, or shapes that do not fit.
    """
    n = len(queries)
    require(n > 0 and len(galleries) == n, "galleries", f"{n} arrays, at least 1", len(galleries))
    asked, there = np.asarray(query_labels), np.asarray(gallery_labels)
    shapes = {"queries": (queries, len(asked)), "galleries": (galleries, len(there))}
    width = np.shape(queries[0])[-1]
    for name, (arrays, rows) in shapes.items():
        for array in arrays:
            require(np.shape(array) == (rows, width), name, f"all ({rows}, {width})", array)
    new, old = ([_unit(array) for array in arrays] for arrays in (queries, galleries))
    n_parts = -(-len(asked) // MOST_QUERIES)
    matrix = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(i + 1):
            near = [(part @ old[j].T).argmax(axis=1) for part in np.array_split(new[i], n_parts)]
            matrix[i, j] = (there[np.concatenate(near)] == asked).mean()
    return matrix


def average_compatibility(matrix: np.ndarray) -> float:
    """Share of pairs i > j with M[i, j] strictly above M[j, j], equation (6).

    Args:
        matrix: (T, T) with T at least 2, as ``compatibility_matrix`` gives it; only the diagonal
            and what is below it are read.
    """
    m = np.asarray(matrix, dtype=np.float64)
    square = m.ndim == 2 and m.shape[0] == m.shape[1] >= 2
    require(square, "matrix", "(T, T) with T at least 2", m)
    rows, columns = np.tril_indices(len(m), -1)
    known = not np.isnan(m[np.tril_indices(len(m))]).any()
    require(known, "matrix", "free of NaN on and below the diagonal", m)
    return float((m[rows, columns] > m[columns, columns]).mean())  # (6)


def _unit(array: np.ndarray) -> np.ndarray:
    x = np.asarray(array, dtype=np.float64)
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
