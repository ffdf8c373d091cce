"""Losses, data and measures that the experiments on unseen classes share.

Every objective is a module called with (embeddings, target) that owns what it learns beside the
encoder, and is built by ``(dim, n_classes)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor, nn

from etude.lab.data import load_dataset
from etude.nets.encoders import VectorEncoder
from etude.tasks.training import optimize

__all__ = [
    "ArcFace", "Contrastive", "CosFace", "Prototypical", "Softmax", "Triplet", "clustering",
    "embed", "mean_average_precision", "small_images", "train_encoder",
]  # fmt: skip

DIM = 32  # of the embeddings
Build = Callable[[int, int], nn.Module]


class Softmax(nn.Module):
    """Cross-entropy of a linear classifier with a bias."""

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar."""
        return F.cross_entropy(self.classifier(embeddings), target)


class ArcFace(nn.Module):
    """Softmax over scaled cosines, the target's angle enlarged by a margin in radians.

    Beyond pi - margin the cosine goes on along a line, as is usual, so that it keeps falling.
    """

    def __init__(self, dim: int, n_classes: int, *, scale: float, margin: float) -> None:
        super().__init__()
        bound = 1 / math.sqrt(
            dim
        )  # as MadaCos starts: how short a weight is sets how fast it turns
        self.weight = nn.Parameter(torch.empty(n_classes, dim).uniform_(-bound, bound))
        self.scale, self.margin = scale, margin

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return F.normalize(embeddings, dim=1) @ F.normalize(self.weight, dim=1).T

    def moved(self, c: Tensor) -> Tensor:
        """The target's cosines (B,) after the margin."""
        inside = c.clamp(-1 + 1e-6, 1 - 1e-6)
        angle = torch.cos(inside.acos() + self.margin)
        line = c - self.margin * math.sin(self.margin)
        return torch.where(c > -math.cos(self.margin), angle, line)

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar."""
        c = self.cosines(embeddings)
        at = self.moved(c.gather(1, target[:, None])[:, 0])
        return F.cross_entropy(self.scale * c.scatter(1, target[:, None], at[:, None]), target)


class CosFace(ArcFace):
    """As ArcFace, with the margin taken off the target's cosine."""

    def moved(self, c: Tensor) -> Tensor:
        """The target's cosines (B,) after the margin."""
        return c - self.margin


class Triplet(nn.Module):
    """Every pair of one class against its semi-hard negative, on unit vectors.

    That negative is the nearest one farther than the positive, or where none is, the farthest.
    """

    def __init__(self, dim: int, n_classes: int, *, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar, mean over pairs; 0 without a pair or a negative."""
        unit = F.normalize(embeddings, dim=1)
        d = 2 - 2 * unit @ unit.T
        same = target[:, None] == target
        a, p = (same & ~torch.eye(len(same), dtype=torch.bool)).nonzero(as_tuple=True)
        has_negative = (~same).any(dim=1)[a]
        a, p = a[has_negative], p[has_negative]
        if len(a) == 0:
            return 0.0 * d.sum()
        with torch.no_grad():
            others = d[a].masked_fill(same[a], math.inf)
            farther = others.masked_fill(others <= d[a, p][:, None], math.inf)
            farthest = d[a].masked_fill(same[a], -math.inf).argmax(dim=1)
            n = torch.where(farther.isfinite().any(dim=1), farther.argmin(dim=1), farthest)
        return F.relu(d[a, p] - d[a, n] + self.margin).mean()


class Contrastive(nn.Module):
    """Pairs of one class together, other pairs at least a margin apart, on unit vectors."""

    def __init__(self, dim: int, n_classes: int, *, margin: float) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar: the mean over positive pairs plus that over negative ones."""
        unit = F.normalize(embeddings, dim=1)
        i, j = torch.triu_indices(len(unit), len(unit), 1)
        d = (2 - 2 * (unit[i] * unit[j]).sum(dim=1)).clamp(min=1e-8).sqrt()
        same = (target[i] == target[j]).to(d.dtype)
        near = (same * d.square()).sum() / same.sum().clamp(min=1)
        far = (1 - same) * F.relu(self.margin - d).square()
        return near + far.sum() / (1 - same).sum().clamp(min=1)


class Prototypical(nn.Module):
    """Half of the batch gives class means, the other half is told by squared distance to them."""

    def __init__(self, dim: int, n_classes: int, *, scale: float) -> None:
        super().__init__()
        self.n_classes, self.scale = n_classes, scale

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar; queries whose class has no mean are left out."""
        half = len(target) // 2
        member = F.one_hot(target[:half], self.n_classes).to(embeddings.dtype)
        counts = member.sum(dim=0)
        means = member.T @ embeddings[:half] / counts.clamp(min=1)[:, None]
        known = counts[target[half:]] > 0
        queries, y = embeddings[half:][known], target[half:][known]
        logits = -self.scale * (queries[:, None] - means).square().sum(dim=2)
        return F.cross_entropy(logits.masked_fill(counts == 0, -1e9), y)


def small_images(name: str, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) in [0, 1] and (N,): digits, or Fashion-MNIST averaged down to 14 x 14."""
    data = load_dataset(name, limit=limit)
    assert data.y is not None
    x = data.x / data.x.max()
    if name == "fashion_mnist":
        x = x.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(-1, 196)
    return x.astype(np.float32), data.y


def train_encoder(
    x: Tensor, y: Tensor, build: Build, *, lr: float, n_steps: int, seed: int, out_dim: int = DIM,
    weight_decay: float = 1e-4,
) -> tuple[VectorEncoder, nn.Module]:  # fmt: skip
    """An encoder and its objective, trained from the seed's weights on the seed's batches."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = VectorEncoder(x.shape[1], out_dim)
        objective = build(out_dim, int(y.max()) + 1)
    weights = [*encoder.parameters(), *objective.parameters()]
    optimize(
        weights, lambda rows: objective(encoder(x[rows]), y[rows]), len(x), seed=seed, lr=lr,
        n_steps=n_steps, weight_decay=weight_decay,
    )  # fmt: skip
    return encoder.eval(), objective.eval()


def embed(network: Callable[[Tensor], Tensor], x: Tensor) -> np.ndarray:
    """(N, D) rows -> (N, M) unit vectors."""
    with torch.inference_mode():
        return F.normalize(network(x), dim=1).numpy()


def mean_average_precision(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Each row queries all others by inner product; mean over rows that have a match."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    hits = labels[order] == labels[:, None]
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    found = hits.sum(axis=1)
    return float(((precision * hits).sum(axis=1)[found > 0] / found[found > 0]).mean())


def clustering(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Normalized mutual information of k-means clusters, as many as classes, and the labels."""
    found = KMeans(len(np.unique(labels)), n_init=3, random_state=seed).fit_predict(vectors)
    return float(normalized_mutual_info_score(labels, found))
