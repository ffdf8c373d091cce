r"""Dynamic subspace learners: split the embedding when training stalls, one part per data cluster.

The D neurons of the embedding layer are shared out among K learners, each of which sees one of K
clusters of the data. K need not be known: training starts with one learner, and when it stalls,
the neurons of the last learner that matter little become a new one. With features F (C channels)
of an image, an attention map A in (0, 1), and e_k the neurons of learner k:

    h = mean over places of A F,   e = W h + b,   z_k = e_k / |e_k|                        (1)

K-means on h / |h| makes K clusters, their ids matched to the last ones by overlap; samples alone of
their class in one are left out. A batch of cluster k trains z_k and all below by the margin loss:

    mean of max(0, d_ap - beta + m) + max(0, beta - d_an + m), over active couples         (2)

with beta = 1.2, m = 0.2, and as many negatives n an anchor a as it has positives p: the nearest of
those at 0.5 or farther (a nearer one only where they run out). When the score on held-out data has
no new best for a while, the last learner's neurons j are scored over an epoch's samples i,

    s_j = |mean_i z_ij dL/dz_ij|, scaled to [0, 1] by its least and largest                (3)

those above 1/2 stay, and the others get new weights as learner K + 1. At the end one cluster and
the whole normalized embedding are trained together.

Source: Adiga V, Dolz, Lombaert, "Attention-based Dynamic Subspace Learners for Medical Image
Analysis", IEEE JBHI 2022, arXiv:2206.09068; released code adigasu/Dynamic_subspace_learners.
Not found: the paper's text but the abstract; what the card does not name is the release's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.optim import Adam

from etude.core import Card, require

__all__ = ["DynamicSubspaceEmbedding", "SubspaceMarginTrainer", "neuron_scores",
           "subspace_margin_loss"]  # fmt: skip

CARD = Card(
    slug="dynamic_subspace_learners",
    family="losses",
    title="Attention-based Dynamic Subspace Learners for Medical Image Analysis",
    year=2022,
    arxiv="2206.09068",
    move="on a stall, give the neurons that matter little to a new learner with its own data",
    task="experiment",
    claim="on characters of Omniglot never trained on, dynamic subspace learners have a higher "
    "recall at 1 than the same training with one learner",
    baseline="one_learner",
    metric="recall_at_1",
    better="higher",
    published="abstract: attention maps as labels give up to 15% higher Dice in segmentation",
    fidelity="full",
    cost="L",
    data=("omniglot-small",),
    code="adigasu/Dynamic_subspace_learners",
    departs=(
        "Kept rows of W stay, ids follow their matching; the release overwrites rows, inverts it.",
        "Data are clustered again after a split, Adam forgets new rows' state; no dropout (0.01).",
        "The caller's score on held-out data shows a stall, not one on the test set.",
        "An anchor has as many negatives as positives, none of its class, in uneven batches too.",
    ),
    example={"dim": 6, "out_dim": 8},
)
Draws = np.random.Generator


def subspace_margin_loss(
    embeddings: Tensor, labels: Tensor, *, margin: float = 0.2, beta: float = 1.2,
    cutoff: float = 0.5,
) -> Tensor:  # fmt: skip
    """Equation (2): unit embeddings (B, D), labels (B,) int64 -> scalar; 0 without a couple.

    A couple is active if one of its terms is, as released. Half precision gives float32.
    """
    fits = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1]
    require(fits, "embeddings", "(B, D), with labels (B,)", embeddings)
    z = embeddings.float() if embeddings.dtype.itemsize < 4 else embeddings
    with torch.no_grad():
        d = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")
        same = labels[:, None] == labels
        positive = same & ~torch.eye(len(z), dtype=torch.bool, device=z.device)
        n_positives = positive.sum(dim=1, keepdim=True)
        late = (d + 4 * (d < cutoff)).masked_fill(same, math.inf)  # d <= 2 on the sphere
        negative = (late.argsort(dim=1, stable=True).argsort(1) < n_positives) & ~same
        # the k-th positive goes with the k-th negative, both by position in the batch
        p, n = (m.byte().argsort(dim=1, descending=True, stable=True) for m in (positive, negative))
        n_couples = torch.minimum(n_positives, negative.sum(dim=1, keepdim=True))
        a, k = (torch.arange(len(z), device=z.device) < n_couples).nonzero(as_tuple=True)
    d_ap, d_an = (((z[a] - z[i[a, k]]).square().sum(1) + 1e-8).sqrt() for i in (p, n))
    near, far = F.relu(d_ap - beta + margin), F.relu(beta - d_an + margin)
    active = ((near > 0) | (far > 0)).sum().clamp(min=1)
    return (near + far).sum() / active  # (2)


def neuron_scores(activations: Tensor, gradients: Tensor) -> Tensor:
    """Equation (3): (N, d) activations and their gradients -> (d,) in [0, 1]; 0 where all equal."""
    require(activations.shape == gradients.shape, "gradients", "shaped as activations", gradients)
    s = (activations * gradients).mean(dim=0).abs()
    return (s - s.min()) / (s.max() - s.min()).clamp(min=torch.finfo(s.dtype).tiny)  # (3)


class DynamicSubspaceEmbedding(nn.Module):
    """Equation (1).

    Args:
        dim: C of the features. out_dim: D.
        n_learners: K to begin with, of ceil(D / K) neurons each but the last.
        generator: of the first weights and of those of new learners.
    """

    owner: Tensor

    def __init__(
        self, dim: int, *, out_dim: int = 128, n_learners: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require(dim >= 1 and out_dim >= 1, "dim, out_dim", "at least 1", (dim, out_dim))
        size = -(-out_dim // n_learners) if n_learners >= 1 else 0
        fits = size > 0 and (n_learners - 1) * size < out_dim
        require(fits, "n_learners", "at least 1, each with a neuron", n_learners)
        self.dim, self.out_dim, self.generator = dim, out_dim, generator
        widths = (dim, max(1, dim // 8), max(1, dim // 32), 1)
        self.attention = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)])
        self.layer = nn.Linear(dim, out_dim)
        self.register_buffer("owner", torch.arange(out_dim) // size)
        with torch.no_grad():
            for conv in self.attention:
                bound = 1 / math.sqrt(conv.weight[0].numel())
                for parameter in conv.parameters():
                    parameter.uniform_(-bound, bound, generator=generator)
            for k in range(n_learners):
                self._renew(self.neurons(k))

    @property
    def n_learners(self) -> int:
        """K."""
        return int(self.owner.max()) + 1

    def neurons(self, learner: int) -> Tensor:
        """Ids of the neurons of a learner, ascending."""
        return (self.owner == learner).nonzero()[:, 0]

    def attention_map(self, features: Tensor) -> Tensor:
        """F (B, C, H, W) -> A (B, 1, H, W)."""
        first, second, third = self.attention
        return torch.sigmoid(third(F.relu(second(F.relu(first(features))))))

    def pooled(self, features: Tensor) -> Tensor:
        """F (B, C, H, W) -> h (B, C); vectors (B, C) are h already."""
        fits = features.ndim in (2, 4) and features.shape[1] == self.layer.in_features
        require(fits, "features", f"(B, {self.layer.in_features}), or so many maps", features)
        if features.ndim == 2:
            return features
        return (self.attention_map(features) * features).mean(dim=(2, 3))

    def forward(self, features: Tensor) -> Tensor:
        """F (B, C, H, W) or h (B, C) -> z (B, D), every learner's neurons of length 1."""
        e = self.layer(self.pooled(features))
        squares = e.new_zeros(len(e), self.n_learners).index_add(1, self.owner, e.square())
        lengths = squares.clamp(min=torch.finfo(e.dtype).tiny).sqrt()
        return e / lengths.index_select(1, self.owner)  # (1)

    def split(
        self, scores: Tensor, *, threshold: float = 0.5, largest: int = 10, fewest: int = 5
    ) -> Tensor:
        """Give neurons of the last learner that score at most `threshold` to a new one.

        `scores` (d,) are those of (3), in the order of ``neurons``. A learner of at most
        `largest` neurons stays whole, and one of which fewer than `fewest` would stay.
        Returns the ids of the new learner's neurons; empty without a split.
        """
        last = self.neurons(self.n_learners - 1)
        require(scores.shape == last.shape, "scores", f"of shape ({len(last)},)", scores)
        given = last[scores <= threshold]
        if len(last) <= largest or len(last) - len(given) < fewest or len(given) == 0:
            return last[:0]
        self.owner[given] = self.n_learners
        self._renew(given)
        return given

    @torch.no_grad()
    def _renew(self, rows: Tensor) -> None:
        w, b, bound = self.layer.weight, self.layer.bias, 1 / math.sqrt(self.layer.in_features)
        w[rows] = nn.init.xavier_normal_(torch.empty_like(w[rows]), generator=self.generator)
        b[rows] = torch.empty_like(b[rows]).uniform_(-bound, bound, generator=self.generator)


class SubspaceMarginTrainer:
    """Trains a network, x (B, ...) -> features, and `head` on it; splits `head` on a stall.

    Args:
        n_epochs: passes, clustered every `recluster_every`; one learner from `joint_epoch` on.
        patience: epochs without a new best score before a split; the next needs a new best.
        batch_size, n_per_class: rows of a batch, and of each class in it.
    """

    def __init__(
        self, network: nn.Module, *, head: DynamicSubspaceEmbedding, n_epochs: int = 300,
        joint_epoch: int = 250, recluster_every: int = 2, patience: int = 10,
        batch_size: int = 32, n_per_class: int = 8, lr: float = 1e-5,
        weight_decay: float = 1e-4, seed: int = 0,
    ) -> None:  # fmt: skip
        least = min(n_epochs, recluster_every, patience)
        require(least >= 1, "n_epochs, recluster_every, patience", "at least 1", least)
        fits = batch_size >= 2 * n_per_class >= 4
        require(fits, "batch_size", "two classes of n_per_class >= 2 rows, or more", batch_size)
        self.network, self.head, self.seed, self.patience = network, head, seed, patience
        self.n_epochs, self.joint_epoch, self.lr = n_epochs, joint_epoch, lr
        self.recluster_every, self.weight_decay = recluster_every, weight_decay
        self.batch_size, self.n_per_class = batch_size, n_per_class

    def embed(self, x: Tensor, *, pooled: bool = False) -> Tensor:
        """x (N, ...) -> z (N, D), or h, in evaluation mode, in which both networks stay."""
        self.network.eval(), self.head.eval()
        with torch.no_grad():
            last = self.head.pooled if pooled else self.head
            return torch.cat([last(self.network(part)) for part in x.split(256)])

    def fit(self, x: Tensor, labels: Tensor, score: Callable[[], float]) -> SubspaceMarginTrainer:
        """x (N, ...), labels (N,) int64 -> self.

        After every epoch `score` gives a figure of ``embed`` on held-out rows, higher is better
        (released: normalized mutual information), kept in `scores_`, and K in `n_learners_`.
        """
        rng, y = np.random.default_rng(self.seed), labels.numpy()
        require(len(np.unique(y)) < len(y), "labels", "of two rows of a class at least", labels)
        weights = [*self.network.parameters(), *self.head.parameters()]
        adam = Adam(weights, lr=self.lr, weight_decay=self.weight_decay)
        clusters, best, best_epoch, fresh, due = np.zeros_like(y), -math.inf, 0, True, True
        self.scores_, self.n_learners_ = np.zeros(self.n_epochs), np.zeros(self.n_epochs, int)
        for epoch in range(self.n_epochs):
            joint = epoch >= self.joint_epoch
            k = 1 if joint else self.head.n_learners
            if k == 1:
                clusters = np.zeros_like(y)
            elif due or epoch % self.recluster_every == 0:
                clusters = self._clusters(x, clusters, k, rng)
            importance = self._epoch(x, labels, clusters, joint, adam, rng)
            due, found = False, score()
            if found > best:
                best, best_epoch, fresh = found, epoch, True
            elif fresh and not joint and epoch >= best_epoch + self.patience:
                new = self.head.split(importance)
                fresh, due = len(new) == 0, len(new) > 0
                for parameter in self.head.layer.parameters():
                    for name in ("exp_avg", "exp_avg_sq"):
                        adam.state[parameter][name][new] = 0
            self.scores_[epoch], self.n_learners_[epoch] = found, self.head.n_learners
        return self

    def _clusters(self, x: Tensor, last: np.ndarray, k: int, rng: Draws) -> np.ndarray:
        """K-means clusters of h / |h|, the best of five tries, with ids like the last ones."""
        h = F.normalize(self.embed(x, pooled=True), dim=1).double().numpy()
        tries = [kmeans2(h, k, iter=100, minit="++", rng=rng) for _ in range(5)]
        _, new = min(tries, key=lambda t: float(np.square(h - t[0][t[1]]).sum()))
        overlap = np.zeros((k, k))
        np.add.at(overlap, (new, last), 1)
        return np.asarray(linear_sum_assignment(overlap, maximize=True)[1][new])

    def _epoch(
        self, x: Tensor, labels: Tensor, clusters: np.ndarray, joint: bool, adam: Adam, rng: Draws
    ) -> Tensor:
        """Train on each cluster in turn; (3) of the last learner, from its batches."""
        self.network.train(), self.head.train()
        sizes, last, seen = np.bincount(clusters), self.head.n_learners - 1, []
        for _ in range(max(1, int(sizes.max()) // self.batch_size)):
            for c in np.flatnonzero(sizes).tolist():
                if len(rows := self._rows(labels.numpy(), clusters == c, rng)) == 0:
                    continue
                z = self.head(self.network(x[rows]))
                z.retain_grad()
                block = z if joint else z[:, self.head.neurons(c)]
                loss = subspace_margin_loss(F.normalize(block, dim=1), labels[rows])
                adam.zero_grad()
                loss.backward()
                adam.step()
                if c == last:
                    seen.append((z.detach(), z.grad))
        own = self.head.neurons(last)
        parts = [torch.cat(p)[:, own] for p in zip(*seen, strict=True)]
        return neuron_scores(*parts) if seen else torch.zeros(len(own))

    def _rows(self, y: np.ndarray, inside: np.ndarray, rng: Draws) -> Tensor:
        """A batch of one cluster: classes of two rows or more, `n_per_class` rows of each."""
        classes, counts = np.unique(y[inside], return_counts=True)
        drawn = rng.permutation(classes[counts > 1])[: self.batch_size // self.n_per_class]
        rows = [np.flatnonzero(inside & (y == c)) for c in drawn.tolist()]
        few = [rng.choice(r, self.n_per_class, replace=len(r) < self.n_per_class) for r in rows]
        return torch.from_numpy(np.concatenate([*few, np.zeros(0, np.int64)]))
