r"""Train on the unit sphere without pairs, then know new classes by the mean of a few examples.

Metric losses compare samples in pairs or triplets, and there are many. A softmax over cosines
needs none: put the embeddings z and one weight a class, w_c, on the unit sphere and scale,

    loss = -log softmax_y( s <w_c / |w_c|, z / |z|> ), no bias                             (1)

so that each class gathers around a direction of its own. After training the weights are thrown
away. A class never trained on is the renormalized mean of the unit embeddings of its few labeled
examples S_c, and a query goes to the nearest direction:

    mu_c = normalize( sum_{i in S_c} z_i / |z_i| ),   argmax_c <mu_c, z / |z|>             (2)

Disjoint: only new classes are candidates. Joint: old classes are candidates too, by means of
their own examples, so that both kinds are scored alike.

The scale bounds what (1) can reach: the best z and w are one regular simplex of C directions,
which needs C - 1 dimensions, and with as many samples a class

    loss >= log(1 + (C - 1) exp(-s C / (C - 1)))                                           (3)

Source: Pereira, Joly, Valduriez, Porto, "Hyperspherical embedding for novel class classification",
arXiv:2102.03243 (2021). (1) itself is earlier work that the paper builds on.
Not found in the paper: its text beyond the introduction could not be read. The constraint on the
latent space is read as the two unit norms; s = 16, and the mean rather than the nearest example
("nearest" is offered), are choices made here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["NormalizedSoftmaxLoss", "HypersphereEmbedder", "NovelClassCentroid"]

CARD = Card(
    slug="hyperspherical_novel_class",
    family="losses",
    title="Hyperspherical embedding for novel class classification",
    year=2021,
    arxiv="2102.03243",
    move="train a softmax over cosines, then know a new class by the mean of its few unit "
    "embeddings",
    task="train",
    claim="with five examples of each of three classes of Fashion-MNIST that were not trained on, "
    "told from the five trained ones too, embeddings of the normalized softmax are more accurate "
    "than those of a semi-hard triplet loss",
    baseline="triplet",
    metric="accuracy",
    better="higher",
    published="abstract: results up to 81 % more accurate than known methods (a relative figure); "
    "which data and method it belongs to could not be read",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    search={"scale": (16.0, 8.0, 30.0)},
    example={"dim": 6, "n_classes": 3},
)


class NormalizedSoftmaxLoss(nn.Module):
    """Equation (1); owns the class weights.

    Args:
        dim: width D of the embeddings.
        n_classes: C.
        scale: s.
        learn_scale: train s too, as the exponential of a parameter.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self, *, dim: int, n_classes: int, scale: float = 16.0, learn_scale: bool = False
    ) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        require(math.isfinite(scale) and scale > 0, "scale", "a positive number", scale)
        self.dim, self.n_classes, self.scale, self.learn_scale = dim, n_classes, scale, learn_scale
        self.weight = nn.Parameter(torch.randn(n_classes, dim))
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learn_scale)

    def classify(self, embeddings: Tensor) -> Tensor:
        """embeddings (B, D) -> (B, C): the scaled cosines to the classes trained on."""
        require(embeddings.ndim == 2, "embeddings", f"of shape (B, {self.dim})", embeddings)
        require(embeddings.shape[1] == self.dim, "embeddings", f"(B, {self.dim})", embeddings)
        unit = F.normalize(embeddings.to(self.weight.dtype), dim=1)
        scale = self.log_scale.exp() if self.learn_scale else self.scale
        return scale * unit @ F.normalize(self.weight, dim=1).T

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """embeddings (B, D), target (B,) int64 -> mean loss over the batch, in nats.

        Half-precision embeddings are computed, and answered, in the precision of the weights.
        """
        require(target.shape == embeddings.shape[:1], "target", "(B,), one a row", target)
        return F.cross_entropy(self.classify(embeddings), target)  # (1)


class HypersphereEmbedder(nn.Module):
    """`network`: x (B, ...) -> (B, D), made to answer unit vectors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (B, D) of unit length; an output of all zeros stays so."""
        return F.normalize(self.network(x), dim=1)


class NovelClassCentroid:
    """Equation (2), or the nearest example by cosine.

    Args:
        rule: "centroid" is (2); "nearest" gives a class its nearest example's cosine.

    Fitted: `classes_` (C,) the ids seen, ascending; `directions_` (C, D) unit means, or with
    "nearest" (S, D) the unit examples in the order of their classes; `starts_` (C,) the place of
    each class's first direction.

    Raises:
        EtudeError: an unknown rule.
    """

    def __init__(self, *, rule: str = "centroid") -> None:
        require(rule in ("centroid", "nearest"), "rule", "centroid or nearest", rule)
        self.rule = rule

    def fit(self, support: np.ndarray, support_labels: np.ndarray) -> NovelClassCentroid:
        """support (S, D), support_labels (S,) any integers -> self."""
        unit, labels = _unit(support, "support"), np.asarray(support_labels)
        require(len(unit) > 0, "support", "at least one row", support)
        require(labels.shape == unit.shape[:1], "support_labels", "(S,), one a row", labels)
        order = np.argsort(labels, kind="stable")
        self.classes_, self.starts_ = np.unique(labels[order], return_index=True)
        self.directions_ = unit[order]
        if self.rule == "centroid":
            sums = np.add.reduceat(self.directions_, self.starts_, axis=0)
            self.directions_ = _unit(sums, "support")  # (2)
            self.starts_ = np.arange(len(sums))
        return self

    def logits(self, query: np.ndarray) -> np.ndarray:
        """query (Q, D) -> (Q, C) cosines, a column each of `classes_`."""
        require(hasattr(self, "classes_"), "centroids", "fitted: call fit first", "unfitted ones")
        unit, width = _unit(query, "query"), self.directions_.shape[1]
        require(unit.shape[1] == width, "query", f"of width {width}, as the support", query)
        cosines = unit @ self.directions_.T
        return np.asarray(np.maximum.reduceat(cosines, self.starts_, axis=1))

    def predict(self, query: np.ndarray) -> np.ndarray:
        """query (Q, D) -> (Q,) ids out of `classes_`."""
        best = self.logits(query).argmax(axis=1)
        return np.asarray(self.classes_[best])


def _unit(x: np.ndarray, name: str) -> np.ndarray:
    """Rows in float64 and of length 1; a row of zeros stays."""
    x = np.asarray(x, dtype=np.float64)
    require(x.ndim == 2, name, "of shape (rows, D)", x)
    require(bool(np.isfinite(x).all()), name, "finite", x)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
