"""Baseline objectives of the task train; the experiments on unseen classes use them too.

Each is called by the names of the vocabulary and owns what it learns beside the encoder.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import require

__all__ = [
    "ArcFace", "BinaryCrossEntropy", "Contrastive", "CosFace", "CrossEntropy", "Prototypical",
    "Softmax", "Triplet",
]  # fmt: skip


class CrossEntropy(nn.Module):
    """Softmax cross-entropy with label smoothing, in nats, mean over the batch.

    A row with several labels is to be told by each of them alike; one without any counts 0.
    """

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        require(0 <= smoothing < 1, "smoothing", "in [0, 1)", smoothing)
        self.smoothing = smoothing

    def forward(
        self, logits: Tensor, target: Tensor | None = None, positives: Tensor | None = None
    ) -> Tensor:
        """logits (B, K), target (B,) int64 or positives (B, K) bool -> scalar."""
        if target is not None:
            return F.cross_entropy(logits, target, label_smoothing=self.smoothing)
        require(positives is not None, "positives", "given where target is not", positives)
        assert positives is not None
        count = positives.sum(dim=1, keepdim=True)
        shares = positives.to(logits.dtype) / count.clamp(min=1)
        shares = (1 - self.smoothing) * shares + self.smoothing * (count > 0) / logits.shape[1]
        return -(shares * logits.log_softmax(dim=1)).sum(dim=1).mean()


class BinaryCrossEntropy(nn.Module):
    """One yes or no a label, in nats; the sum over labels, mean over the batch."""

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        require(0 <= smoothing < 1, "smoothing", "in [0, 1)", smoothing)
        self.smoothing = smoothing

    def forward(self, logits: Tensor, positives: Tensor) -> Tensor:
        """logits (B, K), positives (B, K) bool -> scalar."""
        aim = positives.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, aim, reduction="none")
        return each.sum(dim=1).mean()


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

    With margin 0 it is the normalized softmax. Beyond pi - margin the cosine goes on along a
    line, as is usual, so that it keeps falling.
    """

    def __init__(
        self, dim: int, n_classes: int, *, scale: float = 16.0, margin: float = 0.1
    ) -> None:
        super().__init__()
        require(math.isfinite(scale) and scale > 0, "scale", "positive", scale)
        require(0 <= margin < math.pi, "margin", "in [0, pi) radians", margin)
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

    def classify(self, embeddings: Tensor) -> Tensor:
        """(B, D) -> logits (B, K), without the margin."""
        return self.scale * self.cosines(embeddings)


class CosFace(ArcFace):
    """As ArcFace, with the margin taken off the target's cosine."""

    def moved(self, c: Tensor) -> Tensor:
        """The target's cosines (B,) after the margin."""
        return c - self.margin


class Triplet(nn.Module):
    """Pairs of one class against a negative, on unit vectors, in squared distances.

    `mining` "semi_hard": every pair, against the nearest negative farther than the positive, or
    where none is, the farthest. "hard": each row's farthest positive against its nearest negative.
    """

    def __init__(
        self, dim: int, n_classes: int, *, margin: float = 0.2, mining: str = "semi_hard"
    ) -> None:
        super().__init__()
        require(math.isfinite(margin) and margin >= 0, "margin", "not negative", margin)
        require(mining in ("semi_hard", "hard"), "mining", "semi_hard or hard", mining)
        self.margin, self.mining = margin, mining

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar, mean over pairs; 0 without a pair or a negative."""
        unit = F.normalize(embeddings, dim=1)
        d = 2 - 2 * unit @ unit.T
        same = target[:, None] == target
        a, p, n = self._hard(d, same) if self.mining == "hard" else self._semi_hard(d, same)
        if len(a) == 0:
            return 0.0 * d.sum()
        return F.relu(d[a, p] - d[a, n] + self.margin).mean()

    def _hard(self, d: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pair = same & ~torch.eye(len(same), dtype=torch.bool, device=d.device)
        a = (pair.any(dim=1) & (~same).any(dim=1)).nonzero()[:, 0]
        far = d.detach().masked_fill(~pair, -math.inf).argmax(dim=1)
        near = d.detach().masked_fill(same, math.inf).argmin(dim=1)
        return a, far[a], near[a]

    def _semi_hard(self, d: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, p = (same & ~torch.eye(len(same), dtype=torch.bool)).nonzero(as_tuple=True)
        has_negative = (~same).any(dim=1)[a]
        a, p = a[has_negative], p[has_negative]
        if len(a) == 0:
            return a, p, p
        with torch.no_grad():
            others = d[a].masked_fill(same[a], math.inf)
            farther = others.masked_fill(others <= d[a, p][:, None], math.inf)
            farthest = d[a].masked_fill(same[a], -math.inf).argmax(dim=1)
            n = torch.where(farther.isfinite().any(dim=1), farther.argmin(dim=1), farthest)
        return a, p, n


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
    """Half of the batch gives class means, the other half is told by squared distance to them.

    `normalize` first scales the embeddings to unit length.
    """

    def __init__(
        self, dim: int, n_classes: int, *, scale: float = 10.0, normalize: bool = True
    ) -> None:
        super().__init__()
        require(math.isfinite(scale) and scale > 0, "scale", "positive", scale)
        self.n_classes, self.scale, self.normalize = n_classes, scale, normalize

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """(B, D), (B,) -> scalar; queries whose class has no mean are left out."""
        if self.normalize:
            embeddings = F.normalize(embeddings, dim=1)
        half = len(target) // 2
        member = F.one_hot(target[:half], self.n_classes).to(embeddings.dtype)
        counts = member.sum(dim=0)
        means = member.T @ embeddings[:half] / counts.clamp(min=1)[:, None]
        known = counts[target[half:]] > 0
        queries, y = embeddings[half:][known], target[half:][known]
        if len(y) == 0:
            return 0.0 * embeddings.sum()
        logits = -self.scale * (queries[:, None] - means).square().sum(dim=2)
        return F.cross_entropy(logits.masked_fill(counts == 0, -1e9), y)
