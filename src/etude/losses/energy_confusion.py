r"""Energy confusion: pull different training classes together, against the metric loss.

A metric loss that pushes the seen classes apart keeps what tells these classes apart and drops
the rest; an unseen class may need the rest. So a second term works against it. It confuses: it
lowers the mean squared distance between samples of different classes,

    E = mean over pairs (i, j) with y_i != y_j of |e_i - e_j|^2                            (1)
    loss = L_metric(e, y) + w log E                                                        (2)

For two classes I and J the mean of (1) is |mu_I - mu_J|^2 + tr S_I + tr S_J (biased covariances),
at least half of the energy distance with squared norms, 2 |mu_I - mu_J|^2. Three choices keep (2)
from collapsing the embedding. The logarithm divides the gradient by E. The metric loss sees
directions only, so the length of e is free to give way. And the term trains the embedding layer
alone: with h the backbone's output and W, b that layer,

    e = W h + b,   in E:  e = W stop(h) + b                                                (3)

where no gradient passes stop. As metric loss, binomial deviance on cosines s_ij:

    mean over positive pairs of log(1 + exp(-a (s - t)))
        + mean over negative pairs of log(1 + exp(a r (s - t))),   a = 2, t = 0.5, r = 25  (4)

Source: Chen, Deng, "Energy Confused Adversarial Metric Learning for Zero-Shot Image Retrieval and
Clustering", AAAI 2019, arXiv:1901.07169; released code chenbinghui1/ECAML.
Departures: (1) is over all pairs, or `n_sampled` of them drawn from all, in linear time by class
sums; the release draws 10 later rows for all but the last 20 rows and supposes that classes come
two by two. Its factor 1/2 and its division by the number of all negative pairs add a constant to
log E, so the gradient is the same. E is at least 1e-12 under the logarithm.
Not found in the paper: its text beyond the introduction could not be read. The logarithm, the
unnormalized e, (3) and w = 0.13 are the release's (Cars, binomial deviance), where the whole
confusion block is switched off as shipped; `log`, `normalize` and `detach_backbone` are switches.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["ECAMLLoss", "BinomialDevianceLoss", "energy_confusion", "energy_distance"]

CARD = Card(
    slug="energy_confusion",
    family="losses",
    title="Energy Confused Adversarial Metric Learning for Zero-Shot Image Retrieval and "
    "Clustering",
    year=2019,
    arxiv="1901.07169",
    move="pull different training classes together in the embedding layer, against the metric loss",
    task="train",
    claim="on classes of Fashion-MNIST never trained on, binomial deviance with energy confusion "
    "has a higher recall at 1 than binomial deviance alone",
    baseline="binomial_deviance",
    metric="recall_at_1",
    better="higher",
    published="abstract: state of the art on CUB, Cars, Stanford Online Products and In-Shop; it "
    "gives no number",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="chenbinghui1/ECAML",
    departs=(
        "The confusion term takes all pairs of different classes, not ten later rows of each row.",
        "classify compares with running class means; the paper has no classifier.",
    ),
    search={"confusion_weight": (0.13, 0.05, 0.5)},
    example={"dim": 6, "n_classes": 3, "out_dim": 4},
)


def _wide(embeddings: Tensor, labels: Tensor) -> Tensor:
    require(embeddings.ndim == 2, "embeddings", "of shape (B, D)", embeddings)
    require(labels.shape == embeddings.shape[:1], "labels", "(B,), one a row", labels)
    half = embeddings.dtype in (torch.float16, torch.bfloat16)
    return embeddings.float() if half else embeddings


def energy_confusion(
    embeddings: Tensor,
    labels: Tensor,
    *,
    log: bool = True,
    n_sampled: int | None = None,
    generator: torch.Generator | None = None,
    eps: float = 1e-12,
) -> Tensor:
    """log of (1), or (1) itself: embeddings (B, D), labels (B,) int64 -> scalar.

    A batch of one class has no pair and gives 0 with a zero gradient. Half-precision
    embeddings are computed, and answered, in float32.

    Args:
        log: give log E, whose gradient does not depend on the scale of E.
        n_sampled: pairs drawn (with replacement) from those of different classes; None takes all.
        generator: of the draws.
        eps: least E under the logarithm.

    Raises:
        EtudeError: shapes do not match, or `n_sampled` is not positive.
    """
    e = _wide(embeddings, labels)
    require(n_sampled is None or n_sampled >= 1, "n_sampled", "None or at least 1", n_sampled)
    classes, member = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return 0.0 * e.sum()
    if n_sampled is not None:
        i, j = (labels[:, None] != labels).nonzero(as_tuple=True)
        drawn = torch.randint(len(i), (n_sampled,), generator=generator).to(i.device)
        energy = (e[i[drawn]] - e[j[drawn]]).square().sum(dim=1).mean()  # (1)
    else:
        # Over all ordered pairs, with the mean of e taken off first so that sum(e) = 0:
        # sum |e_i - e_j|^2 = 2 sum_i (B - n_i) |e_i|^2 + 2 sum_c |sum of class c|^2
        e = e - e.mean(dim=0)
        counts = member.bincount()
        sums = e.new_zeros(len(classes), e.shape[1]).index_add(0, member, e)
        others = (len(e) - counts[member]).to(e.dtype)
        total = 2 * (others @ e.square().sum(dim=1)) + 2 * sums.square().sum()
        energy = total / others.sum()  # (1)
    return energy.clamp(min=eps).log() if log else energy


def energy_distance(x: Tensor, y: Tensor, *, exponent: float = 1.0) -> Tensor:
    """2 E|x - y|^a - E|x - x'|^a - E|y - y'|^a of two sets of rows, a = `exponent`.

    x (M, D), y (N, D) -> scalar >= 0; the expectations include each row with itself. For
    0 < a < 2 it is 0 only for equal distributions; for a = 2 it is 2 |mean x - mean y|^2.

    Raises:
        EtudeError: `exponent` outside (0, 2], or an empty set.
    """
    require(0 < exponent <= 2, "exponent", "in (0, 2]", exponent)
    require(x.ndim == 2 and len(x) > 0, "x", "(M, D), M > 0", x)
    require(y.ndim == 2 and len(y) > 0 and y.shape[1] == x.shape[1], "y", "(N, D), N > 0", y)

    def mean(a: Tensor, b: Tensor) -> Tensor:
        squared = (a[:, None] - b).square().sum(dim=2)
        positive = squared != 0  # the root of 0 has no gradient; NaN stays
        return torch.where(positive, squared.where(positive, 1.0) ** (exponent / 2), 0.0).mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


class BinomialDevianceLoss(nn.Module):
    """Equation (4).

    Args:
        scale: a.
        margin: t, a cosine.
        negative_weight: r; makes negative pairs steeper.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self, *, scale: float = 2.0, margin: float = 0.5, negative_weight: float = 25.0
    ) -> None:
        super().__init__()
        require(scale > 0, "scale", "positive", scale)
        require(-1 <= margin <= 1, "margin", "a cosine, in [-1, 1]", margin)
        require(negative_weight > 0, "negative_weight", "positive", negative_weight)
        self.scale, self.margin, self.negative_weight = scale, margin, negative_weight

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """embeddings (B, D), labels (B,) int64 -> scalar; a kind of pair that is absent adds 0."""
        unit = F.normalize(_wide(embeddings, labels), dim=1)
        i, j = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
        s, same = (unit @ unit.T)[i, j] - self.margin, labels[i] == labels[j]
        slope = torch.where(same, self.scale, -self.scale * self.negative_weight)
        terms = -F.logsigmoid(slope * s)
        n_same = same.sum()
        share = torch.where(same, n_same, len(same) - n_same).to(unit.dtype)
        return (terms / share).sum()  # (4)


class ECAMLLoss(nn.Module):
    """Equations (2) and (3); owns the embedding layer W, b.

    Args:
        dim: width of the backbone's output h.
        n_classes: K, for `classify` only.
        out_dim: width of e.
        base: metric loss, (embeddings, labels) -> scalar; None takes (4).
        confusion_weight: w; 0 leaves the metric loss.
        log: as in (2), else w E.
        normalize: confuse unit vectors instead of e.
        detach_backbone: stop the gradient as in (3).
        n_sampled: as in `energy_confusion`.
        generator: of the draws.

    Raises:
        EtudeError: a value outside its range.
    """

    class_means: Tensor

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        out_dim: int = 64,
        base: nn.Module | None = None,
        confusion_weight: float = 0.13,
        log: bool = True,
        normalize: bool = False,
        detach_backbone: bool = True,
        n_sampled: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(dim >= 1 and out_dim >= 1, "dim, out_dim", "at least 1", (dim, out_dim))
        require(n_classes >= 1, "n_classes", "at least 1", n_classes)
        fits = math.isfinite(confusion_weight) and confusion_weight >= 0
        require(fits, "confusion_weight", "a number from 0 on", confusion_weight)
        require(n_sampled is None or n_sampled >= 1, "n_sampled", "None or at least 1", n_sampled)
        self.dim, self.n_classes, self.out_dim = dim, n_classes, out_dim
        self.base = BinomialDevianceLoss() if base is None else base
        self.confusion_weight, self.log, self.normalize = confusion_weight, log, normalize
        self.detach_backbone, self.n_sampled = detach_backbone, n_sampled
        self.generator = generator
        self.layer = nn.Linear(dim, out_dim)
        self.register_buffer("class_means", torch.zeros(n_classes, out_dim))

    def embed(self, embeddings: Tensor) -> Tensor:
        """h (B, dim) -> e (B, out_dim) of (3), in the precision of W."""
        e: Tensor = self.layer(embeddings.to(self.layer.weight.dtype))
        return e

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """h (B, dim), labels (B,) int64 -> scalar (2); a batch of one class is not confused."""
        e = self.embed(_wide(embeddings, labels))
        if self.training:
            self._follow(e.detach(), labels)
        loss: Tensor = self.base(e, labels)
        if self.confusion_weight == 0:
            return loss
        confused = self.embed(embeddings.detach()) if self.detach_backbone else e  # (3)
        if self.normalize:
            confused = F.normalize(confused, dim=1)
        confusion = energy_confusion(
            confused, labels, log=self.log, n_sampled=self.n_sampled, generator=self.generator
        )
        return loss + self.confusion_weight * confusion  # (2)

    def classify(self, embeddings: Tensor) -> Tensor:
        """h (B, dim) -> logits (B, K): ten times the cosine to each class's running mean."""
        unit = F.normalize(self.embed(embeddings), dim=1)
        return 10 * unit @ F.normalize(self.class_means, dim=1).T

    def _follow(self, e: Tensor, labels: Tensor) -> None:
        """Move the mean of each class of the batch a tenth of the way to the batch's mean."""
        unit = F.normalize(e, dim=1)
        member = F.one_hot(labels, self.n_classes).to(unit.dtype)
        counts = member.sum(dim=0)[:, None]
        moved = self.class_means.lerp(member.T @ unit / counts.clamp(min=1), 0.1)
        self.class_means = torch.where(counts > 0, moved, self.class_means)
