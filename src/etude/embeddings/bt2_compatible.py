r"""BT^2: a new embedding that holds an old-compatible part without giving up its own.

A new model whose features must be comparable with an old model's galleries is held back by them.
More dimensions help if the network may decide what to put where without losing anything, and a
learned rotation (basis transformation) is just that: it keeps all inner products. A backbone
gives h of size D_new + D_old. Its first part is the new model's own feature, a second one, made
from all of h, has D_old coordinates of which only the first m are used:

    f = normalize(h[:D_new]),   e = normalize((W relu(h) + b)[:m])                         (1)
    u = [ e ; P (C f) ],        size m + D_new, P orthogonal                               (2)
    z = [ R u[:D_old] ; u[D_old:] ],    R orthogonal, D_old <= D_new + m                   (3)
    s = normalize(z[:D_old])

z is the embedding, s what an old gallery is compared with: old vectors are as if padded with
zeros. P and R being orthogonal, for any weights <z(x), z(y)> = <e_x, e_y> + C^2 <f_x, f_y> and
|z|^2 = 1 + C^2. Training pulls f to the feature of an independent new model, and s to the old
model's, both frozen, with K class means T of the old model's features as a second classifier:

    loss = CE(V f) + l1 (1 - cos(f, f_new)) + l2 CE(T s) + l3 (1 - cos(s, f_old))          (4)

V f and T s have neither bias nor temperature. T is taken over all classes of the new training
set, those that the old model never learned too.

Source: Zhou, Li, Shrivastava, Zhao, Torralba, Tian, Lim, "BT^2: Backward-compatible Training with
Basis Transformation", ICCV 2023, arXiv:2211.03989; release YifeiZhou02/BT-2 at 8282360, whose
CIFAR-100 settings (m = 32, C = 2, l1 = 1, l2 = 10, l3 = 5) are the defaults here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["BasisTransformationHead", "BT2Parts", "bt2_loss", "zero_pad_old"]

CARD = Card(
    slug="bt2_compatible",
    family="embeddings",
    title="BT^2: Backward-compatible Training with Basis Transformation",
    year=2022,
    arxiv="2211.03989",
    move="Let learned rotations place an old-compatible part inside a slightly wider embedding, "
    "where they cost the new part nothing.",
    task="experiment",
    claim="Queries of the new model find the right class in a gallery of the old one more often "
    "than with plain backward-compatible training.",
    baseline="bct",
    metric="precision_at_1",
    better="higher",
    published="release's README, CIFAR-100, old model of 50 classes, top-1 of new queries in the "
    "old and in the new gallery: 38.7 and 62.4; BCT 25.0 and 60.0; independent 0.8 and 62.7",
    fidelity="full",
    cost="M",
    data=("fashion_mnist",),
    code="YifeiZhou02/BT-2",
    departs=(
        "A rotation is written as a fixed random one times the exponential of a learned skew "
        "matrix; the release takes torch's orthogonal parametrization.",
    ),
    search={"n_extra": (32, 8, 16), "scale": (2.0, 1.0, 3.0)},
    example={"dim": 12, "n_classes": 3, "old_dim": 5, "n_extra": 2},
)


class BT2Parts(NamedTuple):
    """What the head makes of a batch.

    Attributes:
        logits: (B, K), V f.
        compat: (B, D_old), s: unit vectors to compare with old features.
        new_feat: (B, D_new), f: unit vectors.
        full_embedding: (B, m + D_new), z, all of length sqrt(1 + C^2).
    """

    logits: Tensor
    compat: Tensor
    new_feat: Tensor
    full_embedding: Tensor


class _Rotation(nn.Module):
    """x -> Q x with Q = start exp(A - A^T), orthogonal whatever the optimizer does to A."""

    start: Tensor

    def __init__(self, dim: int, generator: torch.Generator | None) -> None:
        super().__init__()
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        start = (q * r.diagonal().sign()).to(torch.get_default_dtype())
        self.register_buffer("start", start)
        self.skew = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.start @ torch.linalg.matrix_exp(self.skew - self.skew.T)
        return F.linear(x, turn)


class BasisTransformationHead(nn.Module):
    """Equations (1) to (3) on a backbone's output.

    Args:
        dim: width D_new + D_old of the backbone's output h.
        n_classes: K.
        old_dim: D_old, below `dim`, the width of the old model's features.
        n_extra: m, in 1..D_old: by how much z is wider than the new model's feature.
        scale: C, above 0: how much the new part weighs beside the extra one.
        generator: of the initial weights and rotations.

    Raises:
        EtudeError: widths that do not fit: D_old must be at most D_new + m.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        *,
        old_dim: int = 128,
        n_extra: int = 32,
        scale: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        require(1 <= old_dim < dim, "old_dim", f"in 1..{dim - 1}", old_dim)
        require(1 <= n_extra <= old_dim, "n_extra", f"in 1..{old_dim}", n_extra)
        new_dim = dim - old_dim
        fits = old_dim <= new_dim + n_extra
        require(fits, "old_dim", f"at most D_new + n_extra = {new_dim + n_extra}", old_dim)
        require(0 < scale < math.inf, "scale", "above 0", scale)
        self.dim, self.n_classes, self.old_dim = dim, n_classes, old_dim
        self.new_dim, self.n_extra, self.scale = new_dim, n_extra, scale
        self.extra = nn.Linear(dim, old_dim)  # W and b
        self.classifier = nn.Linear(new_dim, n_classes, bias=False)  # V
        with torch.no_grad():
            for layer in (self.extra, self.classifier):
                bound = 1 / math.sqrt(layer.in_features)
                for weight in layer.parameters():
                    weight.uniform_(-bound, bound, generator=generator)
        self.turn_new = _Rotation(new_dim, generator)  # P
        self.turn_old = _Rotation(old_dim, generator)  # R

    def forward(self, embeddings: Tensor) -> Tensor:
        """embeddings (B, dim), a backbone's h -> z (B, m + D_new), all of one length."""
        return self.parts(embeddings).full_embedding

    def parts(self, embeddings: Tensor) -> BT2Parts:
        """embeddings (B, dim) -> all that ``bt2_loss`` and a search need."""
        fits = embeddings.ndim == 2 and embeddings.shape[1] == self.dim
        require(fits, "embeddings", f"(B, {self.dim})", embeddings)
        new = F.normalize(embeddings[:, : self.new_dim], dim=1)
        # normalized after the cut, so that |e| = 1
        e = F.normalize(self.extra(embeddings.relu())[:, : self.n_extra], dim=1)  # (1)
        u = torch.cat([e, self.turn_new(self.scale * new)], dim=1)  # (2)
        head = self.turn_old(u[:, : self.old_dim])
        z = torch.cat([head, u[:, self.old_dim :]], dim=1)  # (3)
        return BT2Parts(self.classifier(new), F.normalize(head, dim=1), new, z)


def bt2_loss(
    parts: BT2Parts,
    target: Tensor,
    old_features: Tensor,
    new_features: Tensor,
    class_means: Tensor,
    *,
    new_weight: float = 1.0,
    class_weight: float = 10.0,
    old_weight: float = 5.0,
) -> Tensor:
    """Mean over the batch of equation (4).

    Args:
        parts: of ``BasisTransformationHead.parts``.
        target: (B,) int64 class ids.
        old_features: (B, D_old) the frozen old model's features of the batch; of any length.
        new_features: (B, D_new) the frozen independent new model's; of any length.
        class_means: (K, D_old) T: means of the old model's unit features of each class of the
            new training set, used as they are.
        new_weight, class_weight, old_weight: l1, l2, l3, at least 0.

    Raises:
        EtudeError: shapes that do not fit, or a negative weight.
    """
    n = len(parts.logits)
    require(target.shape == (n,), "target", f"({n},) class ids", target)
    wanted = {
        "old_features": (old_features, parts.compat.shape),
        "new_features": (new_features, parts.new_feat.shape),
        "class_means": (class_means, (parts.logits.shape[1], parts.compat.shape[1])),
    }
    for name, (value, shape) in wanted.items():
        require(tuple(value.shape) == tuple(shape), name, f"{tuple(shape)}", value)
    weights = {"new_weight": new_weight, "class_weight": class_weight, "old_weight": old_weight}
    for name, weight in weights.items():
        require(0 <= weight < math.inf, name, "at least 0", weight)
    to_new = 1 - F.cosine_similarity(parts.new_feat, new_features.detach(), dim=1).mean()
    to_old = 1 - F.cosine_similarity(parts.compat, old_features.detach(), dim=1).mean()
    by_means = F.cross_entropy(parts.compat @ class_means.detach().T, target)
    own = F.cross_entropy(parts.logits, target)
    return own + new_weight * to_new + class_weight * by_means + old_weight * to_old  # (4)


def zero_pad_old(old_features: Tensor, dim: int) -> Tensor:
    """(N, D_old) old features -> (N, dim) with zeros behind, to be searched beside new ones.

    <z, padded> is the inner product of z's first D_old coordinates with the old feature: for one
    query it ranks a gallery of old unit vectors as s does.

    Raises:
        EtudeError: `dim` below D_old.
    """
    require(old_features.ndim == 2, "old_features", "(N, D_old)", old_features)
    require(dim >= old_features.shape[1], "dim", f"at least {old_features.shape[1]}", dim)
    return F.pad(old_features, (0, dim - old_features.shape[1]))
