r"""MadaCos: the batch's median target cosine sets the scale and the margin of a cosine softmax.

A cosine softmax needs a scale and a margin, and good ones depend on how far training has come.
Here the batch says how far that is. With unit features and unit class weights, cosines c_ik, and
the batch's (lower) median m of the target cosines c_iy, found at the sample h,

    s = max(32, log(rho (1 - alpha) / alpha) / (1 - m))                                    (1)
    B = sum_{k != y_h} exp(s c_hk)                                                         (2)
    margin = max(0, m - log(B alpha / (1 - alpha)) / s)                                    (3)
    loss = mean_i -log softmax(s (c_i - margin [k = y_i]))_{y_i}                           (4)

By (3) the median sample has the target probability alpha, exactly, unless the margin is clamped
to 0 (then less); by (1) a sample at cosine 1 against the same B would have the odds rho. As m
rises, scale and margin rise. They are constants of the step: no gradient flows through them. In
evaluation the margin is 0. Features are pooled as ((1/HW) sum x^p)^(1/p).

A second stage adds local triplets. A tuple is an anchor, a positive and M hard negative images,
each a set of local descriptors (each of unit length below). A descriptor j of the positive and
its nearest anchor descriptor i match if j is i's nearest too, if d(i, j) <= 0.9 times j's second
least distance, and if j is in the salient half of the positive's locations, by sum_c |f_c|:

    sum over matches and negatives of max(0, |a_i - p_j|^2 - |a_i - n|^2 + 0.1)            (5)

with n the negative image's descriptor nearest to a_i; added with weight 0.05.

Source: Zhu, Gao, Ke, Qiao, Sun, "Coarse-to-Fine: Learning Compact Discriminative Representation
for Single-Stage Image Retrieval", ICCV 2023, arXiv:2308.04008; released code bassyess/CFCD.
Departures: log B is a log-sum-exp; where the release's exp overflows (in float32 at s c > 88) its
margin falls to 0. 1 - m is at least 1e-4; medians are of this process's batch.
Not found in the paper: its text beyond the introduction could not be read. rho = 9,999,999,
alpha = 0.02 (all four configurations), the clamp at 32 and that B is taken at the median sample
are the release's. It stores the weight 0.05 but builds (5) with weight 1, so which one its runs
had is open; `local_weight` and `reduction` are exposed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from etude.core import Card, require

__all__ = ["MadaCosLoss", "HardNegativeLocalTriplet", "gem_pool"]

CARD = Card(
    slug="madacos_retrieval",
    family="losses",
    title="Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image "
    "Retrieval",
    year=2023,
    arxiv="2308.04008",
    move="set the scale and margin of a cosine softmax anew for every batch from its median target "
    "cosine",
    task="train",
    claim="retrieving cluttered and occluded views of Fashion-MNIST images never trained on, "
    "MadaCos has a higher mean average precision than ArcFace with tuned scale and margin",
    baseline="arcface",
    metric="mean_average_precision",
    better="higher",
    published="abstract: state of the art for single-stage retrieval on Revisited Oxford and "
    "Revisited Paris; it gives no number",
    fidelity="full",
    cost="M",
    data=("digits", "fashion_mnist"),
    code="bassyess/CFCD",
    departs=(
        "log B is a log-sum-exp, where the release overflows at large scales and drops the margin; "
        "1 - m is at least 1e-4.",
        "classify uses the scale of the last training batch.",
    ),
    search={"alpha": (0.02, 0.3), "min_scale": (32.0, 16.0)},
    example={"dim": 6, "n_classes": 3},
)


class MadaCosLoss(nn.Module):
    """Equations (1) to (4); owns the class weights.

    Args:
        dim: width D of the embeddings.
        n_classes: K.
        alpha: target probability that (3) gives the median sample, in (0, 1).
        perfect_odds: rho in (1).
        min_scale: the least scale.

    The buffers `scale`, `margin` and `median` are those of the last training batch.

    Raises:
        EtudeError: a value outside its range.
    """

    scale: Tensor
    margin: Tensor
    median: Tensor

    def __init__(
        self,
        *,
        dim: int,
        n_classes: int,
        alpha: float = 0.02,
        perfect_odds: float = 9_999_999.0,
        min_scale: float = 32.0,
    ) -> None:
        super().__init__()
        require(dim >= 1, "dim", "at least 1", dim)
        require(n_classes >= 2, "n_classes", "at least 2", n_classes)
        require(0 < alpha < 1, "alpha", "in (0, 1)", alpha)
        fits = math.isfinite(perfect_odds) and perfect_odds * (1 - alpha) > alpha
        require(fits, "perfect_odds", "above alpha / (1 - alpha)", perfect_odds)
        require(math.isfinite(min_scale) and min_scale > 0, "min_scale", "positive", min_scale)
        self.dim, self.n_classes, self.alpha = dim, n_classes, alpha
        self.perfect_odds, self.min_scale = perfect_odds, min_scale
        bound = 1 / math.sqrt(dim)
        self.weight = nn.Parameter(torch.empty(n_classes, dim).uniform_(-bound, bound))
        self.register_buffer("scale", torch.tensor(float(min_scale)))
        self.register_buffer("margin", torch.tensor(0.0))
        self.register_buffer("median", torch.tensor(0.0))

    def cosines(self, embeddings: Tensor) -> Tensor:
        """embeddings (B, D) -> (B, K)."""
        return F.normalize(embeddings, dim=1) @ F.normalize(self.weight, dim=1).T

    def settle(self, cosines: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, margin (before evaluation sets it to 0) and median of a batch of cosines.

        cosines (B, K), target (B,) int64 -> three scalars without gradient.
        """
        c = cosines.detach()
        m, h = c.gather(1, target[:, None])[:, 0].median(dim=0)
        odds = math.log(self.perfect_odds * (1 - self.alpha) / self.alpha)
        s = (odds / (1 - m).clamp(min=1e-4)).clamp(min=self.min_scale)  # (1)
        is_target = F.one_hot(target[h], c.shape[1]).bool()
        log_b = (s * c[h]).masked_fill(is_target, -torch.inf).logsumexp(dim=0)  # (2)
        logit = math.log(self.alpha / (1 - self.alpha))
        return s, (m - (log_b + logit) / s).clamp(min=0), m  # (3)

    def forward(self, embeddings: Tensor, target: Tensor) -> Tensor:
        """embeddings (B, D), target (B,) int64 -> mean loss over the batch, in nats.

        Half-precision embeddings are computed, and answered, in the precision of the weights.
        """
        require(embeddings.ndim == 2, "embeddings", f"of shape (B, {self.dim})", embeddings)
        require(embeddings.shape[1] == self.dim, "embeddings", f"(B, {self.dim})", embeddings)
        require(target.shape == embeddings.shape[:1], "target", "(B,), one a row", target)
        c = self.cosines(embeddings.to(self.weight.dtype))
        s, margin, m = self.settle(c, target)
        if self.training:
            self.scale, self.margin, self.median = s, margin, m
        else:
            margin = torch.zeros_like(margin)
        at_target = F.one_hot(target, self.n_classes).to(c.dtype)
        return F.cross_entropy(s * (c - margin * at_target), target)  # (4)

    def classify(self, embeddings: Tensor) -> Tensor:
        """embeddings (B, D) -> logits (B, K): cosines times the last training batch's scale."""
        return self.scale * self.cosines(embeddings.to(self.weight.dtype))


class HardNegativeLocalTriplet(nn.Module):
    """Equation (5).

    Args:
        tuple_size: images a tuple: anchor, positive, then M negatives.
        margin: in squared distances of unit vectors.
        ratio: the largest nearest to second-nearest distance of a match.
        local_weight: the loss is multiplied by it.
        reduction: "sum" as in (5), or "mean" over matches and negatives.

    Raises:
        EtudeError: a value outside its range.
    """

    def __init__(
        self,
        *,
        tuple_size: int = 8,
        margin: float = 0.1,
        ratio: float = 0.9,
        local_weight: float = 0.05,
        reduction: str = "sum",
    ) -> None:
        super().__init__()
        require(tuple_size >= 3, "tuple_size", "at least 3", tuple_size)
        require(math.isfinite(margin) and margin >= 0, "margin", "a number from 0 on", margin)
        require(0 < ratio <= 1, "ratio", "in (0, 1]", ratio)
        fits = math.isfinite(local_weight) and local_weight >= 0
        require(fits, "local_weight", "a number from 0 on", local_weight)
        require(reduction in ("sum", "mean"), "reduction", "sum or mean", reduction)
        self.tuple_size, self.margin, self.ratio = tuple_size, margin, ratio
        self.local_weight, self.reduction = local_weight, reduction

    def matches(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """For each location j of each positive: the nearest anchor location, and if they match.

        tokens (B, T, D) -> (B / tuple_size, T) int64 and bool.
        """
        tuples = self._tuples(tokens).detach()
        unit = F.normalize(tuples, dim=3)
        distance = torch.cdist(unit[:, 0], unit[:, 1])  # (n, anchor's T, positive's T)
        (first, second), (nearest, _) = (
            part.unbind(1) for part in distance.topk(2, dim=1, largest=False)
        )
        back = distance.argmin(dim=2).gather(1, nearest)
        T = tokens.shape[1]
        mutual = back == torch.arange(T, device=tokens.device)
        salient = torch.zeros_like(mutual)
        top = tuples[:, 1].abs().sum(dim=2).topk(T // 2, dim=1).indices
        salient.scatter_(1, top, torch.ones_like(top, dtype=torch.bool))
        clear = (first <= self.ratio * second) & (second > 0)
        return nearest, mutual & clear & salient

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (B, T, D), B a multiple of `tuple_size`, tuples one after another -> scalar.

        0 with a zero gradient where nothing matches. Half precision is computed in float32.
        """
        nearest, matched = self.matches(tokens)
        unit = F.normalize(self._tuples(tokens), dim=3)
        size, D = self.tuple_size, tokens.shape[2]

        def at(places: Tensor, descriptors: Tensor) -> Tensor:
            return descriptors.gather(-2, places[..., None].expand(*places.shape, D))

        anchor = at(nearest, unit[:, 0])  # (n, T, D), by location of the positive
        negatives = unit[:, 2:]  # (n, M, T, D)
        with torch.no_grad():
            closest = torch.cdist(anchor[:, None], negatives).argmin(dim=3)  # (n, M, T)
        to_positive = (anchor - unit[:, 1]).square().sum(dim=2)
        to_negative = (anchor[:, None] - at(closest, negatives)).square().sum(dim=3)
        terms = F.relu(to_positive[:, None] - to_negative + self.margin)
        total = (terms * matched[:, None].to(terms.dtype)).sum()  # (5)
        if self.reduction == "mean":
            total = total / (matched.sum() * (size - 2)).clamp(min=1)
        return self.local_weight * total

    def _tuples(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B / tuple_size, tuple_size, T, D)."""
        require(tokens.ndim == 3 and tokens.shape[1] >= 2, "tokens", "(B, T, D), T >= 2", tokens)
        whole = len(tokens) > 0 and len(tokens) % self.tuple_size == 0
        require(whole, "tokens", f"whole tuples of {self.tuple_size} images", tokens)
        half = tokens.dtype in (torch.float16, torch.bfloat16)
        wide = tokens.float() if half else tokens
        return wide.reshape(-1, self.tuple_size, *wide.shape[1:])


def gem_pool(x: Tensor, *, power: float = 3.0, eps: float = 1e-6) -> Tensor:
    """Generalized mean over positions: maps (B, C, H, W) -> (B, C); entries below `eps` are `eps`.

    `power` 1 is the mean, infinity in the limit the maximum. Computed relative to each map's
    maximum, so that no power overflows.

    Raises:
        EtudeError: not four axes, or `power` not positive.
    """
    require(x.ndim == 4, "x", "of shape (B, C, H, W)", x)
    require(math.isfinite(power) and power > 0, "power", "a positive number", power)
    flat = x.flatten(2).clamp(min=eps)
    top = flat.amax(dim=2, keepdim=True).detach()
    return ((flat / top) ** power).mean(dim=2) ** (1 / power) * top[:, :, 0]
